// What only Node can show: the signal's own list of listeners, and two copies of the package.

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { cpSync, rmSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import * as first from "../src/index.js";

test("10,000 concurrent calls on one signal keep no listener and cause no warning", async () => {
  const warnings: Error[] = [];
  const warned = (warning: Error) => void warnings.push(warning);
  process.on("warning", warned);
  const client = new first.Sessiond({ baseUrl: "http://localhost", fetch: async () => new Response("{}") });
  const { signal } = new AbortController();
  const calls = Array.from({ length: 10_000 }, () => client.livez({ signal }));
  assert.equal(getEventListeners(signal, "abort").length, 1);
  await Promise.all(calls);
  assert.equal(getEventListeners(signal, "abort").length, 0);
  // Node warns in a later turn.
  await new Promise((resolve) => setImmediate(resolve));
  process.off("warning", warned);
  assert.deepEqual(warnings, []);
});

test("a process ends when its calls have ended, without waiting for timers", async () => {
  const resources = () => (process as unknown as { getActiveResourcesInfo(): string[] }).getActiveResourcesInfo();
  const timers = () => resources().filter((resource) => resource === "Timeout").length;
  const before = timers();
  const options = { baseUrl: "http://localhost", timeoutMs: 3_600_000 };
  await new first.Sessiond({ ...options, fetch: async () => new Response("{}") }).livez();
  const controller = new AbortController();
  const client = new first.Sessiond({ ...options, fetch: () => new Promise(() => {}) });
  const call = client.livez({ signal: controller.signal });
  controller.abort();
  await assert.rejects(call, { name: "AbortError" });
  assert.equal(timers(), before);
});

test("errors of another copy of the package are recognised", async () => {
  const copy = fileURLToPath(new URL("../copy/", import.meta.url));
  cpSync(fileURLToPath(new URL("../src/", import.meta.url)), copy, { recursive: true });
  const second: typeof first = await import(`${copy}index.js`);
  rmSync(copy, { recursive: true });

  const respond = async () => new Response('{"code":"version_mismatch"}', { status: 412 });
  const error = await new second.Sessiond({ baseUrl: "http://localhost", fetch: respond }).livez().catch((e) => e);
  assert(!(error instanceof first.SessiondError));
  assert(first.isSessiondError(error) && error.name === "ProblemError");
  assert(first.isProblem(error) && first.isProblem(error, "version_mismatch") && !first.isProblem(error, "forbidden"));
  const refused = await new second.Sessiond({ baseUrl: "/" }).getSession("..").catch((e) => e);
  assert(first.isSessiondError(refused) && refused.name === "SessiondError" && !first.isProblem(refused));
  for (const other of [null, undefined, "no", new Error("no"), { name: "ProblemError" }]) {
    assert(!first.isSessiondError(other) && !first.isProblem(other));
  }
  assert.match(String(error.stack), /^ProblemError: 412 version_mismatch/);
});
