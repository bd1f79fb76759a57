/** A request that was refused or not answered; index.d.ts says which codes there are. */
export class PosewardError extends Error {
  constructor(code, message, details = {}, cause) {
    super(`${code}: ${message}`, cause === undefined ? undefined : { cause });
    this.name = "PosewardError";
    this.code = code;
    this.details = details;
  }
}

export const aborted = (signal) => new PosewardError("aborted", "the request was aborted", {}, signal.reason);
export const closed = () => new PosewardError("closed", "the client was closed");
