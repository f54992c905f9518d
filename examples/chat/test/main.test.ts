// The example as `make example-chat` runs it, with its own model.

import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { test } from "node:test";
import { openBrowser, Tabs, texts, type } from "./browser.js";

test("Stop aborts the scripted model, and Ctrl-C ends everything", { timeout: 60_000 }, async (context) => {
  // In its own process group, so that all of its processes get the signal, as from a terminal.
  const example = spawn("node", ["build/main.mjs"], {
    env: { ...process.env, PORT: "0" },
    stdio: ["ignore", "pipe", "inherit"],
    detached: true,
  });
  const exited = once(example, "exit");
  const lines = createInterface(example.stdout)[Symbol.asyncIterator]();
  const nextMatch = async (pattern: RegExp) => {
    for (;;) {
      const { value, done } = await lines.next();
      assert.ok(!done, "the example has ended");
      const match = pattern.exec(value);
      if (match) return match[1]!;
    }
  };
  const url = await nextMatch(/^The chat is at (http:\S+)/);
  const browser = await openBrowser();
  const tabs = await Tabs.open(browser, url);
  const page = await tabs.tab();

  await type(page, "When do you open?");
  await page.getByText("We open at nine").waitFor();
  await page.reload();
  await page.getByText(/^We open at nine .* on Monday morning\.$/).waitFor();

  await type(page, "Where is my order?");
  await page.getByText("I have looked").waitFor();
  const clicked = page.evaluate(
    () =>
      new Promise<number>((resolve) => {
        document.getElementById("stop")!.addEventListener("click", () => resolve(Date.now()), { capture: true });
      }),
  );
  await page.getByRole("button", { name: "Stop" }).click();
  const stopped = await nextMatch(/^(\S+) the model was stopped/);
  context.diagnostic(`from the click to the abort: ${Date.parse(stopped) - (await clicked)} ms`);
  await page.getByText(/^stopped$/).waitFor();
  assert.match((await texts(page)).at(-1)!, /^I have looked /);

  await tabs.close();
  await browser.close();
  const descendants = childrenOf(example.pid!).flatMap((pid) => [pid, ...childrenOf(pid)]);
  assert.equal(descendants.length, 2, "the service and its Redis");
  process.kill(-example.pid!, "SIGINT");
  assert.deepEqual(await exited, [0, null]);
  for (const pid of descendants) assert.throws(() => process.kill(pid, 0), `process ${pid} still runs`);
});

function childrenOf(pid: number): number[] {
  const processes = execFileSync("ps", ["-A", "-o", "ppid=,pid="]).toString().trim().split("\n");
  const pairs = processes.map((line) => line.trim().split(/\s+/).map(Number));
  return pairs.flatMap(([parent, child]) => (parent === pid ? [child!] : []));
}
