import type { Retry } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";

/** Whether the page is current. */
export type LiveState =
  /** Changes are shown as they happen. */
  | "live"
  | "connecting"
  /** The connection is lost, and another attempt follows. */
  | "lost"
  /** The service rejects the stream. */
  | "failed"
  /** The page is hidden, and sends no request. */
  | "hidden"
  /** There are no further events. */
  | "ended";

interface Options {
  signal: AbortSignal;
  lastEventId: string | undefined;
  onRetry(retry: Retry): void;
}

interface Watcher<Event> {
  /** Opens the stream, after the event with this id. */
  open(options: Options): AsyncIterable<Event>;
  /** The event after which the page is current. */
  liveAfter: string;
  onEvent(event: Event): void;
  onState(state: LiveState): void;
}

/** Follows a stream while the page is visible, until the returned function is called. */
export function follow<Event extends { type: string; id?: string }>(watcher: Watcher<Event>): () => void {
  const { open, liveAfter, onEvent, onState } = watcher;
  let lastEventId: string | undefined;
  let connection: AbortController | null = null;

  const connect = async () => {
    const { signal } = (connection = new AbortController());
    onState("connecting");
    try {
      for await (const event of open({ signal, lastEventId, onRetry: () => onState("lost") })) {
        if (signal.aborted) return;
        lastEventId = event.id ?? lastEventId;
        onEvent(event);
        if (event.type === liveAfter) onState("live");
      }
      if (!signal.aborted) onState("ended");
    } catch (error) {
      if (signal.aborted) return;
      access.rejected(error);
      onState("failed");
    }
  };
  const onVisibility = () => {
    connection?.abort();
    if (document.hidden) onState("hidden");
    else void connect();
  };
  document.addEventListener("visibilitychange", onVisibility);
  onVisibility();
  return () => {
    document.removeEventListener("visibilitychange", onVisibility);
    connection?.abort();
  };
}
