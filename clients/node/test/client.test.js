// What calls do that are more than one request: streams, waiting, uploads, downloads, events.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { Client, defaultAddress, PosewardError } from "../src/index.js";
import { eventsAddress } from "../src/events.js";
import { FakeDaemon, together, until } from "./fake.js";
import { test } from "./timed.js";

const named = (code, text = /./) => (error) =>
  error instanceof PosewardError && error.code === code && text.test(error.message);

async function folder(t) {
  const path = await mkdtemp(join(tmpdir(), "pw-node-"));
  t.after(() => rm(path, { recursive: true, force: true }));
  return path;
}

test("frames go on where they were, each once, in order, across a restart", async () => {
  let died = false;
  const answer = async (asked, reply) => {
    const at = asked.start;
    if (at === 3 && !died) {
      died = true;
      setTimeout(async () => {
        await daemon.down();
        await daemon.up();
      });
      return undefined;
    }
    const records = [at, at + 1, at + 2].filter((n) => n < 8).map((frame) => ({ frame, tracks: [] }));
    if (at === 6 && daemon.heard.filter((one) => one.start === 6).length === 1) records.length = 0; // none yet
    const end = at + records.length >= 8;
    return reply({ header: null, records, next: at + records.length, end, state: end ? "done" : "running" });
  };
  const daemon = await new FakeDaemon(answer).start();
  const client = new Client({ address: daemon.address, resend: 3_600_000, patience: 60_000 });
  const seen = [];
  for await (const record of client.frames("j")) seen.push(record.frame);
  assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
  const tail = [];
  for await (const record of client.frames("j", { start: 5, vertices: false })) tail.push(record.frame);
  assert.deepEqual(tail, [5, 6, 7]);
  assert.equal(daemon.heard.at(-1).vertices, false);
  await client.close();
  await daemon.stop();
});

test("frames of a job that is cancelled do not pass for all of them", async () => {
  const answer = (asked, reply) =>
    reply({ header: null, records: [{ frame: 0, tracks: [] }], next: 1, end: true, state: "cancelled" });
  await together(answer, async (client) => {
    const frames = client.frames("j");
    assert.equal((await frames.next()).value.frame, 0);
    await assert.rejects(frames.next(), named("not-ready"));
  });
});

test("a stream that is left asks no more", async () => {
  const answer = (asked, reply) => reply({ records: [{ frame: asked.start, tracks: [] }], next: asked.start + 1, end: false, state: "running" });
  await together(answer, async (client, daemon) => {
    for await (const { frame } of client.frames("j")) if (frame === 3) break;
    await client.hello();
    assert.deepEqual(daemon.heard.map((asked) => asked.op), ["frames", "frames", "frames", "frames", "hello"]);
  });
});

test("wait asks on until the job has ended", async () => {
  const states = ["queued", "running", "running", "done"];
  const answer = (asked, reply) => reply({ job: { id: "j", state: states.shift(), progress: { committed: 4 - states.length } } });
  await together(answer, async (client, daemon) => {
    const seen = [];
    const done = await client.wait("j", { onProgress: (job) => seen.push(job.state) });
    assert.equal(done.state, "done");
    assert.deepEqual(seen, ["queued", "running", "running", "done"]);
    assert.deepEqual(daemon.heard.map((asked) => asked.committed), [0, 1, 2, 3]);
  });
});

test("wait gives up when it was told to, with the job as it is", async () => {
  const answer = async (asked, reply) => {
    await new Promise((go) => setTimeout(go, asked.timeout * 1000));
    await reply({ job: { id: "j", state: "running" } });
  };
  await together(answer, async (client, daemon) => {
    assert.equal((await client.wait("j", { timeout: 300 })).state, "running");
    assert.ok(daemon.heard[0].timeout > 0.2 && daemon.heard[0].timeout <= 0.3, "seconds on the wire");
    assert.equal(daemon.heard[0].committed, undefined, "not woken for progress that nobody looks at");
  });
});

