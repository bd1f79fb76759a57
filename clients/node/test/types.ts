// Compiled, never run: the declarations say what the examples need.
import { Client, PosewardError, type Event, type FrameRecord, type Job } from "../src/index.js";

export async function follow(path: string): Promise<number> {
  const client = new Client({ patience: 5000 });
  const job: Job = await client.submit({ path, priority: 5, exports: ["glb"] });
  let vertices = 0;
  for await (const record of client.frames(job.id)) {
    const first: FrameRecord = record;
    const points: Float32Array | undefined = first.tracks[0]?.vertices;
    vertices += points?.length ?? 0;
  }
  for await (const event of client.events([`job.${job.id}`])) {
    const [topic, { seq }]: Event = event;
    console.log(topic, seq);
    break;
  }
  try {
    // @ts-expect-error: a path or an upload is needed
    await client.submit({ priority: 3 });
  } catch (error) {
    if (error instanceof PosewardError) console.log(error.code);
  }
  await client.close();
  return vertices;
}
