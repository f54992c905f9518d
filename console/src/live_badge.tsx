import type { JSX } from "preact";
import type { LiveState } from "./live.js";

const TEXTS: Record<LiveState, string> = {
  live: "live",
  connecting: "connecting",
  lost: "not live: reconnecting",
  failed: "not live",
  hidden: "paused",
  ended: "ended",
};

/** Shows whether the page is current. Screen readers announce a change. */
export function LiveBadge({ state }: { state: LiveState }): JSX.Element {
  return (
    <span class={`live-badge ${state}`} role="status">
      {TEXTS[state]}
    </span>
  );
}
