// Bundles the page: ../static/explorer.js (one ES module) and ../static/explorer.css.
// With --check nothing is written; it fails if the committed bundle is not what the sources make.

import { readFile, writeFile } from "node:fs/promises";
import { build } from "esbuild";

const LIMIT = 300_000; // bytes, of both together
const result = await build({
  entryPoints: { explorer: "src/bundle.js" },
  outdir: "../static",
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  charset: "utf8",
  legalComments: "none",
  write: false,
});
let size = 0;
let stale = 0;
for (const file of result.outputFiles) {
  const old = await readFile(file.path).catch(() => null);
  size += file.contents.length;
  if (process.argv.includes("--check")) stale += !old?.equals(Buffer.from(file.contents));
  else await writeFile(file.path, file.contents);
  console.log(`${file.path.split("/").at(-1)}: ${file.contents.length} bytes`);
}
if (size > LIMIT) throw new Error(`the bundle has ${size} bytes, more than ${LIMIT}`);
if (stale) throw new Error("the committed bundle is not what the sources make: run npm run build");
