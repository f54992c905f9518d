import type { JSX } from "preact";
import type { Message, Session, Turn } from "../../clients/typescript/src/index.js";
import { href } from "./router.js";
import { Badge, counted, Id, preview, Time } from "./text.js";

/** A message that has just arrived has no content until it is read. */
export type LastMessage = Omit<Message, "content" | "metadata"> & { content?: unknown };

export interface Row extends Omit<Session, "lastMessage" | "turn"> {
  lastMessage?: LastMessage | null;
  turn?: Turn | null;
}

/** The time of the session's last activity. */
export function lastChange(row: Row): string {
  const times = [row.lastActivityAt, row.lastMessage?.createdAt, row.turn?.startedAt, row.endedAt];
  return times.reduce<string>((latest, time) => (time && time > latest ? time : latest), "");
}

/** A session in a list: its user or time, its title, its last message. */
export function SessionRow({ row, shows }: { row: Row; shows: "user" | "status" }): JSX.Element {
  return (
    <a class="session-row" href={href.session(row.sessionId)} data-focus>
      <span class="row-head">
        {shows === "user" ? (
          <Id>{row.userId}</Id>
        ) : (
          <span>
            <Badge kind={row.status}>{row.status}</Badge> created <Time>{row.createdAt}</Time>
          </span>
        )}
        <bdi class={row.title === null ? "title minor" : "title"}>{row.title ?? "no title"}</bdi>
      </span>
      <span class="row-last">
        <LastLine row={row} />
      </span>
      <span class="row-end">
        <Time>{lastChange(row)}</Time>
        <span class="minor">{counted(row.messageCount, "message")}</span>
      </span>
    </a>
  );
}

function LastLine({ row }: { row: Row }): JSX.Element {
  const { lastMessage, turn } = row;
  if (turn) {
    return (
      <>
        <Badge kind="writing">{turn.cancelRequested ? "stopping" : "writing"}</Badge> {turn.role} since{" "}
        <Time>{turn.startedAt ?? row.lastActivityAt}</Time>
      </>
    );
  }
  if (lastMessage === undefined) return <span class="minor">{row.messageCount ? "a long message" : "no message"}</span>;
  if (lastMessage === null) return <span class="minor">no message</span>;
  return (
    <>
      <Badge kind={lastMessage.role}>{lastMessage.role}</Badge> <LastText message={lastMessage} />
    </>
  );
}

function LastText({ message }: { message: LastMessage }): JSX.Element {
  if (message.redactedAt) return <span class="minor">redacted</span>;
  if (message.content === undefined) return <span class="minor">new message</span>;
  return <bdi>{preview(message.content)}</bdi>;
}
