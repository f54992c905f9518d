// Each page in each of its states: its content, and that axe-core finds nothing.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { openBrowser, Tab } from "./browser.js";
import { startService, type Service } from "./service.js";

const BUSINESS = "B0100001";
let service: Service;
let browser: Browser;

before(async () => {
  [service, browser] = await Promise.all([startService("--console-label", "production"), openBrowser()]);
});
after(async () => {
  await browser.close();
  await service.stop();
});

test("the bare address leads to the page to find a conversation", async () => {
  const tab = await Tab.open(browser, service.url);
  await tab.page.goto(service.url);
  await tab.shows("Find a conversation");
  assert.equal(new URL(tab.page.url()).pathname, "/console/");
  await tab.shows("production");
  await tab.expectAccessible("find");
  await tab.page.getByLabel("Session id").fill("not an id");
  await tab.page.getByRole("button", { name: "Open session" }).click();
  await tab.shows("A session id is a UUID");
  await tab.expectAccessible("find, wrong id");
  await tab.goto("#/nowhere/at/all");
  await tab.shows("No such page");
  await tab.expectAccessible("no such page");
  await tab.close();
});

test("an address that changes while the page starts is shown", async () => {
  const tab = await Tab.open(browser, service.url);
  await tab.page.addInitScript(() => {
    // After the first rendering and before its effects.
    const observer = new MutationObserver(() => {
      if (!document.querySelector(".skip")) return;
      observer.disconnect();
      location.hash = "#/business/B-early";
    });
    observer.observe(document, { childList: true, subtree: true });
  });
  await tab.page.reload();
  await tab.shows("No session of this business is active.");
  await tab.close();
});

test("a business shows its active sessions with the last message and the open turn, newest activity first", async () => {
  for (const [userId, content] of [
    ["user_1", "the first question"],
    ["user_2", { text: "the second question" }],
  ] as const) {
    const session = await service.client.createSession({ businessId: BUSINESS, userId, title: `title of ${userId}` });
    await service.client.appendMessages(session.sessionId, { role: "user", content });
  }
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "user_3" });
  await service.client.beginTurn(sessionId, { turnId: "t", writer: "w" });
  const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}`);
  await tab.shows("3 active sessions");
  const rows = await tab.page.getByRole("listitem").allInnerTexts();
  assert.deepEqual(
    rows.map((row) => /user_\d/.exec(row)![0]),
    ["user_3", "user_2", "user_1"],
  );
  assert.match(rows[0]!, /no title[^]*writing/);
  assert.match(rows[1]!, /title of user_2[^]*user the second question[^]*1 message/);
  await tab.shows("1 reply is being written");
  await tab.expectAccessible("business");
  // No call for each row.
  assert.equal(tab.calls.filter((call) => /\/sessions\/[0-9a-f]{8}-/.test(call)).length, 0, tab.calls.join("\n"));
  await tab.close();
});

test("a user shows the history", async () => {
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "with history" });
  await service.client.endSession(sessionId);
  await service.client.createSession({ businessId: BUSINESS, userId: "with history", title: "the present one" });
  const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}/user/with%20history`);
  await tab.shows("2 sessions");
  const rows = await tab.page.getByRole("listitem").allInnerTexts();
  assert.match(rows[0]!, /active[^]*the present one/);
  assert.match(rows[1]!, /ended[^]*no title/);
  await tab.expectAccessible("user");
  await tab.page.getByRole("link", { name: BUSINESS }).click();
  await tab.shows(/active session/);
  await tab.close();
});

test("a session shows its document, its messages, and the reply in progress", async () => {
  const { sessionId } = await service.client.createSession({
    businessId: BUSINESS,
    userId: "user_4",
    title: "a title",
    metadata: { channel: "web" },
  });
  await service.client.appendMessages(sessionId, [
    { role: "system", content: "be brief" },
    { role: "user", content: { text: "a question", attachments: [] }, metadata: { tag: "urgent" } },
    { role: "tool", content: { status: "in transit" } },
  ]);
  const turn = await service.client.beginTurn(sessionId, { turnId: "t", writer: "worker-1" });
  await service.client.appendChunks(sessionId, "t", {
    number: turn.number!,
    from: 0,
    chunks: ["part one, ", "part two"],
  });
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows("part one, part two");
  // The stream repeats the messages of the first call.
  await tab.shows(/^live$/);
  assert.equal(await tab.page.locator(".turn .content").innerText(), "part one, part two");
  for (const text of ["a title", "be brief", "a question", '"status": "in transit"', '"channel": "web"', "worker-1"]) {
    await tab.shows(text);
  }
  await tab.shows("Watching keeps no session alive");
  await tab.page.getByText("metadata", { exact: true }).click();
  await tab.shows('"tag": "urgent"');
  await tab.expectAccessible("session");
  await service.client.endTurn(sessionId, "t", { number: turn.number!, status: "failed", error: "model overloaded" });
  await tab.page.getByRole("button", { name: "Refresh" }).click();
  await tab.shows("failed");
  await tab.close();
});

