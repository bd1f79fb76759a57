// Starts real daemons; `start` again after `kill` plays systemd's part.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { openSync } from "node:fs";
import { mkdtemp, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

import { Client } from "../src/index.js";

export const checkout = resolve(dirname(fileURLToPath(import.meta.url)), "../../..");
export const python = process.env.POSEWARD_PYTHON ?? join(checkout, ".venv/bin/python");
export const PATIENCE = 120_000;
const MAIN = "from daemon.cli import main; main()";

const FAST = [
  "stages.max_pixels=76800", "stages.ring_mb=8", "stages.slots=8", "stages.snapshot_every=10",
  "stages.deadlines.working=10", "stages.faults=mesh:slow=0.03%1/1",
];
const living = new Set();
process.on("exit", () => living.forEach((daemon) => daemon.process.kill("SIGKILL"))); // when a test fails badly

export class Daemon {
  static async create({ backend = "tests.stages.blocks", address, sets = [], curve } = {}) {
    const daemon = new Daemon();
    daemon.folder = await mkdtemp(join(tmpdir(), "pw-node-"));
    daemon.address = address ?? `ipc://${join(daemon.folder, "api.sock")}`;
    daemon.curve = curve;
    daemon.log = join(daemon.folder, "daemon.log");
    daemon.sets = [
      `daemon.state=${join(daemon.folder, "state")}`, `results.folder=${join(daemon.folder, "results")}`,
      `api.address=${daemon.address}`, 'api.roots=["/"]', `stages.backend=${backend}`, "results.exports=[]",
      "stages.restart.base_delay=0.01", "stages.restart.max_delay=0.1",
      ...(backend === "tests.stages.blocks" ? FAST : []), ...sets,
    ];
    return daemon;
  }

  async start() {
    const log = openSync(this.log, "a");
    const flags = this.sets.flatMap((one) => ["--set", one]);
    this.process = spawn(python, ["-c", MAIN, "serve", ...flags], { cwd: checkout, stdio: ["ignore", log, log] });
    living.add(this);
    this.exited = once(this.process, "exit").finally(() => living.delete(this));
    const client = this.client();
    try {
      await Promise.race([
        client.hello(),
        this.exited.then(async () => {
          throw new Error(`the daemon did not start:\n${await readFile(this.log, "utf8")}`);
        }),
      ]);
    } finally {
      await client.close();
    }
    return this;
  }

  client(options = {}) {
    return new Client({ address: this.address, curve: this.curve, patience: PATIENCE, ...options });
  }

  async end(signal) {
    if (this.process.exitCode !== null || this.process.signalCode !== null) return;
    this.process.kill(signal);
    await this.exited;
  }

  async stop() {
    await this.end("SIGTERM");
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A daemon with its client, for as long as the test runs. */
export async function running(t, options) {
  const daemon = await (await Daemon.create(options)).start();
  const client = daemon.client();
  t.after(async () => {
    await client.close();
    await daemon.stop();
  });
  return { daemon, client };
}

/** A small clip of wandering squares, made by the project's own test code. */
export async function writeClip(path, frames) {
  return write(path, `from tests.stages.harness import write_squares; write_squares(Path(path), ${frames})`);
}

/** Results of two people who walk, one of them not there all the time, as exports into `folder`: `names`, with commas. */
export async function writeExports(folder, names) {
  const code = "from tests.daemon.test_export_glb import two; from daemon.exports import export; results = two(Path(path)); "
    + `[export(name, "clip.mp4", results, path) for name in "${names}".split(",")]`;
  return write(folder, code);
}

/** A black image, 160 x 120, with one white square. */
export async function writeImage(path) {
  return write(path, "import cv2, numpy as np; a = np.zeros((120, 160, 3), np.uint8); a[20:60, 20:60] = 255; cv2.imwrite(path, a)");
}

/** Keys as `poseward keys new` writes them: `{publicKey, secretKey}`. */
export async function newKeys(folder, name) {
  await run(["-c", MAIN, "keys", "new", name, "--folder", folder], "ignore");
  const text = await readFile(join(folder, `${name}.key_secret`), "utf8");
  const key = (which) => new RegExp(`${which}-key = "(.{40})"`).exec(text)[1];
  return { publicKey: key("public"), secretKey: key("secret") };
}

async function write(path, code) {
  await run(["-c", `import sys; from pathlib import Path; path = sys.argv[1]; ${code}`, path], "inherit");
  return path;
}

async function run(args, stdio) {
  const [status] = await once(spawn(python, args, { cwd: checkout, stdio }), "exit");
  if (status !== 0) throw new Error(`python ${args.join(" ")} ended with ${status}`);
}
