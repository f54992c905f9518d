// The state of a chat. A replaced `fetch` simulates broken connections and long delays.

import type { Conversation, ConversationState, Message, Sessiond, Turn } from "../src/index.js";
import {
  caught,
  equal,
  latch,
  pageOf,
  problem,
  rejects,
  serverClient,
  unique,
  type Environment,
  type Test,
} from "./support.js";

/** Waits for a state. */
function until(chat: Conversation, what: string, isReached: (state: ConversationState) => boolean) {
  return new Promise<ConversationState>((resolve, reject) => {
    const end = (settle: () => void) => {
      clearTimeout(timer);
      unsubscribe();
      settle();
    };
    const check = () => {
      const state = chat.getSnapshot();
      if (isReached(state)) end(() => resolve(state));
    };
    const timer = setTimeout(
      () => end(() => reject(new Error(`no ${what}: ${JSON.stringify(chat.getSnapshot()).slice(-500)}`))),
      20_000,
    );
    let unsubscribe = () => {};
    unsubscribe = chat.subscribe(check);
    check();
  });
}

const isLive = (chat: Conversation) => until(chat, "live state", ({ status }) => status === "live");
const contentsOf = (messages: readonly Message[]) => messages.map(({ content }) => content);
const hasContents = (chat: Conversation, ...contents: unknown[]) =>
  until(chat, contents.join(), (state) => {
    return state.status === "live" && JSON.stringify(contentsOf(state.messages)) === JSON.stringify(contents);
  });

/** Conversations of one user, each in a tab of its own, and a worker. All are closed after the test. */
async function withTabs(
  env: Environment,
  test: (scene: {
    tab: (client?: Sessiond) => Conversation;
    worker: Sessiond;
    user: [string, string];
  }) => Promise<void>,
) {
  const user: [string, string] = ["B21", unique("user")];
  const open: (() => void)[] = [];
  const tab = (client = serverClient(env)) => {
    const chat = client.conversation(...user, { sessionType: "support" });
    open.push(chat.subscribe(() => {}));
    return chat;
  };
  try {
    await test({ tab, worker: serverClient(env), user });
  } finally {
    for (const close of open) close();
  }
}

/** A source whose texts the test writes. */
function dictation() {
  const texts: string[] = [];
  let next = latch();
  let isOver = false;
  return {
    say(text: string) {
      texts.push(text);
      next.open();
    },
    end() {
      isOver = true;
      next.open();
    },
    async *source(_: Turn, signal: AbortSignal) {
      signal.addEventListener("abort", () => next.open());
      while (!signal.aborted) {
        yield* texts.splice(0);
        if (isOver) return;
        await next.opened;
        next = latch();
      }
    },
  };
}

