// Checked by tsc, not run: the types of src/ are those of openapi.json.

import type { components, operations } from "../generated/openapi.js";
import type { EventsOptions, GetOptions, ListOptions, MessagesOptions, TurnOptions } from "../src/index.js";
import type * as api from "../src/types.js";

/** Events of streams have their own types. */
type Schemas = Omit<components["schemas"], "ServerSentEvent">;

/** The shipped type of each schema. */
interface Shipped {
  AppendChunksBody: api.AppendChunksBody;
  AppendMessage: api.AppendMessage;
  AppendMessages: api.AppendMessages;
  AppendedChunks: api.AppendedChunks;
  AppendedMessages: api.AppendedMessages;
  BeginTurnBody: api.BeginTurnBody;
  EndReason: api.EndReason;
  EndStatus: api.EndStatus;
  EndTurnBody: api.EndTurnBody;
  ErasedUser: api.ErasedUser;
  FieldProblem: api.FieldProblem;
  FinishReason: api.FinishReason;
  GetOrCreateSession: api.GetOrCreateSession;
  Health: api.Health;
  IfActive: api.IfActive;
  IfOpen: api.IfOpen;
  Included: api.Included;
  Message: api.Message;
  PatchStatus: api.PatchStatus;
  Problem: api.Problem;
  Role: api.Role;
  Session: api.Session;
  Status: api.Status;
  Turn: api.Turn;
  TurnStatus: api.TurnStatus;
  TurnWithChunks: api.TurnWithChunks;
  UpdateMessage: api.UpdateMessage;
  UpdateSession: api.UpdateSession;
  WhoAmI: api.WhoAmI;
}

/** The options with the query parameters of each operation. */
interface QueryOptions {
  getSession: GetOptions;
  getActiveSession: GetOptions;
  getTurn: TurnOptions;
  sessionEvents: EventsOptions;
  listActiveSessions: ListOptions;
  listSessionHistory: ListOptions;
  listMessages: MessagesOptions;
}

type Equal<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** Schemas that have no shipped type, or another one. */
type DifferentSchemas = {
  [K in keyof Schemas | keyof Shipped]: K extends keyof Schemas & keyof Shipped
    ? Equal<Schemas[K], Shipped[K]> extends true
      ? never
      : K
    : K;
}[keyof Schemas | keyof Shipped];

type Parameters<K extends keyof operations> = NonNullable<operations[K]["parameters"]["query"]>;

/** Query parameters that no option has. */
type MissingParameters = {
  [K in keyof operations]: [Parameters<K>] extends [never]
    ? never
    : `${K} ${Exclude<keyof Parameters<K>, K extends keyof QueryOptions ? keyof QueryOptions[K] : never> & string}`;
}[keyof operations];

type None<T extends never> = T;

export type SchemasAreEqual = None<DifferentSchemas>;
export type ParametersAreKnown = None<MissingParameters>;
export type CodesAreEqual = None<
  Equal<Schemas["Problem"]["code"], api.ProblemCode> extends true ? never : "ProblemCode"
>;
