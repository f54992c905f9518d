// Every action, by the mouse and by the keyboard alone.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import type { Session } from "../../clients/typescript/src/index.js";
import { openBrowser, Tab } from "./browser.js";
import { startService, type Service } from "./service.js";

const BUSINESS = "B0100001";
let service: Service;
let browser: Browser;

before(async () => {
  [service, browser] = await Promise.all([startService(), openBrowser()]);
});
after(async () => {
  await browser.close();
  await service.stop();
});

/** Presses a button, or types into a field, that has this name. */
interface Hands {
  name: string;
  press(tab: Tab, button: string): Promise<void>;
  type(tab: Tab, field: string, text: string): Promise<void>;
}

const MOUSE: Hands = {
  name: "mouse",
  async press({ page }, button) {
    await page.getByRole("button", { name: button, exact: true }).last().click();
  },
  async type({ page }, field, text) {
    await page.getByLabel(field).last().click();
    await page.keyboard.press("Control+A");
    await page.keyboard.insertText(text);
  },
};

const KEYBOARD: Hands = {
  name: "keyboard",
  async press(tab, button) {
    await tab.tabTo(button);
    await tab.page.keyboard.press("Enter");
  },
  async type(tab, field, text) {
    await tab.tabTo(field);
    await tab.page.keyboard.press("Control+A");
    await tab.page.keyboard.insertText(text);
  },
};

let users = 0;

async function newSession(title = "before"): Promise<Session> {
  return service.client.createSession({ businessId: BUSINESS, userId: `user_${++users}`, title });
}

