import type {
  MessageFormatItem,
  RemoteThreadListAdapter,
  ThreadHistoryAdapter,
  ThreadMessage,
} from "@assistant-ui/react";

import type { Sessiond } from "./client.js";
import { isProblem, orIfProblem, SessiondError } from "./errors.js";
import { randomId } from "./transport.js";
import type { GetOrCreateSession, Session } from "./types.js";
import { toAppendMessage, toUIMessages, type StoredUIMessage } from "./ui-messages.js";

/** `sessionType` and others are those of new sessions. */
export interface ThreadListOptions extends Omit<GetOrCreateSession, "businessId" | "userId" | "ifActive"> {
  /** The title of a thread; by default the start of its first message. */
  generateTitle?: ((sessionId: string, messages: readonly ThreadMessage[]) => string | Promise<string>) | undefined;
}

type Thread = Awaited<ReturnType<RemoteThreadListAdapter["fetch"]>>;
type TitleStream = Awaited<ReturnType<RemoteThreadListAdapter["generateTitle"]>>;

/** The sessions of a user as the threads of assistant-ui. A new thread replaces the active session. */
export function threadListAdapter(
  client: Sessiond,
  businessId: string,
  userId: string,
  { generateTitle = firstText, metadata, ...members }: ThreadListOptions = {},
): RemoteThreadListAdapter & Required<Pick<RemoteThreadListAdapter, "unarchive">> {
  // Ids of new threads may be the same in each page.
  const keyPrefix = randomId();
  const archive = async (remoteId: string, archived: true | null) => {
    await client.updateSession(remoteId, { metadata: { archived } });
  };
  const rename = async (remoteId: string, title: string) => {
    await client.updateSession(remoteId, { title: Array.from(title).slice(0, 200).join("") });
  };

  return {
    async list({ after } = {}) {
      const history = client.getUserSessionHistory(businessId, userId, { cursor: after });
      const { value } = await history.pages().next();
      return { threads: value!.items.map(threadOf), nextCursor: value!.next?.cursor };
    },
    async initialize(threadId, { custom } = {}) {
      const session = { ...members, businessId, userId, metadata: { ...metadata, ...custom } };
      // A thread keeps its session, even after an error.
      const idempotencyKey = keyPrefix + encodeURIComponent(threadId).slice(0, 90);
      const { sessionId } = await client.createSession({ ...session, ifActive: "replace" }, { idempotencyKey });
      return { remoteId: sessionId };
    },
    async fetch(remoteId) {
      const session = await client.getSession(remoteId);
      if (!session) throw new SessiondError("No such session");
      return threadOf(session);
    },
    rename,
    archive: (remoteId) => archive(remoteId, true),
    unarchive: (remoteId) => archive(remoteId, null),
    async delete(remoteId) {
      await client.deleteSession(remoteId);
    },
    async generateTitle(remoteId, messages) {
      const title = await generateTitle(remoteId, messages);
      if (title) await rename(remoteId, title);
      return titleStream(title);
    },
  };
}

function threadOf({ sessionId, title, lastActivityAt, metadata: { archived, ...custom } }: Session): Thread {
  const status = archived ? "archived" : "regular";
  return { remoteId: sessionId, status, title: title ?? undefined, lastMessageAt: new Date(lastActivityAt), custom };
}

function firstText(_: string, messages: readonly ThreadMessage[]): string {
  const [part] = messages.find(({ role }) => role === "user")?.content ?? [];
  return part?.type === "text" ? part.text.trim().slice(0, 60) : "";
}

function titleStream(title: string): TitleStream {
  return new ReadableStream({
    start(controller) {
      controller.enqueue({ type: "part-start", path: [], part: { type: "text" } });
      controller.enqueue({ type: "text-delta", path: [0], textDelta: title });
      controller.enqueue({ type: "part-finish", path: [0] });
      controller.close();
    },
  });
}

/** The thread of a history: `useAui().threadListItem`. */
export interface ThreadListItem {
  getState(): { remoteId?: string | undefined };
  initialize(): Promise<{ remoteId: string }>;
}

/**
 * The messages of a session as the history of its thread. Only messages of the user are appended: the worker writes the
 * others. Content never changes, so an update sets metadata, and a deletion is a redaction.
 */
export function threadHistoryAdapter(client: Sessiond, threadListItem: () => ThreadListItem): ThreadHistoryAdapter {
  const read = async (item: ThreadListItem) => {
    const { remoteId } = item.getState();
    return remoteId ? client.getSessionMessages(remoteId, { limit: 1000 }) : [];
  };
  const append = async (item: ThreadListItem, message: StoredUIMessage) => {
    if (message.role !== "user") return;
    const { remoteId } = await item.initialize();
    // The transport of the chat has already stored it, perhaps with files elsewhere.
    const store = () =>
      orIfProblem(client.appendMessages(remoteId, toAppendMessage(message)), null, "message_id_conflict");
    await store().catch(async (error: unknown) => {
      const session = isProblem(error, "session_not_active") && (await client.getSession(remoteId));
      if (!session || session.endReason === "client") throw error;
      await client.resumeSession(remoteId, { ifActive: "replace" });
      await store();
    });
  };
  const update = async (item: ThreadListItem, message: StoredUIMessage) => {
    if (message.role !== "user") return;
    const { remoteId } = await item.initialize();
    const change = client.updateMessage(remoteId, message.id, { metadata: message.metadata ?? {} });
    if (!(await orIfProblem(change, null, "message_not_found"))) await append(item, message);
  };
  const remove = async (item: ThreadListItem, ids: string[]) => {
    for (const { sessionId, messageId, metadata } of await read(item)) {
      // Including its continuations.
      const belongsTo = [messageId, metadata.continues, metadata.answers];
      if (ids.some((id) => belongsTo.includes(id))) await client.redactMessage(sessionId, messageId);
    }
  };

  const refuse = () => {
    throw new SessiondError("Only runtimes of the AI SDK are supported");
  };
  return {
    load: async () => refuse(),
    append: async () => refuse(),

    withFormat(format) {
      if (!format.format.startsWith("ai-sdk/")) refuse();
      type Item = MessageFormatItem<ReturnType<typeof format.decode>["message"]>;
      let pinned: ThreadListItem | undefined;
      const target = () => (pinned ??= threadListItem());
      const decoded = ({ message, parentId }: Item) => {
        const { role, parts, metadata } = format.encode({ message, parentId }) as unknown as StoredUIMessage;
        return { id: format.getId(message), role, parts, ...(metadata && { metadata }) };
      };
      return {
        pin: () => void (pinned = threadListItem()),
        async load() {
          const messages = toUIMessages(await read(target())).map(({ id, ...content }, i, all) => {
            const stored = { id, parent_id: all[i - 1]?.id ?? null, format: format.format, content };
            return format.decode(stored as unknown as Parameters<typeof format.decode>[0]);
          });
          return { messages };
        },
        append: (item) => append(target(), decoded(item)),
        update: (item) => update(target(), decoded(item)),
        delete: (items) =>
          remove(
            target(),
            items.map(({ message }) => format.getId(message)),
          ),
      };
    },
  };
}
