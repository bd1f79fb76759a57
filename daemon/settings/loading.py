"""The configuration: one TOML file, the environment and flags, validated, each value with its origin.

Every key is the field of a frozen dataclass (`Settings` and what it holds), so that the dataclasses are the
only place where a key, its default and its explanation stand. Values come, the later the stronger, from the
defaults, the file, the environment (``POSEWARD_STAGES__MESH__BATCH=2``) and flags
(``--set stages.mesh.batch=2``).
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import annotated_types as limits
import platformdirs
from pydantic import ConfigDict, TypeAdapter, ValidationError

from daemon.settings.schema import Settings
from daemon.settings.sources import (
    ConfigError,
    Entry,
    expand_home,
    parse_toml,
    read_environment,
    read_file,
    read_sets,
)

FILE_NAME = "poseward.toml"
FILE_VARIABLE = "POSEWARD_CONFIG"
DEFAULT = "default"

__all__ = ["ConfigError", "Loaded", "Settings", "find_file", "leaves", "load"]


@dataclass(frozen=True)
class Loaded:
    """Settings in force and where each value came from.

    ``origins`` maps the keys that were set to ``file:line``, ``environment VARIABLE`` or ``--set``; what is not
    in it stands at its default. ``file`` is the configuration file, or None.
    """

    settings: Settings
    origins: Mapping[str, str]
    file: Path | None = None

    def value(self, key: str) -> Any:
        """The value of a dotted key.

        Raises:
            ConfigError: there is no such key.
        """
        return _lookup(self.settings, key)

    def keys(self) -> list[str]:
        """All keys in the file's order; entries of open tables (``stages.options``) that are set among them."""
        found: list[str] = []
        for key, leaf in leaves().items():
            found.append(key)
            if leaf.table:
                found += [f"{key}.{name}" for name in _lookup(self.settings, key)]
        return found

    def changed(self) -> dict[str, Any]:
        """The settings that differ from the defaults, by dotted key, as JSON-able values."""
        standard = Settings()
        return {
            key: list(value) if isinstance(value := self.value(key), tuple) else value
            for key, leaf in leaves().items()
            if self.value(key) != (_lookup(standard, key) if not leaf.table else {})
        }

    def replace(self, key: str, value: Any, origin: str) -> Loaded:
        """The same with one more value, validated; for flags of their own such as ``--no-vertices``.

        Raises:
            ConfigError: unknown key or wrong type.
        """
        entries = _flatten_settings(self.settings, self.origins)
        entries[key] = Entry(value, origin)
        return _build(entries, self.file)


@dataclass(frozen=True)
class Leaf:
    """One key: its type, whether it is an open table (any names below it), and the dataclass it stands in."""

    key: str
    type: Any
    table: bool
    owner: type


_RANGES: dict[str, Any] = {
    "nice": limits.Interval(ge=0, le=19),
    "gap": limits.Interval(ge=0, le=60),
    "replicas": limits.Interval(ge=1, le=64),
    "threads": limits.Ge(1),
    "batch": limits.Ge(1),
    "soft_memory_mb": limits.Ge(0),
    "address_space_mb": limits.Ge(0),
    "device_need_mb": limits.Ge(0),
    "slots": limits.Interval(ge=2, le=1024),
    "max_pixels": limits.Ge(1),
    "working_pixels": limits.Ge(1),
    "stream": limits.Interval(ge=-1, le=1 << 16),
    "ring_mb": limits.Ge(1),
    "pipe_depth": limits.Ge(1),
    "snapshot_every": limits.Ge(1),
    "max_failed_fraction": limits.Interval(ge=0.0, le=1.0),
    "importing": limits.Gt(0),
    "loading": limits.Gt(0),
    "warming": limits.Gt(0),
    "working": limits.Gt(0),
    "heartbeat": limits.Gt(0),
    "grace": limits.Gt(0),
    "base_delay": limits.Ge(0),
    "factor": limits.Ge(1.0),
    "max_delay": limits.Ge(0),
    "jitter": limits.Interval(ge=0.0, le=1.0),
    "max_restarts": limits.Ge(0),
    "window": limits.Gt(0),
    "cooldown": limits.Ge(0),
    "settle": limits.Gt(0),
    "poll": limits.Ge(0),
    "max_message_mb": limits.Interval(ge=1, le=1024),
    "max_upload_mb": limits.Ge(0),
    "max_queue": limits.Ge(1),
    "max_clients": limits.Ge(1),
    "max_waiting": limits.Ge(1),
    "max_images": limits.Ge(1),
    "max_duration": limits.Ge(0),
    "results_days": limits.Ge(0),
    "results_gb": limits.Ge(0),
    "work_days": limits.Ge(0),
    "jobs_days": limits.Ge(0),
    "logs_days": limits.Ge(0),
    "log_mb": limits.Ge(0),
    "stations": limits.Ge(0),
    "gpus": limits.Ge(0),
    "cpus": limits.Ge(0),
    "memory_mb": limits.Ge(0),
    "segment_frames": limits.Ge(1),
    "ahead": limits.Ge(1),
    "jobs": limits.Ge(1),
    "connect_seconds": limits.Gt(0),
}
_MOST = 1_000_000_000
"""No number is larger, unless named here: what counts, waits or measures memory goes on to programs of 32 bits, and
31 years or a million gigabytes are no limit to anybody."""
_MOST_OF = {"max_pixels": 1 << 40, "working_pixels": 1 << 40}
_CHOICES = {"daemon.log_level": ("debug", "info", "warning", "error"), "motion.up": ("", "z", "y")}
_SINGLE = ("stages.decode.replicas", "stages.track.replicas")


