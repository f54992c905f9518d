// The real program, with an embedded Redis and credentials. For Node only.

import { execFileSync, spawn } from "node:child_process";
import { createHmac } from "node:crypto";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Service {
  url: string;
  /** With every scope, for all businesses. */
  apiKey: string;
  /** Of `user_123` of `B0100001`. */
  userToken: string;
  stop(): Promise<void>;
}

export async function startService(corsOrigin: string): Promise<Service> {
  const program = process.env.SESSIOND_PROGRAM;
  if (!program) throw new Error("SESSIOND_PROGRAM does not name the program; use test/run");
  const folder = mkdtempSync(join(tmpdir(), "sessiond-client-"));
  // The environment is not inherited: its settings may name a Redis that is in use.
  const env = { PATH: process.env.PATH, HOME: process.env.HOME, SESSIOND_DATA_DIR: join(folder, "data") };
  const scopes = ["--scope", "read", "--scope", "write", "--scope", "admin"];
  // The credential is on stderr.
  const keygen = `"$0" keygen --id all --all-businesses ${scopes.join(" ")} 2>&1 >keys.toml`;
  const apiKey = /all\.\S+/.exec(execFileSync("sh", ["-c", keygen, program], { cwd: folder, env }).toString())![0];
  const secret = "this secret signs the tokens of one test";
  writeFileSync(join(folder, "secret"), secret);

  const addresses = ["--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--cors-origins", corsOrigin];
  const keys = ["--api-keys-file", join(folder, "keys.toml"), "--jwt-key-file", join(folder, "secret")];
  const jwt = ["--jwt-algorithm", "HS256", "--jwt-issuer", "test", "--jwt-audience", "sessiond"];
  const limits = ["--rate-limit", "0", "--user-rate-limit", "0"];
  const service = spawn(program, [...addresses, ...keys, ...jwt, ...limits], {
    env,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const exited = new Promise<void>((resolve) => service.once("exit", () => resolve()));
  const url = await new Promise<string>((resolve, reject) => {
    let log = "";
    service.stderr.on("data", (data) => {
      log += data;
      const address = /serving on (http:\/\/[0-9.:]+)/.exec(log);
      if (address) resolve(address[1]!);
    });
    service.once("exit", () => reject(new Error(log)));
  });
  const userToken = jwtOf({ iss: "test", aud: "sessiond", businessId: "B0100001", sub: "user_123" }, secret);
  const stop = async () => {
    service.kill();
    await exited;
    rmSync(folder, { recursive: true });
  };
  return { url, apiKey, userToken, stop };
}

function jwtOf(claims: object, secret: string): string {
  const encode = (part: object) => Buffer.from(JSON.stringify(part)).toString("base64url");
  const exp = Math.floor(Date.now() / 1000) + 3600;
  const text = `${encode({ alg: "HS256", typ: "JWT" })}.${encode({ ...claims, exp })}`;
  return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
}
