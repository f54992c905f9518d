// The adapters of the AI SDK, with the real packages of both versions, on the real program. For Node only.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import * as ai7 from "ai";
import type { UIMessage, UIMessageChunk } from "ai";
import * as ai6 from "ai6";

import { chatTransport, type ChatTransportOptions } from "../src/ai.js";
import { loadUIMessages, saveUIMessages, writeUIMessages } from "../src/ai-server.js";
import type { Sessiond, SessionEvent } from "../src/index.js";
import { newChat, textChunks, textOf } from "./chat.js";
import { startEnvironment } from "./environment.js";
import { caught, collect, latch, rejects, serverClient, unique, type Environment } from "./support.js";

const SDKS = { "ai 6": ai6 as unknown as typeof ai7, "ai 7": ai7 };
let environment: Awaited<ReturnType<typeof startEnvironment>>;
let env: Environment;
let client: Sessiond;
before(async () => {
  environment = await startEnvironment();
  env = environment.env;
  client = serverClient(env);
});
after(() => environment.stop());

async function newSession() {
  return (await client.createSession({ businessId: "B20", userId: unique("user") })).sessionId;
}

function chatOf(sdk: typeof ai7, id: string, options: ChatTransportOptions = {}, messages: UIMessage[] = []) {
  return newChat(sdk, { id, messages, transport: chatTransport(client, options) });
}

/** Resolves with the first matching event. */
async function seen(sessionId: string, fits: (event: SessionEvent) => boolean) {
  for await (const event of client.events(sessionId, { last: 100 })) if (fits(event)) return event;
  throw new Error("the stream ended");
}

/** Answers each message of the user in a session, like a worker. */
function worker(sessionId: string, source: (text: string, signal: AbortSignal) => AsyncIterable<UIMessageChunk>) {
  const over = new AbortController();
  const turns: Promise<unknown>[] = [];
  const listen = async () => {
    for await (const { type, data } of client.events(sessionId, { after: 0, signal: over.signal })) {
      if (type !== "message" || data.role !== "user") continue;
      const answer = (messages: UIMessage[], signal: AbortSignal) => source(textOf(messages.at(-1)), signal);
      turns.push(
        writeUIMessages(client, sessionId, answer, { turnId: `re:${data.messageId}` }).catch((error) => error),
      );
    }
  };
  const listening = caught(listen());
  return async () => {
    over.abort();
    await listening;
    return Promise.all(turns);
  };
}

