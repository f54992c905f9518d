import type { ChatTransport, UIMessage, UIMessageChunk } from "ai";

import type { Sessiond } from "./client.js";
import { isProblem, SessiondError, type ProblemError } from "./errors.js";
import { onAbort } from "./transport.js";
import type { AppendMessage, Message, Session, Turn } from "./types.js";
import { partsOf, toAnswers, toAppendMessage, type StoredUIMessage, type UIPart } from "./ui-messages.js";

/** A reply that was stopped before it began is cancelled if it begins within this time. */
const CANCEL_WAIT_MS = 30_000;

export interface ChatTransportOptions {
  /** The session of a chat; by default the chat's `id`. */
  sessionId?: ((chatId: string) => string | Promise<string>) | undefined;
  /**
   * Stores a message of the user; by default `client.appendMessages`, which rejects files as `data:` URLs. It can store
   * these elsewhere, or send the message to the app's backend.
   */
  append?: ((sessionId: string, message: AppendMessage) => Promise<Message>) | undefined;
  /**
   * Called when the session is not active; the message is then appended once more. By default a session that a client
   * has ended is an error, and any other is resumed in place of the active one.
   */
  onInactive?: ((session: Session, error: ProblemError) => unknown) | undefined;
}

/** Sends the messages of a chat of the AI SDK to a session, and reads the replies of its worker. */
export function chatTransport<Chat extends UIMessage = UIMessage>(
  client: Sessiond,
  options: ChatTransportOptions = {},
): ChatTransport<Chat> {
  const {
    sessionId: sessionOf = (chatId) => chatId,
    append = async (sessionId, message) => {
      if ((message.content as UIPart[]).some(({ url }) => /^(data|blob):/.test(`${url}`))) {
        throw new SessiondError("A file is a data: URL: upload it in `append`");
      }
      return client.appendMessages(sessionId, message);
    },
    onInactive = async ({ sessionId, endReason }, error) => {
      if (endReason === "client") throw error;
      await client.resumeSession(sessionId, { ifActive: "replace" });
    },
  } = options;
  let isReplay = true;
  /** The signal of the newest `reconnectToStream` of each chat. */
  const reconnects: Record<string, AbortSignal | undefined> = {};

  return {
    /** Whether the stream of the last `reconnectToStream` begins at the start of the message. */
    get resumeStreamIsReplay() {
      return isReplay;
    },

    async sendMessages({ chatId, trigger, messages, abortSignal: signal }) {
      const last = messages.at(-1) as StoredUIMessage | undefined;
      if (!last || trigger === "regenerate-message") {
        throw new SessiondError("Replies are not rewritten");
      }
      const isAnswer = last.role === "assistant";
      const message = isAnswer ? toAnswers(last) : toAppendMessage(last);
      const sessionId = await sessionOf(chatId);
      // Not aborted by `stop`: a stored message gets a reply, which is then cancelled.
      const { seq } = await append(sessionId, message).catch(async (error: unknown) => {
        const session = isProblem(error, "session_not_active") && (await client.getSession(sessionId));
        if (!session) throw error;
        await onInactive(session, error as ProblemError);
        return append(sessionId, message);
      });
      return reply(client, sessionId, signal, () => true, seq, isAnswer ? last.parts : []);
    },

    async reconnectToStream({ chatId, abortSignal: signal }) {
      reconnects[chatId] = signal;
      // Another reconnect aborts the previous one. The user has not asked to stop.
      const isStop = () => reconnects[chatId] === signal;
      const [peek, stream] = reply(client, await sessionOf(chatId), signal, isStop).tee();
      const reader = peek.getReader();
      const { done, value } = await reader.read();
      void reader.cancel();
      if (done) return null;
      // A continuation does not begin at the start of its message.
      isReplay = "messageId" in value;
      return stream;
    },
  };
}

/** A chunk of any type, as far as this module reads it. */
interface AnyChunk {
  type: string;
  id?: string;
  delta?: string;
  toolCallId?: string;
  [member: string]: unknown;
}

/**
 * The chunks of a reply as its worker writes it: of the reply to the message with the `seq` `after`, or otherwise of
 * the open turn, if there is one. The signal ends the reading, and cancels the turn if it `isStop`. The reply may
 * continue after the parts that are `known`.
 */
