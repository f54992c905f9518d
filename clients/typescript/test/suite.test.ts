// The suite on Node.

import { after, before, test } from "node:test";

import { startEnvironment } from "./environment.js";
import { tests } from "./suite.js";

let environment: Awaited<ReturnType<typeof startEnvironment>> | undefined;
before(async () => {
  environment = await startEnvironment();
});
after(async () => {
  if (!environment) return;
  console.log("faults of the proxy:", JSON.stringify(Object.fromEntries(environment.proxy.counts)));
  await environment.stop();
});

for (const [name, run] of Object.entries(tests)) test(name, () => run(environment!.env));