for (const [name, sdk] of Object.entries(SDKS)) {
  test(`${name}: a message is appended, and the reply is read as it is written and as it is stored`, async () => {
    const sessionId = await newSession();
    const stop = worker(sessionId, (text) => textChunks("You said ", text, "."));
    const chat = chatOf(sdk, sessionId);
    await chat.sendMessage({
      id: "m-1",
      role: "user",
      parts: [{ type: "text", text: "Hi" }],
      metadata: { lang: "en" },
    });
    assert.equal(chat.status, "ready", chat.error?.message);
    assert.deepEqual(
      chat.messages.map(({ id, role }) => [id, role]),
      [
        ["m-1", "user"],
        ["re:m-1", "assistant"],
      ],
    );
    assert.equal(textOf(chat.messages[1]), "You said Hi.");
    await chat.sendMessage({ text: "More" });
    assert.equal(textOf(chat.messages[3]), "You said More.");
    await stop();

    const stored = await client.getSessionMessages(sessionId);
    assert.deepEqual([stored[0]!.content, stored[0]!.metadata], [[{ type: "text", text: "Hi" }], { lang: "en" }]);
    assert.deepEqual([stored[1]!.metadata, stored[1]!.finishReason], [{}, "completed"]);
    const loaded = await loadUIMessages(client, sessionId);
    const plain = (messages: UIMessage[]) => JSON.parse(JSON.stringify(messages));
    assert.deepEqual(plain(loaded), plain(chat.messages));
    const model = await sdk.convertToModelMessages(loaded);
    assert.deepEqual(
      model.map(({ role }) => role),
      ["user", "assistant", "user", "assistant"],
    );
  });

  test(`${name}: a page that is loaded during a reply shows all of it; without an open turn, no stream`, async () => {
    const sessionId = await newSession();
    assert.equal(await chatTransport(client).reconnectToStream({ chatId: sessionId }), null);
    await saveUIMessages(client, sessionId, [{ id: "m-1", role: "user", parts: [{ type: "text", text: "Hi" }] }]);
    const more = latch();
    const source = async function* () {
      yield { type: "text-start", id: "0" } as const;
      yield { type: "text-delta", id: "0", delta: "Half " } as const;
      await more.opened;
      yield { type: "text-delta", id: "0", delta: "and half" } as const;
      yield { type: "text-end", id: "0" } as const;
    };
    const turn = writeUIMessages(client, sessionId, source, { turnId: "re:m-1" });
    await seen(sessionId, ({ type, data }) => type === "chunk" && data.chunks.join("").includes("Half"));
    const transport = chatTransport(client);
    const again = latch();
    const chat = newChat(sdk, {
      id: sessionId,
      messages: await loadUIMessages(client, sessionId),
      transport: Object.assign(Object.create(transport), {
        async reconnectToStream(options: never) {
          const stream = await transport.reconnectToStream(options);
          if (textOf(chat.messages.at(-1)) === "Half ") again.open();
          return stream;
        },
      }),
    });
    const first = chat.resumeStream();
    while (textOf(chat.messages.at(-1)) !== "Half ") await new Promise((resolve) => setImmediate(resolve));
    // The chat aborts the first one, which must not cancel the reply.
    const second = chat.resumeStream();
    await again.opened;
    more.open();
    await Promise.all([first, second]);
    assert.equal((await turn).status, "completed");
    assert.deepEqual(
      chat.messages.map(({ id }) => id),
      ["m-1", "re:m-1"],
    );
    assert.equal(textOf(chat.messages[1]), "Half and half");
    await chat.resumeStream();
    assert.deepEqual([chat.status, chat.messages.length], ["ready", 2]);
  });

  test(`${name}: stop cancels the reply, even if it has not begun`, async () => {
    const sessionId = await newSession();
    const chat = chatOf(sdk, sessionId);
    const endless = async function* (_: unknown, signal: AbortSignal): AsyncGenerator<UIMessageChunk> {
      yield { type: "text-start", id: "0" };
      yield { type: "text-delta", id: "0", delta: "Um" };
      if (!signal.aborted) await new Promise((resolve) => signal.addEventListener("abort", resolve));
      yield { type: "abort" };
    };
    const sent = chat.sendMessage({ id: "m-1", role: "user", parts: [{ type: "text", text: "Hi" }] } as never);
    await seen(sessionId, ({ type }) => type === "message");
    const turn = writeUIMessages(client, sessionId, endless, { turnId: "re:m-1" });
    while (textOf(chat.messages.at(-1)) !== "Um") await new Promise((resolve) => setImmediate(resolve));
    await chat.stop();
    await sent;
    assert.equal((await turn).status, "cancelled");
    assert.equal(textOf((await loadUIMessages(client, sessionId)).at(-1)), "Um");

    for (const id of ["while it waits", "while it is appended"]) {
      const appended = latch();
      const inFlight = latch();
      const waiting = chatOf(sdk, sessionId, {
        append: async (sessionId, message) => {
          const stored = await client.appendMessages(sessionId, message);
          inFlight.open();
          await appended.opened;
          return stored;
        },
      });
      const second = waiting.sendMessage({ id, role: "user", parts: [{ type: "text", text: "Hi" }] } as never);
      await inFlight.opened;
      const stop = () => waiting.stop();
      const stopped = id === "while it is appended" ? stop() : undefined;
      appended.open();
      await (stopped ?? Promise.resolve().then(stop));
      await second;
      assert.equal((await writeUIMessages(client, sessionId, endless, { turnId: `re:${id}` })).status, "cancelled");
    }
  });

  test(`${name}: answers of the user to tool calls continue the message, and are one message when loaded`, async () => {
    const sessionId = await newSession();
    let round = 0;
    const stop = worker(sessionId, async function* () {
      if (round++ === 0) {
        yield { type: "start-step" };
        yield* textOnly("Let me see. ");
        yield { type: "tool-input-available", toolCallId: "c-1", toolName: "place", input: { of: "user" } };
        yield { type: "tool-input-available", toolCallId: "c-2", toolName: "delete", input: { all: true } };
        yield { type: "tool-approval-request", approvalId: "a-1", toolCallId: "c-2" };
        yield { type: "finish-step" };
      } else {
        yield { type: "tool-output-available", toolCallId: "c-2", output: "deleted" };
        yield { type: "start-step" };
        yield* textOnly("Done in Bonn.");
        yield { type: "finish-step" };
      }
    });
    const chat = chatOf(sdk, sessionId);
    await chat.sendMessage({ id: "m-1", role: "user", parts: [{ type: "text", text: "Hi" }] } as never);
    await chat.addToolOutput({ tool: "place", toolCallId: "c-1", output: "Bonn" } as never);
    await chat.addToolApprovalResponse({ id: "a-1", approved: true });
    await chat.sendMessage();
    await stop();
    const shown = (messages: UIMessage[]) =>
      messages.map(({ id, parts }) => [
        id,
        ...parts.map((part) =>
          "text" in part ? part.text : "state" in part ? `${part.state} ${part.output}` : part.type,
        ),
      ]);
    const expected = [
      ["m-1", "Hi"],
      [
        "re:m-1",
        "step-start",
        "Let me see. ",
        "output-available Bonn",
        "output-available deleted",
        "step-start",
        "Done in Bonn.",
      ],
    ];
    assert.deepEqual(shown(chat.messages), expected);
    assert.deepEqual(shown(await loadUIMessages(client, sessionId)), expected);
    const roles = (await client.getSessionMessages(sessionId)).map(({ role }) => role);
    assert.deepEqual(roles, ["user", "assistant", "user", "assistant"]);
  });

  test(`${name}: a page that is loaded again shows each part of a message exactly once`, async () => {
    const sessionId = await newSession();
    const more = latch();
    const call = { toolCallId: "c-1", toolName: "clock" };
    const source = async function* (): AsyncGenerator<UIMessageChunk> {
      yield* textOnly("Let me see. ");
      yield { type: "tool-input-start", ...call };
      yield { type: "tool-input-delta", toolCallId: "c-1", inputTextDelta: "{" };
      await more.opened;
      yield { type: "tool-input-available", ...call, input: {} };
      yield { type: "tool-approval-request", approvalId: "a-1", toolCallId: "c-1" };
    };
    const turn = writeUIMessages(client, sessionId, source, { turnId: "t" });
    const sessionChunk = (text: string) =>
      seen(sessionId, ({ type, data }) => type === "chunk" && `${data.chunks}`.includes(text));
    await sessionChunk("tool-input-delta");
    const part = {
      type: "tool-clock" as const,
      toolCallId: "c-1",
      state: "input-streaming" as const,
      input: undefined,
    };
    const shown: UIMessage = { id: "t", role: "assistant", parts: [{ type: "text", text: "Let me see. " }, part] };
    const chat = chatOf(sdk, sessionId, {}, [shown]);
    const resumed = chat.resumeStream();
    more.open();
    await Promise.all([resumed, turn]);
    const kinds = (chat: { messages: UIMessage[] }) =>
      chat.messages.flatMap(({ parts }) => parts.map(({ type }) => type));
    assert.deepEqual(kinds(chat), ["text", "tool-clock"]);

    await chat.addToolApprovalResponse({ id: "a-1", approved: true });
    const appended = latch();
    const answering = chatOf(
      sdk,
      sessionId,
      {
        append: async (...message) => {
          const stored = await client.appendMessages(...message);
          appended.open();
          return stored;
        },
      },
      chat.messages,
    );
    const sent = answering.sendMessage();
    await appended.opened;
    const rest = latch();
    const last = async function* (): AsyncGenerator<UIMessageChunk> {
      yield { type: "tool-output-available", toolCallId: "c-1", output: "8:59" };
      await rest.opened;
      yield* textOnly("Nearly nine.");
    };
    const second = writeUIMessages(client, sessionId, last, { turnId: "u" });
    await sessionChunk("tool-output-available");
    const again = chatOf(sdk, sessionId, {}, await loadUIMessages(client, sessionId));
    const resumedAgain = again.resumeStream();
    const isShown = () => again.error ?? again.messages.some(({ parts }) => JSON.stringify(parts).includes("8:59"));
    while (!isShown()) await new Promise((resolve) => setImmediate(resolve));
    rest.open();
    await Promise.all([sent, second, resumedAgain]);
    const whole = ["text", "tool-clock", "text"];
    assert.deepEqual(kinds(answering), whole);
    // Version 6 does not resume a message that has an answered approval.
    if (name === "ai 6") assert.match(again.error!.message, /No tool invocation found/);
    else assert.deepEqual(kinds(again), whole);
    assert.deepEqual(kinds({ messages: await loadUIMessages(client, sessionId) }), whole);
  });

  test(`${name}: a real model is streamed, and its failure is the error of the turn`, async () => {
    const sessionId = await newSession();
    await saveUIMessages(client, sessionId, [{ id: "m-1", role: "user", parts: [{ type: "text", text: "Hi" }] }]);
    const prompts: unknown[] = [];
    const model = (fail: boolean) => ({
      specificationVersion: "v3",
      provider: "test",
      modelId: "test",
      supportedUrls: {},
      async doStream({ prompt }: { prompt: unknown }) {
        prompts.push(prompt);
        if (fail) throw new Error("key sk-1 is over its limit");
        const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };
        const parts = [
          { type: "stream-start", warnings: [] },
          { type: "text-start", id: "1" },
          ..."We open at nine.".split(/(?= )/).map((delta) => ({ type: "text-delta", id: "1", delta })),
          { type: "text-end", id: "1" },
          { type: "finish", finishReason: { unified: "stop", raw: "stop" }, usage },
        ];
        return { stream: new ReadableStream({ start: (c) => (parts.forEach((part) => c.enqueue(part)), c.close()) }) };
      },
    });
    const source = (fail: boolean) => async (messages: UIMessage[], abortSignal: AbortSignal) =>
      sdk
        .streamText({
          model: model(fail) as never,
          messages: await sdk.convertToModelMessages(messages),
          abortSignal,
          maxRetries: 0,
          onError: () => {},
        })
        .toUIMessageStream({
          onError: () => "Try again later",
          messageMetadata: ({ part }) => (part.type === "finish" ? { tokens: 2 } : undefined),
        });
    const turn = await writeUIMessages(client, sessionId, source(false), { turnId: "re:m-1" });
    assert.equal(turn.status, "completed");
    assert.match(JSON.stringify(prompts[0]), /"role":"user".*"text":"Hi"/);
    const [, reply] = await loadUIMessages(client, sessionId);
    assert.deepEqual([reply!.id, textOf(reply), reply!.metadata], ["re:m-1", "We open at nine.", { tokens: 2 }]);

    await saveUIMessages(client, sessionId, [{ id: "m-2", role: "user", parts: [{ type: "text", text: "And?" }] }]);
    const error = await caught(writeUIMessages(client, sessionId, source(true), { turnId: "re:m-2" }));
    const failed = await client.getTurn(sessionId, "re:m-2");
    assert.deepEqual([error.message, failed?.status, failed?.error], ["Try again later", "failed", "Try again later"]);
    const chat = chatOf(sdk, sessionId, {}, await loadUIMessages(client, sessionId));
    await chat.sendMessage();
    assert.deepEqual([chat.status, chat.error?.message], ["error", "Try again later"]);
  });
}

