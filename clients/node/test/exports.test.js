// Exports that belong to the browser's world, read by its own tools.

import assert from "node:assert/strict";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";

import validator from "gltf-validator";

import { writeExports } from "./daemon.js";

let folder;
before(async () => {
  folder = await mkdtemp(join(tmpdir(), "pw-exports-"));
  await writeExports(folder, "glb,web");
});
after(() => rm(folder, { recursive: true, force: true }));

test("the Khronos validator has nothing to say about mesh.glb", async () => {
  const report = await validator.validateBytes(new Uint8Array(await readFile(join(folder, "mesh.glb"))));
  assert.deepEqual(report.issues.messages, []);
  assert.equal(report.info.animationCount, 1);
  assert.equal(report.info.hasSkins, true);
  assert.equal(report.info.totalTriangleCount, 2 * 11200);
});

test("web.bin gives any frame by one byte range, as typed arrays over the bytes", async () => {
  const manifest = JSON.parse(await readFile(join(folder, "web.json"), "utf8"));
  const data = await readFile(join(folder, manifest.data));
  assert.equal(data.length, manifest.bytes);
  assert.equal(manifest.frames.length, 30);
  const { offset, bytes, people } = manifest.frames[12];
  const range = new Uint8Array(data.subarray(offset, offset + bytes)).buffer; // as fetch gives it
  assert.deepEqual(people.map((person) => person.id), [1, 2]);
  for (const person of people) {
    const at = person.offset - offset;
    const [, , depth, scale] = new Float32Array(range, at, 4);
    const vertices = new Int16Array(range, at + manifest.record.vertices.offset, manifest.record.vertices.count);
    assert.ok(depth > 50 && depth < 90, `${depth} m`);
    const heights = vertices.filter((_, index) => index % 3 === 1);
    const height = ((Math.max(...heights) - Math.min(...heights)) / 32767) * scale;
    assert.ok(height > 1.5 && height < 1.9, `${height} m`);
  }
});
