export { Sessiond } from "./client.js";
export type {
  CreateOptions,
  EventsOptions,
  ExportLine,
  GetOptions,
  ListOptions,
  MessagesOptions,
  ResumeOptions,
  TurnOptions,
  VersionOptions,
} from "./client.js";
export type {
  Conversation,
  ConversationOptions,
  ConversationState,
  SendOptions,
  UnsentMessage,
} from "./conversation.js";
export { ConnectionError, isProblem, isSessiondError, ProblemError, SessiondError, TimeoutError } from "./errors.js";
export type { AnyProblemCode } from "./errors.js";
export type { Page, PageQuery, Pager } from "./pager.js";
export type { StreamOptions } from "./stream.js";
export type { CallOptions, Retry, SessiondOptions } from "./transport.js";
export type * from "./types.js";
export type { TurnSource, WriteTurnOptions, WrittenTurn } from "./write-turn.js";
