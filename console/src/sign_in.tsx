import type { JSX } from "preact";
import { useState } from "preact/hooks";
import { access } from "./access.js";
import { Failure } from "./failure.js";
import { useStore } from "./store.js";

export function SignIn(): JSX.Element {
  const { error, state } = useStore(access);
  const [credential, setCredential] = useState("");
  const [isKept, setKept] = useState(false);
  const submit = (event: Event) => {
    event.preventDefault();
    if (credential.trim()) void access.signIn(credential.trim(), isKept);
  };
  return (
    <main class="page narrow" id="main">
      <h1>Sign in</h1>
      {error != null && (
        <Failure error={error} what={state === "failed" ? "Not signed in." : "The credential is not accepted."} />
      )}
      <form class="card" onSubmit={submit}>
        <label>
          API key or JWT
          <input
            type="password"
            value={credential}
            onInput={(event) => setCredential(event.currentTarget.value)}
            autocomplete="current-password"
            required
          />
        </label>
        <label class="check">
          <input type="checkbox" checked={isKept} onChange={(event) => setKept(event.currentTarget.checked)} />
          Keep it until this tab is closed
        </label>
        <p class="minor">Otherwise it is forgotten when the page is reloaded. It is never part of an address.</p>
        <p class="buttons">
          <button type="submit" class="primary">
            Sign in
          </button>
        </p>
      </form>
    </main>
  );
}