async function* textOnly(...deltas: string[]): AsyncGenerator<UIMessageChunk> {
  yield { type: "text-start", id: "0" };
  for (const delta of deltas) yield { type: "text-delta", id: "0", delta };
  yield { type: "text-end", id: "0" };
}

test("a session that was replaced is resumed, and one that a client has ended is an error", async () => {
  const userId = unique("user");
  const { sessionId } = await client.createSession({ businessId: "B20", userId });
  const other = await client.createSession({ businessId: "B20", userId, ifActive: "replace" });
  const stop = worker(sessionId, (text) => textChunks(text));
  const chat = chatOf(ai7, sessionId);
  await chat.sendMessage({ text: "Hello" });
  assert.equal(textOf(chat.lastMessage), "Hello", chat.error?.message);
  await stop();
  assert.equal((await client.getSession(other.sessionId))?.endReason, "replaced");

  await client.endSession(sessionId);
  await chat.sendMessage({ text: "Hello?" });
  assert.match(chat.error!.message, /session_not_active/);
  const called: unknown[] = [];
  const onInactive: ChatTransportOptions["onInactive"] = (session, error) => called.push(session.endReason, error.code);
  const second = chatOf(ai7, sessionId, { onInactive });
  await second.sendMessage({ text: "Hello?" });
  assert.deepEqual(called, ["client", "session_not_active"]);
  assert.match(second.error!.message, /session_not_active/);
  const gone = chatOf(ai7, sessionId);
  await client.deleteSession(sessionId);
  await gone.sendMessage({ text: "Hello?" });
  assert.match(gone.error!.message, /session_not_found/);
});

