"""Fork servers that hang, die or grow old, and what must not stay behind a supervisor that is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from supervisor import events as ev
from supervisor.events import ExitKind
from supervisor.runtime import make_runtime
from supervisor.spec import Deadlines, ProcessSpec, RestartPolicy
from supervisor.supervisor import Supervisor
from tests.paths import ROOT

PATIENCE = 60.0


class House:
    """A supervisor, and a folder of modules that a test writes for its children."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[ev.Event] = []
        self.runtime = make_runtime(Path("/tmp"))
        self.supervisor = Supervisor(self.runtime, self.events.append)

    def module(self, name: str, text: str) -> None:
        (self.folder / f"{name}.py").write_text(text)

    def add(self, entry: str, preload: tuple[str, ...] = (), name: str = "worker", **changes: Any) -> None:
        changes.setdefault("restart", RestartPolicy(base_delay=0.01, max_delay=0.05, max_restarts=100))
        env = {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        roots = (str(self.folder),)
        self.supervisor.add(ProcessSpec(name, entry, preload=preload, env=env, code_roots=roots, **changes))

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (found := condition()):
            assert time.monotonic() < deadline, f"no {what}; said: {self.events}"
            self.supervisor.step(0.05)
        return found

    def of(self, kind: type[ev.Event], name: str = "worker") -> list[Any]:
        return [event for event in self.events if isinstance(event, kind) and event.name == name]

    def ready(self, times: int = 1, name: str = "worker") -> Any:
        return self.until(lambda: len(self.of(ev.Ready, name)) >= times, f"{times} times ready") and self.of(
            ev.Ready
        )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    found = House(tmp_path)
    yield found
    found.supervisor.stop(2.0)
    assert not found.runtime.exists()


OBEDIENT = """
VERSION = {version}
def main(link, config):
    link.ready(version=VERSION)
    while not link.stopping:
        link.receive(0.2)
"""


def test_a_hung_fork_server_is_found_out_and_done_without(house: House) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    # Hangs in the fork server only: there the module is imported under another main module than the child's.
    house.module(
        "sleepy", "import sys, time\nif 'supervisor.forkserver' in sys.orig_argv: time.sleep(1_000_000)\n"
    )
    house.add("obedient:main", preload=("sleepy",), deadlines=Deadlines(importing=2.0, grace=0.2))
    house.supervisor.start()
    ready = house.ready()
    assert ready[0].info == {"version": 1}
    (death,) = house.of(ev.Died)
    assert death.exit.kind is ExitKind.HUNG
    assert "deadlines.importing" in death.exit.reason or "deadlines.starting" in death.exit.reason
    assert [event.preloaded for event in house.of(ev.Started)] == [False]


def test_stopping_does_not_wait_for_a_fork_server_that_hangs(house: House) -> None:
    house.module("sleepy", "import time\ntime.sleep(1_000_000)\n")
    house.add("sleepy:main", preload=("sleepy",), deadlines=Deadlines(grace=0.2))
    house.supervisor.start()
    began = time.monotonic()
    house.supervisor.stop(0.2)
    assert time.monotonic() - began < PATIENCE
    assert house.of(ev.Died)[0].exit.kind is ExitKind.STOPPED


def test_a_fork_server_that_dies_in_its_imports_is_done_without(house: House) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    house.module("deadly", "import os\nos.abort()\n")
    house.add("obedient:main", preload=("deadly",))
    house.supervisor.start()
    house.ready()
    assert house.of(ev.Died)[0].exit.kind is ExitKind.SIGNAL
    assert "fork server" in house.of(ev.Died)[0].exit.reason
    assert not house.of(ev.Started)[-1].preloaded


def test_a_restart_runs_the_code_that_is_on_disk_now_and_leaves_others_alone(house: House) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    for name in ("worker", "other"):
        house.add("obedient:main", preload=("obedient",), name=name)
    house.supervisor.start()
    house.ready()
    house.ready(name="other")
    house.module("obedient", OBEDIENT.format(version=2))
    house.until(lambda: house.supervisor.states()["worker"].stale, "sign of old code")
    before = house.supervisor.states()["worker"].fingerprint
    house.supervisor.restart("worker", "new code")
    assert house.ready(times=2)[1].info == {"version": 2}
    state = house.supervisor.states()["worker"]
    assert state.fingerprint != before
    assert not state.stale
    assert not house.of(ev.Died, "other")
    house.supervisor.restart("other", "new code")
    house.ready(times=2, name="other")
    # The last child of the old server has gone: so has the server.
    ours = psutil.Process()
    house.until(lambda: len(_servers(ours)) == 1, "end of the old fork server")


def _servers(process: psutil.Process) -> list[psutil.Process]:
    found = []
    for child in process.children():
        try:
            if "supervisor.forkserver" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_an_interpreter_without_our_needs_is_a_configuration_error_even_behind_a_fork_server(house: House) -> None:
    # An interpreter of the same version, but without site-packages: no pyzmq, no msgpack.
    bare = house.folder / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    house.module("obedient", OBEDIENT.format(version=1))
    house.add("obedient:main", preload=("obedient",), python=str(bare))
    house.supervisor.start()
    house.until(lambda: house.of(ev.Failed), "failure")
    assert house.of(ev.Failed)[0].exit.kind is ExitKind.CONFIGURATION
    reason = house.of(ev.Failed)[0].exit.reason
    assert "ModuleNotFoundError" in reason and f"in {bare}" in reason


@pytest.mark.parametrize("preload", [(), ("obedient",)])
def test_an_interpreter_that_is_too_old_says_so(house: House, preload: tuple[str, ...]) -> None:
    # The same interpreter, which takes itself for an older one; no package of ours may be imported before it is asked.
    old = house.folder / "python"
    old.write_text(f'#!/bin/sh\nPYTHONPATH="{house.folder}/old:$PYTHONPATH" exec "{sys.executable}" "$@"\n')
    old.chmod(0o755)
    (house.folder / "old").mkdir()
    (house.folder / "old" / "sitecustomize.py").write_text(
        "import sys\nsys.version_info = (3, 8, 18, 'final', 0)\n"
    )
    house.module("obedient", OBEDIENT.format(version=1))
    house.add("obedient:main", preload=preload, python=str(old))
    house.supervisor.start()
    house.until(lambda: house.of(ev.Failed), "failure")
    report = house.of(ev.Failed)[0].exit
    assert report.kind is ExitKind.CONFIGURATION
    assert f"Python 3.8 is too old, 3.10 or newer is needed, in {old}" in report.reason


@pytest.mark.parametrize("pieces", [3, 4])
def test_a_death_before_the_link_is_not_blamed_on_the_last_life_s_work(house: House, pieces: int) -> None:
    flag = house.folder / "flag"
    # Imported by the interpreter itself, before anything of ours.
    house.module("sitecustomize", f"import os\nif os.path.exists({str(flag)!r}): os.kill(os.getpid(), 9)\n")
    house.module(
        "worker",
        f"""
import os, pathlib, signal
def main(link, config):
    link.ready()
    for number in range({pieces}):
        link.idle()
        with link.working({{"frame": number}}):
            pass
    pathlib.Path({str(flag)!r}).touch()
    with link.working({{"frame": {pieces}}}):
        os.kill(os.getpid(), signal.SIGKILL)
""",
    )
    house.add("worker:main")
    house.supervisor.start()
    house.until(lambda: len(house.of(ev.Died)) >= 3, "three deaths")
    first, second, third = house.of(ev.Died)[:3]
    assert first.exit.activity == {"frame": pieces}
    assert second.exit.activity is None
    assert third.exit.activity is None


@pytest.mark.parametrize("absent", [True, False], ids=["absent", "present"])
def test_time_in_which_the_supervisor_did_not_run_counts_against_nobody(house: House, absent: bool) -> None:
    house.module(
        "busy",
        "import time\ndef main(link, config):\n    link.ready()\n    link.receive(None)\n"
        "    with link.working({'long': 1}): time.sleep(6.5)\n"
        "    link.send('done', {})\n    while not link.stopping: link.receive(0.2)\n",
    )
    house.add("busy:main", deadlines=Deadlines(working=3.0, grace=0.2))
    house.supervisor.start()
    house.ready()
    house.supervisor.send("worker", "go", {})
    if absent:
        time.sleep(4.5)  # not a wait for anything: this is the supervisor being absent
        house.until(lambda: house.of(ev.Message) or house.of(ev.Died), "outcome")
        assert not house.of(ev.Died)
    else:
        house.until(lambda: house.of(ev.Died), "end of the late one")
        assert house.of(ev.Died)[0].exit.kind is ExitKind.HUNG


def test_a_child_that_exits_with_success_has_not_failed(house: House) -> None:
    house.module("leaver", "import sys\ndef main(link, config):\n    link.ready()\n    sys.exit()\n")
    house.add("leaver:main")
    house.supervisor.start()
    house.until(lambda: house.of(ev.Died), "an end")
    assert house.of(ev.Died)[0].exit.kind is ExitKind.CLEAN


def test_last_words_come_before_the_death(house: House) -> None:
    house.module(
        "talker",
        "def main(link, config):\n    link.ready()\n"
        "    for n in range(300):\n        link.send('n', {'n': n})\n    raise ValueError('enough ' + 'ä' * 5000)\n",
    )
    house.add("talker:main")
    house.supervisor.start()
    house.until(lambda: house.of(ev.Died), "an end")
    numbers = [event.payload["n"] for event in house.events[: house.events.index(house.of(ev.Died)[0])]
               if isinstance(event, ev.Message)]  # fmt: skip
    assert numbers == list(range(300))
    assert house.of(ev.Died)[0].exit.reason.startswith("ValueError: enough")


def test_a_child_that_never_stops_writing_does_not_hold_up_another(house: House) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    house.module(
        "flood",
        "import os\ndef main(link, config):\n    link.ready()\n    while True: os.write(2, b'x\\n' * 30000)\n",
    )
    house.add("flood:main", name="flood")
    house.add("obedient:main")
    house.supervisor.start()
    house.until(lambda: len(house.of(ev.Output, "flood")) > 100_000, "a flood")
    house.ready()
    house.supervisor.kill("flood")
    house.until(lambda: house.of(ev.Died, "flood"), "the flood's end")
    assert len(house.of(ev.Died, "flood")[0].exit.stderr_tail) == 50


def test_a_child_that_closes_its_output_does_not_make_the_loop_spin(house: House) -> None:
    house.module("mute", "import os\ndef main(link, config):\n    os.close(1)\n    os.close(2)\n    link.ready()\n"
                         "    while not link.stopping: link.receive(0.2)\n")  # fmt: skip
    house.add("mute:main")
    house.supervisor.start()
    house.ready()
    turns = 0
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        house.supervisor.step(0.5)
        turns += 1
    assert turns < 50  # beats wake it 4 times a second; a closed pipe would, thousands of times


def test_a_process_added_later_starts_in_the_next_turn(house: House) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    house.supervisor.start()
    house.add("obedient:main")
    house.ready()


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs pidfd")
def test_a_failure_to_start_that_may_pass_is_tried_again(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.module("obedient", OBEDIENT.format(version=1))
    house.add("obedient:main")
    start, attempts = house.supervisor._spawner.start, []

    def full(*arguments: Any) -> Any:
        attempts.append(arguments)
        if len(attempts) == 1:
            raise OSError(24, "Too many open files")
        return start(*arguments)

    monkeypatch.setattr(house.supervisor._spawner, "start", full)
    house.supervisor.start()
    house.ready()
    assert not house.of(ev.Failed)


FAMILY = """
import json, sys
from pathlib import Path
from supervisor import events as ev
from supervisor.runtime import make_runtime
from supervisor.spec import ProcessSpec
from supervisor.supervisor import Supervisor
events = []
runtime = make_runtime(Path(sys.argv[1]))
supervisor = Supervisor(runtime, events.append)
CHILDREN = "tests.supervisor.supervisor_children"
supervisor.add(ProcessSpec("a", f"{CHILDREN}:echo"))
supervisor.add(ProcessSpec("b", f"{CHILDREN}:echo", preload=(CHILDREN,)))
supervisor.start()
def wait(kind, count):
    while sum(isinstance(event, kind) for event in events) < count:
        supervisor.step(0.1)
wait(ev.Ready, 2)
for name in "ab":
    supervisor.send(name, "do", {"what": "grandchild"})
wait(ev.Message, 2)
print(json.dumps(str(runtime)), flush=True)
supervisor.step(1000)
while True:
    supervisor.step(1.0)
"""


def test_grandchildren_of_a_supervisor_killed_with_sigkill_die_too() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pwt") as base:
        process = subprocess.Popen([sys.executable, "-c", FAMILY, base], stdout=subprocess.PIPE, cwd=ROOT)
        assert process.stdout is not None
        runtime = Path(json.loads(process.stdout.readline()))
        below = psutil.Process(process.pid).children(recursive=True)
        sleepers = [child for child in below if child.name() == "sleep"]
        assert len(sleepers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        _, left = psutil.wait_procs(below, timeout=PATIENCE)
        for child in left:
            child.kill()
        assert not left
        deadline = time.monotonic() + PATIENCE
        while runtime.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
