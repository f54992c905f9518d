import { ConnectionError, ProblemError, SessiondError, TimeoutError } from "./errors.js";

export interface SessiondOptions {
  /** Where the service is: `https://sessions.example.com`, or `/` for the page's own origin. */
  baseUrl: string | URL;
  /** An API key or a JWT, or a function that is called for each attempt. */
  token?: Token | (() => Token | Promise<Token>);
  /** How long one attempt, or the next part of an export, may take; default 5000. `Infinity` for no limit. */
  timeoutMs?: number | undefined;
  /** How often a call may be repeated; default 2. */
  maxRetries?: number | undefined;
  /** A replacement of the global `fetch`. */
  fetch?: ((url: string, init: RequestInit) => Promise<Response>) | undefined;
  /** Headers of every request. */
  headers?: Record<string, string> | undefined;
  /** Called before the client waits to repeat a call. */
  onRetry?: ((retry: Retry) => void) | undefined;
}

type Token = string | null | undefined;

/** The options of one call. */
export interface CallOptions {
  /** Aborts the call, which then rejects with the signal's reason. */
  signal?: AbortSignal | undefined;
  /** Replaces the client's `timeoutMs`. */
  timeoutMs?: number | undefined;
  /** Replaces the client's `maxRetries`. */
  maxRetries?: number | undefined;
  /** Added to the client's `headers`. */
  headers?: Record<string, string> | undefined;
}

/** A repetition of a call that is about to be made. */
export interface Retry {
  method: string;
  path: string;
  /** 1 for the first repetition. */
  retry: number;
  delayMs: number;
  error: ConnectionError | TimeoutError | ProblemError;
}

export interface Call {
  method: "GET" | "POST" | "PATCH" | "DELETE";
  path: string;
  body?: unknown;
  options?: CallOptions | undefined;
  /** Headers of the operation. */
  headers?: Record<string, string | undefined>;
  /** False if the call must not be repeated. */
  repeatable?: boolean;
  /** Whether the body of the response is a text and not JSON. */
  text?: boolean;
}

export interface Reply {
  headers: Headers;
  body: any;
}

const TIMEOUT_MS = 5000;
const MAX_RETRIES = 2;
const BACKOFF_MS = 100;
const MAX_BACKOFF_MS = 10_000;
/** A call does not wait longer than this for a service that is not available. */
const MAX_RETRY_AFTER_MS = 60_000;

/**
 * A path with each segment percent-encoded. Rejects segments that name another path: URL libraries remove `.` and `..`
 * from a path, even if they are percent-encoded.
 */
export function path(strings: TemplateStringsArray, ...segments: string[]): string {
  return strings.reduce((path, string, i) => path + encode(segments[i - 1]) + string);
}

function encode(segment: unknown): string {
  // Lone surrogates cannot be encoded.
  if (typeof segment !== "string" || /^\.{0,2}$|[\uD800-\uDFFF]/u.test(segment)) {
    throw new SessiondError(`${JSON.stringify(segment)} cannot be an id: no request was sent`);
  }
  return encodeURIComponent(segment);
}

/** `?` and the members that are set, or nothing. */
export function query(members: object): string {
  const entries = Object.entries(members).filter(([, value]) => value != null);
  return entries.length ? `?${new URLSearchParams(entries)}` : "";
}

/** Makes calls: attempts with a timeout each, repeated where that is safe and useful. */
export class Transport {
  readonly options: SessiondOptions;
  private readonly baseUrl: string;

  constructor(options: SessiondOptions) {
    // An undefined URL would become a path of the page.
    if (options.baseUrl == null) throw new SessiondError("baseUrl is missing");
    this.options = options;
    this.baseUrl = `${options.baseUrl}`.replace(/\/+$/, "");
  }

