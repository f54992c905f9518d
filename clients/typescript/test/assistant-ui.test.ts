// The adapters of assistant-ui, with its runtimes in React, on the real program. For Node only.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import type { AssistantRuntime, ThreadMessage } from "@assistant-ui/react";
import { AssistantMessageStream } from "assistant-stream";
import { Window } from "happy-dom";

import { chatTransport } from "../src/ai.js";
import { saveUIMessages, writeUIMessages } from "../src/ai-server.js";
import { threadHistoryAdapter, threadListAdapter } from "../src/assistant-ui.js";
import type { Sessiond } from "../src/index.js";
import { textChunks } from "./chat.js";
import { startEnvironment } from "./environment.js";
import { rejects, serverClient, unique } from "./support.js";

let environment: Awaited<ReturnType<typeof startEnvironment>>;
let client: Sessiond;
before(async () => {
  environment = await startEnvironment();
  client = serverClient(environment.env);
});
after(() => environment.stop());

const BUSINESS = "B20";
const text = (text: string) => [{ type: "text" as const, text }];

test("the sessions of a user are threads", async () => {
  const userId = unique("user");
  const threads = threadListAdapter(client, BUSINESS, userId, { sessionType: "support", metadata: { from: "web" } });
  assert.deepEqual(await threads.list(), { threads: [], nextCursor: undefined });
  const first = await threads.initialize("__LOCALID_1", { custom: { topic: "hours" } });
  assert.deepEqual(await threads.initialize("__LOCALID_1"), first);
  const other = threadListAdapter(client, BUSINESS, userId);
  const second = await other.initialize("__LOCALID_1");
  assert.notEqual(second.remoteId, first.remoteId);
  const session = await client.getSession(first.remoteId);
  assert.deepEqual([session?.sessionType, session?.endReason], ["support", "replaced"]);

  await threads.rename(first.remoteId, "Opening hours");
  await threads.archive(first.remoteId);
  const thread = await threads.fetch(first.remoteId);
  const custom = { from: "web", topic: "hours" };
  const lastMessageAt = new Date(session!.lastActivityAt);
  assert.deepEqual(thread, {
    remoteId: first.remoteId,
    status: "archived",
    title: "Opening hours",
    lastMessageAt,
    custom,
  });
  assert.deepEqual(
    (await threads.list()).threads.map(({ status }) => status),
    ["regular", "archived"],
  );
  await threads.unarchive(first.remoteId);
  assert.deepEqual((await client.getSession(first.remoteId))?.metadata, custom);
  await threads.delete(second.remoteId);
  assert.deepEqual(
    (await threads.list()).threads.map(({ remoteId }) => remoteId),
    [first.remoteId],
  );
  await assert.rejects(threads.fetch(second.remoteId), /No such session/);

  const message = { role: "user", content: text(` ${"When do you open? ".repeat(20)}`) } as unknown as ThreadMessage;
  const stream = AssistantMessageStream.fromAssistantStream(await threads.generateTitle(first.remoteId, [message]));
  let title: string | undefined;
  for await (const { parts } of stream) title = parts[0]?.type === "text" ? parts[0].text : undefined;
  assert.deepEqual([title?.length, (await client.getSession(first.remoteId))?.title], [60, title]);

  for (let i = 0; i < 21; i++) await threads.initialize(`t-${i}`);
  const page = await threads.list();
  const next = await threads.list({ after: page.nextCursor });
  assert.deepEqual([page.threads.length, next.threads.length, next.nextCursor], [20, 2, undefined]);
});

const format = {
  format: "ai-sdk/v6",
  encode: ({ message: { id: _, ...content } }: { message: any }) => content,
  decode: ({ id, parent_id, content }: any) => ({ parentId: parent_id, message: { id, ...content } }),
  getId: ({ id }: any) => id as string,
};

