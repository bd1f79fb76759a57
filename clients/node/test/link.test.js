// Requests: every one is answered or ends by name, whatever the daemon does.
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { getEventListeners } from "node:events";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

import { encode } from "@msgpack/msgpack";
import { curveKeyPair } from "zeromq";

import { Client, PosewardError } from "../src/index.js";
import { FakeDaemon, together, until } from "./fake.js";
import { test } from "./timed.js";

const NOBODY = "ipc:///tmp/poseward-nobody-is-here.sock";
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
  const client = new Client({ address: NOBODY, patience: 300 });
  const began = performance.now();
  await assert.rejects(client.hello(), named("timeout"));
  assert.ok(performance.now() - began < 10_000);
  await assert.rejects(client.hello({ patience: 50 }), named("timeout"));
  await client.close();
});

test("somebody there who never answers: the same", async () => {
  await together(
    () => {},
    async (client, daemon) => {
      await assert.rejects(client.hello(), named("timeout"));
      assert.ok(daemon.heard.length > 1, "asked more than once");
    },
    { patience: 500, resend: 50 },
  );
});

test("what is no address is said so", async () => {
  for (const address of ["nonsense", "ipc://" + "x".repeat(300), "tcp://127.0.0.1:notaport"]) {
    const client = new Client({ address });
    await assert.rejects(client.hello(), named("bad-address"), address);
    await client.close();
  }
});

test("silence is asked again, with the same id and key, so that it stays one job", async () => {
  let times = 0;
  const answer = (asked, reply) => (++times > 2 ? reply({ job: { id: "a", state: "queued" }, new: false }) : undefined);
  await together(
    answer,
    async (client, daemon) => {
      const job = await client.submit({ path: "/a.mp4" });
      assert.equal(job.id, "a");
      assert.equal(daemon.heard.length, 3);
      assert.equal(new Set(daemon.heard.map((asked) => asked.key)).size, 1);
      assert.equal(new Set(daemon.heard.map((asked) => asked.id)).size, 1);
      const other = await client.submit({ path: "/a.mp4" });
      assert.equal(other.id, "a");
      assert.notEqual(daemon.heard.at(-1).key, daemon.heard[0].key);
    },
    { resend: 50 },
  );
});

test("an answer to what was asked first counts, also after it was asked again", async () => {
  const answer = async (asked, reply) => {
    await new Promise((go) => setTimeout(go, 400)); // always slower than the next question
    await reply({ job: { id: "slow" } });
  };
  await together(answer, async (client) => assert.equal((await client.status("x")).id, "slow"), { resend: 100 });
});

test("nonsense is no answer, and does no harm", async () => {
  const answer = async (asked, reply, { raw }) => {
    await raw(Buffer.from([0xc1, 1, 2, 3]));
    await raw(Buffer.alloc(0));
    await raw(encode({ v: 1, id: 999999, ok: true }));
    await raw(encode({ v: 1, id: null, ok: false, error: { name: "bad-request", message: "?" } }));
    await raw(encode([1, 2]));
    await raw(encode({ v: 2, id: asked.id, ok: true }));
    await raw(encode({ v: 1, id: asked.id, ok: false }));
    await raw(encode({ v: 1, id: asked.id, ok: true, a: { dtype: "<f4", shape: [9], at: 0 } }), Buffer.alloc(4));
    await reply({ job: { id: "right" } });
    await reply({ job: { id: "twice" } });
  };
  await together(answer, async (client) => {
    assert.equal((await client.status("x")).id, "right");
    assert.equal((await client.status("y")).id, "right");
  });
});

test("a daemon that goes and comes back is only a pause, and a short one", async () => {
  let silent = true;
  const answer = (asked, reply) => (silent ? undefined : reply({ job: { id: "second" } }));
  await together(
    answer,
    async (client, daemon) => {
      const before = client.status("asked before it went");
      await until(() => daemon.heard.length > 0, "a request");
      await daemon.down();
      const between = client.status("asked while it was gone");
      await new Promise((go) => setTimeout(go, 300));
      silent = false;
      await daemon.up();
      assert.equal((await before).id, "second");
      assert.equal((await between).id, "second");
    },
    { resend: 3_600_000, patience: 60_000 }, // so that it is the reconnection that has it asked again
  );
});

test("while nobody is there nothing piles up, and what was given up is never sent", async () => {
  const daemon = await new FakeDaemon((asked, reply) => reply({ job: { id: asked.job } })).start();
  const client = new Client({ address: daemon.address });
  await client.status("before");
  await daemon.down();
  const lost = Array.from({ length: 500 }, (_, n) => client.status(`lost-${n}`, { patience: 500 }));
  const ended = await Promise.allSettled(lost);
  assert.ok(ended.every((one) => one.status === "rejected" && named("timeout")(one.reason)));
  const kept = Array.from({ length: 300 }, (_, n) => client.status(`kept-${n}`));
  await daemon.up();
  const found = await Promise.all(kept);
  assert.deepEqual(found.map((job) => job.id), Array.from({ length: 300 }, (_, n) => `kept-${n}`));
  assert.deepEqual(daemon.heard.filter((asked) => asked.job.startsWith("lost")), []);
  await client.close();
  await daemon.stop();
});

