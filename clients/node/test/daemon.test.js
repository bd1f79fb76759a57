// Against a real daemon: everything that a backend does, while stages and the daemon itself are killed.
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { existsSync } from "node:fs";
import { mkdir, mkdtemp, readFile, rename, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before } from "node:test";

import { decodeMulti } from "@msgpack/msgpack";

import { PosewardError } from "../src/index.js";
import { wrongs } from "./conforms.js";
import { checkout, Daemon, newKeys, PATIENCE, running, writeClip, writeImage } from "./daemon.js";
import { until as within } from "./fake.js";
import { test } from "./timed.js";

const RUNNER = resolve(checkout, "../shared/data/runner.mp4");
const until = (condition, what) => within(condition, what, PATIENCE);
const code = (name) => (error) => error instanceof PosewardError && error.code === name;
const fits = (value, type) => assert.deepEqual(wrongs(value, type), []);

/** What a record says, whether it was streamed or stands in frames.msgpack. */
function plain(value) {
  if (Array.isArray(value)) return value.map(plain);
  if (value instanceof Float32Array) return { shape: value.shape, data: Buffer.from(value.buffer, value.byteOffset, value.byteLength) };
  if (typeof value !== "object" || value === null) return value;
  if ("dtype" in value) return { shape: value.shape, data: Buffer.from(value.data) };
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, plain(item)]));
}

/** Submit, watch, kill -9 the mesh stage and then the daemon in the middle; the records and the file that come out. */
async function underFire(daemon, client, path, frames) {
  const job = await client.submit({ path, recompute: true });
  const records = [];
  const streaming = (async () => {
    for await (const record of client.frames(job.id)) records.push(record);
  })();
  const told = [];
  const watching = (async () => {
    for await (const [topic, event] of client.events(`job.${job.id}`)) told.push({ topic, ...event });
  })();
  const shown = [];
  const waiting = client.wait(job.id, { onProgress: ({ state, progress }) => shown.push({ state, ...progress }) });
  const committed = async () => (await client.status(job.id)).progress?.committed ?? 0;
  await until(async () => (await committed()) > frames / 8, "the first eighth");
  const { mesh } = (await client.health()).processes;
  process.kill(mesh.pid, "SIGKILL");
  await until(async () => {
    const { pid, restarts } = (await client.health()).processes.mesh;
    return pid !== null && pid !== mesh.pid && restarts > mesh.restarts;
  }, "another mesh stage");
  await until(async () => (await committed()) > frames / 3, "the first third");
  await until(() => told.some((event) => event.job.progress?.committed > 0), "an event that tells progress");
  await until(() => records.length > 0, "frames while the job runs");
  await daemon.end("SIGKILL");
  await daemon.start();
  const done = await waiting;
  assert.equal(done.state, "done", JSON.stringify(done));
  assert.equal(done.attempts, 2);
  assert.equal(done.frames, frames);
  await streaming;
  assert.deepEqual(records.map((record) => record.frame), Array.from({ length: frames }, (_, n) => n));
  const steps = shown.map((one) => one.committed ?? 0).filter((count) => count > 0);
  assert.ok(new Set(steps).size > 3, `progress was shown: ${steps}`);
  assert.ok(told.every((event) => event.topic === `job.${job.id}` && event.job.id === job.id));
  const target = join(daemon.folder, "fetched.msgpack");
  const file = await readFile(await client.download(job.id, "frames.msgpack", target));
  const [, ...written] = decodeMulti(file);
  assert.deepEqual(records.map(plain), written.map(plain), "the stream and the file say the same");
  return { records, file, told, close: () => client.close().then(() => watching) };
}

async function undisturbed(client, path) {
  const job = await client.wait((await client.submit({ path, recompute: true })).id);
  assert.equal(job.state, "done", JSON.stringify(job));
  assert.equal(job.attempts, 1);
  return readFile(join(job.results, "frames.msgpack"));
}

test("a job under fire gives the same bytes (fast backend)", async (t) => {
  const { daemon, client } = await running(t);
  const path = await writeClip(join(daemon.folder, "clip ü.mp4"), 90);
  const { records, file, close } = await underFire(daemon, client, path, 90);
  assert.deepEqual(file, await undisturbed(client, path));
  const { tracks } = records[40];
  assert.ok(tracks[0].vertices instanceof Float32Array);
  assert.deepEqual(tracks[0].vertices.shape, [4, 3]);
  assert.equal(tracks[0].vertices.buffer, tracks[0].pose.buffer, "one message, no copies");
  await close();
});

test("a job under fire gives the same bytes (real video)", { skip: !existsSync(RUNNER) && "runner.mp4 is not there" }, async (t) => {
  const { daemon, client } = await running(t, { backend: "blazepose" });
  const { records, file, told, close } = await underFire(daemon, client, RUNNER, 180);
  assert.equal(new Set(told.map((event) => event.daemon)).size, 2, "events of both daemons");
  assert.deepEqual(file, await undisturbed(client, RUNNER));
  assert.ok(records.filter((record) => record.tracks.length > 0).length > 170);
  const { header } = await client.page((await client.list({ limit: 1 })).jobs[0].id, { count: 1 });
  fits(header, "Header");
  fits(records[90], "FrameRecord");
  const { vertices } = records[90].tracks[0];
  assert.deepEqual(vertices.shape, [vertices.length / 3, 3]);
  assert.ok(Math.max(...header.faces) < vertices.length / 3);
  await close();
});

