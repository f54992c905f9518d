// The example in Chromium, with a model that the test controls.

import assert from "node:assert/strict";
import { after, afterEach, before, beforeEach, test } from "node:test";
import { setTimeout } from "node:timers/promises";
import type { Browser, Page } from "playwright-core";
import { Sessiond } from "sessiond";
import { startServer } from "../server.js";
import { startService, type Service } from "../service.js";
import { work } from "../worker.js";
import { expectAccessible, openBrowser, shows, Tabs, texts, type } from "./browser.js";
import { TestModel } from "./model.js";

const BUSINESS = "B0100001";
const LIMIT = { timeout: 60_000 };

let service: Service;
let server: Awaited<ReturnType<typeof startServer>>;
let browser: Browser;
let model: TestModel;
let tabs: Tabs;
const tokenOf = () => service.tokenOf(BUSINESS, "user_123");

before(async () => {
  service = await startService(process.env.SESSIOND_PROGRAM!, BUSINESS);
  server = await startServer(service.url, tokenOf);
  browser = await openBrowser();
});
after(async () => {
  await browser.close();
  server.close();
  await service.stop();
});

let workers: AbortController;
/** Chunk calls of workers wait for this. */
let gate: Promise<void> | undefined;
/** The statuses of workers' calls that began a turn: 201, or 200 if the turn has ended. */
let begun: number[];

beforeEach(async () => {
  const client = new Sessiond({ baseUrl: service.url, token: service.workerKey });
  const session = await client.getActiveSessionForUser(BUSINESS, "user_123");
  if (session) await client.deleteSession(session.sessionId);
  gate = undefined;
  begun = [];
  model = new TestModel();
  workers = new AbortController();
  tabs = await Tabs.open(browser, server.url);
});
afterEach(async () => {
  workers.abort();
  await tabs.close();
});

function startWorker(): void {
  const gatedFetch: typeof fetch = async (url, init) => {
    if (String(url).endsWith("/chunks")) await gate;
    const response = await fetch(url, init);
    if (String(url).endsWith("/turns") && response.ok) begun.push(response.status);
    return response;
  };
  const client = new Sessiond({ baseUrl: service.url, token: service.workerKey, fetch: gatedFetch });
  work(client, BUSINESS, model.model, workers.signal).catch((error) => assert.ok(workers.signal.aborted, error));
}

test("a reply streams, and its element stays when it becomes a message", LIMIT, async () => {
  startWorker();
  const page = await tabs.tab();
  await expectAccessible(page);
  await type(page, "hello");
  const run = await model.nextRun();
  await shows(page, "hello", "");
  await page.getByText("writing …").waitFor();
  const reply = (await page.locator("article.assistant").elementHandle())!;
  run.write("one ");
  await shows(page, "hello", "one ");
  run.write("two");
  await shows(page, "hello", "one two");
  await expectAccessible(page);
  run.end();
  await page.getByText("writing …").waitFor({ state: "detached" });
  await shows(page, "hello", "one two");
  assert.ok(await reply.evaluate((element) => element.isConnected));
  assert.equal(await page.getByRole("log").count(), 1);
  await type(page, "and now?");
  const second = await model.nextRun();
  assert.deepEqual(
    second.messages.map(({ content }) => content),
    ["hello", "one two", "and now?"],
  );
});

test("reloads during a reply lose and repeat no word", LIMIT, async () => {
  startWorker();
  const page = await tabs.tab();
  const seen = new Set<string>();
  await page.exposeFunction("see", (text: string) => seen.add(text));
  await page.addInitScript(() => {
    const { see } = window as unknown as { see(text: string): void };
    const report = () => document.querySelectorAll("article.assistant p").forEach((text) => see(text.textContent!));
    new MutationObserver(report).observe(document, { subtree: true, childList: true, characterData: true });
  });
  await type(page, "count");
  const run = await model.nextRun();
  let written = "";
  for (let word = 0; word < 60; word++) {
    const text = `${word} `;
    written += text;
    run.write(text);
    // Some words are written while the page is not loaded.
    if (word % 6 === 1) await page.reload({ waitUntil: "commit" });
    if (word % 6 === 5) await shows(page, "count", written);
  }
  run.end();
  await page.getByText("writing …").waitFor({ state: "detached" });
  await shows(page, "count", written);
  await page.reload();
  await shows(page, "count", written);
  // The page has only ever shown prefixes of the reply.
  assert.ok(seen.size > 10);
  for (const text of seen) assert.ok(written.startsWith(text), text);
  assert.equal(model.calls, 1);
});

