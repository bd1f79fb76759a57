// Requests and their replies over one DEALER: sent again until they are answered, aborted, or out of patience.
import { Dealer } from "zeromq";

import { aborted, closed, PosewardError } from "./errors.js";
import { readReply, writeRequest } from "./messages.js";
import { connect, socketOptions } from "./sockets.js";

const AGAIN = 50; // ms before a request is sent again that was lost with its connection; doubled each time
const FULL = 200; // ms that a message waits for a connection before it is looked at again whether it is still wanted
const MOST = 2 ** 31 - 1; // what setTimeout takes

/** One request under way. It keeps its id however often it is sent, so that a late answer is an answer too. */
class Asked {
  constructor(parts, wait, patient) {
    this.parts = parts;
    this.wait = wait;
    this.patient = patient; // asks again when the daemon says `busy`
    this.lost = 0;
    this.again = null;
  }
}

export class Link {
  #address;
  #options;
  #patience;
  #resend;
  #dealer = null;
  #next = 1;
  #asked = new Map();
  #unsent = new Set(); // ids, in the order in which they are sent
  #pumping = false;
  #closed = false;
  #trouble = "";

  constructor(address, { curve, patience, resend }) {
    this.#address = address;
    // `immediate`: while nobody is connected nothing is queued in the socket, where it could not be taken back.
    this.#options = { ...socketOptions(curve), immediate: true, sendHighWaterMark: 100, sendTimeout: FULL };
    this.#patience = patience;
    this.#resend = resend;
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    for (const asked of [...this.#asked.values()]) asked.fail(closed());
    this.#dealer?.close();
  }

  /**
   * Send a request until it is answered: `{results, blob}`, or a `PosewardError`. `wait` is the milliseconds that the
   * daemon itself may take. `patient`: a daemon that says `busy` since it is being stopped is asked again.
   */
  ask(op, values, { blob, signal, wait = 0, patience = this.#patience, patient = true } = {}) {
    return new Promise((resolve, reject) => {
      if (this.#closed) throw closed();
      if (signal?.aborted) throw aborted(signal);
      this.#connect();
      const id = this.#next++;
      const asked = new Asked(writeRequest(id, op, values, blob), wait, patient);
      const stop = () => asked.fail(aborted(signal));
      const last = setTimeout(() => asked.fail(this.#silence()), Math.min(patience + wait, MOST));
      const settle = (how) => (value) => {
        clearTimeout(last);
        clearTimeout(asked.again);
        signal?.removeEventListener("abort", stop);
        this.#asked.delete(id);
        this.#unsent.delete(id);
        how(value);
      };
      asked.found = settle(resolve);
      asked.fail = settle(reject);
      signal?.addEventListener("abort", stop, { once: true });
      this.#asked.set(id, asked);
      this.#send(id);
    });
  }

  #silence() {
    return new PosewardError(
      "timeout",
      `no answer from ${this.#address}: is the daemon running (poseward serve), and is that its api.address?` +
        this.#trouble,
    );
  }

  #send(id) {
    this.#unsent.add(id);
    this.#pump();
  }

  #sendIn(milliseconds, id, asked) {
    clearTimeout(asked.again);
    asked.again = setTimeout(() => this.#send(id), Math.min(milliseconds, MOST));
  }

  /** A socket takes one message at a time; what is not wanted any more when its turn comes is not sent. */
  async #pump() {
    if (this.#pumping) return;
    this.#pumping = true;
    while (this.#unsent.size > 0 && !this.#closed) {
      const [id] = this.#unsent;
      const asked = this.#asked.get(id);
      try {
        await this.#dealer.send(asked.parts);
      } catch (error) {
        if (error.code === "EAGAIN") continue; // nobody is connected, or they read slowly
        asked.fail(error);
        continue;
      }
      this.#unsent.delete(id);
      if (this.#asked.has(id)) this.#sendIn(this.#resend + asked.wait, id, asked);
    }
    this.#pumping = false;
  }

  #connect() {
    if (this.#dealer !== null) return;
    this.#dealer = connect(Dealer, this.#options, this.#address);
    this.#listen(this.#dealer);
    this.#watch(this.#dealer);
  }

  async #listen(dealer) {
    try {
      for await (const parts of dealer) {
        let reply;
        try {
          reply = readReply(parts);
        } catch {
          continue; // not an answer to anything: it will be asked again
        }
        this.#take(reply);
      }
    } catch (error) {
      if (this.#closed) return;
      this.#dealer = null; // the next request makes another
      dealer.close();
      for (const asked of [...this.#asked.values()]) asked.fail(error);
    }
  }

  #take(reply) {
    const asked = this.#asked.get(reply.id);
    if (asked === undefined) return;
    if (reply.error === undefined) asked.found(reply);
    else if (reply.error.code === "busy" && asked.patient) this.#sendIn(AGAIN * 2 ** Math.min(asked.lost++, 6), reply.id, asked);
    else asked.fail(reply.error);
  }

  /** What was sent over a connection that is gone will not be answered. */
  async #watch(dealer) {
    try {
      for await (const { type } of dealer.events) {
        if (type === "handshake") this.#trouble = "";
        if (type.startsWith("handshake:error")) {
          this.#trouble = " Somebody is there, but refuses the connection: are the keys right, and is this one in its api.allow?";
        }
        if (type !== "disconnect") continue;
        for (const [id, asked] of this.#asked) {
          if (!this.#unsent.has(id)) this.#sendIn(AGAIN * 2 ** Math.min(asked.lost++, 6), id, asked);
        }
      }
    } catch {
      // Then it is sent again when it has been silent for long enough.
    }
  }
}
