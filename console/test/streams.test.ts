// The program's event streams in Chromium, without the console: by the code of docs/streaming.md, once with fetch and
// once with EventSource.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { openBrowser } from "./browser.js";
import { startNetwork } from "./network.js";
import { startService } from "./service.js";

const LIMIT = { timeout: 60_000 };
const WORDS = 60;

const document_ = readFileSync("../docs/streaming.md", "utf8");
const blocks = [...document_.matchAll(/^```js\n(.*?)^```$/gms)].map(([, code]) => code!);
const [code, byEventSource] = [/export function follow/, /new EventSource/].map(
  (pattern) => blocks.find((block) => pattern.test(block))!,
);
/** `read` starts reading, `shown` is the content of the page, and `texts` are the reply texts shown so far. */
const SCRIPT = `${code!.replaceAll(/^export /gm, "")}
  let conversation;
  const texts = new Set();
  function read(by, url) {
    conversation = new Conversation(async () => (await fetch(url + "/messages?limit=50")).json());
    const take = conversation.take.bind(conversation);
    conversation.take = async (event, data) => {
      await take(event, data);
      texts.add(conversation.text);
    };
    if (by === "fetch") follow(url, async () => ({}), (event, data) => conversation.take(event, data));
    if (by === "EventSource") {
      ${byEventSource}
    }
  }
  const shown = () => [...[...conversation.messages.values()].map(({ content }) => content), conversation.text];
  Object.assign(globalThis, { read, shown, texts });`;

interface Reader {
  read(by: string, url: string): void;
  shown(): string[];
  texts: Set<string>;
}

/** The calls of a writer, which accept the certificate of the test. */
class Writer {
  private from = 0;
  text = "";
  private constructor(
    private readonly context: BrowserContext,
    readonly url: string,
    private readonly number: number,
  ) {}

  static async begin(context: BrowserContext, url: string): Promise<Writer> {
    const post = async (path: string, data: object) => (await context.request.post(url + path, { data })).json();
    const { sessionId } = await post("/api/sessions", {
      businessId: "B0100001",
      userId: "user_1",
      ifActive: "replace",
    });
    const session = `/api/sessions/${sessionId}`;
    await post(`${session}/messages`, { messageId: "m-1", role: "user", content: "count" });
    const { number } = await post(`${session}/turns`, { turnId: "re:m-1", writer: "worker-1" });
    return new Writer(context, url + session, number);
  }

  async write(chunk: string): Promise<void> {
    await this.call("chunks", { from: this.from++, chunks: [chunk] });
    this.text += chunk;
  }

  async end(): Promise<void> {
    await this.call("end", { status: "completed" });
  }

  private async call(name: string, body: object): Promise<void> {
    const data = { number: this.number, ...body };
    const response = await this.context.request.post(`${this.url}/turns/re:m-1/${name}`, { data });
    assert.ok(response.ok(), await response.text());
  }
}

let browser: Browser;
before(async () => (browser = await openBrowser()));
after(() => browser.close());

/** A page of the service's origin that reads a session. */
async function openReader(context: BrowserContext, by: string, url: string): Promise<Page> {
  const page = await context.newPage();
  await page.addInitScript(SCRIPT);
  // Any page of the origin without a policy of its own.
  await page.goto(new URL("/livez", url).href);
  await read(page, by, url);
  return page;
}

async function read(page: Page, by: string, url: string): Promise<void> {
  await page.evaluate(([by, url]) => (globalThis as unknown as Reader).read(by!, url!), [by, url]);
}

/** Waits until the page shows exactly these messages, and then this text of the reply in progress. */
async function shows(page: Page, ...expected: string[]): Promise<void> {
  const shown = () => page.evaluate(() => (globalThis as unknown as Reader).shown());
  const deadlineMs = Date.now() + 20_000;
  while (JSON.stringify(await shown()) !== JSON.stringify(expected) && Date.now() < deadlineMs) {
    await page.evaluate(() => new Promise((resolve) => setTimeout(resolve, 10)));
  }
  assert.deepEqual(await shown(), expected);
}

