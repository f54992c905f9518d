import type { Sessiond } from "./client.js";
import { isProblem } from "./errors.js";
import { onAbort, randomId, sleep, type CallOptions } from "./transport.js";
import type { BeginTurnBody, EndTurnBody, Turn } from "./types.js";

const BATCH_MS = 25;
/** Maximum UTF-16 code units of one call: at most 192 KiB as JSON. */
const BATCH_LENGTH = 32_768;
/** A cancelled turn has 10 s left, so its writer must notice earlier. */
const RENEW_MS = 5000;

/** The text of a turn, or a function that returns it. It is aborted when a reader cancels the turn. */
export type TurnSource =
  AsyncIterable<string> | ((turn: Turn, signal: AbortSignal) => AsyncIterable<string> | Promise<AsyncIterable<string>>);

/** `signal` ends the turn as failed. `maxRetries` is 10 by default. */
export interface WriteTurnOptions extends CallOptions, Partial<BeginTurnBody> {
  /** Returns the members of the end besides its status. Called when the source has ended. */
  end?: (() => Pick<EndTurnBody, "content" | "metadata">) | undefined;
  /** The description of an error of the source for readers; by default none. */
  describeError?: ((error: unknown) => unknown) | undefined;
}

/** A closed turn. */
export type WrittenTurn = Turn & {
  /**
   * Whether messages were appended since it began, which it does not answer. Also true if that is unknown: it has no
   * message, or is no longer recorded.
   */
  hasNewMessages: boolean;
};

export async function writeTurn(
  client: Sessiond,
  sessionId: string,
  source: TurnSource,
  options: WriteTurnOptions,
): Promise<WrittenTurn> {
  const { signal, timeoutMs, headers, maxRetries = 10, end, describeError, ...body } = options;
  const calls = { timeoutMs, headers, maxRetries };
  const { turnId = randomId(), writer = randomId() } = body;
  const begun = await client.beginTurn(sessionId, { ...body, turnId, writer }, { ...calls, signal });
  if (begun.status !== "open") return written(begun);
  const number = begun.number!;
  // After a takeover, the time since the start of the turn is longer than its lease, hence the bound.
  const renewMs = Math.min(RENEW_MS, (Date.parse(begun.leaseUntil!) - Date.parse(begun.startedAt!)) / 3);

  const text = sourceReader(source, begun);
  const unlisten = onAbort(signal, (reason) => text.fail(reason));
  const over = new AbortController();
  const listen = async () => {
    for await (const { type, data } of client.events(sessionId, { timeoutMs, headers, signal: over.signal })) {
      if (type !== "turn" || data.number! < number) continue;
      if (data.number !== number || data.status !== "open" || data.cancelRequested) break;
    }
    text.stop.abort();
  };

  let closed: Turn | null;
  try {
    // Without the stream, the response to the next call reports the cancel.
    listen().catch(() => {});
    void text.read();
    for (let from = begun.nextChunk!; await text.next(renewMs);) {
      const chunks = { number, from, chunks: text.take() };
      const appended = await client.appendChunks(sessionId, turnId, chunks, calls);
      from = appended.nextChunk;
      if (appended.cancelRequested) text.stop.abort();
    }
    const error = text.failure && { error: describeError?.(text.failure.error) };
    const status = text.failure ? "failed" : "completed";
    closed = await client.endTurn(sessionId, turnId, { number, status, ...end?.(), ...error }, calls);
  } catch (error) {
    closed = isProblem(error, "turn_closed") ? await client.getTurn(sessionId, turnId, calls) : null;
    if (!closed || closed.status === "open") {
      // So readers do not wait until the lease expires.
      await client.endTurn(sessionId, turnId, { number, status: "failed" }, { timeoutMs, headers }).catch(() => {});
      throw text.failure ? text.failure.error : error;
    }
  } finally {
    over.abort();
    text.stop.abort();
    unlisten();
  }
  if (text.failure) throw text.failure.error;
  return written(closed);
}

function written(turn: Turn): WrittenTurn {
  const { messageSeq, afterSeq } = turn;
  const isUnknown = messageSeq === null || afterSeq === null;
  return { ...turn, hasNewMessages: isUnknown || messageSeq - afterSeq > 1 };
}

/** Reads a source, at most one batch ahead. */
function sourceReader(source: TurnSource, turn: Turn) {
  /** Aborted when no more text is wanted. */
  const stop = new AbortController();
  let pending = "";
  let isOver = false;
  let takenMs = 0;
  // Resolve the waits for text and for space.
  let wake = () => {};
  let resume = () => {};
  const end = () => {
    isOver = true;
    wake();
    resume();
  };
  onAbort(stop.signal, end);

  const reader = {
    stop,
    failure: undefined as { error: unknown } | undefined,

    async read(): Promise<void> {
      try {
        for await (const text of typeof source === "function" ? await source(turn, stop.signal) : source) {
          if (isOver) return;
          pending += text;
          wake();
          if (pending.length >= BATCH_LENGTH) await new Promise<void>((resolve) => (resume = resolve));
        }
      } catch (error) {
        if (!isOver) reader.failure = { error };
      }
      end();
    },

    fail(error: unknown): void {
      reader.failure = { error };
      stop.abort(error);
    },

    /** Waits for text, but no longer than `ms`. False at the end of the source. */
    async next(ms: number): Promise<boolean> {
      if (!pending && !isOver) {
        await new Promise<void>((resolve) => {
          const timer = setTimeout(resolve, ms);
          wake = () => {
            clearTimeout(timer);
            resolve();
          };
        });
      }
      // The first text is sent immediately, further text in batches.
      if (pending && !isOver) await sleep(takenMs + BATCH_MS - Date.now());
      takenMs = Date.now();
      return pending !== "" || !isOver;
    },

    /** At most one chunk. */
    take(): string[] {
      let length = Math.min(pending.length, BATCH_LENGTH);
      // The second half of a surrogate pair may arrive with the next text.
      const isHalf = /[\uD800-\uDBFF]/.test(pending[length - 1] ?? "");
      if (isHalf && (length < pending.length || !isOver)) length--;
      const text = pending.slice(0, length).replace(/\p{Surrogate}/gu, "\uFFFD");
      pending = pending.slice(length);
      resume();
      return text ? [text] : [];
    },
  };
  return reader;
}
