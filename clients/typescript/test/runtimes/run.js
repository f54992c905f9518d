// Runs the suite on each runtime that users have. test/run has built it, and installed the runtimes.
// RUNTIMES: the names of some of them. CHROMIUM: the program.

import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";

import { startEnvironment } from "../../build/test/environment.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** The suite as one script. */
function bundle(entry, ...options) {
  const args = ["--bundle", "--format=esm", "--target=es2022", "--log-level=warning", ...options];
  return execFileSync(`${root}/node_modules/.bin/esbuild`, args, { cwd: root, input: entry }).toString();
}
const script = bundle('export * from "./build/test/suite.js"', "--format=iife", "--global-name=suite");

/** For each runtime, a function that gives the results of the suite. */
const runtimes = {
  node18: () => node(`${root}/test/runtimes/node_modules/node18/bin/node`),
  node22: () => node(`${root}/test/runtimes/node_modules/node22/bin/node`),

  async chromium({ env, proxy }) {
    const { chromium } = await import("playwright-core");
    const args = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"];
    const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args });
    try {
      // Calls of the page to the proxy are of its origin; those to the service are across origins.
      proxy.files.set("/page", { type: "text/html", body: '<!doctype html><script src="/suite.js"></script>' });
      proxy.files.set("/suite.js", { type: "text/javascript", body: script });
      const page = await browser.newPage();
      await page.goto(`${proxy.url}/page`);
      // A browser has six connections to an origin.
      return await page.evaluate((env) => suite.run(env), { ...env, writers: 2 });
    } finally {
      await browser.close();
    }
  },

  async workerd({ env }) {
    const { Miniflare } = await import("miniflare");
    const worker = `import { run } from "./build/test/suite.js";
      export default { fetch: async (request) => Response.json(await run(await request.json())) };`;
    const miniflare = new Miniflare({ modules: true, script: bundle(worker), compatibilityDate: "2025-01-01" });
    try {
      const response = await miniflare.dispatchFetch("http://worker/", { method: "POST", body: JSON.stringify(env) });
      return await response.json();
    } finally {
      await miniflare.dispose();
    }
  },

  async "edge-runtime"({ env }) {
    const { EdgeRuntime } = await import("edge-runtime");
    const runtime = new EdgeRuntime({ initialCode: `${script}\nglobalThis.suite = suite;` });
    return JSON.parse(await runtime.evaluate(`suite.run(${JSON.stringify(env)}).then(JSON.stringify)`));
  },
};

/** The tests of Node by another Node. They start a service of their own. */
function node(program) {
  const tests = ["suite", "node"].map((name) => `build/test/${name}.test.js`);
  execFileSync(program, ["--test", ...tests], { cwd: root, stdio: ["ignore", "inherit", "inherit"] });
  return [];
}

const names = process.env.RUNTIMES?.split(" ") ?? Object.keys(runtimes);
let failed = 0;
for (const name of names) {
  console.log(`Running the suite on ${name}`);
  const start = Date.now();
  const environment = await startEnvironment();
  try {
    for (const { name: test, error } of await runtimes[name](environment)) {
      console.log(error ? `not ok: ${test}\n${error}` : `ok: ${test}`);
      if (error) failed++;
    }
  } finally {
    await environment.stop();
  }
  console.log(`${name}: ${((Date.now() - start) / 1000).toFixed(1)} s`);
}
if (failed) throw new Error(`${failed} tests failed`);
