import type { JSX } from "preact";
import { Store, useStore } from "./store.js";

/** A short text about the last action, such as "Copied". Screen readers announce it. */
class Notice extends Store {
  text = "";
  private timer: ReturnType<typeof setTimeout> | undefined;

  show(text: string): void {
    this.text = text;
    this.changed();
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      this.text = "";
      this.changed();
    }, 6000);
  }
}

export const notice = new Notice();

export function NoticeBar(): JSX.Element {
  const { text } = useStore(notice);
  return (
    <div class="notice" role="status">
      {text && <p>{text}</p>}
    </div>
  );
}