def find_file(
    environ: Mapping[str, str] | None = None, *, here: Path | None = None, system: Path = Path("/etc/poseward")
) -> Path | None:
    """The configuration file in force: ``$POSEWARD_CONFIG``, ``./poseward.toml``, the user's, the system's.

    Raises:
        ConfigError: ``$POSEWARD_CONFIG`` names a file that is not there.
    """
    environ = os.environ if environ is None else environ
    if named := environ.get(FILE_VARIABLE):
        path = expand_home(named, FILE_VARIABLE)
        if not path.is_file():
            raise ConfigError(f"{FILE_VARIABLE} names {path}, which is no file; unset it or mend the path")
        return path
    own = Path(environ["XDG_CONFIG_HOME"]) / "poseward" if environ.get("XDG_CONFIG_HOME") else None
    places = [here or Path(), own or platformdirs.user_config_path("poseward"), system]
    return next((place / FILE_NAME for place in places if (place / FILE_NAME).is_file()), None)


def load(
    file: Path | None = None, *, environ: Mapping[str, str] | None = None, sets: Sequence[str] = ()
) -> Loaded:
    """Read and validate the configuration.

    Args:
        file: the file to read; None takes `find_file`'s.
        environ: the environment; None takes the process's.
        sets: ``KEY=VALUE`` texts of the flag ``--set``.

    Raises:
        ConfigError: an unknown key, a wrong type, a value out of range, a file that cannot be read.
    """
    environ = os.environ if environ is None else environ
    file = expand_home(file, "--config") if file is not None else find_file(environ)
    entries: dict[str, Entry] = {}
    if file is not None:
        entries.update(read_file(file, _tables()))
    entries.update(read_environment(environ))
    entries.update(read_sets(sets))
    return _build(entries, file)


def leaves() -> dict[str, Leaf]:
    """All keys, in the order of the file."""
    return {leaf.key: leaf for leaf in _walk(Settings, "")}


def _tables() -> set[str]:
    return {key for key, leaf in leaves().items() if leaf.table}


def _walk(owner: type, prefix: str) -> Iterator[Leaf]:
    hints = typing.get_type_hints(owner)
    for item in dataclasses.fields(owner):
        kind = hints[item.name]
        if dataclasses.is_dataclass(kind):
            yield from _walk(typing.cast("type", kind), f"{prefix}{item.name}.")
        else:
            table = typing.get_origin(kind) is Mapping
            yield Leaf(prefix + item.name, kind, table, owner)


# -- validation ----------------------------------------------------------------------------------------


def _build(entries: Mapping[str, Entry], file: Path | None) -> Loaded:
    known = leaves()
    values: dict[str, Any] = {}
    for key, entry in entries.items():
        leaf, name = _find(key, known, entry)
        if name is not None:
            table = values.setdefault(leaf.key, {})
            table[name] = _validate_entry(key, leaf, entry)
        else:
            values[leaf.key] = _validate(key, leaf, entry)
    settings = typing.cast(Settings, _construct(Settings, "", values))
    return Loaded(settings, {key: entry.origin for key, entry in entries.items()}, file)


def _find(key: str, known: Mapping[str, Leaf], entry: Entry) -> tuple[Leaf, str | None]:
    """The leaf of a key, and the entry's name where the leaf is an open table."""
    if key in known:
        return known[key], None
    for leaf in known.values():
        if leaf.table and key.startswith(leaf.key + "."):
            return leaf, key[len(leaf.key) + 1 :]
    if any(other.startswith(key + ".") for other in known):
        raise ConfigError(f"{entry.origin}: {key} is a section, not a value; its keys are {_below(key, known)}")
    raise ConfigError(f"{entry.origin}: unknown key {key}{_nearest(key, known)}")


