import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { Page, Session } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { EraseDialog } from "./actions.js";
import { CopyButton, curl } from "./copy.js";
import { exportUser } from "./export.js";
import { Failure, Loading, useLoaded } from "./failure.js";
import { useKey } from "./keyboard.js";
import { LongList } from "./long_list.js";
import { notice } from "./notice.js";
import { PageHead } from "./page_head.js";
import { href } from "./router.js";
import { SessionRow } from "./session_row.js";
import { useStore } from "./store.js";
import { counted, Id } from "./text.js";

const INCLUDE = ["lastMessage", "turn"] as const;

/** The sessions of a user, page by page. */
interface History {
  sessions: Session[];
  pages: AsyncGenerator<Page<Session>>;
  hasMore: boolean;
}

export function UserPage({ businessId, userId }: { businessId: string; userId: string }): JSX.Element {
  useStore(access);
  const [isErasing, setErasing] = useState(false);
  const [exported, setExported] = useState<number | null>(null);
  const [moreError, setMoreError] = useState<unknown>(null);
  const isLoadingMore = useRef(false);
  const loaded = useLoaded<History>(`${businessId}/${userId}`, async (signal) => {
    const list = access.client.getUserSessionHistory(businessId, userId, { limit: 100, include: [...INCLUDE], signal });
    const pages = list.pages();
    const page = (await pages.next()).value as Page<Session>;
    return { sessions: page.items, pages, hasMore: page.next !== null };
  });
  const { value, error, isLoading, reload, set } = loaded;
  useKey("r", reload);
  useEffect(() => setMoreError(null), [value]);

  const loadMore = async () => {
    if (!value?.hasMore || isLoadingMore.current || moreError) return;
    isLoadingMore.current = true;
    try {
      const { value: page } = await value.pages.next();
      if (page) set({ ...value, sessions: [...value.sessions, ...page.items], hasMore: page.next !== null });
    } catch (error) {
      access.rejected(error);
      setMoreError(error);
    }
    isLoadingMore.current = false;
  };
  const runExport = async () => {
    setExported(0);
    try {
      await exportUser(businessId, userId, setExported);
      notice.show("The export is saved");
    } catch (error) {
      access.rejected(error);
      notice.show(`The export failed: ${error instanceof Error ? error.message : error}`);
    }
    setExported(null);
  };
  const path = `/api/sessions/business/${encodeURIComponent(businessId)}/user/${encodeURIComponent(userId)}/history`;
  const sessions = value?.sessions ?? [];
  return (
    <main class="page full" id="main">
      <PageHead
        kind="User"
        title={<Id>{userId}</Id>}
        windowTitle={userId}
        above={
          <a href={href.business(businessId)}>
            <Id>{businessId}</Id>
          </a>
        }
      >
        {value && (
          <span>
            {counted(sessions.length, "session")}
            {value.hasMore && " shown, there are more"}
          </span>
        )}
        <span class="buttons">
          <button type="button" onClick={reload} aria-keyshortcuts="r">
            {isLoading ? "Loading…" : "Refresh"}
          </button>
          <CopyButton text={userId} what="the user id" label="Copy id" />
          <CopyButton text={curl(path)} what="the call as curl" label="Copy as curl" />
          {access.mayRead && (
            <button type="button" onClick={() => void runExport()} disabled={exported !== null}>
              {exported === null ? "Export" : `Exporting, ${Math.ceil(exported / 1024)} KiB`}
            </button>
          )}
          {access.mayErase && (
            <button type="button" class="danger" onClick={() => setErasing(true)}>
              Erase…
            </button>
          )}
        </span>
      </PageHead>
      {error != null && <Failure error={error} what="The history could not be loaded." retry={reload} />}
      {!value && isLoading && <Loading>Loading the history…</Loading>}
      {value && sessions.length === 0 && <p class="empty">This user has no sessions.</p>}
      {value && sessions.length > 0 && (
        <LongList
          identity={path}
          count={sessions.length}
          estimate={64}
          label="Sessions of the user"
          role="list"
          keyOf={(index) => sessions[index]?.sessionId ?? index}
          row={(index) => ({
            attributes: { "aria-posinset": index + 1, "aria-setsize": value.hasMore ? -1 : sessions.length },
            content: <SessionRow row={sessions[index]!} shows="status" />,
          })}
          onRange={({ last }) => last >= sessions.length - 20 && void loadMore()}
          end={
            moreError != null && (
              <Failure error={moreError} what="Older sessions could not be loaded." retry={() => setMoreError(null)} />
            )
          }
        />
      )}
      {isErasing && (
        <EraseDialog businessId={businessId} userId={userId} onDone={reload} onClose={() => setErasing(false)} />
      )}
    </main>
  );
}
