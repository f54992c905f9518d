// A project that uses the adapters. Checked by tsc with both kinds of module resolution, not run.

import { Sessiond } from "sessiond";
import { chatTransport } from "sessiond/ai";
import { loadUIMessages, saveUIMessages, writeUIMessages } from "sessiond/ai/server";
import { threadHistoryAdapter, threadListAdapter } from "sessiond/assistant-ui";
import type { RemoteThreadListAdapter, ThreadHistoryAdapter } from "@assistant-ui/react";
import type { ChatTransport, UIMessage } from "ai";

type MyMessage = UIMessage<{ tokens: number }, { weather: { celsius: number } }>;

const client = new Sessiond({ baseUrl: "/" });

export const transport: ChatTransport<MyMessage> = chatTransport<MyMessage>(client, {
  sessionId: async (chatId) => chatId,
  append: async (sessionId, message) => client.appendMessages(sessionId, message),
  onInactive: (session, error) => console.log(session.endReason, error.code),
});

export async function work(sessionId: string): Promise<number | undefined> {
  const messages = await loadUIMessages<MyMessage>(client, sessionId, { limit: 100 });
  await saveUIMessages(client, sessionId, messages);
  const turn = await writeUIMessages<MyMessage>(client, sessionId, async function* (messages, signal, turn) {
    signal.throwIfAborted();
    yield { type: "text-start", id: turn.turnId };
    yield { type: "text-delta", id: turn.turnId, delta: messages[0]!.role };
  });
  console.log(turn.hasNewMessages);
  // @ts-expect-error: a model cannot continue chunks.
  await writeUIMessages(client, sessionId, async function* () {}, { ifOpen: "takeover" });
  return messages[0]?.metadata?.tokens;
}

export const threads: RemoteThreadListAdapter = threadListAdapter(client, "B1", "u1", {
  sessionType: "support",
  generateTitle: async (sessionId, messages) => `${sessionId} ${messages.length}`,
});

export const history: ThreadHistoryAdapter = threadHistoryAdapter(client, () => ({
  getState: () => ({ remoteId: undefined }),
  initialize: () => threads.initialize("t"),
}));
