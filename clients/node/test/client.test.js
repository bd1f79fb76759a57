import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";

import { encode } from "@msgpack/msgpack";

import { Client, PosewardError } from "../src/index.js";
import { readReply } from "../src/messages.js";
import { FakeDaemon } from "./fake.js";

async function together(answer, body, options = {}) {
  const daemon = await new FakeDaemon(answer).start();
  const client = new Client({ address: daemon.address, ...options });
  try {
    return await body(client, daemon);
  } finally {
    await client.close();
    await daemon.stop();
  }
}

const named = (code) => (error) => error instanceof PosewardError && error.code === code;

test("answers find their questions in whatever order they come", async () => {
  const held = [];
  const answer = async (asked, reply) => {
    held.push(() => reply({ job: { id: asked.job, state: "done" } }));
    if (held.length === 20) for (const one of held.reverse()) await one();
  };
  await together(answer, async (client) => {
    const asked = Array.from({ length: 20 }, (_, n) => client.status(`job-${n}`));
    const found = await Promise.all(asked);
    assert.deepEqual(found.map((job) => job.id), Array.from({ length: 20 }, (_, n) => `job-${n}`));
  });
});

test("a refusal is an error with its name", async () => {
  await together(
    (asked, reply, { refuse }) => refuse("no-such-job", "not here"),
    async (client) => {
      await assert.rejects(client.status("x"), (error) => named("no-such-job")(error) && /not here/.test(error.message));
    },
  );
});

test("nobody there: a named error, within the patience", async () => {
  const client = new Client({ address: "ipc:///tmp/poseward-nobody-is-here.sock", patience: 300 });
  await assert.rejects(client.hello(), named("timeout"));
  await client.close();
});

test("silence is asked again, with the same key, so that it stays one job", async () => {
  let times = 0;
  const answer = (asked, reply) => (++times > 1 ? reply({ job: { id: "a", state: "queued" }, new: false }) : undefined);
  await together(answer, async (client, daemon) => {
    const job = await client.submit({ path: "/a.mp4" });
    assert.equal(job.id, "a");
    const keys = new Set(daemon.heard.map((asked) => asked.key));
    assert.equal(daemon.heard.length, 2);
    assert.equal(keys.size, 1);
  });
});

test("nonsense is no answer, and does no harm", async () => {
  const answer = async (asked, reply, { raw }) => {
    await raw(Buffer.from([0xc1, 1, 2, 3]));
    await raw(encode({ v: 1, id: 999999, ok: true }));
    await raw(encode([1, 2]));
    await raw(encode({ v: 2, id: asked.id, ok: true }));
    await raw(encode({ v: 1, id: asked.id, ok: true, a: { dtype: "<f4", shape: [9], at: 0 } }), Buffer.alloc(4));
    await reply({ job: { id: "right" } });
  };
  await together(answer, async (client) => assert.equal((await client.status("x")).id, "right"));
});

test("a daemon that goes and comes back is only a pause", async () => {
  const daemon = await new FakeDaemon((asked, reply) => reply({ job: { id: "first" } })).start();
  const client = new Client({ address: daemon.address });
  assert.equal((await client.status("x")).id, "first");
  daemon.router.close();
  const waiting = client.status("x");
  await new Promise((go) => setTimeout(go, 300));
  const second = await new FakeDaemon((asked, reply) => reply({ job: { id: "second" } })).start(daemon.address);
  assert.equal((await waiting).id, "second");
  await client.close();
  await second.stop();
  await rm(daemon.folder, { recursive: true, force: true });
});

test("closing and aborting end what is under way, by name", async () => {
  await together(
    () => {},
    async (client) => {
      const abort = new AbortController();
      const aborted = client.hello({ signal: abort.signal });
      setTimeout(() => abort.abort(), 50);
      await assert.rejects(aborted, named("aborted"));
      await assert.rejects(client.hello({ signal: abort.signal }), named("aborted"));
      const closed = client.hello();
      setTimeout(() => client.close(), 50);
      await assert.rejects(closed, named("closed"));
      await assert.rejects(client.hello(), named("closed"));
      await client.close();
    },
  );
});

test("arrays are views of the message, not copies", () => {
  const blob = Buffer.from(new Float32Array([1, 2, 3, 4, 5, 6]).buffer);
  const body = encode({ v: 1, id: 1, ok: true, a: { dtype: "<f4", shape: [1, 3], at: 0 }, b: [{ dtype: "<f4", shape: [2], at: 16 }] });
  const { results } = readReply([body, blob]);
  assert.deepEqual([...results.a], [1, 2, 3]);
  assert.deepEqual(results.a.shape, [1, 3]);
  assert.deepEqual([...results.b[0]], [5, 6]);
  assert.equal(results.a.buffer, blob.buffer);
  assert.equal(results.b[0].buffer, results.a.buffer);
  blob.writeFloatLE(42, 0);
  assert.equal(results.a[0], 42);
});

