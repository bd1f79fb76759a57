"""Fetches the weights that may be fetched: ``poseward models fetch humans4d``.

Downloads resume where they broke off, are checked where a checksum is known, and are renamed into place only when
whole, so that no half file ever passes for a model. SMPL is never fetched: its licence asks for registration.
"""

from __future__ import annotations

import hashlib
import http.client
import shutil
import tarfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stages.backends.humans4d.options import Options
from stages.backends.humans4d.requirements import file_problem
from stages.backends.humans4d.weights import FILES, SMPL_WAY, WeightFile

_BLOCK = 1 << 20
_TIMEOUT = 60.0
"""Seconds without a byte after which a connection counts as dead."""
_ATTEMPTS = 5

Progress = Callable[[str, int, int | None], None]
"""Told the name of a file, the bytes that are there and how many there will be, or None where unknown."""


class FetchError(Exception):
    """A download failed for good; says which, why, and what to do."""


class Opener(Protocol):
    """Opens a URL from a byte on, as ``urllib.request.urlopen`` does a request."""

    def __call__(self, request: urllib.request.Request, timeout: float) -> Any: ...


def _open(request: urllib.request.Request, timeout: float) -> Any:
    return urllib.request.urlopen(request, timeout=timeout)


@dataclass(frozen=True)
class Plan:
    """What there is to do: ``there`` already, ``to_fetch``, and what only the ``user`` can supply."""

    there: tuple[WeightFile, ...]
    to_fetch: tuple[WeightFile, ...]
    user: tuple[WeightFile, ...]

    @property
    def licences(self) -> tuple[str, ...]:
        """Under which terms the files stand, each once."""
        return tuple(dict.fromkeys(file.licence for file in (*self.to_fetch, *self.user)))


def plan(options: Options, detectors: Sequence[str] = ()) -> Plan:
    """What is missing of the chosen detector's files (or of all ``detectors`` named)."""
    wanted = ("", *(detectors or (options.detector,)))
    files = [file for file in FILES if file.detector in wanted]
    bad = [file for file in files if file_problem(file, options.path(file.option)) is not None]
    return Plan(
        there=tuple(file for file in files if file not in bad),
        to_fetch=tuple(file for file in bad if file.url is not None),
        user=tuple(file for file in bad if file.url is None),
    )


def fetch(
    options: Options,
    say: Callable[[str], None],
    progress: Progress,
    *,
    detectors: Sequence[str] = (),
    opener: Opener = _open,
) -> list[Path]:
    """Fetch everything that is missing; returns the files that only the user can supply and that are missing.

    Raises:
        FetchError: a download failed, or what came has another checksum.
    """
    todo = plan(options, detectors)
    for licence in todo.licences:
        say(licence)
    archives: dict[str, list[WeightFile]] = {}
    for file in todo.to_fetch:
        assert file.url is not None
        if file.member:
            archives.setdefault(file.url, []).append(file)
        else:
            target = options.path(file.option)
            download(file.url, target, progress, sha256_begins=file.sha256_begins, opener=opener)
            _check(file, target)
    for url, members in archives.items():
        archive = Path.home() / ".cache/4DHumans" / url.rsplit("/", 1)[-1]
        # Upstream takes an archive that is there for one that is whole; unpacking will tell.
        if not archive.is_file():
            download(url, archive, progress, opener=opener)
        _unpack(archive, [(file.member, options.path(file.option)) for file in members], say)
        for file in members:
            _check(file, options.path(file.option))
    for file in todo.user:
        say(f"{options.path(file.option)} is missing: {SMPL_WAY}")
    return [options.path(file.option) for file in todo.user]


def download(
    url: str,
    target: Path,
    progress: Progress,
    *,
    sha256_begins: str = "",
    opener: Opener = _open,
) -> None:
    """Download ``url`` to ``target``, going on where an earlier try ended.

    Raises:
        FetchError: the server fails again and again, or the checksum is another one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    failure = ""
    for _ in range(_ATTEMPTS):
        try:
            if _continue(url, partial, progress, opener):
                break
            failure = "the connection ended early"
        except urllib.error.HTTPError as error:
            if 400 <= error.code < 500:
                raise FetchError(
                    f"{url}: the server answers {error.code} {error.reason}; if it has moved, put the "
                    f"file at {target}"
                ) from error
            failure = f"the server answers {error.code}"
        except (OSError, http.client.HTTPException) as error:
            failure = str(error)
    else:
        raise FetchError(
            f"{url}: {failure}; {partial.stat().st_size if partial.exists() else 0} bytes are kept, run it again to "
            "go on from there"
        )
    found = _sha256(partial) if sha256_begins else ""
    if not found.startswith(sha256_begins):
        partial.unlink()
        raise FetchError(f"{url}: SHA-256 {found} does not begin with {sha256_begins}; removed, run it again")
    partial.replace(target)


def _continue(url: str, partial: Path, progress: Progress, opener: Opener) -> bool:
    """One try; whether the file is whole now."""
    have = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = opener(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        # Nothing is left after what we have: either whole already, or longer than the server's file.
        if error.code == 416 and error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        if error.code == 416:
            partial.unlink()
            return False
        raise
    with response:
        # A server that ignores Range sends everything from the start.
        if have and response.status != 206:
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with partial.open("ab" if have else "wb") as file:
            while block := response.read(_BLOCK):
                file.write(block)
                have += len(block)
                progress(partial.name.removesuffix(".part"), have, total)
    return total is None or have == total


def _check(file: WeightFile, path: Path) -> None:
    problem = file_problem(file, path)
    if problem is not None:
        raise FetchError(str(problem))


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _unpack(archive: Path, members: Iterable[tuple[str, Path]], say: Callable[[str], None]) -> None:
    """Unpack the named members only, each to where it belongs, whatever other paths the archive holds."""
    wanted = dict(members)
    try:
        with tarfile.open(archive) as content:
            for entry in content:
                target = wanted.get(entry.name.removeprefix("./"))
                source = content.extractfile(entry) if target is not None else None
                if target is None or source is None:
                    continue
                say(f"unpacking {target}")
                target.parent.mkdir(parents=True, exist_ok=True)
                partial = target.with_name(target.name + ".part")
                with source, partial.open("wb") as file:
                    shutil.copyfileobj(source, file, _BLOCK)
                partial.replace(target)
                del wanted[entry.name.removeprefix("./")]
    except (tarfile.TarError, EOFError, OSError) as error:
        raise FetchError(f"{archive} cannot be unpacked ({error}): remove it and run it again") from error
    if wanted:
        raise FetchError(f"{archive} has no {next(iter(wanted))}: its layout has changed; unpack it by hand")
