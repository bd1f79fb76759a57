// A daemon that says what a test wants it to say.
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";

import { decode, encode } from "@msgpack/msgpack";
import { Router } from "zeromq";

export class FakeDaemon {
  constructor(answer) {
    this.answer = answer;
    this.heard = [];
  }

  async start(address) {
    if (address === undefined) {
      this.folder = await mkdtemp(join(tmpdir(), "pw-node-"));
      address = `ipc://${join(this.folder, "api.sock")}`;
    }
    this.address = address;
    this.router = new Router({ linger: 0 });
    await this.router.bind(address);
    this.running = this.#run();
    return this;
  }

  async #run() {
    for await (const [client, body, blob] of this.router) {
      const asked = decode(body);
      this.heard.push({ ...asked, blob });
      await this.answer(asked, (values, ...more) => this.send(client, { v: 1, id: asked.id, ok: true, ...values }, ...more), {
        blob,
        raw: (...parts) => this.router.send([client, ...parts]),
        refuse: (name, message = "no") => this.send(client, { v: 1, id: asked.id, ok: false, error: { name, message } }),
      });
    }
  }

  send(client, body, ...more) {
    return this.router.send([client, encode(body), ...more]);
  }

  async stop() {
    this.router.close();
    await this.running.catch(() => {});
    if (this.folder) await rm(this.folder, { recursive: true, force: true });
  }
}