test("an orderly restart is only a pause for those who wait", async (t) => {
  const { daemon, client } = await running(t);
  const path = await writeClip(join(daemon.folder, "clip.mp4"), 60);
  const job = await client.submit({ path });
  const waiting = client.wait(job.id);
  const numbers = [];
  const streaming = (async () => {
    for await (const { frame } of client.frames(job.id, { vertices: false })) numbers.push(frame);
  })();
  await until(() => numbers.length > 10, "some frames");
  await daemon.end("SIGTERM");
  await daemon.start();
  assert.equal((await waiting).state, "done");
  await streaming;
  assert.deepEqual(numbers, Array.from({ length: 60 }, (_, n) => n));
});

test("an upload goes on after kill -9 of the daemon, and from another client", async (t) => {
  const { daemon, client } = await running(t);
  const file = join(daemon.folder, "noise.mp4");
  const { limits } = await client.hello();
  await writeFile(file, randomBytes(4 * limits.chunk + 1000));
  const seen = [];
  const abort = new AbortController();
  const first = client.upload(file, {
    signal: abort.signal,
    onProgress: (sent) => {
      seen.push(sent);
      if (sent === limits.chunk) daemon.end("SIGKILL").then(() => daemon.start());
      if (sent === 2 * limits.chunk) abort.abort();
    },
  });
  await assert.rejects(first, code("aborted"));
  const other = daemon.client();
  t.after(() => other.close());
  const upload = await other.upload(file, { onProgress: (sent) => seen.push(sent) });
  assert.deepEqual([...new Set(seen)], [0, 1, 2, 3, 4].map((n) => n * limits.chunk).concat(4 * limits.chunk + 1000));
  const { id } = await client.submit({ upload, name: "noise" });
  const failed = await client.wait(id);
  assert.deepEqual([failed.state, failed.name, failed.error], ["failed", "noise", "unreadable-video"]);
  await assert.rejects(client.frames(id).next(), code("not-ready"));
  await assert.rejects(client.results(id), code("not-ready"));
  await assert.rejects(client.submit({ upload: "0".repeat(32) }), code("no-such-upload"));
});

test("with keys, over TCP", async (t) => {
  const keys = await mkdtemp(join(tmpdir(), "pw-node-"));
  t.after(() => rm(keys, { recursive: true, force: true }));
  await mkdir(join(keys, "allow"));
  const [server, own, other] = await Promise.all(["daemon", "node", "stranger"].map((name) => newKeys(keys, name)));
  await rename(join(keys, "node.key"), join(keys, "allow", "node.key"));
  const sets = [`api.key=${join(keys, "daemon.key_secret")}`, `api.allow=${join(keys, "allow")}`];
  const curve = { ...own, serverKey: server.publicKey };
  const { daemon, client } = await running(t, { address: `tcp://127.0.0.1:${await freePort()}`, sets, curve });
  const events = client.events("daemon");
  const first = events.next();
  await until(async () => {
    await client.drain(true);
    return Promise.race([first.then(() => true), new Promise((go) => setTimeout(go, 200))]);
  }, "an event");
  assert.equal((await first).value[0], "daemon");
  const stranger = daemon.client({ curve: { ...other, serverKey: server.publicKey }, patience: 5000 });
  await assert.rejects(stranger.hello(), (error) => code("timeout")(error) && /api\.allow\?$/.test(error.message));
  await stranger.close();
});

async function freePort() {
  for (;;) {
    const one = createServer().listen(0, "127.0.0.1");
    await new Promise((go) => one.once("listening", go));
    const { port } = one.address();
    await new Promise((go) => one.close(go));
    if (port < 65535) return port;
  }
}

let daemon, client, clip;
before(async () => {
  daemon = await (await Daemon.create()).start();
  client = daemon.client();
  clip = await writeClip(join(daemon.folder, "clip.mp4"), 40);
});
after(async () => {
  await client?.close();
  await daemon?.stop();
});

test("an uploaded file is worked on", async () => {
  const sent = [];
  const job = await client.submitFile(clip, { exports: ["json"], onProgress: (...at) => sent.push(at) });
  const done = await client.wait(job.id);
  assert.equal(done.state, "done");
  assert.equal(done.name, "clip.mp4");
  assert.equal(sent.at(-1)[0], sent.at(-1)[1]);
  const { files, summary, folder } = await client.results(job.id);
  assert.equal(folder, done.results);
  assert.equal(summary.frames, 40);
  const lines = files.find((file) => file.name === "frames.jsonl");
  const fetched = await readFile(await client.download(job.id, lines.name, join(daemon.folder, "lines.jsonl")));
  assert.equal(fetched.length, lines.bytes);
  assert.deepEqual(fetched, await readFile(join(folder, lines.name)));
  await assert.rejects(client.download(job.id, "../clip.mp4", join(daemon.folder, "x")), code("no-such-file"));
});

