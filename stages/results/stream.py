"""``frames.msgpack``: the results of one job, written and read as a stream.

A header map, then one record map a frame, in order (docs/results.md describes every field).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgpack
import numpy as np

from stages.records import F32, Failure, FrameRecord, Header, Track
from stages.transport.wire import WireError, pack_value, unpack_value

VERSION = 1
_CHUNK = 1 << 20
_LARGEST_RECORD = 1 << 28
_FLUSH_AT = 1 << 18
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_SHAPES: dict[str, tuple[int | None, ...]] = {
    "box": (4,), "camera": (3,), "pose": (None, 3, 3), "betas": (None,), "joints_3d": (None, 3),
    "joints_2d": (None, 2), "vertices": (None, 3),
}  # fmt: skip
"""Arrays of a track; None is a size that the backend decides."""


class ResultsError(Exception):
    """A results file that cannot be read or written; names the file and what is wrong."""


class ResultsWriteError(ResultsError, OSError):
    """The disk refuses what is to be written."""


class ResultWriter:
    """Appends records to a growing results file. Equal records give equal bytes."""

    def __init__(self, path: Path, file: BinaryIO, offset: int) -> None:
        self._path = path
        self._file = file
        self._flushed = offset
        self._pending = bytearray()

    @classmethod
    def create(cls, path: Path, header: Header) -> ResultWriter:
        """Begin a new file, replacing one that is there.

        Raises:
            OSError: it cannot be created.
        """
        writer = cls(path, path.open("wb", buffering=0), 0)
        writer._write({"poseward": VERSION, **encode_header(header)})
        return writer

    @classmethod
    def resume(cls, path: Path, offset: int) -> ResultWriter:
        """Go on with a file at ``offset`` bytes; what stands behind that is cut off.

        Raises:
            ResultsError: the file is shorter than that.
            OSError: it cannot be opened.
        """
        file = path.open("r+b", buffering=0)
        size = os.fstat(file.fileno()).st_size
        if size < offset:
            file.close()
            raise ResultsError(f"{path}: {size} bytes, though {offset} had been written")
        file.truncate(offset)
        file.seek(offset)
        return cls(path, file, offset)

    @property
    def offset(self) -> int:
        """Bytes written; they have been handed to the kernel when this returns."""
        self.flush()
        return self._flushed

    def append(self, record: FrameRecord) -> None:
        """Add the next frame's record.

        Raises:
            ResultsWriteError: no room on the disk, or another refusal; `resume` goes on at any earlier ``offset``.
        """
        self._write(encode_record(record))

    def flush(self) -> None:
        """Hand over what is buffered, for those who read while the file grows; raises as `append` does."""
        # What the disk refused is dropped, lest closing tries it again: whoever goes on does so by `resume`.
        data, self._pending = bytes(self._pending), bytearray()
        try:
            while data:
                count = self._file.write(data)
                self._flushed += count
                data = data[count:]
        except OSError as error:
            raise self._refused(error) from error

    def sync(self) -> None:
        """Force everything to the disk, against the loss of power; raises as `append` does."""
        self.flush()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._refused(error) from error

    def close(self) -> None:
        """Sync and close. May be called twice."""
        if not self._file.closed:
            try:
                self.sync()
            finally:
                self._file.close()

    def _refused(self, error: OSError) -> ResultsWriteError:
        free = ""
        if error.errno in _NO_ROOM:
            free = "; make room and submit the job again, it continues from the last snapshot"
        return ResultsWriteError(f"{self._path}: cannot write results: {error.strerror}{free}")

    def _write(self, value: dict[str, Any]) -> None:
        self._pending += pack_value(value)
        if len(self._pending) >= _FLUSH_AT:
            self.flush()


class Results:
    """An open results file: its header, and its records by iteration, with constant memory.

    Records come in frame order. Each iteration begins at the first one; one that follows a growing file ends
    at the last whole record, and the next iteration goes on from there.
    """

    def __init__(self, path: Path, file: BinaryIO, follow: bool) -> None:
        self.path = path
        self._file = file
        self._follow = follow
        self._position, self._last = 0, -1
        header = next(self._maps(0, -1), None)
        if header is None:
            raise ResultsError(f"{path}: not a results file, or cut short in its header")
        self.header = _checked_header(path, header[0])
        self._position = self.start = header[1]
        """Offset of the first record."""

    def __enter__(self) -> Results:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[FrameRecord]:
        for record, _ in self.with_bytes():
            yield record

    def with_bytes(self) -> Iterator[tuple[FrameRecord, bytes]]:
        """Iterate as usual, over each record and the bytes that it was read from."""
        last = self._last
        for value, position, data in self._maps(self._position, last):
            try:
                record = decode_record(value)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError, IndexError) as error:
                raise ResultsError(f"{self.path}: damaged {_after(last)}: {_reason(error)}") from error
            last = record.frame
            if self._follow:
                self._position, self._last = position, last
            yield record, data

    def go_on(self, position: int, last: int) -> None:
        """Have the next iteration begin at byte ``position``, behind frame ``last``; for a growing file."""
        self._position, self._last = position, last

    def read(self, begin: int, end: int) -> bytes:
        """The file's own bytes from ``begin`` to ``end``, fewer where it is shorter."""
        return os.pread(self._file.fileno(), end - begin, begin)

    def close(self) -> None:
        self._file.close()

    def is_of(self, path: Path) -> bool:
        """Whether this is still the file of that name, and no shorter than what has been read.

        Raises:
            OSError: there is none.
        """
        mine, now = os.fstat(self._file.fileno()), os.stat(path)
        return os.path.samestat(mine, now) and now.st_size >= self._position

    def _maps(self, start: int, last: int) -> Iterator[tuple[Any, int, bytes]]:
        """The maps from byte ``start`` on, each with the offset behind it and its bytes; ``last`` is the frame before
        them."""
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=_LARGEST_RECORD)
        pending = bytearray()
        read = consumed = start
        # By position, not by seeking: several iterations may be under way at once.
        while chunk := os.pread(self._file.fileno(), _CHUNK, read):
            read += len(chunk)
            pending += chunk
            try:
                unpacker.feed(chunk)
            except msgpack.BufferFull as error:
                raise ResultsError(f"{self.path}: damaged {_after(last)}: a record beyond 256 MB") from error
            while True:
                try:
                    unpacker.skip()
                except msgpack.OutOfData:
                    break
                except (ValueError, msgpack.UnpackException) as error:
                    raise ResultsError(f"{self.path}: not a results file {_after(last)}: {error}") from error
                # Not from where this try began: one that ran out of data may have moved on already.
                length = start + unpacker.tell() - consumed
                data = bytes(pending[:length])
                del pending[:length]
                consumed += length
                try:
                    value = unpack_value(data)
                except WireError as error:
                    raise ResultsError(f"{self.path}: damaged {_after(last)}: {error}") from error
                if isinstance(value, dict) and type(value.get("frame")) is int:
                    last = value["frame"]
                yield value, consumed, data
        if pending and not self._follow and consumed > 0:
            raise ResultsError(f"{self.path}: cut short {_after(last)}")


