// The page: the conversation of one user. It stores nothing itself, so a reload shows the stored conversation.

import { Sessiond, type AppendMessage, type Message } from "sessiond";

// The page's server forwards calls to the service, with the token of the user.
const client = new Sessiond({ baseUrl: "/" });
const chat = client.conversation("B0100001", "user_123");

const byId = (id: string) => document.getElementById(id)!;
const log = byId("log");
const form = byId("form") as HTMLFormElement;
const input = byId("input") as HTMLTextAreaElement;

/** The displayed state of a message, or of a reply that becomes one. */
interface Item {
  id: string;
  role: string;
  text: string;
  note: string;
  sendAgain?: () => void;
}

const NOTES = {
  completed: "",
  cancelled: "stopped",
  interrupted: "interrupted",
  failed: "the assistant has failed",
  lost: "the rest was lost",
};

function items(): Item[] {
  const { messages, unsent, turn, text } = chat.getSnapshot();
  const stored = messages.map(({ messageId: id, role, content, finishReason }) => {
    return { id, role, text: textOf(content), note: NOTES[finishReason ?? "completed"] };
  });
  const pending = unsent.map(({ messageId: id, content, error }) => {
    const item = { id, role: "user", text: textOf(content), note: error ? "not sent" : "sending …" };
    // With the same id, it is stored once, even if the first attempt has succeeded.
    return error ? { ...item, sendAgain: () => send(content, id) } : item;
  });
  const note = turn?.cancelRequested ? "stopping …" : "writing …";
  const reply = turn ? [{ id: turn.turnId, role: turn.role, text, note }] : [];
  return [...stored, ...pending, ...reply];
}

function textOf(content: Message["content"]): string {
  if (content === null) return "(removed)";
  return typeof content === "string" ? content : JSON.stringify(content);
}

/** The element of an item. A reply keeps its element when it becomes a message, which has the id of the turn. */
function articleOf({ id, role, text, note, sendAgain }: Item): HTMLElement {
  const shown = [...log.children].find((child) => (child as HTMLElement).dataset.id === id);
  const article = (shown ?? newArticle()) as HTMLElement;
  const [content, footer, button] = article.children as unknown as [Element, Element, HTMLButtonElement];
  article.dataset.id = id;
  article.className = role;
  article.setAttribute("aria-label", role === "user" ? "You" : "Assistant");
  setText(content, text);
  setText(footer, note);
  button.hidden = !sendAgain;
  button.onclick = sendAgain ?? null;
  return article;
}

function newArticle(): Element {
  const template = byId("article") as HTMLTemplateElement;
  return document.importNode(template.content, true).firstElementChild!;
}

/** Never as HTML, because the texts of users and models are untrusted. */
function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

function render(): void {
  const { status, turn, hasOlder } = chat.getSnapshot();
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 50;
  const articles = items().map(articleOf);
  // Only new text is inserted, so that screen readers repeat nothing.
  for (const child of [...log.children]) if (!articles.includes(child as HTMLElement)) child.remove();
  articles.forEach((article, index) => {
    const other = log.children[index] ?? null;
    if (other !== article) log.insertBefore(article, other);
  });
  if (isAtEnd) log.scrollTop = log.scrollHeight;
  setText(byId("status"), { connecting: "connecting …", live: "live", failed: "refused: reload the page" }[status]);
  byId("older").hidden = !hasOlder;
  byId("stop").hidden = !turn || turn.cancelRequested;
}

function send(content: AppendMessage["content"], messageId?: string): void {
  // If it fails, it stays in `unsent`.
  chat.send(content, { messageId }).catch(() => {});
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = input.value.trim();
  // Cleared immediately, so a second Enter sends nothing.
  input.value = "";
  if (text) send(text);
});
input.addEventListener("keydown", (event) => {
  // Enter also completes a word of an input method.
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});
byId("stop").addEventListener("click", () => {
  chat.stop().catch(() => {});
  input.focus();
});
byId("older").addEventListener("click", () => void chat.loadOlder().catch(() => {}));
byId("new-chat").addEventListener("click", () => {
  chat.newChat();
  input.focus();
});

chat.subscribe(render);
render();
