// The client of a Poseward daemon, written from docs/protocol.md.
import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { open, rename, stat } from "node:fs/promises";
import { homedir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";

import { Dealer, Subscriber } from "zeromq";

import { PosewardError } from "./errors.js";
import { readEvent, readReply, writeRequest } from "./messages.js";

const QUICK = 5_000; // ms that a request which needs no waiting may stay unanswered before it is sent again
const LONG = 10; // seconds of one `wait` or `frames` request
const FINAL = new Set(["done", "failed", "cancelled"]);

/** Where a daemon of this user answers, unless it is configured otherwise. */
export function defaultAddress() {
  const state = process.env.XDG_STATE_HOME || join(homedir(), ".local", "state");
  return `ipc://${join(state, "poseward", "api.sock")}`;
}

export class Client {
  #options;
  #dealer = null;
  #asked = new Map();
  #next = 1;
  #closed = false;
  #sending = Promise.resolve();
  #subscribers = new Set();

  constructor(options = {}) {
    this.address = options.address ?? defaultAddress();
    this.#options = { patience: 30_000, ...options };
  }

  async close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const asked of this.#asked.values()) asked.fail(new PosewardError("closed", "the client was closed"));
    this.#asked.clear();
    for (const subscriber of this.#subscribers) subscriber.close();
    this.#dealer?.close();
  }

  async [Symbol.asyncDispose ?? Symbol.for("Symbol.asyncDispose")]() {
    await this.close();
  }

  // -- jobs ------------------------------------------------------------------------------------------

  async hello(options) {
    return (await this.#ask("hello", {}, options)).results;
  }

  /** Queue a video by its path on the daemon's machine, or an upload. */
  async submit({ path, upload, name, key, priority, exports: wanted, recompute }, options) {
    const values = { path, upload, name, priority, exports: wanted, recompute: recompute || undefined };
    // A key of its own makes a repeated request the same job, also where the caller does not care.
    values.key = key ?? `auto-${randomUUID()}`;
    const { job, new: fresh } = (await this.#ask("submit", values, options)).results;
    return { ...job, new: fresh };
  }

  /** Send a file's bytes, going on where an earlier try ended; resolves to the upload's id. */
  async upload(file, { onProgress = () => {}, ...options } = {}) {
    const { size } = await stat(file);
    const sha256 = await digest(file, options.signal);
    const { chunk } = (await this.hello(options)).limits;
    let state = (await this.#ask("upload", { name: basename(file), size, sha256 }, options)).results;
    const { upload } = state;
    const handle = await open(file);
    try {
      while (!state.complete) {
        onProgress(state.offset, size);
        const buffer = Buffer.alloc(Math.min(chunk, size - state.offset));
        const { bytesRead } = await handle.read(buffer, 0, buffer.length, state.offset);
        if (bytesRead === 0) throw new PosewardError("upload-damaged", `${file} became shorter while it was read`);
        const values = { upload, offset: state.offset };
        const wait = { ...options, wait: 600, blob: buffer.subarray(0, bytesRead) };
        state = (await this.#ask("chunk", values, wait)).results;
      }
    } finally {
      await handle.close();
    }
    onProgress(size, size);
    return upload;
  }

  /** Send a file and queue it. */
  async submitFile(file, { onProgress, signal, ...wanted } = {}) {
    const upload = await this.upload(file, { onProgress, signal });
    return this.submit({ ...wanted, upload }, { signal });
  }

  async status(job, options) {
    const which = typeof job === "string" ? { job } : job;
    return (await this.#ask("status", which, options)).results.job;
  }

  async list({ states, limit, before, text } = {}, options) {
    return (await this.#ask("list", { states, limit, before, text }, options)).results;
  }

  /** Wait until a job has ended, or `timeout` seconds; resolves to its map. `onProgress` gets each one. */
  async wait(job, { timeout = Infinity, onProgress = () => {}, signal } = {}) {
    const until = Date.now() + timeout * 1000;
    let committed;
    for (;;) {
      const left = Math.max(0, Math.min(LONG, (until - Date.now()) / 1000));
      const found = (await this.#ask("wait", { job, timeout: left, committed }, { signal, wait: left })).results.job;
      onProgress(found);
      if (FINAL.has(found.state) || left === 0) return found;
      committed = found.progress?.committed ?? 0;
    }
  }

  async cancel(job, options) {
    return (await this.#ask("cancel", { job }, options)).results.job;
  }

  async retry(job, options) {
    return (await this.#ask("retry", { job }, options)).results.job;
  }

  // -- results -------------------------------------------------------------------------------------

  async results(job, options) {
    return (await this.#ask("results", { job }, options)).results;
  }

  /** One piece of a job's records; waits up to `wait` seconds for the first. */
  async page(job, { start = 0, count, vertices, wait = LONG, signal } = {}) {
    return (await this.#ask("frames", { job, start, count, vertices, timeout: wait }, { signal, wait })).results;
  }

  /** All records from `start` on, of a job that is done or still running, across restarts of the daemon. */
  async *frames(job, { start = 0, vertices, signal } = {}) {
    let end = false;
    while (!end) {
      const page = await this.page(job, { start, vertices, signal });
      yield* page.records;
      ({ next: start, end } = page);
    }
  }

  /** Fetch a file of a job's results; `target` appears whole. */
  async download(job, name, target, { onProgress = () => {}, signal } = {}) {
    const beside = join(dirname(target), `.${basename(target)}.part`);
    const handle = await open(beside, "w");
    try {
      for (let offset = 0; ; ) {
        const { results, blob } = await this.#ask("file", { job, name, offset }, { signal });
        await handle.write(blob, 0, blob.length, offset);
        offset += blob.length;
        onProgress(offset, results.total);
        if (offset >= results.total || blob.length === 0) break;
      }
    } finally {
      await handle.close();
    }
    await rename(beside, target);
    return resolve(target);
  }

  /** The people in one image: a file's bytes, as a Buffer or Uint8Array. */
  async image(bytes, { vertices, timeout = 60, signal } = {}) {
    return (await this.#ask("image", { vertices, timeout }, { signal, wait: timeout, blob: bytes })).results;
  }

  // -- the daemon ------------------------------------------------------------------------------------

  async health(options) {
    return (await this.#ask("health", {}, options)).results;
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

  /** Events whose topic begins with one of `topics` (all, without any): `[topic, event]`, until the client is closed. */
  async *events(topics = [""], { signal } = {}) {
    const address = this.#options.events ?? (await this.hello({ signal })).events;
    const subscriber = this.#prepare(new Subscriber({ linger: 0 }));
    const stop = () => subscriber.close();
    signal?.addEventListener("abort", stop, { once: true });
    this.#subscribers.add(subscriber);
    try {
      subscriber.connect(address);
      subscriber.subscribe(...topics);
      for await (const parts of subscriber) yield readEvent(parts);
    } finally {
      signal?.removeEventListener("abort", stop);
      this.#subscribers.delete(subscriber);
      subscriber.close();
    }
  }

  // -- requests --------------------------------------------------------------------------------------

  /** Send a request until it is answered. `wait` is the seconds that the daemon itself may take. */
  async #ask(op, values, { signal, wait = 0, blob, patience = this.#options.patience } = {}) {
    const until = Date.now() + patience + wait * 1000;
    for (;;) {
      if (this.#closed) throw new PosewardError("closed", "the client was closed");
      if (signal?.aborted) throw new PosewardError("aborted", "the request was aborted");
      const left = until - Date.now();
      if (left <= 0) {
        throw new PosewardError(
          "timeout",
          `no answer from ${this.address}: is the daemon running (poseward serve), and is that its api.address?`,
        );
      }
      const answer = await this.#askOnce(op, values, blob, Math.min(left, QUICK + wait * 1000), signal);
      if (answer !== undefined) return answer;
    }
  }

  /** Resolves to undefined where no answer comes in time. */
  async #askOnce(op, values, blob, milliseconds, signal) {
    const dealer = this.#connect();
    const id = this.#next++;
    let timer, abort;
    try {
      return await new Promise((found, fail) => {
        timer = setTimeout(found, milliseconds);
        abort = () => fail(new PosewardError("aborted", "the request was aborted"));
        signal?.addEventListener("abort", abort, { once: true });
        this.#asked.set(id, { found, fail });
        // One after the other: a socket takes one message at a time.
        this.#sending = this.#sending
          .then(() => (this.#asked.has(id) ? dealer.send(writeRequest(id, op, values, blob)) : undefined))
          .catch((error) => {
            if (error.code !== "EAGAIN" && !this.#closed) fail(error); // a full queue: asked again when time is up
          });
      });
    } finally {
      clearTimeout(timer);
      signal?.removeEventListener("abort", abort);
      this.#asked.delete(id);
    }
  }

  #connect() {
    if (this.#dealer === null) {
      this.#dealer = this.#prepare(new Dealer({ linger: 0, sendHighWaterMark: 100, sendTimeout: 2000 }));
      this.#dealer.connect(this.address);
      this.#listen(this.#dealer);
    }
    return this.#dealer;
  }

  async #listen(dealer) {
    try {
      for await (const parts of dealer) {
        let reply;
        try {
          reply = readReply(parts);
        } catch {
          continue; // not an answer to anything: whoever asked will ask again
        }
        const asked = this.#asked.get(reply.id);
        if (reply.error) asked?.fail(reply.error);
        else asked?.found(reply);
      }
    } catch (error) {
      if (this.#closed) return;
      for (const asked of this.#asked.values()) asked.fail(error);
    }
  }

  #prepare(socket) {
    socket.reconnectInterval = 100;
    socket.reconnectMaxInterval = 2000;
    socket.heartbeatInterval = 5000;
    const { curve } = this.#options;
    if (curve) {
      socket.curvePublicKey = curve.publicKey;
      socket.curveSecretKey = curve.secretKey;
      socket.curveServerKey = curve.serverKey;
    }
    return socket;
  }
}

async function digest(file, signal) {
  const hash = createHash("sha256");
  for await (const piece of createReadStream(file, { signal })) hash.update(piece);
  return hash.digest("hex");
}
