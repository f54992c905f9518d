// Events are shown as they happen, and do not move the reader's position.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import type { Session } from "../../clients/typescript/src/index.js";
import { openBrowser, Tab } from "./browser.js";
import { startNetwork } from "./network.js";
import { startService, type Service } from "./service.js";

let service: Service;
let browser: Browser;

before(async () => {
  [service, browser] = await Promise.all([startService(), openBrowser()]);
});
after(async () => {
  await browser.close();
  await service.stop();
});

let sessions = 0;

async function newSession(businessId = "B0100001"): Promise<Session> {
  const userId = `user_${++sessions}`;
  return service.client.createSession({ businessId, userId, title: `title ${sessions}` });
}

async function append(sessionId: string, ...contents: string[]): Promise<void> {
  for (const content of contents) await service.client.appendMessages(sessionId, { role: "user", content });
}

/** Waits until the page is current. */
async function live(tab: Tab): Promise<void> {
  await tab.shows(/^live$/);
}

test("a session shows messages, a reply as it is written, changes, its end and its deletion", async () => {
  const { client } = service;
  const { sessionId } = await newSession();
  await append(sessionId, "before");
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await live(tab);
  await append(sessionId, "one", "two");
  await tab.shows("two");
  const turn = await client.beginTurn(sessionId, { turnId: "t", writer: "worker-1" });
  await tab.shows("writing");
  await tab.expectAccessible("live");
  const text = tab.page.locator(".turn .content");
  for (const [from, chunk] of ["The ", "answer ", "is 42"].entries()) {
    await client.appendChunks(sessionId, "t", { number: turn.number!, from, chunks: [chunk] });
    await tab.shows(["The", "The answer", "The answer is 42"][from]!);
  }
  assert.equal(await text.innerText(), "The answer is 42");
  await client.cancelTurn(sessionId, "t");
  await tab.shows("stopping");
  await client.endTurn(sessionId, "t", { number: turn.number!, status: "completed" });
  await tab.shows("cancelled");
  assert.equal(await text.count(), 0);
  assert.equal(await tab.page.getByText("The answer is 42").count(), 1);
  await client.updateSession(sessionId, { title: "another title", metadata: { tag: "vip" } });
  await tab.page.getByRole("heading", { name: "another title" }).waitFor();
  await tab.shows('"tag": "vip"');
  const first = (await client.getSessionMessages(sessionId))[0]!;
  await client.redactMessage(sessionId, first.messageId);
  await tab.page.getByText("before").waitFor({ state: "detached" });
  await client.endSession(sessionId);
  await tab.page.getByRole("button", { name: "Resume…" }).waitFor();
  const numbers = await tab.page.locator(".seq").allInnerTexts();
  assert.deepEqual(numbers, ["#1", "#2", "#3", "#4"]);
  await client.deleteSession(sessionId);
  await tab.shows("This session was deleted.");
  await tab.expectAccessible("deleted");
  // The shown state came from the stream: only two calls at the start.
  const calls = tab.calls.filter((call) => !call.includes("whoami"));
  assert.equal(calls.length, 3, calls.join("\n"));
  assert.equal(calls.filter((call) => call.includes("/events")).length, 1);
  await tab.close();
});

test("an expiry is shown without a call", async () => {
  const short = await startService("--idle-timeout", "2s");
  const { sessionId } = await short.client.createSession({ businessId: "b", userId: "u" });
  const tab = await Tab.open(browser, short.url, `#/session/${sessionId}`);
  await tab.shows("expired");
  assert.equal((await short.client.getSession(sessionId))!.status, "expired");
  await tab.close();
  await short.stop();
});

test("a business shows new sessions, messages, replies and ends, without a call for each", async () => {
  const { client } = service;
  const business = "B-live";
  const old = await newSession(business);
  const tab = await Tab.open(browser, service.url, `#/business/${business}`);
  await live(tab);
  await tab.shows("1 active session");
  const { sessionId } = await newSession(business);
  await tab.shows("2 active sessions");
  const rows = () => tab.page.getByRole("listitem").allInnerTexts();
  assert.match((await rows())[0]!, new RegExp(`title ${sessions}`));
  await append(old.sessionId, "what is new?");
  await tab.shows("what is new?");
  assert.match((await rows())[0]!, /what is new\?/);
  const turn = await client.beginTurn(sessionId, { turnId: "t", writer: "w" });
  await tab.shows("1 reply is being written");
  await tab.expectAccessible("business, live");
  await client.endTurn(sessionId, "t", { number: turn.number!, status: "completed", content: "the reply" });
  await tab.shows("the reply");
  await client.updateSession(old.sessionId, { title: "renamed" });
  await tab.shows("renamed");
  await client.endSession(old.sessionId);
  await tab.shows("1 active session");
  await client.deleteSession(sessionId);
  await tab.shows("No session of this business is active.");
  assert.equal(tab.calls.filter((call) => /\/sessions\/[0-9a-f]{8}-/.test(call)).length, 0, tab.calls.join("\n"));
  await tab.close();
});

