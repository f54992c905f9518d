// Runs all parts of the example until Ctrl-C. In production, each part is a separate process.

import { Sessiond } from "sessiond";
import { scriptedModel } from "./model.js";
import { startServer } from "./server.js";
import { startService } from "./service.js";
import { work } from "./worker.js";

const BUSINESS = "B0100001";

const service = await startService(process.env.SESSIOND_PROGRAM!, BUSINESS);

const worker = new AbortController();
const client = new Sessiond({ baseUrl: service.url, token: service.workerKey });
const working = work(client, BUSINESS, scriptedModel, worker.signal).catch((error) => {
  if (!worker.signal.aborted) throw error;
});

// The example has no sign-in: every visitor of the page is this user.
const tokenOf = () => service.tokenOf(BUSINESS, "user_123");
const server = await startServer(service.url, tokenOf, Number(process.env.PORT ?? 3080));
console.log(`The chat is at ${server.url} (Ctrl-C ends it)`);

for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) {
  process.once(signal, async () => {
    server.close();
    worker.abort();
    await working;
    await service.stop();
    process.exit();
  });
}
