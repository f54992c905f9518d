import type { FieldProblem, Problem, ProblemCode } from "./types.js";

/** A code of this version of the API, or one of a newer service. */
export type AnyProblemCode = ProblemCode | (string & {});

/** The base of all errors of this package. Thrown itself if a call is rejected before it is sent. */
export class SessiondError extends Error {
  declare readonly name: "SessiondError" | "ConnectionError" | "TimeoutError" | "ProblemError";

  /** Also true for errors of another copy of this package, for which `instanceof` is false. */
  get isSessiondError(): true {
    return true;
  }
}

/** No response, or one that is cut off or not JSON. `cause` is the error of `fetch`. */
export class ConnectionError extends SessiondError {
  declare readonly name: "ConnectionError";
}

/** An attempt, or the next part of an export, took longer than `timeoutMs`. */
export class TimeoutError extends SessiondError {
  declare readonly name: "TimeoutError";
}

/** A response with a status other than 2xx, from the service or from a proxy in front of it. */
export class ProblemError extends SessiondError {
  declare readonly name: "ProblemError";
  readonly status: number;
  /** Null if the response does not come from the service. */
  readonly code: AnyProblemCode | null;
  readonly detail: string;
  readonly requestId: string | null;
  /** The invalid members of the request, with `invalid_request`. */
  readonly errors: FieldProblem[];
  /** How long the service asks clients to wait before a retry. */
  readonly retryAfterMs: number | null;
  /** All members of the body. Empty if the response does not come from the service. */
  readonly problem: Partial<Problem> & Record<string, unknown>;

  constructor(response: Response, body: unknown) {
    const problem: ProblemError["problem"] = body && typeof body === "object" ? { ...body } : {};
    const { status, headers } = response;
    const code = typeof problem.code === "string" ? problem.code : null;
    // Browsers show a redirect as status 0.
    const foreign =
      status < 400
        ? "a redirect, which the client does not follow"
        : `${headers.get("Content-Type")} of another server`;
    const detail = typeof problem.detail === "string" ? problem.detail : foreign;
    super(`${status} ${code ?? response.statusText}: ${detail}`);
    this.status = status;
    this.code = code;
    this.detail = detail;
    this.requestId = problem.requestId ?? headers.get("X-Request-Id");
    this.errors = Array.isArray(problem.errors) ? problem.errors : [];
    this.retryAfterMs = retryAfterMs(headers.get("Retry-After"));
    this.problem = problem;
  }
}

// On the prototypes, for stack traces. As strings, which minifiers keep.
for (const [type, name] of [
  [SessiondError, "SessiondError"],
  [ConnectionError, "ConnectionError"],
  [TimeoutError, "TimeoutError"],
  [ProblemError, "ProblemError"],
] as const) {
  Object.defineProperty(type.prototype, "name", { value: name });
}

/** Whether this is an error of this package, or of another copy of it. Its `name` says which. */
export function isSessiondError(error: unknown): error is SessiondError {
  return (error as Partial<SessiondError> | null | undefined)?.isSessiondError === true;
}

/** Whether this is a `ProblemError`, with this code if one is given. */
export function isProblem(error: unknown): error is ProblemError;
export function isProblem<Code extends AnyProblemCode>(
  error: unknown,
  code: Code,
): error is ProblemError & { readonly code: Code };
export function isProblem(error: unknown, code?: string): boolean {
  return (
    isSessiondError(error) &&
    error.name === "ProblemError" &&
    (code === undefined || (error as ProblemError).code === code)
  );
}

/** The result of a call, or `otherwise` if it rejects with one of these codes. Errors of proxies have no code. */
export async function orIfProblem<T, U>(call: Promise<T>, otherwise: U, ...codes: ProblemCode[]): Promise<T | U> {
  try {
    return await call;
  } catch (error) {
    if (codes.some((code) => isProblem(error, code))) return otherwise;
    throw error;
  }
}

/** Parses seconds or a date (RFC 9110, section 10.2.3). */
function retryAfterMs(header: string | null): number | null {
  if (!header) return null;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}