  async send(call: Call): Promise<Reply> {
    const body = call.body === undefined ? undefined : JSON.stringify(call.body);
    return this.repeated(call, () =>
      this.limited(call, async (signal) => {
        const response = await this.fetch(call, body, signal);
        const text = await received(call, () => response.text());
        const isJson = !call.text && response.status !== 204;
        return { headers: response.headers, body: isJson ? parsed(call, text) : text };
      }),
    );
  }

  /** The values of the lines of a response (NDJSON), while it arrives. Repeats the call until there is one. */
  async *lines<T>(call: Call): AsyncGenerator<T, void, undefined> {
    const [first, others] = await this.repeated(call, async () => {
      const lines = this.read<T>(call);
      return [await lines.next(), lines] as const;
    });
    try {
      if (!first.done) yield first.value;
      yield* others;
    } finally {
      await others.return();
    }
  }

  private async *read<T>(call: Call): AsyncGenerator<T, void, undefined> {
    const decoder = new TextDecoder();
    let rest = "";
    for await (const bytes of this.body(call)) {
      const lines = (rest + decoder.decode(bytes, { stream: true })).split("\n");
      rest = lines.pop()!;
      for (const line of lines) yield parsed(call, line) as T;
    }
    if (rest) throw new ConnectionError(`${nameOf(call)}: the response is cut off`);
  }

  /** The parts of the body of the response to one attempt, each of which may take `partTimeoutMs`. */
  async *body(call: Call, partTimeoutMs?: number): AsyncGenerator<Uint8Array, void, undefined> {
    const response = await this.limited(call, (signal) => this.fetch(call, undefined, signal));
    const reader = response.body!.getReader();
    try {
      for (;;) {
        const { done, value } = await this.limited(call, () => received(call, () => reader.read()), partTimeoutMs);
        if (done) return;
        yield value;
      }
    } finally {
      // Not awaited: the connection may be lost.
      reader.cancel().catch(() => {});
    }
  }

  private async repeated<T>(call: Call, attempt: () => Promise<T>): Promise<T> {
    const { signal, maxRetries = this.options.maxRetries ?? MAX_RETRIES } = call.options ?? {};
    for (let retry = 1; ; retry++) {
      try {
        return await attempt();
      } catch (error) {
        if (retry > maxRetries || call.repeatable === false || !isTransient(error)) throw error;
        const delayMs = retryDelayMs(retry, error);
        this.options.onRetry?.({ method: call.method, path: call.path, retry, delayMs, error });
        signal?.throwIfAborted();
        await sleep(delayMs, signal);
      }
    }
  }

  /**
   * Runs `work` until it settles, times out, or the call's signal is aborted, even if `work` ignores its signal.
   * Leaves no listener and no timer. `AbortSignal.any` would need newer engines.
   */
  private limited<T>(call: Call, work: (signal: AbortSignal) => Promise<T>, limitMs?: number): Promise<T> {
    const { signal, timeoutMs = this.options.timeoutMs ?? TIMEOUT_MS } = call.options ?? {};
    const ms = limitMs ?? timeoutMs;
    return new Promise<T>((resolve, reject) => {
      signal?.throwIfAborted();
      const controller = new AbortController();
      const stop = (reason: unknown) => {
        release();
        reject(reason);
        controller.abort(reason);
      };
      const timeout = () => stop(new TimeoutError(`${nameOf(call)}: no response in ${ms} ms`));
      // Timers of more than 31 bits fire immediately.
      const timer = ms < 2 ** 31 ? setTimeout(timeout, ms) : undefined;
      const unlisten = onAbort(signal, stop);
      const release = () => {
        clearTimeout(timer);
        unlisten();
      };
      work(controller.signal).finally(release).then(resolve, reject);
    });
  }

