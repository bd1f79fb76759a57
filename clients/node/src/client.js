// The operations of docs/protocol.md. All durations here are milliseconds; the protocol's are seconds.
import { createHash, randomBytes, randomUUID } from "node:crypto";
import { open, readFile, rename, rm, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

import { aborted, PosewardError } from "./errors.js";
import { Events, eventsAddress } from "./events.js";
import { Link } from "./link.js";

const LONG = 10_000; // of one `wait` or `frames` request
const OFTEN = 1_000; // of one whose progress is shown: phases change without a frame
const LEAST = 100; // between two requests of a stream that has nothing new, whatever `wait` says
const LONGEST = 600_000; // that the daemon waits, whatever it is asked
const SMALL = 1 << 20; // bytes that no daemon refuses as a message
const STUCK = 8; // chunks on end after which an upload has not come further
const WANTED = ["path", "upload", "name", "key", "priority", "exports", "recompute", "stream"];
const FINAL = new Set(["done", "failed", "cancelled"]);

/** Where a daemon of this user answers, unless it is configured otherwise. */
export function defaultAddress() {
  const state = process.env.XDG_STATE_HOME || join(homedir(), ".local", "state");
  return `ipc://${join(state, "poseward", "api.sock")}`;
}

/** An argument that must be there, by its name: no error of JavaScript's own says which it was. */
function needed(call, name, value) {
  if (value === undefined || value === null || value === "") {
    throw new PosewardError("bad-request", `${call}: ${name} is missing`);
  }
  return value;
}

/** An object of arguments of which all are known. */
function checked(call, values, known) {
  if (values === null || typeof values !== "object") {
    throw new PosewardError("bad-request", `${call} takes an object with ${known.join(", ")}`);
  }
  const strange = Object.keys(values).filter((key) => !known.includes(key));
  if (strange.length) {
    throw new PosewardError("bad-request", `${call}: unknown ${strange.join(", ")}; known are ${known.join(", ")}`);
  }
  return values;
}

export class Client {
  #link;
  #events;
  #eventsAddress;

  constructor({ address = defaultAddress(), events, patience = 30_000, resend = 5_000, curve } = {}) {
    this.address = address;
    this.#eventsAddress = events;
    this.#link = new Link(address, { curve, patience, resend });
    this.#events = new Events(curve);
  }

  async close() {
    this.#link.close();
    this.#events.close();
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  // -- jobs ------------------------------------------------------------------------------------------

  async hello(options) {
    return this.#ask("hello", {}, options);
  }

  async submit(asked, options) {
    const { path, upload, name, key, priority, exports: wanted, recompute, stream } = checked("submit", asked, WANTED);
    // A key of its own makes a repeated request the same job, also where the caller does not care.
    const values = { path, upload, name, key: key ?? `auto-${randomUUID()}`, priority, exports: wanted, stream };
    const { job, new: fresh } = await this.#ask("submit", { ...values, recompute: recompute || undefined }, options);
    return { ...job, new: fresh };
  }

  async upload(file, { onProgress = () => {}, name, ...options } = {}) {
    // Opening a pipe would wait for whoever writes into it, and nobody could end that.
    if (!(await stat(needed("upload", "file", file))).isFile()) {
      throw new PosewardError("bad-request", `upload: ${file} is no file`);
    }
    name ??= basename(file);
    const handle = await open(file);
    try {
      const { size, sha256 } = await digest(handle, options.signal);
      const { chunk } = (await this.hello(options)).limits;
      let state = await this.#ask("upload", { name, size, sha256 }, options);
      const { upload } = state;
      let [furthest, stuck] = [state.offset, 0];
      while (!state.complete) {
        const { offset } = state;
        onProgress(offset, size);
        const buffer = Buffer.allocUnsafe(Math.min(chunk, size - offset));
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset);
        if (bytesRead < buffer.length) {
          throw new PosewardError("upload-damaged", `${file} became shorter while it was read: send it again`);
        }
        // Before it answers the last one, the daemon reads the whole file again.
        const wait = offset + bytesRead === size ? LONGEST : 0;
        state = await this.#ask("chunk", { upload, offset }, { ...options, wait, blob: buffer });
        // A chunk may have to be sent again, but not for ever.
        stuck = state.offset > furthest ? 0 : stuck + 1;
        furthest = Math.max(furthest, state.offset);
        if (stuck > STUCK && !state.complete) {
          throw new PosewardError("upload-damaged", `${file}: the daemon has stayed at ${furthest} of ${size} bytes`);
        }
      }
      onProgress(size, size);
      return upload;
    } finally {
      await handle.close();
    }
  }

  async submitFile(file, { onProgress, signal, patience, ...wanted } = {}) {
    checked("submitFile", wanted, WANTED);
    const upload = await this.upload(file, { onProgress, signal, patience });
    return this.submit({ ...wanted, upload }, { signal, patience });
  }

  async status(job, options) {
    return (await this.#ask("status", typeof job === "string" ? { job } : job, options)).job;
  }

  async list({ states, limit, before, text } = {}, options) {
    return this.#ask("list", { states, limit, before, text }, options);
  }

  async wait(job, { timeout = Infinity, onProgress, ...options } = {}) {
    const until = performance.now() + timeout;
    let committed = onProgress && 0; // who does not look at the progress need not be told of it
    for (;;) {
      const wait = Math.max(0, Math.min(onProgress ? OFTEN : LONG, until - performance.now()));
      const values = { job, timeout: wait / 1000, committed };
      const { job: found } = await this.#ask("wait", values, { ...options, wait });
      onProgress?.(found);
      if (FINAL.has(found.state) || wait === 0) return found;
      if (onProgress) committed = found.progress?.committed ?? 0;
    }
  }

  async cancel(job, options) {
    return (await this.#ask("cancel", { job }, options)).job;
  }

  async retry(job, options) {
    return (await this.#ask("retry", { job }, options)).job;
  }

  // -- results -------------------------------------------------------------------------------------

  async results(job, options) {
    return this.#ask("results", { job }, options);
  }

  async page(job, { start = 0, count, vertices, wait = LONG, ...options } = {}) {
    return this.#ask("frames", { job, start, count, vertices, timeout: wait / 1000 }, { ...options, wait });
  }

  async *frames(job, { start = 0, vertices, wait = LONG, ...options } = {}) {
    needed("frames", "job", job);
    for (;;) {
      const asked = { start, vertices, wait: Math.max(wait, LEAST), ...options };
      const { records, next, end, state } = await this.page(job, asked);
      yield* records;
      start = next;
      if (end && state === "done") return;
      // Whoever takes these for all frames would take a piece for the whole.
      if (end) throw new PosewardError("not-ready", `${job} is ${state}: its records end before frame ${start}`);
    }
  }

  async subjectPage(job, { who, start = 0, count, vertices, wait = LONG, ...options } = {}) {
    const values = { job, who: who === undefined ? undefined : String(who), start, count, vertices, timeout: wait / 1000 };
    return this.#ask("subject", values, { ...options, wait });
  }

  async *subject(job, { who, start = 0, vertices, wait = LONG, ...options } = {}) {
    needed("subject", "job", job);
    for (let end = false; !end; ) {
      const asked = { who, start, vertices, wait: Math.max(wait, LEAST), ...options };
      const page = await this.subjectPage(job, asked);
      yield* page.records;
      ({ next: start, end } = page);
    }
  }

  async download(job, name, target, { onProgress = () => {}, ...options } = {}) {
    needed("download", "target", target);
    // A name of its own: with the target's in it, it might be longer than the file system allows.
    const beside = join(dirname(target), `.poseward-${randomBytes(8).toString("hex")}.part`);
    const handle = await open(beside, "wx");
    try {
      for (let offset = 0, total; total === undefined || offset < total; ) {
        const piece = await this.#link.ask("file", { job, name, offset }, options);
        if (total !== undefined && piece.results.total !== total) {
          throw new PosewardError("results-gone", `${name} of ${job} has been replaced: fetch it again`);
        }
        ({ total } = piece.results);
        if (!Number.isSafeInteger(total)) throw new PosewardError("internal", `the daemon told no length of ${name}`);
        if (piece.blob.length === 0 && offset < total) {
          throw new PosewardError("results-gone", `${name} of ${job} ends at ${offset} of ${total} bytes`);
        }
        await handle.appendFile(piece.blob);
        offset += piece.blob.length;
        onProgress(offset, total);
      }
      await handle.close();
      await rename(beside, target);
    } catch (error) {
      await handle.close();
      await rm(beside, { force: true });
      throw error;
    }
    return resolve(target);
  }

  async image(image, { vertices, timeout = 60_000, ...options } = {}) {
    needed("image", "image", image);
    const blob = typeof image === "string" || image instanceof URL ? await readFile(image) : image;
    if (blob.byteLength > SMALL) {
      const { max_message: most } = (await this.hello(options)).limits;
      // The daemon would not answer, but close the connection.
      if (blob.byteLength > most) {
        throw new PosewardError("too-large", `an image of ${blob.byteLength} bytes; the daemon takes ${most} (api.max_message_mb)`);
      }
    }
    const values = { vertices, timeout: timeout / 1000 };
    return this.#ask("image", values, { ...options, blob, wait: timeout, patient: false });
  }

  // -- the daemon ------------------------------------------------------------------------------------

  async health(options) {
    return this.#ask("health", {}, options);
  }

  async reset(stage, options) {
    await this.#ask("reset", { stage }, options);
  }

  async reload(stage, options) {
    await this.#ask("reload", { stage }, options);
  }

  async drain(on = true, options) {
    await this.#ask("drain", { on }, options);
  }

  async *events(topics = [""], options = {}) {
    const address = this.#eventsAddress ?? eventsAddress((await this.hello(options)).events, this.address);
    yield* this.#events.listen(address, typeof topics === "string" ? [topics] : topics, options.signal);
  }

  async #ask(op, values, options) {
    return (await this.#link.ask(op, values, options)).results;
  }
}

async function digest(handle, signal) {
  const hash = createHash("sha256");
  let size = 0;
  for await (const piece of handle.createReadStream({ start: 0, autoClose: false })) {
    if (signal?.aborted) throw aborted(signal);
    hash.update(piece);
    size += piece.length;
  }
  return { size, sha256: hash.digest("hex") };
}
