// The schemas of openapi.json, hand-written and without its comments. test/types.ts proves that each equals the type
// that openapi-typescript makes of it.

export type Metadata = Record<string, unknown>;
export type Role = "user" | "assistant" | "system" | "tool";
export type Status = "active" | "ended" | "expired";
export type EndReason = "client" | "replaced" | "idle" | "max_lifetime";
export type IfActive = "return" | "replace";
export type Included = "lastMessage" | "turn";
export type PatchStatus = "active" | "ended";
export type TurnStatus = "open" | FinishReason;
export type FinishReason = "completed" | "failed" | "cancelled" | "interrupted" | "lost";
export type EndStatus = "completed" | "failed";
export type IfOpen = "reject" | "interrupt" | "discard" | "takeover";

/** One conversation of one user with one business. Times are RFC 3339, in UTC, with three decimals. */
export interface Session {
  sessionId: string;
  businessId: string;
  userId: string;
  locationId: string;
  sessionType: string;
  status: Status;
  title: string | null;
  metadata: Metadata;
  /** Messages ever appended: the `seq` of the newest one. */
  messageCount: number;
  /** Grows with every change of the session, but not with activity, messages and expiry. */
  version: number;
  createdAt: string;
  updatedAt: string;
  lastActivityAt: string;
  expiresAt: string;
  endedAt: string | null;
  endReason: EndReason | null;
  /** With `include: "lastMessage"` only. Null if there is none. */
  lastMessage?: Message | null;
  /** The open turn, with `include: "turn"` only. Null if there is none. */
  turn?: Turn | null;
}

export interface Message {
  /** 1, 2, 3 ... in each session, without gaps. */
  seq: number;
  createdAt: string;
  sessionId: string;
  messageId: string;
  role: Role;
  /** Any JSON value. Null only if the message is redacted. */
  content: unknown;
  metadata: Metadata;
  /** How the turn that wrote the message ended. Absent if no turn did. */
  finishReason?: FinishReason;
  redactedAt?: string;
}

/** One message while it is being written. Members of an old turn that are no longer stored are null. */
export interface Turn {
  /** The `messageId` of the message that it becomes. */
  turnId: string;
  sessionId: string;
  /** Grows from turn to turn, and changes with the writer. */
  number: number | null;
  writer: string | null;
  role: Role;
  metadata: Metadata;
  status: TurnStatus;
  /** How many chunks it has. */
  nextChunk: number | null;
  /** `seq` of the last message when it began. It does not answer later messages. */
  afterSeq: number | null;
  cancelRequested: boolean;
  leaseUntil: string | null;
  startedAt: string | null;
  endedAt: string | null;
  error: unknown;
  messageSeq: number | null;
}

export type TurnWithChunks = Turn & { chunks: string[] };

export interface BeginTurnBody {
  /** Unique in the session, for example `re:` and the id of the message that it answers. */
  turnId: string;
  /** One run of a worker. Make it random. */
  writer: string;
  role?: Role;
  metadata?: Metadata;
  ifOpen?: IfOpen;
}

export interface AppendChunksBody {
  /** The number of the turn, as its begin returned it. */
  number: number;
  /** The number of the first of these chunks. Stored chunks are compared and skipped. */
  from: number;
  /** Up to 1,000. An empty array only renews the lease. */
  chunks: string[];
}

export interface AppendedChunks {
  nextChunk: number;
  leaseUntil: string;
  cancelRequested: boolean;
}

export interface EndTurnBody {
  /** The number of the turn, as its begin returned it. */
  number: number;
  status: EndStatus;
  /** The content of the message. If absent, all chunks joined. */
  content?: string | number | boolean | Record<string, unknown> | unknown[];
  /** A merge patch (RFC 7396) for the metadata of the turn. */
  metadata?: Metadata;
  /** Why it failed. */
  error?: unknown;
}

export interface GetOrCreateSession {
  businessId: string;
  userId: string;
  locationId?: string;
  sessionType?: string;
  title?: string | null;
  metadata?: Metadata;
  /** What to do if the user has an active session: return it (the default), or end it and create another. */
  ifActive?: IfActive;
}

/** The changes of a session. Absent members stay unchanged. */
export interface UpdateSession {
  locationId?: string;
  sessionType?: string;
  title?: string | null;
  /** A merge patch (RFC 7396): null removes a key, at any depth. */
  metadata?: Metadata | null;
  status?: PatchStatus;
  /** What a resume does if another session of the user is active: fail (`return`, the default), or end that one. */
  ifActive?: IfActive;
}

