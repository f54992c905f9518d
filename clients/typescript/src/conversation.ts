import type { Sessiond } from "./client.js";
import { orIfProblem } from "./errors.js";
import { onWake } from "./stream.js";
import { onAbort, randomId, type CallOptions, type Retry } from "./transport.js";
import type { AppendMessage, GetOrCreateSession, Message, Metadata, Session, Turn, TurnChunks } from "./types.js";

/** `sessionType` and others are those of a session that the first message creates. */
export interface ConversationOptions extends Omit<GetOrCreateSession, "businessId" | "userId" | "ifActive"> {
  /** The number of messages at the start, and in each page of older ones; up to 100, default 50. */
  last?: number | undefined;
}

/** The state of a chat. Each change makes a new object. */
export interface ConversationState {
  /** Whether the state is current. Call `reconnect` after `failed`. */
  status: "connecting" | "live" | "failed";
  /** Why the state is not current, if there was an error. */
  error: unknown;
  /** Null before the first message. */
  session: Session | null;
  /** In ascending `seq`, without gaps. */
  messages: readonly Message[];
  hasOlder: boolean;
  /** Messages that were sent, but are not in `messages` yet. */
  unsent: readonly UnsentMessage[];
  /** The open turn. */
  turn: Turn | null;
  /** Its text so far. */
  text: string;
}

export interface SendOptions {
  messageId?: string | undefined;
  metadata?: Metadata | undefined;
}

export interface UnsentMessage extends SendOptions {
  messageId: string;
  content: AppendMessage["content"];
  /** Null while it is being sent. */
  error: unknown;
}

/** The conversation of a user. It is connected while it has subscribers. All methods also work detached. */
export interface Conversation {
  /** Calls back after each change of the snapshot, until the returned function is called. */
  subscribe(listener: () => void): () => void;
  getSnapshot(): ConversationState;
  /**
   * Appends a message of the user, after those sent before, and creates the session if there is none. To repeat a
   * message that failed, send it with its `messageId`.
   */
  send(content: AppendMessage["content"], options?: SendOptions): Promise<Message>;
  /** Cancels the open turn. False if there is none. */
  stop(): Promise<boolean>;
  /** Reads a page of older messages. */
  loadOlder(): Promise<void>;
  /** Begins another conversation, whose first message ends this one. A reply in progress continues. */
  newChat(): void;
  /** Connects again, for example after a `failed` sign-in. */
  reconnect(): void;
}

const NO_MESSAGES = { messages: [], hasOlder: false, turn: null, text: "" };