test("files as data: URLs are rejected, and can be stored elsewhere", async () => {
  const sessionId = await newSession();
  const stop = worker(sessionId, () => textChunks("Nice"));
  const file = { type: "file" as const, mediaType: "image/png", url: "data:image/png;base64,AAAA" };
  const chat = chatOf(ai7, sessionId);
  await chat.sendMessage({ text: "See", files: [file] });
  assert.match(chat.error!.message, /data: URL: upload it in `append`/);
  const uploading = chatOf(ai7, "my chat", {
    sessionId: async (chatId) => (chatId === "my chat" ? sessionId : ""),
    append: (id, message) => {
      const url = "https://files.example.com/1.png";
      const content = (message.content as (typeof file)[]).map((part) => (part.url ? { ...part, url } : part));
      return client.appendMessages(id, { ...message, content });
    },
  });
  await uploading.sendMessage({ text: "See", files: [file] });
  assert.equal(textOf(uploading.lastMessage), "Nice", uploading.error?.message);
  await stop();
  const [stored] = await loadUIMessages(client, sessionId);
  assert.match(JSON.stringify(stored), /files.example.com/);
  await uploading.regenerate();
  assert.match(uploading.error!.message, /not rewritten/);
});

test("replies of a worker without the AI SDK, streamed or appended, are text", async () => {
  const sessionId = await newSession();
  const chat = chatOf(ai7, sessionId);
  const reply = async (write: () => Promise<unknown>) => {
    const sent = chat.sendMessage({ text: "Hi" });
    await seen(sessionId, ({ type, data }) => type === "message" && data.seq === chat.messages.length);
    await write();
    await sent;
    return [chat.status, textOf(chat.lastMessage), chat.lastMessage?.id];
  };
  const words = async function* () {
    yield "We open ";
    yield "at nine";
  };
  const turn = () => client.writeTurn(sessionId, words(), { turnId: "t-1" });
  assert.deepEqual(await reply(turn), ["ready", "We open at nine", "t-1"]);
  const whole = { messageId: "a-1", role: "assistant" as const, content: "Nine" };
  assert.deepEqual(await reply(() => client.appendMessages(sessionId, whole)), ["ready", "Nine", "a-1"]);
  const end = () => reply(() => client.endSession(sessionId));
  assert.equal((await end())[0], "error");
  assert.match(chat.error!.message, /session has ended/);
});

