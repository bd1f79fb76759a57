"""Options of the embedded backend: what stands under ``options`` of the pipeline's settings, checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args, get_type_hints

from typing import Literal  # isort: skip

from stages.protocols import ConfigurationError

Tiles = Literal["auto", "off", "all"]
NetworkSize = Literal["auto", "heavy", "full"]


@dataclass(frozen=True)
class Options:
    """Options of one process of this backend."""

    device: str = "cpu"
    """The embedded networks run on the CPU only."""
    threads: int = 1
    """Threads of each network."""
    cache: str = ""
    """Folder of the model files; empty means POSEWARD_CACHE, or else the user's cache folder."""
    smpl_model: str = ""
    """Path of an SMPL file whose surface is posed instead of the built-in body."""
    landmarks: NetworkSize = "auto"
    """The landmark network: heavy is more exact, full three times as fast; auto is heavy for what stands alone (images,
    the first frame of a video and of a scene) and full where people are followed."""
    tiles: Tiles = "auto"
    """Where people are looked for besides the whole frame: in half-overlapping squares of two thirds of its shorter
    side, in each frame (all), in single images and the first frame of a video (auto), or never (off)."""
    min_score: float = 0.3
    """Detections must score at least this; the landmark network judges again."""
    min_presence: float = 0.5
    """The landmark network must be at least this sure that it sees a person."""
    max_people: int = 24
    """Most people in a frame, best first."""
    max_overlap: float = 0.55
    """Two boxes that share more than this part of their union are one person."""
    max_similarity: float = 0.6
    """Two people whose landmarks are more similar than this (object keypoint similarity) are one person."""
    smoothing: bool = True
    """Fit each body to all sightings within 0.4 s of its frame, and fill in people who were hidden for as long; without
    it, each frame stands for itself."""

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Options:
        """Check ``values`` and fill in the defaults.

        Raises:
            ConfigurationError: an unknown option (names the nearest one), a wrong type or a value out of range.
        """
        hints = get_type_hints(cls)
        for name in values:
            if name not in hints:
                raise ConfigurationError(f"backend blazepose: unknown option {name!r}; {_hint(name)}")
        chosen = cls(**{name: _checked(name, hints[name], value) for name, value in values.items()})
        if chosen.device != "cpu":
            raise ConfigurationError(
                f"option device: {chosen.device!r}, but backend blazepose runs on the CPU only: set device to cpu"
            )
        for name in ("threads", "max_people"):
            if getattr(chosen, name) < 1:
                raise ConfigurationError(f"option {name}: {getattr(chosen, name)} is less than 1")
        for name in ("min_score", "min_presence", "max_overlap", "max_similarity"):
            if not 0 <= getattr(chosen, name) <= 1:
                raise ConfigurationError(f"option {name}: {getattr(chosen, name)} is not between 0 and 1")
        return chosen


OPTION_NAMES: tuple[str, ...] = tuple(f.name for f in fields(Options))


def _hint(name: str) -> str:
    near = difflib.get_close_matches(name, OPTION_NAMES, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(OPTION_NAMES)}"


def _checked(name: str, kind: Any, value: Any) -> Any:
    choices = get_args(kind)
    if choices:
        if value not in choices:
            raise ConfigurationError(f"option {name}: {value!r} is not one of {', '.join(choices)}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ConfigurationError(f"option {name}: {value!r} is not of type {kind.__name__}")
    return value
