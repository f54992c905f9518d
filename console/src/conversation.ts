import type { Message, Session, SessionEvent, Turn, TurnChunks } from "../../clients/typescript/src/index.js";
import { isProblem } from "../../clients/typescript/src/index.js";
import { access } from "./access.js";
import { follow, type LiveState } from "./live.js";
import { Store } from "./store.js";

/** Number of messages that one call reads. */
const PAGE = 100;
/** How outdated the times of a session with new messages may be. The stream does not have them. */
const TIMES_MS = 60_000;
/** A reply in progress has many small chunks. */
const RENDER_MS = 80;

/** A session, the messages that were loaded, and the reply in progress. */
export class Conversation extends Store {
  readonly sessionId: string;
  session: Session | null = null;
  /** Whether the session does not exist, or the credential may not access it. */
  isMissing = false;
  /** Why it could not be loaded or refreshed. */
  error: unknown = null;
  isLoading = true;
  /** By `seq`. */
  readonly messages = new Map<number, Message>();
  /** `seq` of the oldest message that is stored, as far as it is known. */
  oldest = 1;
  newest = 0;
  /** The open turn, and its text so far. */
  turn: Turn | null = null;
  text = "";
  /** The number of chunks in the text. */
  chunkCount = 0;
  live: LiveState = "connecting";
  isDeleted = false;
  /** Why older messages could not be loaded. */
  pageError: unknown = null;
  private readonly pages = new Set<number>();
  /** Whether the loaded state may be newer than the stored one: a failover can lose changes. */
  private isReset = false;
  /** When the session was last read. */
  private readMs = 0;
  private readonly aborter = new AbortController();
  private unfollow: (() => void) | undefined;

  constructor(sessionId: string) {
    super(RENDER_MS);
    this.sessionId = sessionId;
  }

