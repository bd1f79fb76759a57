// Requests and replies as bytes, see docs/protocol.md.
import { decode, encode } from "@msgpack/msgpack";

import { PosewardError } from "./errors.js";

export const VERSION = 1;

const KINDS = {
  "<f4": Float32Array,
  "<f8": Float64Array,
  "<i4": Int32Array,
  "<u4": Uint32Array,
  "<i2": Int16Array,
  "<u2": Uint16Array,
  "|i1": Int8Array,
  "|u1": Uint8Array,
  "|b1": Uint8Array,
  "<i8": BigInt64Array,
  "<u8": BigUint64Array,
};
const NOTHING = new Uint8Array(0);

export function writeRequest(id, op, values, blob) {
  const body = { v: VERSION, id, op };
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined && value !== null) body[name] = value;
  }
  const packed = encode(body);
  return blob === undefined ? [packed] : [packed, blob];
}

/** The reply's id, and its results or the error that they are. Throws where it is no reply of this version. */
export function readReply([first, blob = NOTHING]) {
  const { id, ok, error, v, ...results } = readMap(first);
  if (v !== VERSION) throw new TypeError(`a reply of version ${v}`);
  if (ok === true) return { id, results: withArrays(results, blob), blob };
  const { name, message, ...details } = error;
  if (typeof name !== "string") throw new TypeError("an error without a name");
  return { id, error: new PosewardError(name, String(message), details) };
}

/** An event's topic and map; arrays stand inside it. Throws where it is no event of this version. */
export function readEvent([topic, body]) {
  const { v, ...event } = readMap(body);
  if (v !== VERSION) throw new TypeError(`an event of version ${v}`);
  return [Buffer.from(topic).toString("latin1"), withArrays(event, NOTHING)];
}

function readMap(bytes) {
  const found = decode(bytes);
  if (typeof found !== "object" || found === null || Array.isArray(found)) throw new TypeError("not a map");
  return found;
}

/** The same value with typed arrays where arrays are described: views of `blob`, nothing is copied. */
function withArrays(value, blob) {
  if (Array.isArray(value)) return value.map((item) => withArrays(item, blob));
  if (typeof value !== "object" || value === null || ArrayBuffer.isView(value)) return value;
  const keys = Object.keys(value);
  if (keys.length === 3 && "dtype" in value && "shape" in value && ("at" in value || "data" in value)) {
    return "at" in value ? view(value, blob, value.at) : view(value, value.data, 0);
  }
  for (const key of keys) value[key] = withArrays(value[key], blob);
  return value;
}

function view({ dtype, shape }, bytes, at) {
  const Kind = KINDS[dtype];
  if (Kind === undefined) throw new TypeError(`an array of dtype ${dtype}`);
  const count = shape.reduce((product, size) => product * size, 1);
  const length = count * Kind.BYTES_PER_ELEMENT;
  if (!(Number.isInteger(at) && at >= 0 && count >= 0 && at + length <= bytes.byteLength)) throw new RangeError("an array beyond its message");
  const start = bytes.byteOffset + at;
  const array =
    start % Kind.BYTES_PER_ELEMENT === 0
      ? new Kind(bytes.buffer, start, count)
      : new Kind(bytes.buffer.slice(start, start + length)); // only where the message itself lies askew
  Object.defineProperty(array, "shape", { value: shape });
  return array;
}
