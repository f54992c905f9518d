import type { JSX } from "preact";
import { access, BASE_URL } from "./access.js";
import { notice } from "./notice.js";

export async function copy(text: string, what: string): Promise<void> {
  try {
    // Missing on pages without TLS.
    if (navigator.clipboard) await navigator.clipboard.writeText(text);
    else copyBySelection(text);
    notice.show(`Copied ${what}`);
  } catch {
    notice.show(`The browser does not allow copying ${what}`);
  }
}

function copyBySelection(text: string): void {
  const area = document.createElement("textarea");
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  const focused = document.activeElement as HTMLElement | null;
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus();
  if (!isCopied) throw new Error("not copied");
}

interface CopyButtonProps {
  text: string;
  /** A description of the text, such as "the user id". */
  what: string;
  label: string;
  /** The name of the button, if the label alone is ambiguous. */
  of?: string;
}

export function CopyButton({ text, what, label, of }: CopyButtonProps): JSX.Element {
  return (
    <button type="button" class="quiet" aria-label={of && `${label} of ${of}`} onClick={() => void copy(text, what)}>
      {label}
    </button>
  );
}

/** The call as a command, with a variable instead of the credential. */
export function curl(path: string): string {
  const credential = access.credential === null ? "" : ' -H "Authorization: Bearer $SESSIOND_CREDENTIAL"';
  return `curl -sS${credential} '${`${BASE_URL}${path}`.replaceAll("'", "'\\''")}'`;
}
