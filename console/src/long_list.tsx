import type { ComponentChildren, HTMLAttributes, JSX, Ref } from "preact";
import { useEffect, useImperativeHandle, useLayoutEffect, useRef, useState } from "preact/hooks";
import { Heights } from "./heights.js";
import { useKey } from "./keyboard.js";

/** Rows are rendered up to this many pixels beyond the visible part. */
const MARGIN = 300;
/** A list that is scrolled this close to its end follows new rows. */
const END_TOLERANCE = 40;

export interface LongListHandle {
  scrollTo(place: "start" | "end"): void;
}

/** The rows that are rendered. */
export interface Range {
  first: number;
  last: number;
  isAtStart: boolean;
  isAtEnd: boolean;
}

interface Props {
  /** Changes when the same rows get other indexes. */
  identity: string;
  count: number;
  /** The estimated height of a row that was not rendered yet, in pixels. */
  estimate: number;
  label: string;
  role: "log" | "list";
  /** Whether the list starts at its end, and stays there while rows are added. */
  followsEnd?: boolean;
  keyOf(index: number): string | number;
  /** The content of a row, and the attributes of its element. */
  row(index: number): { attributes?: HTMLAttributes<HTMLDivElement>; content: ComponentChildren };
  /** Content below the last row. */
  end?: ComponentChildren;
  onRange?(range: Range): void;
  handle?: Ref<LongListHandle>;
}

/** A list that renders only its visible rows, of any height. Visible rows stay in place when others change. */
export function LongList(props: Props): JSX.Element {
  const { identity, count, estimate, label, role, followsEnd = false, keyOf, row, end, onRange, handle = null } = props;
  const box = useRef<HTMLDivElement>(null);
  const body = useRef<HTMLDivElement>(null);
  const [, render] = useState(0);
  const state = useRef({
    identity: "",
    heights: new Heights(estimate),
    scrollTop: 0,
    /** The row that keeps its place when heights change, and how far its top is above the top of the list. */
    anchor: { index: 0, above: 0 },
    /** The rows that are rendered. */
    first: 0,
    last: -1,
    isAtEnd: followsEnd,
    height: 800,
  }).current;
  const isOther = state.identity !== identity;
  if (isOther) {
    state.identity = identity;
    state.heights = new Heights(estimate);
    state.scrollTop = 0;
    state.anchor = { index: 0, above: 0 };
  }
  const { heights } = state;
  heights.resize(count);

  /** The rows to render at this position. */
  const rowsAt = (top: number) => [heights.at(top - MARGIN), heights.at(top + state.height + MARGIN)] as const;
  const look = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current!;
    state.scrollTop = scrollTop;
    state.height = clientHeight;
    state.isAtEnd = scrollHeight - scrollTop - clientHeight < END_TOLERANCE;
    const visible = heights.at(scrollTop);
    const rendered = Math.max(state.first, Math.min(visible, state.last));
    const [first, last] = rowsAt(scrollTop);
    // A row that stays rendered keeps its place, because the rows that are new get other heights than the estimate.
    const isNear = scrollTop > 0 && rendered >= first && rendered <= last;
    const index = isNear ? rendered : visible;
    state.anchor = { index, above: scrollTop - heights.top(index) };
  };
  // The browser reports a new position at its next frame.
  if (!isOther && box.current!.scrollTop !== state.scrollTop) look();

  const top = state.isAtEnd && followsEnd ? Math.max(0, heights.total - state.height) : state.scrollTop;
  const [first, last] = count ? rowsAt(top) : [0, -1];
  const indexes = Array.from({ length: last - first + 1 }, (_, i) => first + i);

  const tellRange = () => onRange?.({ first, last, isAtStart: state.scrollTop === 0, isAtEnd: state.isAtEnd });

  useLayoutEffect(() => {
    state.first = first;
    state.last = last;
    const { children } = body.current!;
    indexes.forEach((index, i) => {
      const { height } = children[i]!.getBoundingClientRect();
      if (height) heights.set(index, height);
    });
    body.current!.style.paddingTop = `${heights.top(first)}px`;
    body.current!.style.paddingBottom = `${heights.total - heights.top(last + 1)}px`;
    const { anchor } = state;
    if (followsEnd && state.isAtEnd) box.current!.scrollTop = box.current!.scrollHeight;
    else if (followsEnd) box.current!.scrollTop = heights.top(anchor.index) + anchor.above;
    look();
    const isOutside = heights.at(state.scrollTop) < first || heights.at(state.scrollTop + state.height) > last;
    if (count && isOutside) render((n) => n + 1);
    tellRange();
  });

  useEffect(() => {
    const observer = new ResizeObserver(() => render((n) => n + 1));
    observer.observe(box.current!);
    observer.observe(body.current!);
    return () => observer.disconnect();
  }, []);

  useImperativeHandle(handle, () => ({
    scrollTo(place) {
      state.isAtEnd = place === "end";
      box.current!.scrollTop = place === "end" ? box.current!.scrollHeight : 0;
      look();
      render((n) => n + 1);
    },
  }));

  // Focus moves by rows. A focused row that is no longer rendered passes its focus to the list.
  const focused = useRef<string | number | null>(null);
  useLayoutEffect(() => {
    if (focused.current === null || document.activeElement !== document.body) return;
    const index = indexes.findIndex((index) => keyOf(index) === focused.current);
    focusRow(index >= 0 ? body.current!.children[index] : undefined);
  });
  const focusRow = (element: Element | undefined) => {
    const target = element?.querySelector<HTMLElement>("[data-focus]") ?? (element as HTMLElement | undefined);
    (target ?? box.current!).focus({ preventScroll: true });
  };
  const move = (step: 1 | -1) => {
    const rows = [...body.current!.children];
    const current = rows.findIndex((element) => element.contains(document.activeElement));
    const view = box.current!.getBoundingClientRect();
    const seen = (element: Element) => element.getBoundingClientRect().bottom > view.top + 1;
    const target = rows[current < 0 ? rows.findIndex(seen) : current + step];
    if (!target) return;
    target.scrollIntoView({ block: "nearest" });
    focusRow(target);
  };
  useKey("j", () => move(1));
  useKey("k", () => move(-1));

  return (
    <div
      ref={box}
      class="long-list"
      role="region"
      aria-label={label}
      tabIndex={0}
      onScroll={() => {
        look();
        const isRendered =
          (first === 0 || heights.top(first) <= state.scrollTop - MARGIN / 2) &&
          (last === count - 1 || heights.top(last + 1) >= state.scrollTop + state.height + MARGIN / 2);
        if (!isRendered) render((n) => n + 1);
        tellRange();
      }}
      onFocusIn={(event) => {
        const element = [...body.current!.children].findIndex((child) => child.contains(event.target as Node));
        focused.current = element < 0 ? null : keyOf(first + element);
      }}
      onFocusOut={(event) => {
        const left = event.target as Element;
        // Unless its element is being removed.
        queueMicrotask(() => {
          if (left.isConnected && !body.current?.contains(document.activeElement)) focused.current = null;
        });
      }}
    >
      <div
        ref={body}
        role={role}
        aria-label={label}
        aria-live={role === "log" ? (state.isAtEnd ? "polite" : "off") : undefined}
      >
        {indexes.map((index) => {
          const { attributes, content } = row(index);
          return (
            <div key={keyOf(index)} role={role === "list" ? "listitem" : undefined} {...attributes}>
              {content}
            </div>
          );
        })}
      </div>
      {end}
    </div>
  );
}
