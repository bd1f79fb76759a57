"""Options for one dropped file, in a TOML or JSON file beside it."""

from __future__ import annotations

import difflib
import json
import os
import reprlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Interval, MaxLen, MinLen
from pydantic import TypeAdapter, ValidationError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 16


class SidecarError(Exception):
    """A sidecar that cannot be used; names it, the key and the way out."""


@dataclass(frozen=True)
class Options:
    """What a sidecar may say."""

    exports: list[str] | None = None
    """Exports to make, such as ``["overlay", "glb"]``; without, those of the daemon's configuration."""
    priority: int = 0
    """Higher goes first."""
    recompute: bool = False
    """Compute anew even if the same content was done before."""

    def as_map(self) -> dict[str, Any]:
        """The options of a submission."""
        found: dict[str, Any] = {}
        if self.exports is not None:
            found["exports"] = list(self.exports)
        if self.recompute:
            found["recompute"] = True
        return found


_KINDS: dict[str, TypeAdapter[Any]] = {
    "exports": TypeAdapter(list[Annotated[str, MinLen(1), MaxLen(64)]]),
    "priority": TypeAdapter(Annotated[int, Interval(ge=-100, le=100)]),
    "recompute": TypeAdapter(bool),
}


def read_sidecar(path: Path) -> Options:
    """The options in a sidecar.

    Raises:
        SidecarError: it cannot be read, is no TOML or JSON, has an unknown key, or a value of the wrong type.
    """
    try:
        # A link would let whoever may drop files read others; a pipe would hold the reader up.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            raw = file.read(MOST_BYTES + 1) or b""
    except OSError as error:
        why = (
            "it is a link; drop the file itself"
            if path.is_symlink()
            else f"{error.strerror}: check who may read it"
        )
        raise SidecarError(f"{path.name}: {why}") from error
    if len(raw) > MOST_BYTES:
        raise SidecarError(f"{path.name}: more than {MOST_BYTES} bytes; is this a sidecar?")
    try:
        text = raw.decode("utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # of decoding, of JSON and of TOML
        kind = "JSON" if path.suffix.lower() == ".json" else "TOML"
        raise SidecarError(
            f"{path.name}: not valid {kind}: {str(error)[:200]}; mend it and drop both again"
        ) from error
    if not isinstance(found, dict):
        raise SidecarError(f'{path.name}: must be a table of options, such as {{"priority": 5}}')
    for key, value in found.items():
        if key not in _KINDS:
            close = difflib.get_close_matches(str(key), _KINDS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(_KINDS)}"
            raise SidecarError(f"{path.name}: unknown option {str(key)[:64]!r}; {hint}")
        try:
            _KINDS[key].validate_python(value, strict=True)
        except ValidationError as error:
            why = error.errors(include_input=False, include_context=False, include_url=False)[0]["msg"]
            raise SidecarError(f"{path.name}: {key} = {_shown(value)}: {why}") from error
    return Options(**found)


def _shown(value: Any) -> str:
    """A value in few characters, whatever it is."""
    try:
        return reprlib.repr(value)
    except ValueError:  # Python does not print integers of thousands of digits
        return f"({type(value).__name__})"
