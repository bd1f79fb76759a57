"""From a decoder's frame to pixels: BGR, upright, of square pixels, and of the video's own size."""

from __future__ import annotations

from typing import Any

import av

from stages.records import U8
from stages.source.base import Decoded
from stages.source.geometry import Geometry
from stages.source.tones import is_hdr, tone_mapped


def picture(number: int, time: float, frame: Any, geometry: Geometry, damaged: str | None = None) -> Decoded:
    """Frame ``number`` at ``time`` seconds as ``geometry`` has it."""

    def resize(width: int, height: int) -> U8:
        if is_hdr(frame):
            return tone_mapped(frame, width, height)
        if (width, height) == (frame.width, frame.height):
            image: U8 = frame.to_ndarray(format="bgr24")
        else:
            image = frame.reformat(width, height, "bgr24", interpolation="AREA").to_ndarray()
        return image

    try:
        image, size = geometry.picture((frame.width, frame.height), resize)
    except (av.FFmpegError, ValueError) as error:
        return Decoded(number, time, None, f"the pixel format {frame.format.name}: {error}")
    return Decoded(number, time, image, damaged=damaged, size=size)
