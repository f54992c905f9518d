import type { FieldProblem, Problem, ProblemCode } from "./types.js";

/** A code of this version of the API, or one of a newer service. */
export type AnyProblemCode = ProblemCode | (string & {});

/** Every error of this package. Itself: a call that is refused before it is sent. */
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

/** A response with another status than 2xx, of the service or of a proxy in front of it. */
export class ProblemError extends SessiondError {
  declare readonly name: "ProblemError";
  readonly status: number;
  /** Null if the response is not the service's. */
  readonly code: AnyProblemCode | null;
  readonly detail: string;
  readonly requestId: string | null;
  /** The members of the request that are wrong, with `invalid_request`. */
  readonly errors: FieldProblem[];
  /** How long the service asks clients to wait. */
  readonly retryAfterMs: number | null;
  /** All members of the body. Empty if the response is not the service's. */
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

// On the prototypes, so that stack traces have them, and as texts, so that minifiers keep them.
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

/** The result of a call, or `otherwise` if the service has no such thing. Errors of proxies have no code. */
export async function unless<T, U>(call: Promise<T>, otherwise: U, ...codes: ProblemCode[]): Promise<T | U> {
  try {
    return await call;
  } catch (error) {
    if (codes.some((code) => isProblem(error, code))) return otherwise;
    throw error;
  }
}

/** Of seconds or a date (RFC 9110, section 10.2.3). */
function retryAfterMs(header: string | null): number | null {
  if (!header) return null;
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(ms) ? null : Math.max(0, ms);
}
