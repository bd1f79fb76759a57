"""What one person's landmarks are at one moment, from what was seen shortly before and after it.

Each landmark moves along a cubic B-spline that is fitted to its sightings by penalised least squares (P-splines, Eilers
and Marx 1996), robustly: a sighting far from where its neighbours lead counts little (Geman and McClure's weights,
from a wide scale to a narrow one), however sure the network was. Splines follow fast limbs and pass over what lasts
for a frame or two; where nothing is seen they go on from one side to the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

REACH = 0.4
"""Seconds before and after a moment that count for it."""
KNOTS = 1 / 12
"""Distance of the splines' knots in seconds: motion of up to six periods a second is followed."""
STIFFNESS = 0.05
"""Weight of a spline's bend (second difference of its coefficients) against all sightings of one knot's length."""
PLACE_STIFFNESS = 0.002
"""The same for where the person is in the picture: that follows the camera's jerks, too."""
ROUNDS = 4
"""Rounds of weighing."""
ODD_METRES = 0.08
"""Distance from the spline at which a sighting counts a quarter."""
ODD_SHARE = 0.1
"""The same in the image, as a share of the person's size (root mean square distance from the hips)."""
GUESS = 0.05
"""Weight of a landmark that the network does not see at all."""
SWAP_JUMP = 0.08
"""Metres that a landmark moves from frame to frame without being taken for its counterpart."""
SWAP_PRICE = 0.3
"""What each frame costs in which left and right are taken as swapped."""

MIRRORED = np.array([0, 4, 5, 6, 1, 2, 3, 8, 7, 10, 9, *(i + 1 if i % 2 else i - 1 for i in range(11, 33))])
"""The counterpart of each landmark on the body's other side (BlazePose's numbers)."""
SIDES = (np.arange(33), np.arange(25, 33), np.arange(13, 23))
"""What may be swapped at once: everything, the legs, the arms."""
TORSO = np.array([11, 12, 23, 24])


class Sighting(NamedTuple):
    """One person at one moment: ``image`` (33, 2) pixels, ``world`` (33, 3) metres, ``visibility`` (33,) in [0, 1]."""

    image: F64
    world: F64
    visibility: F64

    @classmethod
    def of(cls, image: npt.NDArray[Any], world: npt.NDArray[Any], visibility: npt.NDArray[Any]) -> Sighting:
        """From a network's outputs; what is no number becomes 0."""
        return cls(
            np.nan_to_num(np.asarray(image, np.float64)[:, :2]),
            np.nan_to_num(np.asarray(world, np.float64)),
            np.clip(np.nan_to_num(np.asarray(visibility, np.float64)), 0.0, 1.0),
        )


def steady(times: Sequence[float], sightings: Sequence[Sighting]) -> Sighting:
    """The person at time 0.

    Args:
        times: seconds from the moment that is asked for, ascending; those beyond `REACH` are of no use.
        sightings: what was seen at them; at least one.
    """
    moments = np.asarray(times, np.float64)
    image = np.stack([s.image for s in sightings])
    world = np.stack([s.world for s in sightings])
    visibility = np.stack([s.visibility for s in sightings])
    for part in SIDES:
        _put_right(image, world, visibility, part)
    weights = GUESS + visibility**2
    # About the body and where the body is: a camera that is carried moves the one and not the other.
    middle = image[:, TORSO].mean(axis=1, keepdims=True)
    hips = image[:, 23:25].mean(axis=1, keepdims=True)
    size = float(np.median(np.sqrt(((image[:, 11:] - hips) ** 2).sum(axis=2).mean(axis=1))))
    odd = max(ODD_SHARE * size, 1.0)
    at = np.array([np.clip(0.0, moments[0], moments[-1])])
    place = _spline(moments, middle / odd, np.ones((len(moments), 1)), at, PLACE_STIFFNESS)
    both = np.concatenate([(image - middle) / odd, world / ODD_METRES], axis=2)
    around = _spline(moments, both, weights, at, STIFFNESS)
    near = np.exp(-0.5 * (moments / KNOTS) ** 2) + 1e-9
    return Sighting((around[:, :2] + place) * odd, around[:, 2:] * ODD_METRES, near @ visibility / near.sum())


def _spline(moments: F64, values: F64, weights: F64, at: F64, stiffness: float) -> F64:
    """Values (K, D) at ``at`` (1,), of ``values`` (N, K, D) with ``weights`` (N, K); a value 1 off is odd."""
    basis = _basis(moments)
    count = basis.shape[1]
    products = (basis[:, :, None] * basis[:, None]).reshape(len(moments), -1)
    moved = basis.T[None]
    columns = values.transpose(1, 0, 2)
    bend = np.diff(np.eye(count), 2, axis=0)
    penalty = stiffness * len(moments) * KNOTS / (2 * REACH) * (bend.T @ bend) + 1e-6 * np.eye(count)
    trust = np.ones_like(weights)
    scale = 4.0
    for _ in range(ROUNDS):
        worth = weights * trust
        square = (worth.T @ products).reshape(-1, count, count) + penalty
        found = np.linalg.solve(square, moved @ (columns * worth.T[:, :, None]))
        apart = ((columns - basis[None] @ found) ** 2).sum(axis=2).T
        trust = 1 / (1 + apart / scale**2) ** 2
        scale = max(1.0, scale / 2)
    result: F64 = (_basis(at)[None] @ found)[:, 0]
    return result


def _basis(moments: F64) -> F64:
    """Cubic B-splines (N, knots) around time 0."""
    half = int(np.ceil(REACH / KNOTS)) + 1
    apart = np.abs(moments[:, None] / KNOTS - np.arange(-half, half + 1))
    basis: F64 = np.where(apart < 1, 2 / 3 - apart**2 + apart**3 / 2, np.clip(2 - apart, 0, None) ** 3 / 6)
    return basis


def _put_right(image: F64, world: F64, visibility: F64, part: npt.NDArray[np.int64]) -> None:
    """Exchange left and right of ``part`` where that makes its way through the window shorter (the cheapest of all
    ways, Viterbi 1967). In a spin, the network loses which is which for a while; most frames are right."""
    if len(world) < 3:
        return
    other = MIRRORED[part]
    step = np.minimum(((world[1:, part] - world[:-1, part]) ** 2).sum(axis=2) / SWAP_JUMP**2, 9.0).mean(axis=1)
    cross = np.minimum(((world[1:, part] - world[:-1, other]) ** 2).sum(axis=2) / SWAP_JUMP**2, 9.0).mean(axis=1)
    if (step <= cross).all():
        return
    right, swapped = 0.0, SWAP_PRICE
    came: list[tuple[bool, bool]] = []
    for same, change in zip(step.tolist(), cross.tolist(), strict=True):
        # Swapped to swapped moves as right to right does.
        came.append((swapped + change < right + same, right + change < swapped + same))
        right, swapped = min(right + same, swapped + change), min(swapped + same, right + change) + SWAP_PRICE
    state = swapped < right
    states = [state]
    for to_right, to_swapped in reversed(came):
        state = (not state) if (to_swapped if state else to_right) else state
        states.append(state)
    turned = np.array(states[::-1])
    for values in (image, world, visibility):
        kept = values[turned]
        kept[:, part] = kept[:, other]
        values[turned] = kept
