import type { ComponentChildren, JSX } from "preact";
import { useEffect } from "preact/hooks";
import { LABEL } from "./environment.js";
import { isolated } from "./text.js";

interface Props {
  /** The kind of object that the title names. */
  kind?: string;
  title: ComponentChildren;
  /** The title in plain text. */
  windowTitle: string;
  /** Links to the pages above. */
  above?: ComponentChildren;
  children?: ComponentChildren;
}

/** The heading of a page, and the title of the window. */
export function PageHead({ kind, title, windowTitle, above, children }: Props): JSX.Element {
  useEffect(() => {
    document.title = [isolated(windowTitle), LABEL, "sessiond"].filter(Boolean).join(" · ");
  }, [windowTitle]);
  return (
    <div class="page-head">
      {above && (
        <nav class="above" aria-label="Above this page">
          {above}
        </nav>
      )}
      <h1>
        {kind && <span class="kind">{kind} </span>}
        {title}
      </h1>
      <div class="page-line">{children}</div>
    </div>
  );
}
