// Event streams. The tests make the responses themselves, so they can cut them at any byte.

import type { Retry, SessionEvent, SessiondOptions } from "../src/index.js";
import { eventStreamParser } from "../src/sse.js";
import {
  caught,
  collect,
  equal,
  listenersOf,
  pageOf,
  problem,
  serverClient,
  type Environment,
  type Test,
} from "./support.js";

const encoder = new TextEncoder();

/** The messages of one connection, read in these parts. */
function parse(parts: Uint8Array[]): unknown[] {
  const parser = eventStreamParser();
  return parts.flatMap((part) => [...parser.parse(part)].map(({ type, data, id }) => [type, data, id]));
}

/** A session's log of events. The id of an event is its index. */
const LOG = [
  { type: "session", data: { sessionId: "s", status: "active" } },
  { type: "message", data: { seq: 1, content: "Öffnet ihr? 💬" }, id: "1" },
  { type: "turn", data: { turnId: "re:1", status: "open", nextChunk: 0 }, id: "2" },
  { type: "chunk", data: { turnId: "re:1", number: 1, from: 0, chunks: ["\u2028Um ", "neun\r\n"] }, id: "3" },
  { type: "chunk", data: { turnId: "re:1", number: 1, from: 2, chunks: ["🕘"] }, id: "4" },
  { type: "message", data: { seq: 2, content: "x" }, id: "5" },
  { type: "changed", data: { seq: 1, content: null } },
  { type: "ready", data: {}, id: "6" },
  { type: "deleted", data: { sessionId: "s" } },
];

/** The stream after the event with this id. Events without an id are state, and are sent again. */
function logAfter(id: string | null): Uint8Array {
  const events = LOG.filter((event) => !event.id || Number(event.id) > Number(id ?? 0));
  const texts = events.map(({ type, data, id }) => {
    return `event: ${type}\n${id ? `id: ${id}\n` : ""}data: ${JSON.stringify(data)}\n\n`;
  });
  return encoder.encode(`retry: 0\n\n: hello\n\n${texts.join("")}`);
}

/** A response with these parts. After the last one, it is closed, cut, or silent. */
function eventStream(
  parts: (Uint8Array | string)[],
  end: "close" | "cut" | "silent",
  cancelled?: () => void,
): Response {
  let next = 0;
  const body = new ReadableStream<Uint8Array>({
    pull(controller): Promise<void> | void {
      const part = parts[next++];
      if (part !== undefined) controller.enqueue(typeof part === "string" ? encoder.encode(part) : part);
      else if (end === "close") controller.close();
      else if (end === "cut") controller.error(new Error("cut"));
      else return new Promise(() => {});
    },
    cancel: () => cancelled?.(),
  });
  return new Response(body, { headers: { "Content-Type": "text/event-stream" } });
}

type Respond = (lastEventId: string | null, url: string, signal: AbortSignal) => Response | Promise<Response>;

/** A client that gets these responses, the last one for all further attempts, and what it sent. */
function responding(env: Environment, responses: Respond[], options: Partial<SessiondOptions> = {}) {
  const sent: (string | null)[] = [];
  const client = serverClient(env, {
    ...options,
    fetch: async (url, init) => {
      const lastEventId = new Headers(init.headers).get("Last-Event-ID");
      sent.push(lastEventId);
      return responses[Math.min(sent.length, responses.length) - 1]!(lastEventId, url, init.signal!);
    },
  });
  return { client, sent };
}

const withIds = (events: SessionEvent[]) => events.filter(({ id }) => id !== undefined);

