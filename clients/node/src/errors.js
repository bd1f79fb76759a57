/** A request that was refused or not answered. `code` is a name of docs/protocol.md, or `timeout`, `closed`, `aborted`. */
export class PosewardError extends Error {
  constructor(code, message, details = {}) {
    super(`${code}: ${message}`);
    this.name = "PosewardError";
    this.code = code;
    this.details = details;
  }
}
