// The schemas of openapi.json, by hand and without its comments. test/types.ts proves that each equals the type that
// openapi-typescript makes of it.

export type Metadata = Record<string, unknown>;
export type Role = "user" | "assistant" | "system" | "tool";
export type Status = "active" | "ended" | "expired";
export type EndReason = "client" | "replaced" | "idle" | "max_lifetime";
export type IfActive = "return" | "replace";
export type Included = "lastMessage";
export type PatchStatus = "active" | "ended";

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
  redactedAt?: string;
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

export type ProblemCode =
  | "invalid_request"
  | "unauthorized"
  | "forbidden"
  | "session_not_found"
  | "no_active_session"
  | "message_not_found"
  | "route_not_found"
  | "method_not_allowed"
  | "request_timeout"
  | "session_not_active"
  | "another_session_active"
  | "message_id_conflict"
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
  activeSessionId?: string;
  statusCode: number;
  message: string;
  error: string;
}
