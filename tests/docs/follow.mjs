// Runs the code of docs/streaming.md: a page follows a session of the service at SESSIOND_URL while replies are
// written, is reloaded, and loses its connections. In the end it must show what is stored.
import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";

const page = await readFile(new URL("../../docs/streaming.md", import.meta.url), "utf8");
const [code] = page.match(/(?<=^```js\n)\/\/ Calls `take`.*?(?=^```$)/ms);
const { follow, Conversation } = await import(`data:text/javascript,${encodeURIComponent(code)}`);

async function call(path, body, method = body ? "POST" : "GET") {
  const headers = { "Content-Type": "application/json" };
  const response = await fetch(process.env.SESSIOND_URL + path, { method, headers, body: body && JSON.stringify(body) });
  assert.ok(response.ok, `${path}: ${response.status}`);
  return response.status === 204 ? null : response.json();
}

const { sessionId } = await call("/api/sessions", { businessId: "B0100001", userId: "follow.mjs" });
const path = `/api/sessions/${sessionId}`;

// Opens a page. `until` waits until its content meets a condition.
function open() {
  const shown = new Conversation(() => call(`${path}/messages?limit=50`));
  const opened = { shown, events: [], waiting: () => {} };
  opened.close = follow(process.env.SESSIOND_URL + path, async () => ({}), async (event, data) => {
    opened.events.push(event);
    await shown.take(event, data);
    opened.waiting();
  });
  opened.until = (condition) =>
    new Promise((resolve) => {
      opened.waiting = () => condition(shown) && resolve();
      opened.waiting();
    });
  return opened;
}

const has = (text) => (shown) => shown.text === text;
const contents = ({ messages }) => [...messages.values()].map(({ content }) => content);

// Responses end soon after each of these texts, as when a proxy cuts them.
const cuts = [];
let cutCount = 0;
const plainFetch = globalThis.fetch;
globalThis.fetch = async (url, options) => {
  const response = await plainFetch(url, options);
  if (!String(url).includes("/events")) return response;
  let received = "";
  const cut = new TransformStream({
    transform(bytes, controller) {
      received += new TextDecoder().decode(bytes);
      controller.enqueue(bytes);
      if (cuts.length > 0 && received.includes(cuts[0])) {
        cuts.shift();
        setTimeout(() => {
          cutCount += 1;
          controller.error(new Error("cut"));
        }, 20);
      }
    },
  });
  return { ok: response.ok, status: response.status, body: response.body.pipeThrough(cut) };
};
console.warn = () => {};

const first = open();
await call(`${path}/messages`, { messageId: "m-1", role: "user", content: "a" });
const { number } = await call(`${path}/turns`, { turnId: "re:m-1", writer: "w1" });
cuts.push('"two');
await call(`${path}/turns/re:m-1/chunks`, { number, from: 0, chunks: ["one ", "two\u2028"] });
while (cutCount < 1) await new Promise((resolve) => setTimeout(resolve, 10));
await call(`${path}/turns/re:m-1/chunks`, { number, from: 2, chunks: ["three "] });
await first.until(has("one two\u2028three "));
first.close();
// A reload during the reply.
const second = open();
await second.until(has("one two\u2028three "));
const { number: taken } = await call(`${path}/turns`, { turnId: "re:m-1", writer: "w2", ifOpen: "takeover" });
await call(`${path}/turns/re:m-1/chunks`, { number: taken, from: 3, chunks: ["and"] });
await second.until(has("one two\u2028three and"));
const { number: restarted } = await call(`${path}/turns`, { turnId: "re:m-1", writer: "w3", ifOpen: "discard" });
await second.until(has(""));
cuts.push('"four"');
await call(`${path}/turns/re:m-1/chunks`, { number: restarted, from: 0, chunks: ["four"] });
await second.until(has("four"));
// The rest is written while the page is disconnected.
while (cutCount < 2) await new Promise((resolve) => setTimeout(resolve, 10));
await call(`${path}/turns/re:m-1/chunks`, { number: restarted, from: 1, chunks: [" five"] });
await call(`${path}/turns/re:m-1/end`, { number: restarted, status: "completed" });
await second.until(({ turn, messages, text }) => turn.status === "completed" && messages.size === 2 && text === "");
// A message is changed more often than the service records while the page is disconnected, and then redacted.
cuts.push("changed");
for (let count = 1; count <= 20; count++) await call(`${path}/messages/m-1`, { metadata: { count } }, "PATCH");
await second.until(({ messages }) => messages.get(1).metadata.count === 20);
await call(`${path}/messages/m-1`, undefined, "DELETE");
await second.until(({ messages }) => messages.get(1).content === null);
assert.deepEqual(contents(second.shown), [null, "four five"]);
assert.equal(second.shown.text, "");
await call(path, undefined, "DELETE");
await second.until(() => ["deleted", "rejected"].includes(second.events.at(-1)));
console.log("the code showed what was written");
process.exit(0);