for (const hands of [MOUSE, KEYBOARD]) {
  const { name, press, type } = hands;

  test(`${name}: change the title`, async () => {
    const { sessionId } = await newSession();
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("before");
    await press(tab, "Title…");
    await tab.expectAccessible("title");
    await type(tab, "Title", "after");
    await press(tab, "Change");
    await tab.shows("The title is changed");
    assert.equal(await tab.page.getByRole("heading", { level: 1 }).innerText(), "after");
    assert.equal((await service.client.getSession(sessionId))!.title, "after");
    await press(tab, "Title…");
    await type(tab, "Title", "");
    await press(tab, "Change");
    await tab.shows("Session without title");
    assert.equal((await service.client.getSession(sessionId))!.title, null);
    await tab.close();
  });

  test(`${name}: end and resume, also in place of another session`, async () => {
    const { sessionId, userId } = await newSession();
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("before");
    await press(tab, "End…");
    await tab.expectAccessible("end");
    await press(tab, "End");
    await tab.shows("The session is ended");
    assert.equal((await service.client.getSession(sessionId))!.status, "ended");
    await press(tab, "Resume…");
    await press(tab, "Resume");
    await tab.shows("The session is resumed");
    await press(tab, "End…");
    await press(tab, "End");
    await tab.page.getByRole("button", { name: "Resume…" }).waitFor();
    const other = await service.client.createSession({ businessId: BUSINESS, userId });
    await press(tab, "Resume…");
    await press(tab, "Resume");
    await tab.shows(other.sessionId);
    await tab.expectAccessible("another session is active");
    await press(tab, "End the other one and resume");
    await tab.page.getByRole("button", { name: "End…" }).waitFor();
    assert.equal((await service.client.getSession(sessionId))!.status, "active");
    assert.equal((await service.client.getSession(other.sessionId))!.endReason, "replaced");
    await tab.close();
  });

  test(`${name}: delete needs the id, and leads to the user`, async () => {
    const { sessionId, userId } = await newSession();
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("before");
    await press(tab, "Delete…");
    await tab.expectAccessible("delete");
    const button = tab.page.getByRole("button", { name: "Delete", exact: true });
    await type(tab, `Type ${sessionId}`, sessionId.slice(0, -1));
    assert.equal(await button.isDisabled(), true);
    await tab.page.keyboard.press("Enter");
    assert.ok(await service.client.getSession(sessionId));
    await type(tab, `Type ${sessionId}`, sessionId);
    await press(tab, "Delete");
    await tab.shows("The session is deleted");
    await tab.shows("This user has no sessions.");
    assert.equal(await tab.page.getByRole("heading", { level: 1 }).innerText(), `User ${userId}`);
    assert.equal(await service.client.getSession(sessionId), null);
    await tab.close();
  });

  test(`${name}: redact a message`, async () => {
    const { sessionId } = await newSession();
    await service.client.appendMessages(sessionId, [
      { messageId: "m-1", role: "user", content: "a secret" },
      { messageId: "m-2", role: "assistant", content: "an answer" },
    ]);
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("a secret");
    await press(tab, "Redact… message 1");
    await tab.expectAccessible("redact");
    await type(tab, "Type m-1", "m-1");
    await press(tab, "Redact");
    await tab.shows("Message 1 is redacted");
    await tab.page.getByText("a secret").waitFor({ state: "detached" });
    await tab.shows("an answer");
    assert.equal((await service.client.getMessage(sessionId, "m-1"))!.content, null);
    await tab.close();
  });

  test(`${name}: stop a reply`, async () => {
    const { sessionId } = await newSession();
    await service.client.beginTurn(sessionId, { turnId: "t", writer: "w" });
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("writing");
    await press(tab, "Stop");
    await tab.shows("The writer is asked to stop");
    await tab.shows("stopping");
    assert.equal((await service.client.getTurn(sessionId, "t"))!.cancelRequested, true);
    await tab.close();
  });

  test(`${name}: erase a user`, async () => {
    const { sessionId, userId } = await newSession();
    const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}/user/${userId}`);
    await tab.shows("1 session");
    await press(tab, "Erase…");
    await tab.expectAccessible("erase");
    await type(tab, `Type ${userId}`, userId);
    await press(tab, "Erase");
    await tab.shows("1 session erased");
    await tab.shows("This user has no sessions.");
    assert.equal(await service.client.getSession(sessionId), null);
    await tab.close();
  });

  test(`${name}: export a user, byte for byte`, async () => {
    const { sessionId, userId } = await newSession();
    const body = '{"role":"user","content":{"number":12345678901234567890.10}}';
    const headers = { "Content-Type": "application/json" };
    await fetch(`${service.url}/api/sessions/${sessionId}/messages`, { method: "POST", headers, body });
    const path = `/api/sessions/business/${BUSINESS}/user/${userId}/export`;
    const expected = await (await fetch(service.url + path)).text();
    assert.ok(expected.includes("12345678901234567890.10"));
    const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}/user/${userId}`);
    await tab.shows("1 session");
    const [download] = await Promise.all([tab.page.waitForEvent("download"), press(tab, "Export")]);
    assert.equal(download.suggestedFilename(), `${BUSINESS}-${userId}.ndjson`);
    assert.equal(await readFile(await download.path(), "utf8"), expected);
    await tab.shows("The export is saved");
    await tab.close();
  });

  test(`${name}: copy an id, and a call as curl`, async () => {
    const { sessionId } = await newSession();
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    const copied = () => tab.page.evaluate(() => navigator.clipboard.readText());
    await tab.shows("before");
    await press(tab, "Copy id");
    await tab.shows("Copied the session id");
    assert.equal(await copied(), sessionId);
    await press(tab, "Copy as curl");
    await tab.shows("Copied the call as curl");
    assert.equal(await copied(), `curl -sS '${service.url}/api/sessions/${sessionId}'`);
    await tab.close();
  });

  test(`${name}: find a session, a business, a user`, async () => {
    const { sessionId, userId } = await newSession("to be found");
    const tab = await Tab.open(browser, service.url);
    await type(tab, "Session id", ` ${sessionId.toUpperCase()} `);
    await press(tab, "Open session");
    await tab.shows("to be found");
    await tab.goto("#/");
    await type(tab, "Business id", BUSINESS);
    await press(tab, "Open business");
    await tab.shows(/active session/);
    await tab.goto("#/");
    await type(tab, "Business id", BUSINESS);
    await type(tab, "User id", userId);
    await press(tab, "Open user");
    await tab.shows("1 session");
    await tab.close();
  });

  test(`${name}: settings`, async () => {
    const tab = await Tab.open(browser, service.url);
    const colour = () => tab.page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
    const light = await colour();
    await press(tab, "Help");
    await tab.shows("Help and settings");
    await tab.expectAccessible("help");
    await tab.tabTo("Colours");
    await tab.page.keyboard.press("d");
    assert.notEqual(await colour(), light);
    await tab.expectAccessible("help, dark");
    await tab.tabTo("Single keys are shortcuts");
    await tab.page.keyboard.press("Space");
    await press(tab, "Close");
    await tab.page.getByRole("dialog").waitFor({ state: "detached" });
    // Switched off (WCAG 2.1.4).
    await tab.page.keyboard.press("?");
    assert.equal(await tab.page.getByRole("dialog").count(), 0);
    await tab.page.reload();
    await tab.shows("Find a conversation");
    assert.notEqual(await colour(), light);
    await tab.close();
  });
}

