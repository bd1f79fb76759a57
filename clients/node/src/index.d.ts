// Types of docs/protocol.md. Bytes are bytes; times of day are seconds since 1970, as the daemon gives them; durations
// that are given to the client are milliseconds. test/contract.test.js compares these with what a daemon says.
/// <reference lib="esnext.disposable" />

/**
 * A typed array with its shape, in C order: element (i, j) of shape [n, 3] is at `3 * i + j`. It is a view of the message
 * that it came in, which lives as long as any of its arrays; what `slice()` makes of it is a copy, without `shape`.
 */
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
  /** Since this attempt began. */
  seconds: number;
}

/** A job map. Times are seconds since 1970. */
export interface Job {
  id: string;
  /** Counts all jobs; `list` goes by it. */
  number: number;
  state: JobState;
  name: string;
  /** The file on the daemon's machine. */
  source: string;
  origin: "api" | "upload" | "drop" | "command";
  priority: number;
  client_key: string | null;
  options: { exports?: string[]; recompute?: boolean; stream?: number; [more: string]: unknown };
  /** How often it was begun: once more for each death of the daemon. */
  attempts: number;
  created: number;
  started: number | null;
  ended: number | null;
  /** Once it is done. */
  frames: number | null;
  /** The folder of its results on the daemon's machine, absolute. */
  results: string | null;
  /** That folder's name. */
  folder: string | null;
  /** The earlier job of the same content whose results these are. */
  same_as: string | null;
  /** A name of docs/protocol.md where it has failed, with its message. */
  error: string | null;
  message: string;
  /** Of its content. */
  sha256: string | null;
  bytes: number | null;
  /** Once it is done; `results()` has the whole. */
  summary: JobSummary | null;
  /** When a client first fetched results. */
  fetched: number | null;
  /** Of a job that runs. */
  progress?: Progress;
}

/** The short summary in a job map. */
export interface JobSummary {
  frames: number;
  tracks: number;
  /** How many entries are missing of lists that were longer than 100; `results` has all. */
  left_out?: Record<string, number>;
  [more: string]: unknown;
}

/** summary.json, see docs/results.md. */
export interface Summary {
  frames: number;
  people: number;
  tracks: number;
  failed_frames: { frame: number; stage: string; reason: string }[];
  truncated: string | null;
  /** Seconds of work of each stage. */
  seconds: Record<string, number>;
  wall_seconds: number;
  restarts: Record<string, unknown>[];
  backend: string;
  [more: string]: unknown;
}

/** One person in one frame. Image coordinates are pixels, x right and y down; body coordinates metres, z away. */
export interface Track {
  /** The same number is the same person, through the whole video. */
  id: number;
  /** (4) x0 y0 x1 y1, pixels. */
  box: Floats;
  /** From 0 to 1. */
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
  /** (V, 3) metres relative to the root; faces stand in the header. Not in events, nor where they were left out. */
  vertices?: Floats;
  /** false: nobody was found there, the tracker knows where they must be. */
  detected?: boolean;
  /** What the backend adds. */
  extra?: Record<string, unknown>;
}

export interface FrameRecord {
  /** From 0. */
  frame: number;
  /** Seconds, from the video's own stamps. */
  time: number;
  /** Empty where nobody is there, and where the frame failed. */
  tracks: Track[];
  /** Why there is no result: the frame was skipped, and the job went on. */
  failed?: { stage: string; reason: string };
  /** Why the picture is not wholly the one that was filmed; it was worked on all the same. */
  damaged?: string;
  /** File name of the image, in a folder of images. */
  source?: string;
  /** [width, height] of a picture of another size than the header's; it was fitted into that, middle on middle. */
  size?: [number, number];
}

export interface Header {
  /** Square pixels. */
  width: number;
  height: number;
  /** Nominal frames per second, 0 for a single image. */
  fps: number;
  /** The same as a fraction, such as [30000, 1001]. */
  rate: [number, number];
  /** true: the frames do not follow each other at one distance; go by their times. */
  variable: boolean;
  /** Number of the video stream that was read, as its file counts them; null for pictures. */
  stream: number | null;
  /** A point p before the camera is at pixel focal * p[:2] / p[2] + principal. */
  focal: number;
  principal: [number, number];
  backend: string;
  /** 24 joints; the parent of the root is -1. */
  skeleton: { names: string[]; parents: number[] };
  /** (F, 3) indices into vertices. */
  faces: Tensor<Int32Array>;
}

