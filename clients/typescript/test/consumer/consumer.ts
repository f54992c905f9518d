// A project that uses the package. Checked by tsc with both kinds of module resolution, not run.

import { isProblem, Sessiond } from "sessiond";
import type { Conversation, ConversationState, Message, Pager, ProblemCode, Session, WrittenTurn } from "sessiond";

const client = new Sessiond({
  baseUrl: "https://sessions.example.com",
  token: async () => "token",
  fetch,
  onRetry: ({ error, delayMs }) => console.log(error.message, delayMs.toFixed()),
});

export async function page(businessId: string, userId: string): Promise<Message[]> {
  const found: Session | null = await client.getActiveSessionForUser(businessId, userId);
  const { sessionId } = found ?? (await client.createSession({ businessId, userId }));
  const history: Pager<Session> = client.getUserSessionHistory(businessId, userId, { limit: 10 });
  for await (const { items, next } of history.pages()) console.log(items[0]?.title?.length, next?.cursor);
  const one: Message = await client.appendMessages(sessionId, { role: "user", content: "Hello" });
  const several: Message[] = await client.appendMessages(sessionId, [{ role: "user", content: { text: one.content } }]);
  return [...several, ...(await client.getSessionMessages(sessionId, { signal: AbortSignal.timeout(1000) }))];
}

export async function stream(sessionId: string): Promise<void> {
  for await (const event of client.events(sessionId, { last: 50 })) {
    if (event.type === "chunk") console.log(event.data.chunks.join(""), event.id?.length);
    // @ts-expect-error: a session has no content.
    if (event.type === "session") console.log(event.data.content);
  }
  const chat: Conversation = client.conversation("B1", "u1", { sessionType: "support", last: 20 });
  const { messages, turn, text }: ConversationState = chat.getSnapshot();
  console.log(messages[0]?.content, turn?.status, text.length);
  async function* reply(): AsyncGenerator<string> {
    yield "Hello";
  }
  const written: WrittenTurn = await client.writeTurn(sessionId, reply(), { turnId: "re:m-1", ifOpen: "takeover" });
  console.log(written.hasNewMessages);
}

export async function change(sessionId: string): Promise<ProblemCode | string | null> {
  try {
    await client.updateSession(sessionId, { title: "Hours" }, { ifVersion: 3 });
  } catch (error) {
    if (isProblem(error, "version_mismatch")) {
      const code: "version_mismatch" = error.code;
      return code;
    }
    if (isProblem(error, "turn_open")) {
      const { openTurnId, leaseUntil, turnStatus, nextChunk } = error.problem;
      const members: [string?, string?, string?, number?] = [openTurnId, leaseUntil, turnStatus, nextChunk];
      console.log(members);
    }
    if (isProblem(error)) return error.code;
    throw error;
  }
  // @ts-expect-error: there is no such status.
  await client.updateSession(sessionId, { status: "expired" });
  // @ts-expect-error: messages have no cursor.
  client.getSessionMessages(sessionId, { cursor: "c" });
  // @ts-expect-error: null is no content.
  await client.appendMessages(sessionId, { role: "user", content: null });
  return null;
}
