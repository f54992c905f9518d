// Draws docs/chat.png, and in build/screenshots/ the same dark and on a phone.

import { mkdirSync } from "node:fs";
import { Sessiond } from "sessiond";
import { startServer } from "../server.js";
import { startService } from "../service.js";
import { work } from "../worker.js";
import { openBrowser, Tabs, type } from "./browser.js";
import { TestModel } from "./model.js";

const BUSINESS = "B0100001";
const CONVERSATION = [
  ["When do you open on Sunday?", "On Sundays the shop is closed. From Monday to Friday we open at nine."],
  [
    "And where is my order 4711?",
    "It left our warehouse on Friday and is with the carrier now. They expect to deliver ",
  ],
] as const;

const service = await startService(process.env.SESSIOND_PROGRAM!, BUSINESS);
const server = await startServer(service.url, () => service.tokenOf(BUSINESS, "user_123"));
const browser = await openBrowser();
const workers = new AbortController();
const model = new TestModel();
const client = new Sessiond({ baseUrl: service.url, token: service.workerKey });
const working = work(client, BUSINESS, model.model, workers.signal).catch(() => {});

mkdirSync("build/screenshots", { recursive: true });
const looks = {
  light: { path: "../../docs/chat.png", viewport: { width: 720, height: 420 } },
  dark: { path: "build/screenshots/dark.png", viewport: { width: 720, height: 420 }, colorScheme: "dark" },
  phone: { path: "build/screenshots/phone.png", viewport: { width: 360, height: 640 }, deviceScaleFactor: 2 },
} as const;
for (const [index, { path, ...options }] of Object.values(looks).entries()) {
  const tabs = await Tabs.open(browser, server.url, options);
  const page = await tabs.tab();
  for (const [question, answer] of index ? [] : CONVERSATION) {
    await type(page, question);
    const run = await model.nextRun();
    run.write(answer);
    await page.getByText(answer).waitFor();
    if (question !== CONVERSATION.at(-1)![0]) run.end();
  }
  await page.getByText("writing …").waitFor();
  await page.screenshot({ path });
  await tabs.close();
}
await browser.close();
server.close();
workers.abort();
await working;
await service.stop();