  /** The response to one attempt, if it is successful. */
  private async fetch(call: Call, body: string | undefined, signal: AbortSignal): Promise<Response> {
    const { token, fetch: customFetch } = this.options;
    const headers = new Headers(this.options.headers);
    const set = (more: Record<string, string | undefined> = {}) => {
      for (const [name, value] of Object.entries(more)) if (value != null) headers.set(name, value);
    };
    const credential = typeof token === "function" ? await token() : token;
    if (credential) set({ Authorization: `Bearer ${credential}` });
    if (body !== undefined) set({ "Content-Type": "application/json" });
    set(call.headers);
    set(call.options?.headers);

    // A redirect would turn a POST into a GET. `redirect: "error"` does not exist everywhere.
    const init: RequestInit = { method: call.method, headers, signal, redirect: "manual" };
    if (body !== undefined) init.body = body;
    // Not called as a method: workerd's `fetch` rejects another `this`.
    const response = await received(call, () => (customFetch ?? fetch)(this.baseUrl + call.path, init));
    if (response.ok) return response;
    const text = await received(call, () => response.text());
    let problem: unknown;
    try {
      problem = JSON.parse(text);
    } catch {
      // From a proxy.
    }
    throw new ProblemError(response, problem);
  }
}

function nameOf(call: Call): string {
  return `${call.method} ${call.path}`;
}

/** The received part, or a `ConnectionError`. */
async function received<T>(call: Call, part: () => Promise<T>): Promise<T> {
  try {
    return await part();
  } catch (cause) {
    throw new ConnectionError(`${nameOf(call)}: ${cause instanceof Error ? cause.message : cause}`, { cause });
  }
}

export function parsed(call: Call, text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (cause) {
    throw new ConnectionError(`${nameOf(call)}: the response is not JSON; is this sessiond?`, { cause });
  }
}

function isTransient(error: unknown): error is Retry["error"] {
  if (!(error instanceof ProblemError)) return error instanceof ConnectionError || error instanceof TimeoutError;
  // 500 and 501 would fail again. 502 and above come from proxies, or mean that the service is unavailable for now.
  const { status, code } = error;
  const transient = status === 408 || status === 429 || status > 501 || code === "concurrent_update";
  return transient && (error.retryAfterMs ?? 0) <= MAX_RETRY_AFTER_MS;
}

/** At least as long as the service asks for, and exponential backoff with full jitter. */
export function retryDelayMs(retry: number, error: unknown, leastMs = 0): number {
  const retryAfterMs = error instanceof ProblemError ? (error.retryAfterMs ?? 0) : 0;
  return Math.max(leastMs, retryAfterMs) + Math.random() * Math.min(BACKOFF_MS * 2 ** (retry - 1), MAX_BACKOFF_MS);
}

export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      unlisten();
      resolve();
    }, ms);
    const unlisten = onAbort(signal, (reason) => {
      clearTimeout(timer);
      reject(reason);
    });
  });
}

/** The callbacks of aborted signals. All calls with one signal share a listener, because Node warns of eleven. */
const callbacks = new WeakMap<EventTarget, Set<(reason: unknown) => void>>();

/** Calls back when the signal is aborted, unless the returned function was called before. */
export function onAbort(signal: AbortSignal | undefined, callback: (reason: unknown) => void): () => void {
  if (!signal) return () => {};
  const set = callbacks.get(signal) ?? new Set();
  callbacks.set(signal, set.add(callback));
  // Does nothing if the listener exists already.
  signal.addEventListener("abort", notify);
  return () => {
    if (set.delete(callback) && !set.size) signal.removeEventListener("abort", notify);
  };
}

function notify({ target }: Event): void {
  const signal = target as AbortSignal;
  callbacks.get(signal)?.forEach((callback) => callback(signal.reason));
}

/** 128 random bits. Pages without TLS have no `crypto.randomUUID`, and Node 18 has no `crypto`. */
export function randomId(): string {
  const bytes = new Uint8Array(16);
  if (globalThis.crypto) crypto.getRandomValues(bytes);
  else bytes.forEach((_, i) => (bytes[i] = Math.random() * 256));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
