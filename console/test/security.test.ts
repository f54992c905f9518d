// Untrusted texts stay text, and the page sends requests only to its service.

import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import type { Browser } from "playwright-core";
import { openBrowser, Tab } from "./browser.js";
import { startService, type Service } from "./service.js";

const SCRIPT = '<script>alert("script")</script><img src=x onerror=alert("img")>';
const LINK = 'javascript:alert("link")';
/** Without protection, this is displayed as `user_123 (admin)`. */
const BIDI = "user_\u202Enimda\u202C_\u200B1";
let service: Service;
let browser: Browser;

before(async () => {
  [service, browser] = await Promise.all([startService("--console-label", SCRIPT.slice(0, 32)), openBrowser()]);
});
after(async () => {
  await browser.close();
  await service.stop();
});

test("planted markup, script links and bidirectional controls stay text", async () => {
  const { sessionId } = await service.client.createSession({
    businessId: SCRIPT,
    userId: BIDI,
    locationId: LINK,
    sessionType: SCRIPT,
    title: LINK,
    metadata: { [SCRIPT]: SCRIPT },
  });
  const contents: object[] = [
    { text: SCRIPT, href: LINK, dangerouslySetInnerHTML: { __html: SCRIPT } },
    { __html: SCRIPT, type: "script", props: { children: SCRIPT } },
    { constructor: null, type: "img", props: { src: "x", onerror: "alert(1)" }, key: 1, ref: 1 },
  ];
  await service.client.appendMessages(sessionId, [
    { messageId: SCRIPT, role: "user", content: SCRIPT, metadata: { [SCRIPT]: LINK } },
    ...contents.map((content) => ({ role: "tool" as const, content: content as Record<string, unknown> })),
  ]);
  const { number, turnId } = await service.client.beginTurn(sessionId, { turnId: `turn ${SCRIPT}`, writer: SCRIPT });
  await service.client.appendChunks(sessionId, turnId, { number: number!, from: 0, chunks: [SCRIPT] });
  const tab = await Tab.open(browser, service.url, `#/session/${sessionId}`);
  await tab.shows(LINK);
  const expectInert = async (page: string) => {
    const found = await tab.page.evaluate(() => ({
      scripts: [...document.querySelectorAll("script")].filter(({ src }) => !src).length,
      images: document.querySelectorAll("img, iframe, object, embed, style").length,
      links: [...document.querySelectorAll("a")].filter(({ protocol }) => protocol !== "http:").length,
    }));
    assert.deepEqual(found, { scripts: 0, images: 0, links: 0 }, page);
  };
  await expectInert("session");
  const text = await tab.text();
  // The business, a message, the reply in progress, and the label.
  assert.ok(text.split(SCRIPT).length > 4, text);
  assert.equal(await tab.page.getByRole("heading", { level: 1 }).innerText(), LINK);
  // Identifiers show invisible characters, and their text direction is isolated.
  assert.ok(text.includes("user_U+202EnimdaU+202C_U+200B1"), text);
  assert.ok(!text.includes("\u202E"), text);
  await tab.expectAccessible("hostile session");
  for (const details of await tab.page.getByText(/^(metadata|as JSON)$/).all()) await details.click();
  await expectInert("session with details");
  await tab.page.getByRole("button", { name: "Redact… message 1" }).click();
  await expectInert("dialog");
  await tab.page.keyboard.press("Escape");

  await tab.page.locator(".above a").last().click();
  await tab.shows("1 session");
  await expectInert("user");
  await tab.expectAccessible("hostile user");
  await tab.page.locator(".above a").last().click();
  await tab.shows("1 active session");
  await expectInert("business");
  // The same in addresses.
  await tab.goto(`#/business/${encodeURIComponent(SCRIPT)}/user/${encodeURIComponent(LINK)}`);
  await tab.shows("This user has no sessions.");
  await expectInert("addresses");
  await tab.goto("#/session/%E0%A4%A");
  await tab.shows("No such page");
  await tab.close();
});

test("the policy stops an injected script", async () => {
  const tab = await Tab.open(browser, service.url);
  await tab.shows("Find a conversation");
  const reported = tab.page.waitForEvent("console", (message) => message.text().startsWith("violation: "));
  // Runs in the page's main world, like a script injected through a defect of the console.
  const results = await tab.page.evaluate(() => {
    const attempt = (run: () => void) => {
      try {
        run();
        return "done";
      } catch (error) {
        return (error as Error).name;
      }
    };
    const div = document.createElement("div");
    return {
      innerHTML: attempt(() => (div.innerHTML = "<b>x</b>")),
      policy: attempt(() => (window as any).trustedTypes.createPolicy("mine", {})),
      script: attempt(() => (document.createElement("script").text = "alert(1)")),
    };
  });
  assert.deepEqual(results, { innerHTML: "TypeError", policy: "TypeError", script: "TypeError" });
  await reported;
  await assert.rejects(tab.close(), /violation: /);
});

test("the documentation page runs within its policy", async () => {
  const tab = await Tab.open(browser, service.url);
  await tab.page.goto(`${service.url}/docs/`);
  await tab.page.getByText("Find or create a session; read, change or delete it by its id.").waitFor();
  await tab.page
    .locator("#operations-health-livez .opblock-summary-control, #operations-health-livez button")
    .first()
    .click();
  await tab.page.getByRole("button", { name: "Execute" }).click();
  await tab.page.locator(".live-responses-table").getByText("200").first().waitFor();
  await tab.close();
});