function reply(
  client: Sessiond,
  sessionId: string,
  signal: AbortSignal | undefined,
  isStop: () => boolean,
  after?: number,
  known: UIPart[] = [],
): ReadableStream<UIMessageChunk> {
  let isOver = false;
  let isReady = false;
  let turn: Turn | undefined;
  let message: Message | undefined;
  /** The number of chunks of the turn that were read. */
  let read = 0;
  let incompleteLine = "";
  /** The number of characters or parts that were shown, by kind; tool calls by their id. */
  const shown: Record<string, number> = {};
  /** The ids of texts that may continue. */
  const open: Record<string, string> = {};
  let controller: ReadableStreamDefaultController<UIMessageChunk>;

  /** Of a chunk or a part. */
  const kindOf = ({ type, toolCallId }: AnyChunk | UIPart) =>
    type === "step-start" ? "start-step" : (toolCallId ?? type);
  const count = (kind: string, more = 1) => (shown[kind] = (shown[kind] ?? 0) + more);
  for (const part of known) count(kindOf(part), part.text?.length);

  const show = (chunk: AnyChunk) => {
    const { type, id, delta } = chunk;
    const [, kind, change] = /^(text|reasoning)-(.*)/.exec(type) ?? [];
    if (change === "start") open[kind!] = id!;
    if (change === "end") delete open[kind!];
    count(delta ? kind! : kindOf(chunk), delta?.length);
    controller.enqueue(chunk as UIMessageChunk);
  };
  const showStart = (messageId: unknown) => {
    if (!shown.start) show({ type: "start", messageId });
  };
  const showText = (type: string, delta: string) => {
    if (!open[type]) show({ type: `${type}-start`, id: `${type}-${read}-${shown[type]}` });
    show({ type: `${type}-delta`, id: open[type]!, delta });
  };
  const closeTexts = () => {
    for (const type in open) show({ type: `${type}-end`, id: open[type]! });
  };
  /** Shows the remainder of the parts. */
  const showRest = (parts: UIPart[]) => {
    const skip = { ...shown };
    for (const part of parts) {
      const { type, text, toolCallId, state } = part;
      const kind = kindOf(part);
      const known = skip[kind] ?? 0;
      const left = text?.slice(known);
      skip[kind] = Math.max(0, known - (text?.length ?? 1));
      if (left !== undefined) {
        if (!known) closeTexts();
        if (left) showText(type, left);
      } else if (toolCallId) {
        const call = { toolName: type.slice(5), dynamic: !!part.toolName, ...part };
        if (!known) show({ ...call, type: "tool-input-available" });
        // Parts that have been shown already are skipped.
        show({ ...call, type: `tool-${state}` });
      } else if (!known) {
        show({ ...part, type: kind });
      }
    }
  };
  const showEnd = () => {
    if (message && (!turn || (turn.turnId === message.messageId && turn.nextChunk !== read))) {
      showStart(message.metadata.continues ?? message.messageId);
      // A lost writer leaves no parts.
      if (!message.metadata.uiMessageChunks) showRest(partsOf(message));
    }
    closeTexts();
    const status = turn?.status ?? "completed";
    if (/failed|lost/.test(status)) {
      const isText = typeof turn!.error === "string";
      show({ type: "error", errorText: isText ? turn!.error : "The reply failed" });
    } else if (!shown.finish) {
      show({ type: status === "completed" ? "finish" : "abort" });
    }
    controller.close();
  };

  const over = new AbortController();
  let timer: ReturnType<typeof setTimeout>;
  // Deferred, because a chat that reconnects in this task does not want to stop.
  const stop = () =>
    setTimeout(() => {
      if (turn && isStop()) client.cancelTurn(sessionId, turn.turnId).catch(() => {});
      // A reply that has not begun yet is cancelled when it begins.
      if (turn || after === undefined) over.abort();
      else timer = setTimeout(() => over.abort(), CANCEL_WAIT_MS);
    });
  const isReply = (other: Turn) => {
    if (turn) return other.turnId === turn.turnId;
    return after === undefined ? other.status === "open" : other.afterSeq! >= after;
  };

  return new ReadableStream({
    async start(own) {
      controller = own;
      const unlisten = onAbort(signal, stop);
      if (signal?.aborted) stop();
      try {
        for await (const { type, data } of client.events(sessionId, { after, signal: over.signal })) {
          if (type === "session") isOver = data.status !== "active";
          isReady ||= type === "ready";
          if (type === "message" && data.role === "assistant") message = data;
          if (type === "turn" && isReply(data)) {
            if (read && !data.nextChunk) throw new SessiondError("The reply was started again");
            turn = data;
            if (signal?.aborted) stop();
            if (turn.status !== "open") return showEnd();
            if (!turn.metadata.uiMessageChunks) showStart(turn.turnId);
          }
          if (type === "chunk" && data.turnId === turn?.turnId) {
            const chunks = data.chunks.slice(read - data.from);
            read += chunks.length;
            const text = incompleteLine + chunks.join("");
            if (turn.metadata.uiMessageChunks) {
              const lines = text.split("\n");
              incompleteLine = lines.pop()!;
              for (const line of lines) show(JSON.parse(line));
            } else {
              showText("text", text);
            }
          }
          if (!isReady || turn) continue;
          if (after === undefined) return own.close();
          // A message that was appended as a whole. A message of a turn may answer another message.
          if (message && !message.finishReason) return showEnd();
          if (isOver) break;
        }
        throw new SessiondError("The session has ended");
      } finally {
        clearTimeout(timer);
        unlisten();
      }
    },
    cancel() {
      if (!signal?.aborted) over.abort();
    },
  });
}