/** A daemon's side of one upload. */
function receiver(data, { got = Buffer.alloc(0), chunk = 256, onChunk = () => true } = {}) {
  const side = { got, offsets: [] };
  side.answer = (asked, reply, more) => {
    const state = () => ({ upload: "u", offset: side.got.length, complete: side.got.length === data.length });
    if (asked.op === "hello") return reply({ limits: { chunk } });
    if (asked.op === "upload") {
      assert.equal(asked.sha256, createHash("sha256").update(data).digest("hex"));
      assert.equal(asked.size, data.length);
      return reply(state());
    }
    if (asked.op === "submit") return reply({ job: { id: "j", state: "queued", asked }, new: true });
    side.offsets.push(asked.offset);
    if (!onChunk(side, asked, more)) return undefined;
    if (asked.offset === side.got.length) side.got = Buffer.concat([side.got, more.blob]);
    return reply(state());
  };
  return side;
}

test("an upload goes on where the daemon says", async (t) => {
  const data = Buffer.from(Array.from({ length: 1000 }, (_, n) => n % 251));
  const file = join(await folder(t), "clip.mp4");
  await writeFile(file, data);
  let confused = false;
  const side = receiver(data, {
    got: Buffer.from(data.subarray(0, 300)), // of an earlier try
    onChunk: (one) => {
      if (!confused) one.got = one.got.subarray(0, 200); // it has lost some
      confused = true;
      return true;
    },
  });
  await together(side.answer, async (client) => {
    const seen = [];
    assert.equal(await client.upload(file, { onProgress: (sent) => seen.push(sent) }), "u");
    assert.deepEqual(side.got, data);
    assert.equal(seen[0], 300);
    assert.equal(seen.at(-1), 1000);
  });
});

test("an upload survives a restart in the middle, and so does a chunk that was taken but not answered", async (t) => {
  const data = Buffer.from(Array.from({ length: 1000 }, (_, n) => n % 241));
  const file = join(await folder(t), "clip.mp4");
  await writeFile(file, data);
  let deaths = 0;
  const side = receiver(data, {
    onChunk: (one, asked, { blob }) => {
      if (asked.offset !== 512 || deaths > 0) return true;
      deaths += 1;
      one.got = Buffer.concat([one.got, blob]);
      setTimeout(async () => {
        await daemon.down();
        await daemon.up();
      });
      return false;
    },
  });
  const daemon = await new FakeDaemon(side.answer).start();
  const client = new Client({ address: daemon.address, resend: 3_600_000, patience: 60_000 });
  const job = await client.submitFile(file, { priority: 3, exports: ["json"] });
  assert.deepEqual(side.got, data);
  assert.deepEqual(side.offsets, [0, 256, 512, 512, 768]);
  assert.equal(job.new, true);
  const { upload, priority, exports: wanted, path } = job.asked;
  assert.deepEqual([upload, priority, wanted, path], ["u", 3, ["json"], undefined]);
  await client.close();
  await daemon.stop();
});

test("an empty file is the daemon's to refuse; a missing one is not asked about; an abort is one", async (t) => {
  const file = join(await folder(t), "empty.mp4");
  await writeFile(file, "");
  const side = receiver(Buffer.alloc(0));
  await together(side.answer, async (client, daemon) => {
    assert.equal(await client.upload(file), "u");
    daemon.heard.length = 0;
    await assert.rejects(client.upload(`${file}.not`), { code: "ENOENT" });
    await assert.rejects(client.upload(file, { signal: AbortSignal.abort() }), named("aborted"));
    assert.deepEqual(daemon.heard, []);
  });
});

test("a download is whole or not there", async (t) => {
  const path = await folder(t);
  const data = Buffer.from("0123456789");
  let trouble = "refused";
  const answer = (asked, reply, { refuse }) => {
    const piece = data.subarray(asked.offset, asked.offset + 4);
    if (asked.offset > 0 && trouble === "refused") return refuse("results-gone");
    if (asked.offset > 0 && trouble === "short") return reply({ name: "a", offset: asked.offset, total: 10 }, Buffer.alloc(0));
    return reply({ name: "a", offset: asked.offset, total: 10 }, piece);
  };
  await together(answer, async (client) => {
    const target = join(path, "a.bin");
    await assert.rejects(client.download("j", "a", target), named("results-gone"));
    trouble = "short";
    await assert.rejects(client.download("j", "a", target), named("results-gone"));
    assert.deepEqual(await readdir(path), []);
    trouble = "";
    const seen = [];
    const made = await Promise.all([
      client.download("j", "a", target, { onProgress: (got, total) => seen.push([got, total]) }),
      client.download("j", "a", target), // at the same time: they do not get into each other's way
    ]);
    assert.deepEqual(made, [target, target]);
    assert.deepEqual(await readFile(target), data);
    assert.deepEqual(await readdir(path), ["a.bin"]);
    assert.deepEqual(seen, [[4, 10], [8, 10], [10, 10]]);
  });
});

