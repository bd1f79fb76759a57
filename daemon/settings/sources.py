"""Where settings come from: the file, the environment and flags, each read into dotted keys with an origin."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "POSEWARD_"
SEPARATOR = "__"
"""Between the parts of a key in an environment variable; a single underscore belongs to a name."""


class ConfigError(Exception):
    """A setting that cannot be used; names the key, where it was set, and the way out."""


def expand_home(text: str | Path, origin: str) -> Path:
    """A path with ``~`` and ``~user`` written out.

    Raises:
        ConfigError: there is no such user; ``origin`` says who named the path.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        name = Path(text).parts[0][1:] or "this user"
        raise ConfigError(
            f"{origin}: {str(text)!r}: no home folder of {name} is known here: write the folder in full"
        ) from error


@dataclass(frozen=True)
class Entry:
    value: Any
    origin: str
    text: bool = False
    """True for the environment and flags: the value is text and is read as the key's type."""


def read_file(file: Path, tables: Collection[str]) -> dict[str, Entry]:
    try:
        text = file.read_text(encoding="utf-8-sig")  # Windows' Notepad puts a mark before it
        tree = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8 text: {error}; save it as UTF-8") from error
    except (ValueError, RecursionError) as error:  # TOMLDecodeError, and numbers of thousands of digits
        raise ConfigError(f"{file}: not valid TOML: {error}") from error
    lines = _line_numbers(text)
    entries = {}
    for key, value in _flatten(tree, "", tables):
        line = lines.get(key)
        entries[key] = Entry(value, f"{file}:{line}" if line else str(file))
    return entries


def _flatten(tree: Mapping[str, Any], prefix: str, tables: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Leaves of the file's tree; below an open table each entry is one leaf, whatever it holds."""
    for name, value in tree.items():
        key = prefix + name
        if isinstance(value, dict) and prefix[:-1] not in tables:
            yield from _flatten(value, f"{key}.", tables)
        else:
            yield key, value


_HEADER = re.compile(r"\s*\[(?P<name>[^\[\]]+)\]\s*(#.*)?$")
_KEY = re.compile(r"\s*(?P<name>[A-Za-z0-9_.\"' -]+?)\s*=")


def _line_numbers(text: str) -> dict[str, int]:
    """Where each key stands. A plain scan of lines: what it misses is reported without a line."""
    numbers: dict[str, int] = {}
    section = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            section = _plain(header["name"]) + "."
            numbers.setdefault(section[:-1], number)
        elif assignment := _KEY.match(line):
            numbers.setdefault(section + _plain(assignment["name"]), number)
    return numbers


def _plain(name: str) -> str:
    return ".".join(part.strip().strip("\"'") for part in name.split("."))


def read_environment(environ: Mapping[str, str]) -> dict[str, Entry]:
    entries = {}
    for variable in sorted(environ):
        name = variable[len(PREFIX) :]
        if not variable.startswith(PREFIX) or SEPARATOR not in name:
            continue
        parts = name.split(SEPARATOR)
        # Names of environment variables (stages.mesh.env) keep their case; all our own keys are lower-case.
        lower = [part.lower() for part in parts]
        if "env" in lower:
            at = lower.index("env") + 1
            lower[at:] = [SEPARATOR.join(parts[at:])] if parts[at:] else []
        entries[".".join(lower)] = Entry(environ[variable], f"environment {variable}", text=True)
    return entries


def read_sets(sets: Sequence[str]) -> dict[str, Entry]:
    entries = {}
    for item in sets:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set {item}: write it as KEY=VALUE, such as --set stages.mesh.batch=2")
        entries[key.strip()] = Entry(value.strip(), f"--set {key.strip()}", text=True)
    return entries


def parse_toml(text: str) -> Any:
    """A TOML value; text that is none stands for itself."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if list(found) == ["value"] else text
