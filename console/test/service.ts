// The real program with an embedded Redis.

import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Sessiond } from "../../clients/typescript/src/index.js";

const SECRET = "this secret signs the tokens of one test";

export interface Service {
  url: string;
  /** A client with all permissions. */
  client: Sessiond;
  stop(): Promise<void>;
}

export interface ProtectedService extends Service {
  /** Credentials by their purpose. */
  credentials: Record<"reader" | "writer" | "admin" | "tenant" | "user" | "expired", string>;
}

const program = process.env.SESSIOND_PROGRAM ?? "";

/** A service that needs no credential. */
export async function startService(...flags: string[]): Promise<Service> {
  const folder = mkdtempSync(join(tmpdir(), "sessiond-console-"));
  const { url, stop } = await start(folder, flags);
  return { url, client: new Sessiond({ baseUrl: url }), stop };
}

/** A service with API keys and JWTs. */
export async function startProtectedService(...flags: string[]): Promise<ProtectedService> {
  const folder = mkdtempSync(join(tmpdir(), "sessiond-console-"));
  const keys = join(folder, "keys.toml");
  const key = (id: string, ...arguments_: string[]) => {
    // The credential is on stderr.
    const command = `"$0" "$@" 2>&1 >>${keys}`;
    const output = execFileSync("sh", ["-c", command, program, "keygen", "--id", id, ...arguments_]).toString();
    return new RegExp(`${id}\\.\\S+`).exec(output)![0];
  };
  const scopes = (...names: string[]) => names.flatMap((name) => ["--scope", name]);
  const reader = key("reader", "--all-businesses", ...scopes("read"));
  const writer = key("writer", "--all-businesses", ...scopes("read", "write"));
  const admin = key("admin", "--all-businesses", ...scopes("read", "write", "admin"));
  const tenant = key("tenant", "--business", "B0100001", "--business", "B0100003", ...scopes("read", "write"));
  writeFileSync(join(folder, "secret"), SECRET);
  const files = ["--api-keys-file", keys, "--jwt-key-file", join(folder, "secret")];
  const jwt = ["--jwt-algorithm", "HS256", "--jwt-issuer", "test", "--jwt-audience", "sessiond"];
  const { url, stop } = await start(folder, [...files, ...jwt, ...flags]);
  const ofUser = { iss: "test", aud: "sessiond", businessId: "B0100001", sub: "user_1" };
  const now = Math.floor(Date.now() / 1000);
  const user = jwtOf({ ...ofUser, exp: now + 3600 });
  const expired = jwtOf({ ...ofUser, exp: now - 3600 });
  const client = new Sessiond({ baseUrl: url, token: admin });
  return { url, client, stop, credentials: { reader, writer, admin, tenant, user, expired } };
}

async function start(folder: string, flags: string[]): Promise<Pick<Service, "url" | "stop">> {
  // The environment is not inherited: its settings may name a Redis that is in use.
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, SESSIOND_DATA_DIR: join(folder, "data") };
  const addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0"];
  const limits = ["--rate-limit", "0", "--user-rate-limit", "0"];
  const service = spawn(program, [...addresses, ...limits, ...flags], { env, stdio: ["ignore", "ignore", "pipe"] });
  const exited = new Promise<void>((resolve) => service.once("exit", () => resolve()));
  const url = await new Promise<string>((resolve, reject) => {
    let log = "";
    service.stderr.on("data", (data) => {
      log += data;
      const address = /serving on (https?:\/\/[0-9.:]+)/.exec(log);
      if (address) resolve(address[1]!);
    });
    service.once("exit", () => reject(new Error(log)));
  });
  const stop = async () => {
    service.kill();
    await exited;
    rmSync(folder, { recursive: true });
  };
  return { url, stop };
}

function jwtOf(claims: object): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode(claims)}`;
  return `${text}.${createHmac("sha256", SECRET).update(text).digest("base64url")}`;
}
