import { Store } from "./store.js";

export type Zone = "local" | "utc";
export type Theme = "system" | "light" | "dark";

const KEY = "sessiond-console";

/** The preferences of this browser's user. Stored in `localStorage`, without identifiers and credentials. */
class Preferences extends Store {
  zone: Zone = "local";
  theme: Theme = "system";
  /** Whether single keys are shortcuts. */
  hasShortcuts = true;

  constructor() {
    super();
    try {
      const saved = JSON.parse(localStorage.getItem(KEY) ?? "{}");
      if (saved.zone === "utc") this.zone = "utc";
      if (saved.theme === "light" || saved.theme === "dark") this.theme = saved.theme;
      if (saved.hasShortcuts === false) this.hasShortcuts = false;
    } catch {
      // Storage is disabled.
    }
    this.applyTheme();
  }

  set(change: Partial<Pick<Preferences, "zone" | "theme" | "hasShortcuts">>): void {
    Object.assign(this, change);
    const { zone, theme, hasShortcuts } = this;
    try {
      localStorage.setItem(KEY, JSON.stringify({ zone, theme, hasShortcuts }));
    } catch {
      // Storage is disabled: the preferences last until the page is closed.
    }
    this.applyTheme();
    this.changed();
  }

  private applyTheme(): void {
    const root = document.documentElement;
    if (this.theme === "system") delete root.dataset.theme;
    else root.dataset.theme = this.theme;
  }
}

export const preferences = new Preferences();
