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

export function writeRequest(id, op, values, blob) {
  const body = { v: VERSION, id, op };
  for (const [name, value] of Object.entries(values)) {
    if (value !== undefined && value !== null) body[name] = value;
  }
  const packed = encode(body);
  return blob === undefined ? [packed] : [packed, blob];
}

/** The reply's id, and its results or the error that they are. */
export function readReply(parts) {
  const body = decode(parts[0]);
  if (typeof body !== "object" || body === null) throw new TypeError("a reply is a map");
  const { id, ok, error, v, ...results } = body;
  if (v !== VERSION) throw new TypeError(`a reply of version ${v}`);
  if (!ok) {
    const { name = "internal", message = "", ...details } = error ?? {};
    return { id, error: new PosewardError(name, message, details) };
  }
  if (parts.length > 1) return { id, results: withArrays(results, parts[1]), blob: parts[1] };
  return { id, results };
}

/** An event's map; arrays stand inside it. */
export function readEvent(parts) {
  return [Buffer.from(parts[0]).toString("latin1"), withArrays(decode(parts[1]))];
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
  if (at < 0 || at + length > bytes.byteLength) throw new RangeError("an array beyond its message");
  const start = bytes.byteOffset + at;
  const array =
    start % Kind.BYTES_PER_ELEMENT === 0
      ? new Kind(bytes.buffer, start, count)
      : new Kind(bytes.buffer.slice(start, start + length)); // only where the message itself lies askew
  Object.defineProperty(array, "shape", { value: shape });
  return array;
}
