"""Fetches the weights that may be fetched: ``poseward models fetch humans4d``.

Downloads resume where they broke off, are checked as far as anything is known of the file, and are renamed into place
only when whole, so that no half file ever passes for a model. SMPL is never fetched: its licence asks for registration.
"""

from __future__ import annotations

import errno
import gzip
import shutil
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from stages.backends.download import (
    BLOCK,
    MEGABYTE,
    FetchError,
    Patience,
    RefusedError,
    download,
    lock,
    mirror_of,
    part_of,
    sha256_of,
)
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.requirements import content_problem, file_problem
from stages.backends.humans4d.weights import FILES, WeightFile
from stages.protocols import FetchView, ModelFile, Problem

ARCHIVES = ".cache/4DHumans"
"""Where upstream keeps the archive, relative to the home folder; its own fetch looks for nothing else."""


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


def plan(options: Options, files: Sequence[WeightFile] = FILES) -> Plan:
    """What is missing of the chosen detector's files."""
    chosen = [file for file in files if file.detector in ("", options.detector)]
    bad = [file for file in chosen if file_problem(file, options.path(file.option)) is not None]
    return Plan(
        there=tuple(file for file in chosen if file not in bad),
        to_fetch=tuple(file for file in bad if file.url is not None),
        user=tuple(file for file in bad if file.url is None),
    )


def look(options: Options, *, thorough: bool, files: Sequence[WeightFile] = FILES) -> list[ModelFile]:
    """The files of `plan`, those that are there first; ``thorough`` also reads what has a checksum, gigabytes."""
    found = plan(options, files)
    return [
        _look(file, options.path(file.option), thorough) for file in (*found.there, *found.to_fetch, *found.user)
    ]


def _look(file: WeightFile, path: Path, thorough: bool) -> ModelFile:
    problem = file_problem(file, path)
    how = "its end is there" if thorough or not file.sha256_begins else "its end is there, checksum not looked at"
    if problem is None and thorough and file.sha256_begins:
        digest = sha256_of(path)
        how = f"SHA-256 begins {file.sha256_begins} as published"
        if not digest.startswith(file.sha256_begins):
            problem = Problem(
                f"{path} has SHA-256 {digest[:12]}…, its publisher says {file.sha256_begins}…: damaged, or another",
                f"rm '{path}' && poseward models fetch humans4d",
                "file",
            )
    size = path.stat().st_size if problem is None else 0
    return ModelFile(path, f"{path}: {size >> 10} KB, {how}", problem, file.licence, file.url is not None)


def fetch(
    options: Options,
    view: FetchView,
    source: str = "",
    *,
    files: Sequence[WeightFile] = FILES,
    patience: Patience | None = None,
) -> None:
    """Fetch everything that is missing and may be fetched. A file that a server does not have keeps none of the
    others from coming.

    Args:
        options: Which detector, and where the files belong.
        view: Told what happens.
        source: A folder, or an address (http, https, file), that has the files under their publishers' names, such as
            ``hmr2_data.tar.gz``: taken instead of the publishers' servers.
        files: What there is.
        patience: With the servers.

    Raises:
        FetchError: a download failed, or what came is not what it should be; what has come is kept.
        ConfigurationError: ``source`` is neither a folder nor an address.
    """
    mirror = mirror_of(source, _name(next(file.url for file in FILES if file.url)))
    todo = plan(options, files)
    for licence in todo.licences:
        view.say(licence)
    for file in todo.user:  # told first, so that it can be got meanwhile
        view.say(str(file_problem(file, options.path(file.option))))
    archives: dict[str, list[WeightFile]] = {}
    refused = []
    for file in todo.to_fetch:
        assert file.url is not None
        _keep_the_users(file, options.path(file.option))
        if file.member:
            archives.setdefault(file.url, []).append(file)
            continue
        try:
            _fetch(file, options.path(file.option), _address(file.url, mirror), view, patience)
        except RefusedError as error:
            refused.append(str(error))
    for url, members in archives.items():
        wanted = {file: options.path(file.option) for file in members}
        try:
            _fetch_archive(_address(url, mirror), Path.home() / ARCHIVES / _name(url), wanted, view, patience)
        except RefusedError as error:
            refused.append(str(error))
    if refused:
        raise FetchError("\n".join(refused))


def _address(url: str, mirror: str) -> str:
    return f"{mirror}/{quote(_name(url))}" if mirror else url