test("Stop aborts a silent model, and its text so far stays", LIMIT, async (context) => {
  startWorker();
  const page = await tabs.tab();
  await page.exposeFunction("clicked", (timeMs: number) => (clickMs = timeMs));
  await page.evaluate(() => {
    const { clicked } = window as unknown as { clicked(timeMs: number): void };
    document.getElementById("stop")!.addEventListener("click", () => clicked(Date.now()), { capture: true });
  });
  let clickMs = 0;
  const shown: string[] = [];
  const delaysMs: number[] = [];
  for (let round = 0; round < 20; round++) {
    await type(page, `question ${round}`);
    const run = await model.nextRun();
    run.write(`half of reply ${round}`);
    shown.push(`question ${round}`, `half of reply ${round}`);
    await shows(page, ...shown);
    // Responses to chunks would also notify the worker, but later. From here on, only its stream can.
    let open = () => {};
    gate = new Promise((resolve) => (open = resolve));
    if (round % 2) {
      await page.getByRole("button", { name: "Stop" }).click();
    } else {
      // Keyboard order: message, Send, Stop.
      for (let presses = 0; presses < 2; presses++) await page.keyboard.press("Tab");
      await page.keyboard.press("Enter");
    }
    const abortedMs = await run.aborted;
    open();
    run.write("never seen");
    await page
      .getByText(/^stopped$/)
      .nth(round)
      .waitFor();
    await shows(page, ...shown);
    assert.ok(await page.getByRole("button", { name: "Stop" }).isHidden());
    assert.equal(await page.evaluate(() => document.activeElement!.id), "input");
    delaysMs.push(abortedMs - clickMs);
  }
  delaysMs.sort((a, b) => a - b);
  context.diagnostic(`from the click to the abort: median ${delaysMs[10]} ms, longest ${delaysMs.at(-1)} ms of 20`);
});

test("two tabs show the same after either sends, stops, or begins a new chat", LIMIT, async () => {
  startWorker();
  const [left, right] = [await tabs.tab(), await tabs.tab()];
  const bothShow = async (...expected: string[]) => {
    for (const page of [left, right]) await shows(page, ...expected);
  };
  await type(left, "from the left");
  const first = await model.nextRun();
  // The first message has created the session. Another tab reads it when it is shown.
  await right.evaluate(() => dispatchEvent(new Event("focus")));
  first.write("to both");
  await bothShow("from the left", "to both");
  first.end();
  await type(right, "from the right");
  const second = await model.nextRun();
  second.write("half of");
  await bothShow("from the left", "to both", "from the right", "half of");
  await right.getByRole("button", { name: "Stop" }).click();
  await second.aborted;
  for (const page of [left, right]) await page.getByText(/^stopped$/).waitFor();
  await bothShow("from the left", "to both", "from the right", "half of");
  await right.getByRole("button", { name: "New chat" }).click();
  await shows(right);
  await type(right, "anew");
  await model.nextRun();
  await bothShow("anew", "");
});

test("a double Enter sends one message and gets one reply", LIMIT, async () => {
  startWorker();
  const page = await tabs.tab();
  await page.getByLabel("Message").fill("once");
  await page.evaluate(() => {
    const enter = () => new KeyboardEvent("keydown", { key: "Enter", bubbles: true, cancelable: true });
    for (let presses = 0; presses < 2; presses++) document.getElementById("input")!.dispatchEvent(enter());
  });
  await page.keyboard.press("Enter");
  const run = await model.nextRun();
  run.write("one reply");
  run.end();
  await shows(page, "once", "one reply");
  // The reply to the next message. A second reply would have arrived before it.
  await type(page, "twice");
  const next = await model.nextRun();
  next.end();
  await page.getByText("writing …").waitFor({ state: "detached" });
  await shows(page, "once", "one reply", "twice", "");
  assert.equal(model.calls, 2);
});