export const conversationTests: Record<string, Test> = {
  async "a conversation is created by its first message, not by a visit"(env) {
    await withTabs(env, async ({ tab, worker, user }) => {
      const chat = tab();
      const { session, messages } = await isLive(chat);
      equal([session, messages, await worker.getUserSessionHistory(...user)], [null, [], []]);
      const message = await chat.send("When do you open?", { metadata: { page: "home" } });
      const state = await hasContents(chat, "When do you open?");
      equal([state.session?.sessionType, state.messages, state.unsent], ["support", [message], []]);
      equal([message.role, message.metadata], ["user", { page: "home" }]);
      equal((await worker.getUserSessionHistory(...user)).length, 1);

      // Another tab, and one after a reload.
      await hasContents(tab(), "When do you open?");
      await worker.appendMessages(message.sessionId, { role: "assistant", content: { text: "At nine." } });
      await hasContents(chat, "When do you open?", { text: "At nine." });
    });
  },

  async "a reply grows in every tab, and a reload during the reply keeps every word"(env) {
    await withTabs(env, async ({ tab, worker }) => {
      const first = tab();
      const { sessionId, messageId } = await first.send("Tell me a story");
      const story = dictation();
      const turn = worker.writeTurn(sessionId, story.source, { turnId: `re:${messageId}` });
      story.say("Once ");
      await until(first, "first word", ({ text }) => text === "Once ");
      const reloaded = tab();
      const { messages, turn: open } = await until(reloaded, "first word", ({ text }) => text === "Once ");
      equal([contentsOf(messages), open?.status], [["Tell me a story"], "open"]);
      story.say("upon ");
      story.say("a time.");
      for (const chat of [first, reloaded]) await until(chat, "text", ({ text }) => text === "Once upon a time.");
      // The message replaces the text in one step.
      const states: ConversationState[] = [];
      const unsubscribe = first.subscribe(() => states.push(first.getSnapshot()));
      story.end();
      await turn;
      for (const chat of [first, reloaded]) {
        const state = await hasContents(chat, "Tell me a story", "Once upon a time.");
        equal([state.turn, state.text, state.messages[1]?.finishReason], [null, "", "completed"]);
      }
      unsubscribe();
      const words = (state: ConversationState) => [...contentsOf(state.messages), state.text].join("");
      equal([...new Set(states.map(words))], ["Tell me a storyOnce upon a time."]);
    });
  },

  async "stop cancels the reply"(env) {
    await withTabs(env, async ({ tab, worker }) => {
      const chat = tab();
      await isLive(chat);
      equal(await chat.stop(), false);
      const { sessionId } = await chat.send("Count");
      const count = dictation();
      const turn = worker.writeTurn(sessionId, count.source);
      count.say("1 ");
      await until(chat, "text", ({ text }) => text === "1 ");
      equal(await chat.stop(), true);
      equal((await turn).status, "cancelled");
      const state = await hasContents(chat, "Count", "1 ");
      equal([state.messages[1]?.finishReason, state.turn, await chat.stop()], ["cancelled", null, false]);
    });
  },

  async "the text of a discarded turn is dropped, and that of a takeover is kept"(env) {
    await withTabs(env, async ({ tab, worker }) => {
      const chat = tab();
      const { sessionId } = await chat.send("?");
      const begin = async (turnId: string, writer: string, ifOpen: "discard" | "takeover" | "interrupt") =>
        (await worker.beginTurn(sessionId, { turnId, writer, ifOpen })).number!;
      const append = (turnId: string, number: number, from: number, text: string) =>
        worker.appendChunks(sessionId, turnId, { number, from, chunks: text.split(" ") });
      const shows = (text: string, turnId: string) =>
        until(chat, text, (state) => state.text === text && state.turn?.turnId === turnId);
      await append("a", await begin("a", "1", "discard"), 0, "one two");
      await shows("onetwo", "a");
      await append("a", await begin("a", "2", "takeover"), 2, "three");
      await shows("onetwothree", "a");
      const third = await begin("a", "3", "discard");
      await shows("", "a");
      await append("a", third, 0, "new");
      await shows("new", "a");
      await append("b", await begin("b", "4", "discard"), 0, "other");
      await shows("other", "b");
      await append("c", await begin("c", "5", "interrupt"), 0, "last");
      const state = await shows("last", "c");
      equal(contentsOf(state.messages), ["?", "other"]);
    });
  },

  async "older messages are read page by page"(env) {
    await withTabs(env, async ({ tab, worker, user: [businessId, userId] }) => {
      const { sessionId } = await worker.createSession({ businessId, userId });
      for (const from of [1, 61]) {
        const contents = Array.from({ length: 60 }, (_, i) => i + from);
        await worker.appendMessages(
          sessionId,
          contents.map((content) => ({ role: "user", content })),
        );
      }
      const chat = tab();
      const range = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => i + from);
      let state = await hasContents(chat, ...range(71, 120));
      equal(state.hasOlder, true);
      // Read once, although it is requested twice.
      await Promise.all([chat.loadOlder(), chat.loadOlder()]);
      equal(contentsOf(chat.getSnapshot().messages), range(21, 120));
      await worker.appendMessages(sessionId, { role: "user", content: 121 });
      await hasContents(chat, ...range(21, 121));
      await chat.loadOlder();
      await chat.loadOlder();
      state = chat.getSnapshot();
      equal([contentsOf(state.messages), state.hasOlder], [range(1, 121), false]);

      await worker.redactMessage(sessionId, state.messages[1]!.messageId);
      await until(chat, "redaction", ({ messages }) => messages[1]?.content === null);
      equal(contentsOf(chat.getSnapshot().messages).slice(2), range(3, 121));
    });
  },

  async "messages are sent in order, and a failed message can be sent again"(env) {
    await withTabs(env, async ({ tab }) => {
      let isDown = false;
      const chat = tab(
        serverClient(env, {
          maxRetries: 0,
          fetch: async (url, init) => {
            const { content } = JSON.parse((init.body as string) ?? "{}");
            return isDown && content === "b" ? problem(503, { code: "overloaded" }) : fetch(url, init);
          },
        }),
      );
      const all = ["1", "2", "3", "4", "5"].map((content) => chat.send(content));
      equal(
        chat.getSnapshot().unsent.map(({ content, error }) => [content, error]),
        ["1", "2", "3", "4", "5"].map((content) => [content, null]),
      );
      equal(
        (await Promise.all(all)).map(({ seq }) => seq),
        [1, 2, 3, 4, 5],
      );
      isDown = true;
      const sent = [chat.send("a"), caught(chat.send("b", { messageId: "b" })), chat.send("c")];
      const error = (await Promise.all(sent))[1] as unknown as { code: string };
      equal(error.code, "overloaded");
      const { unsent } = await hasContents(chat, "1", "2", "3", "4", "5", "a", "c");
      equal(
        unsent.map(({ messageId, content }) => [messageId, content]),
        [["b", "b"]],
      );
      equal(unsent[0]?.error === error, true);
      isDown = false;
      await chat.send("b", unsent[0]);
      equal((await hasContents(chat, "1", "2", "3", "4", "5", "a", "c", "b")).unsent, []);
    });
  },

  async "a new chat begins with its first message, in every tab, and does not stop a reply"(env) {
    await withTabs(env, async ({ tab, worker, user }) => {
      const chat = tab();
      const first = await chat.send("old");
      const other = tab();
      await hasContents(other, "old");
      const reply = dictation();
      const turn = worker.writeTurn(first.sessionId, reply.source);
      reply.say("still ");
      chat.newChat();
      const { session, messages } = await isLive(chat);
      equal([session, messages, (await worker.getUserSessionHistory(...user)).length], [null, [], 1]);
      await chat.send("new");
      for (const each of [chat, other])
        equal((await hasContents(each, "new")).session?.sessionId !== first.sessionId, true);
      reply.say("there");
      reply.end();
      equal([(await turn).status, (await worker.getUserSessionHistory(...user)).length], ["completed", 2]);
      equal((await worker.getMessage(first.sessionId, (await turn).turnId))?.content, "still there");
      // The key of a new chat is used once.
      const { sessionId } = await chat.send("more");
      await worker.endSession(sessionId);
      await until(chat, "end", ({ session }) => session?.status === "ended");
      await chat.send("newer");
      equal((await worker.getUserSessionHistory(...user)).length, 3);
    });
  },

  async "a tab without a session finds the session of another tab when it is focused"(env) {
    const page = pageOf(globalThis);
    try {
      await withTabs(env, async ({ tab }) => {
        const [chat, other] = [tab(), tab()];
        await Promise.all([isLive(chat), isLive(other)]);
        const { sessionId } = await chat.send("1");
        page.focus();
        equal((await hasContents(other, "1")).session?.sessionId, sessionId);
        // The tab that has begun a new chat shows it.
        other.newChat();
        await isLive(other);
        page.focus();
        await chat.send("2");
        equal(contentsOf((await isLive(other)).messages), []);
      });
      // The connections end soon after their last subscriber.
      for (let i = 0; i < 100 && page.listeners(); i++) await serverClient(env).livez();
      equal(page.listeners(), 0);
    } finally {
      page.restore();
    }
  },

  async "a message to a session that has ended or expired"(env) {
    await withTabs(env, async ({ tab, worker, user }) => {
      const chat = tab();
      const first = await chat.send("1");
      await worker.endSession(first.sessionId);
      await until(chat, "end", ({ session }) => session?.status === "ended");
      equal(contentsOf(chat.getSnapshot().messages), ["1"]);
      // It was ended by a client.
      const second = await chat.send("2");
      equal([second.seq, (await hasContents(chat, "2")).session?.sessionId], [1, second.sessionId]);
      await worker.deleteSession(second.sessionId);
      await until(chat, "deletion", ({ session, status }) => !session && status === "live");
      equal((await chat.send("3")).seq, 1);
      equal((await worker.getUserSessionHistory(...user)).length, 2);
    });

    // One that expired is resumed, unless there is another one.
    for (const isAnother of [false, true]) {
      await withTabs(env, async ({ tab, worker, user: [businessId, userId] }) => {
        let isExpired = false;
        const client = serverClient(env, {
          fetch: async (url, init) => {
            if (!isExpired) return fetch(url, init);
            const isFirst = url.includes(`/${first.sessionId}`);
            if (isFirst && url.endsWith("/messages") && init.method === "POST") {
              return problem(409, { code: "session_not_active" });
            }
            const response = await fetch(url, init);
            if (init.method === "PATCH") isExpired = false;
            if (!isFirst || init.method !== "GET" || !url.endsWith(first.sessionId)) return response;
            return Response.json({ ...(await response.json()), status: "expired", endReason: "idle" });
          },
        });
        const chat = tab(client);
        const first = await chat.send("1");
        await hasContents(chat, "1");
        if (isAnother) {
          const { sessionId } = await worker.createSession({ businessId, userId, ifActive: "replace" });
          await worker.appendMessages(sessionId, { role: "user", content: "other" });
        }
        isExpired = true;
        const second = await chat.send("2");
        await hasContents(chat, ...(isAnother ? ["other", "2"] : ["1", "2"]));
        equal(second.sessionId === first.sessionId, !isAnother);
      });
    }
  },

  async "a snapshot changes only when the state does, and a conversation is connected while it has subscribers"(env) {
    await withTabs(env, async ({ worker, user }) => {
      let requests = 0;
      const signals: AbortSignal[] = [];
      const client = serverClient(env, {
        fetch: (url, init) => {
          requests++;
          signals.push(init.signal!);
          return fetch(url, init);
        },
      });
      const { subscribe, getSnapshot, send, stop } = client.conversation(...user);
      equal([getSnapshot() === getSnapshot(), requests], [true, 0]);
      const chat = { subscribe, getSnapshot } as Conversation;
      const one = subscribe(() => {});
      const two = subscribe(() => {});
      await isLive(chat);
      const live = getSnapshot();
      equal(getSnapshot() === live, true);
      one();
      one();
      await send("1");
      await hasContents(chat, "1");
      equal([getSnapshot() === live, await stop(), live.messages], [false, false, []]);
      two();
      equal(getSnapshot().status, "connecting");
      const { sessionId } = getSnapshot().session!;
      await worker.appendMessages(sessionId, { role: "user", content: "2" });
      const before = requests;
      equal(contentsOf(getSnapshot().messages), ["1"]);

      // It continues from its position, with one request.
      const three = subscribe(() => {});
      await hasContents(chat, "1", "2");
      equal(requests, before + 1);
      three();
      // React does this in development.
      subscribe(() => {})();
      await worker.appendMessages(sessionId, { role: "user", content: "3" });
      const four = subscribe(() => {});
      await hasContents(chat, "1", "2", "3");
      four();
    });
  },

  async "a reset lists the messages again"(env) {
    await withTabs(env, async ({ tab, worker, user: [businessId, userId] }) => {
      const { sessionId } = await worker.createSession({ businessId, userId });
      await worker.appendMessages(
        sessionId,
        [1, 2, 3].map((content) => ({ role: "user", content })),
      );
      const stored = await worker.getSessionMessages(sessionId);
      const event = (type: string, data: unknown, id = "") =>
        `event: ${type}\nid: ${id}\ndata: ${JSON.stringify(data)}\n\n`;
      const session = await worker.getSession(sessionId);
      const turn = { turnId: "t", sessionId, number: 1, status: "open", nextChunk: 0 };
      const reset = latch();
      const encoder = new TextEncoder();
      const client = serverClient(env, {
        fetch: async (url, init) => {
          if (!url.includes("/events")) return fetch(url, init);
          const body = new ReadableStream<Uint8Array>({
            async start(controller) {
              const send = (...events: string[]) => controller.enqueue(encoder.encode(events.join("")));
              // Messages that the service no longer has, a missing message, and a text of another turn.
              send(event("session", session), event("message", { ...stored[0], content: "wrong" }));
              send(event("turn", turn), event("chunk", { turnId: "t", number: 1, from: 0, chunks: ["wrong"] }));
              send(event("ready", {}));
              await reset.opened;
              send(event("reset", { reason: "diverged" }), event("session", session), event("message", stored[2]));
              send(event("turn", turn), event("chunk", { turnId: "t", number: 1, from: 0, chunks: ["right"] }));
              send(event("ready", {}));
            },
          });
          return new Response(body);
        },
      });
      const chat = tab(client);
      equal((await hasContents(chat, "wrong")).text, "wrong");
      const states: unknown[] = [];
      const note = () => states.push([contentsOf(chat.getSnapshot().messages), chat.getSnapshot().text]);
      const unsubscribe = chat.subscribe(note);
      reset.open();
      await hasContents(chat, 1, 2, 3);
      unsubscribe();
      equal(states, [[[1, 2, 3], "right"]]);
    });
  },

  async "messages that are missing are read"(env) {
    await withTabs(env, async ({ tab, worker, user: [businessId, userId] }) => {
      const { sessionId } = await worker.createSession({ businessId, userId });
      await worker.appendMessages(
        sessionId,
        [1, 2, 3, 4].map((content) => ({ role: "user", content })),
      );
      const client = serverClient(env, {
        fetch: async (url, init) => {
          if (!url.includes("/events")) return fetch(url, init);
          const [first, , third, fourth] = await worker.getSessionMessages(sessionId);
          const events = [first, third, fourth].map(
            (message) => `event: message\ndata: ${JSON.stringify(message)}\n\n`,
          );
          return new Response(`${events.join("")}event: ready\ndata: {}\n\n`);
        },
      });
      await hasContents(tab(client), 1, 2, 3, 4);
    });
  },

  async "a rejected conversation has the status failed, and reconnects on request"(env) {
    await withTabs(env, async ({ tab, worker, user: [businessId, userId] }) => {
      let token = "no-token";
      const chat = tab(serverClient(env, { token: () => token }));
      const { error } = await until(chat, "failure", ({ status }) => status === "failed");
      equal((error as { code: string }).code, "unauthorized");
      await rejects(chat.send("1"), "unauthorized");
      token = env.apiKey;
      await worker.createSession({ businessId, userId });
      chat.reconnect();
      await isLive(chat);
      equal([(await chat.send("2")).seq, chat.getSnapshot().error], [1, null]);
    });
  },

  async "a conversation shows a lost connection, and catches up in one step"(env) {
    await withTabs(env, async ({ tab, worker }) => {
      const cuts: (() => void)[] = [];
      let isDown = false;
      const client = serverClient(env, {
        fetch: async (url, init) => {
          if (isDown) throw new TypeError("fetch failed");
          if (!url.includes("/events")) return fetch(url, init);
          const cut = new AbortController();
          cuts.push(() => cut.abort());
          init.signal?.addEventListener("abort", () => cut.abort());
          return fetch(url, { ...init, signal: cut.signal });
        },
      });
      const chat = tab(client);
      const { sessionId } = await chat.send("1");
      await hasContents(chat, "1");
      isDown = true;
      for (const cut of cuts) cut();
      const lost = await until(chat, "loss", ({ status }) => status === "connecting");
      equal([contentsOf(lost.messages), (lost.error as Error).name], [["1"], "ConnectionError"]);
      await worker.appendMessages(
        sessionId,
        [2, 3, 4].map((content) => ({ role: "user", content })),
      );
      const lengths: number[] = [];
      const unsubscribe = chat.subscribe(() => lengths.push(chat.getSnapshot().messages.length));
      isDown = false;
      await hasContents(chat, "1", 2, 3, 4);
      unsubscribe();
      equal(
        lengths.filter((length) => length !== 1),
        [4],
      );
    });
  },
};
