// Shared code of the tests that run on every runtime. Uses nothing of Node.

import {
  isProblem,
  Sessiond,
  type Message,
  type ProblemCode,
  type Session,
  type SessiondOptions,
} from "../src/index.js";

export interface Environment {
  /** The service. */
  service: string;
  /** The proxy in front of it: its first path segment selects the faults. */
  proxy: string;
  apiKey: string;
  userToken: string;
  /** Messages to append through the faulty proxy, and a tenth as many turns. */
  appends: number;
  /** Number of sessions that are written concurrently. Each takes three connections. */
  writers: number;
}

export type Test = (env: Environment) => Promise<void>;

export function serverClient(env: Environment, options: Partial<SessiondOptions> = {}): Sessiond {
  return new Sessiond({ baseUrl: env.service, token: env.apiKey, ...options });
}

export function userClient(env: Environment): Sessiond {
  return new Sessiond({ baseUrl: new URL(env.service), token: () => env.userToken });
}

/** A client that gets this response the first `times`, and then the responses of the service. */
export function scripted(
  env: Environment,
  times: number,
  respond: () => Response,
  options: Partial<SessiondOptions> = {},
) {
  let sent = 0;
  const client = serverClient(env, {
    ...options,
    fetch: async (url, init) => (sent++ < times ? respond() : fetch(url, init)),
  });
  return { client, count: () => sent };
}

/** A client that gets the responses of `parts`, one part for each read. */
export function streamed(env: Environment, parts: () => Generator<Uint8Array | Promise<Uint8Array>>) {
  let cancelled = 0;
  const respond = () => {
    const iterator = parts();
    const stream = new ReadableStream<Uint8Array>({
      async pull(controller) {
        const { done, value } = iterator.next();
        if (done) controller.close();
        else controller.enqueue(await value);
      },
      cancel: () => void cancelled++,
    });
    return new Response(stream);
  };
  return { ...scripted(env, Infinity, respond), cancelled: () => cancelled };
}

export function problem(status: number, body: object, headers: Record<string, string> = {}): Response {
  return new Response(JSON.stringify(body), {
    status,
    headers: { "Content-Type": "application/problem+json", ...headers },
  });
}

export async function concurrently(inFlight: number, count: number, work: (i: number) => Promise<void>): Promise<void> {
  let next = 0;
  const worker = async () => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: inFlight }, worker));
}

export async function collect<T>(items: AsyncIterable<T>, collected: T[] = []): Promise<T[]> {
  for await (const item of items) collected.push(item);
  return collected;
}

export async function first<T>(items: AsyncIterable<T>): Promise<T | undefined> {
  for await (const item of items) return item;
  return undefined;
}

/** The reason of the rejection, or undefined. */
export async function caught(call: PromiseLike<unknown>): Promise<any> {
  try {
    await call;
  } catch (error) {
    return error;
  }
}

export async function rejects<Code extends ProblemCode | (string & {})>(call: PromiseLike<unknown>, code: Code) {
  const error: unknown = await caught(call);
  if (isProblem(error, code)) return error;
  throw new Error(`${error} instead of ${code}`);
}

export function equal(actual: unknown, expected: unknown, what = ""): void {
  const [a, b] = [actual, expected].map((value) => JSON.stringify(value) ?? "undefined");
  if (a !== b) throw new Error(`${what} ${a!.slice(0, 2000)} is not ${b!.slice(0, 2000)}`);
}

export const idsOf = (sessions: Session[]) => sessions.map(({ sessionId }) => sessionId);
export const seqsOf = (messages: Message[]) => messages.map(({ seq }) => seq);

let uniques = 0;
export function unique(prefix: string): string {
  return `${prefix}-${Date.now()}-${Math.random()}-${++uniques}`;
}

/** A promise that the test resolves. */
export function latch(): { opened: Promise<void>; open(): void } {
  let open = () => {};
  const opened = new Promise<void>((resolve) => (open = resolve));
  return { opened, open };
}

/** The listeners that are added to a target from now on. */
export function listenersOf(target: EventTarget): { readonly size: number; readonly most: number } {
  const listeners = new Set<unknown>();
  let most = 0;
  const add = target.addEventListener.bind(target);
  const remove = target.removeEventListener.bind(target);
  target.addEventListener = (...args: Parameters<typeof add>) => {
    most = Math.max(most, listeners.add(args[1]).size);
    add(...args);
  };
  target.removeEventListener = (...args: Parameters<typeof remove>) => {
    listeners.delete(args[1]);
    remove(...args);
  };
  return {
    get size() {
      return listeners.size;
    },
    get most() {
      return most;
    },
  };
}

/** The events of a browser's page, or a replacement for them. */
export function pageOf(scope: typeof globalThis) {
  const isPage = "document" in scope;
  const target = new EventTarget();
  const stub = {
    document: { visibilityState: "visible" },
    addEventListener: target.addEventListener.bind(target),
    removeEventListener: target.removeEventListener.bind(target),
  };
  const before = { addEventListener: scope.addEventListener, removeEventListener: scope.removeEventListener };
  if (!isPage) Object.assign(scope, stub);
  const listeners = listenersOf(scope as unknown as EventTarget);
  return {
    goOnline: () => void (isPage ? scope : target).dispatchEvent(new Event("online")),
    show: () => void (isPage ? document : target).dispatchEvent(new Event("visibilitychange", { bubbles: true })),
    focus: () => void (isPage ? scope : target).dispatchEvent(new Event("focus")),
    listeners: () => listeners.size,
    restore() {
      if (isPage) return;
      Object.assign(scope, before);
      delete (scope as { document?: unknown }).document;
    },
  };
}
