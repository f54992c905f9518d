// The code of docs/workers.md, on the real program. For Node only.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { fileURLToPath } from "node:url";

import { FakeListChatModel } from "@langchain/core/utils/testing";
import { NestFactory } from "@nestjs/core";

import type { Sessiond } from "../src/index.js";
import { startEnvironment } from "./environment.js";
import { serverClient, userClient } from "./support.js";

const root = fileURLToPath(new URL("../..", import.meta.url));

/** Builds the files of the page in a folder from which their imports can be resolved. */
function build(): string {
  const folder = join(root, "build/recipes");
  mkdirSync(folder, { recursive: true });
  const page = readFileSync(join(root, "../../docs/workers.md"), "utf8");
  for (const [, code, name] of page.matchAll(/^```ts\n(\/\/ (\S+)\.ts\n[^]*?)^```/gm)) {
    writeFileSync(join(folder, `${name}.ts`), code!);
  }
  writeFileSync(join(folder, "tsconfig.json"), '{"compilerOptions":{"experimentalDecorators":true,"target":"ES2022"}}');
  const alias = `--alias:sessiond=${join(root, "build/src/index.js")}`;
  const args = ["--bundle", "--packages=external", "--format=esm", "--platform=node", alias, "--outfile=chat.js"];
  execFileSync(join(root, "node_modules/.bin/esbuild"), [...args, "chat.module.ts", "--log-level=warning"], {
    cwd: folder,
  });
  return join(folder, "chat.js");
}

/** The reply to a message, when it is stored. */
async function replyTo(client: Sessiond, sessionId: string, messageId: string) {
  for await (const { type, data } of client.events(sessionId, { last: 100 })) {
    if (type === "message" && data.messageId === `re:${messageId}`) return data.content;
  }
  throw new Error("the stream ended");
}

test("a backend with NestJS and a worker with LangChain.js answer each message once", async () => {
  const { env, stop } = await startEnvironment();
  const client = serverClient(env);
  const page = userClient(env);
  const { sessionId } = await page.createSession({ businessId: "B0100001", userId: "user_123" });
  await page.appendMessages(sessionId, { messageId: "m-0", role: "user", content: "before the worker runs" });

  const { ChatModule } = await import(build());
  const model = new FakeListChatModel({ responses: ["zero", "one", "two", "three", "four"] });
  const app = await NestFactory.create(ChatModule.with(client, model), { logger: false });
  try {
    await app.listen(0, "127.0.0.1");
    assert.equal(await replyTo(page, sessionId, "m-0"), "zero");

    const send = async (messageId: string) => {
      const response = await fetch(`${await app.getUrl()}/chat/${sessionId}/messages`, {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ messageId, content: "When do you open?" }),
      });
      return [response.status, (await response.json()).seq];
    };
    assert.deepEqual(await send("m-1"), [201, 3]);
    assert.equal(await replyTo(page, sessionId, "m-1"), "one");
    assert.deepEqual(await send("m-1"), [201, 3]);

    await page.appendMessages(sessionId, { messageId: "m-2", role: "user", content: "without the backend" });
    assert.equal(await replyTo(page, sessionId, "m-2"), "two");
    const contents = (await page.getSessionMessages(sessionId)).map(({ messageId }) => messageId);
    assert.deepEqual(contents, ["m-0", "re:m-0", "m-1", "re:m-1", "m-2", "re:m-2"]);
  } finally {
    await app.close();
    await stop();
  }
});
