"""From a decoder's frame to pixels: BGR, upright, and of the video's own size."""

from __future__ import annotations

from typing import Any

import av
import cv2
import numpy as np

from stages.records import U8
from stages.source.base import Decoded


def picture(number: int, time: float, frame: Any, shape: tuple[int, int], rotation: int) -> Decoded:
    """Frame ``number`` at ``time`` seconds, turned by ``rotation`` degrees counter-clockwise, a multiple of 90.

    ``shape`` is the height and width, before turning, that the video's frames have.
    """
    height, width = shape
    if (frame.height, frame.width) != shape:
        size = f"{frame.width}x{frame.height} in a video of {width}x{height}"
        return Decoded(number, time, None, f"the frame is {size}; frames that change size are left out")
    try:
        image = frame.to_ndarray(format="bgr24")
    except (av.FFmpegError, ValueError) as error:
        return Decoded(number, time, None, f"the pixel format {frame.format.name}: {error}")
    return Decoded(number, time, _upright(image, rotation))


def _upright(image: U8, rotation: int) -> U8:
    turn = _TURNS.get(rotation % 360)
    return image if turn is None else np.asarray(cv2.rotate(image, turn), np.uint8)


_TURNS = {90: cv2.ROTATE_90_COUNTERCLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_CLOCKWISE}
