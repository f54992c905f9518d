import type { Page, Session } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { lastChange, type Row } from "./session_row.js";
import { Store } from "./store.js";

/** How often the list is rendered at most. */
const RENDER_MS = 250;
const LIMIT = 100;

/** The active sessions of a business, as far as they were read: those with the newest activity. */
export class ActiveSessions extends Store {
  readonly businessId: string;
  private rows = new Map<string, Row>();
  /** The ids in the order in which they are shown. */
  order: string[] = [];
  /** How many there are, also those that were not read. */
  total: number | null = null;
  hasMore = false;
  error: unknown = null;
  /** Why further ones could not be read. */
  moreError: unknown = null;
  isLoading = true;
  /** Whether the order stays as it is: somebody is about to click. */
  private isHeld = false;
  private pages: AsyncGenerator<Page<Session>> | null = null;
  private isLoadingMore = false;
  private readonly aborter = new AbortController();

  constructor(businessId: string) {
    super(RENDER_MS);
    this.businessId = businessId;
  }

  close(): void {
    this.aborter.abort();
  }

  row(sessionId: string): Row | undefined {
    return this.rows.get(sessionId);
  }

  /** Reads the list anew. */
  async load(): Promise<void> {
    const { signal } = this.aborter;
    this.isLoading = true;
    this.changed();
    const pages = this.list();
    try {
      const page = (await pages.next()).value as Page<Session>;
      if (signal.aborted) return;
      this.rows = new Map(page.items.map((session) => [session.sessionId, session]));
      this.pages = pages;
      this.hasMore = page.next !== null;
      this.total = page.totalCount;
      this.error = null;
      this.moreError = null;
      this.sort();
    } catch (error) {
      if (signal.aborted) return;
      access.rejected(error);
      this.error = error;
    }
    this.isLoading = false;
    this.changed();
  }

  async loadMore(): Promise<void> {
    if (!this.pages || !this.hasMore || this.isLoadingMore || this.moreError) return;
    const { pages } = this;
    this.isLoadingMore = true;
    try {
      const { value: page } = await pages.next();
      if (this.aborter.signal.aborted) return;
      if (page && pages === this.pages) {
        for (const session of page.items) if (!this.rows.has(session.sessionId)) this.rows.set(session.sessionId, session);
        this.hasMore = page.next !== null;
        this.sort();
      }
    } catch (error) {
      if (this.aborter.signal.aborted) return;
      access.rejected(error);
      this.moreError = error;
    }
    this.isLoadingMore = false;
    this.changed();
  }

  retryMore(): void {
    this.moreError = null;
    void this.loadMore();
  }

  /** Keeps the order of the rows, or lets them move again. */
  hold(isHeld: boolean): void {
    this.isHeld = isHeld;
    if (!isHeld) {
      this.sort();
      this.changed();
    }
  }

  private list(): AsyncGenerator<Page<Session>> {
    const { signal } = this.aborter;
    return access.client
      .getActiveSessionsForBusiness(this.businessId, { limit: LIMIT, include: ["lastMessage", "turn"], signal })
      .pages();
  }

  /** The newest activity first. */
  private sort(): void {
    if (this.isHeld) {
      // New ones are below until the order changes.
      const known = new Set(this.order);
      this.order = [...this.order, ...[...this.rows.keys()].filter((id) => !known.has(id))];
      return;
    }
    const changes = new Map([...this.rows].map(([id, row]) => [id, lastChange(row)]));
    this.order = [...this.rows.keys()].sort((a, b) => (changes.get(a)! < changes.get(b)! ? 1 : -1));
  }
}