def read_results(path: str | Path, follow: bool = False) -> Results:
    """Open a ``frames.msgpack``, or the results folder that holds one.

    With ``follow`` the file may be one that is still being written (see `Results`); without, one that ends in
    the middle of a record is an error.

    Raises:
        ResultsError: there is none, it is something else, or of another version. Iterating raises it too:
            cut short or damaged after which frame.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "frames.msgpack"
    try:
        file = path.open("rb", buffering=0)
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from error
    try:
        return Results(path, file, follow)
    except BaseException:
        file.close()
        raise


def _after(frame: int) -> str:
    return f"after frame {frame}" if frame >= 0 else "before the first frame"


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)


def encode_record(record: FrameRecord) -> dict[str, Any]:
    """A record as the map that stands in the file."""
    value: dict[str, Any] = {
        "frame": record.frame,
        "time": float(record.time),
        # A failed frame has no result, even where the tracker knows who must have been there.
        "tracks": [] if record.failed else [_encode_track(track) for track in record.tracks],
    }
    if record.failed is not None:
        value["failed"] = {"stage": record.failed.stage, "reason": record.failed.reason}
    if record.damaged is not None:
        value["damaged"] = record.damaged
    if record.source is not None:
        value["source"] = record.source
    if record.size is not None:
        value["size"] = list(record.size)
    return value


def decode_record(value: Mapping[str, Any]) -> FrameRecord:
    """The record of a map; arrays are read-only views.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or is not what it must be.
    """
    failed, size = value.get("failed"), value.get("size")
    return FrameRecord(
        int(value["frame"]),
        float(value["time"]),
        [_decode_track(track) for track in value["tracks"]],
        Failure(str(failed["stage"]), str(failed["reason"])) if failed else None,
        damaged=_text(value.get("damaged")),
        source=_text(value.get("source")),
        size=(int(size[0]), int(size[1])) if size else None,
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


def _decode_track(value: Mapping[str, Any]) -> Track:
    return Track(
        id=int(value["id"]),
        box=_array(value, "box"),
        confidence=float(value["confidence"]),
        camera=_array(value, "camera"),
        pose=_array(value, "pose"),
        betas=_array(value, "betas"),
        joints_3d=_array(value, "joints_3d"),
        joints_2d=_array(value, "joints_2d"),
        vertices=_array(value, "vertices") if "vertices" in value else None,
        detected=bool(value.get("detected", True)),
        extra=value.get("extra", {}),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _array(value: Mapping[str, Any], name: str) -> F32:
    array, shape = value[name], _SHAPES[name]
    if not isinstance(array, np.ndarray) or array.dtype != np.float32:
        raise ValueError(f"{name} is not a float32 array")
    if len(array.shape) != len(shape) or any(b not in (None, a) for a, b in zip(array.shape, shape, strict=True)):
        raise ValueError(f"{name} has shape {array.shape}")
    return array


def _f32(array: Any) -> F32:
    return np.ascontiguousarray(array, dtype=np.float32)


def encode_header(header: Header) -> dict[str, Any]:
    """The header as a map, as it stands in the file but for the layout's version."""
    return {
        "width": header.width,
        "height": header.height,
        "fps": float(header.fps),
        "rate": list(header.rate),
        "variable": header.variable,
        "focal": float(header.focal),
        "principal": [float(part) for part in header.principal],
        "stream": header.stream,
        "backend": header.backend,
        "skeleton": {"names": list(header.joint_names), "parents": list(header.joint_parents)},
        "faces": np.ascontiguousarray(header.faces, dtype=np.int32),
    }