export function conversation(
  client: Sessiond,
  businessId: string,
  userId: string,
  { last = 50, ...members }: ConversationOptions,
): Conversation {
  let state: ConversationState = { status: "connecting", error: null, session: null, unsent: [], ...NO_MESSAGES };
  let snapshot = state;
  /** Whether the stream has sent everything that was stored. */
  let isReady = false;
  const listeners = new Set<() => void>();
  /** Aborted when there are no subscribers. */
  let connection = new AbortController();
  /** Aborted when the connection must follow a new state. */
  let step = new AbortController();
  let lastEventId: string | undefined;
  /** The number of chunks in the text. */
  let chunkCount = 0;
  /** The key of the session that the next message creates in place of the active one. */
  let newChatKey: string | undefined;
  let sending: Promise<unknown> = Promise.resolve();
  let older: Promise<void> | undefined;

  const set = (changes: Partial<ConversationState>, isShown = true) => {
    state = { ...state, ...changes };
    if (!isShown) return;
    snapshot = state;
    for (const listener of listeners) listener();
  };
  /** Sets what the stream sends. Subscribers see it when it is complete. */
  const receive = (changes: Partial<ConversationState>) => set(changes, isReady);

  const show = (session: Session | null) => {
    if (session?.sessionId === state.session?.sessionId) return receive({ session });
    lastEventId = undefined;
    isReady = false;
    set({ status: "connecting", session, ...NO_MESSAGES });
    step.abort();
  };

  const receiveMessages = (messages: Message[], changes: Partial<ConversationState>) => {
    const isUnsent = ({ messageId }: UnsentMessage) => !messages.some((message) => message.messageId === messageId);
    receive({ messages, unsent: state.unsent.filter(isUnsent), ...changes });
  };
  /** False if earlier messages are missing. */
  const receiveMessage = (message: Message): boolean => {
    const messages = [...state.messages];
    const index = messages.length && message.seq - messages[0]!.seq;
    if (index > messages.length) return false;
    if (index < 0) return true;
    messages[index] = message;
    const isTurn = message.messageId === state.turn?.turnId;
    const changes = { hasOlder: state.messages.length ? state.hasOlder : hasOlder(messages) };
    receiveMessages(messages, { ...changes, ...(isTurn && { turn: null, text: "" }) });
    return true;
  };
  const receiveTurn = (turn: Turn) => {
    const isOpen = turn.status === "open";
    const isAnew = turn.number !== state.turn?.number && turn.nextChunk === 0;
    const text = isOpen && turn.turnId === state.turn?.turnId && !isAnew ? state.text : "";
    if (!text) chunkCount = 0;
    receive({ turn: isOpen ? turn : null, text });
  };
  const receiveChunks = ({ turnId, from, chunks }: TurnChunks) => {
    if (turnId !== state.turn?.turnId || from > chunkCount) return;
    receive({ text: state.text + chunks.slice(chunkCount - from).join("") });
    chunkCount = Math.max(chunkCount, from + chunks.length);
  };

  const readMessages = async (sessionId: string, calls: CallOptions) => {
    const limit = Math.min(1000, Math.max(last, state.messages.length));
    const messages = await client.getSessionMessages(sessionId, { limit, ...calls });
    receiveMessages(messages, { turn: null, text: "", hasOlder: hasOlder(messages) });
  };

  /** Follows a session until another one must be shown. */
  const follow = async (sessionId: string, calls: CallOptions) => {
    const onRetry = ({ error }: Retry) => {
      isReady = false;
      set({ status: "connecting", error });
    };
    for await (const { type, data, id } of client.events(sessionId, { last, lastEventId, ...calls, onRetry })) {
      if (type === "deleted") return show(null);
      if (type === "session") {
        const isReplaced = state.session?.status === "active" && data.endReason === "replaced";
        receive({ session: data });
        if (isReplaced) return;
      }
      // The state follows, up to `ready`.
      if (type === "reset") isReady = false;
      if (type === "reset" || (type === "message" && !receiveMessage(data))) await readMessages(sessionId, calls);
      if (type === "changed" && state.messages.some(({ seq }) => seq === data.seq)) receiveMessage(data);
      if (type === "turn") receiveTurn(data);
      if (type === "chunk") receiveChunks(data);
      if (type === "ready") {
        isReady = true;
        set({ status: "live", error: null });
      }
      lastEventId = id ?? lastEventId;
    }
  };

  const takeStep = async (signal: AbortSignal) => {
    const calls = { signal, maxRetries: Infinity };
    if (!newChatKey && state.session?.status !== "active") {
      const active = await client.getActiveSessionForUser(businessId, userId, calls);
      if (active && active.sessionId !== state.session?.sessionId) return show(active);
    }
    if (state.session) return follow(state.session.sessionId, calls);
    set({ status: "live", error: null });
    await new Promise((_, reject) => onAbort(signal, reject));
  };

  const connect = async () => {
    const own = (connection = new AbortController());
    // Another tab may have begun a session.
    const unwatch = onWake(() => state.session?.status === "active" || step.abort());
    while (!own.signal.aborted) {
      const current = (step = new AbortController());
      const unlisten = onAbort(own.signal, () => current.abort());
      await takeStep(current.signal).catch((error) => {
        if (current.signal.aborted) return;
        set({ status: "failed", error });
        own.abort();
      });
      unlisten();
    }
    unwatch();
  };
  const disconnect = () => {
    isReady = false;
    connection.abort();
    set({ status: "connecting" });
  };

  /** The session to append to. An expired session is resumed, because the user sees it. */
  const openSession = async (): Promise<Session> => {
    let session = state.session && (await client.getSession(state.session.sessionId));
    if (session?.status === "expired") {
      session = await orIfProblem(client.resumeSession(session.sessionId), null, "another_session_active");
    }
    if (session?.status !== "active") {
      const created = { ...members, businessId, userId, ...(newChatKey && { ifActive: "replace" as const }) };
      session = await client.createSession(created, { idempotencyKey: newChatKey });
    }
    newChatKey = undefined;
    show(session);
    return session;
  };

  const append = async (message: AppendMessage): Promise<Message> => {
    const { session } = state;
    const appendTo = ({ sessionId }: Session) => client.appendMessages(sessionId, message);
    if (session?.status === "active") {
      const appended = await orIfProblem(appendTo(session), null, "session_not_active", "session_not_found");
      if (appended) return appended;
    }
    return appendTo(await openSession());
  };

  const readOlder = async () => {
    const { session, messages, hasOlder: isWanted } = state;
    if (!session || !isWanted) return;
    const page = await client.getSessionMessages(session.sessionId, { before: messages[0]!.seq, limit: last });
    if (state.messages[0] !== messages[0]) return;
    set({ messages: [...page, ...state.messages], hasOlder: hasOlder(page) });
  };

  return {
    subscribe(listener) {
      const own = () => listener();
      listeners.add(own);
      if (listeners.size === 1) void connect();
      return () => {
        if (listeners.delete(own) && !listeners.size) disconnect();
      };
    },
    getSnapshot: () => snapshot,
    async send(content, { messageId = randomId(), metadata } = {}) {
      const message: AppendMessage = { messageId, role: "user", content, ...(metadata && { metadata }) };
      const mark = (error: unknown) => {
        const others = state.unsent.filter((other) => other.messageId !== messageId);
        set({ unsent: [...others, { messageId, content, metadata, error }] });
      };
      mark(null);
      const sent = sending.then(() => append(message));
      sending = sent.catch(mark);
      const stored = await sent;
      // The stream may deliver the message later.
      if (isReady && stored.sessionId === state.session?.sessionId) receiveMessage(stored);
      return stored;
    },
    async stop() {
      const { turn } = state;
      if (!turn) return false;
      const call = client.cancelTurn(turn.sessionId, turn.turnId).then(() => true);
      return orIfProblem(call, false, "turn_closed", "turn_not_found", "session_not_found");
    },
    loadOlder: () => (older ??= readOlder().finally(() => (older = undefined))),
    newChat() {
      newChatKey = randomId();
      show(null);
      set({ unsent: [] });
      step.abort();
    },
    reconnect() {
      disconnect();
      if (listeners.size) void connect();
    },
  };
}

function hasOlder([first]: Message[]): boolean {
  return first !== undefined && first.seq > 1;
}
