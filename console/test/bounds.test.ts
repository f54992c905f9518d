// The cost of the console: bytes, elements, requests.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser, Locator } from "playwright-core";
import { Heights } from "../src/heights.js";
import { openBrowser, Tab } from "./browser.js";
import { compressedBytes, longSession } from "./figures.js";
import { startService, type Service } from "./service.js";

const BUSINESS = "B0100001";
const MESSAGES = 10_000;
let service: Service;
let browser: Browser;

before(async () => {
  [service, browser] = await Promise.all([startService(), openBrowser()]);
});
after(async () => {
  await browser.close();
  await service.stop();
});

/** Scrolls a list. Returns when it has rendered the new position, which the browser reports at its next frame. */
async function scroll(list: Locator, pixels: number): Promise<void> {
  await list.evaluate(async (element, pixels) => {
    element.scrollBy(0, pixels);
    for (let frame = 0; frame < 2; frame++) await new Promise(requestAnimationFrame);
  }, pixels);
}

/** The distance of each message that is rendered from the top of the list. */
async function places(list: Locator): Promise<Record<string, number>> {
  return list.evaluate((element) => {
    const { top } = element.getBoundingClientRect();
    const rows = [...element.querySelectorAll(".seq")];
    return Object.fromEntries(rows.map((row) => [row.textContent!, row.getBoundingClientRect().top - top]));
  });
}

/** Panics unless the messages have moved down by this number of pixels. */
function expectMoved(before: Record<string, number>, after: Record<string, number>, pixels: number): void {
  const common = Object.keys(before).filter((seq) => seq in after);
  assert.ok(common.length, `${Object.keys(before)} ${Object.keys(after)}`);
  for (const seq of common) {
    assert.ok(Math.abs(after[seq]! - before[seq]! - pixels) < 2, `${pixels}, ${seq}: ${before[seq]} ${after[seq]}`);
  }
}

test("all files of the console have at most 40 kB with brotli", async () => {
  const bytes = await compressedBytes(service);
  console.log(`# ${bytes} bytes`);
  assert.ok(bytes > 10_000 && bytes <= 40_000, `${bytes}`);
});

test("a session of 10,000 messages scrolls with fewer than 500 elements, and shows each", async () => {
  const sessionId = await longSession(service, BUSINESS, MESSAGES);
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows(`#${MESSAGES}`);
  const list = tab.page.getByRole("region", { name: "Messages" });
  const seen = new Set<number>();
  let most = 0;
  const look = async () => {
    const { elements, shown } = await tab.page.evaluate(() => ({
      elements: document.querySelectorAll("*").length,
      shown: [...document.querySelectorAll(".seq")].map((element) => Number(element.textContent!.slice(1))),
    }));
    most = Math.max(most, elements);
    shown.forEach((seq) => seen.add(seq));
    return shown;
  };
  // Scrolls up by a part of a screen at a time: the row at the top stays on the screen.
  for (let screens = 0; screens < 60; screens++) {
    const before = await look();
    await scroll(list, -400);
    await tab.page.waitForFunction(() => !document.querySelector('.message[aria-busy="true"]'));
    const shown = await look();
    assert.ok(
      before.some((seq) => shown.includes(seq)),
      `${before} ${shown}`,
    );
    assert.deepEqual(
      shown,
      shown.map((_, i) => shown[0]! + i),
    );
  }
  assert.ok(seen.size > 150 && Math.max(...seen) - Math.min(...seen) === seen.size - 1, `${seen.size}`);
  // Scrolls to any position.
  for (let part = 0; part <= 20; part++) {
    await list.evaluate((element, part) => (element.scrollTop = (element.scrollHeight * part) / 20), part);
    await tab.page.waitForFunction(() => !document.querySelector('.message[aria-busy="true"]'));
    await look();
  }
  await tab.page.getByRole("button", { name: "Oldest" }).click();
  await tab.page.getByText("#1", { exact: true }).waitFor();
  await look();
  await tab.page.getByRole("button", { name: "Newest" }).click();
  await tab.page.getByText(`#${MESSAGES}`, { exact: true }).waitFor();
  await look();
  console.log(`# at most ${most} elements`);
  assert.ok(most < 500, `${most}`);
  await tab.close();
});