test("the row that has the focus, or the pointer, stays where it is", async () => {
  const business = "B-focus";
  const first = await newSession(business);
  const second = await newSession(business);
  const tab = await Tab.open(browser, service.url, `#/business/${business}`);
  await live(tab);
  const titles = () => tab.page.locator(".session-row .title").allInnerTexts();
  const before = await titles();
  assert.deepEqual(before, [second.title, first.title]);
  await tab.page.keyboard.press("j");
  await append(first.sessionId, "a message");
  await tab.shows("a message");
  await newSession(business);
  await tab.shows("3 active sessions");
  assert.deepEqual((await titles()).slice(0, 2), before);
  assert.match(await tab.page.evaluate(() => (document.activeElement as HTMLElement).innerText), /title/);
  await tab.shows("the order is kept");
  // It moves again when the focus has left.
  await tab.page.getByRole("heading", { level: 1 }).click();
  await tab.page.locator(".session-row .title").first().getByText(`title ${sessions}`).waitFor();
  assert.equal(await tab.page.evaluate(() => document.activeElement!.tagName), "BODY");
  await tab.page.locator(".session-row").nth(1).hover();
  const held = await titles();
  await append(second.sessionId, "another one");
  await tab.shows("another one");
  assert.deepEqual(await titles(), held);
  await tab.close();
});

test("a reader of older messages stays there, and sees that there are new ones", async () => {
  const { sessionId } = await newSession();
  await append(sessionId, ...Array.from({ length: 60 }, (_, i) => `message ${i + 1}`));
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await live(tab);
  const list = tab.page.getByRole("region", { name: "Messages" });
  const log = tab.page.getByRole("log");
  assert.equal(await log.getAttribute("aria-live"), "polite");
  await list.evaluate((element) => element.scrollBy(0, -800));
  await tab.page.getByRole("button", { name: "Newest" }).waitFor();
  const place = () =>
    list.evaluate((element) => {
      const row = [...element.querySelectorAll(".message")].find(
        (row) => row.getBoundingClientRect().top > element.getBoundingClientRect().top,
      )!;
      return [row.getAttribute("aria-label"), row.getBoundingClientRect().top];
    });
  const before = await place();
  await append(sessionId, "new 1", "new 2", "new 3");
  await tab.page.getByRole("button", { name: "Newest (3 new)" }).waitFor();
  assert.deepEqual(await place(), before);
  assert.equal(await log.getAttribute("aria-live"), "off");
  await tab.page.getByRole("button", { name: "Newest (3 new)" }).click();
  await tab.shows("new 3");
  await append(sessionId, "at the end");
  await tab.shows("at the end");
  assert.equal(await log.getAttribute("aria-live"), "polite");
  await tab.close();
});

test("a lost connection is shown, and continued without loss", async () => {
  const { sessionId } = await newSession();
  const network = await startNetwork(service.url);
  const tab = await Tab.open(browser, network.url, `#/session/${sessionId}`);
  await live(tab);
  await append(sessionId, "before the loss");
  await tab.shows("before the loss");
  network.cut();
  await tab.shows("not live: reconnecting");
  await tab.expectAccessible("connection lost");
  await append(sessionId, "meanwhile 1", "meanwhile 2");
  network.repair();
  await tab.shows("meanwhile 2");
  await live(tab);
  await tab.page.getByText("meanwhile 1").waitFor();
  assert.deepEqual(await tab.page.locator(".seq").allInnerTexts(), ["#1", "#2", "#3"]);
  await tab.close();
  network.stop();
});

test("a tab that is shown again shows the missed events", async () => {
  const business = "B-hidden";
  const { sessionId } = await newSession(business);
  for (const hash of [`#/session/${sessionId}`, `#/business/${business}`]) {
    const tab = await Tab.open(browser, service.url, hash);
    await live(tab);
    await tab.setHidden(true);
    await tab.shows("paused");
    const missed = `missed by ${hash.slice(2, 9)}`;
    await append(sessionId, missed);
    assert.ok(!(await tab.text()).includes(missed));
    await tab.setHidden(false);
    await tab.shows(missed);
    await live(tab);
    await tab.close();
  }
});

test("without streams, everything is still shown and can be refreshed", async () => {
  const { sessionId } = await newSession("B-without");
  for (const hash of [`#/session/${sessionId}`, "#/business/B-without"]) {
    const tab = await Tab.open(browser, service.url);
    await tab.page.route("**/events**", (route) => route.fulfill({ status: 403, body: "{}" }));
    await tab.goto(hash);
    await tab.shows("not live");
    await append(sessionId, `refreshed ${hash}`);
    await tab.page.keyboard.press("r");
    await tab.shows(`refreshed ${hash}`);
    await tab.close();
  }
});
