// Builds the files of `dist/`, which are committed: the program is built without Node.js. Options: [folder].

import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";

const folder = process.argv[2] ?? "dist";
process.chdir(import.meta.dirname ?? new URL(".", import.meta.url).pathname);
rmSync(folder, { recursive: true, force: true });
mkdirSync(folder, { recursive: true });

const { metafile } = await build({
  entryPoints: { console: "src/main.tsx" },
  outdir: folder,
  bundle: true,
  minify: true,
  metafile: true,
  format: "iife",
  target: ["chrome123", "firefox121", "safari17.5"],
  jsx: "automatic",
  jsxImportSource: "preact",
  charset: "utf8",
  legalComments: "none",
});
await build({ entryPoints: { console: "style.css" }, outdir: folder, minify: true, charset: "utf8" });
for (const file of ["index.html", "icon.svg"]) cpSync(file, join(folder, file));

// The licences of the libraries require that their notices come with the program.
const packages = new Set(Object.keys(metafile.inputs).flatMap((path) => /node_modules\/([^/]+)/.exec(path)?.[1] ?? []));
const notices = [...packages].sort().map((name) => {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`, "utf8"));
  return `=== ${name} ${version}\n\n${readFileSync(`node_modules/${name}/LICENSE`, "utf8")}`;
});
writeFileSync(join(folder, "third-party-notices"), notices.join("\n"));
