import type { JSX } from "preact";
import { useEffect, useMemo } from "preact/hooks";
import { ActiveSessions } from "./active_sessions.js";
import { CopyButton, curl } from "./copy.js";
import { Failure, Loading } from "./failure.js";
import { useKey } from "./keyboard.js";
import { LiveBadge } from "./live_badge.js";
import { LongList } from "./long_list.js";
import { PageHead } from "./page_head.js";
import { SessionRow } from "./session_row.js";
import { useStore } from "./store.js";
import { counted, Id } from "./text.js";

export function BusinessPage({ businessId }: { businessId: string }): JSX.Element {
  const list = useStore(useMemo(() => new ActiveSessions(businessId), [businessId]));
  useEffect(() => {
    void list.open();
    return () => list.close();
  }, [list]);
  const reload = () => void list.load();
  useKey("r", reload);
  const { order, total, writing, error, moreError, hasMore, isLoading, live, isHeld } = list;
  const path = `/api/sessions/business/${encodeURIComponent(businessId)}/active?include=lastMessage,turn`;
  return (
    <main class="page full" id="main">
      <PageHead kind="Business" title={<Id>{businessId}</Id>} windowTitle={businessId}>
        {total !== null && (
          <span>
            <LiveBadge state={live} /> <strong>{counted(total, "active session")}</strong>
            {writing > 0 &&
              ` · ${writing === 1 ? "1 reply is" : `${writing.toLocaleString("en")} replies are`} being written`}
            {hasMore && <span class="minor"> · the newest {order.length.toLocaleString("en")} are listed</span>}
            {isHeld && live === "live" && <span class="minor"> · the order is kept while you point at a row</span>}
          </span>
        )}
        <span class="buttons">
          <button type="button" onClick={reload} aria-keyshortcuts="r">
            {isLoading ? "Loading…" : "Refresh"}
          </button>
          <CopyButton text={businessId} what="the business id" label="Copy id" />
          <CopyButton text={curl(path)} what="the call as curl" label="Copy as curl" />
        </span>
      </PageHead>
      {error != null && <Failure error={error} what="The active sessions could not be loaded." retry={reload} />}
      {total === null && isLoading && <Loading>Loading the active sessions…</Loading>}
      {total !== null && order.length === 0 && <p class="empty">No session of this business is active.</p>}
      {order.length > 0 && (
        <div
          class="list-frame"
          onPointerEnter={() => list.hold("pointer", true)}
          onPointerLeave={() => list.hold("pointer", false)}
          onFocusIn={() => list.hold("focus", true)}
          onFocusOut={({ currentTarget, relatedTarget }) => {
            if (!currentTarget.contains(relatedTarget as Node | null)) list.hold("focus", false);
          }}
        >
          <LongList
            identity={businessId}
            count={order.length}
            estimate={64}
            label="Active sessions"
            role="list"
            keyOf={(index) => order[index] ?? index}
            row={(index) => ({
              attributes: { "aria-posinset": index + 1, "aria-setsize": total ?? -1 },
              content: <SessionRow row={list.row(order[index]!)!} shows="user" />,
            })}
            onRange={({ last, isAtStart }) => {
              list.hold("scroll", !isAtStart);
              if (last >= order.length - 20) void list.loadMore();
            }}
            end={
              moreError != null && (
                <Failure
                  error={moreError}
                  what="Further sessions could not be loaded."
                  retry={() => list.retryMore()}
                />
              )
            }
          />
        </div>
      )}
    </main>
  );
}
