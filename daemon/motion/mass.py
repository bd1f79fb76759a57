"""Where a body's mass is: the centre of mass of 14 segments.

Masses and centres after P. de Leva, "Adjustments to Zatsiorsky-Seluyanov's segment inertia parameters", Journal of
Biomechanics 29 (1996), table 4; the means of women and men, since nobody knows who is filmed. The trunk reaches from
the neck's joint (for the suprasternal notch) to the middle of the hips.
"""

from __future__ import annotations

from collections.abc import Sequence

from daemon.motion.clip import F64

HEAD, TRUNK = 0.0681, 0.43015
"""Of the body's mass."""
TRUNK_CENTRE = 0.43185
"""From the neck to the middle of the hips, as a part of the way."""
LIMBS: tuple[tuple[str, str, float, float], ...] = (
    ("shoulder", "elbow", 0.0263, 0.5763), ("elbow", "wrist", 0.0150, 0.45665), ("wrist", "hand", 0.00585, 0.76870),
    ("hip", "knee", 0.1447, 0.38535), ("knee", "ankle", 0.0457, 0.44375), ("ankle", "foot", 0.0133, 0.5),
)  # fmt: skip
"""From which joint to which, the mass of one side, and its centre as a part of the way. A foot's is taken midway
between the ankle and the toes' joint: de Leva measures it from the heel, which has no joint."""
HEAD_CENTRE = 1.0
"""The head's centre is that much beyond its joint as that is from the neck's."""


def centre_of_mass(joints: F64, names: Sequence[str]) -> F64:
    """The centre of mass (N, 3) of ``joints`` (N, J, 3), in their axes and unit.

    Raises:
        ValueError: the skeleton lacks a joint; names it.
    """

    def at(name: str) -> F64:
        if name not in names:
            raise ValueError(f"the skeleton has no joint {name!r}, which the centre of mass needs")
        return joints[:, names.index(name)]

    hips = (at("left_hip") + at("right_hip")) / 2
    total = TRUNK * (at("neck") + TRUNK_CENTRE * (hips - at("neck")))
    total = total + HEAD * (at("head") + HEAD_CENTRE * (at("head") - at("neck")))
    mass = TRUNK + HEAD
    for first, second, part, share in LIMBS:
        for side in ("left", "right"):
            a, b = at(f"{side}_{first}"), at(f"{side}_{second}")
            total = total + part * (a + share * (b - a))
            mass += part
    return total / mass
