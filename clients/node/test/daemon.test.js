// Against a real daemon: everything that a backend does, while stages and the daemon itself are killed.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";

import { Client, PosewardError } from "../src/index.js";
import { checkout, Daemon, writeClip, writeImage } from "./daemon.js";

const RUNNER = resolve(checkout, "../shared/data/runner.mp4");
const PATIENCE = 120_000;

async function until(condition, what) {
  const end = Date.now() + PATIENCE;
  for (;;) {
    const found = await condition();
    if (found) return found;
    assert.ok(Date.now() < end, `${what} not reached`);
    await new Promise((go) => setTimeout(go, 20));
  }
}

/** Submit, watch, kill -9 the mesh stage and then the daemon in the middle; the records and the file that come out. */
async function underFire(daemon, client, path, frames) {
  const job = await client.submit({ path, recompute: true });
  const records = [];
  const streaming = (async () => {
    for await (const record of client.frames(job.id)) records.push(record);
  })();
  const seen = [];
  const watching = (async () => {
    for await (const [topic, event] of client.events([`job.${job.id}`])) seen.push([topic, event]);
  })();
  const committed = async () => (await client.status(job.id)).progress?.committed ?? 0;
  await until(async () => (await committed()) > frames / 8, "the first eighth");
  process.kill((await client.health()).processes.mesh.pid, "SIGKILL");
  await until(async () => (await committed()) > frames / 3, "the first third");
  await daemon.kill();
  await daemon.start();
  const done = await client.wait(job.id);
  assert.equal(done.state, "done", JSON.stringify(done));
  assert.equal(done.attempts, 2);
  await streaming;
  assert.deepEqual(records.map((record) => record.frame), Array.from({ length: frames }, (_, n) => n));
  assert.ok(seen.some(([, event]) => event.job.progress?.committed > 0), "progress was told");
  watching.catch(() => {});
  const file = await client.download(job.id, "frames.msgpack", join(daemon.folder, "fetched.msgpack"));
  return { records, file: await readFile(file), done };
}

async function undisturbed(client, path) {
  const job = await client.wait((await client.submit({ path, recompute: true })).id);
  assert.equal(job.state, "done", JSON.stringify(job));
  return readFile(join(job.results, "frames.msgpack"));
}

test("a job under fire gives the same bytes (fast backend)", async (t) => {
  const daemon = await Daemon.create();
  const client = new Client({ address: daemon.address, patience: PATIENCE });
  t.after(async () => {
    await client.close();
    await daemon.stop();
  });
  await daemon.start();
  const path = await writeClip(join(daemon.folder, "clip ü.mp4"), 90);
  const { records, file } = await underFire(daemon, client, path, 90);
  assert.deepEqual(file, await undisturbed(client, path));
  const { tracks } = records[40];
  assert.ok(tracks[0].vertices instanceof Float32Array);
  assert.deepEqual(tracks[0].vertices.shape, [4, 3]);
  assert.equal(tracks[0].vertices.buffer, tracks[0].pose.buffer, "one message, no copies");
});

test("a job under fire gives the same bytes (real video)", { skip: !existsSync(RUNNER) && "runner.mp4 is not there" }, async (t) => {
  const daemon = await Daemon.create({ backend: "blazepose" });
  const client = new Client({ address: daemon.address, patience: PATIENCE });
  t.after(async () => {
    await client.close();
    await daemon.stop();
  });
  await daemon.start();
  const { records, file } = await underFire(daemon, client, RUNNER, 180);
  assert.deepEqual(file, await undisturbed(client, RUNNER));
  assert.ok(records.filter((record) => record.tracks.length > 0).length > 170);
  const { header } = await client.page((await client.list({ limit: 1 })).jobs[0].id, { count: 1 });
  assert.equal(records[90].tracks[0].vertices.length % 3, 0);
  assert.ok(Math.max(...header.faces) < records[90].tracks[0].vertices.length / 3);
});

let daemon, client, clip;
before(async () => {
  daemon = await (await Daemon.create()).start();
  client = new Client({ address: daemon.address, patience: PATIENCE });
  clip = await writeClip(join(daemon.folder, "clip.mp4"), 40);
});
after(async () => {
  await client.close();
  await daemon.stop();
});

test("an uploaded file is worked on", async () => {
  const sent = [];
  const job = await client.submitFile(clip, { exports: ["json"], onProgress: (...at) => sent.push(at) });
  const done = await client.wait(job.id);
  assert.equal(done.state, "done");
  assert.equal(done.name, "clip.mp4");
  assert.equal(sent.at(-1)[0], sent.at(-1)[1]);
  const { files, summary } = await client.results(job.id);
  assert.ok(files.some((file) => file.name === "frames.jsonl"));
  assert.equal(summary.frames, 40);
});

test("one image, its result in the reply", async () => {
  const png = await readFile(await writeImage(join(daemon.folder, "square.png")));
  const { record, header } = await client.image(png);
  assert.deepEqual([header.width, header.height], [160, 120]);
  assert.deepEqual([...record.tracks[0].box], [20, 20, 60, 60]);
  assert.equal((await client.image(png, { vertices: false })).record.tracks[0].vertices, undefined);
  await assert.rejects(client.image(Buffer.from("no image")), (error) => error.code.startsWith("unreadable"));
});

test("refusals come by name", async () => {
  const code = (name) => (error) => error instanceof PosewardError && error.code === name;
  await assert.rejects(client.status("nobody"), code("no-such-job"));
  await assert.rejects(client.submit({ path: "relative.mp4" }), code("path-refused"));
  await assert.rejects(client.submit({ path: "/no/such.mp4" }), code("no-such-file"));
  await assert.rejects(client.submit({ path: clip, exports: ["nonsense"] }), code("bad-request"));
  await assert.rejects(client.reset("nobody"), code("no-such-stage"));
});

test("cancel, retry, list, drain, health", async () => {
  const job = await client.submit({ path: clip, recompute: true, name: "named.mp4" });
  assert.equal((await client.cancel(job.id)).state, "cancelled");
  await until(async () => (await client.health()).jobs.length === 0, "an idle daemon");
  assert.equal((await client.retry(job.id)).state, "queued");
  assert.equal((await client.wait(job.id)).state, "done");
  const { jobs, counts } = await client.list({ states: ["done"], text: "named" });
  assert.deepEqual(jobs.map((one) => one.id), [job.id]);
  assert.ok(counts.done >= 1);
  await client.drain(true);
  await assert.rejects(client.submit({ path: clip, recompute: true }), (error) => error.code === "draining");
  await client.drain(false);
  const health = await client.health();
  assert.equal(health.ready, true);
  assert.deepEqual(Object.keys(health.processes).sort(), ["decode", "detect", "mesh", "track"]);
});