/** A chat whose stream has these events, after a message or after the answers in these ones. */
async function replayed(events: (seq: number) => [type: string, data: unknown][], messages?: UIMessage[]) {
  const sessionId = await newSession();
  let seq = 0;
  const fake = serverClient(env, {
    fetch: async (url, init) => {
      if (!url.includes("/events")) return fetch(url, init);
      seq = Number(new URL(url).searchParams.get("after"));
      const text = events(seq).map(([type, data]) => `event: ${type}\ndata: ${JSON.stringify(data)}\n\n`);
      return new Response(text.join(""));
    },
  });
  const chat = newChat(ai7, { id: sessionId, transport: chatTransport(fake), messages: messages ?? [] });
  await (messages ? chat.sendMessage() : chat.sendMessage({ text: "Hi" }));
  return chat;
}

test("missing chunks are taken from the message, without repetition", async () => {
  const parts = [
    { type: "step-start" },
    { type: "reasoning", text: "Hm, nine.", state: "done" },
    { type: "text", text: "We open at nine.", state: "done" },
    { type: "tool-clock", toolCallId: "c", state: "output-available", input: { zone: "CET" }, output: "8:59" },
    { type: "source-url", sourceId: "s", url: "https://example.com/" },
    { type: "dynamic-tool", toolName: "mcp", toolCallId: "d", state: "output-error", input: {}, errorText: "away" },
    { type: "text", text: "Soon.", state: "done" },
  ];
  const all: UIMessageChunk[] = [
    { type: "start", messageId: "t" },
    { type: "start-step" },
    { type: "reasoning-start", id: "r" },
    { type: "reasoning-delta", id: "r", delta: "Hm, " },
    { type: "reasoning-delta", id: "r", delta: "nine." },
    { type: "reasoning-end", id: "r" },
    { type: "text-start", id: "0" },
    { type: "text-delta", id: "0", delta: "We open " },
    { type: "text-delta", id: "0", delta: "at nine." },
    { type: "text-end", id: "0" },
    { type: "tool-input-available", toolCallId: "c", toolName: "clock", input: { zone: "CET" } },
    { type: "tool-output-available", toolCallId: "c", output: "8:59" },
    { type: "source-url", sourceId: "s", url: "https://example.com/" },
    { type: "tool-input-available", toolCallId: "d", toolName: "mcp", input: {}, dynamic: true },
    { type: "tool-output-error", toolCallId: "d", errorText: "away", dynamic: true },
    { type: "text-start", id: "1" },
    { type: "text-delta", id: "1", delta: "Soon." },
    { type: "text-end", id: "1" },
    { type: "finish" },
  ];
  /** Removes empty started texts, the ids of reasonings, and undefined members. */
  const plain = (parts: object[]) =>
    parts
      .filter((part) => !("text" in part && part.text === ""))
      .map((part) => Object.fromEntries(Object.entries(part).filter(([name, value]) => value && name !== "id")));
  for (let count = 0; count <= all.length; count++) {
    const text = all
      .slice(0, count)
      .map((chunk) => `${JSON.stringify(chunk)}\n`)
      .join("");
    const turn = { turnId: "t", number: 1, metadata: { uiMessageChunks: true }, status: "open", nextChunk: 0 };
    const chat = await replayed((afterSeq) => [
      ["session", { status: "active" }],
      ["turn", { ...turn, afterSeq }],
      ["ready", {}],
      // Cut anywhere within lines.
      ["chunk", { turnId: "t", number: 1, from: 0, chunks: [text.slice(0, 70)] }],
      ["chunk", { turnId: "t", number: 1, from: 1, chunks: [text.slice(70)] }],
      ["message", { messageId: "t", role: "assistant", content: parts, metadata: {}, finishReason: "completed" }],
      ["turn", { ...turn, afterSeq, status: "completed", nextChunk: count === all.length ? 2 : 99 }],
    ]);
    assert.equal(chat.status, "ready", chat.error?.message);
    assert.deepEqual(plain(chat.lastMessage!.parts), parts, `after ${count} chunks`);
  }
});

