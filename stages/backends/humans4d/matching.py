"""PHALP's matching costs, with as few textures encoded as decide the matching.

Upstream encodes the textures of every pair of a track and a person, twice a pair since each looks only where both are
seen: at twelve people that is 95 % of all that its tracker does. Costs, though, are products in which the texture's
factor is at least 1 (``nn_matching._pdist``), so that the product of the others is a lower bound, and two things follow
without changing any result:

* a pair whose bound is over the gate is out, whatever its textures;
* the cheapest assignment under costs that are exact for the pairs it takes and bounds elsewhere is the cheapest
  under exact costs too: so the pairs of the cheapest assignment are encoded until it takes none that is not.

Upstream numbers new people in an order that comes of how its solver breaks ties between pairs over the gate. Where a
frame brings more than one new person the costs within the gate are therefore all made exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Pair = tuple[int, int]

_OVER = 1e-5
"""By how much upstream's costs that are over the gate are put above it (``min_cost_matching``)."""
_UNKNOWN: npt.NDArray[np.float32] = np.zeros(1, np.float32)


class LazyMetric:
    """Stands for PHALP's ``NearestNeighborDistanceMetric`` in its ``Tracker``: same arguments, same matching."""

    def __init__(self, cfg: Any, matching_threshold: float, budget: int) -> None:
        matching = import_module("phalp.external.deep_sort_.nn_matching")
        self._upstream = matching.NearestNeighborDistanceMetric(cfg, matching_threshold, budget)
        self.matching_threshold = matching_threshold

    @property
    def samples(self) -> dict[int, list[list[Any]]]:
        """Of each track: what detections are compared with."""
        found: dict[int, list[list[Any]]] = self._upstream.samples
        return found

    def partial_fit(self, *features: Any) -> None:
        """Take over the tracks' new features, as upstream does."""
        self._upstream.partial_fit(*features)

    def distance(
        self,
        detection_features: Sequence[Any],
        targets: Sequence[int],
        dims: Any = None,
        phalp_tracker: Any = None,
    ) -> F64:
        """Costs (T, D) of tracks and detections: exact where that decides the matching, a lower bound elsewhere."""
        appearance, location, pose, textures = detection_features
        count = len(appearance)
        found = [appearance, location, pose, np.arange(count)]
        # In the textures' place upstream's function is given their numbers, which it hands to `_Codes`.
        samples = [[[*own[:3], number] for number, own in enumerate(self.samples[target])] for target in targets]
        known: list[dict[Pair, Any]] = [{} for _ in targets]

        def costs_of(row: int) -> F64:
            codes = _Codes(phalp_tracker, known[row])
            costs: F64 = self._upstream._metric(self._upstream.cfg, samples[row], found, dims, codes)
            return costs

        def encode(pairs: Sequence[Pair]) -> None:
            wanted = [(row, past, column) for row, column in pairs for past in range(len(samples[row]))]
            tracks = [self.samples[targets[row]][past][3] for row, past, _ in wanted]
            pairs_of_codes = phalp_tracker.texture_codes(tracks, [textures[column] for _, _, column in wanted])
            for (row, past, column), codes in zip(wanted, pairs_of_codes, strict=True):
                known[row][past, column] = codes

        return exact_where_it_matters(len(targets), count, self.matching_threshold, costs_of, encode, _solver())


class _Codes:
    """What ``_pdist`` asks of ``phalp_tracker``, for the samples of one track: textures are asked for by number, and
    those that are not encoded count as equal, which makes the cost the bound."""

    def __init__(self, companion: Any, known: dict[Pair, Any]) -> None:
        self.get_pose_distance = companion.get_pose_distance
        self._known = known

    def get_uv_distance(self, sample: Any, detection: Any) -> tuple[Any, Any, float]:
        codes = self._known.get((int(sample), int(detection)))
        return (_UNKNOWN, _UNKNOWN, 0.0) if codes is None else (*codes, 0.0)


def exact_where_it_matters(
    tracks: int,
    detections: int,
    gate: float,
    costs_of: Callable[[int], F64],
    encode: Callable[[Sequence[Pair]], None],
    solve: Callable[[F64], Any],
) -> F64:
    """Costs (T, D) under which ``solve`` gives what it gives under exact ones.

    Args:
        gate: Dearer pairs are no matches.
        costs_of: The costs (D,) of a track: exact for the pairs that have been encoded, a lower bound for others.
        encode: Makes the costs of pairs (track, detection) exact.
        solve: The cheapest assignment (K, 2) of costs; those of pairs over the gate are all the same then.
    """
    costs = np.zeros((tracks, detections))
    for row in range(tracks):
        costs[row] = costs_of(row)
    exact: Bools = np.zeros((tracks, detections), bool)

    def make_exact(wanted: Bools) -> None:
        encode([(int(row), int(column)) for row, column in np.argwhere(wanted)])
        exact[wanted] = True
        for row in np.flatnonzero(wanted.any(1)):
            costs[row] = costs_of(int(row))

    # Upstream's costs are at least 1; it makes 0 of what is none, and many equal costs have many best assignments.
    within = costs <= gate
    if (costs[within] < 1).any():
        if within.any():
            make_exact(within)
        return costs
    while tracks and detections:
        gated = np.where(costs > gate, gate + _OVER, costs)
        taken = np.zeros_like(exact)
        for row, column in solve(gated):
            taken[row, column] = True
        open_ = taken & ~exact & (costs <= gate)
        if open_.any():
            make_exact(open_)
            continue
        new = detections - int((taken & (costs <= gate)).sum())
        rest = ~exact & (costs <= gate)
        if new > 1 and rest.any():
            make_exact(rest)
        return costs
    return costs


def _solver() -> Callable[[F64], Any]:
    """Upstream's own, which takes ``lap`` where that is installed."""
    found: Callable[[F64], Any] = import_module("phalp.external.deep_sort_.linear_assignment").linear_assignment
    return found


def match_in_two_steps(
    tracker: Any, sure: float, detections: Sequence[Any]
) -> tuple[list[Pair], list[int], list[int], Any]:
    """Stands for ``Tracker._match`` of PHALP: people who score more than ``sure`` are matched as there; then the others
    with the confirmed tracks that are left, by the same costs and gate (Zhang et al. 2022, ByteTrack). Of the others
    those that are left are no new people.

    Returns:
        Matches (track, detection), tracks and detections without one, and upstream's figures of the first step.
    """
    first = [number for number, found in enumerate(detections) if found.detection_data["conf"] > sure]
    rest = [number for number in range(len(detections)) if number not in set(first)]
    matches, lost, new, figures = type(tracker)._match(tracker, [detections[number] for number in first])
    found = [(track, first[number]) for track, number in matches]
    waiting = [track for track in lost if tracker.tracks[track].is_confirmed()]
    if waiting and rest:
        match = import_module("phalp.external.deep_sort_.linear_assignment").min_cost_matching

        def costs(tracks: Any, others: Any, rows: Sequence[int], columns: Sequence[int]) -> F64:
            features = [
                np.array([others[number].detection_data[name] for number in columns])
                for name in ("appe", "loca", "pose", "uv")
            ]
            targets = [tracks[row].track_id for row in rows]
            return np.asarray(tracker.metric.distance(features, targets, phalp_tracker=tracker.phalp_tracker))

        others = [detections[number] for number in rest]
        threshold = tracker.metric.matching_threshold
        more, _, _, _ = match(costs, threshold, tracker.tracks, others, waiting, list(range(len(rest))))
        found += [(track, rest[number]) for track, number in more]
    taken = {track for track, _ in found}
    return found, [track for track in lost if track not in taken], [first[number] for number in new], figures