test("empty pages show that they are empty", async () => {
  const { sessionId } = await service.client.createSession({ businessId: "B-empty", userId: "u" });
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows("This session has no messages.");
  await tab.expectAccessible("session, empty");
  await service.client.deleteSession(sessionId);
  await tab.goto("#/business/B-empty");
  await tab.shows("No session of this business is active.");
  await tab.expectAccessible("business, empty");
  await tab.goto("#/business/B-empty/user/u");
  await tab.shows("This user has no sessions.");
  await tab.expectAccessible("user, empty");
  await tab.goto(`#/session/${sessionId}`);
  await tab.shows("No such session");
  await tab.expectAccessible("session, missing");
  await tab.close();
});

for (const [page, hash, what] of [
  ["business", `#/business/${BUSINESS}`, "The active sessions could not be loaded."],
  ["user", `#/business/${BUSINESS}/user/user_1`, "The history could not be loaded."],
  ["session", "", "The session could not be loaded."],
] as const) {
  test(`${page}: loading and failed loads never look empty`, async () => {
    const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "user_1" });
    const tab = await Tab.open(browser, service.url);
    let answer = () => {};
    const wait = new Promise<void>((resolve) => (answer = resolve));
    await tab.page.route("**/api/sessions/**", async (route) => {
      await wait;
      await route.fulfill({ status: 500, contentType: "application/problem+json", body: JSON.stringify(PROBLEM) });
    });
    // With its stream, the page would recover automatically.
    await tab.page.route("**/events**", (route) => route.fulfill({ status: 403, body: "{}" }));
    await tab.goto(hash || `#/session/${sessionId}`);
    await tab.shows(/^Loading the/);
    await tab.expectAccessible(`${page}, loading`);
    answer();
    await tab.shows(what);
    await tab.shows("500 Internal Server Error (internal): it is broken");
    await tab.shows("request-77");
    assert.doesNotMatch(await tab.text(), /No session of|has no sessions|has no messages/);
    await tab.expectAccessible(`${page}, error`);
    await tab.page.unroute("**/api/sessions/**");
    await tab.page.getByRole("button", { name: "Try again" }).click();
    await tab.shows(/active/);
    await tab.page.getByText(what).waitFor({ state: "detached" });
    await tab.close();
  });
}

const PROBLEM = {
  type: "about:blank",
  title: "Internal Server Error",
  status: 500,
  detail: "it is broken",
  code: "internal",
  requestId: "request-77",
};

test("a failed refresh keeps the content and marks it as possibly outdated", async () => {
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "user_5", title: "kept" });
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows("kept");
  await tab.page.route("**/api/sessions/**", (route) => route.abort());
  await tab.page.getByRole("button", { name: "Refresh" }).click();
  await tab.shows("this may be out of date");
  await tab.shows("kept");
  await tab.expectAccessible("session, out of date");
  await tab.close();
});

test("times are local or UTC, with the other one in the title", async () => {
  const { sessionId, createdAt } = await service.client.createSession({ businessId: BUSINESS, userId: "user_6" });
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`, { timezoneId: "Asia/Kolkata" });
  const time = tab.page.locator("dd time").first();
  const read = async () => [await time.innerText(), await time.getAttribute("title")] as const;
  const utc = createdAt.slice(11, 19);
  const local = new Date(Date.parse(createdAt) + 5.5 * 3600_000).toISOString().slice(11, 19);
  assert.equal((await read())[0], local);
  assert.ok((await read())[1]!.includes(`${createdAt.slice(0, 10)} ${createdAt.slice(11, 23)} UTC`));
  await tab.page.getByRole("button", { name: "Times are local: change" }).click();
  assert.equal((await read())[0], utc);
  assert.match((await read())[1]!, new RegExp(`${local}.*UTC\\+05:30`));
  await tab.page.reload();
  await time.waitFor();
  assert.equal((await read())[0], utc);
  await tab.close();
});

for (const [name, options] of [
  ["dark", { colorScheme: "dark" }],
  ["phone", { viewport: { width: 390, height: 844 }, hasTouch: true }],
  ["phone of 320 pixels, dark", { viewport: { width: 320, height: 568 }, colorScheme: "dark" }],
  ["zoomed to 400 %", { viewport: { width: 320, height: 256 }, deviceScaleFactor: 4 }],
] as const) {
  test(`${name}: accessible, without scrolling sideways`, async () => {
    const { sessionId } = await service.client.createSession({
      businessId: BUSINESS,
      userId: "user_7",
      title: "wide ".repeat(30),
    });
    const word = "W".repeat(300);
    await service.client.appendMessages(sessionId, [
      { role: "user", content: word },
      { role: "tool", content: { [word]: word } },
    ]);
    const tab = await Tab.open(browser, service.url, "#/", options);
    for (const hash of [
      "#/",
      `#/business/${BUSINESS}`,
      `#/business/${BUSINESS}/user/user_7`,
      `#/session/${sessionId}`,
    ]) {
      await tab.goto(hash);
      await tab.shows(/Find a conversation|user_7|wide/);
      await tab.expectAccessible(`${name} ${hash}`);
      const width = await tab.page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
      assert.equal(width, 0, hash);
    }
    await tab.close();
  });
}
