import { useEffect, useState } from "preact/hooks";

// Addresses are in the fragment (`#`): no identifier in them is sent to the service or written to a log.
export type Route =
  | { page: "find" }
  | { page: "business"; businessId: string }
  | { page: "user"; businessId: string; userId: string }
  | { page: "session"; sessionId: string }
  | { page: "unknown" };

export const href = {
  find: () => "#/",
  business: (businessId: string) => `#/business/${encode(businessId)}`,
  user: (businessId: string, userId: string) => `#/business/${encode(businessId)}/user/${encode(userId)}`,
  session: (sessionId: string) => `#/session/${encode(sessionId)}`,
};

// Lone surrogates cannot be encoded. No stored identifier has one.
function encode(id: string): string {
  return encodeURIComponent(id.replace(/[\uD800-\uDFFF]/gu, "\uFFFD"));
}

export function parseRoute(hash: string): Route {
  const parts = hash.replace(/^#?\/?/, "").split("/");
  let ids: string[];
  try {
    ids = parts.map(decodeURIComponent);
  } catch {
    return { page: "unknown" };
  }
  const [kind, first, user, second] = ids;
  if (parts.length === 1 && !kind) return { page: "find" };
  if (parts.length === 2 && first && kind === "session") return { page: "session", sessionId: first };
  if (parts.length === 2 && first && kind === "business") return { page: "business", businessId: first };
  if (parts.length === 4 && first && second && kind === "business" && user === "user") {
    return { page: "user", businessId: first, userId: second };
  }
  return { page: "unknown" };
}

/** The page above this one. */
export function above(route: Route): string {
  return route.page === "user" ? href.business(route.businessId) : href.find();
}

export function useRoute(): Route {
  const [hash, setHash] = useState(location.hash);
  useEffect(() => {
    const onChange = () => setHash(location.hash);
    // It may have changed since it was rendered.
    onChange();
    addEventListener("hashchange", onChange);
    return () => removeEventListener("hashchange", onChange);
  }, []);
  return parseRoute(hash);
}
