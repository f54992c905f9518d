// A model whose output the test controls.

import type { Message } from "sessiond";

/** One call of the model. */
export interface Run {
  messages: Message[];
  write(text: string): void;
  end(): void;
  /** When the model was aborted, by the worker's clock. */
  aborted: Promise<number>;
}

export class TestModel {
  private readonly runs: Run[] = [];
  private wake = () => {};
  /** The number of calls of the model. */
  calls = 0;

  /** Resolves with the next call of the model. */
  async nextRun(): Promise<Run> {
    while (!this.runs.length) await new Promise<void>((resolve) => (this.wake = resolve));
    return this.runs.shift()!;
  }

  readonly model = (messages: Message[], signal: AbortSignal): AsyncIterable<string> => {
    this.calls++;
    const { readable, writable } = new TransformStream<string, string>();
    const writer = writable.getWriter();
    const write = (text: string) => void writer.write(text).catch(() => {});
    const end = () => void writer.close().catch(() => {});
    const aborted = new Promise<number>((resolve) => {
      signal.addEventListener("abort", () => {
        resolve(Date.now());
        void writer.abort().catch(() => {});
      });
    });
    this.runs.push({ messages, write, end, aborted });
    this.wake();
    return readable as unknown as AsyncIterable<string>;
  };
}
