import type { ComponentChildren, JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import { access, explained } from "./access.js";

/** An error, in place of content that could not be loaded or above outdated content. */
export function Failure({ error, what, retry }: { error: unknown; what: string; retry?: () => void }): JSX.Element {
  const { title, detail, requestId } = explained(error);
  return (
    <div class="failure" role="alert">
      <p>
        <strong>{what}</strong> {title}: {detail}
      </p>
      {requestId && (
        <p class="minor">
          Request <code>{requestId}</code>
        </p>
      )}
      {retry && (
        <button type="button" onClick={retry}>
          Try again
        </button>
      )}
    </div>
  );
}

export function Loading({ children }: { children: ComponentChildren }): JSX.Element {
  return (
    <p class="loading" role="status" aria-busy="true">
      {children}
    </p>
  );
}

export interface Loaded<T> {
  /** Null until the first success. Kept while the value is read again. */
  value: T | null;
  error: unknown;
  isLoading: boolean;
  reload(): void;
  set(value: T): void;
}

/** Reads a value when `key` changes, and aborts the read when the component is removed. */
export function useLoaded<T>(key: string, read: (signal: AbortSignal) => Promise<T>): Loaded<T> {
  const [attempt, setAttempt] = useState(0);
  const [state, setState] = useState<{ key: string; value: T | null; error: unknown; isLoading: boolean }>({
    key,
    value: null,
    error: null,
    isLoading: true,
  });
  const current = state.key === key ? state : { key, value: null, error: null, isLoading: true };
  useEffect(() => {
    const aborter = new AbortController();
    setState({ ...current, isLoading: true });
    read(aborter.signal).then(
      (value) => !aborter.signal.aborted && setState({ key, value, error: null, isLoading: false }),
      (error: unknown) => {
        if (aborter.signal.aborted) return;
        access.rejected(error);
        setState((last) => ({ key, value: last.key === key ? last.value : null, error, isLoading: false }));
      },
    );
    return () => aborter.abort();
  }, [key, attempt]);
  return {
    ...current,
    reload: () => setAttempt((count) => count + 1),
    set: (value) => setState({ key, value, error: null, isLoading: false }),
  };
}
