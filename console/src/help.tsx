import type { JSX } from "preact";
import { access } from "./access.js";
import { Dialog } from "./dialog.js";
import { VERSION } from "./environment.js";
import { preferences, type Theme, type Zone } from "./preferences.js";
import { useStore } from "./store.js";
import { Id } from "./text.js";

const KEYS = [
  ["/", "find a conversation"],
  ["j", "next row"],
  ["k", "previous row"],
  ["Enter", "open the row"],
  ["u", "up: from a session to its user, to its business"],
  ["r", "refresh"],
  ["?", "this help"],
] as const;

export function Help({ onClose }: { onClose(): void }): JSX.Element {
  const { zone, theme, hasShortcuts } = useStore(preferences);
  return (
    <Dialog title="Help and settings" onClose={onClose}>
      <h3>Credential</h3>
      <Credential />
      <h3>Settings</h3>
      <label>
        Times
        <select value={zone} onChange={(event) => preferences.set({ zone: event.currentTarget.value as Zone })}>
          <option value="local">local</option>
          <option value="utc">UTC</option>
        </select>
      </label>
      <label>
        Colours
        <select value={theme} onChange={(event) => preferences.set({ theme: event.currentTarget.value as Theme })}>
          <option value="system">of the system</option>
          <option value="light">light</option>
          <option value="dark">dark</option>
        </select>
      </label>
      <label class="check">
        <input
          type="checkbox"
          checked={hasShortcuts}
          onChange={(event) => preferences.set({ hasShortcuts: event.currentTarget.checked })}
        />
        Single keys are shortcuts
      </label>
      <h3>Keys</h3>
      <dl class="keys">
        {KEYS.map(([key, meaning]) => (
          <>
            <dt>
              <kbd>{key}</kbd>
            </dt>
            <dd>{meaning}</dd>
          </>
        ))}
      </dl>
      <p class="minor">
        sessiond {VERSION} · <a href="../docs">API</a>
      </p>
      <p class="buttons">
        <button type="button" onClick={onClose}>
          Close
        </button>
      </p>
    </Dialog>
  );
}

function Credential(): JSX.Element {
  const { whoami, credential } = useStore(access);
  if (!whoami) return <p>None.</p>;
  const { businesses, userId, scopes } = whoami;
  return (
    <>
      <p>
        {credential === null ? "The service needs none. " : ""}
        May <strong>{scopes.join(", ") || "nothing"}</strong> in{" "}
        {businesses === "*"
          ? "every business"
          : businesses.map((business, i) => (
              <>
                {i > 0 && ", "}
                <Id>{business}</Id>
              </>
            ))}
        {userId && (
          <>
            , for the user <Id>{userId}</Id> only
          </>
        )}
        .
      </p>
      {credential !== null && (
        <button type="button" onClick={() => access.signOut()}>
          Sign out
        </button>
      )}
    </>
  );
}
