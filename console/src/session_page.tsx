import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Message, Session } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { DeleteDialog, EndDialog, RedactDialog, ResumeDialog, RetitleDialog } from "./actions.js";
import { Conversation } from "./conversation.js";
import { CopyButton, curl } from "./copy.js";
import { Failure, Loading } from "./failure.js";
import { useKey } from "./keyboard.js";
import { LongList, type LongListHandle } from "./long_list.js";
import { LiveBadge } from "./live_badge.js";
import { MessageRow, TurnRow } from "./message_row.js";
import { notice } from "./notice.js";
import { PageHead } from "./page_head.js";
import { href } from "./router.js";
import { useStore } from "./store.js";
import { Badge, counted, Id, Json, Time } from "./text.js";

/** Messages are loaded when their rows are this close to the rendered ones, so that few are shown before. */
const ROWS_AHEAD = 50;

type Action = "retitle" | "end" | "resume" | "delete";

export function SessionPage({ sessionId }: { sessionId: string }): JSX.Element {
  useStore(access);
  const conversation = useStore(useMemo(() => new Conversation(sessionId), [sessionId]));
  const [action, setAction] = useState<Action | null>(null);
  const [redacted, setRedacted] = useState<Message | null>(null);
  const refresh = () => void conversation.refresh();
  useEffect(() => {
    void conversation.open();
    return () => conversation.close();
  }, [conversation]);
  useKey("r", refresh);

  const { session, newest, error, isMissing, isDeleted, isLoading, live } = conversation;
  const close = () => setAction(null);
  if (isMissing) {
    return (
      <main class="page narrow" id="main">
        <PageHead title="No such session" windowTitle="No such session" above={<a href={href.find()}>Find</a>} />
        <p class="empty">
          The service has no session <Id>{sessionId}</Id>, or this credential does not reach it. Deleted sessions, and
          those past their retention, are gone.
        </p>
      </main>
    );
  }
  const done = (changed: Session) => conversation.setSession(changed);
  return (
    <main class="page full" id="main">
      <PageHead
        title={<bdi>{session ? (session.title ?? "Session without title") : "Session"}</bdi>}
        windowTitle={session?.title ?? sessionId}
        above={session && <Above session={session} />}
      >
        {session && (
          <span>
            <LiveBadge state={live} /> <Badge kind={session.status}>{session.status}</Badge>{" "}
            {counted(newest, "message")}
            {session.status === "active" && (
              <span class="minor">
                {" "}
                · expires <Time>{session.expiresAt}</Time> without activity. Watching keeps no session alive.
              </span>
            )}
          </span>
        )}
        <span class="buttons">
          <button type="button" onClick={refresh} aria-keyshortcuts="r">
            {isLoading ? "Loading…" : "Refresh"}
          </button>
          {session && !isDeleted && access.mayWrite && <Actions session={session} choose={setAction} />}
        </span>
      </PageHead>
      {isDeleted && (
        <p class="failure" role="alert">
          <strong>This session was deleted.</strong> The data shown here no longer exists.
        </p>
      )}
      {error != null && (
        <Failure
          error={error}
          what={session ? "Could not be refreshed: this may be out of date." : "The session could not be loaded."}
          retry={refresh}
        />
      )}
      {!session && isLoading && <Loading>Loading the session…</Loading>}
      {session && (
        <div class="columns">
          <Messages conversation={conversation} redact={setRedacted} />
          <Document session={session} />
        </div>
      )}
      {session && action === "retitle" && <RetitleDialog session={session} onDone={done} onClose={close} />}
      {session && action === "end" && <EndDialog session={session} onDone={done} onClose={close} />}
      {session && action === "resume" && <ResumeDialog session={session} onDone={done} onClose={close} />}
      {session && action === "delete" && <DeleteDialog session={session} onClose={close} />}
      {redacted && <RedactDialog message={redacted} onDone={refresh} onClose={() => setRedacted(null)} />}
    </main>
  );
}

function Above({ session }: { session: Session }): JSX.Element {
  const { businessId, userId } = session;
  return (
    <>
      {!access.whoami?.userId && (
        <>
          <a href={href.business(businessId)}>
            <Id>{businessId}</Id>
          </a>
          <span aria-hidden="true"> › </span>
        </>
      )}
      <a href={href.user(businessId, userId)}>
        <Id>{userId}</Id>
      </a>
    </>
  );
}

function Actions({ session, choose }: { session: Session; choose(action: Action): void }): JSX.Element {
  return (
    <>
      <button type="button" onClick={() => choose("retitle")}>
        Title…
      </button>
      {session.status === "active" ? (
        <button type="button" onClick={() => choose("end")}>
          End…
        </button>
      ) : (
        <button type="button" onClick={() => choose("resume")}>
          Resume…
        </button>
      )}
      <button type="button" class="danger" onClick={() => choose("delete")}>
        Delete…
      </button>
    </>
  );
}

