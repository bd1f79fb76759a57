// node examples/submit.mjs VIDEO [ADDRESS]: submits a video, shows its progress, and says what was found.
import { existsSync } from "node:fs";
import { resolve } from "node:path";

import { Client, PosewardError } from "poseward-client";

const [video, address] = process.argv.slice(2);
if (!video || !existsSync(video)) {
  console.error("usage: node examples/submit.mjs VIDEO [ADDRESS]");
  process.exit(2);
}

const client = new Client({ address });
const stop = new AbortController();
process.once("SIGINT", () => stop.abort()); // the job goes on without us
const { signal } = stop;
try {
  const job = await client.submit({ path: resolve(video) }, { signal }).catch((error) => {
    if (!["path-refused", "no-such-file"].includes(error.code)) throw error;
    return client.submitFile(video, { signal, onProgress: (sent, size) => bar("sending", sent, size, "bytes") });
  });
  const done = await client.wait(job.id, { signal, onProgress: show });
  if (process.stderr.isTTY) process.stderr.write("\n");
  if (done.state !== "done") throw new PosewardError(done.error ?? done.state, done.message);
  const people = new Map(); // id: frames in which they are
  let last = 0;
  for await (const { time, tracks } of client.frames(job.id, { vertices: false, signal })) {
    last = time;
    for (const { id } of tracks) people.set(id, (people.get(id) ?? 0) + 1);
  }
  console.log(`${done.name}: ${done.frames} frames, ${last.toFixed(1)} s`);
  for (const [id, frames] of people) console.log(`person ${id}: in ${frames} frames`);
  const { summary, files, folder } = await client.results(job.id, { signal });
  if (summary.failed_frames.length > 0) console.log(`${summary.failed_frames.length} frames failed`);
  console.log(`${folder}: ${files.map((file) => file.name).join(", ")}`);
} catch (error) {
  console.error(`\n${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}

function show({ state, progress }) {
  const { committed = 0, total = null, rate = 0, phase } = progress ?? {};
  bar(phase ?? state, committed, total, `frames, ${rate.toFixed(1)}/s`);
}

function bar(what, done, total, unit) {
  if (!process.stderr.isTTY) return;
  const full = Math.round((total ? done / total : 0) * 30);
  process.stderr.write(`\r[${"#".repeat(full).padEnd(30, ".")}] ${what} ${done}/${total ?? "?"} ${unit}\x1b[K`);
}