/** angles.json, the export `angles`; docs/exports.md says what each angle is. */
export interface AnglesFile {
  poseward_angles: 1;
  fps: [number, number];
  variable: boolean;
  units: { angles: "degree"; velocities: "degree/s"; centre_of_mass: "metre"; speeds: "metre/s" };
  people: { id: number; subject: boolean; tracks: number[]; frames: AnglesRecord[] }[];
}

/** One person's measures in one frame, by name: `left_knee_flexion`, `trunk_inclination`, …. */
export interface AnglesRecord {
  frame: number;
  time: number;
  /** Nobody saw the person there: it was filled in from before and after. */
  filled: boolean;
  angles: Record<string, number>;
  velocities: Record<string, number>;
  centre_of_mass: [number, number, number];
  speeds: Record<string, number>;
}

export interface Page {
  /** null where the job has not begun to write. */
  header: Header | null;
  records: FrameRecord[];
  /** Where to go on. */
  next: number;
  /** There will be no more. */
  end: boolean;
  state: JobState;
}

export interface Hello {
  poseward: string;
  protocol: number;
  /** Another text after each restart. */
  daemon: string;
  started: number;
  backend: string;
  /** Address of the events, as the daemon binds it. */
  events: string;
  /** Bytes, and `max_waiting`: requests of one client that may wait at a time. */
  limits: { max_message: number; max_body: number; max_upload: number; chunk: number; max_waiting: number };
}

export interface DeviceMemory {
  index: number;
  name: string;
  total: number;
  free: number;
}

export interface ProcessHealth {
  stage: "decode" | "detect" | "mesh" | "track";
  state:
    | "starting"
    | "importing"
    | "loading"
    | "warming"
    | "ready"
    | "backoff"
    | "waiting for memory"
    | "open circuit"
    | "failed"
    | "stopped";
  phase: string;
  detail: string;
  /** Of the phase that is done, from 0 to 1. */
  fraction: number | null;
  pid: number | null;
  restarts: number;
  last_exit: { kind: string; reason: string; phase: string; stderr: string[] } | null;
  /** Host memory in bytes, now and at most. */
  rss: number;
  peak_rss: number;
  device: string | null;
  /** Device memory in bytes, where it is known. */
  device_used: number | null;
  device_free: number | null;
  busy_seconds: number;
  metrics: Record<string, unknown>;
  /** Of the code that it runs. */
  fingerprint: string | null;
  /** Its code differs from what is on disk. */
  stale: boolean;
  /** Its interpreter, where it has one of its own. */
  python: string;
}

export interface Health extends Hello {
  /** Seconds. */
  uptime: number;
  /** All stages are. */
  ready: boolean;
  draining: boolean;
  /** Connected now. */
  clients: number;
  /** Rises whenever frames are sent again after a death. */
  epoch: number;
  /** By name: `decode`, `detect`, `mesh`, `track`, or `mesh-1` … for replicas. */
  processes: Record<string, ProcessHealth>;
  queue: Record<JobState, number>;
  /** Those that run. */
  jobs: Job[];
  memory: { total: number; available: number; device: DeviceMemory[] };
  api: { requests: string; events: string };
  /** Where it answers HTTP, if it does: `http://HOST:PORT/`. */
  http: string | null;
  /** The drop folder, where there is one. */
  drop: {
    folder: string;
    watching: "polling" | "kernel";
    /** Files that still grow, and files in work. */
    incomplete: number;
    claimed: number;
    problem: string | null;
  } | null;
  /** The other machines, where there are any. */
  cluster: {
    address: string;
    state: string;
    stations: { name: string; host: string; doing: string; segments: number; refusal: string }[];
    jobs: Record<string, { frames: number; done: number; segments: number }>;
  } | null;
  /** Empty: all is well. */
  problems: string[];
  /** The last things that went wrong and were mended, with their time of day. */
  incidents: string[];
}