def decode_header(value: Mapping[str, Any]) -> Header:
    """The header of a map. What earlier versions did not write is by their convention.

    Raises:
        KeyError, TypeError, ValueError: a field is missing or is not what it must be.
    """
    skeleton, faces = value["skeleton"], value["faces"]
    if not isinstance(faces, np.ndarray) or faces.dtype != np.int32 or faces.shape[1:] != (3,):
        raise ValueError("faces is not an int32 array of shape (F, 3)")
    rate, principal, stream = value.get("rate", (0, 0)), value.get("principal", (0.0, 0.0)), value.get("stream")
    return Header(
        int(value["width"]), int(value["height"]), float(value["fps"]), str(value["backend"]),
        tuple(str(name) for name in skeleton["names"]), tuple(int(parent) for parent in skeleton["parents"]),
        faces, (int(rate[0]), int(rate[1])), bool(value.get("variable", False)), float(value.get("focal", 0.0)),
        (float(principal[0]), float(principal[1])), None if stream is None else int(stream),
    )  # fmt: skip


def _checked_header(path: Path, value: Any) -> Header:
    if not isinstance(value, dict) or "poseward" not in value:
        raise ResultsError(f"{path}: not a results file")
    if value["poseward"] != VERSION:
        raise ResultsError(f"{path}: version {value['poseward']} of the format; this program reads {VERSION}")
    try:
        return decode_header(value)
    except (KeyError, TypeError, ValueError, OverflowError, IndexError) as error:
        raise ResultsError(f"{path}: damaged header: {_reason(error)}") from error
