/** A typed array with its shape, C order: element (i, j) of shape [n, 3] is at `3 * i + j`. It is a view of the message. */
export type Tensor<Kind> = Kind & { readonly shape: readonly number[] };
export type Floats = Tensor<Float32Array>;

export type JobState = "queued" | "running" | "done" | "failed" | "cancelled";
export type Phase = "waiting" | "preparing" | "working" | "exporting";

export interface Progress {
  phase: Phase;
  /** Frames that each stage has done; `committed` ones are safe whatever happens. */
  decoded: number;
  detected: number;
  meshed: number;
  committed: number;
  /** Frames in all, or null where that is known only at the end. */
  total: number | null;
  /** Committed frames a second, lately. */
  rate: number;
  seconds: number;
}

/** Times are seconds since 1970. */
export interface Job {
  id: string;
  number: number;
  state: JobState;
  name: string;
  source: string;
  origin: "api" | "upload" | "drop" | "command";
  priority: number;
  client_key: string | null;
  options: { exports?: string[]; recompute?: boolean };
  attempts: number;
  created: number;
  started: number | null;
  ended: number | null;
  frames: number | null;
  /** The results folder on the daemon's machine. */
  results: string | null;
  folder: string | null;
  /** The earlier job of the same content whose results these are. */
  same_as: string | null;
  error: string | null;
  message: string;
  sha256: string | null;
  bytes: number | null;
  summary: Summary | null;
  fetched: number | null;
  /** Of a job that runs. */
  progress?: Progress;
}

export interface Summary {
  frames: number;
  people: number;
  tracks: number;
  failed_frames: { frame: number; stage: string; reason: string }[];
  truncated: string | null;
  seconds: Record<string, number>;
  wall_seconds: number;
  restarts: Record<string, unknown>[];
  backend: string;
  [more: string]: unknown;
}

/** One person in one frame. Image coordinates are pixels, x right and y down; body coordinates metres, z away. */
export interface Track {
  id: number;
  /** (4) x0 y0 x1 y1. */
  box: Floats;
  confidence: number;
  /** (3) translation of the body in the camera's frame, metres. */
  camera: Floats;
  /** (24, 3, 3) rotation matrices, root first, each relative to its parent. */
  pose: Floats;
  /** (10) SMPL shape. */
  betas: Floats;
  /** (24, 3) metres relative to the root. */
  joints_3d: Floats;
  /** (24, 2) pixels. */
  joints_2d: Floats;
  /** (V, 3) metres relative to the root; faces stand in the header. */
  vertices?: Floats;
  /** false: nobody was found there, the tracker knows where they must be. */
  detected?: boolean;
  extra?: Record<string, unknown>;
}

export interface FrameRecord {
  frame: number;
  /** Seconds, from the video's own stamps. */
  time: number;
  tracks: Track[];
  failed?: { stage: string; reason: string };
}

export interface Header {
  width: number;
  height: number;
  fps: number;
  backend: string;
  skeleton: { names: string[]; parents: number[] };
  /** (F, 3) indices into vertices. */
  faces: Tensor<Int32Array>;
}

export interface Page {
  header: Header | null;
  records: FrameRecord[];
  next: number;
  end: boolean;
  state: JobState;
}

export interface ProcessHealth {
  stage: string;
  state: string;
  phase: string;
  detail: string;
  fraction: number | null;
  pid: number | null;
  restarts: number;
  rss: number;
  peak_rss: number;
  device: string | null;
  device_used: number | null;
  device_free: number | null;
  fingerprint: string;
  /** Its code differs from what is on disk. */
  stale: boolean;
  python: string;
  [more: string]: unknown;
}

export interface Hello {
  poseward: string;
  protocol: number;
  /** Another text after each restart. */
  daemon: string;
  started: number;
  backend: string;
  events: string;
  limits: { max_message: number; max_upload: number; chunk: number; max_waiting: number };
}

export interface Health extends Hello {
  uptime: number;
  ready: boolean;
  draining: boolean;
  processes: Record<string, ProcessHealth>;
  queue: Record<JobState, number>;
  jobs: Job[];
  memory: { total: number; available: number; device: { index: number; name: string; total: number; free: number }[] };
  /** Empty: all is well. */
  problems: string[];
  /** The last things that went wrong and were mended. */
  incidents: string[];
}

