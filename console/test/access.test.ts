// What each kind of credential sees and is offered, and how users sign in and out.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import type { Session } from "../../clients/typescript/src/index.js";
import { openBrowser, Tab } from "./browser.js";
import { startProtectedService, startService, type ProtectedService } from "./service.js";

let service: ProtectedService;
let browser: Browser;
/** Of `user_1` of `B0100001`, which every credential may see. */
let session: Session;
/** Of a business that only keys for all businesses may see. */
let foreign: Session;

before(async () => {
  [service, browser] = await Promise.all([startProtectedService(), openBrowser()]);
  session = await service.client.createSession({ businessId: "B0100001", userId: "user_1", title: "of user_1" });
  await service.client.appendMessages(session.sessionId, [
    { role: "user", content: "the question" },
    { role: "assistant", content: "the answer" },
  ]);
  await service.client.beginTurn(session.sessionId, { turnId: "t", writer: "w" });
  foreign = await service.client.createSession({ businessId: "B0100002", userId: "user_2", title: "of user_2" });
});
after(async () => {
  await browser.close();
  await service.stop();
});

async function signIn(credential: string, hash = "#/", isKept = false): Promise<Tab> {
  const tab = await Tab.open(browser, service.url, hash);
  await tab.page.getByLabel("API key or JWT").fill(credential);
  if (isKept) await tab.page.getByLabel("Keep it until this tab is closed").check();
  await tab.page.getByRole("button", { name: "Sign in" }).click();
  return tab;
}

const WRITES = ["Title…", "End…", "Delete…", "Stop"];

/** The actions that each credential is offered: on the session, on its user, and messages that it may redact. */
const MATRIX = {
  reader: { actions: [], user: ["Export"], redacts: [], seesAll: true },
  writer: { actions: WRITES, user: ["Export"], redacts: [1, 2], seesAll: true },
  admin: { actions: WRITES, user: ["Export", "Erase…"], redacts: [1, 2], seesAll: true },
  tenant: { actions: WRITES, user: ["Export"], redacts: [1, 2], seesAll: false },
  user: { actions: WRITES, user: ["Export"], redacts: [1], seesAll: false },
} as const;

for (const [name, { actions, user, redacts, seesAll }] of Object.entries(MATRIX)) {
  test(`${name}: is offered what it may do`, async () => {
    const tab = await signIn(service.credentials[name as keyof typeof MATRIX], `#/session/${session.sessionId}`);
    await tab.shows("the answer");
    const always = ["Find", "Local", "Help", "Sign out", "Refresh", "Copy id", "Copy as curl", "Oldest", "Newest"];
    const offered = (await tab.buttons()).filter((button) => !always.includes(button));
    const redactions = redacts.map(() => "Redact…");
    assert.deepEqual(offered.sort(), [...actions, ...redactions].sort());
    for (const seq of redacts) await tab.page.getByRole("button", { name: `Redact… message ${seq}` }).waitFor();
    await tab.expectAccessible(name);

    await tab.goto("#/business/B0100001/user/user_1");
    await tab.shows("1 session");
    const ofUser = (await tab.buttons()).filter((button) => !always.includes(button));
    assert.deepEqual(ofUser, user);

    await tab.goto("#/business/B0100001");
    await tab.shows(name === "user" ? "403 Forbidden (forbidden)" : "1 active session");
    await tab.goto(`#/session/${foreign.sessionId}`);
    await tab.shows(seesAll ? "of user_2" : "No such session");
    await tab.goto("#/business/B0100002");
    await tab.shows(seesAll ? "1 active session" : "403 Forbidden (forbidden)");

    // The first page shows its businesses and users.
    await tab.goto("#/");
    await tab.shows("Find a conversation");
    const links = await tab.page.getByRole("main").getByRole("link").allInnerTexts();
    const reachable = { tenant: ["B0100001", "B0100003"], user: ["user_1 in B0100001"] };
    assert.deepEqual(links, reachable[name as "user"] ?? []);

    await tab.page.keyboard.press("Control+Home");
    await tab.page.getByRole("button", { name: "Help" }).click();
    const scopes = { reader: "read", admin: "read, write, admin" }[name] ?? "read, write";
    await tab.shows(new RegExp(`May ${scopes} in `));
    await tab.close();
  });

  test(`${name}: the service rejects what is not offered`, async () => {
    const authorization = { Authorization: `Bearer ${service.credentials[name as keyof typeof MATRIX]}` };
    const rejected = async (method: string, path: string) => {
      const headers = { ...authorization, "Content-Type": "application/json" };
      const body = method === "PATCH" ? '{"title":"x"}' : null;
      assert.equal((await fetch(service.url + path, { method, headers, body })).status, 403, `${method} ${path}`);
    };
    if (!actions.length) {
      await rejected("PATCH", `/api/sessions/${session.sessionId}`);
      await rejected("DELETE", `/api/sessions/${session.sessionId}`);
      await rejected("POST", `/api/sessions/${session.sessionId}/turns/t/cancel`);
    }
    if (!(user as readonly string[]).includes("Erase…")) {
      await rejected("DELETE", "/api/sessions/business/B0100001/user/user_1");
    }
    if (!(redacts as readonly number[]).includes(2)) {
      const { messageId } = (await service.client.getSessionMessages(session.sessionId))[1]!;
      await rejected("DELETE", `/api/sessions/${session.sessionId}/messages/${messageId}`);
    }
  });
}

