// What README.md and examples/ show is run as it stands there, with other addresses.
import assert from "node:assert/strict";
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { Daemon, writeClip } from "./daemon.js";
import { test } from "./timed.js";

const home = dirname(dirname(fileURLToPath(import.meta.url)));
const run = promisify(execFile);
let daemon, clip, blocks;

before(async () => {
  daemon = await (await Daemon.create()).start();
  clip = await writeClip(join(daemon.folder, "clip.mp4"), 40);
  const text = await readFile(join(home, "README.md"), "utf8");
  blocks = [...text.matchAll(/```js\n(.*?)```/gs)].map(([, code]) => code);
});
after(() => daemon?.stop());

function changed(code, changes) {
  for (const [from, to] of Object.entries({ "new Client()": `new Client({ address: ${JSON.stringify(daemon.address)} })`, ...changes })) {
    assert.ok(code.includes(from), from);
    code = code.replaceAll(from, to);
  }
  return ["--input-type=module", "--eval", code];
}

test("README: the first lines", async () => {
  const target = join(daemon.folder, "fetched.mp4");
  const code = changed(blocks[0], { "/videos/clip.mp4": clip, "/tmp/overlay.mp4": target });
  const { stdout } = await run(process.execPath, code, { cwd: home, maxBuffer: 1 << 28 });
  assert.match(stdout, /running \d+/);
  assert.ok(stdout.includes(`done ${target}`), stdout.slice(-500));
  assert.match(stdout, /^39 1\.3\d* 1 Float32Array\(3\)/m);
  assert.ok((await readFile(target)).length > 1000);
});

test("README: the backend", async (t) => {
  const listen = "listen(0, function () { console.log(this.address().port); })";
  const code = changed(blocks[1], { "/videos/": `${daemon.folder}/`, "listen(8080)": listen });
  const server = spawn(process.execPath, code, { cwd: home, stdio: ["ignore", "pipe", "inherit"] });
  t.after(() => server.kill());
  const [port] = await once(server.stdout, "data");
  const base = `http://127.0.0.1:${Number(port)}`;
  const other = await writeClip(join(daemon.folder, "other.mp4"), 50);
  const made = await fetch(base, { method: "POST", body: await readFile(other) });
  assert.equal(made.status, 202);
  const followed = await fetch(base + made.headers.get("location"));
  assert.equal(followed.headers.get("content-type"), "text/event-stream");
  const told = (await followed.text()).trim().split("\n\n").map((line) => JSON.parse(line.slice("data: ".length)));
  assert.equal(told.at(-1).state, "done");
  assert.ok(told.some(({ committed }) => committed > 0), "progress");
  const unknown = await fetch(`${base}/jobs/nobody`);
  assert.deepEqual([unknown.status, (await unknown.json()).code], [404, "no-such-job"]);
});

test("examples/submit.mjs", async () => {
  const { stdout } = await run(process.execPath, ["examples/submit.mjs", clip, daemon.address], { cwd: home });
  assert.match(stdout, /^clip\.mp4: 40 frames, 1\.3 s\nperson 1: in 40 frames\nperson 2: in 40 frames\n.*frames\.msgpack/);
  await assert.rejects(run(process.execPath, ["examples/submit.mjs", "/no/such.mp4"], { cwd: home }), { code: 2 });
  const broken = fileURLToPath(import.meta.url);
  await assert.rejects(run(process.execPath, ["examples/submit.mjs", broken, daemon.address], { cwd: home }), (error) => {
    return error.code === 1 && /unreadable-video: /.test(error.stderr);
  });
});
