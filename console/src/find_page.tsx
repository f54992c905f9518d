import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { access } from "./access.js";
import { href } from "./router.js";
import { useStore } from "./store.js";
import { Id } from "./text.js";

const UUID = /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i;

export function FindPage({ focuses }: { focuses: number }): JSX.Element {
  const { whoami } = useStore(access);
  const first = useRef<HTMLInputElement>(null);
  const [sessionId, setSessionId] = useState("");
  const [businessId, setBusinessId] = useState("");
  const [userId, setUserId] = useState("");
  const [isWrong, setWrong] = useState(false);
  useEffect(() => first.current?.focus(), [focuses]);
  const businesses = whoami && whoami.businesses !== "*" ? whoami.businesses : [];
  const user = whoami?.userId;

  const findSession = (event: Event) => {
    event.preventDefault();
    const id = sessionId.trim();
    if (UUID.test(id)) location.hash = href.session(id.toLowerCase());
    else setWrong(true);
  };
  const findUser = (event: Event) => {
    event.preventDefault();
    if (businessId) location.hash = userId ? href.user(businessId, userId) : href.business(businessId);
  };
  return (
    <main class="page narrow" id="main">
      <h1>Find a conversation</h1>
      <form class="card" onSubmit={findSession}>
        <label>
          Session id
          <input
            ref={first}
            value={sessionId}
            onInput={(event) => {
              setSessionId(event.currentTarget.value);
              setWrong(false);
            }}
            aria-invalid={isWrong}
            aria-describedby={isWrong ? "not-a-uuid" : undefined}
            placeholder="03f2a9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e"
            autocomplete="off"
            spellcheck={false}
          />
        </label>
        {isWrong && (
          <p class="wrong" id="not-a-uuid" role="alert">
            A session id is a UUID, such as 03f2a9c4-5e1b-8d7a-9c3e-2f4b6a8c0d1e
          </p>
        )}
        <p class="buttons">
          <button type="submit" class="primary">
            Open session
          </button>
        </p>
      </form>
      <form class="card" onSubmit={findUser}>
        <label>
          Business id
          <input
            value={businessId}
            onInput={(event) => setBusinessId(event.currentTarget.value)}
            autocomplete="off"
            spellcheck={false}
            required
          />
        </label>
        <label>
          <span>
            User id <span class="minor">(optional)</span>
          </span>
          <input
            value={userId}
            onInput={(event) => setUserId(event.currentTarget.value)}
            autocomplete="off"
            spellcheck={false}
          />
        </label>
        <p class="buttons">
          <button type="submit" class="primary">
            {userId ? "Open user" : "Open business"}
          </button>
        </p>
      </form>
      {businesses.length > 0 && (
        <section class="card" aria-labelledby="reachable">
          <h2 id="reachable">With this credential</h2>
          <ul>
            {businesses.map((business) => (
              <li key={business}>
                {user ? (
                  <a href={href.user(business, user)}>
                    <Id>{user}</Id> in <Id>{business}</Id>
                  </a>
                ) : (
                  <a href={href.business(business)}>
                    <Id>{business}</Id>
                  </a>
                )}
              </li>
            ))}
          </ul>
        </section>
      )}
    </main>
  );
}
