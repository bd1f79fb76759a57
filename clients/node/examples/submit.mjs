// node examples/submit.mjs VIDEO [ADDRESS]: submits a video, shows its progress, and says what was found.
import { existsSync } from "node:fs";
import { resolve } from "node:path";

import { Client, PosewardError } from "../src/index.js";

const [video, address] = process.argv.slice(2);
if (!video || !existsSync(video)) {
  console.error("usage: node examples/submit.mjs VIDEO [ADDRESS]");
  process.exit(2);
}

const client = new Client({ address });
try {
  const job = await client.submit({ path: resolve(video) }).catch((error) => {
    if (error.code === "path-refused") return client.submitFile(video); // outside of the daemon's api.roots
    throw error;
  });
  const done = await client.wait(job.id, { onProgress: show });
  process.stderr.write("\n");
  if (done.state !== "done") throw new PosewardError(done.error ?? done.state, done.message);
  console.log(`${done.name}: ${done.frames} frames, ${done.summary.tracks} people, results in ${done.results}`);
  for await (const { frame, time, tracks } of client.frames(job.id)) {
    if (frame % 30 !== 0) continue;
    const people = tracks.map(({ id, camera, vertices }) => `${id} at ${camera[2].toFixed(1)} m (${vertices.length / 3} vertices)`);
    console.log(`${time.toFixed(2)} s: ${people.join(", ") || "nobody"}`);
  }
} catch (error) {
  console.error(`\n${error.message}`);
  process.exitCode = 1;
} finally {
  await client.close();
}

function show({ state, progress }) {
  const { committed = 0, total, rate = 0 } = progress ?? {};
  const share = total ? committed / total : 0;
  const bar = "#".repeat(Math.round(share * 30)).padEnd(30, ".");
  if (process.stderr.isTTY) process.stderr.write(`\r[${bar}] ${state} ${committed}/${total ?? "?"} frames, ${rate.toFixed(1)}/s  `);
}
