import { conversation, type Conversation, type ConversationOptions } from "./conversation.js";
import { orIfProblem } from "./errors.js";
import { linked, pager, type Page, type PageQuery, type Pager } from "./pager.js";
import { stream, type StreamOptions } from "./stream.js";
import { path, query, randomId, Transport, type Call, type CallOptions, type SessiondOptions } from "./transport.js";
import { writeTurn, type TurnSource, type WriteTurnOptions, type WrittenTurn } from "./write-turn.js";
import type {
  AppendChunksBody,
  AppendedChunks,
  AppendMessage,
  BeginTurnBody,
  BusinessEvent,
  EndTurnBody,
  ErasedUser,
  GetOrCreateSession,
  Health,
  IfActive,
  Included,
  Message,
  Session,
  SessionEvent,
  Turn,
  TurnWithChunks,
  UpdateMessage,
  UpdateSession,
  WhoAmI,
} from "./types.js";

export interface GetOptions extends CallOptions {
  include?: Included | Included[] | undefined;
}

export interface TurnOptions extends CallOptions {
  /** The number of the first chunk to return; default 0. */
  from?: number | undefined;
}

export interface EventsOptions extends StreamOptions {
  /** How many of the newest messages to begin with, up to 100; default 0. */
  last?: number | undefined;
  /** Begin after the message with this `seq`; `last` then applies only if that is not possible. */
  after?: number | undefined;
  /** Begin after the event with this id. `last` and `after` apply if the service no longer knows the id. */
  lastEventId?: string | undefined;
}

/** A session of an export, or a message of the session before it. */
export type ExportLine = { session: Session } | { message: Message };

export interface CreateOptions extends CallOptions {
  /** The same key of the same user creates the same session. The client makes a key for each call with `replace`. */
  idempotencyKey?: string | undefined;
}

export interface VersionOptions extends CallOptions {
  /** Rejects with `version_mismatch` if the session has another `version`. Such a call is not repeated. */
  ifVersion?: number | undefined;
}

export interface ResumeOptions extends VersionOptions {
  /** `replace` ends another active session of the user, for which the call rejects with `another_session_active`. */
  ifActive?: IfActive | undefined;
}

export type ListOptions = CallOptions & Pick<PageQuery, "limit" | "cursor" | "include">;
export type MessagesOptions = CallOptions & Pick<PageQuery, "limit" | "before" | "after">;

/** A client of a service. Its methods reject with a `SessiondError`, or with the reason of an aborted signal. */
export class Sessiond {
  private readonly transport: Transport;

  constructor(options: SessiondOptions) {
    this.transport = new Transport(options);
  }

  /** The user's active session, or null. Creates none. */
  async getActiveSessionForUser(businessId: string, userId: string, options?: GetOptions): Promise<Session | null> {
    const call = this.get<Session>(path`/api/sessions/business/${businessId}/user/${userId}/active`, options);
    return orIfProblem(call, null, "no_active_session");
  }

  /** The user's active session, or a new one. */
  async createSession(session: GetOrCreateSession, options: CreateOptions = {}): Promise<Session> {
    const key = options.idempotencyKey ?? (session.ifActive === "replace" ? randomId() : undefined);
    const headers = { "Idempotency-Key": key };
    return this.json({ method: "POST", path: "/api/sessions", body: session, headers, options });
  }

  /** A session with any status, or null. */
  async getSession(sessionId: string, options?: GetOptions): Promise<Session | null> {
    return orIfProblem(this.get<Session>(path`/api/sessions/${sessionId}`, options), null, "session_not_found");
  }

  /**
   * Messages, always in ascending `seq`. `await` gives the newest, or those next to `before` or `after`. `pages()` goes
   * on from there to older ones, with `after` to newer ones. `for await` gives all, the oldest first.
   */
  getSessionMessages(sessionId: string, options: MessagesOptions = {}): Pager<Message> {
    const { before, after, ...others } = options;
    const list = (options: MessagesOptions, rel?: string, items?: () => AsyncGenerator<Message>) =>
      this.list(() => path`/api/sessions/${sessionId}/messages`, options, rel, items);
    return list(options, after == null ? "prev" : "next", async function* () {
      for await (const message of list({ ...others, after: after ?? 0 })) {
        if (before != null && message.seq >= before) return;
        yield message;
      }
    });
  }

  /** The user's sessions with any status, last created or resumed first. */
  getUserSessionHistory(businessId: string, userId: string, options?: ListOptions): Pager<Session> {
    return this.list(() => path`/api/sessions/business/${businessId}/user/${userId}/history`, options);
  }

