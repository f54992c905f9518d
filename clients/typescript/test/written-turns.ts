// Turns that a worker writes with one call.

import type { AppendChunksBody, BeginTurnBody, Message, Sessiond, Turn } from "../src/index.js";
import {
  caught,
  collect,
  concurrently,
  equal,
  latch,
  problem,
  rejects,
  serverClient,
  unique,
  type Environment,
  type Test,
} from "./support.js";

async function* pieces(...texts: string[]) {
  yield* texts;
}

async function newSession(env: Environment) {
  const { sessionId } = await serverClient(env).createSession({ businessId: "B20", userId: unique("user") });
  return sessionId;
}

/** A client, and the bodies of its calls, by the end of their paths. */
function recording(env: Environment, respond?: (call: string, body: any) => Promise<Response | undefined>) {
  const calls: [call: string, body: any][] = [];
  const client = serverClient(env, {
    fetch: async (url, init) => {
      const body = init.body === undefined ? undefined : JSON.parse(init.body as string);
      const call = url.split("/").at(-1)!;
      calls.push([call, body]);
      return (await respond?.(call, body)) ?? fetch(url, init);
    },
  });
  const appends = () => calls.filter(([call]) => call === "chunks").map(([, body]) => body as AppendChunksBody);
  return { client, calls, appends };
}

