import { ProblemError } from "../../clients/typescript/src/index.js";
import { access, BASE_URL } from "./access.js";

/**
 * Saves all data of a user as a file. The bytes are those of the service: parsing and serialising them as
 * JSON would change long numbers.
 */
export async function exportUser(businessId: string, userId: string, onBytes: (bytes: number) => void): Promise<void> {
  const path = `/api/sessions/business/${encodeURIComponent(businessId)}/user/${encodeURIComponent(userId)}/export`;
  const headers: Record<string, string> = access.credential ? { Authorization: `Bearer ${access.credential}` } : {};
  const response = await fetch(BASE_URL + path, { headers, redirect: "manual" });
  if (!response.ok) throw new ProblemError(response, await response.json().catch(() => null));
  const parts: Uint8Array<ArrayBuffer>[] = [];
  let bytes = 0;
  // An export whose connection is cut rejects here: no file is saved.
  for (const reader = response.body!.getReader(); ;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value as Uint8Array<ArrayBuffer>);
    bytes += value.length;
    onBytes(bytes);
  }
  const url = URL.createObjectURL(new Blob(parts, { type: "application/x-ndjson" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${businessId}-${userId}.ndjson`.replace(/[^\w.@-]+/g, "_");
  link.click();
  // The download has begun when the browser is idle again.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
