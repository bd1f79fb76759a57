"""The clock by which things are old: no jump is believed at once, and none of a few days is held up."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from daemon.retention.clock import DAY, HELD, PAUSE, CredibleClock

NOW = 1_800_000_000.0
YEARS = 3000 * DAY


class Machine:
    """A computer whose clock is set at will; `restart` is a new daemon."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.now = NOW
        self.restart()

    def restart(self, newest: float = 0.0) -> None:
        self.clock = CredibleClock(self.file, newest, clock=lambda: self.now)

    def after(self, seconds: float) -> float:
        self.now += seconds
        return self.clock()


def test_a_jump_is_not_believed_until_it_has_gone_on_for_a_day(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "clock.json")
    before = machine.after(600)
    assert machine.after(YEARS) == before and machine.clock.doubt is not None
    machine.restart()
    assert machine.after(600) == before, "nor by another daemon"
    assert machine.after(HELD - 900) == before
    assert machine.after(600) == machine.now and machine.clock.doubt is None


def test_a_clock_that_is_set_right_is_believed_at_once(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "clock.json")
    machine.after(YEARS)
    assert machine.after(600 - YEARS) == machine.now and machine.clock.doubt is None
    machine.now -= YEARS  # a dead battery: back, and right again
    machine.restart()
    machine.clock()
    assert machine.after(YEARS + 60) == machine.now and machine.clock.doubt is None


def test_a_few_days_without_power_are_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "clock.json")
    machine.clock()
    machine.now += PAUSE - 600
    machine.restart()
    assert machine.clock() == machine.now and machine.clock.doubt is None


def test_without_a_file_the_newest_job_says_what_time_it_was(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "not there" / "clock.json")
    assert machine.clock() == NOW
    machine.restart(newest=NOW - YEARS)
    assert machine.clock() == NOW - YEARS and machine.clock.doubt is not None
    machine.restart(newest=NOW + YEARS)
    assert machine.clock() == NOW


def test_what_was_left_of_the_file_is_no_trouble(tmp_path: Path) -> None:
    for content in ("", "[]", '{"believed": 1}', '{"believed": "x", "last": 0, "since": null}', "\0" * 40):
        (tmp_path / "clock.json").write_text(content)
        machine = Machine(tmp_path / "clock.json")
        assert machine.clock() == NOW


@given(st.lists(st.tuples(st.floats(-YEARS, YEARS), st.booleans()), max_size=30))
def test_however_the_clock_moves_it_is_never_believed_to_leap(moves: list[tuple[float, bool]]) -> None:
    """Nothing gets a week older from one look to the next, unless the clock has held for a day."""
    machine = Machine(Path("/nowhere/clock.json"))
    latest = machine.clock()
    for seconds, slowly in moves:
        found = machine.after(seconds)
        assert found <= latest + PAUSE and found <= max(machine.now, latest)
        latest = max(latest, found)
        for _ in range(60 if slowly else 0):
            latest = max(latest, machine.after(HELD / 48))
        if slowly and machine.now >= latest:
            assert machine.clock.doubt is None and machine.clock() == machine.now