test("the page does not wait for messages that are no longer stored", async () => {
  const forgetful = await startService("--messages-kept", "100");
  const { sessionId } = await forgetful.client.createSession({ businessId: BUSINESS, userId: "u" });
  for (let seq = 1; seq <= 450; seq += 50) {
    const messages = Array.from({ length: 50 }, (_, i) => ({ role: "user" as const, content: `message ${seq + i}` }));
    await forgetful.client.appendMessages(sessionId, messages);
  }
  const tab = await Tab.open(browser, forgetful.url, `#/session/${sessionId}`);
  await tab.shows("#450");
  await tab.page.getByRole("button", { name: "Oldest" }).click();
  await tab.shows("Messages before #351 are no longer stored.");
  await tab.page.getByText("#351", { exact: true }).waitFor();
  await tab.page.getByRole("button", { name: "Newest" }).click();
  await tab.page.getByText("#450", { exact: true }).waitFor();
  await tab.close();
  await forgetful.stop();
});

test("messages move as far as the list is scrolled when rows get their real heights", async () => {
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "uneven" });
  const messages = Array.from({ length: 80 }, (_, i) => ({
    role: "user" as const,
    content: `line of ${i + 1}\n`.repeat(i % 5 === 0 ? 40 : 1),
  }));
  await service.client.appendMessages(sessionId, messages);
  for (const pixels of [-120, -400, -900, 120, 400, 900]) {
    const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
    await tab.shows("#80");
    const list = tab.page.getByRole("region", { name: "Messages" });
    if (pixels > 0) {
      await tab.page.getByRole("button", { name: "Oldest" }).click();
      await tab.page.getByText("#1", { exact: true }).waitFor();
    }
    /** How far the list can be scrolled in this direction. */
    const left = () =>
      list.evaluate(
        ({ scrollTop, scrollHeight, clientHeight }, pixels) =>
          pixels < 0 ? scrollTop : scrollHeight - clientHeight - scrollTop,
        pixels,
      );
    let steps = 0;
    for (; (await left()) > Math.abs(pixels) + 100; steps++) {
      const before = await places(list);
      await scroll(list, pixels);
      expectMoved(before, await places(list), -pixels);
    }
    assert.ok(steps >= 15, `${steps}`);
    await tab.close();
  }
});

test("a new position is kept when the list is rendered before the browser reports it", async () => {
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "quick" });
  const messages = Array.from({ length: 80 }, (_, i) => ({
    role: "user" as const,
    content: `line of ${i + 1}\n`.repeat(1 + (i % 7)),
  }));
  await service.client.appendMessages(sessionId, messages);
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows("#80");
  const list = tab.page.getByRole("region", { name: "Messages" });
  const refresh = await tab.page.getByRole("button", { name: "Refresh" }).elementHandle();
  for (let step = 0; step < 10; step++) {
    const before = await places(list);
    await list.evaluate((element, refresh) => {
      element.scrollBy(0, -400);
      (refresh as HTMLElement).click();
    }, refresh);
    await scroll(list, 0);
    expectMoved(before, await places(list), 400);
  }
  await tab.close();
});

test("a hidden tab sends no requests, and reads again when it is shown", async () => {
  const { sessionId } = await service.client.createSession({ businessId: BUSINESS, userId: "hidden" });
  // Each page with the number of its calls.
  for (const [hash, calls] of [
    [`#/session/${sessionId}`, 4],
    [`#/business/${BUSINESS}`, 4],
    [`#/business/${BUSINESS}/user/hidden`, 2],
  ] as const) {
    const tab = await Tab.open(browser, service.url);
    await tab.page.clock.install();
    await tab.goto(hash);
    await tab.shows(/active/);
    await tab.hasCalled(calls);
    await tab.setHidden(true);
    tab.calls.length = 0;
    await tab.page.clock.runFor(60_000);
    assert.deepEqual(tab.calls, [], hash);
    await tab.close();
  }
});

test("heights of rows: sums and searches agree with a plain list", () => {
  let seed = 7;
  const random = (below: number) => (seed = (seed * 48271) % 2147483647) % below;
  const heights = new Heights(50);
  const plain: number[] = [];
  for (let step = 0; step < 5000; step++) {
    if (random(4) === 0) {
      const count = plain.length + random(20);
      while (plain.length < count) plain.push(50);
      heights.resize(count);
    } else if (plain.length) {
      const index = random(plain.length);
      plain[index] = 1 + random(400);
      heights.set(index, plain[index]!);
    }
    const index = random(plain.length + 1);
    const top = plain.slice(0, index).reduce((sum, height) => sum + height, 0);
    assert.equal(heights.top(index), top);
    if (index < plain.length) {
      assert.equal(heights.at(top), index);
      assert.equal(heights.at(top + plain[index]! - 1), index);
    }
  }
  assert.ok(plain.length > 2000);
  assert.equal(
    heights.total,
    plain.reduce((sum, height) => sum + height, 0),
  );
});
