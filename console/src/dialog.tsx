import type { ComponentChildren, JSX } from "preact";
import { useLayoutEffect, useRef, useState } from "preact/hooks";
import { access } from "./access.js";
import { Failure } from "./failure.js";
import { Id } from "./text.js";

interface DialogProps {
  title: string;
  onClose(): void;
  children: ComponentChildren;
}

/** A modal dialog. The browser keeps the focus in it, closes it by Escape, and restores the focus. */
export function Dialog({ title, onClose, children }: DialogProps): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  useLayoutEffect(() => {
    const before = document.activeElement as HTMLElement | null;
    dialog.current!.showModal();
    return () => before?.isConnected && before.focus();
  }, []);
  return (
    <dialog ref={dialog} aria-labelledby="dialog-title" onClose={onClose}>
      <h2 id="dialog-title">{title}</h2>
      {children}
    </dialog>
  );
}

interface ActionProps {
  title: string;
  /** The label of its button. */
  verb: string;
  isDestructive?: boolean;
  /** The id that must be typed. */
  typed?: string;
  children?: ComponentChildren;
  run(): Promise<void>;
  onClose(): void;
}

/** Asks for confirmation of an action, shows its error, and closes after it. */
export function ActionDialog({ title, verb, isDestructive, typed, children, run, onClose }: ActionProps): JSX.Element {
  const [text, setText] = useState("");
  const [isRunning, setRunning] = useState(false);
  const [error, setError] = useState<unknown>(null);
  const isReady = !isRunning && (typed === undefined || text === typed);
  const submit = async (event: Event) => {
    event.preventDefault();
    if (!isReady) return;
    setRunning(true);
    setError(null);
    try {
      await run();
      onClose();
    } catch (error) {
      access.rejected(error);
      setError(error);
      setRunning(false);
    }
  };
  return (
    <Dialog title={title} onClose={onClose}>
      <form onSubmit={submit}>
        {children}
        {typed !== undefined && (
          <label>
            <span>
              Type <Id>{typed}</Id> to confirm
            </span>
            <input
              value={text}
              onInput={(event) => setText(event.currentTarget.value)}
              autocomplete="off"
              spellcheck={false}
              autofocus
            />
          </label>
        )}
        {error != null && <Failure error={error} what="The action failed." />}
        <p class="buttons">
          <button type="button" onClick={onClose}>
            Cancel
          </button>
          <button type="submit" class={isDestructive ? "danger" : "primary"} disabled={!isReady}>
            {isRunning ? "…" : verb}
          </button>
        </p>
      </form>
    </Dialog>
  );
}
