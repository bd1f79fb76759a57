// The daemon's events.
import { Subscriber } from "zeromq";

import { aborted, closed } from "./errors.js";
import { readEvent } from "./messages.js";
import { connect, socketOptions } from "./sockets.js";

/**
 * The address of the events as this client reaches it: the daemon names the host that it is bound to, which from
 * elsewhere is another one (`0.0.0.0`, a name inside of a container).
 */
export function eventsAddress(told, requests) {
  const [port] = /:\d+$/.exec(told) ?? [];
  if (!told.startsWith("tcp://") || !requests.startsWith("tcp://") || port === undefined) return told;
  return requests.replace(/:\d+$/, port);
}

export class Events {
  #curve;
  #sockets = new Set();
  #closed = false;

  constructor(curve) {
    this.#curve = curve;
  }

  close() {
    this.#closed = true;
    for (const socket of this.#sockets) socket.close();
  }

  async *listen(address, topics, signal) {
    if (this.#closed) throw closed();
    if (signal?.aborted) throw aborted(signal);
    const socket = connect(Subscriber, socketOptions(this.#curve), address);
    const stop = () => socket.close();
    signal?.addEventListener("abort", stop, { once: true });
    this.#sockets.add(socket);
    try {
      socket.subscribe(...topics);
      for await (const parts of socket) {
        let event;
        try {
          event = readEvent(parts);
        } catch {
          continue; // of a later version of the protocol
        }
        yield event;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
      this.#sockets.delete(socket);
      socket.close();
    }
    if (signal?.aborted) throw aborted(signal);
  }
}
