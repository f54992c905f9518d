/** A message of an event stream. Without `data` it only sets the last event id. */
export interface StreamMessage {
  type: string;
  data: string | undefined;
  id: string | undefined;
}

/** Parses `text/event-stream` (HTML, section 9.2.6), in parts that are cut at any byte. */
export class EventStreamParser {
  /** How long the server asks clients to wait before they connect again. */
  retryMs: number | undefined;

  private readonly decoder = new TextDecoder();
  private rest = "";
  private endsWithCr = false;
  private type = "";
  private data: string | undefined;
  private id: string | undefined;

  /** The messages that these bytes complete. */
  *parse(bytes: Uint8Array): Generator<StreamMessage, void, undefined> {
    let text = this.decoder.decode(bytes, { stream: true });
    if (!text) return;
    // A line feed belongs to the carriage return that ended the part before.
    const isSplit = this.endsWithCr && text[0] === "\n";
    this.endsWithCr = text.endsWith("\r");
    if (isSplit) text = text.slice(1);
    const lines = (this.rest + text).split(/\r\n?|\n/);
    this.rest = lines.pop()!;
    for (const line of lines) {
      if (line) {
        this.readField(line);
        continue;
      }
      const { type, data, id } = this;
      this.type = "";
      this.data = this.id = undefined;
      if (data !== undefined || id !== undefined) yield { type: type || "message", data, id };
    }
  }

  private readField(line: string): void {
    const [name] = line.split(":", 1);
    const value = line.slice(name!.length + 1).replace(/^ /, "");
    if (name === "event") this.type = value;
    else if (name === "data") this.data = this.data === undefined ? value : `${this.data}\n${value}`;
    else if (name === "id" && !value.includes("\0")) this.id = value;
    else if (name === "retry" && /^\d+$/.test(value)) this.retryMs = Number(value);
  }
}