/** Panics if the page has shown anything but prefixes of the reply. */
async function expectBeginnings(page: Page, reply: string): Promise<void> {
  const texts = await page.evaluate(() => [...(globalThis as unknown as Reader).texts]);
  assert.ok(texts.length > 1);
  for (const text of texts) assert.ok(reply.startsWith(text), text);
}

for (const by of ["fetch", "EventSource"]) {
  test(`${by}: reloads during a reply lose and repeat no word`, LIMIT, async (test) => {
    const service = await startService();
    test.after(service.stop);
    const context = await browser.newContext();
    test.after(() => context.close());
    const writer = await Writer.begin(context, service.url);
    const page = await openReader(context, by, writer.url);
    for (let word = 0; word < WORDS; word++) {
      // Some words are written while the page is not loaded.
      const reload = word % 6 === 1 ? page.reload().then(() => read(page, by, writer.url)) : undefined;
      for (const text of [`${word}`, " "]) await writer.write(text);
      await reload;
      if (word % 6 !== 5) continue;
      await shows(page, "count", writer.text);
      await expectBeginnings(page, writer.text);
    }
    await writer.end();
    await shows(page, "count", writer.text, "");
    await page.reload();
    await read(page, by, writer.url);
    await shows(page, "count", writer.text, "");
  });
}

for (const by of ["fetch", "EventSource"]) {
  test(`${by}: lost connections are continued after the last event`, LIMIT, async (test) => {
    const service = await startService();
    test.after(service.stop);
    const network = await startNetwork(service.url);
    test.after(network.stop);
    const context = await browser.newContext();
    test.after(() => context.close());
    const writer = await Writer.begin(context, service.url);
    const page = await openReader(context, by, writer.url.replace(service.url, network.url));
    for (let cut = 0; cut < 3; cut++) {
      for (const text of [`${cut}`, " "]) await writer.write(text);
      await shows(page, "count", writer.text);
      network.cut();
      await writer.write("meanwhile ");
      network.repair();
      await shows(page, "count", writer.text);
    }
    await writer.end();
    await shows(page, "count", writer.text, "");
    await expectBeginnings(page, writer.text);
  });
}

test("over HTTP/2 eight tabs have a stream each, and room for other calls", LIMIT, async (test) => {
  const folder = mkdtempSync(join(tmpdir(), "sessiond-streams-"));
  test.after(() => rmSync(folder, { recursive: true }));
  const [certificate, key] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  const openssl = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"];
  const files = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1", "-out", certificate, "-keyout", key];
  execFileSync("openssl", [...openssl, ...files], { stdio: "ignore" });
  const service = await startService("--tls-cert-file", certificate, "--tls-key-file", key);
  test.after(service.stop);
  const context = await browser.newContext({ ignoreHTTPSErrors: true });
  test.after(() => context.close());
  const writer = await Writer.begin(context, service.url);

  const tabs: Page[] = [];
  const protocols: string[] = [];
  for (let tab = 0; tab < 8; tab++) {
    const page = await openReader(context, tab % 2 ? "fetch" : "EventSource", writer.url);
    const session = await context.newCDPSession(page);
    await session.send("Network.enable");
    session.on("Network.responseReceived", ({ response }) => {
      if (response.url.includes("/events")) protocols[tab] = response.protocol!;
    });
    tabs.push(page);
  }
  for (const [tab, page] of tabs.entries()) {
    for (const text of [`${tab}`, " "]) await writer.write(text);
    // One after another, while the others continue to read.
    await page.reload();
    await read(page, tab % 2 ? "fetch" : "EventSource", writer.url);
    for (const other of tabs) await shows(other, "count", writer.text);
  }
  const status = await tabs[0]!.evaluate(async (url) => (await fetch(url)).status, writer.url);
  assert.equal(status, 200);
  await writer.end();
  for (const page of tabs) {
    await shows(page, "count", writer.text, "");
    await expectBeginnings(page, writer.text);
  }
  assert.deepEqual(protocols, Array(8).fill("h2"));
});