test("one image, its result in the reply", async () => {
  const path = await writeImage(join(daemon.folder, "square.png"));
  const png = await readFile(path);
  const { record, header } = await client.image(png);
  assert.deepEqual([header.width, header.height], [160, 120]);
  assert.deepEqual([...record.tracks[0].box], [20, 20, 60, 60]);
  assert.deepEqual(record.tracks[0].vertices.shape, [4, 3]);
  const without = await client.image(path, { vertices: false });
  assert.equal(without.record.tracks[0].vertices, undefined);
  fits(record, "FrameRecord");
  fits(without.record, "FrameRecord");
  fits(header, "Header");
  await assert.rejects(client.image(Buffer.from("no image")), (error) => error.code.startsWith("unreadable"));
});

test("refusals come by name", async () => {
  await assert.rejects(client.status("nobody"), code("no-such-job"));
  await assert.rejects(client.submit({ path: "relative.mp4" }), code("path-refused"));
  await assert.rejects(client.submit({ path: "/no/such.mp4" }), code("no-such-file"));
  await assert.rejects(client.submit({ path: clip, exports: ["nonsense"] }), code("bad-request"));
  await assert.rejects(client.reset("nobody"), code("no-such-stage"));
});

test("the same key is the same job", async () => {
  const [one, two] = await Promise.all([1, 2].map(() => client.submit({ path: clip, key: "ride 7", recompute: true })));
  assert.equal(one.id, two.id);
  assert.deepEqual([one.new, two.new].sort(), [false, true]);
  assert.equal((await client.status({ key: "ride 7" })).id, one.id);
  await client.wait(one.id);
});

test("cancel, retry, list, drain, reload", async () => {
  const job = await client.submit({ path: clip, recompute: true, name: "named.mp4" });
  assert.equal((await client.cancel(job.id)).state, "cancelled");
  await until(async () => (await client.health()).jobs.length === 0, "an idle daemon");
  assert.equal((await client.retry(job.id)).state, "queued");
  assert.equal((await client.wait(job.id)).state, "done");
  await assert.rejects(client.retry(job.id), code("wrong-state"));
  const { jobs, counts } = await client.list({ states: ["done"], text: "named" });
  assert.deepEqual(jobs.map((one) => one.id), [job.id]);
  assert.ok(counts.done >= 1);
  await client.drain(true);
  await assert.rejects(client.submit({ path: clip, recompute: true }), code("draining"));
  await client.drain(false);
  const { pid } = (await client.health()).processes.mesh;
  await client.reload("mesh");
  await until(async () => {
    const { ready, processes } = await client.health();
    return ready && processes.mesh.pid !== pid;
  }, "a mesh stage with fresh code");
});

test("the declared types are what the daemon says", async () => {
  fits(await client.hello(), "Hello");
  const told = [];
  const watching = (async () => {
    for await (const event of client.events()) told.push(event);
  })();
  await until(async () => {
    await client.drain(false);
    return told.length > 0;
  }, "the first event");
  const job = await client.submit({ path: clip, recompute: true, exports: ["json"] });
  const { new: fresh, ...queued } = job;
  assert.equal(fresh, true);
  fits(queued, "Job");
  const seen = [];
  const done = await client.wait(job.id, { onProgress: (one) => seen.push(one) });
  assert.ok(seen.some((one) => one.progress), "a job that runs");
  for (const one of seen) fits(one, "Job");
  fits(done, "Job");
  fits((await client.results(job.id)).summary, "Summary");
  const page = await client.page(job.id, { count: 3 });
  assert.deepEqual([page.records.length, page.next, page.end, page.state], [3, 3, false, "done"]);
  fits(page, "Page");
  fits(await client.health(), "Health");
  assert.deepEqual(Object.keys((await client.health()).processes).sort(), ["decode", "detect", "mesh", "track"]);
  const { pid } = (await client.health()).processes.mesh;
  process.kill(pid, "SIGKILL"); // for last_exit, a stage's events, and an incident
  const health = await until(async () => {
    const found = await client.health();
    return found.ready && ![pid, null].includes(found.processes.mesh.pid) && found;
  }, "a mesh stage that was restarted");
  fits(health, "Health");
  assert.ok(health.incidents.length > 0);
  const types = { job: "JobEvent", frame: "FrameEvent", stage: "StageEvent", memory: "MemoryEvent", daemon: "DaemonEvent" };
  const kind = ([topic]) => topic.split(".")[0];
  await until(() => Object.keys(types).every((one) => told.some((event) => kind(event) === one)), "an event of each topic");
  for (const event of told) fits(event[1], types[kind(event)]);
  const frames = told.filter(([topic]) => topic === `frame.${job.id}`).map(([, event]) => event.record.frame);
  assert.deepEqual(frames, frames.map((_, n) => frames[0] + n), "in order");
  await client.close();
  await watching;
  client = daemon.client();
});
