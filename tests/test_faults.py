"""Fault injection does what it says, as often as it says, across restarts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.faults import FaultPlan, FaultSpecError, InjectedError, OutOfMemoryError


def test_off_is_silent() -> None:
    plan = FaultPlan.parse((), "mesh", None)
    assert plan.announcement is None
    assert plan.before([1, 2, 3]) is None


def test_on_is_announced_loudly() -> None:
    assert "FAULT INJECTION" in str(FaultPlan.parse(("mesh:raise@3",), "mesh", None).announcement)
    assert FaultPlan.parse(("mesh:raise@3",), "track", None).announcement is None


def test_a_fault_fires_once_also_across_restarts(tmp_path: Path) -> None:
    for expected in (True, False, False):
        plan = FaultPlan.parse(("mesh:raise@3",), "mesh", tmp_path)
        plan.before([2])
        if expected:
            with pytest.raises(InjectedError):
                plan.before([2, 3])
        else:
            plan.before([2, 3])


def test_times_and_always(tmp_path: Path) -> None:
    plan = FaultPlan.parse(("mesh:oom@3x2", "mesh:raise@5xalways"), "mesh", tmp_path)
    for _ in range(2):
        with pytest.raises(OutOfMemoryError):
            plan.before([3])
    plan.before([3])
    for _ in range(5):
        with pytest.raises(InjectedError):
            plan.before([5])


def test_random_faults_depend_on_the_seed_alone() -> None:
    def hits(text: str) -> list[int]:
        plan = FaultPlan.parse((text,), "mesh", None)
        found = []
        for frame in range(1000):
            try:
                plan.before([frame])
            except InjectedError:
                found.append(frame)
        return found

    assert hits("mesh:raise%0.1/7") == hits("mesh:raise%0.1/7")
    assert hits("mesh:raise%0.1/7") != hits("mesh:raise%0.1/8")
    assert 50 < len(hits("mesh:raise%0.1/7")) < 160


def test_slow_and_corrupt() -> None:
    plan = FaultPlan.parse(("mesh:slow=0.05@1", "mesh:corrupt@2"), "mesh", None)
    began = time.monotonic()
    assert plan.before([1]) is None
    assert time.monotonic() - began >= 0.05
    assert plan.before([2]) == "corrupt"


@pytest.mark.parametrize(("kind", "code"), [("kill", -9), ("segv", -11), ("memory", 7)])
def test_deadly_faults_are_real(kind: str, code: int) -> None:
    script = (
        "import sys\nfrom stages.faults import FaultPlan\n"
        f"plan = FaultPlan.parse(('mesh:{kind}@1',), 'mesh', None)\n"
        "try:\n    plan.before([1])\nexcept MemoryError:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "text", ["", "mesh", "mesh:kill", "mush:kill@3", "mesh:explode@3", "mesh:kill@x", "mesh:kill%1"]
)
def test_what_cannot_be_understood_is_explained(text: str) -> None:
    with pytest.raises(FaultSpecError, match="mesh:kill@57"):
        FaultPlan.parse((text,), "mesh", None)