test("an image is bytes or a path, and too large a one is not sent", async (t) => {
  const file = join(await folder(t), "a.png");
  await writeFile(file, "the image");
  const answer = (asked, reply) =>
    asked.op === "hello" ? reply({ limits: { max_message: 2 << 20 } }) : reply({ record: { frame: 0, tracks: [] }, header: {} });
  await together(answer, async (client, daemon) => {
    await client.image(file, { vertices: false, timeout: 2000 });
    const [asked] = daemon.heard;
    assert.equal(asked.blob.toString(), "the image");
    assert.deepEqual([asked.vertices, asked.timeout], [false, 2]);
    await client.image(new Uint8Array(2 << 20));
    await assert.rejects(client.image(new Uint8Array((2 << 20) + 1)), named("too-large"));
    assert.deepEqual(daemon.heard.map((one) => one.op), ["image", "hello", "image", "hello"]);
  });
});

test("a daemon that never comes further with an upload is named", async (t) => {
  const file = join(await folder(t), "a.bin");
  await writeFile(file, "content");
  const answer = (asked, reply) =>
    asked.op === "hello" ? reply({ limits: { chunk: 4 } }) : reply({ upload: "u", offset: 0, complete: false });
  await together(answer, async (client, daemon) => {
    await assert.rejects(client.upload(file), named("upload-damaged", /stayed at 0 of 7 bytes/));
    assert.ok(daemon.heard.length < 20);
  });
});

test("a file that is replaced while it is fetched is not mixed with the other", async (t) => {
  const target = join(await folder(t), "a.bin");
  const lengths = [100, 80];
  const answer = (asked, reply) => reply({ total: lengths.shift() }, Buffer.alloc(50));
  await together(answer, async (client) => {
    await assert.rejects(client.download("j", "a.bin", target), named("results-gone", /has been replaced/));
    await assert.rejects(readFile(target), { code: "ENOENT" });
  });
});

test("limits and the address of events are those of the daemon that is there now", async (t) => {
  const file = join(await folder(t), "a.bin");
  await writeFile(file, "content");
  const chunks = [4, 2];
  const sizes = [];
  let got = 0;
  const answer = (asked, reply, more) => {
    if (asked.op === "hello") return reply({ limits: { chunk: chunks.shift() } });
    if (asked.op === "upload") got = 0;
    else sizes.push(more.blob.length);
    got += more?.blob?.length ?? 0;
    return reply({ upload: "u", offset: got, complete: got === 7 });
  };
  await together(answer, async (client) => {
    await client.upload(file);
    await client.upload(file);
    assert.deepEqual(sizes, [4, 3, 2, 2, 2, 1]);
  });
});

test("a closed client has no events to wait for", async () => {
  await together(() => undefined, async (client) => {
    await client.close();
    await assert.rejects(client.events().next(), named("closed"));
  });
  const known = new Client({ address: "ipc:///tmp/none.sock", events: "ipc:///tmp/none-events.sock" });
  await known.close();
  await assert.rejects(known.events().next(), named("closed"));
});

test("events come as they are, whatever else comes, until the client is closed", async () => {
  await together(
    (asked, reply) => reply({ events: "ipc:///nowhere" }),
    async (_, daemon) => {
      const client = new Client({ address: daemon.address, events: daemon.events });
      const seen = [];
      const watching = (async () => {
        for await (const [topic, event] of client.events(["job.", "memory"])) seen.push([topic, event.seq]);
      })();
      await daemon.publish("job.a", { seq: 1, job: {} });
      await until(() => daemon.publisher.receive().then(() => true), "the second topic");
      await daemon.publish("frame.a", { seq: 2 });
      await daemon.publish("job.b", Buffer.from([0xc1]));
      await daemon.publish("job.c", { v: 2, seq: 4 });
      await daemon.publish("memory", { seq: 5 });
      await until(() => seen.length === 2, "two events");
      assert.deepEqual(seen, [["job.a", 1], ["memory", 5]]);
      await client.close();
      await watching;
    },
  );
});

