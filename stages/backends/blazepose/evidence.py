"""Whether a sighting is of somebody, and whether two are of one: the same decisions in every frame, whoever asks."""

from __future__ import annotations

from stages.backends.blazepose.landmarks import Sighting
from stages.backends.blazepose.masks import shared_mask
from stages.backends.blazepose.suppress import similarity

DETECTION = 0.3
"""Weight of the detector's score beside the clarity of the arms and legs."""
LEAST = 0.45
"""Evidence from which there is somebody. Below lie bodies laid into shadows, bushes and parts of people."""
CLEAR, BELIEVED = 0.65, 0.5
"""Clarity of the arms and legs from which a person is believed in at least so much, whatever the detector's score: in
video, runners whom it scores with 0.32 to 0.45 have 0.74 or more, what it takes for people by mistake below 0.5."""
SHARED = 0.4
"""Two whose masks share more than this are one person. On people who stand before one another it is below 0.35, on one
person seen twice mostly above 0.6."""


def evidence(seen: Sighting, score: float) -> float:
    """How much speaks for somebody being there: that the network sees a person, that his arms and legs stand out, and
    the detector's score.

    The network's own presence alone is no judge: it is near 1 for whatever resembles a person in outline.
    """
    return seen.presence * (seen.clarity + DETECTION * score)


def belief(seen: Sighting, score: float) -> float:
    """The score of a person: the detector's, or `BELIEVED` if that is more and the arms and legs stand out clearly."""
    return max(score, BELIEVED * seen.presence) if seen.clarity >= CLEAR else score


def same_body(first: Sighting, second: Sighting, max_similarity: float) -> bool:
    """Whether two sightings are of one person: their joints lie in the same places, or their masks cover the same."""
    alike = float(similarity(first.image[:, :2], second.image[None, :, :2])[0])
    return alike > max_similarity or shared_mask(first.mask, first.roi, second.mask, second.roi) > SHARED
