// A proxy in front of the service that injects faults, selected by the first segment of the path. For Node only.

import { createServer, request, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** The fault of one request. With "after", the service has executed the request. */
const FAULTS = [
  "cut before",
  "cut after",
  "cut in body",
  "hang before",
  "hang after",
  "502 before",
  "502 after",
  "200 with HTML after",
] as const;
type Fault = (typeof FAULTS)[number] | "hang in body" | "none" | "stream cut" | "stream hangs";
/** Bytes of an event stream before its fault. */
const STREAM_BYTES_MAX = 4000;

export interface Proxy {
  url: string;
  /** Where the requests go. */
  target: string;
  /** Files that the proxy serves itself, by path. */
  files: Map<string, { type: string; body: string }>;
  /** The number of injected faults, by kind. */
  counts: Map<Fault, number>;
  stop(): Promise<void>;
}

export async function startProxy(): Promise<Proxy> {
  const random = seeded(20);
  /** Requests of `/lost` whose first response was lost. */
  const lost = new Set<string>();
  const choose = (mode: string, key: string): Fault => {
    switch (mode) {
      case "faulty":
        return random() < 0.6 ? "none" : FAULTS[Math.floor(random() * FAULTS.length)]!;
      case "lost": {
        const fault = lost.has(key) ? "none" : "cut after";
        lost.add(key);
        return fault;
      }
      case "html":
        return "502 before";
      case "html200":
        return "200 with HTML after";
      case "hang":
        return "hang before";
      case "cut":
        return "cut before";
      case "cut-in-body":
        return "cut in body";
      case "hang-in-body":
        return "hang in body";
      default:
        return "none";
    }
  };

  const serve = async (incoming: IncomingMessage, outgoing: ServerResponse) => {
    const file = proxy.files.get(incoming.url!);
    if (file) return void outgoing.writeHead(200, { "Content-Type": file.type }).end(file.body);
    const [, mode = "", path = ""] = /^\/([^/]*)(.*)$/.exec(incoming.url!)!;
    const body = await read(incoming);
    if (mode === "redirect") return void outgoing.writeHead(302, { Location: proxy.target + path }).end();
    const fault = choose(mode, `${incoming.method} ${path} ${body}`);
    proxy.counts.set(fault, (proxy.counts.get(fault) ?? 0) + 1);

    if (fault === "cut before") return void outgoing.destroy();
    if (fault === "hang before") return;
    if (fault === "502 before") return html(outgoing, 502);
    const response = await forward(incoming, path, body);
    outgoing.once("close", () => response.destroy());
    if (fault === "cut after") return void outgoing.destroy();
    if (fault === "hang after") return;
    if (fault === "502 after") return html(outgoing, 502);
    if (fault === "200 with HTML after") return html(outgoing, 200);
    outgoing.writeHead(response.statusCode!, response.headers);
    if (response.headers["content-type"] === "text/event-stream") {
      return mode === "faulty" ? passSome(response, outgoing) : void response.pipe(outgoing);
    }
    const whole = await read(response);
    const half = whole.subarray(0, whole.length / 2);
    if (fault === "cut in body") {
      outgoing.write(half, () => outgoing.destroy());
    } else if (fault === "hang in body") {
      outgoing.write(half);
    } else {
      outgoing.end(whole);
    }
  };

  /** Forwards some bytes of a stream, and then cuts it or stops forwarding. Removes the request to wait. */
  const passSome = async (response: IncomingMessage, outgoing: ServerResponse) => {
    let left = Math.floor(random() * STREAM_BYTES_MAX);
    const isCut = random() < 0.8;
    const fault = isCut ? "stream cut" : "stream hangs";
    for await (const part of response) {
      const text: Buffer = Buffer.from(
        (part as Buffer).toString("latin1").replace(/^retry: \d+/, "retry: 0"),
        "latin1",
      );
      outgoing.write(text.subarray(0, left));
      left -= text.length;
      if (left > 0) continue;
      proxy.counts.set(fault, (proxy.counts.get(fault) ?? 0) + 1);
      // The written bytes are sent first.
      if (isCut) outgoing.write("", () => outgoing.destroy());
      return;
    }
    outgoing.end();
  };

  const forward = (incoming: IncomingMessage, path: string, body: Buffer) => {
    const { host: _, ...headers } = incoming.headers;
    return new Promise<IncomingMessage>((resolve, reject) => {
      const forwarded = request(proxy.target + path, { method: incoming.method!, headers }, resolve);
      forwarded.once("error", reject);
      forwarded.end(body);
    });
  };

  const server = createServer((incoming, outgoing) => {
    // Clients that have disconnected.
    serve(incoming, outgoing).catch(() => outgoing.destroy());
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  const proxy: Proxy = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    target: "",
    files: new Map(),
    counts: new Map(),
    async stop() {
      const closed = new Promise((resolve) => server.close(resolve));
      server.closeAllConnections();
      await closed;
    },
  };
  return proxy;
}

function html(outgoing: ServerResponse, status: number) {
  outgoing.writeHead(status, { "Content-Type": "text/html" }).end("<html><h1>Maintenance</h1></html>");
}

async function read(stream: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of stream) chunks.push(chunk);
  return Buffer.concat(chunks);
}

/** mulberry32: the same faults in each run. */
function seeded(state: number): () => number {
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
