// A chat of the AI SDK without a user interface, and models that need no network.

import * as ai from "ai";
import { AbstractChat, type ChatInit, type ChatState, type ChatStatus, type UIMessage, type UIMessageChunk } from "ai";

class State implements ChatState<UIMessage> {
  status: ChatStatus = "ready";
  error: Error | undefined;
  messages: UIMessage[];

  constructor(messages: UIMessage[]) {
    this.messages = messages;
  }
  pushMessage = (message: UIMessage) => void (this.messages = [...this.messages, message]);
  popMessage = () => void (this.messages = this.messages.slice(0, -1));
  replaceMessage = (index: number, message: UIMessage) => {
    this.messages = this.messages.map((other, i) => (i === index ? structuredClone(message) : other));
  };
  snapshot = <T>(thing: T): T => structuredClone(thing);
}

/** The class that `useChat` wraps, of this version of the AI SDK. */
export function newChat(sdk: typeof ai, { messages = [], ...init }: ChatInit<UIMessage>): AbstractChat<UIMessage> {
  class Chat extends sdk.AbstractChat<UIMessage> {}
  return new (Chat as unknown as new (init: object) => AbstractChat<UIMessage>)({
    ...init,
    state: new State(messages),
  });
}

/** The chunks of a text, as returned by `streamText(…).toUIMessageStream()`. */
export async function* textChunks(...deltas: string[]): AsyncGenerator<UIMessageChunk> {
  yield { type: "start" };
  yield { type: "start-step" };
  yield { type: "text-start", id: "0" };
  for (const delta of deltas) yield { type: "text-delta", id: "0", delta };
  yield { type: "text-end", id: "0" };
  yield { type: "finish-step" };
  yield { type: "finish", finishReason: "stop" };
}

export function textOf(message: UIMessage | undefined): string {
  return (message?.parts ?? []).map((part) => (part.type === "text" ? part.text : "")).join("");
}
