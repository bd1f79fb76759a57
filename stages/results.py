"""``frames.msgpack``: the results of one job, written and read as a stream.

A header map, then one record map a frame, in order (docs/results.md describes every field). Reading is one
function::

    from stages.results import read_results

    with read_results("results/clip/frames.msgpack") as results:
        print(results.header.width, results.header.fps)
        for record in results:
            for track in record.tracks:
                print(record.frame, track.id, track.camera, track.vertices)
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgpack
import numpy as np

from stages.records import Failure, FrameRecord, Header, Track
from stages.wire import WireError, pack_value, unpack_value

VERSION = 1
_CHUNK = 1 << 20
_LARGEST_RECORD = 1 << 30
_FLUSH_AT = 1 << 18


class ResultsError(Exception):
    """A results file that cannot be read; names the file and what is wrong."""


class ResultWriter:
    """Appends records to a growing results file. Equal records give equal bytes."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self._written = offset

    @classmethod
    def create(cls, path: Path, header: Header) -> ResultWriter:
        """Begin a new file, replacing one that is there."""
        writer = cls(path.open("wb", buffering=_FLUSH_AT), 0)
        writer._write(_encode_header(header))
        return writer

    @classmethod
    def resume(cls, path: Path, offset: int) -> ResultWriter:
        """Go on with a file at ``offset`` bytes; what stands behind that is cut off.

        Raises:
            ResultsError: the file is shorter than that.
        """
        file = path.open("r+b", buffering=_FLUSH_AT)
        size = os.fstat(file.fileno()).st_size
        if size < offset:
            file.close()
            raise ResultsError(f"{path}: {size} bytes, though {offset} had been written")
        file.truncate(offset)
        file.seek(offset)
        return cls(file, offset)

    @property
    def offset(self) -> int:
        """Bytes written; they have been handed to the kernel when this returns."""
        self._file.flush()
        return self._written

    def append(self, record: FrameRecord) -> None:
        """Add the next frame's record."""
        self._write(encode_record(record))

    def flush(self) -> None:
        """Hand over what is buffered, for those who read while the file grows."""
        self._file.flush()

    def close(self) -> None:
        """Flush to the disk and close. May be called twice."""
        if not self._file.closed:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def _write(self, value: dict[str, Any]) -> None:
        data = pack_value(value)
        self._file.write(data)
        self._written += len(data)


class Results:
    """An open results file: its header, and its records by iteration, with constant memory.

    Records come in frame order. A file that is still being written ends, for the reader, at its last whole record.
    """

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self._file = file
        self._last = -1
        self._start = 0
        first = next(self._maps(0), None)
        if first is None:
            raise ResultsError(f"{path}: not a results file, or cut short in its header")
        header, self._start = first
        self.header = _decode_header(path, header)

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FrameRecord]:
        for value, _ in self._maps(self._start):
            try:
                yield decode_record(value)
            except (KeyError, TypeError, ValueError) as error:
                raise ResultsError(f"{self.path}: bad record after frame {self._last}: {error!r}") from error
            self._last = int(value["frame"])

    def close(self) -> None:
        self._file.close()

    def _maps(self, start: int) -> Iterator[tuple[Any, int]]:
        """The maps from byte ``start`` on, each with the offset behind it."""
        self._file.seek(start)
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=_LARGEST_RECORD)
        pending = bytearray()
        consumed = start
        while chunk := self._file.read(_CHUNK):
            unpacker.feed(chunk)
            pending += chunk
            while True:
                try:
                    unpacker.skip()
                except msgpack.OutOfData:
                    break
                except (ValueError, msgpack.UnpackException) as error:
                    raise ResultsError(
                        f"{self.path}: not a results file after frame {self._last}: {error}"
                    ) from error
                # Not from where this try began: one that ran out of data may have moved on already.
                length = start + unpacker.tell() - consumed
                data = bytes(pending[:length])
                del pending[:length]
                consumed += length
                try:
                    yield unpack_value(data), consumed
                except WireError as error:
                    raise ResultsError(f"{self.path}: damaged after frame {self._last}: {error}") from error


def read_results(path: str | Path) -> Results:
    """Open a ``frames.msgpack``, or the results folder that holds one.

    Raises:
        ResultsError: there is none, it is something else, or of another version.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "frames.msgpack"
    try:
        file = path.open("rb", buffering=io.DEFAULT_BUFFER_SIZE)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    try:
        return Results(path, file)
    except BaseException:
        file.close()
        raise


def encode_record(record: FrameRecord) -> dict[str, Any]:
    """A record as the map that stands in the file."""
    value: dict[str, Any] = {
        "frame": record.frame,
        "time": float(record.time),
        "tracks": [_encode_track(track) for track in record.tracks],
    }
    if record.failed is not None:
        value["failed"] = {"stage": record.failed.stage, "reason": record.failed.reason}
    return value


def decode_record(value: dict[str, Any]) -> FrameRecord:
    """The record of a map; arrays are read-only views."""
    failed = value.get("failed")
    return FrameRecord(
        int(value["frame"]),
        float(value["time"]),
        [_decode_track(track) for track in value["tracks"]],
        Failure(failed["stage"], failed["reason"]) if failed else None,
    )


def _encode_track(track: Track) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": track.id,
        "box": _f32(track.box),
        "confidence": float(track.confidence),
        "camera": _f32(track.camera),
        "pose": _f32(track.pose),
        "betas": _f32(track.betas),
        "joints_3d": _f32(track.joints_3d),
        "joints_2d": _f32(track.joints_2d),
    }
    if track.vertices is not None:
        value["vertices"] = _f32(track.vertices)
    if not track.detected:
        value["detected"] = False
    if track.extra:
        value["extra"] = track.extra
    return value


def _decode_track(value: dict[str, Any]) -> Track:
    return Track(
        id=int(value["id"]),
        box=value["box"],
        confidence=float(value["confidence"]),
        camera=value["camera"],
        pose=value["pose"],
        betas=value["betas"],
        joints_3d=value["joints_3d"],
        joints_2d=value["joints_2d"],
        vertices=value.get("vertices"),
        detected=bool(value.get("detected", True)),
        extra=value.get("extra", {}),
    )


def _f32(array: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.ascontiguousarray(array, dtype=np.float32)


def _encode_header(header: Header) -> dict[str, Any]:
    return {
        "poseward": VERSION,
        "width": header.width,
        "height": header.height,
        "fps": float(header.fps),
        "backend": header.backend,
        "skeleton": {"names": list(header.joint_names), "parents": list(header.joint_parents)},
        "faces": np.ascontiguousarray(header.faces, dtype=np.int32),
    }


def _decode_header(path: Path, value: Any) -> Header:
    if not isinstance(value, dict) or "poseward" not in value:
        raise ResultsError(f"{path}: not a results file")
    if value["poseward"] != VERSION:
        raise ResultsError(f"{path}: version {value['poseward']} of the format; this program reads {VERSION}")
    skeleton = value["skeleton"]
    return Header(
        int(value["width"]), int(value["height"]), float(value["fps"]), str(value["backend"]),
        tuple(skeleton["names"]), tuple(skeleton["parents"]), value["faces"],
    )  # fmt: skip
