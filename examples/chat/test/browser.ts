// Chromium, and what a tab of the example must never do: violate its policy, fail, or show a dialog.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createRequire } from "node:module";
import { chromium, type Browser, type BrowserContext, type BrowserContextOptions, type Page } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"];

export async function openBrowser(...flags: string[]): Promise<Browser> {
  const named = process.env.CHROMIUM;
  const executablePath =
    named ?? execFileSync("sh", ["-c", "command -v chromium || command -v google-chrome"]).toString().trim();
  return chromium.launch({ executablePath, args: [...FLAGS, "--disable-sync", "--no-first-run", ...flags] });
}

/** The tabs of one user. `close` panics if a tab did something forbidden. */
export class Tabs {
  private readonly problems: string[] = [];
  private constructor(
    private readonly context: BrowserContext,
    private readonly url: string,
  ) {}

  static async open(browser: Browser, url: string, options: BrowserContextOptions = {}): Promise<Tabs> {
    const context = await browser.newContext(options);
    const tabs = new Tabs(context, url);
    await context.addInitScript({ path: AXE });
    await context.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => console.error(`violation: ${event.violatedDirective}`));
    });
    context.on("weberror", (error) => tabs.problems.push(`${error.error().stack}`));
    context.on("console", (message) => {
      // Responses with an error are expected: the user has no session yet.
      const isResponse = message.text().startsWith("Failed to load resource");
      if (message.type() === "error" && !isResponse) tabs.problems.push(message.text());
    });
    context.on("dialog", (dialog) => {
      tabs.problems.push(`a script has run: ${dialog.message()}`);
      void dialog.dismiss();
    });
    return tabs;
  }

  async tab(): Promise<Page> {
    const page = await this.context.newPage();
    await page.goto(this.url);
    await page.getByText(/^live$/).waitFor();
    return page;
  }

  async close(): Promise<void> {
    await this.context.close();
    assert.deepEqual(this.problems, []);
  }
}

/** The texts of all messages in the page. */
export async function texts(page: Page): Promise<string[]> {
  return page.locator("#log article p").allTextContents();
}

/** Waits until the page shows exactly these messages. */
export async function shows(page: Page, ...expected: string[]): Promise<void> {
  const deadlineMs = Date.now() + 10_000;
  while (JSON.stringify(await texts(page)) !== JSON.stringify(expected) && Date.now() < deadlineMs) {
    await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(resolve)));
  }
  assert.deepEqual(await texts(page), expected);
}

export async function type(page: Page, text: string): Promise<void> {
  await page.getByLabel("Message").fill(text);
  await page.keyboard.press("Enter");
}

/** Panics if axe-core finds a violation of WCAG 2.2 AA, or another of its rules. */
export async function expectAccessible(page: Page): Promise<void> {
  const violations = await page.evaluate(async () => {
    const { axe } = window as unknown as { axe: { run(): Promise<{ violations: any[] }> } };
    const { violations } = await axe.run();
    return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node: any) => node.html).join(" ")}`);
  });
  assert.deepEqual(violations, []);
}
