"""Options of the 4D-Humans backend: what stands under ``options`` of the pipeline's settings, checked.

Defaults are those of 4D-Humans' ``track.py`` and PHALP's ``configs/base.py`` (``PHALPConfig``), so that an empty
mapping gives upstream's results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from stages.backends.humans4d.weights import FILES
from stages.protocols import ConfigurationError

Precision = Literal["fp32", "fp16", "bf16"]
Profile = Literal["default", "8gb"]
DetectorName = Literal["vitdet", "regnety"]
CropStyle = Literal["track", "demo"]
DepthTest = Literal["auto", "builtin", "neural_renderer"]

PROFILES: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    # Tensors of detect take 1.8 GiB so and those of mesh 1.4 (bench.humans4d_memory). Each process may allocate 2.8 of
    # 8 GiB: neither can starve the other, and 2.4 are left for both CUDA contexts and, under WSL, for Windows.
    "8gb": {
        "dtype": "fp16",
        "frames": 1,
        "crops": 4,
        "memory_fraction": 0.35,
        "allocator": "auto",
        "trim": True,
        "converted": True,
    },
}
"""What a profile sets where the user has not set it."""


def _file(name: str) -> Callable[[], Path]:
    file = next(file for file in FILES if file.option == name)

    def find() -> Path:
        places = [Path.home() / place for place in (file.default, *file.also)]
        return next((place for place in places if place.is_file()), places[0])

    return find


@dataclass(frozen=True)
class Options:
    """Options of one process of this backend. Paths may begin with ~."""

    device: str = "cpu"
    """Where the models run: cpu, cuda, cuda:1, …"""
    threads: int = 1
    """Threads for computing on the CPU."""
    profile: Profile = "default"
    """8gb fits detect and mesh together on one 8 GB GPU."""
    detector: DetectorName = "vitdet"
    """Cascade Mask R-CNN ViTDet-H, or the much smaller RegNetY Mask R-CNN."""
    dtype: Precision = "fp32"
    """Precision of the backbones; heads, boxes and SMPL always stay in fp32."""
    compile: bool = False
    """Compile the backbones with torch.compile: slower to start, faster after."""
    frames: int = 1
    """Frames in one pass of the detector; always this many, so that what is found in a frame never depends on which
    others were waiting. More are for devices that one frame does not fill."""
    crops: int = 8
    """Crops in one pass of HMR2; always this many, so that a person's result never depends on the crowd."""
    crop: CropStyle = "track"
    """How people are cut out: as track.py does (plain), or as demo.py does (blurred against aliasing)."""
    depth_test: DepthTest = "auto"
    """Which renderer decides what of the texture is visible; auto takes neural_renderer if it is there."""
    memory_fraction: float = 0.0
    """Largest share of the device's memory this process may allocate, 0 to 1; 0 is no limit."""
    allocator: str = ""
    """Settings of torch's CUDA allocator, as in PYTORCH_CUDA_ALLOC_CONF (which goes before): auto chooses those that
    keep memory in one piece and work on this system; empty leaves torch's own."""
    converted: bool = False
    """Leave copies of the checkpoints of detector and HMR2, in ``dtype``, beside them (NAME.poseward-fp16), and start
    from those: they are mapped into memory rather than read."""
    trim: bool = False
    """Give cached device memory back after every batch."""
    min_score: float = 0.8
    """Detections must score more than this."""
    follow_score: float = 0.0
    """Above 0, not upstream's: people who score more than this, though less than ``min_score``, go on a confirmed track
    that nobody else goes on; they never begin one."""
    min_width: float = 50.0
    """Boxes narrower than this many pixels are dropped."""
    min_height: float = 100.0
    """Boxes lower than this many pixels are dropped."""
    detect_shots: bool = False
    """Look for cuts and tell the tracker (upstream: detect_shots)."""
    n_init: int = 5
    """Consecutive detections before a track counts; results lag by one less."""
    max_age_track: int = 50
    """Frames a track survives without a detection."""
    hungarian_th: float = 100.0
    """Largest matching cost."""
    track_history: int = 7
    """Frames of history that the predictors see."""
    past_lookback: int = 1
    """Past appearances that a detection is compared with."""
    distance_type: Literal["EQ_010", "EQ_019"] = "EQ_019"
    """Matching cost: PHALP's equation."""
    alpha: float = 0.1
    """How fast a track's texture takes over the new one."""
    vitdet_weights: Path = field(default_factory=_file("vitdet_weights"))
    regnety_weights: Path = field(default_factory=_file("regnety_weights"))
    hmr2_checkpoint: Path = field(default_factory=_file("hmr2_checkpoint"))
    hmr2_config: Path = field(default_factory=_file("hmr2_config"))
    joint_regressor: Path = field(default_factory=_file("joint_regressor"))
    mean_params: Path = field(default_factory=_file("mean_params"))
    smpl_model: Path = field(default_factory=_file("smpl_model"))
    hmar_weights: Path = field(default_factory=_file("hmar_weights"))
    texture_faces: Path = field(default_factory=_file("texture_faces"))
    texture_weights: Path = field(default_factory=_file("texture_weights"))
    predictor_weights: Path = field(default_factory=_file("predictor_weights"))
    predictor_config: Path = field(default_factory=_file("predictor_config"))
    predictor_mean_std: Path = field(default_factory=_file("predictor_mean_std"))
    predictor_mean_params: Path = field(default_factory=_file("predictor_mean_params"))

    @property
    def least_score(self) -> float:
        """What the detector's people must score more than."""
        return self.follow_score or self.min_score

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Options:
        """Check ``values`` and fill in the profile and the defaults.

        Raises:
            ConfigurationError: an unknown option, a wrong type or a value out of range; names the option.
        """
        hints = get_type_hints(cls)
        unknown = sorted(set(values) - set(hints))
        if unknown:
            raise ConfigurationError(f"backend humans4d: unknown option {unknown[0]!r}; known: {', '.join(hints)}")
        profile = values.get("profile", "default")
        if profile not in PROFILES:
            raise ConfigurationError(f"option profile: {profile!r} is not one of {', '.join(PROFILES)}")
        merged = {**PROFILES[profile], **values}
        chosen = cls(**{name: _checked(name, hints[name], value) for name, value in merged.items()})
        chosen._check_ranges()
        return chosen

    def path(self, option: str) -> Path:
        """The path in the option of that name."""
        found: Path = getattr(self, option)
        return found

    def _check_ranges(self) -> None:
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise ConfigurationError(f"option device: {self.device!r} is not cpu, cuda or cuda:N")
        for name in ("threads", "frames", "crops", "past_lookback", "max_age_track"):
            _at_least(name, getattr(self, name), 1)
        _at_least("n_init", self.n_init, 2)
        if self.track_history < self.n_init:
            raise ConfigurationError(
                f"option track_history: {self.track_history} is less than n_init ({self.n_init}), whose frames it "
                "has to hold"
            )
        for name in ("memory_fraction", "min_score", "follow_score", "alpha"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigurationError(f"option {name}: {getattr(self, name)} is not between 0 and 1")
        if 0 < self.min_score <= self.follow_score:
            raise ConfigurationError(
                f"option follow_score: {self.follow_score} is not below min_score ({self.min_score}), and has no effect"
            )


def _at_least(name: str, value: float, least: int) -> None:
    if value < least:
        raise ConfigurationError(f"option {name}: {value} is less than {least}")


def _checked(name: str, kind: Any, value: Any) -> Any:
    choices = get_args(kind)
    if choices:
        if value not in choices:
            raise ConfigurationError(f"option {name}: {value!r} is not one of {', '.join(choices)}")
        return value
    if kind is Path:
        if not isinstance(value, (str, Path)) or not str(value):
            raise ConfigurationError(f"option {name}: {value!r} is not a path")
        return Path(value).expanduser()
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigurationError(f"option {name}: {value!r} is not of type {kind.__name__}")
    return value


OPTION_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Options))