export interface EventBase {
  /** `hello().daemon`. */
  daemon: string;
  /** Counts all events of this daemon: a gap says that some were not subscribed to, or lost. */
  seq: number;
  time: number;
}
export interface JobEvent extends EventBase {
  job: Job;
}
/** Without vertices. */
export interface FrameEvent extends EventBase {
  record: FrameRecord;
}
export interface StageEvent extends EventBase {
  stage: string;
  state: string;
  message: string;
  fraction: number | null;
}
export interface MemoryEvent extends EventBase {
  host: { total: number; available: number };
  processes: Record<string, { rss: number; device_used: number | null }>;
  device: DeviceMemory[];
}
export interface DaemonEvent extends EventBase {
  state: "ready" | "draining" | "stopping";
}
export type Event =
  | [`job.${string}`, JobEvent]
  | [`frame.${string}`, FrameEvent]
  | [`stage.${string}`, StageEvent]
  | ["memory", MemoryEvent]
  | ["daemon", DaemonEvent];
/** The events of a topic, or of all that begin with it. */
export type EventOf<Topic extends string> = Topic extends `job.${string}`
  ? [`job.${string}`, JobEvent]
  : Topic extends `frame.${string}`
    ? [`frame.${string}`, FrameEvent]
    : Topic extends `stage.${string}`
      ? [`stage.${string}`, StageEvent]
      : Topic extends "memory"
        ? ["memory", MemoryEvent]
        : Topic extends "daemon"
          ? ["daemon", DaemonEvent]
          : Event;

export interface ClientOptions {
  /** `ipc:///PATH` or `tcp://HOST:PORT`; without, that of this user's daemon. */
  address?: string;
  /** Of the events; without, the daemon is asked. */
  events?: string;
  /**
   * Milliseconds without any answer after which a request fails with `timeout`; until then it is sent again. Default
   * 30,000: longer than a daemon takes to be restarted. Infinity waits for ever.
   */
  patience?: number;
  /** Milliseconds of silence, beyond what the daemon may take, after which a request is sent again. Default 5,000. */
  resend?: number;
  /** Keys in Z85, for daemons that demand them: this client's pair, and the daemon's public one. */
  curve?: { publicKey: string; secretKey: string; serverKey: string };
}

export interface RequestOptions {
  /** Ends the request with the error `aborted`. */
  signal?: AbortSignal;
  /** As in `ClientOptions`, for this request. */
  patience?: number;
}
/** `sent` of `total` bytes. */
export type OnBytes = (sent: number, total: number) => void;

export interface Wanted {
  /** Shown to people; without, the file's. */
  name?: string;
  /** Makes the submission idempotent: the same key is the same job. Without, each call is a job of its own. */
  key?: string;
  /** -100 to 100, higher first. */
  priority?: number;
  /** Without, the daemon's `results.exports`. */
  exports?: string[];
  /** Also where the same content was done before. */
  recompute?: boolean;
  /** Number of the video stream to read, where the file has several; without, the likeliest. */
  stream?: number;
}

/**
 * A request that was refused or not answered. `code` is a name of docs/protocol.md, `timeout` (nobody answered),
 * `closed` (the client was), `aborted` (by the signal) or `bad-address`. `details` are further fields of the refusal.
 */
export class PosewardError extends Error {
  readonly code: string;
  readonly details: Record<string, unknown>;
  constructor(code: string, message: string, details?: Record<string, unknown>, cause?: unknown);
}

/** Where a daemon of this user answers, unless it is configured otherwise: below XDG_STATE_HOME or ~/.local/state. */
export function defaultAddress(): string;

/**
 * Talks to one daemon. Connects with the first request, and again whenever the daemon comes back. Any number of
 * requests may be under way. All methods throw `PosewardError`.
 */
export class Client {
  readonly address: string;
  constructor(options?: ClientOptions);
  /** Requests that are under way fail with `closed`, iterations of events end. May be called twice. */
  close(): Promise<void>;
  /** `await using client = new Client()` closes it. */
  [Symbol.asyncDispose](): Promise<void>;

