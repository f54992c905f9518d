// The worker: it receives messages by the stream of the business, has the model answer each, and writes the replies
// as turns. Any number of workers can run: if several begin the same turn, one writes it.

import { setTimeout } from "node:timers/promises";
import { isProblem, type Message, type MessageHead, type Sessiond } from "sessiond";

export type Model = (messages: Message[], signal: AbortSignal) => AsyncIterable<string>;

/** Runs until `signal` is aborted, and then rejects with its reason. */
export async function work(client: Sessiond, businessId: string, model: Model, signal: AbortSignal): Promise<void> {
  /** The last job of each session. A conversation has one reply at a time. */
  const jobs = new Map<string, Promise<void>>();
  const add = (message: MessageHead) => {
    const { sessionId, messageId, role } = message;
    if (role !== "user") return;
    const job = (jobs.get(sessionId) ?? Promise.resolve())
      .then(() => answer(client, message, model, signal))
      .catch((error) => signal.aborted || console.error(`the reply to ${messageId} failed:`, error))
      .then(() => void (jobs.get(sessionId) === job && jobs.delete(sessionId)));
    jobs.set(sessionId, job);
  };
  const calls = { signal, maxRetries: Infinity };
  for await (const { type, data } of client.businessEvents(businessId, calls)) {
    if (type === "message") add(data);
    // The stream has just started, or may have lost events: read the last message of each active session.
    if (type === "reset") {
      const sessions = client.getActiveSessionsForBusiness(businessId, { include: "lastMessage", ...calls });
      for await (const { lastMessage } of sessions) if (lastMessage) add(lastMessage);
    }
  }
}

/** Answers a message once, even if it is called twice, or by two workers. */
async function answer(client: Sessiond, message: MessageHead, model: Model, signal: AbortSignal): Promise<void> {
  const { sessionId, messageId, seq } = message;
  const turnId = `re:${messageId}`;
  for (;;) {
    try {
      const source = async (_: unknown, stopped: AbortSignal) =>
        model(await client.getSessionMessages(sessionId, { before: seq + 1, limit: 50 }), stopped);
      await client.writeTurn(sessionId, source, { turnId, signal });
      return;
    } catch (error) {
      if (!isProblem(error, "turn_open")) throw error;
      // Another worker writes this reply or an earlier one. If that worker has died, its turn ends with its lease.
      await setTimeout(1000, undefined, { signal });
    }
  }
}
