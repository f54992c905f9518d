import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { access } from "./access.js";
import { BusinessPage } from "./business_page.js";
import { ENVIRONMENT, LABEL } from "./environment.js";
import { Failure, Loading } from "./failure.js";
import { FindPage } from "./find_page.js";
import { Help } from "./help.js";
import { useKey } from "./keyboard.js";
import { NoticeBar } from "./notice.js";
import { preferences } from "./preferences.js";
import { above, href, useRoute, type Route } from "./router.js";
import { SessionPage } from "./session_page.js";
import { SignIn } from "./sign_in.js";
import { useStore } from "./store.js";
import { UserPage } from "./user_page.js";

export function App(): JSX.Element {
  const { state, whoami, credential } = useStore(access);
  const { zone } = useStore(preferences);
  const route = useRoute();
  const [hasHelp, setHelp] = useState(false);
  const [focuses, setFocuses] = useState(0);
  const toggleHelp = () => setHelp((has) => !has);
  useKey("?", toggleHelp);
  useKey("/", () => {
    location.hash = href.find();
    setFocuses((count) => count + 1);
  });
  useKey("u", () => {
    // The link on the page, because a session's address does not name its user.
    const links = document.querySelectorAll<HTMLAnchorElement>(".above a");
    location.hash = links.length ? links[links.length - 1]!.hash : above(route);
  });
  useFocusOnNewPage(JSON.stringify(route));
  return (
    <>
      <a
        class="skip"
        href="#main"
        onClick={(event) => {
          event.preventDefault();
          focusHeading();
        }}
      >
        Skip to the page
      </a>
      <header class={`bar ${LABEL && ENVIRONMENT}`}>
        <a class="brand" href={href.find()}>
          sessiond
        </a>
        {LABEL && <span class="label">{LABEL}</span>}
        <span class="bar-end">
          <a class="button" href={href.find()} onClick={() => setFocuses((count) => count + 1)} aria-keyshortcuts="/">
            Find
          </a>
          <button
            type="button"
            aria-label={`Times are ${zone === "utc" ? "UTC" : "local"}: change`}
            onClick={() => preferences.set({ zone: zone === "utc" ? "local" : "utc" })}
          >
            {zone === "utc" ? "UTC" : "Local"}
          </button>
          <button type="button" onClick={toggleHelp} aria-keyshortcuts="?">
            Help
          </button>
          {credential !== null && whoami && (
            <button type="button" onClick={() => access.signOut()}>
              Sign out
            </button>
          )}
        </span>
      </header>
      {state === "checking" && !whoami && (
        <main class="page narrow" id="main">
          <Loading>Checking the credential…</Loading>
        </main>
      )}
      {state === "failed" && credential === null && (
        <main class="page narrow" id="main">
          <h1>sessiond</h1>
          <Failure error={access.error} what="The service does not respond." retry={() => void access.check()} />
        </main>
      )}
      {(state === "signed-out" || (state === "failed" && credential !== null)) && <SignIn />}
      {whoami && (state === "signed-in" || state === "checking") && <Page route={route} focuses={focuses} />}
      <NoticeBar />
      {hasHelp && <Help onClose={() => setHelp(false)} />}
    </>
  );
}

function Page({ route, focuses }: { route: Route; focuses: number }): JSX.Element {
  switch (route.page) {
    case "find":
      return <FindPage focuses={focuses} />;
    case "business":
      return <BusinessPage key={route.businessId} businessId={route.businessId} />;
    case "user":
      return (
        <UserPage key={`${route.businessId}/${route.userId}`} businessId={route.businessId} userId={route.userId} />
      );
    case "session":
      return <SessionPage key={route.sessionId} sessionId={route.sessionId} />;
    case "unknown":
      return (
        <main class="page narrow" id="main">
          <h1>No such page</h1>
          <p>
            <a href={href.find()}>Find a conversation</a>
          </p>
        </main>
      );
  }
}

function focusHeading(): void {
  const heading = document.querySelector<HTMLElement>("h1");
  heading?.setAttribute("tabindex", "-1");
  heading?.focus();
}

/** Screen readers read the heading of a new page, and the keyboard continues from there. */
function useFocusOnNewPage(route: string): void {
  const last = useRef(route);
  useEffect(() => {
    if (last.current === route) return;
    last.current = route;
    if (document.activeElement === document.body || document.activeElement?.tagName === "A") focusHeading();
  }, [route]);
}
