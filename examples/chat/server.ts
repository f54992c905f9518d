// The server of the page: serves its files, and forwards `/api/` to the service.

import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer, request as call, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { pipeline } from "node:stream";

const FILES: Record<string, [file: string, type: string]> = {
  "/": ["index.html", "text/html"],
  "/style.css": ["style.css", "text/css"],
  "/page.js": ["build/page.js", "text/javascript"],
};
/** Only the page's own scripts and styles, and no text can become markup. */
const POLICY =
  "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; " +
  "require-trusted-types-for 'script'; trusted-types 'none'; frame-ancestors 'none'";

/** Serves on loopback. `tokenOf` returns the token of the user who makes a request. */
export async function startServer(
  serviceUrl: string,
  tokenOf: (request: IncomingMessage) => Promise<string>,
  port = 0,
) {
  const handle = async (request: IncomingMessage, response: ServerResponse) => {
    if (request.url!.startsWith("/api/")) {
      const headers = { ...request.headers, authorization: `Bearer ${await tokenOf(request)}` };
      return passOn(serviceUrl, request, headers, response);
    }
    const [file, type] = FILES[request.url!] ?? [];
    if (!file) return response.writeHead(404).end();
    response.writeHead(200, { "Content-Type": `${type}; charset=utf-8`, "Content-Security-Policy": POLICY });
    response.end(await readFile(file));
  };
  const server = createServer((request, response) => {
    handle(request, response).catch((error) => {
      console.error(error);
      response.destroy();
    });
  });
  server.listen(port, "127.0.0.1");
  await once(server, "listening");
  const close = () => {
    server.close();
    server.closeAllConnections();
  };
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, close };
}

/** Forwards the path unchanged, because ids in it may be encoded. Streams require that responses are not buffered. */
function passOn(serviceUrl: string, request: IncomingMessage, headers: object, response: ServerResponse): void {
  const { hostname, port } = new URL(serviceUrl);
  const { method, url: path } = request;
  const upstream = call({ hostname, port, method, path, headers: { ...headers } }, (answer) => {
    response.writeHead(answer.statusCode!, answer.headers);
    pipeline(answer, response, () => {});
  });
  // The end of either side ends the other.
  response.on("close", () => upstream.destroy());
  pipeline(request, upstream, (error) => error && !response.headersSent && response.writeHead(502).end());
}
