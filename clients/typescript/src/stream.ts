import { ConnectionError, isProblem, ProblemError, SessiondError } from "./errors.js";
import { eventStreamParser } from "./sse.js";
import { onAbort, parsed, retryDelayMs, sleep } from "./transport.js";
import type { Call, CallOptions, Retry, Transport } from "./transport.js";

/** The service sends a comment every 15 s. */
const SILENCE_MS = 40_000;
/** A page that is shown again may not have noticed that its connection was lost. */
const SHOWN_SILENCE_MS = 20_000;

/** `maxRetries` is how often a stream may connect again without an event in between; default `Infinity`. */
export interface StreamOptions extends CallOptions {
  /** How long the stream may be silent before another connection replaces it; default 40000. */
  silenceMs?: number | undefined;
  /** Called, like the client's, before the stream waits to connect again. */
  onRetry?: ((retry: Retry) => void) | undefined;
}

interface AnyEvent {
  type: string;
  data: unknown;
  id?: string;
}

/**
 * The events of a stream and of its continuations: each connection begins after the last event of the previous one. The
 * stream of a session ends with the session.
 */
export async function* stream<Event extends AnyEvent>(
  transport: Transport,
  path: string,
  options: StreamOptions,
  sessionId?: string,
  lastEventId?: string,
): AsyncGenerator<Event, void, undefined> {
  const { signal, silenceMs = SILENCE_MS, maxRetries = Infinity } = options;
  let wasOpen = false;
  for (let retry = 0, retryMs = 0; ;) {
    signal?.throwIfAborted();
    const attempt = new AbortController();
    let heardMs = Date.now();
    const unlisten = onAbort(signal, (reason) => attempt.abort(reason));
    const unwatch = onWake((isOnline) => {
      const isLost = isOnline || Date.now() - heardMs > SHOWN_SILENCE_MS;
      if (isLost) attempt.abort(new ConnectionError(`GET ${path}: the page was offline or hidden`));
    });
    const headers = { Accept: "text/event-stream", "Last-Event-ID": lastEventId || undefined };
    const call: Call = { method: "GET", path, headers, options: { ...options, signal: attempt.signal } };
    try {
      const parser = eventStreamParser();
      let failure: unknown = new ConnectionError(`GET ${path}: the stream ended`);
      try {
        reading: for await (const bytes of transport.body(call, silenceMs)) {
          heardMs = Date.now();
          for (const { type, data, id } of parser.parse(bytes)) {
            if (id !== undefined) lastEventId = id;
            if (data === undefined) continue;
            yield { type, data: parsed(call, data), ...(id !== undefined && { id }) } as Event;
            signal?.throwIfAborted();
            if (sessionId && type === "deleted") return;
            if (type === "bye") {
              failure = undefined;
              break reading;
            }
            wasOpen = true;
            retry = 0;
          }
        }
      } catch (error) {
        failure = error;
      }
      signal?.throwIfAborted();
      retryMs = parser.retryMs ?? retryMs;
      retry++;
      // The session was deleted while there was no connection.
      if (sessionId && wasOpen && isProblem(failure, "session_not_found")) {
        yield { type: "deleted", data: { sessionId } } as unknown as Event;
        return;
      }
      // The process is stopping, so another one can be reached now or soon.
      let delayMs = retryDelayMs(retry, failure, failure ? retryMs : 0);
      if (failure) {
        const error = transient(failure);
        if (retry > maxRetries) throw error;
        if (attempt.signal.aborted) delayMs = 0;
        for (const { onRetry } of [transport.options, options]) {
          onRetry?.({ method: "GET", path, retry, delayMs, error });
        }
      }
      heardMs = 0;
      if (!attempt.signal.aborted) await sleep(delayMs, attempt.signal).catch(() => {});
    } finally {
      unlisten();
      unwatch();
    }
  }
}

/** The error, if another attempt may succeed. Includes errors of the token, whose server may be unreachable too. */
function transient(error: unknown): Retry["error"] {
  if (error instanceof ProblemError) {
    if (error.status < 500 && error.status !== 408 && error.status !== 429) throw error;
    return error;
  }
  if (error instanceof SessiondError) return error as Retry["error"];
  return new ConnectionError(`the token: ${error instanceof Error ? error.message : error}`, { cause: error });
}

/** Calls back when the network is available again, or when the page, if any, is shown or focused again. */
export function onWake(callback: (isOnline: boolean) => void): () => void {
  if (typeof document === "undefined") return () => {};
  const listener = ({ type }: { type: string }) => {
    if (document.visibilityState === "visible" || type === "online") callback(type === "online");
  };
  // `visibilitychange` bubbles.
  const types = ["online", "focus", "visibilitychange"];
  for (const type of types) addEventListener(type, listener);
  return () => {
    for (const type of types) removeEventListener(type, listener);
  };
}