export const writtenTurnTests: Record<string, Test> = {
  async "a turn is written in batches, in order, and becomes a message"(env) {
    const { client, calls, appends } = recording(env);
    const sessionId = await newSession(env);
    await client.appendMessages(sessionId, { messageId: "m-1", role: "user", content: "When?" });
    const words = Array.from({ length: 500 }, (_, i) => `${i} `);
    let given: Turn | undefined;
    const turn = await client.writeTurn(
      sessionId,
      (turn) => {
        given = turn;
        return pieces(...words);
      },
      { turnId: "re:m-1", metadata: { model: "m" }, end: () => ({ metadata: { tokens: 500 } }) },
    );
    equal([turn.status, turn.messageSeq, turn.hasNewMessages], ["completed", 2, false]);
    equal([turn.metadata, given?.turnId], [{ model: "m", tokens: 500 }, "re:m-1"]);
    const message = await client.getMessage(sessionId, "re:m-1");
    equal([message?.content, message?.finishReason], [words.join(""), "completed"]);
    equal(appends().length < 10, true, `${appends().length} calls for what comes at once`);
    equal(
      appends().map(({ from, chunks }) => [from, chunks.length]),
      appends().map((_, i) => [i, 1]),
    );
    equal(new Set(calls.filter(([call]) => call === "turns").map(([, { writer }]) => writer)).size, 1);
    equal((await client.writeTurn(sessionId, pieces())).messageSeq, 3);

    calls.length = 0;
    const startMs = Date.now();
    const slow = async function* () {
      for (let i = 0; i < 50; i++) {
        yield "x";
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
    };
    await client.writeTurn(sessionId, slow());
    // Calls are 25 ms apart.
    const most = (Date.now() - startMs) / 25 + 2;
    equal(appends().length <= most, true, `${appends().length} calls, not ${most}`);
    const content = { parts: ["a"] };
    const own = await client.writeTurn(sessionId, pieces("a", "", "b"), { role: "tool", end: () => ({ content }) });
    const stored = await client.getMessage(sessionId, own.turnId);
    equal([stored?.content, stored?.role], [content, "tool"]);
  },

  async "a turn has one call in flight, and text that arrives in the meantime is the next batch"(env) {
    const inFlight = latch();
    const answer = latch();
    const { client, appends } = recording(env, async (call) => {
      if (call !== "chunks" || appends().length > 1) return undefined;
      inFlight.open();
      await answer.opened;
      return undefined;
    });
    const source = async function* () {
      yield "a";
      await inFlight.opened;
      yield "b";
      yield "c";
      answer.open();
    };
    const turn = await client.writeTurn(await newSession(env), source());
    equal(
      appends().map(({ from, chunks }) => [from, chunks]),
      [
        [0, ["a"]],
        [1, ["bc"]],
      ],
    );
    equal(turn.nextChunk, 2);
  },

  async "a turn that has ended is not written again"(env) {
    const { client, calls } = recording(env);
    const sessionId = await newSession(env);
    const first = await client.writeTurn(sessionId, pieces("once"), { turnId: "re:m-1" });
    calls.length = 0;
    const second = await client.writeTurn(
      sessionId,
      () => {
        throw new Error("was called");
      },
      { turnId: "re:m-1" },
    );
    equal([second, calls.map(([call]) => call)], [first, ["turns"]]);
    await client.beginTurn(sessionId, { turnId: "re:m-2", writer: "w" });
    await rejects(client.writeTurn(sessionId, pieces("x"), { turnId: "re:m-2" }), "turn_open");
    await rejects(client.writeTurn(sessionId, pieces("x"), { turnId: "re:m-3" }), "turn_open");
    const interrupting = await client.writeTurn(sessionId, pieces("x"), { turnId: "re:m-3", ifOpen: "interrupt" });
    equal(interrupting.status, "completed");
  },

  async "a turn reports whether messages were appended while it was written"(env) {
    const client = serverClient(env);
    const sessionId = await newSession(env);
    const source = async function* () {
      yield "a";
      await client.appendMessages(sessionId, { role: "user", content: "And on Sunday?" });
    };
    equal((await client.writeTurn(sessionId, source())).hasNewMessages, true);
    equal((await client.writeTurn(sessionId, pieces("b"))).hasNewMessages, false);
    // A turn without a message reports that it does not know.
    await client.beginTurn(sessionId, { turnId: "dropped", writer: "w" });
    await client.beginTurn(sessionId, { turnId: "t", writer: "w", ifOpen: "discard" });
    equal((await client.writeTurn(sessionId, pieces("x"), { turnId: "dropped" })).hasNewMessages, true);
  },

  async "a reader's cancel stops the source immediately, by the stream"(env) {
    const { client, appends } = recording(env);
    const sessionId = await newSession(env);
    const written = latch();
    let reason: unknown;
    // The source is silent: without the stream, only the next renewal of the lease would report the cancel.
    const source = async function* (_: Turn, signal: AbortSignal) {
      yield "Um ";
      written.open();
      await new Promise((_, reject) => signal.addEventListener("abort", () => reject((reason = signal.reason))));
    };
    const turn = client.writeTurn(sessionId, source, { turnId: "t" });
    await written.opened;
    const appended = async () => {
      while (!(await client.getTurn(sessionId, "t"))?.nextChunk);
    };
    await appended();
    const before = appends().length;
    await client.cancelTurn(sessionId, "t");
    const { status, messageSeq } = await turn;
    equal([status, messageSeq, (reason as Error).name, appends().length], ["cancelled", 1, "AbortError", before]);
    equal((await client.getMessage(sessionId, "t"))?.content, "Um ");
  },

  async "without the stream, a cancel is seen in the response to the next call"(env) {
    const { client } = recording(env, async (call) => (call === "events" ? problem(403, {}) : undefined));
    const sessionId = await newSession(env);
    const source = async function* (_: Turn, signal: AbortSignal) {
      for (let i = 0; !signal.aborted; i++) {
        yield `${i} `;
        if (i === 3) await client.cancelTurn(sessionId, "t");
        // Another batch.
        await new Promise((resolve) => setTimeout(resolve));
      }
      yield "too late";
    };
    const turn = await client.writeTurn(sessionId, source, { turnId: "t" });
    equal(turn.status, "cancelled");
    const { content } = (await client.getMessage(sessionId, "t"))!;
    equal(/^0 1 2 3 (\d+ )*$/.test(content as string), true, String(content));
  },

  async "the lease is renewed while the source is silent"(env) {
    const renewed = latch();
    const { client, appends } = recording(env, async (call, body) => {
      if (call === "chunks" && appends().filter(({ chunks }) => !chunks.length).length === 3) renewed.open();
      if (call !== "turns") return undefined;
      // A lease of 60 ms.
      const turn = await serverClient(env).beginTurn(sessionId, body as BeginTurnBody);
      const leaseUntil = new Date(Date.parse(turn.startedAt!) + 60).toISOString();
      return Response.json({ ...turn, leaseUntil });
    });
    const sessionId = await newSession(env);
    const source = async function* () {
      await renewed.opened;
      yield "at last";
    };
    equal((await client.writeTurn(sessionId, source())).status, "completed");
    equal(
      appends()
        .map(({ from, chunks }) => [from, ...chunks])
        .at(-1),
      [0, "at last"],
    );
  },

  async "an error of the source fails the turn, and its text is kept"(env) {
    const client = serverClient(env);
    const sessionId = await newSession(env);
    const failing = async function* () {
      yield "Um ";
      throw new Error("out of tokens: key sk-1");
    };
    const error = await caught(client.writeTurn(sessionId, failing(), { turnId: "a" }));
    equal(error.message, "out of tokens: key sk-1");
    const turns = [await client.getTurn(sessionId, "latest")];
    const describeError = (error: unknown) => ({ isLong: (error as Error).message.length > 10 });
    await caught(client.writeTurn(sessionId, failing(), { turnId: "b", describeError }));
    turns.push(await client.getTurn(sessionId, "latest"));
    const early = () => Promise.reject(new Error("no model"));
    equal((await caught(client.writeTurn(sessionId, early, { turnId: "c" }))).message, "no model");
    turns.push(await client.getTurn(sessionId, "latest"));
    equal(
      turns.map((turn) => [turn?.status, turn?.error, turn?.messageSeq]),
      [
        ["failed", null, 1],
        ["failed", { isLong: true }, 2],
        ["failed", null, null],
      ],
    );
    equal((await client.getMessage(sessionId, "a"))?.content, "Um ");
  },

  async "a signal stops the source and fails the turn"(env) {
    const client = serverClient(env);
    const sessionId = await newSession(env);
    const controller = new AbortController();
    const stopped: unknown[] = [];
    const source = async function* (_: Turn, signal: AbortSignal) {
      signal.addEventListener("abort", () => stopped.push(signal.reason));
      yield "a";
      controller.abort("shutdown");
      await new Promise(() => {});
    };
    const options = { turnId: "t", signal: controller.signal };
    equal(await caught(client.writeTurn(sessionId, source, options)), "shutdown");
    equal([stopped, (await client.getTurn(sessionId, "t"))?.status], [["shutdown"], "failed"]);
    equal(await caught(client.writeTurn(sessionId, source, { ...options, turnId: "u" })), "shutdown");
    equal(await client.getTurn(sessionId, "u"), null);
  },

  async "a turn that is closed or taken over by others is stopped"(env) {
    const client = serverClient(env);
    const close: [status: string | null, (sessionId: string) => Promise<unknown>][] = [
      ["interrupted", (id) => client.beginTurn(id, { turnId: "other", writer: "w", ifOpen: "interrupt" })],
      ["interrupted", (id) => client.endSession(id)],
      [null, (id) => client.beginTurn(id, { turnId: "t", writer: "w", ifOpen: "takeover" })],
    ];
    for (const [status, closeIt] of close) {
      const sessionId = await newSession(env);
      const { client: writer, appends } = recording(env);
      let isAborted = false;
      const source = async function* (_: Turn, signal: AbortSignal) {
        yield "a";
        while (!(await client.getTurn(sessionId, "t"))?.nextChunk);
        await closeIt(sessionId);
        if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
        isAborted = true;
      };
      const turn = writer.writeTurn(sessionId, source, { turnId: "t" });
      if (status) equal((await turn).status, status);
      else equal((await rejects(turn, "turn_closed")).problem.turnStatus, "taken");
      // By the stream, and not by the next renewal of the lease.
      equal([isAborted, appends().length], [true, 1]);
    }
    const sessionId = await newSession(env);
    const source = async function* (_: Turn, signal: AbortSignal) {
      yield "a";
      await client.deleteSession(sessionId);
      if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
    };
    await rejects(client.writeTurn(sessionId, source), "session_not_found");
  },

  async "texts of any length, cut within a character, are written completely"(env) {
    const { client, appends } = recording(env);
    const sessionId = await newSession(env);
    const long = "é💬\u0000\u2028".repeat(8000);
    const text = `a${long}`;
    const units = text.split("");
    await client.writeTurn(sessionId, pieces(text), { turnId: "one" });
    await client.writeTurn(sessionId, pieces(...units), { turnId: "units" });
    await client.writeTurn(sessionId, pieces("\ud83d", "", "\udcac!\ud83d"), { turnId: "lone" });
    const contents = await Promise.all(["one", "units", "lone"].map((id) => client.getMessage(sessionId, id)));
    equal(
      contents.map((message) => [text, "💬!\ufffd"].indexOf(message?.content as string)),
      [0, 0, 1],
    );
    equal(
      appends().every(({ chunks }) => (chunks[0]?.length ?? 0) <= 32_768),
      true,
    );
  },

  async "a source without end fails when the turn is full"(env) {
    const client = serverClient(env);
    const sessionId = await newSession(env);
    let isLeft = false;
    const endless = async function* () {
      try {
        for (;;) yield "0123456789abcdef";
      } finally {
        isLeft = true;
      }
    };
    await rejects(client.writeTurn(sessionId, endless(), { turnId: "t" }), "payload_too_large");
    const turn = (await client.getTurn(sessionId, "t"))!;
    const { content } = (await client.getMessage(sessionId, "t"))!;
    equal([turn.status, isLeft, (content as string).length > 900_000], ["failed", true, true]);
  },

  async "written turns through a faulty proxy: every word once, in order, also for readers of the stream"(env) {
    const direct = serverClient(env);
    const client = serverClient(env, { baseUrl: `${env.proxy}/faulty`, timeoutMs: 1000 });
    const turns = Math.ceil(env.appends / (10 * env.writers));
    await concurrently(env.writers, env.writers, async () => {
      const sessionId = await newSession(env);
      const read = readTurns(client, sessionId, turns);
      const expected: string[] = [];
      for (let turn = 1; turn <= turns; turn++) {
        const words = Array.from({ length: 8 }, (_, i) => `${turn}.${i} `);
        const source = async function* () {
          for (const word of words) {
            yield word;
            await direct.livez();
          }
        };
        const written = await client.writeTurn(sessionId, source, { turnId: `re:${turn}`, maxRetries: 50 });
        equal([written.status, written.messageSeq], ["completed", turn]);
        expected.push(words.join(""));
      }
      equal(
        (await read).map(({ content }) => content),
        expected,
      );
      const stored = await collect(direct.getSessionMessages(sessionId, { limit: 1000 }));
      equal(
        stored.map(({ seq, content }) => [seq, content]),
        expected.map((content, i) => [i + 1, content]),
      );
    });
  },
};

/** The messages of a stream, up to this one. Each arrives once, and starts with the chunks of its turn, in order. */
async function readTurns(client: Sessiond, sessionId: string, lastSeq: number): Promise<Message[]> {
  const messages: Message[] = [];
  const chunks = new Map<string, string[]>();
  for await (const { type, data } of client.events(sessionId, { after: 0, silenceMs: 1000 })) {
    if (type === "reset") throw new Error(`reset: ${data.reason}`);
    if (type === "chunk") {
      const known = chunks.get(data.turnId) ?? [];
      equal(data.from, known.length, `chunks of ${data.turnId}`);
      chunks.set(data.turnId, [...known, ...data.chunks]);
    }
    if (type !== "message") continue;
    equal(data.seq, messages.length + 1);
    messages.push(data);
    const text = chunks.get(data.messageId)?.join("") ?? "";
    equal((data.content as string).slice(0, text.length), text);
    if (data.seq === lastSeq) break;
  }
  return messages;
}
