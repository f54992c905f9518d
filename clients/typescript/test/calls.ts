// The methods of the client that call one operation each.

import type { operations } from "../generated/openapi.js";
import {
  isProblem,
  isSessiondError,
  Sessiond,
  type ExportLine,
  type Message,
  type ProblemCode,
  type Retry,
  type Session,
  type Turn,
} from "../src/index.js";
import {
  caught,
  collect,
  concurrently,
  equal,
  first,
  idsOf,
  listenersOf,
  problem,
  rejects,
  scripted,
  seqsOf,
  serverClient,
  streamed,
  unique,
  userClient,
  type Environment,
  type Test,
} from "./support.js";

/** Whether a call is repeated after a response with this code. A test compares the codes with those of openapi.json. */
const REPEATED: Record<ProblemCode, boolean> = {
  invalid_request: false,
  unauthorized: false,
  forbidden: false,
  session_not_found: false,
  no_active_session: false,
  message_not_found: false,
  turn_not_found: false,
  route_not_found: false,
  method_not_allowed: false,
  request_timeout: true,
  session_not_active: false,
  another_session_active: false,
  message_id_conflict: false,
  turn_open: false,
  turn_closed: false,
  chunk_gap: false,
  chunk_conflict: false,
  concurrent_update: true,
  version_mismatch: false,
  payload_too_large: false,
  uri_too_long: false,
  headers_too_large: false,
  unsupported_media_type: false,
  rate_limited: true,
  internal: false,
  overloaded: true,
  store_unavailable: true,
  store_full: true,
  store_busy: true,
  clock_skew: true,
};

/** The status of the codes that are repeated; for any other, a status that is not. */
const STATUS: Partial<Record<ProblemCode, number>> = {
  request_timeout: 408,
  concurrent_update: 409,
  rate_limited: 429,
  internal: 500,
  overloaded: 503,
  store_unavailable: 503,
  store_full: 503,
  store_busy: 503,
  clock_skew: 503,
};

interface Subject {
  client: Sessiond;
  session: Session;
  message: Message;
  turn: Turn;
}

/** A call of each operation of openapi.json. */
const OPERATIONS: Record<keyof operations, (subject: Subject) => PromiseLike<unknown>> = {
  getOrCreateSession: ({ client, session: { businessId, userId } }) => client.createSession({ businessId, userId }),
  getActiveSession: ({ client, session }) => client.getActiveSessionForUser(session.businessId, session.userId),
  listSessionHistory: ({ client, session }) => client.getUserSessionHistory(session.businessId, session.userId),
  listActiveSessions: ({ client, session }) => client.getActiveSessionsForBusiness(session.businessId),
  getSession: ({ client, session }) => client.getSession(session.sessionId),
  updateSession: ({ client, session }) => client.updateSession(session.sessionId, { title: "Opening hours" }),
  deleteSession: ({ client, session }) => client.deleteSession(session.sessionId),
  listMessages: ({ client, session }) => client.getSessionMessages(session.sessionId),
  appendMessages: ({ client, session }) => client.appendMessages(session.sessionId, { role: "user", content: "Hi" }),
  getMessage: ({ client, message }) => client.getMessage(message.sessionId, message.messageId),
  updateMessage: ({ client, message }) =>
    client.updateMessage(message.sessionId, message.messageId, { metadata: { feedback: "good" } }),
  redactMessage: ({ client, message }) => client.redactMessage(message.sessionId, message.messageId),
  beginTurn: ({ client, turn: { sessionId, turnId, writer } }) =>
    client.beginTurn(sessionId, { turnId, writer: writer! }),
  getTurn: ({ client, turn }) => client.getTurn(turn.sessionId, turn.turnId),
  appendChunks: ({ client, turn }) =>
    client.appendChunks(turn.sessionId, turn.turnId, { number: turn.number!, from: 0, chunks: ["Hi"] }),
  endTurn: ({ client, turn }) =>
    client.endTurn(turn.sessionId, turn.turnId, { number: turn.number!, status: "completed" }),
  cancelTurn: ({ client, turn }) => client.cancelTurn(turn.sessionId, turn.turnId),
  sessionEvents: ({ client, session }) => first(client.events(session.sessionId)),
  businessEvents: ({ client, session }) => first(client.businessEvents(session.businessId)),
  exportUser: ({ client, session }) => collect(client.exportUser(session.businessId, session.userId)),
  eraseUser: ({ client, session }) => client.eraseUser(session.businessId, session.userId),
  whoami: ({ client }) => client.whoami(),
  livez: ({ client }) => client.livez(),
  readyz: ({ client }) => client.readyz(),
  openapi: ({ client }) => client.openapi(),
  docs: ({ client }) => client.docs(),
};

