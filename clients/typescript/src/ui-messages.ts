import type { AppendMessage, Message, Metadata } from "./types.js";

// `UIMessage`s of the AI SDK as messages of a session: `id` is the `messageId`, `parts` are the `content`. The types
// are those of the AI SDK, as far as this package reads them.

export interface UIPart {
  type: string;
  text?: string;
  url?: string;
  toolCallId?: string;
  state?: string;
  approval?: { id: string; approved?: boolean; reason?: string };
  [member: string]: unknown;
}

export interface StoredUIMessage {
  id: string;
  role: "system" | "user" | "assistant";
  parts: UIPart[];
  metadata?: Metadata;
}

/** The members that this package adds to the metadata of a stored message. The `UIMessage` does not have them. */
export interface StoredMetadata {
  /** A message of the user has the answers to tool calls of this message of the assistant. */
  answers?: unknown;
  /** A message of the assistant continues this message, and replaces it. */
  continues?: unknown;
  /** The content, or the text of the turn so far, is `UIMessageChunk`s: one JSON value per line. */
  uiMessageChunks?: unknown;
}

export function toAppendMessage({ id, role, parts, metadata }: StoredUIMessage): AppendMessage {
  return { messageId: id, role, content: parts, ...(metadata && { metadata }) };
}

/** The answers of the user to the tool calls in the last step of a message of the assistant. */
export function toAnswers({ id, parts }: StoredUIMessage): AppendMessage {
  const start = parts.map(({ type }) => type).lastIndexOf("step-start") + 1;
  const content = parts.slice(start).filter(({ state }) => /^output|responded$/.test(`${state}`));
  // Repeated answers have the same message id.
  return { messageId: `answers:${start}.${content.length}:${id}`, role: "user", content, metadata: { answers: id } };
}

export function partsOf({ content }: Pick<Message, "content">): UIPart[] {
  if (Array.isArray(content)) return content;
  return [{ type: "text", text: typeof content === "string" ? content : JSON.stringify(content) }];
}

/** The text of a reply whose writer was lost before it assembled the parts. */
function textOf(lines: string): string {
  let text = "";
  for (const line of lines.split("\n")) {
    try {
      const { type, delta } = JSON.parse(line);
      if (type === "text-delta") text += delta;
    } catch {
      // The last line may be incomplete.
    }
  }
  return text;
}

/** Merges answers and continuations into their messages. Omits redacted and empty messages. */
export function toUIMessages(messages: Message[]): StoredUIMessage[] {
  const redacted = new Set<unknown>();
  const folded = new Map<unknown, StoredUIMessage>();
  for (const message of messages) {
    const { messageId, role } = message;
    if (message.content === null) {
      redacted.add(messageId);
      continue;
    }
    const { answers, continues, uiMessageChunks, ...others } = message.metadata as StoredMetadata;
    const metadata = Object.keys(others).length > 0 && { metadata: others };
    const content = uiMessageChunks ? { content: textOf(`${message.content}`) } : message;
    // Users may send anything.
    const parts = partsOf(content).filter((part) => part?.type);
    if (role === "user" && answers !== undefined) {
      const answered = folded.get(answers);
      if (answered) answered.parts = answered.parts.map((part) => answeredPart(part, parts));
    } else if (role !== "tool" && parts.some(({ text }) => text !== "")) {
      // Only workers write as the assistant.
      const id = role === "assistant" && typeof continues === "string" ? continues : messageId;
      if (!redacted.has(id)) folded.set(id, { ...folded.get(id), id, role, parts, ...metadata });
    }
  }
  return [...folded.values()];
}

/** The part with its answer, if it waits for one. Users cannot change anything else in an assistant's message. */
function answeredPart(part: UIPart, answers: UIPart[]): UIPart {
  const answer = answers.find(({ toolCallId }) => toolCallId && toolCallId === part.toolCallId);
  if (!answer) return part;
  const { state, output, errorText } = answer;
  if (part.state === "input-available" && state === "output-available") return { ...part, state, output };
  if (part.state === "input-available" && state === "output-error") return { ...part, state, errorText };
  if (part.state === "approval-requested" && state === "approval-responded") {
    const { approved, reason } = answer.approval ?? {};
    return { ...part, state, approval: { ...part.approval!, approved: approved === true, ...(reason && { reason }) } };
  }
  return part;
}
