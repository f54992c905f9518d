import type { BusinessEvent, MessageHead, Page, Session, Turn } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { follow, type LiveState } from "./live.js";
import { lastChange, type Row } from "./session_row.js";
import { Store } from "./store.js";

/** Minimum time between two renderings of the list. */
const RENDER_MS = 250;
const LIMIT = 100;
/** Minimum time between two reads of the first page, for texts of new messages and for unknown sessions. */
const REREAD_MS = 2000;

type HoldReason = "pointer" | "focus" | "scroll";

/** The active sessions of a business that have been read: those with the newest activity. */
export class ActiveSessions extends Store {
  readonly businessId: string;
  /** The ids in display order. */
  order: string[] = [];
  /** The number of active sessions, including those that were not read. */
  total: number | null = null;
  /** The number of replies in progress in the sessions that were read. */
  writing = 0;
  hasMore = false;
  error: unknown = null;
  /** Why further sessions could not be read. */
  moreError: unknown = null;
  isLoading = true;
  live: LiveState = "connecting";

  private readonly holds = new Set<HoldReason>();
  private rows = new Map<string, Row>();
  /** Reads the next page. */
  private pages: AsyncGenerator<Page<Session>> | null = null;
  private pageCount = 1;
  private isLoadingMore = false;
  /** Events that arrive while the list is read. The response may be older than they are. */
  private waiting: BusinessEvent[] | null = null;
  private reread: ReturnType<typeof setTimeout> | undefined;
  private unfollow: (() => void) | undefined;
  private readonly aborter = new AbortController();

  constructor(businessId: string) {
    super(RENDER_MS);
    this.businessId = businessId;
  }

  /** Reads the list, and follows its events. */
  async open(): Promise<void> {
    await this.load();
    if (this.aborter.signal.aborted) return;
    this.unfollow = follow<BusinessEvent>({
      open: (options) => access.client.businessEvents(this.businessId, options),
      liveAfter: "reset",
      onEvent: (event) => this.apply(event),
      onState: (state) => {
        this.live = state;
        this.changed();
      },
    });
  }

  close(): void {
    this.aborter.abort();
    this.unfollow?.();
    clearTimeout(this.reread);
  }

  row(sessionId: string): Row | undefined {
    return this.rows.get(sessionId);
  }

  /** Reads all pages again that were read before. */
  async load(): Promise<void> {
    this.isLoading = true;
    this.waiting ??= [];
    this.changed();
    await this.reading("error", async () => {
      const pages = this.list();
      const rows = new Map<string, Row>();
      let last: Page<Session> | undefined;
      for (let count = 0; count < this.pageCount && last?.next !== null; count++) {
        last = (await pages.next()).value as Page<Session>;
        for (const session of last.items) rows.set(session.sessionId, session);
        this.total = last.totalCount;
      }
      this.rows = rows;
      this.pages = pages;
      this.hasMore = last!.next !== null;
      this.error = this.moreError = null;
    });
    this.isLoading = false;
    const { waiting } = this;
    this.waiting = null;
    waiting?.forEach((event) => this.apply(event));
  }

  async loadMore(): Promise<void> {
    const { pages } = this;
    if (!pages || !this.hasMore || this.isLoadingMore || this.moreError) return;
    this.isLoadingMore = true;
    await this.reading("moreError", async () => {
      const page = (await pages.next()).value as Page<Session>;
      if (pages !== this.pages) return;
      for (const session of page.items)
        if (!this.rows.has(session.sessionId)) this.rows.set(session.sessionId, session);
      this.hasMore = page.next !== null;
      this.pageCount++;
    });
    this.isLoadingMore = false;
  }

  retryMore(): void {
    this.moreError = null;
    void this.loadMore();
  }

  /** Keeps the order of the rows while the pointer or the focus is on one, so that a click hits the intended row. */
  hold(reason: HoldReason, isHeld: boolean): void {
    if (this.holds.has(reason) === isHeld) return;
    if (isHeld) this.holds.add(reason);
    else this.holds.delete(reason);
    this.changed();
  }

