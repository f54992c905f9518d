// What both the tests and the measurement need.

import type { Service } from "./service.js";

/** The bytes of all files of the console, compressed with brotli. */
export async function compressedBytes(service: Service): Promise<number> {
  const headers = { "Accept-Encoding": "br" };
  const bytes = async (file: string) => {
    const head = await fetch(`${service.url}/console/${file}`, { method: "HEAD", headers });
    return Number(head.headers.get("Content-Length"));
  };
  const page = await fetch(`${service.url}/console/`);
  const files = [...(await page.text()).matchAll(/(?:href|src)="([\w.-]+)"/g)].map(([, file]) => file!);
  const sizes = await Promise.all(["", ...files].map(bytes));
  return sizes.reduce((sum, size) => sum + size, 0);
}

/** A session of messages of different lengths. */
export async function longSession(service: Service, businessId: string, count: number): Promise<string> {
  const { sessionId } = await service.client.createSession({ businessId, userId: "talkative" });
  for (let seq = 1; seq <= count; seq += 100) {
    const messages = Array.from({ length: 100 }, (_, i) => ({
      role: i % 2 ? ("assistant" as const) : ("user" as const),
      content: `message ${seq + i}\n`.repeat(1 + ((seq + i) % 7)),
      metadata: i % 3 ? {} : { tokens: i },
    }));
    await service.client.appendMessages(sessionId, messages);
  }
  return sessionId;
}