interface MessagesProps {
  conversation: Conversation;
  redact(message: Message): void;
}

function Messages({ conversation, redact }: MessagesProps): JSX.Element {
  const { session, oldest, newest, turn, text, chunkCount, pageError } = conversation;
  const list = useRef<LongListHandle>(null);
  const [isAtEnd, setAtEnd] = useState(true);
  /** `seq` of the newest message when the end of the list was last visible. */
  const lastSeen = useRef(newest);
  if (isAtEnd) lastSeen.current = newest;
  const count = newest - oldest + 1;
  const stop = async () => {
    try {
      conversation.setTurn(await access.client.cancelTurn(conversation.sessionId, turn!.turnId));
      notice.show("The writer is asked to stop");
    } catch (error) {
      access.rejected(error);
      notice.show(`Not stopped: ${error instanceof Error ? error.message : error}`);
    }
  };
  const row = (index: number) => {
    const message = conversation.messages.get(oldest + index);
    return {
      attributes: {
        role: "article" as const,
        class: message ? `message ${message.role}` : "message",
        tabIndex: -1,
        "aria-label": `Message ${oldest + index}`,
        "aria-busy": !message,
      },
      content: message ? (
        <MessageRow message={message} redact={redact} />
      ) : (
        <p class="minor">Loading message {oldest + index}…</p>
      ),
    };
  };
  return (
    <section class="messages" aria-label="Conversation">
      {oldest > 1 && <p class="minor">Messages before #{oldest} are no longer stored.</p>}
      {pageError != null && (
        <Failure error={pageError} what="Messages could not be loaded." retry={() => conversation.retryPages()} />
      )}
      {count === 0 && !turn && <p class="empty">This session has no messages.</p>}
      <LongList
        identity={`${session!.sessionId}/${oldest}`}
        count={count}
        estimate={90}
        label="Messages"
        role="log"
        followsEnd
        keyOf={(index) => oldest + index}
        row={row}
        onRange={({ first, last, isAtEnd }) => {
          conversation.need(oldest + first - ROWS_AHEAD, oldest + last + ROWS_AHEAD);
          setAtEnd(isAtEnd);
        }}
        handle={list}
        end={turn && <TurnRow turn={turn} text={text} chunkCount={chunkCount} stop={() => void stop()} />}
      />
      <p class="buttons">
        <button type="button" onClick={() => list.current?.scrollTo("start")}>
          Oldest
        </button>
        <button type="button" onClick={() => list.current?.scrollTo("end")} disabled={isAtEnd}>
          {newest > lastSeen.current ? `Newest (${(newest - lastSeen.current).toLocaleString("en")} new)` : "Newest"}
        </button>
      </p>
    </section>
  );
}

/** The other members of the session. */
function Document({ session }: { session: Session }): JSX.Element {
  const isWide = matchMedia("(min-width: 60rem)").matches;
  const { metadata } = session;
  return (
    <details class="document" open={isWide}>
      <summary>Document</summary>
      <p class="buttons">
        <CopyButton text={session.sessionId} what="the session id" label="Copy id" />
        <CopyButton text={curl(`/api/sessions/${session.sessionId}`)} what="the call as curl" label="Copy as curl" />
      </p>
      <dl>
        <dt>Session</dt>
        <dd>
          <Id>{session.sessionId}</Id>
        </dd>
        <dt>Business</dt>
        <dd>
          <Id>{session.businessId}</Id>
        </dd>
        <dt>User</dt>
        <dd>
          <Id>{session.userId}</Id>
        </dd>
        <dt>Location</dt>
        <dd>
          <Id>{session.locationId}</Id>
        </dd>
        <dt>Type</dt>
        <dd>
          <Id>{session.sessionType}</Id>
        </dd>
        <dt>Version</dt>
        <dd>{session.version}</dd>
        <dt>Created</dt>
        <dd>
          <Time>{session.createdAt}</Time>
        </dd>
        <dt>Updated</dt>
        <dd>
          <Time>{session.updatedAt}</Time>
        </dd>
        <dt>Last activity</dt>
        <dd>
          <Time>{session.lastActivityAt}</Time>
        </dd>
        <dt>{session.endedAt ? "Ended" : "Expires"}</dt>
        <dd>
          <Time>{session.endedAt ?? session.expiresAt}</Time>
          {session.endReason && ` (${session.endReason})`}
        </dd>
      </dl>
      <h2>Metadata</h2>
      {Object.keys(metadata).length > 0 ? <Json>{metadata}</Json> : <p class="minor">none</p>}
    </details>
  );
}
