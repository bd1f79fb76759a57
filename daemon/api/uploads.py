"""Uploads: bytes in chunks, resumed by whoever was interrupted, compared with their digest at the end."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daemon.api.messages import ApiError
from daemon.jobs import summary

CHUNK = 4 << 20
DATA = "data"
META = "upload.json"
ABANDONED_AFTER = 7 * 86400.0
"""Seconds after which an upload that nobody goes on with, and no job uses, is removed."""
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class UploadState:
    """How far an upload is; ``path`` is the file once it is complete."""

    id: str
    name: str
    size: int
    offset: int
    complete: bool
    path: Path

    def as_map(self) -> dict[str, Any]:
        return {"upload": self.id, "offset": self.offset, "complete": self.complete}


class Uploads:
    """All uploads of a daemon, in a folder that outlives it. Belongs to one thread.

    Args:
        folder: made if need be.
        most: largest upload in bytes.
        clock: seconds since 1970.
    """

    def __init__(self, folder: Path, most: int, *, clock: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._most = most
        self._clock = clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def begin(self, name: str, size: int, sha256: str) -> UploadState:
        """Begin an upload, or find out how far the same one is.

        Raises:
            ApiError: ``too-large``, ``bad-request`` or ``disk-full``.
        """
        if not re.fullmatch(r"[0-9a-f]{64}", sha256):
            raise ApiError("bad-request", "upload: sha256 must be 64 hexadecimal digits in lower case")
        if size > self._most:
            raise ApiError("too-large", f"{size} bytes, more than api.max_upload_mb = {self._most >> 20} allows")
        # The same content under two names is two uploads: a job's name comes from its file's.
        number = hashlib.sha256(f"{sha256}/{size}/{name}".encode()).hexdigest()[:32]
        folder = self._folder / number
        with _room(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not (folder / META).exists():
                free = shutil.disk_usage(folder).free
                if size > free:
                    raise ApiError("disk-full", f"{size} bytes to come, {free} free in {self._folder}")
                (folder / DATA).touch()
                meta = {"name": name, "size": size, "sha256": sha256, "complete": False}
                summary.write_json(folder / META, meta)
            os.utime(folder / DATA)  # somebody goes on with it: `sweep` must not take it from under them
        return self.state(number)

    def state(self, upload: str) -> UploadState:
        """How far an upload is.

        Raises:
            ApiError: ``no-such-upload``.
        """
        folder = self._folder / upload
        try:
            if not re.fullmatch(r"[0-9a-f]{32}", upload):
                raise FileNotFoundError
            meta = json.loads((folder / META).read_text())
            offset = (folder / DATA).stat().st_size
        except (OSError, ValueError) as error:
            raise ApiError("no-such-upload", f"no upload {upload!r}: begin it again") from error
        path = folder / DATA
        return UploadState(upload, meta["name"], meta["size"], offset, meta["complete"], path)

    def add(self, upload: str, offset: int, chunk: bytes) -> UploadState:
        """Add a chunk; one that does not begin where the file ends changes nothing.

        Raises:
            ApiError: ``no-such-upload``, ``too-large`` or ``disk-full``.
        """
        state = self.state(upload)
        if len(chunk) > CHUNK:
            raise ApiError("too-large", f"a chunk of {len(chunk)} bytes; at most {CHUNK}")
        if state.complete or offset != state.offset:
            return state
        if offset + len(chunk) > state.size:
            raise ApiError("too-large", f"{offset + len(chunk)} bytes, though {state.size} were announced")
        with _room(state.path), state.path.open("r+b") as file:
            file.seek(offset)
            try:
                file.write(chunk)
                file.flush()
            except OSError:
                os.ftruncate(file.fileno(), offset)
                raise
            if offset + len(chunk) == state.size:
                os.fsync(file.fileno())
        return self.state(upload)

    def used(self, state: UploadState) -> Path:
        """The file for a job to read. Raises `ApiError` ``not-ready`` where it is not complete."""
        if not state.complete:
            raise ApiError("not-ready", f"upload {state.id} has {state.offset} of {state.size} bytes")
        with _room(state.path):
            os.utime(state.path)
        return state.path

    def owns(self, source: str) -> bool:
        """Whether a job's source is one of these uploads."""
        return Path(source).parent.parent == self._folder

    def remove(self, source: str) -> None:
        """Remove an upload by its file's path, once no job needs it."""
        if self.owns(source):
            shutil.rmtree(Path(source).parent, ignore_errors=True)

    def sweep(self, in_use: Callable[[str], bool]) -> None:
        """Remove uploads that nobody has gone on with for days and no job uses."""
        for folder in self._folder.iterdir() if self._folder.is_dir() else ():
            data = folder / DATA
            try:
                touched = (data if data.exists() else folder).stat().st_mtime
            except OSError:
                continue  # it was just removed, or cannot be looked at
            if self._clock() - touched > ABANDONED_AFTER and not in_use(str(data)):
                shutil.rmtree(folder, ignore_errors=True)

    def finish(self, upload: str) -> UploadState:
        """Compare the digest of an upload whose bytes are all there. Takes seconds for gigabytes, and may be called
        from any thread.

        Raises:
            ApiError: ``upload-damaged``; the upload begins anew.
        """
        state = self.state(upload)
        if state.complete or state.offset != state.size:
            return state
        folder = state.path.parent
        meta = json.loads((folder / META).read_text())
        with state.path.open("rb") as file:
            digest = hashlib.sha256()
            while piece := file.read(1 << 20):
                digest.update(piece)
        if digest.hexdigest() != meta["sha256"]:
            os.truncate(state.path, 0)
            raise ApiError(
                "upload-damaged", f"the bytes of {state.name} do not have the digest announced: send them again",
                offset=0, upload=state.id,
            )  # fmt: skip
        with _room(folder):
            summary.write_json(folder / META, {**meta, "complete": True})
        return self.state(state.id)


class _room:  # noqa: N801  (used as a statement)
    """Turns a full disk into ``disk-full`` and any other refusal into a named error."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError):
            name = "disk-full" if error.errno in _NO_ROOM else "state-unwritable"
            raise ApiError(name, f"{self._path}: {error.strerror}: see daemon.state") from error