export type Event =
  | [`job.${string}`, EventBase & { job: Job }]
  | [`frame.${string}`, EventBase & { record: FrameRecord }]
  | [`stage.${string}`, EventBase & { stage: string; state: string; message: string; fraction: number | null }]
  | ["memory", EventBase & { host: { total: number; available: number }; processes: Record<string, unknown> }]
  | ["daemon", EventBase & { state: "ready" | "draining" | "stopping" }];

export interface EventBase {
  daemon: string;
  /** Counts all events of this daemon: a gap says that some were lost. */
  seq: number;
  time: number;
}

export interface ClientOptions {
  /** `ipc://PATH` or `tcp://HOST:PORT`; without, that of this user's daemon. */
  address?: string;
  /** Of the events; without, the daemon is asked. */
  events?: string;
  /** Milliseconds without any answer after which a request fails with `timeout`; until then it is sent again. */
  patience?: number;
  /** Keys in Z85, for daemons that demand them. */
  curve?: { publicKey: string; secretKey: string; serverKey: string };
}

export interface Abortable {
  signal?: AbortSignal;
}
export interface RequestOptions extends Abortable {
  patience?: number;
}
export interface Wanted {
  name?: string;
  /** Makes the submission idempotent: the same key is the same job. */
  key?: string;
  /** -100 to 100, higher first. */
  priority?: number;
  exports?: string[];
  recompute?: boolean;
}

/** `code` is a name of docs/protocol.md, or `timeout`, `closed` or `aborted`. */
export class PosewardError extends Error {
  readonly code: string;
  readonly details: Record<string, unknown>;
  constructor(code: string, message: string, details?: Record<string, unknown>);
}

export function defaultAddress(): string;

export class Client {
  readonly address: string;
  constructor(options?: ClientOptions);
  close(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
  hello(options?: RequestOptions): Promise<Hello>;
  submit(wanted: Wanted & ({ path: string } | { upload: string }), options?: RequestOptions): Promise<Job & { new: boolean }>;
  upload(file: string, options?: Abortable & { onProgress?: (sent: number, size: number) => void }): Promise<string>;
  submitFile(
    file: string,
    options?: Wanted & Abortable & { onProgress?: (sent: number, size: number) => void },
  ): Promise<Job & { new: boolean }>;
  status(job: string | { key: string }, options?: RequestOptions): Promise<Job>;
  list(
    which?: { states?: JobState[]; limit?: number; before?: number; text?: string },
    options?: RequestOptions,
  ): Promise<{ jobs: Job[]; counts: Record<JobState, number> }>;
  wait(job: string, options?: Abortable & { timeout?: number; onProgress?: (job: Job) => void }): Promise<Job>;
  cancel(job: string, options?: RequestOptions): Promise<Job>;
  retry(job: string, options?: RequestOptions): Promise<Job>;
  results(
    job: string,
    options?: RequestOptions,
  ): Promise<{ job: Job; summary: Summary; folder: string; files: { name: string; bytes: number }[] }>;
  page(
    job: string,
    options?: Abortable & { start?: number; count?: number; vertices?: boolean; wait?: number },
  ): Promise<Page>;
  frames(job: string, options?: Abortable & { start?: number; vertices?: boolean }): AsyncGenerator<FrameRecord, void>;
  download(
    job: string,
    name: string,
    target: string,
    options?: Abortable & { onProgress?: (got: number, size: number) => void },
  ): Promise<string>;
  image(
    bytes: Uint8Array,
    options?: Abortable & { vertices?: boolean; timeout?: number },
  ): Promise<{ record: FrameRecord; header: Header }>;
  health(options?: RequestOptions): Promise<Health>;
  reset(stage: string, options?: RequestOptions): Promise<void>;
  reload(stage?: string, options?: RequestOptions): Promise<void>;
  drain(on?: boolean, options?: RequestOptions): Promise<void>;
  events(topics?: string[], options?: Abortable): AsyncGenerator<Event, void>;
}