test("keys: /, j, k, Enter, u, r and ?", async () => {
  const sessions = [await newSession("first"), await newSession("second"), await newSession("third")];
  const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}`);
  const { keyboard } = tab.page;
  const focused = () => tab.page.evaluate(() => (document.activeElement as HTMLElement).innerText.slice(0, 100));
  await tab.shows("third");
  await keyboard.press("j");
  assert.match(await focused(), /third/);
  await keyboard.press("j");
  assert.match(await focused(), /second/);
  await keyboard.press("k");
  assert.match(await focused(), /third/);
  await keyboard.press("Enter");
  await tab.page.getByRole("heading", { name: "third" }).waitFor();
  await service.client.updateSession(sessions[2]!.sessionId, { title: "renamed" });
  await keyboard.press("r");
  await tab.page.getByRole("heading", { name: "renamed" }).waitFor();
  await keyboard.press("u");
  await tab.page.getByRole("heading", { name: sessions[2]!.userId }).waitFor();
  await keyboard.press("u");
  await tab.page.getByRole("heading", { name: BUSINESS }).waitFor();
  await keyboard.press("/");
  await tab.page.getByRole("heading", { name: "Find a conversation" }).waitFor();
  assert.equal(await tab.page.evaluate(() => document.activeElement!.tagName), "INPUT");
  // In a field, the keys are text.
  await keyboard.type("j/?");
  assert.equal(await tab.page.getByLabel("Session id").inputValue(), "j/?");
  await tab.tabTo("Help");
  await keyboard.press("?");
  await tab.page.getByRole("dialog").waitFor();
  await keyboard.press("Escape");
  await tab.page.getByRole("dialog").waitFor({ state: "detached" });
  assert.equal(await focused(), "Help");
  await tab.close();
});

test("a failed action shows its reason, and nothing is lost", async () => {
  const { sessionId } = await newSession();
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows("before");
  await MOUSE.press(tab, "Delete…");
  await MOUSE.type(tab, `Type ${sessionId}`, sessionId);
  // Another client changes it in the meantime.
  await service.client.updateSession(sessionId, { title: "changed" });
  await tab.page.route(`**/api/sessions/${sessionId}`, (route) => route.abort());
  await MOUSE.press(tab, "Delete");
  await tab.shows("The service cannot be reached");
  await tab.expectAccessible("action, error");
  await tab.page.unrouteAll();
  await MOUSE.press(tab, "Delete");
  await tab.shows("version_mismatch");
  assert.ok(await service.client.getSession(sessionId));
  await tab.close();
});
