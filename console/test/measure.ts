// Measures the console in Chromium: not a test, because other work on the machine changes the figures.
// SESSIOND_PROGRAM should be a release build.

import { execFileSync } from "node:child_process";
import type { Browser } from "playwright-core";
import { openBrowser, Tab } from "./browser.js";
import { compressedBytes, longSession } from "./figures.js";
import { startService, type Service } from "./service.js";

const BUSINESS = "B0100001";
const SESSIONS = 10_000;
const CHANGES_PER_SECOND = 100;
const SECONDS = 20;

/** The seconds of CPU that the browser's processes have used, by kind. */
async function cpuSeconds(browser: Browser): Promise<Record<string, number>> {
  const session = await browser.newBrowserCDPSession();
  const { processInfo } = await session.send("SystemInfo.getProcessInfo");
  const seconds: Record<string, number> = {};
  for (const { type, cpuTime } of processInfo) seconds[type] = (seconds[type] ?? 0) + cpuTime;
  await session.detach();
  return seconds;
}

async function measureCpu(name: string, browser: Browser, work: () => Promise<void>): Promise<void> {
  const before = await cpuSeconds(browser);
  const started = performance.now();
  await work();
  const seconds = (performance.now() - started) / 1000;
  const after = await cpuSeconds(browser);
  const shares = Object.keys(after).map(
    (kind) => [kind, (100 * (after[kind]! - (before[kind] ?? 0))) / seconds] as const,
  );
  const all = shares.reduce((sum, [, share]) => sum + share, 0);
  const parts = shares.filter(([, share]) => share >= 0.5).map(([kind, share]) => `${kind} ${share.toFixed(0)} %`);
  console.log(`${name}: ${all.toFixed(0)} % of a core (${parts.join(", ")})`);
}

/** Changes sessions at the rate, spread over all of them. */
async function change(service: Service, ids: string[], seconds: number): Promise<void> {
  const started = performance.now();
  let failed = 0;
  for (let count = 0; count < seconds * CHANGES_PER_SECOND; count++) {
    const dueMs = started + (count * 1000) / CHANGES_PER_SECOND;
    if (dueMs > performance.now()) await new Promise((resolve) => setTimeout(resolve, dueMs - performance.now()));
    const id = ids[(count * 7919) % ids.length]!;
    const call =
      count % 4
        ? service.client.appendMessages(id, { role: "user", content: `message ${count} of the load` })
        : service.client.updateSession(id, { title: `title ${count}` });
    call.catch(() => failed++);
  }
  const rate = (seconds * CHANGES_PER_SECOND * 1000) / (performance.now() - started);
  console.log(`  ${rate.toFixed(0)} changes a second, ${failed} failed`);
}

const service = await startService();
const browser = await openBrowser();

console.log(`all files with brotli: ${await compressedBytes(service)} bytes`);

// First paint. Each context has an empty cache. No `Tab`, because it adds axe-core to the page.
const { sessionId } = await service.client.createSession({ businessId: "B-paint", userId: "u" });
await service.client.appendMessages(sessionId, { role: "user", content: "a question" });
for (const hash of ["#/", "#/business/B-paint", `#/session/${sessionId}`]) {
  const paints: number[] = [];
  for (let run = 0; run < 7; run++) {
    const context = await browser.newContext({ viewport: { width: 1280, height: 800 } });
    const page = await context.newPage();
    await page.goto(`${service.url}/console/${hash}`);
    await page.getByText(/Find a conversation|1 active session|a question/).first().waitFor();
    const [paint] = await page.evaluate(() =>
      performance.getEntriesByName("first-contentful-paint").map((entry) => entry.startTime),
    );
    paints.push(paint ?? NaN);
    await context.close();
  }
  paints.sort((a, b) => a - b);
  console.log(
    `first contentful paint ${hash.slice(0, 10)}: median ${paints[3]!.toFixed(0)} ms of 7, at most ${paints[6]!.toFixed(0)}`,
  );
}

// Elements of a long session, at positions from its end to its start.
const long = await Tab.open(browser, service.url, `#/session/${await longSession(service, "B-long", 10_000)}`);
await long.shows("#10000");
const messages = long.page.getByRole("region", { name: "Messages" });
let elements = 0;
for (let part = 200; part >= 0; part--) {
  await messages.evaluate((element, part) => (element.scrollTop = (element.scrollHeight * part) / 200), part);
  await long.page.waitForFunction(() => !document.querySelector('.message[aria-busy="true"]'));
  elements = Math.max(elements, await long.page.evaluate(() => document.querySelectorAll("*").length));
}
console.log(`10,000 messages: at most ${elements} elements`);

// Requests of a hidden tab.
await long.setHidden(true);
long.calls.length = 0;
await new Promise((resolve) => setTimeout(resolve, 60_000));
console.log(`hidden: ${long.calls.length} requests in a minute`);
await long.close();

// A large business under load.
const ids: string[] = [];
for (let index = 0; index < SESSIONS; index += 50) {
  const users = Array.from({ length: 50 }, (_, i) => `user_${index + i}`);
  const created = users.map((userId) =>
    service.client.createSession({ businessId: BUSINESS, userId, title: `of ${userId}` }),
  );
  ids.push(...(await Promise.all(created)).map((session) => session.sessionId));
}
const tab = await Tab.open(browser, service.url, `#/business/${BUSINESS}`);
await tab.shows("10,000 active sessions");
await tab.shows(/^live$/);
await measureCpu("business, idle", browser, () => new Promise((resolve) => setTimeout(resolve, SECONDS * 1000)));
await measureCpu("business, first page listed", browser, () => change(service, ids, SECONDS));
const list = tab.page.getByRole("region", { name: "Active sessions" });
for (let listed = 0; listed < SESSIONS;) {
  await list.evaluate((element) => (element.scrollTop = element.scrollHeight));
  listed = await tab.page.evaluate(() =>
    Number(document.querySelector("[aria-posinset]:last-child")!.getAttribute("aria-posinset")),
  );
}
await list.evaluate((element) => (element.scrollTop = 0));
console.log(`  ${await tab.page.evaluate(() => document.querySelectorAll("*").length)} elements`);
tab.calls.length = 0;
await measureCpu("business, all 10,000 listed", browser, () => change(service, ids, SECONDS));
console.log(`  ${tab.calls.length} calls in ${SECONDS} s`);
await tab.close();

// A reply with a high rate of chunks.
const turn = await service.client.beginTurn(sessionId, { turnId: "t", writer: "w" });
const reader = await Tab.open(browser, service.url, `#/session/${sessionId}`);
await reader.shows(/^live$/);
await measureCpu("session, 50 chunks a second", browser, async () => {
  const started = performance.now();
  for (let from = 0; from < SECONDS * 50; from++) {
    const dueMs = started + from * 20;
    if (dueMs > performance.now()) await new Promise((resolve) => setTimeout(resolve, dueMs - performance.now()));
    await service.client.appendChunks(sessionId, "t", { number: turn.number!, from, chunks: [`chunk ${from} `] });
  }
});
await reader.close();
await browser.close();
await service.stop();
console.log(
  `Chromium ${
    execFileSync(process.env.CHROMIUM ?? "chromium", ["--version"])
      .toString()
      .trim()
      .split(" ")[1]
  }`,
);
