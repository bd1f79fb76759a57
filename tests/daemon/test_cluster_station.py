"""A station by itself, without Ray: who is refused, what it makes of inputs, what it answers."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgpack
import pytest

from daemon.cluster.station import NotHereError, SegmentError, Station, describe, to_map
from daemon.jobs.summary import identify
from tests.stages.harness import FAST, write_squares


def source(path: Path) -> dict[str, Any]:
    return {"path": str(path), **identify(path)}


@pytest.fixture(scope="module")
def station() -> Iterator[Station]:
    found = Station(to_map(FAST), describe(FAST))
    assert not found.introduce()["refusal"]
    yield found
    found.close()


def test_it_answers_with_the_records_of_a_segment(station: Station, tmp_path: Path) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 30)
    records = msgpack.unpackb(station.work(source(clip), 10, 20))
    assert [frame for frame, _ in records] == list(range(10, 20))
    assert station.work(source(clip), 10, 20) == msgpack.packb(records)
    assert set(station.status()["processes"]) == {"decode", "detect", "mesh", "track"}


def test_an_input_that_is_not_here_or_another_is_asked_for(
    station: Station, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = write_squares(tmp_path / "clip.mp4", 30)
    wanted = source(clip)
    records = station.work(wanted, 0, 5)
    gone = {**wanted, "path": str(tmp_path / "elsewhere" / "clip.mp4")}
    with pytest.raises(NotHereError, match="does not see"):
        station.work(gone, 0, 5)
    other = {**wanted, "path": str(write_squares(tmp_path / "other.mp4", 12))}
    with pytest.raises(NotHereError):
        station.work(other, 0, 5)
    data = clip.read_bytes()
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda reference: reference))
    assert station.work(gone, 0, 5, [data[:1000], data[1000:]]) == records
    assert station.work(gone, 0, 5) == records  # it is here now


def test_what_cannot_be_worked_on_has_the_name_that_it_has_on_one_machine(
    station: Station, tmp_path: Path
) -> None:
    rubbish = tmp_path / "clip.mp4"
    rubbish.write_bytes(b"\0" * 5000)
    with pytest.raises(SegmentError) as error:
        station.work(source(rubbish), 0, 5)
    assert error.value.name == "unreadable-video"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"version of numpy": "0.1"}, "version of numpy is .*, the front's is 0.1"),
        ({"version of poseward": "9"}, "version of poseward"),
    ],
)
def test_who_differs_is_refused_by_name(wanted: dict[str, str], said: str) -> None:
    other = Station(to_map(FAST), {**describe(FAST), **wanted})
    assert re.search(said, other.introduce()["refusal"])
    with pytest.raises(SegmentError, match="station-refused"):
        other.work({"path": "/x", "sha256": "0"}, 0, 5)
    other.close()


def test_settings_of_another_version_are_refused() -> None:
    values = {**to_map(FAST), "slots": "many"}
    other = Station(values, describe(FAST))
    assert "install the same version" in other.introduce()["refusal"]
    other.close()


def test_a_machine_without_the_backend_is_refused() -> None:
    values = to_map(replace(FAST, backend="no.such.backend"))
    other = Station(values, describe(FAST))
    assert "no.such.backend" in other.introduce()["refusal"] or "no module" in other.introduce()["refusal"]
    other.close()
