"""Everything that can be configured besides the pipeline: frozen dataclasses, one a section of the file."""

from __future__ import annotations

from dataclasses import dataclass, field

from daemon.motion.options import MotionOptions
from stages.settings import PipelineSettings


@dataclass(frozen=True)
class ResultsSettings:
    """What a job leaves behind, and where."""

    folder: str = "results"
    """Folder in which each job gets a results folder of its own."""
    exports: tuple[str, ...] = ("overlay",)
    """Exports made after each job, such as overlay, glb, json; see `poseward export --help`."""
    overlay_side: int = 1920
    """Longest side of overlay videos in pixels; 0: as large as the input."""
    overlay_sound: bool = True
    """Whether overlay videos have the sound of their input."""


@dataclass(frozen=True)
class DaemonSettings:
    """The process that owns the stages."""

    runtime: str = ""
    """Folder for sockets (a short path); empty: $XDG_RUNTIME_DIR, or the folder for temporary files."""
    state: str = ""
    """Folder of the job store and of uploads; empty: $STATE_DIRECTORY, or ~/.local/state/poseward."""
    log_level: str = "info"
    """Least important messages that are logged: debug, info, warning or error."""
    log_file: str = ""
    """File to which JSON log lines are appended; empty: logs/poseward.jsonl in the state folder for
    `poseward serve`, none for `poseward run`."""
    log_mb: int = 64
    """Most that the log of `poseward serve` may take on disk, the files before the present one included; 0 is no
    limit."""


@dataclass(frozen=True)
class DropSettings:
    """The folder whose videos are taken and worked on by `poseward serve`."""

    folder: str = ""
    """The drop folder; done/ and failed/ are made below it. Empty: there is none."""
    settle: float = 2.0
    """Seconds for which a file's size and time of change must stand still before it is taken."""
    poll: float = 0.0
    """Seconds between two looks into the folder; 0: the kernel tells, and where it is blind (Windows drives
    under WSL, network folders) every 2 seconds."""


@dataclass(frozen=True)
class ApiSettings:
    """The ZeroMQ interface of `poseward serve` and its limits; docs/protocol.md describes it."""

    address: str = ""
    """Where requests are answered, ipc://PATH or tcp://HOST:PORT; empty: ipc://STATE/api.sock."""
    events: str = ""
    """Where events are published; empty: beside the first (events.sock, or the next port)."""
    roots: tuple[str, ...] = ("~",)
    """Folders below which a submitted path must lie, links resolved."""
    key: str = ""
    """File with this daemon's secret CURVE key (`poseward keys new`); demanded for any address that others on
    the network can reach."""
    allow: str = ""
    """Folder with the public CURVE keys of the clients that may connect, one file each."""
    max_message_mb: int = 16
    """Largest message; a client that sends more is disconnected."""
    max_upload_mb: int = 4096
    """Largest upload."""
    max_queue: int = 10_000
    """Jobs that may wait."""
    max_clients: int = 64
    """Clients that may be connected at a time."""
    max_waiting: int = 64
    """Requests of one client that may be waiting for something at a time."""
    max_images: int = 16
    """Single images that may be in work at a time; more are refused as busy."""
    max_duration: float = 21600.0
    """Longest video in seconds; 0 is no limit."""


@dataclass(frozen=True)
class MetricsSettings:
    """The Prometheus endpoint of `poseward serve`."""

    address: str = ""
    """HOST:PORT, such as 127.0.0.1:9464; empty: no endpoint."""


@dataclass(frozen=True)
class HttpSettings:
    """The HTTP gateway of `poseward serve` and its pages; docs/http.md describes it."""

    address: str = ""
    """HOST:PORT, such as 127.0.0.1:8787; empty: no gateway."""
    token: str = ""
    """File with the bearer token that is demanded of everybody; without one, only loopback is served."""
    origins: tuple[str, ...] = ()
    """Origins of other sites' pages that may ask (CORS), such as https://app.example.org."""
    hosts: tuple[str, ...] = ()
    """Further names by which the gateway is called; localhost and addresses in numbers are known."""
    max_clients: int = 64
    """Requests that may be answered at a time."""


@dataclass(frozen=True)
class RetentionSettings:
    """What `poseward serve` removes by itself, and when. The defaults keep everything."""

    results_days: float = 0.0
    """Results folders older than this are removed; 0 keeps them."""
    results_gb: float = 0.0
    """Above this sum of all results, the oldest are removed; 0 keeps them."""
    unfetched: bool = False
    """Whether results that no client has fetched over the API may be removed too."""
    work_days: float = 30.0
    """Unfinished work of failed and cancelled jobs older than this is removed; 0 keeps it."""
    jobs_days: float = 0.0
    """Entries of ended jobs older than this leave the job store, once their folders are gone; 0 keeps them."""
    logs_days: float = 0.0
    """Log files that have been full for longer than this are removed; 0 keeps them as daemon.log_mb says."""


@dataclass(frozen=True)
class ClusterSettings:
    """Other machines that `poseward serve` gives work to, by Ray; docs/cluster.md describes it."""

    address: str = ""
    """HOST:PORT of the Ray cluster's head, or auto for the one that this machine is in; empty: this machine alone."""
    stations: int = 0
    """Machines' worth of work that is used at most; 0: as many as the cluster has room for."""
    gpus: float = 0.0
    """GPUs that each station reserves; 1 with a backend that runs on one."""
    cpus: float = 1.0
    """Processor cores that each station reserves."""
    memory_mb: int = 0
    """Host memory in MB that each station reserves; 0 reserves none."""
    segment_frames: int = 240
    """Frames that a station is given at a time."""
    ahead: int = 64
    """Segments of one video that may be done beyond the first one that is not."""
    jobs: int = 16
    """Jobs that are given to the cluster at a time."""
    connect_seconds: float = 120.0
    """Longest time for reaching the cluster."""


@dataclass(frozen=True)
class Settings:
    """Everything that can be configured: one field a section of the file."""

    stages: PipelineSettings = field(default_factory=PipelineSettings)
    results: ResultsSettings = field(default_factory=ResultsSettings)
    motion: MotionOptions = field(default_factory=MotionOptions)
    daemon: DaemonSettings = field(default_factory=DaemonSettings)
    drop: DropSettings = field(default_factory=DropSettings)
    api: ApiSettings = field(default_factory=ApiSettings)
    metrics: MetricsSettings = field(default_factory=MetricsSettings)
    http: HttpSettings = field(default_factory=HttpSettings)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
