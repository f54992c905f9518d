import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Message, Turn } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { CopyButton } from "./copy.js";
import { Badge, counted, Json, textOf, Time } from "./text.js";

/** Longer texts are cut until the user expands them. */
const CHARS_SHOWN = 10_000;

export function MessageRow({ message, redact }: { message: Message; redact(message: Message): void }): JSX.Element {
  const { seq, role, messageId, finishReason, metadata, createdAt } = message;
  return (
    <>
      <div class="message-head">
        <Badge kind={role}>{role}</Badge>
        <span class="seq">#{seq}</span>
        <Time>{createdAt}</Time>
        {finishReason && finishReason !== "completed" && <Badge kind={finishReason}>{finishReason}</Badge>}
        <span class="message-actions">
          <CopyButton text={messageId} what={`the id of message ${seq}`} label="Copy id" of={`message ${seq}`} />
          {access.mayRedact(message) && (
            <button type="button" class="quiet" aria-label={`Redact… message ${seq}`} onClick={() => redact(message)}>
              Redact…
            </button>
          )}
        </span>
      </div>
      <Content message={message} />
      {Object.keys(metadata).length > 0 && (
        <details>
          <summary>metadata</summary>
          <Json>{metadata}</Json>
        </details>
      )}
    </>
  );
}

function Content({ message }: { message: Message }): JSX.Element {
  const [isWhole, setWhole] = useState(false);
  if (message.redactedAt) {
    return (
      <p class="minor">
        Redacted <Time>{message.redactedAt}</Time>
      </p>
    );
  }
  const { content } = message;
  const text = textOf(content);
  if (text === null) return <Json>{content}</Json>;
  const isCut = !isWhole && text.length > CHARS_SHOWN;
  return (
    <>
      <div class="content" dir="auto">
        {isCut ? text.slice(0, CHARS_SHOWN) : text}
      </div>
      {isCut && (
        <button type="button" class="quiet" onClick={() => setWhole(true)}>
          Show all {counted(text.length, "character")}
        </button>
      )}
      {typeof content !== "string" && (
        <details>
          <summary>as JSON</summary>
          <Json>{content}</Json>
        </details>
      )}
    </>
  );
}

interface TurnRowProps {
  turn: Turn;
  text: string;
  chunkCount: number;
  stop(): void;
}

/** The reply in progress. Screen readers announce it when it becomes a message. */
export function TurnRow({ turn, text, chunkCount, stop }: TurnRowProps): JSX.Element {
  return (
    <article
      class={`message turn ${turn.role}`}
      aria-label={`Reply of ${turn.role} that is being written`}
      aria-live="off"
    >
      <div class="message-head">
        <Badge kind={turn.role}>{turn.role}</Badge>
        <Badge kind="writing">{turn.cancelRequested ? "stopping" : "writing"}</Badge>
        <span class="minor">
          {counted(chunkCount, "chunk")} by <bdi>{turn.writer}</bdi>
          {turn.leaseUntil && (
            <>
              , lease until <Time>{turn.leaseUntil}</Time>
            </>
          )}
        </span>
        {access.mayWrite && !turn.cancelRequested && (
          <span class="message-actions">
            <button type="button" class="danger" onClick={stop}>
              Stop
            </button>
          </span>
        )}
      </div>
      <div class="content" dir="auto">
        {text.length > CHARS_SHOWN ? `… ${text.slice(-CHARS_SHOWN)}` : text}
      </div>
    </article>
  );
}
