"""A short version of `tests.storm`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.storm import storm


@pytest.mark.alone
@pytest.mark.timeout(900)
def test_every_job_ends_once_whatever_is_killed(tmp_path: Path) -> None:
    found = storm(tmp_path, files=60, clients=5, each=4, kills=15, seed=3)
    assert found.states["failed"] == 12 and found.states["done"] == 68
    assert sum(found.kills.values()) > 0