test("missing chunks of a continuation are taken from the message, without the parts that it continues", async () => {
  const parts = [
    { type: "step-start" },
    { type: "text", text: "Where?" },
    { type: "tool-place", toolCallId: "c", state: "output-available", input: {}, output: "Bonn" },
  ];
  const content = [...parts, { type: "step-start" }, { type: "text", text: "Ah." }];
  const metadata = { continues: "a" };
  const chat = await replayed(
    (afterSeq) => [
      ["session", { status: "active" }],
      ["message", { messageId: "t", role: "assistant", content, metadata, finishReason: "completed" }],
      ["turn", { turnId: "t", number: 1, metadata: {}, status: "completed", nextChunk: 9, afterSeq }],
    ],
    [{ id: "a", role: "assistant", parts: parts as never }],
  );
  const shown = chat.messages.map(({ id, parts }) => [
    id,
    ...parts.map((part) => ("text" in part ? part.text : part.type)),
  ]);
  assert.deepEqual(shown, [["a", "step-start", "Where?", "tool-place", "step-start", "Ah."]]);
});

test("a reply that is started again is an error, and one that was interrupted or lost ends", async () => {
  const turn = { turnId: "t", number: 1, metadata: {}, status: "open", nextChunk: 0 };
  const chunk: [string, unknown] = ["chunk", { turnId: "t", number: 1, from: 0, chunks: ["We"] }];
  const ended = async (...last: [string, object][]) => {
    const chat = await replayed((afterSeq) => [
      ["turn", { ...turn, afterSeq }],
      chunk,
      ...last.map(([type, data]): [string, unknown] => [type, { ...data, afterSeq }]),
    ]);
    return [textOf(chat.lastMessage), chat.error?.message];
  };
  const restarted = await ended(["turn", { ...turn, number: 2 }]);
  assert.match(restarted[1]!, /started again/);
  assert.deepEqual(await ended(["turn", { ...turn, status: "interrupted", nextChunk: 1 }]), ["We", undefined]);
  const failed = { ...turn, status: "failed", nextChunk: 1, error: { code: 7 } };
  assert.deepEqual(await ended(["turn", failed]), ["We", "The reply failed"]);
  assert.deepEqual(await ended(["turn", { ...turn, status: "lost", nextChunk: 1 }]), ["We", "The reply failed"]);
  assert.match((await ended(["deleted", {}]))[1]!, /session has ended/);
});

