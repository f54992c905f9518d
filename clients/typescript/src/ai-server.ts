import { readUIMessageStream, type UIMessage, type UIMessageChunk } from "ai";

import type { MessagesOptions, Sessiond } from "./client.js";
import { isProblem } from "./errors.js";
import { randomId, type CallOptions } from "./transport.js";
import type { IfOpen, Message, Metadata, Turn } from "./types.js";
import { toAppendMessage, toUIMessages, type StoredMetadata, type StoredUIMessage } from "./ui-messages.js";
import type { WriteTurnOptions, WrittenTurn } from "./write-turn.js";

/** How long deltas are collected into one chunk. */
const MERGE_MS = 50;

/**
 * The messages of a session, the newest 1,000 by default. A reply that a turn wrote without the AI SDK becomes one text
 * part. Redacted messages are omitted.
 */
export async function loadUIMessages<Chat extends UIMessage = UIMessage>(
  client: Sessiond,
  sessionId: string,
  options?: MessagesOptions,
): Promise<Chat[]> {
  return toUIMessages(await load(client, sessionId, options)) as unknown[] as Chat[];
}

/**
 * Appends new messages, and assistant's messages that have grown since they were stored. Messages that are already
 * stored are not appended again.
 */
export async function saveUIMessages(
  client: Sessiond,
  sessionId: string,
  messages: UIMessage[],
  options?: CallOptions,
): Promise<void> {
  for (const message of messages) {
    const stored = toAppendMessage(message as unknown as StoredUIMessage);
    try {
      await client.appendMessages(sessionId, stored, options);
    } catch (error) {
      if (message.role !== "assistant" || !isProblem(error, "message_id_conflict")) throw error;
      const metadata = { ...stored.metadata, continues: message.id } satisfies StoredMetadata;
      await client.appendMessages(sessionId, { ...stored, messageId: randomId(), metadata }, options);
    }
  }
}

/** The chunks of a reply. `messages` are those that the session had when the turn began. */
export type UIMessageSource<Chat extends UIMessage> = (
  messages: Chat[],
  signal: AbortSignal,
  turn: Turn,
) => UIMessageChunks | Promise<UIMessageChunks>;

export type UIMessageChunks = AsyncIterable<UIMessageChunk> | ReadableStream<UIMessageChunk>;

export interface WriteUIMessageOptions extends Omit<WriteTurnOptions, "role" | "end" | "ifOpen"> {
  /** No `takeover`, because a model cannot continue the chunks of another writer. `discard` begins the turn again. */
  ifOpen?: Exclude<IfOpen, "takeover">;
  /** How many messages are read, up to 1,000; default 1,000. */
  last?: number | undefined;
}

/**
 * Writes a reply as a turn: its chunks as they arrive, and its parts as the content of the message. Like `writeTurn`,
 * which it uses. Rejects after an `error` chunk, whose text is the error of the failed turn.
 */
