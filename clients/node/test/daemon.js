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

const FAST = [
  "stages.max_pixels=76800", "stages.ring_mb=8", "stages.slots=8", "stages.snapshot_every=10",
  "stages.deadlines.working=10", "stages.faults=mesh:slow=0.03%1/1",
];

export class Daemon {
  static async create({ backend = "tests.blocks", sets = [] } = {}) {
    const daemon = new Daemon();
    daemon.folder = await mkdtemp(join(tmpdir(), "pw-node-"));
    daemon.address = `ipc://${join(daemon.folder, "api.sock")}`;
    daemon.log = join(daemon.folder, "daemon.log");
    daemon.sets = [
      `daemon.state=${join(daemon.folder, "state")}`, `results.folder=${join(daemon.folder, "results")}`,
      `api.address=${daemon.address}`, 'api.roots=["/"]', `stages.backend=${backend}`, "results.exports=[]",
      "stages.restart.base_delay=0.01", "stages.restart.max_delay=0.1",
      ...(backend === "tests.blocks" ? FAST : []), ...sets,
    ];
    return daemon;
  }

  async start() {
    const log = openSync(this.log, "a");
    const flags = this.sets.flatMap((one) => ["--set", one]);
    const main = "from daemon.cli import main; main()";
    this.process = spawn(python, ["-c", main, "serve", ...flags], { cwd: checkout, stdio: ["ignore", log, log] });
    this.exited = once(this.process, "exit");
    const client = new Client({ address: this.address, patience: 120_000 });
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

  async kill() {
    this.process.kill("SIGKILL");
    await this.exited;
  }

  async stop() {
    if (this.process.exitCode === null && this.process.signalCode === null) {
      this.process.kill("SIGTERM");
      await this.exited;
    }
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** A small clip of wandering squares, made by the project's own test code. */
export async function writeClip(path, frames) {
  return make(path, `from tests.harness import write_squares; write_squares(Path(path), ${frames})`);
}

/** A black image, 160 x 120, with one white square. */
export async function writeImage(path) {
  return make(path, "import cv2, numpy as np; a = np.zeros((120, 160, 3), np.uint8); a[20:60, 20:60] = 255; cv2.imwrite(path, a)");
}

async function make(path, code) {
  const whole = `import sys; from pathlib import Path; path = sys.argv[1]; ${code}`;
  const [status] = await once(spawn(python, ["-c", whole, path], { cwd: checkout, stdio: "inherit" }), "exit");
  if (status !== 0) throw new Error(`${path} could not be made`);
  return path;
}