export const streamTests: Record<string, Test> = {
  async "an event stream is parsed as the standard says, cut at any byte"() {
    const lines = [
      "\ufeffevent: a",
      "data: 1",
      "",
      ": comment",
      "data",
      "",
      "data:  two spaces",
      "data:é💬\u2028",
      "data",
      "id: 7",
      "event: b",
      "",
      "id: with\0null",
      "data:x",
      "retry: 12",
      "retry: 1x",
      "unknown: field",
      "event",
      "",
      "id",
      "",
      "event: no data",
      "",
      "\ufeffdata: not the first",
      "",
      "data: incomplete",
    ];
    const expected = [
      ["a", "1", undefined],
      ["message", "", undefined],
      ["b", " two spaces\né💬\u2028\n", "7"],
      ["message", "x", undefined],
      ["message", undefined, ""],
    ];
    for (const end of ["\n", "\r", "\r\n"]) {
      const bytes = encoder.encode(lines.join(end));
      equal(parse([bytes]), expected);
      equal(parse(Array.from(bytes, (byte) => Uint8Array.of(byte))), expected);
      for (let i = 1; i < bytes.length; i++) equal(parse([bytes.slice(0, i), bytes.slice(i)]), expected, `cut at ${i}`);
    }
    equal(parse([encoder.encode("data:1\r"), encoder.encode("\r\ndata:2\n\r")]), [
      ["message", "1", undefined],
      ["message", "2", undefined],
    ]);
    // A carriage return ends an event immediately, independent of the next byte.
    equal(parse([encoder.encode("data:1\r\r")]).length, 1);
    const parser = eventStreamParser();
    equal([...parser.parse(encoder.encode("retry: 12\nretry: 1x\nretry:\nretry: -1\n"))], []);
    equal(parser.retryMs, 12);
  },

  async "a stream that is cut at any byte continues after its last event"(env) {
    const { length } = logAfter(null);
    const whole = LOG.filter(({ id }) => id);
    const cutAt = async (i: number) => {
      const { client, sent } = responding(env, [
        () => eventStream([logAfter(null).slice(0, i)], i % 2 ? "cut" : "close"),
        (id) => eventStream([logAfter(id)], "silent"),
      ]);
      const events = await collect(client.events("s"));
      equal(withIds(events), whole, `cut at ${i}`);
      equal(events.at(-1)?.type, "deleted");
      const seen = withIds(events).map(({ id }) => id);
      equal(sent[0], null);
      if (i < length) equal([sent.length, sent[1] === null || seen.includes(sent[1]!)], [2, true]);
    };
    await Promise.all(Array.from({ length: length + 1 }, (_, i) => cutAt(i)));

    // One byte at a time, and a cut after each event.
    let connections = 0;
    const { client } = responding(env, [
      (id) => {
        const bytes = logAfter(id);
        const ends = ++connections;
        const [first] = /event:.*\n(id.*\n)?data.*\n\n/.exec(new TextDecoder().decode(bytes))!;
        const head = encoder.encode(`retry: 0\n${first}`);
        return ends % 2
          ? eventStream([head], "cut")
          : eventStream(
              Array.from(bytes, (byte) => Uint8Array.of(byte)),
              "close",
            );
      },
    ]);
    equal(withIds(await collect(client.events("s"))), whole);
  },

  async "options select the start of a stream"(env) {
    const urls: string[] = [];
    const { client, sent } = responding(env, [
      (_, url) => (urls.push(url), eventStream(["data: {}\n\n"], "close")),
      (_, url) => (urls.push(url), eventStream([logAfter("5")], "close")),
    ]);
    await collect(client.events("a/b", { last: 50, lastEventId: "4" }));
    const url = `${env.service}/api/sessions/a%2Fb/events?last=50`;
    equal(
      [urls, sent],
      [
        [url, url],
        ["4", "4"],
      ],
    );
    equal((await caught(client.events("..").next())).name, "SessiondError");
    equal((await caught(client.businessEvents("").next())).name, "SessiondError");
  },

  async "the stream of a business continues after a deleted session"(env) {
    const start = 'event: reset\ndata: {"reason":"start"}\n\nevent: deleted\ndata: {"sessionId":"s"}\n\n';
    const { client } = responding(env, [
      () => eventStream([start], "close"),
      () => problem(403, { code: "forbidden" }),
    ]);
    const types: string[] = [];
    const error = await caught(
      (async () => {
        for await (const { type } of client.businessEvents("B")) types.push(type);
      })(),
    );
    equal([types, error.code], [["reset", "deleted"], "forbidden"]);
  },

  async "a stream connects again after every transient failure"(env) {
    const retries: string[] = [];
    let asked = 0;
    const note = ({ path, retry, error }: Retry) => void retries.push(`${path} ${retry} ${error.name}`);
    const failures: Respond[] = [
      () => Promise.reject(new TypeError("fetch failed")),
      () => problem(500, { code: "internal" }),
      () => new Response("<html>", { status: 502, headers: { "Content-Type": "text/html" } }),
      () => eventStream(["data: not JSON\n\n"], "silent"),
      (id) => eventStream([logAfter(id)], "close"),
    ];
    const { client, sent } = responding(env, failures, {
      maxRetries: 0,
      onRetry: note,
      token: () => {
        if (++asked === 3) throw new TypeError("fetch failed");
        return `token-${asked}`;
      },
    });
    let own = 0;
    const events = await collect(client.events("s", { lastEventId: "5", onRetry: () => void own++ }));
    equal(
      events.map(({ type }) => type),
      ["session", "changed", "ready", "deleted"],
    );
    const path = "/api/sessions/s/events";
    const names = ["ConnectionError", "ProblemError", "ConnectionError", "ProblemError", "ConnectionError"];
    equal(
      retries,
      names.map((name, i) => `${path} ${i + 1} ${name}`),
    );
    equal([own, asked, sent], [5, 6, ["5", "5", "5", "5", "5"]]);
  },

  async "a stream waits as long as the service asks"(env) {
    const wait = async (response: Respond) => {
      const controller = new AbortController();
      let waited: number | undefined;
      const { client } = responding(env, [response]);
      const onRetry = ({ delayMs }: Retry) => {
        waited = delayMs;
        controller.abort("enough");
      };
      equal(await caught(collect(client.events("s", { onRetry, signal: controller.signal }))), "enough");
      return waited!;
    };
    const isBetween = (ms: number, least: number) => ms >= least && ms < least + 100;
    const cut = await wait(() => eventStream(["retry: 3000\n\nevent: session\ndata: {}\n\n"], "cut"));
    const limited = await wait(() => problem(429, {}, { "Retry-After": "7" }));
    const overloaded = await wait(() => problem(503, {}, { "Retry-After": "3600" }));
    equal([isBetween(cut, 3000), isBetween(limited, 7000), isBetween(overloaded, 3_600_000)], [true, true, true]);
  },

  async "a stream ends when it is rejected, or its session is deleted"(env) {
    for (const [status, code] of [
      [401, "unauthorized"],
      [403, "forbidden"],
      [404, "session_not_found"],
      [400, "invalid_request"],
    ] as const) {
      const { client, sent } = responding(env, [() => problem(status, { code })]);
      equal([(await caught(client.events("s").next())).code, sent.length], [code, 1]);
    }
    const redirect = responding(env, [() => new Response(null, { status: 302, headers: { Location: "/login" } })]);
    equal([(await caught(redirect.client.events("s").next())).status, redirect.sent.length], [302, 1]);

    const missing = () => problem(404, { code: "session_not_found" });
    const one = () => eventStream(["event: session\ndata: {}\n\n"], "cut");
    const { client } = responding(env, [one, missing]);
    equal(await collect(client.events("s")), [
      { type: "session", data: {} as never },
      { type: "deleted", data: { sessionId: "s" } },
    ]);
  },

  async "a stream gives up after `maxRetries`"(env) {
    const one = () => eventStream(["event: session\ndata: {}\n\n"], "cut");
    const failing = () => problem(503, { code: "overloaded" });
    const { client, sent } = responding(env, [failing, one, failing]);
    // An event resets the count.
    equal((await caught(collect(client.events("s", { maxRetries: 1 })))).code, "overloaded");
    equal(sent.length, 3);
  },

  async "a stream connects again after `bye`, which is not a failure"(env) {
    let retries = 0;
    const bye = "event: ready\nid: 5\ndata: {}\n\nevent: bye\ndata: {}\n\n";
    const { client, sent } = responding(env, [
      () => eventStream([bye], "silent"),
      (id) => eventStream([logAfter(id)], "close"),
    ]);
    const events = await collect(client.events("s", { maxRetries: 0, onRetry: () => void retries++ }));
    equal(
      events.map(({ type }) => type),
      ["ready", "bye", "session", "changed", "ready", "deleted"],
    );
    equal([sent, retries], [[null, "5"], 0]);
  },

  async "a silent stream is replaced"(env) {
    const retries: Retry[] = [];
    let cancelled = 0;
    const hang: Respond = () => new Promise(() => {});
    const silent: Respond = () => eventStream(["event: ready\nid: 4\ndata: {}\n\n"], "silent", () => cancelled++);
    const { client, sent } = responding(env, [hang, silent, (id) => eventStream([logAfter(id)], "close")]);
    const onRetry = (retry: Retry) => void retries.push(retry);
    const events = await collect(client.events("s", { timeoutMs: 20, silenceMs: 30, onRetry }));
    equal(
      retries.map(({ error }) => error.message.replace(/.*: /, "")),
      ["no response in 20 ms", "no response in 30 ms"],
    );
    equal([sent, cancelled], [[null, null, "4"], 1]);
    equal(
      events.map(({ type }) => type),
      ["ready", "session", "message", "changed", "ready", "deleted"],
    );

    // Comments count as activity of the connection.
    let sentComments = 0;
    const body = new ReadableStream<Uint8Array>({
      async pull(controller) {
        await new Promise((resolve) => setTimeout(resolve, 20));
        controller.enqueue(sentComments++ < 10 ? encoder.encode(":\n") : logAfter(null));
      },
    });
    const alive = responding(env, [() => new Response(body)]);
    await collect(alive.client.events("s", { silenceMs: 150, maxRetries: 0 }));
  },

  async "an aborted stream leaves no listener and no request"(env) {
    const states: Record<string, Respond> = {
      connecting: () => new Promise(() => {}),
      waiting: () => problem(503, {}, { "Retry-After": "3600" }),
      reading: () => eventStream(["event: session\ndata: {}\n\n"], "silent"),
    };
    for (const [state, respond] of Object.entries(states)) {
      const controller = new AbortController();
      const listeners = listenersOf(controller.signal);
      const signals: AbortSignal[] = [];
      let cancelled = 0;
      const responses: Respond[] = [
        (id, url, signal) => {
          signals.push(signal);
          return state === "reading"
            ? eventStream(["event: session\ndata: {}\n\n"], "silent", () => cancelled++)
            : respond(id, url, signal);
        },
      ];
      const { client, sent } = responding(env, responses);
      const events = client.events("s", { signal: controller.signal, onRetry: () => controller.abort("stop") });
      if (state === "reading") equal((await events.next()).value?.type, "session");
      const next = caught(events.next());
      if (state !== "waiting") {
        // Until the request is sent.
        await serverClient(env).livez();
        controller.abort("stop");
      }
      equal([state, await next, sent.length, listeners.size], [state, "stop", 1, 0]);
      equal([cancelled, signals[0]!.aborted], [state === "reading" ? 1 : 0, state === "connecting"]);
      equal(await events.next(), { done: true, value: undefined });
    }
    const aborted = new AbortController();
    aborted.abort("over");
    const { client, sent } = responding(env, [states.connecting!]);
    equal([await caught(client.events("s", { signal: aborted.signal }).next()), sent.length], ["over", 0]);
  },

  async "leaving the loop over a stream ends its request"(env) {
    let cancelled = 0;
    const { signal } = new AbortController();
    const listeners = listenersOf(signal);
    const { client, sent } = responding(env, [() => eventStream([logAfter(null)], "silent", () => cancelled++)]);
    for await (const event of client.events("s", { signal })) if (event.type === "turn") break;
    equal([sent.length, cancelled, listeners.size], [1, 1, 0]);
  },

  async "a page that is shown again connects immediately"(env) {
    const page = pageOf(globalThis);
    try {
      // While it waits: an hour.
      for (const wake of [page.goOnline, page.show, page.focus]) {
        let delays = 0;
        const { client, sent } = responding(env, [
          () => problem(503, {}, { "Retry-After": "3600" }),
          (id) => eventStream([logAfter(id)], "close"),
        ]);
        // After the callback, the stream waits.
        const onRetry = () => void (delays++, setTimeout(wake));
        const events = await collect(client.events("s", { onRetry }));
        equal([events.at(-1)?.type, sent.length, delays], ["deleted", 2, 1]);
      }
      // While it reads from a connection that may be lost.
      const { client, sent } = responding(env, [
        () => eventStream(["event: ready\nid: 5\ndata: {}\n\n"], "silent"),
        (id) => eventStream([logAfter(id)], "close"),
      ]);
      const delays: number[] = [];
      const events = client.events("s", { onRetry: ({ delayMs }) => void delays.push(delayMs) });
      equal((await events.next()).value?.type, "ready");
      const next = events.next();
      page.show();
      await serverClient(env).livez();
      equal(sent, [null], "a page that was hidden for a moment");
      page.goOnline();
      equal((await next).value?.type, "session");
      equal([sent, delays], [[null, "5"], [0]]);
      await events.return();
      equal(page.listeners(), 0);
    } finally {
      page.restore();
    }
  },
};