  /** The active sessions of a business, latest expiry first. */
  getActiveSessionsForBusiness(businessId: string, options?: ListOptions): Pager<Session> {
    return this.list(() => path`/api/sessions/business/${businessId}/active`, options);
  }

  /** Changes the given members of a session. */
  async updateSession(sessionId: string, patch: UpdateSession, options?: VersionOptions): Promise<Session> {
    return this.json({ method: "PATCH", path: path`/api/sessions/${sessionId}`, body: patch, ...ifVersion(options) });
  }

  async endSession(sessionId: string, options?: VersionOptions): Promise<Session> {
    return this.updateSession(sessionId, { status: "ended" }, options);
  }

  /** Makes a session the user's active one again. */
  async resumeSession(sessionId: string, options: ResumeOptions = {}): Promise<Session> {
    const { ifActive, ...others } = options;
    return this.updateSession(sessionId, { status: "active", ...(ifActive && { ifActive }) }, others);
  }

  /** Postpones the expiry of an active session. */
  async heartbeat(sessionId: string, options?: CallOptions): Promise<Session> {
    return this.updateSession(sessionId, {}, options);
  }

  /** Deletes a session with its messages. False if there is none, or if an attempt without response deleted it. */
  async deleteSession(sessionId: string, options?: VersionOptions): Promise<boolean> {
    const call = this.json({ method: "DELETE", path: path`/api/sessions/${sessionId}`, ...ifVersion(options) });
    return orIfProblem(
      call.then(() => true),
      false,
      "session_not_found",
    );
  }

  /** Appends a message, or up to 100 in one step. Messages without `messageId` get one, so no attempt appends twice. */
  async appendMessages<Messages extends AppendMessage | AppendMessage[]>(
    sessionId: string,
    messages: Messages,
    options?: CallOptions,
  ): Promise<Messages extends AppendMessage[] ? Message[] : Message> {
    const named = (message: AppendMessage) => ({ ...message, messageId: message.messageId ?? randomId() });
    const body = Array.isArray(messages) ? messages.map(named) : named(messages);
    return this.json({ method: "POST", path: path`/api/sessions/${sessionId}/messages`, body, options });
  }

  /** One message, or null if the session has no message with this id. */
  async getMessage(sessionId: string, messageId: string, options?: CallOptions): Promise<Message | null> {
    const call = this.get<Message>(path`/api/sessions/${sessionId}/messages/${messageId}`, options);
    return orIfProblem(call, null, "message_not_found", "session_not_found");
  }

  /** Merges into the metadata of a message. */
  async updateMessage(
    sessionId: string,
    messageId: string,
    patch: UpdateMessage,
    options?: CallOptions,
  ): Promise<Message> {
    const target = path`/api/sessions/${sessionId}/messages/${messageId}`;
    return this.json({ method: "PATCH", path: target, body: patch, options });
  }

  /** Removes content and metadata of a message. False if the session has no message with this id. */
  async redactMessage(sessionId: string, messageId: string, options?: CallOptions): Promise<boolean> {
    const target = path`/api/sessions/${sessionId}/messages/${messageId}`;
    const call = this.json({ method: "DELETE", path: target, options });
    return orIfProblem(
      call.then(() => true),
      false,
      "message_not_found",
      "session_not_found",
    );
  }

  /** Begins a turn. Returns its current state if this writer has it or if it has ended. */
  async beginTurn(sessionId: string, turn: BeginTurnBody, options?: CallOptions): Promise<Turn> {
    return this.json({ method: "POST", path: path`/api/sessions/${sessionId}/turns`, body: turn, options });
  }

  /** A turn with its chunks, or null. `latest` instead of an id is the turn that began last. */
  async getTurn(sessionId: string, turnId: string, options?: TurnOptions): Promise<TurnWithChunks | null> {
    const call = this.get<TurnWithChunks>(path`/api/sessions/${sessionId}/turns/${turnId}`, options);
    return orIfProblem(call, null, "turn_not_found", "session_not_found");
  }

  /** Appends chunks to a turn and renews the lease of its writer. */
  async appendChunks(
    sessionId: string,
    turnId: string,
    chunks: AppendChunksBody,
    options?: CallOptions,
  ): Promise<AppendedChunks> {
    const target = path`/api/sessions/${sessionId}/turns/${turnId}/chunks`;
    return this.json({ method: "POST", path: target, body: chunks, options });
  }

  /** Ends a turn: it becomes a message. */
  async endTurn(sessionId: string, turnId: string, end: EndTurnBody, options?: CallOptions): Promise<Turn> {
    const target = path`/api/sessions/${sessionId}/turns/${turnId}/end`;
    return this.json({ method: "POST", path: target, body: end, options });
  }

