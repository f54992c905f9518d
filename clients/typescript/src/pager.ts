import type { Included } from "./types.js";

/** The parameters that select a page of a list. Each list supports some of them. */
export interface PageQuery {
  limit?: number | undefined;
  cursor?: string | undefined;
  before?: number | undefined;
  after?: number | undefined;
  include?: Included | Included[] | undefined;
}

export interface Page<T> {
  items: T[];
  /** Selects the page after this one, as an argument of the same method. Null for the last page. */
  next: PageQuery | null;
  /** Number of items of the whole list, if the service counts them. */
  totalCount: number | null;
}

/**
 * A list, which is read page by page. `await` gives the items of the first page, `for await` every item, and `pages()`
 * the pages. Nothing is sent before that.
 */
export interface Pager<T> extends Promise<T[]>, AsyncIterable<T> {
  pages(): AsyncGenerator<Page<T>, void, undefined>;
}

export type ReadPage<T> = (query: PageQuery) => Promise<Page<T>>;

/** `items` iterates over every item, if their order differs from that of the pages. */
export function pager<T>(read: ReadPage<T>, query: PageQuery, items?: () => AsyncGenerator<T>): Pager<T> {
  let first: Promise<T[]> | undefined;
  const start = () => (first ??= read(query).then((page) => page.items));
  async function* pages() {
    for (let next: PageQuery | null = query; next;) {
      const page: Page<T> = await read(next);
      yield page;
      next = page.next;
    }
  }
  async function* all() {
    for await (const page of pages()) yield* page.items;
  }
  return {
    pages,
    [Symbol.asyncIterator]: items ?? all,
    [Symbol.toStringTag]: "Pager",
    then: (...handlers) => start().then(...handlers),
    catch: (handler) => start().catch(handler),
    finally: (handler) => start().finally(handler),
  };
}

/**
 * The query of the link with this relation (RFC 8288), or null. Only the query: the service does not know the path of a
 * proxy in front of it.
 */
export function linked(headers: Headers, rel: string): PageQuery | null {
  const query = headers.get("Link")?.match(`<[^>?]*\\?([^>]*)>; *rel="${rel}"`)?.[1];
  if (!query) return null;
  const members = [...new URLSearchParams(query)];
  const numbers = ["limit", "before", "after"];
  return Object.fromEntries(members.map(([name, value]) => [name, numbers.includes(name) ? Number(value) : value]));
}
