"""Frames in shared memory: a fixed number of slots that stand for as long as any process maps them.

The ring is an anonymous memory file, known by its descriptor alone: there is no name that a dead run could
leave behind or a new run could mistake for its own, and the size of ``/dev/shm`` does not matter. All of it
is reserved when it is created, since a page that cannot be had later would kill the writer with SIGBUS.

One process writes (decode); any number read. Each slot has a generation that is odd while the slot is empty
or being written and even while a whole frame stands in it; it only grows, and lives in the shared memory, so
that it goes on growing when a new writer takes the place of a dead one. A reader holds (slot, generation):
if the generation is still the same after it has worked on the pixels, they were one frame's throughout.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.records import U8

MAGIC = 0x474E495244524157  # "WARDRING" as little-endian bytes
LAYOUT = 2
PAGE = 4096
CHANNELS = 3

_GEOMETRY = np.dtype([("magic", "<u8"), ("layout", "<u8"), ("slots", "<u8"), ("slot_bytes", "<u8")])
_SLOT = np.dtype(
    [
        ("generation", "<u8"), ("job", "<i8"), ("frame", "<i8"), ("time", "<f8"), ("width", "<u4"),
        ("height", "<u4"), ("note", "<u4", 3), ("unused", "V12"),
    ]
)  # fmt: skip
"""64 bytes, so that no two slots' headers share a cache line."""


class RingError(Exception):
    """The ring cannot be had, or an image does not fit it; says which setting changes that."""


class StaleSlot(RingError):  # noqa: N818 (not a fault: the frame has been committed or dropped meanwhile)
    """The slot no longer holds the frame of that generation."""


@dataclass(frozen=True)
class SlotEntry:
    """A whole frame that stands in the ring; ``time`` in seconds, ``width`` and ``height`` in pixels, ``note`` as
    it was written."""

    slot: int
    generation: int
    job: int
    frame: int
    time: float
    width: int
    height: int
    note: tuple[int, int, int] = (0, 0, 0)