test("a history appends only messages of the user, once, and redacts deleted ones", async () => {
  const userId = unique("user");
  const session = await client.createSession({ businessId: BUSINESS, userId });
  const { sessionId } = session;
  const item = { getState: () => ({ remoteId: sessionId }), initialize: async () => ({ remoteId: sessionId }) };
  const history = threadHistoryAdapter(client, () => item).withFormat!(format);
  const user = { id: "m-1", role: "user", parts: text("Hi"), metadata: { lang: "en" } };
  const reply = { id: "a-1", role: "assistant", parts: text("Hello") };
  await saveUIMessages(client, sessionId, [user, reply] as never);
  await history.append({ parentId: null, message: user });
  await history.append({ parentId: null, message: { ...user, parts: text("a file that is stored elsewhere") } });
  await history.append({ parentId: "m-1", message: { ...reply, id: "a-2" } });
  await history.append({ parentId: "a-1", message: { ...user, id: "m-2" } });
  const loaded = await history.load();
  assert.deepEqual(loaded.messages, [
    { parentId: null, message: user },
    { parentId: "m-1", message: reply },
    { parentId: "a-1", message: { ...user, id: "m-2" } },
  ]);

  await history.update!({ parentId: null, message: { ...user, metadata: { lang: "de" } } }, "m-1");
  await history.update!({ parentId: null, message: { ...reply, metadata: { lang: "de" } } }, "a-1");
  await history.update!({ parentId: "m-2", message: { ...user, id: "m-3" } }, "m-3");
  const metadata = (await client.getSessionMessages(sessionId)).map(({ metadata }) => metadata.lang);
  assert.deepEqual(metadata, ["de", undefined, "en", "en"]);
  await saveUIMessages(client, sessionId, [{ ...reply, parts: text("Hello again") }] as never);
  await history.delete!([{ parentId: "m-1", message: reply }]);
  const contents = (await client.getSessionMessages(sessionId)).map(({ content }) => content !== null);
  assert.deepEqual(contents, [true, false, true, true, false]);

  await client.createSession({ businessId: BUSINESS, userId, ifActive: "replace" });
  await history.append({ parentId: "m-3", message: { ...user, id: "m-4" } });
  assert.equal((await client.getSession(sessionId))?.status, "active");
  await client.endSession(sessionId);
  await rejects(history.append({ parentId: "m-4", message: { ...user, id: "m-5" } }), "session_not_active");
  const none = { getState: () => ({}), initialize: async () => ({ remoteId: sessionId }) };
  const empty = threadHistoryAdapter(client, () => none);
  assert.deepEqual(await empty.withFormat!(format).load(), { messages: [] });
  await assert.rejects(empty.load(), /runtimes of the AI SDK/);
  assert.throws(() => empty.withFormat!({ ...format, format: "aui/v0" }), /runtimes of the AI SDK/);
});

test("a runtime of assistant-ui lists threads, sends messages, and loads them again", async () => {
  const window = new Window({ url: "http://localhost/" });
  const { document, navigator, HTMLElement } = window;
  const addEventListener = window.addEventListener.bind(window);
  const removeEventListener = window.removeEventListener.bind(window);
  const scope = { window, document, navigator, HTMLElement, addEventListener, removeEventListener };
  for (const [name, value] of Object.entries(scope)) {
    Object.defineProperty(globalThis, name, { value, configurable: true });
  }
  const { createElement, useMemo } = await import("react");
  const { createRoot } = await import("react-dom/client");
  const { AssistantRuntimeProvider, useAui, useRemoteThreadListRuntime } = await import("@assistant-ui/react");
  const { useChatRuntime } = await import("@assistant-ui/react-ai-sdk");

  const userId = unique("user");
  const adapter = {
    ...threadListAdapter(client, BUSINESS, userId),
    unstable_useAdapters: function useAdapters() {
      const aui = useAui();
      return useMemo(() => ({ history: threadHistoryAdapter(client, () => aui.threadListItem) }), [aui]);
    },
  };
  let runtime!: AssistantRuntime;
  function Page() {
    runtime = useRemoteThreadListRuntime({
      adapter,
      runtimeHook: function useThread() {
        const aui = useAui();
        const transport = useMemo(
          () => chatTransport(client, { sessionId: async () => (await aui.threadListItem.initialize()).remoteId }),
          [aui],
        );
        return useChatRuntime({ transport });
      },
    });
    return createElement(AssistantRuntimeProvider, { runtime, children: null });
  }
  const render = () => {
    const root = createRoot(window.document.createElement("div") as never);
    root.render(createElement(Page));
    return root;
  };
  let root = render();

  const shown = () =>
    runtime.thread
      .getState()
      .messages.map(({ role, content }) => [role, content.map((part) => ("text" in part ? part.text : "")).join("")]);
  const until = async (isTrue: () => unknown) => {
    while (!isTrue()) await new Promise((resolve) => setTimeout(resolve, 5));
  };
  await until(() => runtime);
  await until(() => !runtime.threads.getState().isLoading);
  let sessionId: string | undefined;
  for await (const { type, data } of client.businessEvents(BUSINESS)) {
    if (type === "reset") runtime.thread.append("When do you open?");
    if (type !== "message" || data.role !== "user") continue;
    sessionId = data.sessionId;
    await writeUIMessages(client, sessionId, () => textChunks("At ", "nine."), { turnId: `re:${data.messageId}` });
    break;
  }
  const expected = [
    ["user", "When do you open?"],
    ["assistant", "At nine."],
  ];
  await until(() => shown().length === 2 && !runtime.thread.getState().isRunning);
  assert.deepEqual(shown(), expected);
  assert.equal((await client.getSession(sessionId!))?.userId, userId);
  while (!(await client.getSession(sessionId!))?.title);
  const roles = (await client.getSessionMessages(sessionId!)).map(({ role }) => role);
  assert.deepEqual(roles, ["user", "assistant"]);

  root.unmount();
  root = render();
  await until(() => shown().length === 0 && !runtime.threads.getState().isLoading);
  await runtime.threads.switchToThread(sessionId!);
  await until(() => shown().length === 2);
  assert.deepEqual(shown(), expected);
  root.unmount();
  await window.happyDOM.close();
});
