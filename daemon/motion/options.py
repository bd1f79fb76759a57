"""What can be chosen about the motion pass; the section ``motion`` of the configuration."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MotionOptions:
    """Who is the subject, and what is done to people's movement before it is exported."""

    subject: str = "auto"
    """Whom exports of one person are about: auto, a track's ID, x,y@frame (pixels), or all."""
    gap: float = 2.0
    """Longest time without sight of a person, in seconds, over which tracks are joined and frames filled."""
    smooth: bool = True
    """Whether people's movement is smoothed, without delay and the less the faster they move."""
    up: str = ""
    """Axis that points up in npz, z or y; empty: z, as in AMASS."""
    ground: bool = False
    """Whether people stand upright on the ground that their feet tell, standing feet held in place (bvh, npz, csv,
    angles, trc, mot)."""
    raw: bool = False
    """Export tracks as they were found: not joined, not filled, not smoothed."""
