import { useEffect, useState } from "preact/hooks";

/** State outside of components. They render at most once in `minMs`, however often it changes. */
export class Store {
  private readonly listeners = new Set<() => void>();
  private readonly minMs: number;
  private isScheduled = false;

  constructor(minMs = 0) {
    this.minMs = minMs;
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  protected changed(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    const notify = () => {
      this.isScheduled = false;
      for (const listener of this.listeners) listener();
    };
    if (this.minMs) setTimeout(notify, this.minMs);
    else queueMicrotask(notify);
  }
}

/** Renders the component when the store changes. */
export function useStore<S extends Store>(store: S): S {
  const [, render] = useState(0);
  useEffect(() => store.subscribe(() => render((count) => count + 1)), [store]);
  return store;
}