interface Document {
  paths: Record<string, Record<string, { operationId: string }>>;
  components: { schemas: { Problem: { properties: { code: { enum: string[] } } } } };
}

export const callTests: Record<string, Test> = {
  async "the flow of a page, with the six methods"(env) {
    const client = serverClient(env);
    const [businessId, userId] = ["B0100001", unique("user")];
    equal(await client.getActiveSessionForUser(businessId, userId), null);
    const created = await client.createSession({ businessId, userId, locationId: "L001", sessionType: "general" });
    equal(
      [created.businessId, created.userId, created.locationId, created.sessionType, created.status],
      [businessId, userId, "L001", "general", "active"],
    );
    equal(await client.createSession({ businessId, userId, locationId: "L001", sessionType: "general" }), created);
    equal(await client.getActiveSessionForUser(businessId, userId), created);
    equal(await client.getSession(created.sessionId), created);
    equal(await client.getSessionMessages(created.sessionId), []);
    equal(await client.getUserSessionHistory(businessId, userId), [created]);
    const active = await client.getActiveSessionsForBusiness(businessId, { limit: 100 });
    equal(
      active.filter((session) => session.userId === userId),
      [created],
    );
  },

  async "each operation of the document has a method, which calls it"(env) {
    const { paths } = await document(env);
    const documented = Object.values(paths).flatMap((path) =>
      Object.values(path).map(({ operationId }) => operationId),
    );
    equal(
      documented.filter((id) => !(id in OPERATIONS)),
      [],
      "operations without a method",
    );
    equal(
      Object.keys(OPERATIONS).filter((id) => !documented.includes(id)),
      [],
      "methods without an operation",
    );

    let called: string[] = [];
    const client = serverClient(env, {
      fetch: (url, init) => {
        called.push(operationOf(paths, url.slice(env.service.length), init.method!));
        return fetch(url, init);
      },
    });
    for (const [operation, call] of Object.entries(OPERATIONS)) {
      const session = await client.createSession({ businessId: "B2", userId: unique("user") });
      const message = await client.appendMessages(session.sessionId, { role: "user", content: "Hello" });
      const turn = await client.beginTurn(session.sessionId, { turnId: "re:1", writer: "worker" });
      called = [];
      await call({ client, session, message, turn });
      equal(called, [operation]);
    }
  },

  async "a session is changed, ended, resumed and deleted"(env) {
    const client = serverClient(env);
    const user = { businessId: "B3", userId: unique("user") };
    const first = await client.createSession({ ...user, metadata: { a: 1, b: 2 } });
    const changed = await client.updateSession(first.sessionId, { title: "Hours", metadata: { a: null } });
    equal([changed.title, changed.metadata, changed.version], ["Hours", { b: 2 }, 2]);
    await rejects(client.updateSession(first.sessionId, { title: "No" }, { ifVersion: 1 }), "version_mismatch");
    equal((await client.updateSession(first.sessionId, { title: null }, { ifVersion: 2 })).title, null);
    equal((await client.heartbeat(first.sessionId)).status, "active");
    equal((await client.endSession(first.sessionId)).endReason, "client");

    const second = await client.createSession(user);
    const conflict = await rejects(client.resumeSession(first.sessionId), "another_session_active");
    equal(conflict.problem.activeSessionId, second.sessionId);
    equal((await client.resumeSession(first.sessionId, { ifActive: "replace" })).status, "active");
    equal((await client.getSession(second.sessionId))?.endReason, "replaced");

    await rejects(client.deleteSession(first.sessionId, { ifVersion: 1 }), "version_mismatch");
    equal(await client.deleteSession(first.sessionId), true);
    equal(await client.deleteSession(first.sessionId), false);
    equal(await client.getSession(first.sessionId), null);
    equal(await client.eraseUser(user.businessId, user.userId), { deletedSessions: 1 });
  },

  async "one message is read, changed and redacted"(env) {
    const client = serverClient(env);
    const { sessionId } = await client.createSession({ businessId: "B4", userId: unique("user") });
    const [question] = await client.appendMessages(sessionId, [
      { messageId: "m/1?", role: "user", content: { text: "When?" } },
      { role: "assistant", content: ["At", 9] },
    ]);
    equal(await client.getMessage(sessionId, "m/1?"), question);
    equal((await client.updateMessage(sessionId, "m/1?", { metadata: { feedback: "good" } })).metadata, {
      feedback: "good",
    });
    equal(await client.redactMessage(sessionId, "m/1?"), true);
    equal((await client.getMessage(sessionId, "m/1?"))?.content, null);
    equal(await client.getMessage(sessionId, "m-2"), null);
    equal(await client.redactMessage(sessionId, "m-2"), false);
    equal(await client.getMessage("00000000-0000-8000-8000-000000000000", "m-1"), null);
    const { lastMessage } = (await client.getSession(sessionId, { include: "lastMessage" }))!;
    equal(lastMessage?.content, ["At", 9]);
  },

  async "a turn is begun, written, read and ended"(env) {
    const client = serverClient(env);
    const user = { businessId: "B0100001", userId: "user_123" };
    const { sessionId } = await client.createSession({ ...user, ifActive: "replace" });
    equal(await client.getTurn(sessionId, "latest"), null);
    equal(await client.getTurn("00000000-0000-8000-8000-000000000000", "latest"), null);
    const [turnId, writer] = ["re:m/1", "worker-1"];
    const begun = await client.beginTurn(sessionId, { turnId, writer, metadata: { model: "m" } });
    equal([begun.status, begun.role, begun.nextChunk], ["open", "assistant", 0]);
    // Renews the lease.
    const again = await client.beginTurn(sessionId, { turnId, writer });
    equal([again.number, again.metadata], [begun.number, begun.metadata]);
    const open = await rejects(client.beginTurn(sessionId, { turnId: "re:m-2", writer }), "turn_open");
    equal([open.problem.openTurnId, open.problem.leaseUntil], [turnId, again.leaseUntil]);

    const number = begun.number!;
    const append = (from: number, ...chunks: string[]) =>
      client.appendChunks(sessionId, turnId, { number, from, chunks });
    equal((await append(0, "At ", "nine")).nextChunk, 2);
    equal((await append(1, "nine", ".")).nextChunk, 3);
    equal((await rejects(append(4, "?"), "chunk_gap")).problem.nextChunk, 3);
    await rejects(append(2, "!"), "chunk_conflict");
    equal((await client.getTurn(sessionId, turnId))?.chunks, ["At ", "nine", "."]);
    equal((await client.getTurn(sessionId, "latest", { from: 2 }))?.chunks, ["."]);
    const included = (await client.getSession(sessionId, { include: ["turn", "lastMessage"] }))!;
    equal([included.turn?.turnId, included.lastMessage], [turnId, null]);

    // By a reader.
    equal((await userClient(env).cancelTurn(sessionId, turnId)).cancelRequested, true);
    await rejects(userClient(env).beginTurn(sessionId, { turnId, writer }), "forbidden");
    equal((await append(3)).cancelRequested, true);

    const second = await client.beginTurn(sessionId, { turnId, writer: "worker-2", ifOpen: "takeover" });
    equal((await rejects(append(3, "!"), "turn_closed")).problem.turnStatus, "taken");
    const end = { number: second.number!, status: "completed", metadata: { tokens: 3 } } as const;
    const ended = await client.endTurn(sessionId, turnId, end);
    equal([ended.status, ended.messageSeq, ended.metadata], ["cancelled", 1, { model: "m", tokens: 3 }]);
    equal((await rejects(client.cancelTurn(sessionId, turnId), "turn_closed")).problem.turnStatus, "cancelled");
    const message = (await client.getMessage(sessionId, turnId))!;
    equal([message.content, message.role, message.finishReason], ["At nine.", "assistant", "cancelled"]);
    equal((await client.getSession(sessionId, { include: "turn" }))?.turn, null);
  },

  async "an export has every session and message, in order"(env) {
    const client = serverClient(env);
    const user = { businessId: "B10", userId: unique("user") };
    equal(await collect(client.exportUser(user.businessId, user.userId)), []);
    const expected: ExportLine[] = [];
    // More than a page of sessions and of messages; characters of several bytes.
    for (const messages of [0, 2, 250, ...Array(20).fill(0)]) {
      const { sessionId } = await client.createSession({ ...user, ifActive: "replace" });
      expected.push({ session: { sessionId } as Session });
      for (let i = 0; i < messages; i += 50) {
        const contents = Array.from({ length: Math.min(50, messages - i) }, (_, j) => `💬 ${i + j}\n`);
        const appended = await client.appendMessages(
          sessionId,
          contents.map((content) => ({ role: "user", content })),
        );
        expected.push(...appended.map((message) => ({ message })));
      }
    }
    const lines = await collect(client.exportUser(user.businessId, user.userId));
    equal(
      lines.map((line) => ("session" in line ? { session: { sessionId: line.session.sessionId } } : line)),
      expected,
    );
  },

  async "an export is read line by line, while it arrives"(env) {
    const lines = [{ session: { title: "é💬" } }, { message: { content: "a\nb" } }, { message: { content: [] } }];
    const bytes = new TextEncoder().encode(lines.map((line) => `${JSON.stringify(line)}\n`).join(""));
    // One byte at a time.
    const slow = streamed(env, function* () {
      for (let i = 0; i < bytes.length; i++) yield bytes.slice(i, i + 1);
    });
    equal(await collect(slow.client.exportUser("b", "u")), lines);

    // The stream does not end.
    for (const wanted of [1, 4]) {
      const endless = streamed(env, function* () {
        for (;;) yield bytes;
      });
      let read = 0;
      for await (const _ of endless.client.exportUser("b", "u")) if (++read === wanted) break;
      equal([read, endless.count(), endless.cancelled()], [wanted, 1, 1]);
    }
  },

  async "an export that is cut is an error, and repeated only before its first line"(env) {
    const direct = serverClient(env);
    const user = { businessId: "B11", userId: unique("user") };
    const { sessionId } = await direct.createSession(user);
    await direct.appendMessages(
      sessionId,
      Array.from({ length: 100 }, (_, content) => ({ role: "user", content })),
    );
    const whole = await collect(direct.exportUser(user.businessId, user.userId));
    for (const [mode, name] of [
      ["cut-in-body", "ConnectionError"],
      ["hang-in-body", "TimeoutError"],
    ] as const) {
      let retries = 0;
      const onRetry = () => void retries++;
      const client = serverClient(env, { baseUrl: `${env.proxy}/${mode}`, timeoutMs: 500, onRetry });
      const lines: ExportLine[] = [];
      const error = await caught(collect(client.exportUser(user.businessId, user.userId), lines));
      equal([error.name, retries, lines.length > 10, lines.length < 90], [name, 0, true, true], String(error));
      equal(lines, whole.slice(0, lines.length));
    }
    const lost = serverClient(env, { baseUrl: `${env.proxy}/lost` });
    equal(await collect(lost.exportUser(user.businessId, user.userId)), whole);

    // The connection ends without an error.
    for (const [text, lines, attempts] of [
      ['{"session":', 0, 3],
      ["<html>\n</html>\n", 0, 3],
      ['{"session":{}}\n{"mess', 1, 1],
    ] as const) {
      const { client, count } = scripted(env, Infinity, () => new Response(text));
      const read: ExportLine[] = [];
      equal((await caught(collect(client.exportUser("b", "u"), read)))?.name, "ConnectionError");
      equal([read.length, count()], [lines, attempts]);
    }
  },

  async "a timeout and a signal apply to each part of an export"(env) {
    const line = new TextEncoder().encode('{"session":{}}\n');
    // Longer than the timeout as a whole.
    const slow = streamed(env, function* () {
      for (let i = 0; i < 8; i++) yield new Promise<Uint8Array>((resolve) => setTimeout(resolve, 25, line));
    });
    equal((await collect(slow.client.exportUser("b", "u", { timeoutMs: 100 }))).length, 8);

    const silent = () =>
      streamed(env, function* () {
        yield line;
        yield new Promise<never>(() => {});
      });
    const hanging = silent();
    const error = await caught(collect(hanging.client.exportUser("b", "u", { timeoutMs: 20 })));
    equal([error.name, hanging.count(), hanging.cancelled()], ["TimeoutError", 1, 1]);
    for (const abortFirst of [false, true]) {
      const controller = new AbortController();
      const aborted = silent();
      const lines = aborted.client.exportUser("b", "u", { signal: controller.signal });
      equal((await lines.next()).done, false);
      if (abortFirst) controller.abort("stop");
      const next = caught(lines.next());
      controller.abort("stop");
      equal([await next, aborted.cancelled()], ["stop", 1]);
    }
  },

  async "ids with any characters are encoded"(env) {
    const client = serverClient(env);
    const ids = [
      "a b",
      "a/b",
      "../x",
      "...",
      "%2e%2e",
      "jane@example.com",
      "auth0|123",
      "urn:x:y",
      "{}",
      "a?b#c",
      "💬",
    ];
    for (const userId of ids) {
      const created = await client.createSession({ businessId: "B/5", userId });
      equal(await client.getActiveSessionForUser("B/5", userId), created);
      equal(await client.getUserSessionHistory("B/5", userId), [created]);
      await client.appendMessages(created.sessionId, { messageId: userId, role: "user", content: 1 });
      equal((await client.getMessage(created.sessionId, userId))?.messageId, userId);
    }
    equal((await client.getActiveSessionsForBusiness("B/5")).length, ids.length);
  },

  async "ids that a URL library rewrites are rejected before they are sent"(env) {
    const client = serverClient(env, { fetch: () => Promise.reject(new Error("was sent")) });
    for (const id of ["", ".", "..", "\ud800", undefined as unknown as string]) {
      const calls = [
        client.getSession(id),
        client.getActiveSessionForUser("B1", id),
        client.getUserSessionHistory(id, "u"),
        client.getSessionMessages(id).pages().next(),
        client.redactMessage("s", id),
        client.eraseUser("B1", id),
        client.getTurn("s", id),
        client.exportUser("B1", id).next(),
      ];
      for (const call of calls) {
        const error = await caught(call);
        equal([isSessiondError(error), (error as Error).name], [true, "SessiondError"], String(error));
      }
    }
  },

  async "the base of the URLs is an origin or a path"(env) {
    const sent: string[] = [];
    const record = async (url: string) => (sent.push(url), new Response("{}"));
    for (const baseUrl of ["https://h", "https://h/", new URL("https://h/p/"), "/", "/p/"]) {
      await serverClient(env, { baseUrl, fetch: record }).livez();
    }
    equal(sent, ["https://h/livez", "https://h/livez", "https://h/p/livez", "/livez", "/p/livez"]);
    const missing = await caught(Promise.resolve().then(() => new Sessiond({ baseUrl: undefined as unknown as URL })));
    equal(missing.message, "baseUrl is missing");
  },

  async "a list is read as an array, page by page and item by item"(env) {
    // Through the proxy: the links of the service lack its path.
    for (const client of [serverClient(env), serverClient(env, { baseUrl: `${env.proxy}/pass/` })]) {
      const user = { businessId: unique("business"), userId: "u/1" };
      const ids: string[] = [];
      for (let i = 0; i < 5; i++) {
        ids.unshift((await client.createSession({ ...user, ifActive: "replace" })).sessionId);
      }
      const history = () => client.getUserSessionHistory(user.businessId, user.userId, { limit: 2 });
      equal(idsOf(await history()), ids.slice(0, 2));
      equal(idsOf(await collect(history())), ids);
      const pages = await collect(history().pages());
      equal(
        pages.map(({ items }) => idsOf(items)),
        [ids.slice(0, 2), ids.slice(2, 4), ids.slice(4)],
      );
      equal(
        pages.map(({ next }) => next !== null),
        [true, true, false],
      );
      const second = await client.getUserSessionHistory(user.businessId, user.userId, pages[0]!.next!);
      equal(idsOf(second), ids.slice(2, 4));

      const active = await client.getActiveSessionsForBusiness(user.businessId).pages().next();
      equal(active.value?.totalCount, 1);
      const last = await client.getUserSessionHistory(user.businessId, user.userId, {
        include: "lastMessage",
        limit: 1,
      });
      equal(last[0]!.lastMessage, null);

      const sessionId = ids[0]!;
      const all = [1, 2, 3, 4, 5];
      await client.appendMessages(
        sessionId,
        all.map((content) => ({ role: "user", content })),
      );
      const messages = (options = {}) => client.getSessionMessages(sessionId, { limit: 2, ...options });
      equal(seqsOf(await messages()), [4, 5]);
      equal(seqsOf(await messages({ before: 3 })), [1, 2]);
      equal(seqsOf(await messages({ after: 1 })), [2, 3]);
      equal(seqsOf(await collect(messages())), all);
      equal(seqsOf(await collect(messages({ before: 4 }))), [1, 2, 3]);
      equal(seqsOf(await collect(messages({ after: 2 }))), [3, 4, 5]);
      equal(
        (await collect(messages().pages())).map(({ items }) => seqsOf(items)),
        [[4, 5], [2, 3], [1]],
      );
      equal(
        (await collect(messages({ after: 0 }).pages())).map(({ items }) => seqsOf(items)),
        [[1, 2], [3, 4], [5]],
      );
    }
  },

  async "a pager sends nothing before it is used, and its first page once"(env) {
    let sent = 0;
    const client = serverClient(env, { fetch: (url, init) => (sent++, fetch(url, init)) });
    const pager = client.getUserSessionHistory("B6", unique("user"));
    equal(sent, 0);
    equal([await pager, await pager, await pager.finally(() => {})], [[], [], []]);
    equal(sent, 1);
    const missing = client.getSessionMessages("no-session");
    equal(await missing.catch((error) => isProblem(error, "session_not_found")), true);
  },

  async "errors describe the failure, and their codes are those of the document"(env) {
    const { components } = await document(env);
    const codes = components.schemas.Problem.properties.code.enum;
    equal(
      codes.filter((code) => !(code in REPEATED)),
      [],
      "codes without a type",
    );
    equal(
      Object.keys(REPEATED).filter((code) => !codes.includes(code)),
      [],
      "codes that the document lacks",
    );

    const client = serverClient(env);
    const invalid = await rejects(client.createSession({ businessId: "", userId: "u" }), "invalid_request");
    equal([invalid.status, invalid.errors.map(({ field }) => field)], [400, ["businessId"]]);
    equal([typeof invalid.requestId, invalid.detail.includes("businessId")], ["string", true]);
    const anonymous = serverClient(env, { token: undefined });
    const unauthorized = await rejects(anonymous.whoami(), "unauthorized");
    equal([unauthorized.status, unauthorized.retryAfterMs], [401, null]);
    equal(await caught(client.getSession("no/session")), undefined);
    await rejects(userClient(env).getUserSessionHistory("B1", "u"), "forbidden");
    await rejects(serverClient(env, { baseUrl: `${env.service}/api` }).whoami(), "route_not_found");
    // Not null: this is not the service's "there is none".
    await rejects(serverClient(env, { baseUrl: `${env.service}/x` }).getSession("id"), "route_not_found");
  },

  async "calls are repeated depending on the error code"(env) {
    for (const [code, repeated] of Object.entries(REPEATED)) {
      const status = STATUS[code as ProblemCode] ?? 400;
      const { client, count } = scripted(env, Infinity, () => problem(status, { code, detail: "no" }));
      const error = await rejects(client.whoami(), code as ProblemCode);
      equal([code, count(), error.status, error.detail], [code, repeated ? 3 : 1, status, "no"]);
    }
  },

  async "unknown codes and members are passed on"(env) {
    const { client } = scripted(env, Infinity, () => problem(409, { code: "new_code", detail: "new", hint: 7 }));
    const error = await rejects(client.whoami(), "new_code");
    equal([error.problem.hint, isProblem(error), isProblem(error, "forbidden")], [7, true, false]);
    const other = scripted(env, Infinity, () => new Response('{"sessionId":"s","new":[1]}'));
    equal(await other.client.getSession("s"), { sessionId: "s", new: [1] });
  },

  async "the HTML of a proxy is not a parse error"(env) {
    const client = (mode: string) => serverClient(env, { baseUrl: `${env.proxy}/${mode}` });
    const error = await caught(client("html").getSession("id"));
    if (!isProblem(error)) throw error;
    equal([error.status, error.code, error.detail, error.problem], [502, null, "text/html of another server", {}]);
    equal((await caught(client("html200").getSession("id"))).name, "ConnectionError");
    equal((await caught(client("cut").getSession("id"))).name, "ConnectionError");
    // The status is 0 in browsers.
    const redirect = await caught(client("redirect").getSession("id"));
    equal([isProblem(redirect), redirect.detail], [true, "a redirect, which the client does not follow"]);
  },

  async "an attempt ends at its timeout"(env) {
    const retries: Retry[] = [];
    const options = {
      baseUrl: `${env.proxy}/hang`,
      timeoutMs: 20,
      onRetry: (retry: Retry) => void retries.push(retry),
    };
    const error = await caught(serverClient(env, options).getSession("id"));
    equal([error.name, isSessiondError(error)], ["TimeoutError", true]);
    equal(
      retries.map(({ method, path, retry, error }) => [method, path, retry, error.name]),
      [
        ["GET", "/api/sessions/id", 1, "TimeoutError"],
        ["GET", "/api/sessions/id", 2, "TimeoutError"],
      ],
    );
    equal(
      retries.every(({ retry, delayMs }) => delayMs >= 0 && delayMs < 100 * 2 ** (retry - 1)),
      true,
    );
    // The same for a `fetch` that ignores its signal, and for a token that never resolves.
    const never = () => new Promise<never>(() => {});
    const once = { maxRetries: 0, timeoutMs: 20 };
    const signals: AbortSignal[] = [];
    const ignore = (_: string, init: RequestInit) => (signals.push(init.signal!), never());
    equal((await caught(serverClient(env, { ...once, fetch: ignore }).whoami())).name, "TimeoutError");
    equal(
      signals.map(({ aborted }) => aborted),
      [true],
    );
    equal((await caught(serverClient(env, { ...once, token: never }).whoami())).name, "TimeoutError");
    const slow = serverClient(env, { ...once, fetch: never }).whoami({ timeoutMs: Infinity });
    equal(await Promise.race([slow, serverClient(env).livez()]), { status: "alive" });
  },

  async "a signal aborts a call, and keeps no listener"(env) {
    const aborted = new AbortController();
    aborted.abort("over");
    equal(await caught(serverClient(env).whoami({ signal: aborted.signal })), "over");
    for (const mode of ["hang", "html"]) {
      // While an attempt runs, and while the client waits to repeat it.
      const controller = new AbortController();
      const client = serverClient(env, { baseUrl: `${env.proxy}/${mode}`, maxRetries: 1000 });
      const call = caught(client.whoami({ signal: controller.signal }));
      await serverClient(env).livez();
      controller.abort("stop");
      equal(await call, "stop");
    }

    const { signal } = new AbortController();
    const listeners = listenersOf(signal);
    // One call in 20 goes over the network, and one in 100 fails, is repeated or times out.
    const local = serverClient(env, { fetch: async () => new Response("{}") });
    const client = serverClient(env);
    const failing = serverClient(env, { baseUrl: `${env.proxy}/html`, maxRetries: 1 });
    const hanging = serverClient(env, { baseUrl: `${env.proxy}/hang`, maxRetries: 0, timeoutMs: 5 });
    await concurrently(20, 10_000, async (i) => {
      if (i % 200 === 0) await caught(failing.livez({ signal }));
      else if (i % 200 === 100) await caught(hanging.livez({ signal }));
      else await (i % 20 === 0 ? client : local).livez({ signal });
    });
    equal([listeners.size, listeners.most], [0, 1]);
  },

  async "the token is requested for each attempt"(env) {
    const sent: (string | null)[] = [];
    let asked = 0;
    const client = serverClient(env, {
      token: async () => `token-${++asked}`,
      headers: { "X-App": "app", "X-Both": "client" },
      fetch: async (_, init) => {
        const headers = new Headers(init.headers);
        sent.push(["Authorization", "X-App", "X-Both"].map((name) => headers.get(name)).join());
        return problem(503, {});
      },
    });
    await caught(client.whoami({ headers: { "X-Both": "call" } }));
    equal(
      sent,
      [1, 2, 3].map((i) => `Bearer token-${i},app,call`),
    );
    const failing = serverClient(env, { token: () => Promise.reject(new Error("signed out")) });
    equal((await caught(failing.whoami())).message, "signed out");
    equal((await userClient(env).whoami()).userId, "user_123");
  },

  async "Retry-After is respected"(env) {
    const waits: number[] = [];
    const respond = (retryAfter: string) => () => problem(503, {}, { "Retry-After": retryAfter });
    const onRetry = ({ delayMs }: Retry) => void waits.push(delayMs);
    const one = scripted(env, 1, respond("1"), { onRetry });
    await one.client.createSession({ businessId: "B7", userId: unique("user") });
    equal([waits.length, waits[0]! >= 1000 && waits[0]! < 1100], [1, true], String(waits));
    const date = scripted(env, Infinity, respond(new Date(Date.now() + 3_600_000).toUTCString()));
    const error = await caught(date.client.whoami());
    // An hour is too long to wait for.
    equal([date.count(), isProblem(error) && error.retryAfterMs! > 3_500_000], [1, true]);
  },

  async "only calls that are safe to repeat are repeated"(env) {
    const { client, count } = scripted(env, Infinity, () => problem(503, {}));
    const repeated = async (call: () => PromiseLike<unknown>) => {
      const before = count();
      await caught(call());
      return count() - before;
    };
    equal(await repeated(() => client.updateSession("s", { title: "t" })), 3);
    equal(await repeated(() => client.updateSession("s", { title: "t" }, { ifVersion: 1 })), 1);
    equal(await repeated(() => client.deleteSession("s")), 3);
    equal(await repeated(() => client.deleteSession("s", { ifVersion: 1 })), 1);
    equal(await repeated(() => client.createSession({ businessId: "B", userId: "u", ifActive: "replace" })), 3);
    equal(await repeated(() => client.appendMessages("s", { role: "user", content: 1 })), 3);
    equal(await repeated(() => client.beginTurn("s", { turnId: "t", writer: "w" })), 3);
    equal(await repeated(() => client.appendChunks("s", "t", { number: 1, from: 0, chunks: [] })), 3);
    equal(await repeated(() => client.endTurn("s", "t", { number: 1, status: "failed" })), 3);
    equal(await repeated(() => client.cancelTurn("s", "t")), 3);
    equal(await repeated(() => client.exportUser("b", "u").next()), 3);
  },

  async "a lost response duplicates nothing"(env) {
    const client = serverClient(env, { baseUrl: `${env.proxy}/lost` });
    const user = { businessId: "B8", userId: unique("user") };
    const { sessionId } = await client.createSession({ ...user, ifActive: "replace" });
    const another = await client.createSession({ ...user, ifActive: "replace" }, { idempotencyKey: unique("key") });
    const history = await serverClient(env).getUserSessionHistory(user.businessId, user.userId);
    equal(idsOf(history), [another.sessionId, sessionId]);

    await client.appendMessages(another.sessionId, { role: "user", content: "one" });
    await client.appendMessages(another.sessionId, [
      { messageId: undefined as unknown as string, role: "user", content: "two" },
      { role: "user", content: "three" },
    ]);
    const messages = await serverClient(env).getSessionMessages(another.sessionId);
    equal(
      messages.map(({ content }) => content),
      ["one", "two", "three"],
    );
    equal((await client.endSession(another.sessionId)).endReason, "client");
    // The first attempt deleted it.
    equal(await client.deleteSession(another.sessionId), false);
    equal(await serverClient(env).getSession(another.sessionId), null);
  },

  async "a lost response to a call of a turn's writer changes nothing"(env) {
    const client = serverClient(env, { baseUrl: `${env.proxy}/lost` });
    const { sessionId } = await serverClient(env).createSession({ businessId: "B8", userId: unique("user") });
    for (const status of ["completed", "failed"] as const) {
      for (const cancelled of [false, true]) {
        const turnId = `${status}-${cancelled}`;
        const { number } = await client.beginTurn(sessionId, { turnId, writer: "w", ifOpen: "interrupt" });
        await client.appendChunks(sessionId, turnId, { number: number!, from: 0, chunks: ["a", "b"] });
        if (cancelled) equal((await client.cancelTurn(sessionId, turnId)).cancelRequested, true);
        const ended = await client.endTurn(sessionId, turnId, { number: number!, status });
        equal([ended.status, ended.nextChunk], [cancelled ? "cancelled" : status, 2]);
      }
    }
    const messages = await serverClient(env).getSessionMessages(sessionId);
    equal(
      messages.map(({ content }) => content),
      ["ab", "ab", "ab", "ab"],
    );
  },

  async "appends through a faulty proxy: none lost, none duplicated"(env) {
    const direct = serverClient(env);
    const options = { baseUrl: `${env.proxy}/faulty`, timeoutMs: 1000, maxRetries: 50 };
    const { sessionId } = await direct.createSession({ businessId: "B9", userId: unique("user") });
    const client = serverClient(env, options);
    const seqs: number[] = [];
    await concurrently(32, env.appends, async (i) => {
      const message = await client.appendMessages(sessionId, { role: "user", content: i });
      equal(message.content, i);
      seqs.push(message.seq);
    });
    const stored = await collect(direct.getSessionMessages(sessionId, { limit: 1000 }));
    const range = (from: number) => Array.from({ length: env.appends }, (_, i) => i + from);
    equal(seqsOf(stored), range(1));
    equal(
      seqs.sort((a, b) => a - b),
      range(1),
    );
    equal(
      stored.map(({ content }) => content as number).sort((a, b) => a - b),
      range(0),
    );
  },
};

async function document(env: Environment): Promise<Document> {
  return (await serverClient(env).openapi()) as unknown as Document;
}

/** The operation of this path. Of several, the most literal one: `/business/{id}/active`, not `/{id}/messages/{id}`. */
function operationOf(paths: Document["paths"], path: string, method: string): string {
  const segments = path.split("?")[0]!.split("/");
  const matches = Object.keys(paths).filter((template) => {
    const parts = template.split("/");
    return parts.length === segments.length && parts.every((part, i) => part.startsWith("{") || part === segments[i]);
  });
  const [template] = matches.sort((a, b) => a.split("{").length - b.split("{").length);
  return paths[template ?? ""]?.[method.toLowerCase()]?.operationId ?? `${method} ${path}`;
}