test("events end when they are left, and by name when they are aborted", async () => {
  await together(
    (asked, reply) => reply({ events: daemonEvents }),
    async (client, daemon) => {
      daemonEvents = daemon.events;
      const abort = new AbortController();
      const first = client.events("job.a", { signal: abort.signal });
      const waiting = first.next();
      await daemon.publish("job.a", { seq: 1, job: {} });
      assert.equal((await waiting).value[1].seq, 1);
      const second = first.next();
      setTimeout(() => abort.abort(), 20);
      await assert.rejects(second, named("aborted"));
      await assert.rejects(client.events("", { signal: abort.signal }).next(), named("aborted"));
    },
  );
});
let daemonEvents;

test("events are sought where the requests go", () => {
  assert.equal(eventsAddress("tcp://0.0.0.0:5556", "tcp://10.0.0.7:5555"), "tcp://10.0.0.7:5556");
  assert.equal(eventsAddress("tcp://[::]:5556", "tcp://[::1]:5555"), "tcp://[::1]:5556");
  assert.equal(eventsAddress("ipc:///run/events.sock", "ipc:///run/api.sock"), "ipc:///run/events.sock");
  assert.equal(eventsAddress("ipc:///run/events.sock", "tcp://127.0.0.1:5555"), "ipc:///run/events.sock");
});

test("without an address it is this user's daemon", () => {
  const before = process.env.XDG_STATE_HOME;
  process.env.XDG_STATE_HOME = "/somewhere";
  assert.equal(defaultAddress(), "ipc:///somewhere/poseward/api.sock");
  assert.equal(new Client().address, "ipc:///somewhere/poseward/api.sock");
  delete process.env.XDG_STATE_HOME;
  assert.match(defaultAddress(), /^ipc:\/\/.*\/\.local\/state\/poseward\/api\.sock$/);
  if (before !== undefined) process.env.XDG_STATE_HOME = before;
});

test("a stream that is not to wait asks ten times a second at most", async () => {
  let left = 4;
  const answer = (asked, reply) => {
    const end = --left < 0;
    return reply({ header: null, records: [], next: 0, end, state: end ? "done" : "running" });
  };
  await together(answer, async (client, daemon) => {
    for await (const record of client.frames("j", { wait: 0 })) assert.fail(String(record));
    assert.deepEqual([...new Set(daemon.heard.map((one) => one.timeout))], [0.1]);
  });
});

test("what is no file is not uploaded, and nobody waits for it", async (t) => {
  const pipe = join(await folder(t), "pipe");
  execFileSync("mkfifo", [pipe]);
  await together(
    () => assert.fail("nothing is asked"),
    async (client) => {
      await assert.rejects(client.upload(pipe), named("bad-request", /pipe is no file/));
      await assert.rejects(client.upload(tmpdir()), named("bad-request", /is no file/));
    },
  );
});

test("a file with the longest possible name is fetched", async (t) => {
  const target = join(await folder(t), "n".repeat(255));
  const answer = (asked, reply) => reply({ total: 3, offset: 0 }, Buffer.from("abc"));
  await together(answer, async (client) => {
    await client.download("j", "overlay.mp4", target);
    assert.equal(await readFile(target, "utf8"), "abc");
  });
});

test("arguments that are missing or unknown are named", async () => {
  await together(
    () => assert.fail("nothing is asked"),
    async (client) => {
      await assert.rejects(client.submit(), named("bad-request", /submit takes an object with path/));
      await assert.rejects(client.submit({ path: "/v", prioritty: 3 }), named("bad-request", /unknown prioritty/));
      await assert.rejects(client.submitFile("/v", { nmae: "x" }), named("bad-request", /unknown nmae/));
      await assert.rejects(client.upload(), named("bad-request", /file is missing/));
      await assert.rejects(client.download("j", "overlay.mp4"), named("bad-request", /target is missing/));
      await assert.rejects(client.image(), named("bad-request", /image is missing/));
      await assert.rejects(client.frames().next(), named("bad-request", /job is missing/));
    },
  );
});
