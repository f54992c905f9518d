// Chromium, and what pages of the console must never do: violate their policy, set a cookie, or request other origins.

import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { execFileSync } from "node:child_process";
import { chromium, type Browser, type BrowserContextOptions, type Page, type Request } from "playwright-core";

const AXE = createRequire(import.meta.url).resolve("axe-core/axe.min.js");
const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"];

export async function openBrowser(): Promise<Browser> {
  const named = process.env.CHROMIUM;
  const executablePath =
    named ?? execFileSync("sh", ["-c", "command -v chromium || command -v google-chrome"]).toString().trim();
  return chromium.launch({ executablePath, args: [...FLAGS, "--disable-sync", "--no-first-run"] });
}

export class Tab {
  readonly page: Page;
  /** The requests since the start, without those for the page's own files. */
  readonly calls: string[] = [];
  /** The calls without a response, except streams. */
  private readonly pending = new Set<Request>();
  private readonly url: string;
  private readonly problems: string[] = [];

  private constructor(page: Page, url: string) {
    this.page = page;
    this.url = url;
  }

  static async open(browser: Browser, url: string, hash = "#/", options: BrowserContextOptions = {}): Promise<Tab> {
    const context = await browser.newContext({
      viewport: { width: 1280, height: 800 },
      acceptDownloads: true,
      ...options,
    });
    await context.grantPermissions(["clipboard-read", "clipboard-write"]);
    const page = await context.newPage();
    const tab = new Tab(page, url);
    await page.addInitScript({ path: AXE });
    await page.addInitScript(() => {
      addEventListener("securitypolicyviolation", (event) => {
        console.error(`violation: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`);
      });
    });
    page.on("pageerror", (error) => tab.problems.push(`${error.stack}`));
    page.on("console", (message) => {
      // Responses with an error are expected, and shown.
      const isResponse = message.text().startsWith("Failed to load resource");
      if (message.type() === "error" && !isResponse) tab.problems.push(message.text());
    });
    page.on("dialog", (dialog) => {
      tab.problems.push(`a script has run: ${dialog.message()}`);
      void dialog.dismiss();
    });
    context.on("request", (request) => {
      const target = new URL(request.url());
      if (target.protocol === "blob:") return;
      if (target.origin !== url) tab.problems.push(`a request to ${target}`);
      if (target.pathname.startsWith("/console/")) return;
      tab.calls.push(`${request.method()} ${target.pathname}${target.search}`);
      if (!target.pathname.endsWith("/events")) tab.pending.add(request);
    });
    context.on("requestfinished", (request) => tab.pending.delete(request));
    context.on("requestfailed", (request) => tab.pending.delete(request));
    await page.goto(`${url}/console/${hash}`);
    return tab;
  }

  async goto(hash: string): Promise<void> {
    await this.page.goto(`${this.url}/console/${hash}`);
  }

  /** Simulates that the tab is hidden or shown again, because headless Chromium hides no tab. */
  async setHidden(isHidden: boolean): Promise<void> {
    await this.page.evaluate((isHidden) => {
      Object.defineProperty(document, "hidden", { value: isHidden, configurable: true });
      Object.defineProperty(document, "visibilityState", {
        value: isHidden ? "hidden" : "visible",
        configurable: true,
      });
      document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);
  }

  /** Waits until a text is shown. */
  async shows(text: string | RegExp): Promise<void> {
    await this.page
      .getByText(text)
      .first()
      .waitFor({ timeout: 10_000 })
      .catch(async (error) => assert.fail(`${error.message}\n${await this.text()}`));
  }

  /** Waits until this many calls have been made, and all but streams have a response. */
  async hasCalled(times: number): Promise<void> {
    while (this.calls.length < times) await this.page.waitForEvent("request");
    while (this.pending.size) await this.page.waitForEvent("requestfinished");
  }

  async text(): Promise<string> {
    return this.page.evaluate(() => document.body.innerText);
  }

  /** The names of all visible buttons. */
  async buttons(): Promise<string[]> {
    return this.page.evaluate(() => [...document.querySelectorAll("button")].map((button) => button.innerText));
  }

  /** Moves the focus by Tab until it is on the element with this name. */
  async tabTo(name: string): Promise<void> {
    const seen = [];
    for (let presses = 0; presses < 80; presses++) {
      const focused = await this.page.evaluate(() => {
        const element = document.activeElement as HTMLElement;
        const label = element.closest("label")?.innerText.trim();
        return element.getAttribute("aria-label") ?? label ?? element.innerText.trim();
      });
      if (focused.startsWith(name)) return;
      seen.push(focused);
      await this.page.keyboard.press("Tab");
    }
    assert.fail(`Tab does not reach ${name}: ${seen.join(" | ")}`);
  }

  /** Panics if axe-core finds a violation of WCAG 2.2 AA, or another of its rules. */
  async expectAccessible(state: string): Promise<void> {
    const violations = await this.page.evaluate(async () => {
      const { axe } = window as unknown as { axe: { run(): Promise<{ violations: any[] }> } };
      const { violations } = await axe.run();
      return violations.map(({ id, nodes }) => `${id}: ${nodes.map((node: any) => node.html).join(" ")}`);
    });
    assert.deepEqual(violations, [], state);
  }

  /** Panics if a script has failed, or the page did something forbidden. */
  async close(): Promise<void> {
    const cookies = await this.page.context().cookies();
    await this.page.context().close();
    assert.deepEqual(this.problems, []);
    assert.deepEqual(cookies, []);
  }
}