  /** Reads the session, and then follows its events. */
  async open(): Promise<void> {
    await this.refresh();
    if (this.aborter.signal.aborted || this.isMissing) return;
    // All messages that are missing.
    const due = this.session ? { after: this.newest } : { last: PAGE };
    this.unfollow = follow<SessionEvent>({
      open: (options) => access.client.events(this.sessionId, { ...due, ...options }),
      liveAfter: "ready",
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
  }

  /** Reads the session, its newest messages, and the open turn. */
  async refresh(): Promise<void> {
    const { signal } = this.aborter;
    this.isLoading = true;
    this.changed();
    try {
      const [session, messages] = await Promise.all([
        access.client.getSession(this.sessionId, { include: "turn", signal }),
        this.newestMessages(),
      ]);
      if (signal.aborted) return;
      this.isMissing = session === null;
      if (session) {
        this.readMs = performance.now();
        if (this.isReset) {
          this.isReset = false;
          this.session = null;
          this.oldest = 1;
          // The messages that have arrived since.
          this.newest = Math.max(0, ...this.messages.keys());
        }
        this.setSession(session);
        messages.forEach((message) => this.setMessage(message));
        if (!this.isStreamed) await this.readTurn(session.turn ?? null);
      }
      this.error = null;
    } catch (error) {
      if (signal.aborted) return;
      access.rejected(error);
      this.error = error;
    }
    this.isLoading = false;
    this.changed();
  }

  private async newestMessages(): Promise<Message[]> {
    try {
      return await access.client.getSessionMessages(this.sessionId, { limit: PAGE, signal: this.aborter.signal });
    } catch (error) {
      // `getSession` reports whether the session exists.
      if (isProblem(error, "session_not_found")) return [];
      throw error;
    }
  }

  setSession(session: Session): void {
    if (!this.isReset && this.session && this.session.version > session.version) return;
    this.session = session;
    this.newest = Math.max(this.newest, session.messageCount);
    this.changed();
  }

  setMessage(message: Message): void {
    this.messages.set(message.seq, message);
    this.newest = Math.max(this.newest, message.seq);
    if (this.turn?.turnId === message.messageId) this.dropTurn();
    this.changed();
  }

  /** Follows the contract on event streams: docs/api.md. */
  private apply({ type, data }: SessionEvent): void {
    switch (type) {
      case "session":
        return this.setSession(data);
      case "message":
        this.readTimes();
        return this.setMessage(data);
      case "changed":
        if (this.messages.has(data.seq)) this.setMessage(data);
        return;
      case "turn":
        return this.setTurn(data);
      case "chunk":
        return this.addChunks(data);
      case "deleted":
        this.isDeleted = true;
        return this.changed();
      case "ready":
        this.error = null;
        return;
      case "reset":
        this.messages.clear();
        this.isReset = true;
        this.dropTurn();
        void this.refresh();
    }
  }

  private readTimes(): void {
    if (performance.now() - this.readMs < TIMES_MS) return;
    this.readMs = performance.now();
    const read = access.client.getSession(this.sessionId, { signal: this.aborter.signal });
    // The error is ignored: the next message requests the session again.
    read.then((session) => session && this.setSession(session)).catch(access.rejected);
  }

  private dropTurn(): void {
    this.turn = null;
    this.text = "";
    this.chunkCount = 0;
  }

  setTurn(turn: Turn): void {
    const isSame = this.turn?.turnId === turn.turnId;
    const isAnew = this.turn?.number !== turn.number && turn.nextChunk === 0;
    if (turn.status !== "open") {
      if (isSame) this.dropTurn();
    } else {
      if (!isSame || isAnew) this.dropTurn();
      this.turn = turn;
    }
    this.changed();
  }

  private addChunks({ turnId, from, chunks }: Omit<TurnChunks, "number">): void {
    if (turnId !== this.turn?.turnId || from > this.chunkCount) return;
    const added = chunks.slice(this.chunkCount - from);
    this.text += added.join("");
    this.chunkCount += added.length;
    this.changed();
  }

  /** Whether the stream has a newer state of the turn than an earlier call. */
  private get isStreamed(): boolean {
    return this.unfollow !== undefined && (this.live === "live" || this.live === "connecting");
  }

  /** Reads the missing chunks of the open turn. */
  private async readTurn(turn: Turn | null): Promise<void> {
    if (!turn) return this.dropTurn();
    this.setTurn(turn);
    const [from, { signal }] = [this.chunkCount, this.aborter];
    if ((turn.nextChunk ?? 0) <= from) return;
    const read = await access.client.getTurn(this.sessionId, turn.turnId, { from, signal });
    if (read?.status === "open" && read.number === turn.number) this.addChunks({ ...read, from });
  }

  /** Loads the missing messages of this range. */
  need(first: number, last: number): void {
    if (this.pageError) return;
    for (let page = Math.floor((first - 1) / PAGE); page * PAGE < last; page++) {
      if (page >= 0 && !this.pages.has(page) && this.missingOf(page)) void this.load(page);
    }
  }

  retryPages(): void {
    this.pageError = null;
    this.changed();
  }

  /** The first `seq` of this page that is missing. */
  private missingOf(page: number): number | null {
    const start = Math.max(page * PAGE + 1, this.oldest);
    for (let seq = start; seq <= Math.min((page + 1) * PAGE, this.newest); seq++) {
      if (!this.messages.has(seq)) return seq;
    }
    return null;
  }

  private async load(page: number): Promise<void> {
    const { signal } = this.aborter;
    this.pages.add(page);
    try {
      // A response ends at 4 MiB, so a page may need several.
      for (let seq = this.missingOf(page); seq !== null; seq = this.missingOf(page)) {
        const limit = (page + 1) * PAGE - seq + 1;
        const read = await access.client.getSessionMessages(this.sessionId, { after: seq - 1, limit, signal });
        if (signal.aborted) return;
        read.forEach((message) => this.messages.set(message.seq, message));
        // Messages before the first one are no longer stored.
        if (!this.messages.has(seq)) this.oldest = Math.max(this.oldest, read[0]?.seq ?? this.newest + 1);
      }
    } catch (error) {
      if (signal.aborted) return;
      access.rejected(error);
      this.pageError = error;
    }
    this.pages.delete(page);
    this.changed();
  }
}