def _below(section: str, known: Mapping[str, Leaf]) -> str:
    names = dict.fromkeys(key[len(section) + 1 :].split(".")[0] for key in known if key.startswith(section + "."))
    return ", ".join(names)


def _nearest(key: str, known: Mapping[str, Leaf]) -> str:
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    if not close:
        last = key.rpartition(".")[2]
        by_name = {other.rpartition(".")[2]: other for other in reversed(list(known))}
        close = [by_name[name] for name in difflib.get_close_matches(last, by_name, n=1, cutoff=0.6)]
    if not close:
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.3)
    return f"; did you mean {close[0]}?" if close else "; `poseward config show` lists all keys"


def _validate(key: str, leaf: Leaf, entry: Entry) -> Any:
    value = _from_text(entry.value, leaf.type) if entry.text else entry.value
    if isinstance(value, list) and typing.get_origin(leaf.type) is tuple:
        value = tuple(value)
    kind: Any = leaf.type
    name = key.rpartition(".")[2]
    if name in _RANGES:
        kind = Annotated[kind, _RANGES[name]]
    try:
        value = TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        raise _wrong(key, entry, error) from error
    if key in _CHOICES and value not in _CHOICES[key]:
        near = difflib.get_close_matches(str(value), _CHOICES[key], n=1)
        raise ConfigError(
            f"{entry.origin}: {key} = {value!r}: must be one of {', '.join(_CHOICES[key])}"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    _check_size(key, name, entry, value)
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and text.startswith("~"):
            expand_home(text, f"{entry.origin}: {key}")
    if key in _SINGLE and value != 1:
        raise ConfigError(f"{entry.origin}: {key} = {value}: this stage always has one process")
    return value


def _check_size(key: str, name: str, entry: Entry, value: Any) -> None:
    most = _MOST_OF.get(name, _MOST)
    if isinstance(value, int | float) and abs(value) > most:
        shown = f"{value:g}" if isinstance(value, float) else f"a number of {len(str(abs(value)))} digits"
        raise ConfigError(f"{entry.origin}: {key} = {shown}: must be at most {most}")


def _validate_entry(key: str, leaf: Leaf, entry: Entry) -> Any:
    kind = typing.get_args(leaf.type)[1]
    value = entry.value
    if entry.text and kind is not str:
        value = parse_toml(value)
    try:
        return TypeAdapter(kind, config=ConfigDict(strict=True)).validate_python(value)
    except ValidationError as error:
        raise _wrong(key, entry, error) from error


def _wrong(key: str, entry: Entry, error: ValidationError) -> ConfigError:
    first = error.errors()[0]
    where = "".join(f"[{part}]" for part in first["loc"] if isinstance(part, int))
    message = first["msg"].replace("Input should", "must")
    return ConfigError(f"{entry.origin}: {key}{where} = {first['input']!r}: {message}")


def _from_text(text: str, kind: Any) -> Any:
    """Read a flag's or variable's text as the type it is for: ``2``, ``true``, ``a,b`` or ``["a", "b"]``."""
    if kind is str:
        return text
    if typing.get_origin(kind) is tuple:
        if text.startswith("["):
            return parse_toml(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    if kind is bool and text.lower() in ("1", "yes", "on", "true"):
        return True
    if kind is bool and text.lower() in ("0", "no", "off", "false"):
        return False
    return parse_toml(text)


def _construct(owner: type, prefix: str, values: Mapping[str, Any], default: Any = None) -> Any:
    """Settings as ``values`` have them, and elsewhere as in ``default``: a stage's defaults are not those of all."""
    default = owner() if default is None else default
    hints = typing.get_type_hints(owner)
    arguments: dict[str, Any] = {}
    for item in dataclasses.fields(owner):
        key = prefix + item.name
        if dataclasses.is_dataclass(hints[item.name]):
            arguments[item.name] = _construct(
                typing.cast("type", hints[item.name]), f"{key}.", values, getattr(default, item.name)
            )
        elif key in values:
            arguments[item.name] = values[key]
    return dataclasses.replace(default, **arguments)


def _flatten_settings(settings: Settings, origins: Mapping[str, str]) -> dict[str, Entry]:
    return {key: Entry(_lookup(settings, key), origin) for key, origin in origins.items()}


def _lookup(settings: Settings, key: str) -> Any:
    found: Any = settings
    parts = key.split(".")
    for number, part in enumerate(parts):
        if isinstance(found, Mapping):
            rest = ".".join(parts[number:])
            if rest in found:
                return found[rest]
            raise ConfigError(f"unknown key {key}")
        if not hasattr(found, part):
            raise ConfigError(f"unknown key {key}{_nearest(key, leaves())}")
        found = getattr(found, part)
    return found
