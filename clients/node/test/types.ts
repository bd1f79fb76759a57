// Compiled, never run: the declarations say what users need.
import { Client, PosewardError, type Event, type FrameRecord, type Health, type Job, type Tensor } from "poseward-client";

export async function follow(path: string, signal: AbortSignal): Promise<number> {
  await using client = new Client({ patience: 5000, curve: { publicKey: "", secretKey: "", serverKey: "" } });
  const job: Job = await client.submit({ path, priority: 5, exports: ["glb"] }, { signal });
  let vertices = 0;
  for await (const record of client.frames(job.id, { start: 3, signal })) {
    const first: FrameRecord = record;
    const points: Float32Array | undefined = first.tracks[0]?.vertices;
    const shape: readonly number[] | undefined = first.tracks[0]?.vertices?.shape;
    vertices += (points?.length ?? 0) / (shape?.[1] ?? 1);
  }
  for await (const record of client.subject(job.id, { who: 3, vertices: false, signal })) {
    const seen: boolean | undefined = record.tracks[0]?.detected;
    console.log(record.frame, seen);
  }
  for await (const [topic, { job: now }] of client.events(`job.${job.id}`)) {
    console.log(topic, now.progress?.committed, now.progress?.total ?? "?");
    break;
  }
  for await (const [, event] of client.events(["memory", "daemon"])) {
    if ("host" in event) console.log(event.host.available, event.device[0]?.free);
    else console.log(event.state);
    break;
  }
  for await (const event of client.events()) {
    const [topic, { seq }]: Event = event;
    console.log(topic, seq);
    break;
  }
  try {
    // @ts-expect-error: a path or an upload is needed
    await client.submit({ priority: 3 });
    // @ts-expect-error: there is no such state
    await client.list({ states: ["finished"] });
    // @ts-expect-error: an image is bytes or a path
    await client.image(7);
  } catch (error) {
    if (error instanceof PosewardError) console.log(error.code);
  }
  const health: Health = await client.health();
  const { header } = await client.page(job.id, { wait: 100 });
  const faces: Tensor<Int32Array> | undefined = header?.faces;
  console.log(health.processes["mesh"]?.state === "ready", faces?.shape[0], await client.wait(job.id, { timeout: 1000 }));
  return vertices;
}
