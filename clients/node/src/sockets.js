// What both sockets have in common: how they reconnect, how they notice a dead peer, whose keys they use.
import { PosewardError } from "./errors.js";

/** The options of any socket of a client. `curve`: this client's pair of keys and the daemon's public one. */
export function socketOptions(curve) {
  for (const name of curve ? ["publicKey", "secretKey", "serverKey"] : []) {
    if (!/^[!-~]{40}$/.test(curve[name])) {
      throw new TypeError(`curve.${name} must be 40 characters of Z85, as \`poseward keys new\` writes them`);
    }
  }
  return {
    linger: 0,
    reconnectInterval: 100,
    reconnectMaxInterval: 2000,
    heartbeatInterval: 5000,
    heartbeatTimeout: 20_000, // as patient as the daemon: a machine under load is not a dead one
    ...(curve && {
      curvePublicKey: curve.publicKey,
      curveSecretKey: curve.secretKey,
      curveServerKey: curve.serverKey,
    }),
  };
}

/** Make a socket and connect it. Throws `bad-address` where the address is none. */
export function connect(Kind, options, address) {
  const socket = new Kind();
  try {
    Object.assign(socket, options); // not in the constructor, which would leave a socket behind that nobody closes
    socket.connect(address);
    return socket;
  } catch (error) {
    socket.close();
    throw new PosewardError("bad-address", `${address}: ${error.message}; write ipc:///PATH or tcp://HOST:PORT`, {}, error);
  }
}
