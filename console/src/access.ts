import { isProblem, isSessiondError, Sessiond, type Message, type WhoAmI } from "../../clients/typescript/src/index.js";
import { Store } from "./store.js";

const KEY = "sessiond-credential";
/** The base URL of the service: a proxy may serve the page under another path. */
export const BASE_URL = new URL("..", location.href.replace(/[?#].*/, "")).href.replace(/\/$/, "");

/** The credential and its permissions. */
class Access extends Store {
  state: "checking" | "signed-out" | "signed-in" | "failed" = "checking";
  whoami: WhoAmI | null = null;
  /** Why the credential was rejected, or could not be checked. */
  error: unknown = null;
  credential: string | null = null;

  readonly client = new Sessiond({ baseUrl: BASE_URL, token: () => this.credential, timeoutMs: 10_000 });

  /** Reads the credential that this tab stores, if any, and requests its permissions. */
  async start(): Promise<void> {
    this.credential = storage()?.getItem(KEY) ?? null;
    await this.check();
  }

  /** Checks a credential. The tab stores it across reloads only if `isKept`. */
  async signIn(credential: string, isKept: boolean): Promise<void> {
    this.credential = credential;
    await this.check();
    if (this.state === "signed-in" && isKept) storage()?.setItem(KEY, credential);
  }

  signOut(): void {
    this.forget(null);
    // A service that needs no credential signs in again.
    void this.check();
  }

  /** Must be called with the error of every failed call. */
  readonly rejected = (error: unknown): void => {
    if (isProblem(error) && error.status === 401 && this.state === "signed-in") this.forget(error);
  };

  async check(): Promise<void> {
    this.state = "checking";
    this.changed();
    try {
      this.whoami = await this.client.whoami();
      this.state = "signed-in";
      this.error = null;
    } catch (error) {
      if (isProblem(error) && error.status === 401) return this.forget(this.credential === null ? null : error);
      this.state = "failed";
      this.error = error;
    }
    this.changed();
  }

  private forget(error: unknown): void {
    this.credential = null;
    storage()?.removeItem(KEY);
    this.whoami = null;
    this.state = "signed-out";
    this.error = error;
    this.changed();
  }

  // Only the actions that the credential allows are offered. The service checks each call in any case.

  get mayRead(): boolean {
    return this.has("read");
  }

  get mayWrite(): boolean {
    return this.has("write");
  }

  get mayErase(): boolean {
    return this.has("admin");
  }

  /** The token of one user may redact messages of `--user-roles` only, which is `user` by default. */
  mayRedact(message: Message): boolean {
    return this.mayWrite && !message.redactedAt && (!this.whoami?.userId || message.role === "user");
  }

  private has(scope: WhoAmI["scopes"][number]): boolean {
    return this.whoami?.scopes.includes(scope) ?? false;
  }
}

/** Null where the browser has disabled it. */
function storage(): Storage | null {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
}

export const access = new Access();

/** A description of the error for people, and the request id in the log of the service. */
export function explained(error: unknown): { title: string; detail: string; requestId: string | null } {
  if (isProblem(error)) {
    const { title = "Error" } = (error.problem ?? {}) as { title?: string };
    const code = error.code ? ` (${error.code})` : "";
    return { title: `${error.status} ${title}${code}`, detail: error.detail, requestId: error.requestId };
  }
  const detail = error instanceof Error ? error.message : String(error);
  const isOffline = isSessiondError(error) && error.name === "ConnectionError";
  return { title: isOffline ? "The service cannot be reached" : "Error", detail, requestId: null };
}
