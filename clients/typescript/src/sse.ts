/** A message of an event stream. A message without `data` only sets the last event id. */
export interface StreamMessage {
  type: string;
  data: string | undefined;
  id: string | undefined;
}

export interface EventStreamParser {
  /** How long the server asks clients to wait before they connect again. */
  retryMs: number | undefined;
  /** The messages that these bytes complete. */
  parse(bytes: Uint8Array): Generator<StreamMessage, void, undefined>;
}

/** Parses `text/event-stream` (HTML, section 9.2.6) in parts, which may be cut at any byte. */
export function eventStreamParser(): EventStreamParser {
  const decoder = new TextDecoder();
  let rest = "";
  let endsWithCr = false;
  let type = "";
  let data: string | undefined;
  let id: string | undefined;

  const readField = (line: string) => {
    const [name] = line.split(":", 1);
    const value = line.slice(name!.length + 1).replace(/^ /, "");
    if (name === "event") type = value;
    else if (name === "data") data = data === undefined ? value : `${data}\n${value}`;
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^\d+$/.test(value)) parser.retryMs = Number(value);
  };
  const parser: EventStreamParser = {
    retryMs: undefined,
    *parse(bytes) {
      let text = decoder.decode(bytes, { stream: true });
      if (!text) return;
      // This line feed belongs to the carriage return at the end of the previous part.
      const isSplit = endsWithCr && text[0] === "\n";
      endsWithCr = text.endsWith("\r");
      if (isSplit) text = text.slice(1);
      const lines = (rest + text).split(/\r\n?|\n/);
      rest = lines.pop()!;
      for (const line of lines) {
        if (line) {
          readField(line);
          continue;
        }
        const message = { type: type || "message", data, id };
        type = "";
        data = id = undefined;
        if (message.data !== undefined || message.id !== undefined) yield message;
      }
    },
  };
  return parser;
}
