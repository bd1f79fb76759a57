"""Lazily encoded textures give the matching, and the order of new people, that encoding all of them gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from stages.backends.humans4d.matching import _OVER, exact_where_it_matters

GATE = 100.0


def solve(costs: Any) -> Any:
    return np.array(list(zip(*linear_sum_assignment(costs), strict=True)))


def as_upstream(costs: Any) -> tuple[list[tuple[int, int]], list[int]]:
    """Matches and new people, in ``min_cost_matching``'s order."""
    gated = np.where(costs > GATE, GATE + _OVER, costs)
    pairs = solve(gated)
    taken = pairs[:, 1] if len(pairs) else ()
    new = [column for column in range(costs.shape[1]) if column not in taken]
    matches = []
    for row, column in pairs:
        if gated[row, column] > GATE:
            new.append(int(column))
        else:
            matches.append((int(row), int(column)))
    return matches, new


def crowd(seed: int) -> tuple[Any, Any]:
    """Bounds and true costs of a crowd that partly was there before: near pairs, close calls and far ones."""
    random = np.random.default_rng(seed)
    tracks, people = random.integers(1, 13, 2)
    places, found = random.random((tracks, 2)), random.random((people, 2))
    for person in range(min(tracks, people)):
        if random.random() < 0.8:
            found[person] = places[person] + random.normal(0, 0.02, 2)
    distance = np.linalg.norm(places[:, None] - found[None], axis=2)
    bound = np.exp(random.choice([3.0, 8.0, 20.0]) * distance)
    # Textures hardly ever decide, and sometimes they do: then near pairs fall out, or change places.
    texture = 1 + random.exponential(random.choice([0.1, 2.0, 20.0]), (tracks, people))
    return bound, bound * texture


@pytest.mark.parametrize("seeds", [range(start, start + 200) for start in range(0, 1000, 200)], ids=str)
def test_the_matching_is_that_of_exact_costs(seeds: range) -> None:
    encoded = pairs = 0
    for seed in seeds:
        bound, true = crowd(seed)
        known = np.zeros(bound.shape, bool)

        def costs_of(row: int, bound: Any = bound, true: Any = true, known: Any = known) -> Any:
            return np.where(known[row], true[row], bound[row])

        def encode(wanted: Sequence[tuple[int, int]], known: Any = known) -> None:
            assert wanted and not any(known[pair] for pair in wanted), "nothing is encoded twice"
            for pair in wanted:
                known[pair] = True

        lazy = exact_where_it_matters(*bound.shape, GATE, costs_of, encode, solve)
        assert as_upstream(lazy) == as_upstream(true), seed
        assert not (known & (bound > GATE)).any()
        encoded += int(known.sum())
        pairs += known.size
    assert 0 < encoded < pairs / 2


def test_what_is_no_cost_makes_all_exact() -> None:
    """Upstream turns what cannot be computed into 0; then many assignments are the best."""
    bound = np.array([[0.0, 2.0, 300.0], [0.0, 3.0, 4.0]])
    asked: list[tuple[int, int]] = []
    exact_where_it_matters(2, 3, GATE, lambda row: bound[row].copy(), asked.extend, solve)
    assert sorted(asked) == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]


def test_nobody_is_compared_with_nobody() -> None:
    for tracks, people in ((0, 3), (3, 0), (0, 0)):
        bound = np.ones((tracks, people))
        asked: list[tuple[int, int]] = []
        found = exact_where_it_matters(tracks, people, GATE, bound.__getitem__, asked.extend, solve)
        assert found.shape == (tracks, people) and not asked