test("markup of users and models stays text", LIMIT, async () => {
  startWorker();
  const page = await tabs.tab();
  const markup = `<img src=x onerror="alert(1)"><script>alert(2)</script><b>bold</b>`;
  await type(page, markup);
  const run = await model.nextRun();
  run.write(markup.slice(0, 40));
  run.write(markup.slice(40));
  await shows(page, markup, markup);
  run.end();
  await page.getByText("writing …").waitFor({ state: "detached" });
  await page.reload();
  await shows(page, markup, markup);
  assert.equal(await page.locator("#log :is(img, script, b)").count(), 0);
});

test("a message without a worker is answered by one worker when workers start", LIMIT, async () => {
  const page = await tabs.tab();
  await type(page, "anybody there?");
  await page.getByText("sending …").waitFor({ state: "detached" });
  startWorker();
  startWorker();
  const run = await model.nextRun();
  run.write("yes");
  run.end();
  await shows(page, "anybody there?", "yes");
  // The other worker has noticed that the turn has ended.
  const deadlineMs = Date.now() + 20_000;
  while (begun.length < 2 && Date.now() < deadlineMs) await setTimeout(20);
  assert.deepEqual(begun.sort(), [200, 201]);
  assert.equal(model.calls, 1);
  await shows(page, "anybody there?", "yes");
});

test("a message that was not sent can be sent again", LIMIT, async () => {
  startWorker();
  const page = await tabs.tab();
  await type(page, "before");
  (await model.nextRun()).end();
  await shows(page, "before", "");
  await page.route("**/messages", (route) => route.fulfill({ status: 403, json: {} }));
  await type(page, "lost?");
  await page.getByText("not sent").waitFor();
  await page.unroute("**/messages");
  await page.getByRole("button", { name: "Send again" }).click();
  (await model.nextRun()).end();
  await shows(page, "before", "", "lost?", "");
});

test("older messages are shown above, and ids of messages are not those of the page", LIMIT, async () => {
  const client = new Sessiond({ baseUrl: service.url, token: service.workerKey });
  const { sessionId } = await client.createSession({ businessId: BUSINESS, userId: "user_123" });
  const contents = Array.from({ length: 60 }, (_, index) => `message ${index}`);
  const messages = contents.map((content, index) => {
    return { messageId: ["log", "input", "stop"][index] ?? `m-${index}`, role: "assistant" as const, content };
  });
  await client.appendMessages(sessionId, messages);
  const page = await tabs.tab();
  await shows(page, ...contents.slice(10));
  await page.getByRole("button", { name: "Older messages" }).click();
  await shows(page, ...contents);
  assert.ok(await page.getByRole("button", { name: "Older messages" }).isHidden());
  assert.ok(await isInView(page, "#input"));
});

for (const colorScheme of ["light", "dark"] as const) {
  test(`a phone, ${colorScheme}: nothing is cut off, and the newest is in view`, LIMIT, async () => {
    startWorker();
    await tabs.close();
    tabs = await Tabs.open(browser, server.url, { viewport: { width: 320, height: 500 }, colorScheme });
    const page = await tabs.tab();
    await type(page, "W".repeat(300));
    const run = await model.nextRun();
    run.write("line\n".repeat(60));
    run.write("the end");
    await page.getByText("the end").waitFor();
    await expectAccessible(page);
    assert.ok(await isInView(page, "article.assistant small"));
    for (const selector of ["#input", "#send", "#stop", "#new-chat"])
      assert.ok(await isInView(page, selector), selector);
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= innerWidth));
    run.end();
    assert.equal((await texts(page)).length, 2);
  });
}

async function isInView(page: Page, selector: string): Promise<boolean> {
  return page.locator(selector).evaluate((element) => {
    const { left, right, top, bottom } = element.getBoundingClientRect();
    return left >= 0 && top >= 0 && right <= innerWidth && bottom <= innerHeight;
  });
}
