"""COCO's run-length encoding of binary masks, as text.

The format is that of the COCO API (Lin et al. 2014; ``maskApi.c``): runs of zeros and ones in column-major
order, beginning with zeros; each run, from the fourth on less the run two before it, is written in groups of
five bits, lowest first, with a sixth bit for "more follows", offset by 48 into printable characters. The text
equals what pycocotools writes, so that PHALP's results and their readers can share it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def encode(mask: npt.NDArray[np.generic]) -> str:
    """The ``counts`` text of ``mask`` (H, W), where anything but zero is foreground."""
    solid = np.asarray(mask, bool)
    height, total = solid.shape[0], solid.size
    if not total:
        return ""
    # People cover few of a frame's columns: only those are looked through pixel by pixel.
    columns = np.flatnonzero(solid.any(axis=0))
    bounds = [np.array([0])]
    if len(columns):
        first, last = int(columns[0]), int(columns[-1]) + 1
        flat = np.concatenate(([False], solid[:, first:last].ravel(order="F"), [False]))
        bounds.append(np.flatnonzero(flat[1:] != flat[:-1]) + first * height)
    runs = np.diff(np.concatenate((*bounds, [total])))
    if len(runs) > 1 and runs[-1] == 0:
        runs = runs[:-1]
    values = runs.copy()
    values[3:] -= runs[1:-2]
    return _write(values)


def decode(counts: str | bytes, height: int, width: int) -> Mask:
    """The mask (H, W) that ``counts`` describes.

    Raises:
        ValueError: the runs do not fill exactly height x width pixels, or a character is out of range.
    """
    values = _read(counts.encode("ascii") if isinstance(counts, str) else bytes(counts))
    # Runs alternate: undoing the differences is a running sum over every second run, from the fourth on.
    runs = np.asarray(values, np.int64)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise ValueError(f"mask of {height}x{width} pixels: its runs cover {int(runs.sum())} pixels")
    colours = np.arange(len(runs)) % 2 == 1
    return np.repeat(colours, runs).reshape((height, width), order="F")


def _write(values: npt.NDArray[np.int64]) -> str:
    text = bytearray()
    for value in values.tolist():
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != -1 if group & 0x10 else value != 0
            text.append((group | 0x20 if more else group) + 48)
    return text.decode("ascii")


def _read(text: bytes) -> list[int]:
    values: list[int] = []
    value = shift = 0
    for character in text:
        group = character - 48
        if not 0 <= group < 64:
            raise ValueError(f"mask: character {character} is outside the encoding's alphabet")
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            if group & 0x10:
                value |= -1 << shift
            values.append(value)
            value = shift = 0
    if shift:
        raise ValueError("mask: the encoding ends in the middle of a run")
    return values
