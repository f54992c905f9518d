// The packed file, as npm would publish it.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const root = fileURLToPath(new URL("../..", import.meta.url));
const tools = join(root, "node_modules/.bin");
const folder = mkdtempSync(join(tmpdir(), "sessiond-package-"));
/** The modules that are not part of the core. */
const STREAMS = ["conversation", "stream", "write-turn"];
let packed: { filename: string; files: { path: string }[] };

before(() => {
  const output = execFileSync("npm", ["pack", "--json", "--silent", "--pack-destination", folder], { cwd: root });
  const text = output.toString();
  [packed] = JSON.parse(text.slice(text.search(/^\[/m)));
});
after(() => rmSync(folder, { recursive: true }));

/** Runs a tool of the package's development dependencies; fails with its output. */
function run(tool: string, ...args: string[]): string {
  try {
    return execFileSync(join(tools, tool), args, { cwd: folder, stdio: ["ignore", "pipe", "pipe"] }).toString();
  } catch (error) {
    const { stdout, stderr } = error as { stdout: Buffer; stderr: Buffer };
    throw new Error(`${tool}: ${stdout}${stderr}`);
  }
}

test("the package has the files that it needs, and no other", () => {
  const modules = ["client", "errors", "index", "pager", "sse", "transport", ...STREAMS];
  const files = ["LICENSE", "README.md", "package.json", "dist/types.d.ts"];
  for (const name of modules) files.push(`dist/${name}.js`, `dist/${name}.d.ts`);
  assert.deepEqual(packed.files.map(({ path }) => path).sort(), files.sort());
});

test("publint finds nothing", () => {
  const output = run("publint", "run", join(folder, packed.filename), "--strict");
  assert.match(output, /All good!/);
});

test("attw finds nothing", () => {
  run("attw", "--profile", "esm-only", join(folder, packed.filename));
});

test("a project that uses the package and the code of the documents compile, with either module resolution", () => {
  const project = join(folder, "project");
  cpSync(join(root, "test/consumer"), project, { recursive: true });
  const modules = join(project, "node_modules");
  mkdirSync(join(modules, "sessiond"), { recursive: true });
  const archive = join(folder, packed.filename);
  execFileSync("tar", [
    "--extract",
    "--strip-components=1",
    "--file",
    archive,
    "--directory",
    join(modules, "sessiond"),
  ]);
  symlinkSync(join(root, "node_modules/@types"), join(modules, "@types"));
  symlinkSync(join(root, "node_modules/undici-types"), join(modules, "undici-types"));
  writeFileSync(join(project, "package.json"), '{"type":"module"}');
  const blocks = ["README.md", "../../docs/clients.md"].flatMap((document) => {
    return readFileSync(join(root, document), "utf8").split("```ts\n").slice(1);
  });
  assert.equal(blocks.length, 9);
  blocks.forEach((block, i) => {
    const code = block.split("```")[0]!;
    const client = code.includes("new Sessiond") ? "" : 'declare const client: import("sessiond").Sessiond;\n';
    writeFileSync(join(project, `document${i}.ts`), `${client}${code}\nexport {};\n`);
  });
  run("tsc", "--project", join(project, "tsconfig.bundler.json"));
  run("tsc", "--project", join(project, "tsconfig.nodenext.json"));
});

test("the package has at most 7 kB for a browser, minified and compressed, and at most 4 kB without streams", () => {
  const entry = join(root, "dist/index.js");
  const bundle = (...options: string[]) => {
    const script = run("esbuild", "--bundle", "--minify", "--format=esm", "--target=es2022", ...options, entry);
    return gzipSync(script, { level: 9 }).length;
  };
  const whole = bundle();
  const core = bundle(...STREAMS.map((name) => `--external:./${name}.js`));
  console.log(`${core} bytes, with streams ${whole} bytes`);
  assert(core <= 4000 && whole <= 7000, `${core} and ${whole} bytes`);
});