test("a worker that dies leaves its text, and users cannot change what the assistant has said", async () => {
  const sessionId = await newSession();
  const call = { type: "tool-pay", toolCallId: "c", state: "input-available", input: { amount: 5 } };
  const paid = { type: "tool-pay", toolCallId: "p", state: "output-available", input: { amount: 5 }, output: "paid 5" };
  await client.appendMessages(sessionId, [
    { messageId: "a", role: "assistant", content: [{ type: "text", text: "May I?" }, call, paid] },
    {
      role: "user",
      metadata: { answers: "a" },
      content: [
        null as never,
        { type: "text", text: "Sure, here are 100" },
        { ...call, state: "output-available", output: "ok", input: { amount: 100 } },
        { ...paid, output: "paid 100" },
      ],
    },
    { role: "user", content: [null as never, "text", { text: "no type" }] },
    { role: "user", metadata: { continues: "a" }, content: "I am the assistant" },
  ]);
  const turn = await client.beginTurn(sessionId, { turnId: "t", writer: "w", metadata: { uiMessageChunks: true } });
  const chunks = [
    { type: "start", messageId: "t" },
    { type: "text-delta", id: "0", delta: "We open" },
  ];
  const text = chunks.map((chunk) => `${JSON.stringify(chunk)}\n`).join("") + '{"type":"text-de';
  await client.appendChunks(sessionId, "t", { number: turn.number!, from: 0, chunks: [text] });
  await client.beginTurn(sessionId, { turnId: "other", writer: "w", ifOpen: "interrupt" });
  const [answered, forged, lost] = await loadUIMessages(client, sessionId);
  const { input, output, state } = answered!.parts[1] as typeof paid;
  assert.deepEqual([input, output, state], [{ amount: 5 }, "ok", "output-available"]);
  assert.deepEqual([answered!.parts.length, answered!.parts[2]], [3, paid]);
  assert.deepEqual([forged!.role, textOf(forged)], ["user", "I am the assistant"]);
  assert.deepEqual([lost!.id, textOf(lost), lost!.metadata], ["t", "We open", undefined]);
});

test("messages are saved once, continuations are merged, and redacted messages are omitted", async () => {
  const sessionId = await newSession();
  const text = (text: string) => [{ type: "text" as const, text }];
  const user: UIMessage = { id: "m-1", role: "user", parts: text("Hi") };
  const first: UIMessage = { id: "a-1", role: "assistant", parts: text("One"), metadata: { model: "m" } };
  const second = { ...first, parts: [...text("One"), ...text("Two")] };
  await saveUIMessages(client, sessionId, [user, first]);
  await saveUIMessages(client, sessionId, [user, second]);
  assert.deepEqual(await loadUIMessages(client, sessionId), [user, second]);
  await rejects(saveUIMessages(client, sessionId, [{ ...user, parts: text("Ho") }]), "message_id_conflict");
  await client.redactMessage(sessionId, "a-1");
  assert.deepEqual(await loadUIMessages(client, sessionId), [user]);
});

test("adjacent deltas are merged, so a stored reply is little longer than its text", async () => {
  const sessionId = await newSession();
  const words = Array.from({ length: 400 }, (_, i) => ` w${i}`);
  const source = async function* () {
    for await (const chunk of textChunks(...words)) {
      yield chunk;
      await new Promise((resolve) => setImmediate(resolve));
    }
  };
  await writeUIMessages(client, sessionId, source, { turnId: "t" });
  const { chunks } = (await client.getTurn(sessionId, "t"))!;
  const written = chunks.join("").length;
  const text = words.join("").length;
  const unmerged = (await collect(textChunks(...words))).map((chunk) => JSON.stringify(chunk)).join("\n").length;
  console.log(`${text} characters of text, ${written} written, ${unmerged} if not merged`);
  const [reply] = await loadUIMessages(client, sessionId);
  assert.equal(textOf(reply), words.join(""));
  assert(written < 2 * text, `${written} characters for ${text}`);
});