  get isHeld(): boolean {
    return this.holds.size > 0;
  }

  /** Called before the list is rendered: sorting 10,000 rows for each event would be too slow. */
  protected override beforeChange(): void {
    this.writing = 0;
    for (const row of this.rows.values()) if (row.turn) this.writing++;
    if (this.isHeld) {
      // New sessions are added at the end until the rows may move. Ended sessions stay, so that no row moves.
      const shown = new Set(this.order);
      this.order = [
        ...this.order.filter((id) => this.rows.has(id)),
        ...[...this.rows.keys()].filter((id) => !shown.has(id)),
      ];
    } else {
      const changes = new Map([...this.rows].map(([id, row]) => [id, lastChange(row)]));
      this.order = [...this.rows.keys()].sort((a, b) => (changes.get(a)! < changes.get(b)! ? 1 : -1));
    }
  }

  /** Follows the contract on event streams: docs/api.md. */
  private apply(event: BusinessEvent): void {
    const { type, data } = event;
    if (type === "reset") return void this.load();
    if (type === "bye") return;
    if (this.waiting) return void this.waiting.push(event);
    if (type === "session") this.setSession(data);
    else if (type === "deleted") this.remove(data.sessionId);
    else if (type === "turn") this.setTurn(data);
    else this.setMessage(type, data);
    this.changed();
  }

  private setSession(session: Session): void {
    const row = this.rows.get(session.sessionId);
    if (row && row.version > session.version) return;
    if (session.status !== "active") return this.remove(session.sessionId);
    if (!row && this.total !== null) this.total++;
    this.rows.set(session.sessionId, { ...session, lastMessage: row?.lastMessage ?? null, turn: row?.turn ?? null });
    // The count from before it was resumed.
    if (!row && session.messageCount) this.readAgain();
  }

  private remove(sessionId: string): void {
    // Other sessions were also counted if they were active.
    if (!this.rows.delete(sessionId)) this.readAgain();
    else if (this.total !== null) this.total--;
  }

  private setTurn(turn: Turn): void {
    const row = this.rows.get(turn.sessionId);
    if (!row) return this.readAgain();
    if (turn.status === "open") row.turn = turn;
    else if (row.turn?.turnId === turn.turnId) row.turn = null;
  }

  private setMessage(type: "message" | "changed", message: MessageHead): void {
    const row = this.rows.get(message.sessionId);
    this.readAgain();
    if (!row) return;
    if (type === "message") row.messageCount = Math.max(row.messageCount, message.seq);
    // The stream does not have its content.
    if (message.seq >= (row.lastMessage?.seq ?? 0)) row.lastMessage = message;
  }

  /** Schedules a read of the first page: the sessions with the newest activity. */
  private readAgain(): void {
    this.reread ??= setTimeout(async () => {
      if (!document.hidden) {
        await this.reading("error", async () => {
          const page = (await this.list().next()).value as Page<Session>;
          for (const session of page.items) this.merge(session);
          this.total = page.totalCount;
          this.error = null;
        });
      }
      this.reread = undefined;
    }, REREAD_MS);
  }

  /** Applies events that arrived in the meantime, which may be newer than the response. */
  private merge(session: Session): void {
    const row = this.rows.get(session.sessionId);
    const isOlder = row?.lastMessage && (session.lastMessage?.seq ?? 0) < row.lastMessage.seq;
    if (!isOlder) this.rows.set(session.sessionId, session);
  }

  private list(): AsyncGenerator<Page<Session>> {
    const { signal } = this.aborter;
    return access.client
      .getActiveSessionsForBusiness(this.businessId, { limit: LIMIT, include: ["lastMessage", "turn"], signal })
      .pages();
  }

  private async reading(kind: "error" | "moreError", read: () => Promise<void>): Promise<void> {
    try {
      await read();
    } catch (error) {
      if (this.aborter.signal.aborted) return;
      access.rejected(error);
      this[kind] = error;
    }
    this.changed();
  }
}
