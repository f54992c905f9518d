// Shows untrusted texts as plain text.

import type { ComponentChildren, JSX } from "preact";
import { preferences, type Zone } from "./preferences.js";
import { useStore } from "./store.js";

/** Invisible characters that change how others look: bidirectional controls, zero-width characters, surrogates. */
const INVISIBLE = /([\p{Cf}\p{Zl}\p{Zp}\p{Cs}])/u;

/** An identifier. Its text direction is isolated, and its invisible characters are shown. */
export function Id({ children }: { children: string }): JSX.Element {
  const parts = children.split(INVISIBLE);
  if (parts.length === 1) return <bdi class="id">{children}</bdi>;
  return (
    <bdi class="id">{parts.map((part, i) => (i % 2 ? <span class="invisible">{codePoint(part)}</span> : part))}</bdi>
  );
}

function codePoint(character: string): string {
  return `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}`;
}

/** A text for the title of the window, where there are no elements that isolate it. */
export function isolated(text: string): string {
  return `\u2068${text}\u2069`;
}

/** A time in the preferred zone. The other one is in its title. */
export function Time({ children: text }: { children: string }): JSX.Element {
  const { zone } = useStore(preferences);
  const other = zone === "utc" ? "local" : "utc";
  const date = new Date(text);
  return (
    <time dateTime={text} title={`${full(date, other)}\n${full(date, zone)}`}>
      {short(date, zone)}
    </time>
  );
}

/** The time of day, and the date unless it is today. */
export function short(date: Date, zone: Zone): string {
  const [day, time] = parts(date, zone);
  return day === parts(new Date(), zone)[0] ? time.slice(0, 8) : `${day} ${time.slice(0, 5)}`;
}

function full(date: Date, zone: Zone): string {
  const [day, time] = parts(date, zone);
  return `${day} ${time} ${zone === "utc" ? "UTC" : offset(date)}`;
}

function parts(date: Date, zone: Zone): [day: string, time: string] {
  const shifted = zone === "utc" ? date : new Date(date.getTime() - date.getTimezoneOffset() * 60_000);
  if (Number.isNaN(shifted.getTime())) return ["?", "?"];
  const [day, time] = shifted.toISOString().slice(0, -1).split("T");
  return [day!, time!];
}

function offset(date: Date): string {
  const minutes = -date.getTimezoneOffset();
  const text = new Date(Math.abs(minutes) * 60_000).toISOString().slice(11, 16);
  return `UTC${minutes < 0 ? "-" : "+"}${text}`;
}

/** "3 sessions", with the plural of most words. */
export function counted(count: number, word: string): string {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

/** The text of a content in a common format: a string, an object with `text`, or a list of such parts. */
export function textOf(content: unknown): string | null {
  if (typeof content === "string") return content;
  if (Array.isArray(content)) {
    const parts = content.map(textOf);
    return parts.length && parts.every((part) => part !== null) ? parts.join("\n") : null;
  }
  const text = (content as { text?: unknown } | null)?.text;
  return typeof text === "string" ? text : null;
}

/** The content in one line. */
export function preview(content: unknown): string {
  return (textOf(content) ?? JSON.stringify(content) ?? "").slice(0, 300).replace(/\s+/g, " ");
}

export function Json({ children }: { children: unknown }): JSX.Element {
  return <pre dir="ltr">{JSON.stringify(children, null, 2)}</pre>;
}

/** A status or role as a word in a frame. Colour is never its only meaning. */
export function Badge({ kind, children }: { kind: string; children: ComponentChildren }): JSX.Element {
  return <span class={`badge ${kind}`}>{children}</span>;
}