export interface AppendMessage {
  /** Unique in the session. If absent, the client makes one. */
  messageId?: string;
  role: Role;
  content: string | number | boolean | Record<string, unknown> | unknown[];
  metadata?: Metadata;
}

export type AppendMessages = AppendMessage | AppendMessage[];
export type AppendedMessages = Message | Message[];

export interface UpdateMessage {
  /** A merge patch (RFC 7396): null removes a key, at any depth. */
  metadata: Metadata | null;
}

export interface ErasedUser {
  deletedSessions: number;
}

export interface WhoAmI {
  /** `*` stands for all. */
  businesses: "*" | string[];
  /** Null for all users of these businesses. */
  userId: string | null;
  scopes: ("read" | "write" | "admin")[];
}

export interface Health {
  status: string;
}

// The events of streams. openapi.json has no schemas for them.

/** Chunks of a turn. */
export interface TurnChunks {
  turnId: string;
  number: number;
  /** The number of the first of these chunks. */
  from: number;
  chunks: string[];
}

export interface StreamEvent<Type extends string, Data> {
  type: Type;
  data: Data;
  /** The position of the stream after this event, if it has one. */
  id?: string;
}

/** Why a stream cannot continue from its position. */
export type ResetReason = "unknown_cursor" | "too_far" | "diverged" | "changed";

/** The events of a session. A later version of the service may have more types. */
export type SessionEvent =
  /** Earlier events may be outdated: list the messages again. The state follows. */
  | StreamEvent<"reset", { reason: ResetReason }>
  | StreamEvent<"session", Session>
  /** Each `seq` once, in order. A message whose `messageId` is a `turnId` replaces the chunks of that turn. */
  | StreamEvent<"message", Message>
  | StreamEvent<"turn", Turn>
  | StreamEvent<"chunk", TurnChunks>
  /** Everything that was stored at the start has been sent. */
  | StreamEvent<"ready", Record<string, never>>
  /** The metadata of a message was changed, or it was redacted. */
  | StreamEvent<"changed", Message>
  /** The last event of the session. */
  | StreamEvent<"deleted", { sessionId: string }>
  /** The service closes this connection. The client connects again automatically. */
  | StreamEvent<"bye", Record<string, never>>;

/** Messages have neither content nor metadata in the stream of a business. */
export type MessageHead = Omit<Message, "content" | "metadata">;

/** The events of all sessions of a business. */
export type BusinessEvent =
  /** Read the active sessions: earlier events are not in the stream. */
  | StreamEvent<"reset", { reason: "start" | "lost" }>
  | StreamEvent<"session", Session>
  | StreamEvent<"message" | "changed", MessageHead>
  | StreamEvent<"turn", Turn>
  | StreamEvent<"deleted", { sessionId: string }>
  | StreamEvent<"bye", Record<string, never>>;

export type ProblemCode =
  | "invalid_request"
  | "unauthorized"
  | "forbidden"
  | "session_not_found"
  | "no_active_session"
  | "message_not_found"
  | "turn_not_found"
  | "route_not_found"
  | "method_not_allowed"
  | "request_timeout"
  | "session_not_active"
  | "another_session_active"
  | "message_id_conflict"
  | "turn_open"
  | "turn_closed"
  | "chunk_gap"
  | "chunk_conflict"
  | "concurrent_update"
  | "version_mismatch"
  | "payload_too_large"
  | "uri_too_long"
  | "headers_too_large"
  | "unsupported_media_type"
  | "rate_limited"
  | "internal"
  | "overloaded"
  | "store_unavailable"
  | "store_full"
  | "store_busy"
  | "clock_skew";

export interface FieldProblem {
  field: string;
  message: string;
}

/** The body of an error response (RFC 9457). */
export interface Problem {
  type: string;
  title: string;
  status: number;
  detail: string;
  code: ProblemCode;
  requestId: string;
  errors?: FieldProblem[];
  /** With `another_session_active`. */
  activeSessionId?: string;
  /** The open turn, with `turn_open`. */
  openTurnId?: string;
  /** When its lease ends, with `turn_open`. */
  leaseUntil?: string;
  /** How the turn ended, or `taken` if another writer has it, with `turn_closed`. */
  turnStatus?: string;
  /** How many chunks the turn has, with `chunk_gap`. */
  nextChunk?: number;
  statusCode: number;
  message: string;
  error: string;
}
