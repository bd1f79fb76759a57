"""Whether a sighting is of somebody, and whether two are of one."""

from __future__ import annotations

import numpy as np

from stages.backends.blazepose.evidence import BELIEVED, LEAST, belief, evidence, same_body
from stages.backends.blazepose.landmarks import Sighting
from stages.backends.blazepose.masks import mask_box, shared_mask
from stages.backends.blazepose.roi import Roi

SHAPE = np.random.default_rng(3).uniform(-60, 60, (33, 3)).astype(np.float32)


def sighting(
    x: float, *, side: float = 200, turned: bool = False, clarity: float = 0.8, spread: float = 1
) -> Sighting:
    """A person around (x, 100) whose mask is 60 pixels wide and 120 tall."""
    roi = Roi(x, 100.0, side, 0.0, 1.0) if turned else Roi(x, 100.0, side, 1.0, 0.0)
    rows, columns = np.mgrid[:256, :256].astype(np.float32)
    places = roi.to_image((np.stack([columns, rows], axis=-1) + np.float32(0.5)) / np.float32(256))
    mask = ((np.abs(places[..., 0] - x) < 30) & (np.abs(places[..., 1] - 100) < 60)).astype(np.float32)
    points = SHAPE * np.float32(spread) + np.array([x, 100, 0], np.float32)
    return Sighting(points, points, np.ones(33, np.float32), 1.0, mask, roi, roi, clarity)


def test_a_mask_is_where_it_is_whatever_square_it_was_seen_in() -> None:
    for seen in (sighting(300), sighting(300, side=320), sighting(300, turned=True)):
        around = mask_box(seen.mask, seen.roi)
        assert around is not None
        np.testing.assert_allclose(around, [270, 40, 330, 160], atol=3)
    assert mask_box(np.zeros((256, 256), np.float32), Roi(0, 0, 1, 1, 0)) is None


def test_masks_share_what_both_cover() -> None:
    ours = sighting(300)
    for other, share in (
        (sighting(300, side=320), 1),
        (sighting(300, turned=True), 1),
        (sighting(330), 1 / 3),
        (sighting(400), 0),
    ):
        assert abs(shared_mask(ours.mask, ours.roi, other.mask, other.roi) - share) < 0.11
    empty = np.zeros((256, 256), np.float32)
    assert shared_mask(empty, ours.roi, empty, ours.roi) == 0


def test_one_body_seen_twice_has_the_same_joints_or_the_same_mask() -> None:
    assert same_body(sighting(300), sighting(302), 0.6)
    assert same_body(sighting(300), sighting(300, spread=-1), 0.6), "the joints say two, the masks one"
    assert not same_body(sighting(300), sighting(345), 0.6), "one before the other"


def test_what_has_no_clear_arms_and_legs_is_nobody() -> None:
    assert evidence(sighting(0, clarity=0.3), 0.35) < LEAST
    assert evidence(sighting(0, clarity=0.3), 0.8) > LEAST
    assert evidence(sighting(0, clarity=0.6), 0.3) > LEAST


def test_who_stands_out_clearly_is_believed_in_though_the_detector_is_not_sure() -> None:
    assert belief(sighting(0, clarity=0.75), 0.33) == BELIEVED
    assert belief(sighting(0, clarity=0.75), 0.9) == 0.9
    assert belief(sighting(0, clarity=0.46), 0.38) == 0.38
