"""Fault injection does what it says, as often as it says, across restarts."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stages.process.faults import FaultPlan, FaultSpecError, InjectedError, OutOfMemoryError


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
        "import sys\nfrom stages.process.faults import FaultPlan\n"
        f"plan = FaultPlan.parse(('mesh:{kind}@1',), 'mesh', None)\n"
        "try:\n    plan.before([1])\nexcept MemoryError:\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == code, done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "", "mesh", "mesh:kill", "mush:kill@3", "mesh:explode@3", "mesh:kill@x", "mesh:kill%1", "mesh:kill=2@3",
        "mesh:slow@3", "mesh:slow=1.2.3@3", "mesh:kill%1.2.3/4", "mesh:kill%2/4", "mesh:kill@3x", "mesh:kill@3 ",
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_explained(text: str) -> None:
    for stage in ("mesh", "track"):
        with pytest.raises(FaultSpecError, match=r"mesh:(kill|slow)") as caught:
            FaultPlan.parse((text,), stage, None)
        assert repr(text) in str(caught.value)


def test_slow_may_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("stages.process.faults.time.sleep", slept.append)
    plan = FaultPlan.parse(("mesh:slow=0.5@1x2", "mesh:slow=0.25@2"), "mesh", None)
    for _ in range(4):
        plan.before([1])
        plan.before([2])
    assert slept.count(0.5) == 2
    assert slept.count(0.25) == 4


def test_exhaustion_respects_a_limit_that_is_there(tmp_path: Path) -> None:
    """The process's own address-space limit is the lower one, and stands again afterwards."""
    script = (
        "import resource, sys\nfrom pathlib import Path\nfrom stages.process.faults import FaultPlan\n"
        "used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()\n"
        "limit = (used + (64 << 20),) * 2\nresource.setrlimit(resource.RLIMIT_AS, limit)\n"
        "try:\n    FaultPlan.parse(('mesh:memory@1',), 'mesh', None).before([1])\n"
        "except MemoryError:\n    assert resource.getrlimit(resource.RLIMIT_AS) == limit\n    sys.exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True)
    assert done.returncode == 7, done.stderr


@pytest.mark.parametrize(("kind", "beats"), [("hang", True), ("hang-gil", False)])
def test_a_hang_stops_the_other_threads_only_with_the_lock(kind: str, beats: bool) -> None:
    """Every beat of another thread is a line; the process is ended once it has shown what it does."""
    script = (
        "import os, threading, time\nfrom stages.process.faults import FaultPlan\n"
        "def beat():\n    while True:\n        os.write(1, b'beat\\n')\n        time.sleep(0.01)\n"
        "threading.Thread(target=beat, daemon=True).start()\n"
        "os.write(1, b'hanging\\n')\n"
        f"FaultPlan.parse(('mesh:{kind}@1',), 'mesh', None).before([1])\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    lines: queue.Queue[bytes] = queue.Queue()
    reader = threading.Thread(target=lambda: [lines.put(line) for line in process.stdout], daemon=True)
    reader.start()
    try:
        while lines.get(timeout=60) != b"hanging\n":
            pass
        if beats:
            for _ in range(30):
                assert lines.get(timeout=60) == b"beat\n"
        else:
            with pytest.raises(queue.Empty):  # a few may still come before the lock is taken for good
                for _ in range(30):
                    lines.get(timeout=2)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def test_the_count_survives_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    state = tmp_path / "not" / "there"
    with pytest.raises(InjectedError):
        FaultPlan.parse(("mesh:raise@1",), "mesh", state).before([1])
    FaultPlan.parse(("mesh:raise@1",), "mesh", state).before([1])
