import { useEffect } from "preact/hooks";
import { preferences } from "./preferences.js";

const handlers = new Map<string, () => void>();

/** Calls `handler` when the key is pressed outside of fields and dialogs. */
export function useKey(key: string, handler: () => void): void {
  useEffect(() => {
    handlers.set(key, handler);
    return () => {
      if (handlers.get(key) === handler) handlers.delete(key);
    };
  });
}

addEventListener("keydown", (event) => {
  if (!preferences.hasShortcuts || event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
  if ((event.target as Element).closest("input, textarea, select, dialog")) return;
  const handler = handlers.get(event.key);
  if (!handler) return;
  event.preventDefault();
  handler();
});
