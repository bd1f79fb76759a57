"""Options for one dropped file, in a TOML or JSON file beside it."""

from __future__ import annotations

import difflib
import json
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
        SidecarError: it is no TOML or JSON, has an unknown key, or a value of the wrong type.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(MOST_BYTES + 1)
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
            raise SidecarError(f"{path.name}: {key} = {str(value)[:64]}: {error.errors()[0]['msg']}") from error
    return Options(**found)