test("a daemon that stops says busy: asked again, but not for an image", async () => {
  let times = 0;
  const answer = (asked, reply, { refuse }) => {
    if (asked.op === "image" || ++times < 4) return refuse("busy", "the daemon stops: ask again when it is back");
    return reply({ job: { id: "j", state: "done" } });
  };
  await together(answer, async (client) => {
    assert.equal((await client.wait("j")).state, "done");
    await assert.rejects(client.image(Buffer.from("x")), named("busy"));
  });
});

test("closing ends what is under way, by name", async () => {
  await together(
    () => {},
    async (client) => {
      const asked = [client.hello(), client.wait("x"), client.frames("x").next(), client.image(Buffer.alloc(3))];
      const ends = asked.map((one) => assert.rejects(one, named("closed")));
      setTimeout(() => client.close(), 50);
      await Promise.all(ends);
      await assert.rejects(client.hello(), named("closed"));
      await assert.rejects(client.events().next(), named("closed"));
      await client.close();
    },
  );
});

test("a client can be disposed of", async () => {
  const client = new Client({ address: NOBODY });
  await client[Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]();
  await assert.rejects(client.hello(), named("closed"));
});

test("aborting ends one request and no other, and leaves nothing behind", async () => {
  let answered = false;
  const answer = (asked, reply) => (answered ? reply({ job: { id: "j", state: "done" }, daemon: "d" }) : undefined);
  await together(answer, async (client) => {
    const abort = new AbortController();
    const { signal } = abort;
    const aborted = [client.hello({ signal }), client.wait("x", { signal }), client.frames("x", { signal }).next()];
    const other = client.status("y");
    const ends = aborted.map((one) => assert.rejects(one, named("aborted")));
    setTimeout(() => abort.abort(new Error("the user left")), 50);
    await Promise.all(ends);
    await assert.rejects(client.hello({ signal }), (error) => named("aborted")(error) && error.cause.message === "the user left");
    answered = true;
    assert.equal((await other).id, "j");
    const fresh = new AbortController().signal;
    await client.status("z", { signal: fresh });
    assert.equal(getEventListeners(fresh, "abort").length, 0);
  }, { resend: 100 });
});

test("keys let in; without them, or with others, a timeout says what to look at", async () => {
  const [server, own] = [curveKeyPair(), curveKeyPair()];
  const options = { curveServer: true, curveSecretKey: server.secretKey };
  const daemon = await new FakeDaemon((asked, reply) => reply({ daemon: "d" }), options).start("tcp://127.0.0.1:*");
  const curve = { ...own, serverKey: server.publicKey };
  const client = new Client({ address: daemon.address, curve });
  assert.equal((await client.hello()).daemon, "d");
  await client.close();
  for (const wrong of [undefined, { ...curve, serverKey: own.publicKey }]) {
    const stranger = new Client({ address: daemon.address, curve: wrong, patience: 1000 });
    await assert.rejects(stranger.hello(), (error) => named("timeout")(error));
    await stranger.close();
  }
  assert.throws(() => new Client({ curve: { ...curve, serverKey: "short" } }), /serverKey/);
  assert.throws(() => new Client({ curve: { serverKey: server.publicKey } }), /publicKey/);
  await daemon.stop();
});

test("a program ends by itself once its client is closed, and nothing is left unhandled", async () => {
  const index = fileURLToPath(new URL("../src/index.js", import.meta.url));
  const program = `
    import { Client } from ${JSON.stringify(index)};
    const client = new Client({ address: process.argv[1], resend: 100 });
    await client.hello();
    const events = client.events();
    const first = events.next();
    const pending = client.wait("x").catch((error) => console.log(error.code));
    client.status("nobody looks at this one").catch(() => {});
    setTimeout(() => client.close(), 100);
    await pending;
    console.log((await first).done);
  `;
  await together(
    (asked, reply) => (asked.op === "hello" ? reply({ events: "ipc:///tmp/poseward-no-events.sock" }) : undefined),
    async (client, daemon) => {
      const run = promisify(execFile);
      const flags = ["--unhandled-rejections=strict", "--input-type=module", "--eval", program, daemon.address];
      const { stdout, stderr } = await run(process.execPath, flags, { timeout: 60_000 });
      assert.equal(stdout, "closed\ntrue\n");
      assert.equal(stderr, "");
    },
  );
});