  hello(options?: RequestOptions): Promise<Hello>;
  /** Queue a video by its path on the daemon's machine, or an upload. `new: false`: there was a job with this key. */
  submit(wanted: Wanted & ({ path: string } | { upload: string }), options?: RequestOptions): Promise<Job & { new: boolean }>;
  /** Send a file's bytes, going on where an earlier try ended, of this process or another; resolves to its id. */
  upload(file: string, options?: RequestOptions & { name?: string; onProgress?: OnBytes }): Promise<string>;
  /** `upload`, then `submit`. */
  submitFile(file: string, options?: Wanted & RequestOptions & { onProgress?: OnBytes }): Promise<Job & { new: boolean }>;
  status(job: string | { key: string }, options?: RequestOptions): Promise<Job>;
  /** The newest first, `limit` (100) of them with a `number` below `before`. */
  list(
    which?: { states?: JobState[]; limit?: number; before?: number; text?: string },
    options?: RequestOptions,
  ): Promise<{ jobs: Job[]; counts: Record<JobState, number> }>;
  /**
   * Wait until a job has ended, however long and across restarts of the daemon, or `timeout` milliseconds; resolves to
   * its map. That it has failed is no error of this call: look at `state`. `onProgress` is called with each map, at
   * least once a second.
   */
  wait(job: string, options?: RequestOptions & { timeout?: number; onProgress?: (job: Job) => void }): Promise<Job>;
  /** What was done of it is kept for `retry`. */
  cancel(job: string, options?: RequestOptions): Promise<Job>;
  /** Queue a failed or cancelled job again. */
  retry(job: string, options?: RequestOptions): Promise<Job>;

  /** Of a job that is done. */
  results(
    job: string,
    options?: RequestOptions,
  ): Promise<{ job: Job; summary: Summary; folder: string; files: { name: string; bytes: number }[] }>;
  /** One piece of a job's records, at most `count` (100); waits up to `wait` (10,000) milliseconds for the first. */
  page(
    job: string,
    options?: RequestOptions & { start?: number; count?: number; vertices?: boolean; wait?: number },
  ): Promise<Page>;
  /**
   * All records from `start` on, of a job that is done or still runs: each once, in order, across restarts of the
   * daemon. Throws `not-ready` after the last one of a job that was cancelled or has failed.
   */
  frames(
    job: string,
    options?: RequestOptions & { start?: number; vertices?: boolean },
  ): AsyncGenerator<FrameRecord, void, undefined>;
  /** One piece of what `subject` gives; `header` is null while that is being made. */
  subjectPage(
    job: string,
    options?: RequestOptions & { who?: string | number; start?: number; count?: number; vertices?: boolean; wait?: number },
  ): Promise<Page>;
  /**
   * The main person of a job that is done: over all its tracks, gaps filled, smooth; a record for each frame from
   * `start` on. `who` is somebody else: a track's id, "x,y@frame" in pixels, or "all". A track's `extra.source` is the
   * id it has in `frames`, 0 where it was filled in (`detected` is false there). docs/motion.md says more.
   */
  subject(
    job: string,
    options?: RequestOptions & { who?: string | number; start?: number; vertices?: boolean },
  ): AsyncGenerator<FrameRecord, void, undefined>;
  /** Fetch a file of a job's results; `target` appears whole, or not at all. Resolves to its absolute path. */
  download(job: string, name: string, target: string, options?: RequestOptions & { onProgress?: OnBytes }): Promise<string>;
  /**
   * The people in one image, given as the bytes of its file or its path here. It goes ahead of queued videos.
   * `timeout` in milliseconds, default 60,000. `busy`: try again.
   */
  image(
    image: Uint8Array | string | URL,
    options?: RequestOptions & { vertices?: boolean; timeout?: number },
  ): Promise<{ record: FrameRecord; header: Header }>;

  health(options?: RequestOptions): Promise<Health>;
  /** Start a stage that has failed or whose circuit is open. */
  reset(stage: string, options?: RequestOptions): Promise<void>;
  /** Restart a stage, or all in turn, with the code that is on disk now. */
  reload(stage?: string, options?: RequestOptions): Promise<void>;
  /** Begin no more jobs; or, with `false`, begin them again. */
  drain(on?: boolean, options?: RequestOptions): Promise<void>;
  /**
   * Events whose topic begins with one of `topics` (all, without any), from the first `next()` on, until the client is
   * closed. Events may be lost: they are for showing.
   */
  events<Topic extends string = string>(
    topics?: Topic | readonly Topic[],
    options?: RequestOptions,
  ): AsyncGenerator<EventOf<Topic>, void, undefined>;
}
