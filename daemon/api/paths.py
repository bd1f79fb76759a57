"""Paths that clients name: translated from Windows' spelling, and allowed only below the configured roots."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path

from daemon.api.messages import ApiError

_DRIVE = re.compile(r"^(?:[\\/]{2}\?[\\/])?([A-Za-z]):[\\/](.*)$", re.DOTALL)
_SHARE = re.compile(r"^[\\/]{2}(?:wsl\$|wsl\.localhost)[\\/]([^\\/]+)(?:[\\/](.*))?$", re.DOTALL | re.IGNORECASE)


def translate(path: str, mounts: str = "/mnt") -> str:
    """A Windows path as this machine calls it; any other path as it is.

    ``C:\\videos\\a.mp4`` is ``/mnt/c/videos/a.mp4`` and ``\\\\wsl$\\Ubuntu\\home\\me\\a.mp4`` is ``/home/me/a.mp4``
    (the distribution's name is not checked: whoever asks this daemon means its own).
    """
    if match := _DRIVE.match(path):
        return f"{mounts}/{match[1].lower()}/{_slashes(match[2])}"
    if match := _SHARE.match(path):
        return f"/{_slashes(match[2] or '')}"
    return path


def _slashes(rest: str) -> str:
    return rest.replace("\\", "/")


def resolve(path: str, roots: Sequence[str] | None) -> Path:
    """The real path of a submitted one, links resolved. Without ``roots`` any that this process may reach.

    Raises:
        ApiError: ``path-refused`` where it is relative, below none of ``roots``, or neither file nor folder;
            ``no-such-file``.
    """
    if "\0" in path:
        raise ApiError("path-refused", "a path cannot hold a NUL")
    asked = Path(translate(path))
    if not asked.is_absolute():
        raise ApiError(
            "path-refused", f"{path!r} is relative: send an absolute path, as the daemon's machine sees it"
        )
    try:
        real = asked.resolve(strict=False)
        allowed = [Path(root).expanduser().resolve() for root in roots or ()]
    except (OSError, RuntimeError) as error:
        raise ApiError("path-refused", f"{path!r}: {error}") from error
    # Before looking whether it exists: a stranger must not learn what is outside.
    if roots is not None and not any(real.is_relative_to(root) for root in allowed):
        raise ApiError(
            "path-refused",
            f"{real} is outside of api.roots ({', '.join(map(str, allowed))}): add its folder there, or upload it",
        )
    try:
        mode = real.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ApiError("no-such-file", f"{real}: no such file on the daemon's machine") from None
    except OSError as error:
        raise ApiError("path-refused", f"{real}: {error.strerror}") from error
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ApiError("path-refused", f"{real} is neither a file nor a folder of images")
    return real