test("a message that lies askew is copied, and right all the same", () => {
  const askew = Buffer.alloc(13);
  askew.writeFloatLE(1.5, 1);
  askew.writeFloatLE(2.5, 5);
  const body = encode({ v: 1, id: 1, ok: true, a: { dtype: "<f4", shape: [2], at: 0 } });
  assert.deepEqual([...readReply([body, askew.subarray(1)]).results.a], [1.5, 2.5]);
});

test("frames go on where they were, each once, in order", async () => {
  let calls = 0;
  const answer = (asked, reply) => {
    calls += 1;
    if (calls === 2) return undefined; // a daemon that dies before it answers
    const at = asked.start;
    const records = calls === 3 ? [] : [at, at + 1, at + 2].filter((n) => n < 8).map((frame) => ({ frame, tracks: [] }));
    return reply({ header: null, records, next: at + records.length, end: at + records.length >= 8, state: "running" });
  };
  await together(answer, async (client) => {
    const seen = [];
    for await (const record of client.frames("j")) seen.push(record.frame);
    assert.deepEqual(seen, [0, 1, 2, 3, 4, 5, 6, 7]);
  });
});

test("wait asks on until the job has ended", async () => {
  const states = ["queued", "running", "running", "done"];
  const answer = (asked, reply) => reply({ job: { id: "j", state: states.shift(), progress: { committed: 4 - states.length } } });
  await together(answer, async (client) => {
    const seen = [];
    const done = await client.wait("j", { onProgress: (job) => seen.push(job.state) });
    assert.equal(done.state, "done");
    assert.deepEqual(seen, ["queued", "running", "running", "done"]);
  });
});

test("an upload goes on where the daemon says", async () => {
  const folder = await mkdtemp(join(tmpdir(), "pw-node-"));
  const file = join(folder, "clip.mp4");
  const data = Buffer.from(Array.from({ length: 1000 }, (_, n) => n % 251));
  await writeFile(file, data);
  let got = Buffer.from(data.subarray(0, 300)); // of an earlier try
  let confused = false;
  const answer = (asked, reply, { blob }) => {
    const state = () => ({ upload: "u", offset: got.length, complete: got.length === 1000 });
    if (asked.op === "hello") return reply({ limits: { chunk: 256 } });
    if (asked.op === "upload") {
      assert.equal(asked.sha256, createHash("sha256").update(data).digest("hex"));
      assert.equal(asked.size, 1000);
      return reply(state());
    }
    if (!confused) {
      confused = true;
      got = got.subarray(0, 200); // it has lost some
      return reply(state());
    }
    if (asked.offset === got.length) got = Buffer.concat([got, blob]);
    return reply(state());
  };
  await together(answer, async (client) => {
    const seen = [];
    assert.equal(await client.upload(file, { onProgress: (sent) => seen.push(sent) }), "u");
    assert.deepEqual(got, data);
    assert.equal(seen[0], 300);
    assert.equal(seen.at(-1), 1000);
  });
  await rm(folder, { recursive: true });
});

test("a download is whole or not there", async () => {
  const folder = await mkdtemp(join(tmpdir(), "pw-node-"));
  const data = Buffer.from("0123456789");
  let broken = true;
  const answer = (asked, reply, { refuse }) => {
    if (broken && asked.offset > 0) return refuse("results-gone");
    return reply({ name: "a", offset: asked.offset, total: 10 }, data.subarray(asked.offset, asked.offset + 4));
  };
  await together(answer, async (client) => {
    const target = join(folder, "a.bin");
    await assert.rejects(client.download("j", "a", target), named("results-gone"));
    await assert.rejects(readFile(target));
    broken = false;
    await client.download("j", "a", target);
    assert.deepEqual(await readFile(target), data);
  });
  await rm(folder, { recursive: true });
});

test("requests do not pile up while nobody is there", async () => {
  const client = new Client({ address: "ipc:///tmp/poseward-nobody-is-here.sock", patience: 500 });
  const asked = await Promise.allSettled(Array.from({ length: 500 }, () => client.hello()));
  assert.ok(asked.every((one) => one.status === "rejected" && named("timeout")(one.reason)));
  await client.close();
});
