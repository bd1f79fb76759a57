// A daemon that says what a test wants it to say.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { decode, encode } from "@msgpack/msgpack";
import { Router, XPublisher } from "zeromq";

import { Client } from "../src/index.js";

export class FakeDaemon {
  /** `answer(asked, reply, {blob, raw, refuse})` is called with each request. `options` are the sockets'. */
  constructor(answer, options = {}) {
    this.answer = answer;
    this.options = options;
    this.heard = [];
  }

  async start(address) {
    this.folder ??= await mkdtemp(join(tmpdir(), "pw-node-"));
    this.address = address ?? `ipc://${join(this.folder, "api.sock")}`;
    this.events = `ipc://${join(this.folder, "events.sock")}`;
    await this.up();
    return this;
  }

  /** Be there; again, after `down`. */
  async up() {
    this.router = new Router({ linger: 0, ...this.options });
    this.publisher = new XPublisher({ linger: 0 });
    await this.router.bind(this.address);
    if (this.address.includes("*")) this.address = this.router.lastEndpoint;
    await this.publisher.bind(this.events);
    this.running = this.#run(this.router);
  }

  /** Be gone, as if killed. */
  async down() {
    this.router.close();
    this.publisher.close();
    await this.running;
  }

  async #run(router) {
    for await (const [client, body, blob] of router) {
      const asked = decode(body);
      this.heard.push({ ...asked, blob });
      const send = (map, ...more) => (router.closed ? undefined : router.send([client, encode(map), ...more]));
      await this.answer(asked, (values, ...more) => send({ v: 1, id: asked.id, ok: true, ...values }, ...more), {
        blob,
        raw: (...parts) => router.send([client, ...parts]),
        refuse: (name, message = "no") => send({ v: 1, id: asked.id, ok: false, error: { name, message } }),
      });
    }
  }

  /** Send an event, once somebody has subscribed. */
  async publish(topic, values) {
    this.subscribed ??= this.publisher.receive();
    await this.subscribed;
    await this.publisher.send([topic, values instanceof Uint8Array ? values : encode({ v: 1, ...values })]);
  }

  async stop() {
    if (!this.router.closed) await this.down();
    await rm(this.folder, { recursive: true, force: true });
  }
}

/** Run `body(client, daemon)` with a fake daemon that answers so. */
export async function together(answer, body, options = {}) {
  const daemon = await new FakeDaemon(answer).start();
  const client = new Client({ address: daemon.address, ...options });
  try {
    return await body(client, daemon);
  } finally {
    await client.close();
    await daemon.stop();
  }
}

export async function until(condition, what, patience = 30_000) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`${what} not reached`);
    await new Promise((go) => setTimeout(go, 20));
  }
}
