import { useEffect, useState } from "preact/hooks";

/** State outside of components. They render at most once in `minMs`, however often it changes. */
export class Store {
  /** Incremented by each rendering. */
  version = 0;
  private readonly listeners = new Set<() => void>();
  private readonly minMs: number;
  private isScheduled = false;
  private notifiedMs = -Infinity;

  constructor(minMs = 0) {
    this.minMs = minMs;
  }

  subscribe(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }

  /** Called once before components render. */
  protected beforeChange(): void {}

  protected changed(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    const notify = () => {
      this.isScheduled = false;
      this.notifiedMs = performance.now();
      this.version++;
      this.beforeChange();
      for (const listener of this.listeners) listener();
    };
    const waitMs = this.notifiedMs + this.minMs - performance.now();
    if (waitMs > 0) setTimeout(notify, waitMs);
    else queueMicrotask(notify);
  }
}

/** Renders the component when the store changes. */
export function useStore<S extends Store>(store: S): S {
  const [, setVersion] = useState(store.version);
  useEffect(() => {
    const render = () => setVersion(store.version);
    // It may have changed since it was rendered.
    render();
    return store.subscribe(render);
  }, [store]);
  return store;
}