export async function writeUIMessages<Chat extends UIMessage = UIMessage>(
  client: Sessiond,
  sessionId: string,
  source: UIMessageSource<Chat>,
  { last = 1000, metadata, describeError, ...options }: WriteUIMessageOptions = {},
): Promise<WrittenTurn> {
  let message: UIMessage | undefined;
  let continues: string | undefined;

  async function* text(turn: Turn, signal: AbortSignal): AsyncGenerator<string> {
    const stored = await load(client, sessionId, { limit: last, before: turn.afterSeq! + 1, signal });
    const messages = toUIMessages(stored) as unknown[] as Chat[];
    // Only answers to tool calls have a continuation.
    const isContinuation = stored.at(-1)?.metadata.answers !== undefined && messages.at(-1)?.role === "assistant";
    const head = isContinuation ? structuredClone(messages.at(-1)!) : undefined;
    continues = head?.id;

    const start = (messageMetadata?: unknown): UIMessageChunk => {
      const messageId = head ? {} : { messageId: turn.turnId };
      return { type: "start", ...messageId, ...(messageMetadata !== undefined && { messageMetadata }) };
    };
    yield line(start());
    let assembler!: ReadableStreamDefaultController<UIMessageChunk>;
    const stream = new ReadableStream<UIMessageChunk>({ start: (controller) => void (assembler = controller) });
    const states = readUIMessageStream({ stream, ...(head && { message: head as UIMessage }), onError: () => {} });
    const assembled = (async () => {
      for await (const state of states) message = state;
    })();
    assembler.enqueue(start());

    const read = async function* () {
      for await (const chunk of iterable(await source(messages, signal, turn))) {
        if (chunk.type === "error") throw new ReplyError(chunk.errorText);
        // The status of the turn says that it was cancelled.
        if (chunk.type === "abort") continue;
        if (chunk.type !== "start") {
          assembler.enqueue(chunk);
          yield chunk;
        } else if (chunk.messageMetadata !== undefined) {
          assembler.enqueue(start(chunk.messageMetadata));
          yield start(chunk.messageMetadata);
        }
      }
    };
    try {
      for await (const chunk of merged(read())) yield line(chunk);
    } finally {
      assembler.close();
      await assembled;
    }
  }

  const end = () => {
    const done = (message?.parts ?? []).map((part) => ("text" in part ? { ...part, state: "done" } : part));
    const marks = { uiMessageChunks: null, ...(continues !== undefined && { continues }) } satisfies StoredMetadata;
    return { content: done, metadata: { ...(message?.metadata as Metadata | undefined), ...marks } };
  };
  return client.writeTurn(sessionId, text, {
    ...options,
    metadata: { ...metadata, uiMessageChunks: true } satisfies StoredMetadata,
    end,
    describeError: (error) => (error instanceof ReplyError ? error.message : describeError?.(error)),
  });
}

/** An `error` chunk. Its text is shown to readers. */
class ReplyError extends Error {}

async function load(client: Sessiond, sessionId: string, options?: MessagesOptions): Promise<Message[]> {
  return client.getSessionMessages(sessionId, { limit: 1000, ...options });
}

function line(chunk: UIMessageChunk): string {
  return `${JSON.stringify(chunk)}\n`;
}

/** Not every browser's streams are iterable. */
async function* iterable(chunks: UIMessageChunks): AsyncGenerator<UIMessageChunk> {
  if (Symbol.asyncIterator in chunks) return yield* chunks;
  const reader = chunks.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield value;
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Merges deltas of one part that arrive within `MERGE_MS`. A chunk is many times longer than the text of its delta. */
export async function* merged(chunks: AsyncIterable<UIMessageChunk>): AsyncGenerator<UIMessageChunk> {
  const iterator = chunks[Symbol.asyncIterator]();
  let held: UIMessageChunk | undefined;
  let timer: ReturnType<typeof setTimeout> | undefined;
  let isOver: Promise<undefined> | undefined;
  try {
    for (let next = iterator.next(); ;) {
      const result: IteratorResult<UIMessageChunk> | undefined = await (isOver ? Promise.race([next, isOver]) : next);
      const joined = held && result && !result.done && join(held, result.value);
      if (!joined) {
        clearTimeout(timer);
        isOver = undefined;
        if (held) yield held;
        held = undefined;
      }
      if (!result) continue;
      if (result.done) return;
      next = iterator.next();
      // It may reject while the consumer is busy. The rejection is handled when it is awaited.
      next.catch(() => {});
      if (!joined && join(result.value, result.value)) {
        isOver = new Promise((resolve) => (timer = setTimeout(() => resolve(undefined), MERGE_MS)));
        held = result.value;
      } else if (joined) {
        held = joined;
      } else {
        yield result.value;
      }
    }
  } finally {
    clearTimeout(timer);
    await iterator.return?.();
  }
}

/** One delta for both, if both are deltas of the same part and have only text. */
function join(a: UIMessageChunk, b: UIMessageChunk): UIMessageChunk | undefined {
  if ("providerMetadata" in a || "providerMetadata" in b) return undefined;
  if ((a.type === "text-delta" || a.type === "reasoning-delta") && a.type === b.type && a.id === b.id) {
    return { ...a, delta: a.delta + b.delta };
  }
  if (a.type === "tool-input-delta" && a.type === b.type && a.toolCallId === b.toolCallId) {
    return { ...a, inputTextDelta: a.inputTextDelta + b.inputTextDelta };
  }
  return undefined;
}
