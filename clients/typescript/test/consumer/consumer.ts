// A project that uses the package. Checked by tsc with both kinds of module resolution, not run.

import { isProblem, Sessiond, type Message, type Pager, type ProblemCode, type Session } from "sessiond";

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