def _name(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _keep_the_users(file: WeightFile, path: Path) -> None:
    """Never replace a file that the user has put to a place of his own."""
    if path.exists() and path != Path.home() / file.default:
        raise FetchError(
            f"{file_problem(file, path)}: option {file.option} names it, so it is yours: move it away first"
        )


def _fetch(file: WeightFile, target: Path, url: str, view: FetchView, patience: Patience | None) -> None:
    # What is known of upstream's file is known of its copies too.
    least = file.at_least

    def check(part: Path) -> str:
        if part.stat().st_size >= 100 * MEGABYTE:
            view.say(f"{target.name}: checking it")
        if problem := content_problem(part, target.suffix, least):
            return problem
        digest = sha256_of(part) if file.sha256_begins else ""
        if digest.startswith(file.sha256_begins):
            return ""
        return f"SHA-256 {digest} does not begin with {file.sha256_begins}"

    download(
        url,
        target,
        view,
        at_least=least,
        check=check,
        done=lambda: file_problem(file, target) is None,
        patience=patience,
    )


class _DamagedError(Exception):
    def __init__(self, why: str, cut: bool) -> None:
        super().__init__(why)
        self.cut = cut
        """Only its end is missing."""


def _fetch_archive(
    url: str, archive: Path, members: Mapping[WeightFile, Path], view: FetchView, patience: Patience | None
) -> None:
    ours = not archive.is_file()
    if ours:
        least = sum(file.at_least for file in members) // 2  # weights hardly shrink when they are packed
        download(url, archive, view, at_least=least, patience=patience)
    try:
        _unpack(archive, members, view)
    except _DamagedError as error:
        if ours:
            archive.unlink(missing_ok=True)
            raise FetchError(f"{url}: what came cannot be unpacked ({error}); removed, run it again") from error
        if not error.cut or part_of(archive).exists():
            raise FetchError(f"{archive} cannot be unpacked ({error}): remove it, and run it again") from error
        # Upstream downloads to the name itself, and takes what is there for whole: what a break left is a part.
        view.say(f"{archive}: its end is missing, the rest is fetched")
        archive.rename(part_of(archive))
        _fetch_archive(url, archive, members, view, patience)


def _unpack(archive: Path, members: Mapping[WeightFile, Path], view: FetchView) -> None:
    """Unpack what is missing of the named members only, each to where it belongs, whatever other paths the archive
    holds; nothing gets its name before the archive's own checksum has been reached.

    Raises:
        _DamagedError: the archive is cut off, or its content is not what was packed.
        FetchError: it lacks a member, or the disk is full.
    """
    parts: dict[Path, Path] = {}
    with archive.open("rb") as file:
        lock(file, lambda: view.say(f"{archive.name}: another fetch unpacks it; waiting for that"))
        wanted = {
            member.member: (member, target)
            for member, target in members.items()
            if file_problem(member, target) is not None
        }
        try:
            if wanted:
                with gzip.open(file) as stream, tarfile.open(fileobj=stream, mode="r:") as content:
                    for entry in content:
                        name = entry.name.removeprefix("./")
                        if name in wanted and entry.isfile():
                            _, target = wanted[name]
                            view.say(f"unpacking {target}")
                            parts[target] = _write(content, entry, target)
                            del wanted[name]
                    while stream.read(BLOCK):
                        pass
        except (tarfile.TarError, zlib.error, gzip.BadGzipFile, EOFError) as error:
            _remove(parts)
            # tarfile tells a missing end by its words only.
            cut = isinstance(error, EOFError) or "unexpected end of data" in str(error)
            raise _DamagedError(str(error), cut) from error
        except BaseException:
            _remove(parts)
            raise
        if wanted:
            _remove(parts)
            raise FetchError(f"{archive} has no {next(iter(wanted))}: its layout has changed; unpack it by hand")
        for target, part in parts.items():
            part.replace(target)
    for member, target in members.items():
        if problem := file_problem(member, target):
            raise FetchError(str(problem))


def _write(content: tarfile.TarFile, entry: tarfile.TarInfo, target: Path) -> Path:
    source = content.extractfile(entry)
    assert source is not None  # of a regular file
    part = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(target.parent).free
        if entry.size > free:
            raise OSError(errno.ENOSPC, f"{entry.size >> 20} MB are needed, {free >> 20} MB are free")
        file = part.open("wb")
    except OSError as error:
        raise FetchError(_unwritable(target, error)) from error
    try:
        with source, file:
            while block := source.read(BLOCK):
                try:
                    file.write(block)
                except OSError as error:
                    raise FetchError(_unwritable(target, error)) from error
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part


def _unwritable(target: Path, error: OSError) -> str:
    return f"{target} cannot be written: {error.strerror}; make room, or correct the folder's rights, and run it again"


def _remove(parts: Mapping[Path, Path]) -> None:
    for part in parts.values():
        part.unlink(missing_ok=True)
