// Draws docs/console.png, and in build/screenshots/ every page: light, dark and on a phone.

import { mkdirSync } from "node:fs";
import { openBrowser, Tab } from "./browser.js";
import { startService } from "./service.js";

const BUSINESS = "B0100001";
const USERS = [
  "anna.schmidt@example.com",
  "auth0|5f7c8ec7c33c6c00",
  "urn:customer:99812",
  "kim",
  "m.okafor@example.org",
];
const TITLES = ["Order 4711 has not arrived", "Change of address", "Opening hours on Sunday", null, "استرداد المبلغ"];
const QUESTIONS = ["Where is my parcel?", "We have moved.", "When do you open on Sunday?", "Hello?", "متى يصل طلبي؟"];
const ANSWER = [
  "I have looked at your order. ",
  "It left our warehouse on Friday and is with the carrier now. ",
  "They expect to deliver it ",
];

const service = await startService("--console-label", "staging");
const { client } = service;
for (let user = 0; user < 12; user++) {
  const title = TITLES[user % TITLES.length]!;
  const userId = USERS[user] ?? `user_${user}`;
  const session = await client.createSession({ businessId: BUSINESS, userId, title });
  await client.appendMessages(session.sessionId, { role: "user", content: QUESTIONS[user % QUESTIONS.length]! });
  if (user % 3) await client.appendMessages(session.sessionId, { role: "assistant", content: "Let me have a look." });
}
const { sessionId } = await client.createSession({
  businessId: BUSINESS,
  userId: USERS[0]!,
  ifActive: "replace",
  title: TITLES[0]!,
  metadata: { channel: "web", page: "/orders/4711" },
});
await client.appendMessages(sessionId, [
  { role: "system", content: "You help the customers of a shop for kitchen goods. Be brief and friendly." },
  { role: "user", content: "Where is my parcel? The order is number 4711." },
  { role: "assistant", content: "I am sorry that it is late. Let me see where it is.", metadata: { model: "m-2" } },
  { role: "tool", content: { order: 4711, carrier: "DHL", status: "in transit", eta: "2026-12-01" } },
]);
const turn = await client.beginTurn(sessionId, { turnId: "re:m-1", writer: "worker-7f3a" });
await client.appendChunks(sessionId, turn.turnId, { number: turn.number!, from: 0, chunks: ANSWER });

const folder = "build/screenshots";
mkdirSync(folder, { recursive: true });
const browser = await openBrowser();
const pages = {
  find: "#/",
  business: `#/business/${BUSINESS}`,
  user: `#/business/${BUSINESS}/user/${encodeURIComponent(USERS[0]!)}`,
  session: `#/session/${sessionId}`,
};
const phone = { viewport: { width: 390, height: 844 }, deviceScaleFactor: 2 };
for (const [look, options] of Object.entries({ light: {}, dark: { colorScheme: "dark" as const }, phone })) {
  for (const [page, hash] of Object.entries(pages)) {
    const tab = await Tab.open(browser, service.url, hash, options);
    await tab.shows(/^live$|Find a|2 sessions/);
    await tab.page.screenshot({ path: `${folder}/${page}-${look}.png` });
    if (page === "session" && look === "light") await tab.page.screenshot({ path: "../docs/console.png" });
    await tab.close();
  }
}
await browser.close();
await service.stop();