for (const [name, credential, why] of [
  ["wrong", "wrong.key", "The credential is not valid"],
  ["expired", "", "The credential has expired"],
] as const) {
  test(`${name}: sees the reason and no data`, async () => {
    const tab = await Tab.open(browser, service.url, `#/session/${session.sessionId}`);
    await tab.shows("Sign in");
    await tab.expectAccessible("sign in");
    // Without a credential, the page asks for one and shows no error.
    assert.equal(await tab.page.getByRole("alert").count(), 0);
    await tab.page.getByLabel("API key or JWT").fill(credential || service.credentials.expired);
    await tab.page.keyboard.press("Enter");
    await tab.shows("The credential is not accepted.");
    await tab.shows(new RegExp(why));
    await tab.expectAccessible(`sign in, ${name}`);
    assert.deepEqual(await tab.buttons(), ["Local", "Help", "Sign in"]);
    assert.ok(
      tab.calls.every((call) => call === "GET /api/whoami"),
      tab.calls.join("\n"),
    );
    await tab.close();
  });
}

test("the credential is stored in memory, or in the tab on request, and nowhere else", async () => {
  const hash = `#/session/${session.sessionId}`;
  const secret = service.credentials.writer;
  const stored = (tab: Tab) => tab.page.evaluate(() => JSON.stringify([{ ...sessionStorage }, { ...localStorage }]));
  const forgetful = await signIn(secret, hash);
  await forgetful.shows("the answer");
  assert.ok(!(await stored(forgetful)).includes(secret));
  await forgetful.page.getByRole("button", { name: "Copy as curl" }).click();
  const command = await forgetful.page.evaluate(() => navigator.clipboard.readText());
  assert.ok(command.includes("$SESSIOND_CREDENTIAL") && !command.includes(secret), command);
  await forgetful.page.reload();
  await forgetful.shows("API key or JWT");
  await forgetful.close();

  const keeping = await signIn(secret, hash, true);
  await keeping.shows("the answer");
  assert.ok((await stored(keeping)).includes(secret));
  await keeping.page.reload();
  await keeping.shows("the answer");
  assert.ok(!keeping.page.url().includes(secret));
  await keeping.page.getByRole("button", { name: "Sign out" }).click();
  await keeping.shows("API key or JWT");
  assert.ok(!(await stored(keeping)).includes(secret));
  await keeping.page.reload();
  await keeping.shows("API key or JWT");
  await keeping.close();
});

test("a credential that stops being valid leads to the sign-in, and back to the same page", async () => {
  const tab = await signIn(service.credentials.writer, `#/session/${session.sessionId}`);
  await tab.shows("the answer");
  const body = JSON.stringify({ status: 401, title: "Unauthorized", code: "unauthorized", detail: "it was revoked" });
  await tab.page.route("**/api/sessions/**", (route) => route.fulfill({ status: 401, body }));
  await tab.page.keyboard.press("r");
  await tab.shows("it was revoked");
  await tab.page.unrouteAll();
  await tab.page.getByLabel("API key or JWT").fill(service.credentials.reader);
  await tab.page.keyboard.press("Enter");
  await tab.shows("the answer");
  await tab.close();
});

test("a service without credentials asks for none, and a service that does not respond shows an error", async () => {
  const open = await startService();
  const tab = await Tab.open(browser, open.url);
  await tab.shows("Find a conversation");
  assert.ok(!(await tab.text()).includes("Sign"));
  await tab.page.route("**/api/whoami", (route) => route.abort());
  await tab.page.reload();
  await tab.shows("The service does not respond.");
  await tab.expectAccessible("no answer");
  await tab.page.unrouteAll();
  await tab.page.getByRole("button", { name: "Try again" }).click();
  await tab.shows("Find a conversation");
  await tab.close();
  await open.stop();
});
