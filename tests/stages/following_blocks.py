"""`tests.stages.blocks` whose bodies depend on every frame before: each carries a digest of what came before it.

One frame left out, doubled, out of order or worked on with the state of another changes every body after it, and so
every record.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from stages.records import Detections, Frame, People
from tests.stages.blocks import BACKEND as QUICK
from tests.stages.blocks import Cubes


class Followed(Cubes):
    """Tells by its betas which pictures it has seen, and in which order."""

    def follow(self, frame: Frame, found: Detections, state: bytes) -> tuple[People, bytes]:
        (people,) = self.regress([frame], [found])
        after = hashlib.sha256(state + frame.index.to_bytes(4, "little") + frame.image.tobytes()).digest()
        people.betas[:, 3:] = np.frombuffer(after[:7], np.uint8)
        return people, after


BACKEND = replace(QUICK, name="tests.stages.following_blocks", follower=Followed, group=20)
