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
/** Those of other imports, and which of them are for browsers. */
const ADAPTERS = ["ai", "ai-server", "assistant-ui", "ui-messages"];
const BROWSER_ADAPTERS = ["ai", "assistant-ui"];
const CORE = ["client", "errors", "index", "pager", "sse", "transport", ...STREAMS];
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

test("the package has the files that it needs, and no others", () => {
  const modules = [...CORE, ...ADAPTERS];
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
  for (const name of [
    "@types",
    "undici-types",
    "ai",
    "@assistant-ui",
    "react",
    "@langchain",
    "@nestjs",
    "reflect-metadata",
  ]) {
    symlinkSync(join(root, "node_modules", name), join(modules, name));
  }
  writeFileSync(join(project, "package.json"), '{"type":"module"}');
  const blocks = ["README.md", "../../docs/clients.md", "../../docs/workers.md"].flatMap((document) => {
    return readFileSync(join(root, document), "utf8").split("```ts\n").slice(1);
  });
  assert.equal(blocks.length, 15);
  mkdirSync(join(project, "recipes"));
  blocks.forEach((block, i) => {
    const code = block.split("```")[0]!;
    const recipe = /^\/\/ (\S+\.ts)\n/.exec(code)?.[1];
    if (recipe) return writeFileSync(join(project, "recipes", recipe), code);
    const client = code.includes("new Sessiond") ? "" : 'declare const client: import("sessiond").Sessiond;\n';
    const name = code.includes('"sessiond/') ? `adapters${i}.ts` : `document${i}.ts`;
    writeFileSync(join(project, name), `${client}${code}\nexport {};\n`);
  });
  const compile = (name: string, ...options: string[]) =>
    run("tsc", "--project", join(project, `tsconfig.${name}.json`), ...options);
  compile("bundler");
  compile("nodenext");
  compile("adapters");
  compile("adapters", "--module", "NodeNext", "--moduleResolution", "nodenext");
});

test("the package has at most 7 kB for a browser, minified and compressed, and at most 4 kB without streams", () => {
  const whole = bundled("index");
  const core = bundled("index", STREAMS);
  console.log(`${core} bytes, with streams ${whole} bytes`);
  assert(core <= 4000 && whole <= 7000, `${core} and ${whole} bytes`);
});

test("an adapter has at most 2 kB for a browser in addition to the client", () => {
  for (const name of BROWSER_ADAPTERS) {
    const bytes = bundled(name, CORE);
    console.log(`${name}: ${bytes} bytes`);
    assert(bytes <= 2000, `${name}: ${bytes} bytes`);
  }
});

/** The bytes of a module and its imports except these, minified and compressed. */
function bundled(name: string, external: string[] = []): number {
  const options = ["--bundle", "--minify", "--format=esm", "--target=es2022"];
  const externals = external.map((module) => `--external:./${module}.js`);
  const script = run("esbuild", ...options, ...externals, join(root, `dist/${name}.js`));
  return gzipSync(script, { level: 9 }).length;
}