class Ring:
    """Slots of ``slot_bytes`` bytes for frames in flight. Make one by `create` or `attach`."""

    def __init__(self, fd: int, slots: int, slot_bytes: int, *, owns_fd: bool) -> None:
        self.fd = fd
        self.slots = slots
        self.slot_bytes = slot_bytes
        self._owns_fd = owns_fd
        self._offset, self._stride, total = _layout(slots, slot_bytes)
        self._memory = mmap.mmap(fd, total)
        self._headers: npt.NDArray[np.void] = np.frombuffer(self._memory, _SLOT, slots, PAGE)
        self._generations: npt.NDArray[np.uint64] = self._headers["generation"]

    @classmethod
    def create(cls, slots: int, slot_bytes: int) -> Ring:
        """Make a ring and reserve all its memory. It is gone with the last process that has it open.

        The descriptor ``fd`` is inheritable; a child attaches by its number.

        Raises:
            RingError: there is not enough memory.
        """
        if slots < 1 or slot_bytes < CHANNELS:
            raise RingError(f"a ring of {slots} slots of {slot_bytes} bytes; see the settings {_SETTINGS}")
        total = _layout(slots, slot_bytes)[2]
        _check_available(slots, slot_bytes, total)
        fd = os.memfd_create("poseward-ring")
        try:
            os.posix_fallocate(fd, 0, total)
            os.set_inheritable(fd, True)
            ring = cls(fd, slots, slot_bytes, owns_fd=True)
        except (OSError, OverflowError) as error:
            os.close(fd)
            code = error.errno if isinstance(error, OSError) else None
            if code not in (errno.ENOMEM, errno.ENOSPC, errno.EFBIG, errno.EINVAL, None):
                raise
            raise RingError(_too_large(slots, slot_bytes, total, str(error))) from error
        ring._generations[:] = 1
        geometry = ring._geometry()
        geometry["layout"], geometry["slots"], geometry["slot_bytes"] = LAYOUT, slots, slot_bytes
        geometry["magic"] = MAGIC
        return ring

    @classmethod
    def attach(cls, fd: int) -> Ring:
        """Map the ring that another process created and this one inherited as descriptor ``fd``.

        Raises:
            RingError: ``fd`` is not open here, or is not a ring of this version.
        """
        try:
            size = os.fstat(fd).st_size
            head = os.pread(fd, _GEOMETRY.itemsize, 0)
        except OSError as error:
            raise RingError(f"descriptor {fd} is not a frame ring: {error.strerror}") from error
        if len(head) < _GEOMETRY.itemsize:
            raise RingError(f"descriptor {fd} is not a frame ring: it holds {size} bytes")
        geometry = np.frombuffer(head, _GEOMETRY)[0]
        slots, slot_bytes = int(geometry["slots"]), int(geometry["slot_bytes"])
        if geometry["magic"] != MAGIC or geometry["layout"] != LAYOUT:
            raise RingError(f"descriptor {fd} is not a frame ring of layout {LAYOUT}")
        if slots < 1 or slot_bytes < CHANNELS or _layout(slots, slot_bytes)[2] != size:
            raise RingError(f"frame ring of {slots} slots of {slot_bytes} bytes in a file of {size} bytes")
        return cls(fd, slots, slot_bytes, owns_fd=False)

    def write(
        self,
        slot: int,
        job: int,
        frame: int,
        time: float,
        image: npt.NDArray[Any],
        note: tuple[int, int, int] = (0, 0, 0),
    ) -> int:
        """Copy ``image`` (H, W, 3) uint8 into ``slot`` and return its generation. ``note`` are three numbers from 0 for
        whoever finds the frame there.

        A writer that dies meanwhile leaves the slot empty.

        Raises:
            RingError: the image is of another kind or larger than a slot.
        """
        self._check_slot(slot)
        if image.ndim != 3 or image.shape[2] != CHANNELS or image.dtype != np.uint8:
            raise RingError(f"a frame must be (H, W, 3) uint8, not {image.shape} {image.dtype}")
        if image.nbytes > self.slot_bytes:
            raise RingError(
                f"frame {frame} of {image.shape[1]}x{image.shape[0]} needs {image.nbytes} bytes, but a slot"
                f" has {self.slot_bytes}; see the settings {_SETTINGS}"
            )
        header = self._headers[slot]
        writing = int(header["generation"]) | 1
        header["generation"] = writing
        header["job"], header["frame"], header["time"] = job, frame, time
        header["height"], header["width"] = image.shape[:2]
        header["note"] = note
        np.copyto(self._pixels(slot, image.shape[0], image.shape[1]), image)
        header["generation"] = writing + 1
        return writing + 1

    def view(self, slot: int, generation: int) -> U8:
        """The frame in ``slot`` as a read-only (H, W, 3) uint8 array, without copying.

        The pixels change when the slot is written again: `check` afterwards that they have not.

        Raises:
            StaleSlot: the slot holds another generation.
        """
        if not self.check(slot, generation):
            raise StaleSlot(f"slot {slot} no longer holds generation {generation}")
        header = self._headers[slot]
        height, width = int(header["height"]), int(header["width"])
        if height * width * CHANNELS > self.slot_bytes or not self.check(slot, generation):
            raise StaleSlot(f"slot {slot} no longer holds generation {generation}")
        pixels = self._pixels(slot, height, width)
        pixels.flags.writeable = False
        return pixels

    def check(self, slot: int, generation: int) -> bool:
        """Whether ``slot`` still holds the whole frame of that generation."""
        return 0 <= slot < self.slots and generation % 2 == 0 and int(self._generations[slot]) == generation

    def entries(self) -> list[SlotEntry]:
        """All whole frames that stand in the ring, by slot."""
        return [
            SlotEntry(
                slot, int(header["generation"]), int(header["job"]), int(header["frame"]),
                float(header["time"]), int(header["width"]), int(header["height"]),
                (int(header["note"][0]), int(header["note"][1]), int(header["note"][2])),
            )
            for slot, header in enumerate(self._headers)
            if int(header["generation"]) % 2 == 0
        ]  # fmt: skip

    def clear(self, slot: int) -> None:
        """Empty ``slot``: what was held of it becomes stale."""
        self._check_slot(slot)
        self._generations[slot] |= np.uint64(1)

    def close(self) -> None:
        """Let go of the ring; a view that someone still holds keeps its memory mapped until it goes too."""
        del self._headers, self._generations
        with contextlib.suppress(BufferError):
            self._memory.close()
        if self._owns_fd:
            os.close(self.fd)
            self._owns_fd = False

    def _pixels(self, slot: int, height: int, width: int) -> U8:
        start = self._offset + slot * self._stride
        flat = np.frombuffer(self._memory, np.uint8, height * width * CHANNELS, start)
        return flat.reshape(height, width, CHANNELS)

    def _geometry(self) -> Any:
        return np.frombuffer(self._memory, _GEOMETRY, 1)[0]

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < self.slots:
            raise RingError(f"slot {slot} of a ring of {self.slots}")


_SETTINGS = "stages.slots and stages.ring_mb"


def _layout(slots: int, slot_bytes: int) -> tuple[int, int, int]:
    """Offset of the first slot's pixels, bytes from one slot to the next, and the file's size."""
    offset = PAGE + _pages(slots * _SLOT.itemsize)
    stride = _pages(slot_bytes)
    return offset, stride, offset + slots * stride


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def _check_available(slots: int, slot_bytes: int, total: int) -> None:
    """Refuse early what the kernel would grant and then take a process's life for (overcommitted memory)."""
    available = _available_bytes()
    if available is not None and total > available:
        raise RingError(_too_large(slots, slot_bytes, total, f"{available >> 20} MB are available"))


def _available_bytes() -> int | None:
    bounds = []
    with contextlib.suppress(OSError, KeyError, ValueError):
        bounds.append(_table("/proc/meminfo")["MemAvailable:"] * 1024)
    # A container's own limit, if it is smaller, is the one that kills. Its file cache makes room when asked.
    with contextlib.suppress(OSError, KeyError, ValueError):
        group = Path("/sys/fs/cgroup")
        used, table = int((group / "memory.current").read_text()), _table(group / "memory.stat")
        used -= table["active_file"] + table["inactive_file"]
        bounds.append(max(int((group / "memory.max").read_text()) - used, 0))
    return min(bounds, default=None)


def _table(path: str | Path) -> dict[str, int]:
    rows = (line.split() for line in Path(path).read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1}


def _too_large(slots: int, slot_bytes: int, total: int, why: str) -> str:
    return (
        f"no memory for the frame ring: {slots} slots of {slot_bytes / 1e6:.1f} MB are {total >> 20} MB"
        f" ({why}); lower the settings {_SETTINGS}, or stages.max_pixels if all videos are smaller"
    )
