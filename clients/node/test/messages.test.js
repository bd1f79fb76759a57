// Bytes: what is a reply, and where its arrays lie.
import assert from "node:assert/strict";

import { encode } from "@msgpack/msgpack";

import { Client } from "../src/index.js";
import { readEvent, readReply, writeRequest } from "../src/messages.js";
import { methodsOf } from "./conforms.js";
import { together } from "./fake.js";
import { test } from "./timed.js";

const reply = (values, blob) => readReply([encode({ v: 1, id: 1, ok: true, ...values }), ...(blob ? [blob] : [])]);

test("arrays are views of the message, not copies", () => {
  const blob = Buffer.from(new Float32Array([1, 2, 3, 4, 5, 6]).buffer);
  const { results } = reply({ a: { dtype: "<f4", shape: [1, 3], at: 0 }, b: [{ dtype: "<f4", shape: [2], at: 16 }] }, blob);
  assert.deepEqual([...results.a], [1, 2, 3]);
  assert.deepEqual(results.a.shape, [1, 3]);
  assert.deepEqual([...results.b[0]], [5, 6]);
  assert.equal(results.a.buffer, blob.buffer);
  assert.equal(results.b[0].buffer, results.a.buffer);
  blob.writeFloatLE(42, 0);
  assert.equal(results.a[0], 42);
});

test("arrays that came over a socket share its message", async () => {
  const count = 100_000;
  const blob = Buffer.alloc(count * 12 + 16);
  blob.writeFloatLE(1.5, 0);
  blob.writeInt32LE(-7, count * 12);
  const answer = (_, say) =>
    say({ job: { vertices: { dtype: "<f4", shape: [count, 3], at: 0 }, faces: { dtype: "<i4", shape: [1, 3], at: count * 12 } } }, blob);
  await together(answer, async (client) => {
    const { vertices, faces } = await client.status("x");
    assert.ok(vertices instanceof Float32Array && faces instanceof Int32Array);
    assert.equal(vertices.buffer, faces.buffer, "one message, no copies");
    assert.equal(vertices.byteOffset % 4, 0);
    assert.equal(vertices[0], 1.5);
    assert.equal(faces[0], -7);
    assert.deepEqual(vertices.shape, [count, 3]);
  });
});

test("a message that lies askew is copied, and right all the same", () => {
  const askew = Buffer.from(new ArrayBuffer(13), 1);
  askew.writeFloatLE(1.5, 0);
  askew.writeFloatLE(2.5, 4);
  const { a } = reply({ a: { dtype: "<f4", shape: [2], at: 0 } }, askew).results;
  assert.deepEqual([...a], [1.5, 2.5]);
  assert.notEqual(a.buffer, askew.buffer);
});

test("an empty array needs no second part", () => {
  const { faces } = reply({ faces: { dtype: "<i4", shape: [0, 3], at: 0 } }).results;
  assert.ok(faces instanceof Int32Array);
  assert.deepEqual([faces.length, faces.shape], [0, [0, 3]]);
});

test("arrays beyond their message, and unknown ones, are refused", () => {
  const blob = Buffer.from(new ArrayBuffer(64), 16, 8); // others' bytes lie around it
  for (const array of [
    { dtype: "<f4", shape: [3], at: 0 },
    { dtype: "<f4", shape: [1], at: 8 },
    { dtype: "<f4", shape: [1], at: -4 },
    { dtype: "<f4", shape: [-1], at: 4 },
    { dtype: "<f4", shape: [1], at: "0" },
    { dtype: "<c8", shape: [1], at: 0 },
    { dtype: "<f4", shape: 3, at: 0 },
  ]) {
    assert.throws(() => reply({ array }, blob), Error, JSON.stringify(array));
  }
});

test("what is no reply of this version is refused", () => {
  for (const body of [[1, 2], null, 7, { id: 1, ok: true }, { v: 2, id: 1, ok: true }, { v: 1, id: 1 }, { v: 1, id: 1, ok: false }]) {
    assert.throws(() => readReply([encode(body)]), Error, JSON.stringify(body));
  }
  assert.throws(() => readReply([Buffer.from([0xc1])]));
  assert.throws(() => readEvent([Buffer.from("memory")]));
});

test("arguments that are not given are not sent", () => {
  const [body, ...rest] = writeRequest(3, "status", { job: "a", key: undefined, none: null });
  assert.deepEqual(Buffer.from(body), Buffer.from(encode({ v: 1, id: 3, op: "status", job: "a" })));
  assert.equal(rest.length, 0);
});

test("an event's arrays stand inside of it", () => {
  const data = new Uint8Array(new Float32Array([7, 8]).buffer);
  const record = { frame: 1, tracks: [{ box: { dtype: "<f4", shape: [2], data } }] };
  const [topic, event] = readEvent([Buffer.from("frame.abc"), encode({ v: 1, seq: 1, record })]);
  assert.equal(topic, "frame.abc");
  assert.deepEqual([...event.record.tracks[0].box], [7, 8]);
  assert.deepEqual(event.record.tracks[0].box.shape, [2]);
});

test("the declarations name the methods that there are", () => {
  const methods = Object.getOwnPropertyNames(Client.prototype).filter((name) => name !== "constructor");
  assert.deepEqual(methods.sort(), methodsOf("Client").filter((name) => !name.startsWith("[")).sort());
});