  /** Asks the writer of a turn to stop. */
  async cancelTurn(sessionId: string, turnId: string, options?: CallOptions): Promise<Turn> {
    return this.json({ method: "POST", path: path`/api/sessions/${sessionId}/turns/${turnId}/cancel`, options });
  }

  /** The conversation of a user, for a chat. Sends nothing before it has a subscriber. */
  conversation(businessId: string, userId: string, options: ConversationOptions = {}): Conversation {
    return conversation(this, businessId, userId, options);
  }

  /**
   * Writes a turn from begin to end, and returns the closed turn. Stops the source when a reader cancels the turn, or
   * when another writer has it. Rejects with the error of the source, after the turn has failed. If the turn has ended
   * already, returns it without calling the function for its source.
   */
  async writeTurn(sessionId: string, source: TurnSource, options: WriteTurnOptions = {}): Promise<WrittenTurn> {
    return writeTurn(this, sessionId, source, options);
  }

  /**
   * The events of a session: first its state, then its changes as they happen. Connects again, without loss or
   * repetition, until the session is deleted. Rejects if the service rejects the request.
   */
  async *events(sessionId: string, options: EventsOptions = {}): AsyncGenerator<SessionEvent, void, undefined> {
    const { last, after, lastEventId, ...others } = options;
    const target = path`/api/sessions/${sessionId}/events` + query({ last, after });
    yield* stream<SessionEvent>(this.transport, target, others, sessionId, lastEventId);
  }

  /** The events of all sessions of a business. Each connection begins with `reset`: then read the active sessions. */
  async *businessEvents(
    businessId: string,
    options: StreamOptions = {},
  ): AsyncGenerator<BusinessEvent, void, undefined> {
    yield* stream<BusinessEvent>(this.transport, path`/api/sessions/business/${businessId}/events`, options);
  }

  /**
   * Every session of a user, first created or resumed first, each followed by its messages. Reads the
   * response while it arrives; `timeoutMs` limits the time to the next part of it.
   */
  async *exportUser(
    businessId: string,
    userId: string,
    options?: CallOptions,
  ): AsyncGenerator<ExportLine, void, undefined> {
    const target = path`/api/sessions/business/${businessId}/user/${userId}/export`;
    yield* this.transport.lines<ExportLine>({ method: "GET", path: target, options });
  }

  /** Erases every session and message of a user. Counts the sessions that the last attempt deleted. */
  async eraseUser(businessId: string, userId: string, options?: CallOptions): Promise<ErasedUser> {
    return this.json({ method: "DELETE", path: path`/api/sessions/business/${businessId}/user/${userId}`, options });
  }

  /** The permissions of the token. */
  async whoami(options?: CallOptions): Promise<WhoAmI> {
    return this.get("/api/whoami", options);
  }

  /** Whether the process responds. */
  async livez(options?: CallOptions): Promise<Health> {
    return this.get("/livez", options);
  }

  /** Resolves if the service can serve. Otherwise rejects with the reason. */
  async readyz(options?: CallOptions): Promise<Health> {
    return this.get("/readyz", options);
  }

  /** The OpenAPI document of the service. */
  async openapi(options?: CallOptions): Promise<Record<string, unknown>> {
    return this.get("/openapi.json", options);
  }

  /** The page, in HTML, that shows the OpenAPI document. */
  async docs(options?: CallOptions): Promise<string> {
    return this.json({ method: "GET", path: "/docs", options, text: true });
  }

  private async json<T>(call: Call): Promise<T> {
    return (await this.transport.send(call)).body as T;
  }

  private get<T>(path: string, options: GetOptions & TurnOptions = {}): Promise<T> {
    const { include, from } = options;
    return this.json({ method: "GET", path: path + query({ include, from }), options });
  }

  private list<T>(
    path: () => string,
    options: CallOptions & PageQuery = {},
    rel = "next",
    items?: () => AsyncGenerator<T>,
  ): Pager<T> {
    const { signal, timeoutMs, maxRetries, headers, ...first } = options;
    const read = async (page: PageQuery): Promise<Page<T>> => {
      const reply = await this.transport.send({
        method: "GET",
        path: path() + query(page),
        options: { signal, timeoutMs, maxRetries, headers },
      });
      const total = reply.headers.get("X-Total-Count");
      return { items: reply.body as T[], next: linked(reply.headers, rel), totalCount: total ? Number(total) : null };
    };
    return pager(read, first, items);
  }
}

function ifVersion(options: VersionOptions = {}): Pick<Call, "headers" | "options" | "repeatable"> {
  const version = options.ifVersion;
  return version == null ? { options } : { options, headers: { "If-Match": `"${version}"` }, repeatable: false };
}
