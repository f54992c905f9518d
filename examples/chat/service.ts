// The service, with an embedded Redis, and with credentials as in production: the worker has an API key, and each user
// has a token. The stored data is removed at the end.

import { spawn, spawnSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { SignJWT } from "jose";

export interface Service {
  url: string;
  /** An API key of one business. */
  workerKey: string;
  /** A token of one user. An application creates it after the sign-in. */
  tokenOf(businessId: string, userId: string): Promise<string>;
  stop(): Promise<void>;
}

export async function startService(program: string, businessId: string): Promise<Service> {
  const folder = mkdtempSync(join(tmpdir(), "sessiond-chat-"));
  const file = (name: string, content: string | Buffer) => {
    writeFileSync(join(folder, name), content);
    return join(folder, name);
  };
  // The entry for the file is on stdout, the key itself on stderr.
  const keygen = spawnSync(program, ["keygen", "--id", "worker", "--business", businessId], { encoding: "utf8" });
  const workerKey = /worker\.\S+/.exec(keygen.stderr)![0];
  const secret = Buffer.from(randomBytes(32).toString("hex"));

  const flags = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--data-dir", join(folder, "data")];
  const keys = ["--api-keys-file", file("keys.toml", keygen.stdout), "--jwt-key-file", file("secret", secret)];
  const jwt = ["--jwt-algorithm", "HS256", "--jwt-issuer", "chat", "--jwt-audience", "sessiond"];
  // Not inherited: the settings of the environment may name a Redis that is in use.
  const env = { PATH: process.env.PATH, HOME: process.env.HOME };
  const service = spawn(program, [...flags, ...keys, ...jwt], { env, stdio: ["ignore", "ignore", "pipe"] });
  const exited = once(service, "exit");
  // Even if this process fails.
  process.once("exit", () => service.kill("SIGHUP"));

  let url: string | undefined;
  const log: string[] = [];
  for await (const line of createInterface(service.stderr)) {
    log.push(line);
    url = /serving on (http:[/0-9.:]+)/.exec(line)?.[1];
    if (url) break;
  }
  service.stderr.resume();
  if (!url) throw new Error(`the service has not started:\n${log.join("\n")}`);

  return {
    url,
    workerKey,
    tokenOf(businessId, userId) {
      const token = new SignJWT({ businessId }).setSubject(userId).setProtectedHeader({ alg: "HS256" });
      return token.setIssuer("chat").setAudience("sessiond").setExpirationTime("1h").sign(secret);
    },
    async stop() {
      // SIGHUP: a second SIGINT or SIGTERM ends the service immediately, and Ctrl-C may have sent one.
      service.kill("SIGHUP");
      await exited;
      rmSync(folder, { recursive: true });
    },
  };
}
