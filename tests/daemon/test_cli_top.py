"""`poseward top`: the screen for known answers, one screen of a real daemon, and a live one across its death."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from daemon.cli import cli
from daemon.cli.top_view import Watched, screen
from tests.daemon.daemons import MAIN, PATIENCE, Daemon, until
from tests.paths import ROOT
from tests.stages.harness import write_squares

SLOW = 'stages.faults=["mesh:slow=0.05%1/1"]'
GB = 1 << 30


def process(stage: str, **more: Any) -> dict[str, Any]:
    return {
        "stage": stage, "state": "ready", "phase": "working", "detail": "", "fraction": None, "pid": 4711,
        "restarts": 0, "last_exit": None, "rss": 200 << 20, "peak_rss": 400 << 20, "device": "cpu",
        "device_used": None, "device_free": None, "metrics": {"batch": 4.0}, "stale": False, **more,
    }  # fmt: skip


def answer(committed: int = 0, **more: Any) -> dict[str, Any]:
    progress = {
        "phase": "working", "decoded": committed * 2, "detected": committed, "meshed": committed,
        "committed": committed, "total": 100, "rate": 10.0, "seconds": 1.0,
    }  # fmt: skip
    job = {"id": "20260101-000000-abcd1234", "name": "clip.mp4", "state": "running", "progress": progress}
    return {
        "poseward": "9.9", "daemon": "one", "uptime": 3600.0, "ready": True, "draining": False,
        "backend": "blazepose", "queue": {"running": 1, "queued": 3, "done": 12, "failed": 0, "cancelled": 0},
        "jobs": [{**job, "frames": None, "same_as": None}], "problems": [],
        "processes": {name: process(name) for name in ("track", "mesh", "detect", "decode")},
        "memory": {"total": 32 * GB, "available": 24 * GB,
                   "device": [{"index": 0, "name": "GPU of a test", "total": 80 * GB, "free": 20 * GB}]},
        **more,
    }  # fmt: skip


def shown(watched: Watched, width: int = 100, height: int = 40) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(screen(watched, width, height))
    return capture.get()


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_screen_of_a_well_daemon() -> None:
    clock = Clock()
    watched = Watched("ipc:///x", clock)
    for second in range(3):
        clock.now = float(second)
        watched.answered(answer(10 * second))
    text = shown(watched)
    assert re.search(r"poseward 9.9 +well +blazepose, up 60 min", text)
    assert re.search(r"GPU 0 memory ━{18}─{6} +60\.0 GB / 80\.0 GB GPU of a test", text)
    assert re.search(r"host memory  ━{6}─{18} +8\.0 GB / 32\.0 GB", text)
    assert re.search(r"decode +ready +4711 +20\.0 +4 ", text), "frames decoded, not committed"
    assert re.search(r"track +ready +4711 +10\.0 +4 +━{3}─{3} +200 MB", text)
    assert text.index("decode ") < text.index("detect ") < text.index("mesh ") < text.index("track ")
    assert re.search(r"abcd1234 +clip\.mp4 +.* 20 % +20/100 +10\.0/s +0:08 left", text)
    assert "1 running, 3 queued, 12 done" in text
    assert max(map(len, text.splitlines())) <= 100


def test_troubles_are_on_the_screen() -> None:
    watched = Watched("ipc:///x")
    last = {"kind": "killed", "reason": "by SIGKILL", "phase": "working", "stderr": []}
    processes = {
        "decode": process("decode"),
        "detect": process("detect", stale=True),
        "mesh-1": process("mesh", state="loading", fraction=0.4, restarts=3, last_exit=last, device_used=6 * GB),
        "mesh-2": process("mesh", state="open circuit", pid=None, rss=0, peak_rss=0),
    }
    wrong, past = (
        ["mesh-2: open circuit: CUDA error"],
        ["10:11:12 mesh-1 died: killed: by SIGKILL; again in 1.0 s"],
    )
    found = answer(5, processes=processes, problems=wrong, incidents=past, ready=False, draining=True)
    watched.answered(found)
    text = shown(watched, 120)
    assert "1 problem " in text and "! mesh-2: open circuit: CUDA error" in text and "poseward reset mesh" in text
    assert "10:11:12  mesh-1 died" in text, "what happened before this screen was opened"
    assert "loading 40 %" in text and "killed: by SIGKILL" in text and "6.0 GB" in text and "ready stale" in text
    assert "draining: none is begun" in text
    watched.heard("stage.mesh-1", {"time": 0.0, "state": "warming", "message": "", "fraction": 0.5})
    watched.heard("stage.mesh-1", {"time": 0.0, "state": "died", "message": "hung", "fraction": None})
    assert "stage   mesh-1 died: hung" in shown(watched) and "warming" not in shown(watched)


def test_silence_and_restart_are_told_and_rates_begin_anew() -> None:
    clock = Clock()
    watched = Watched("ipc:///x", clock)
    watched.silent("timeout")
    assert "no answer since" in shown(watched)
    for second in range(3):
        clock.now = float(second)
        watched.answered(answer(30 * second))
    watched.silent("timeout")
    first = watched.silence
    watched.silent("something else")
    assert watched.silence == first, "since the first time"
    text = shown(watched)
    assert "no answer since" in text and "clip.mp4" in text, "the last that is known stays"
    clock.now = 10.0
    watched.answered(answer(70, daemon="two"))
    assert "no answer" not in shown(watched) and "daemon  restarted" in shown(watched)
    assert watched.rate("track") is None
    watched.answered(answer(jobs=[]))
    assert not watched.rates


@pytest.mark.parametrize(("width", "height"), [(100, 24), (80, 20), (60, 12), (200, 60)])
def test_the_screen_fits(width: int, height: int) -> None:
    watched = Watched("ipc:///x")
    jobs = [{**answer()["jobs"][0], "id": f"x-{number:08x}", "name": "n" * 300} for number in range(50)]
    watched.answered(answer(jobs=jobs, problems=["p" * 300] * 20))
    for number in range(20):
        watched.heard("stage.mesh", {"time": 0.0, "state": "died", "message": f"{number}" * 300, "fraction": None})
    lines = shown(watched, width, height).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 18)
    assert " more run)" in "\n".join(lines)


def test_one_screen_of_a_real_daemon(tmp_path: Path) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        job = client.submit(write_squares(tmp_path / "clip.mp4", 900))["id"]
        until(lambda: client.status(job).get("progress", {}).get("committed", 0) > 10)
        env = {"POSEWARD_ADDRESS": daemon.address, "COLUMNS": "100", "XDG_CONFIG_HOME": "/nonexistent"}
        text = CliRunner().invoke(cli, ["top", "--once"], env=env)
        assert text.exit_code == 0, text.output
        assert re.search(r"clip\.mp4 +━+─+ .*%", text.output) and "1 running" in text.output
        for stage in ("decode", "detect", "mesh", "track"):
            assert re.search(rf"^{stage} +ready +\d+ +\d+\.\d ", text.output, re.MULTILINE), text.output
        found = json.loads(CliRunner().invoke(cli, ["top", "--once", "--json"], env=env).stdout)
        assert found["rates"]["track"] > 0 and found["jobs"][0]["id"] == job
        client.cancel(job)


class Terminal:
    """A program on a terminal of its own, 100 by 30."""

    def __init__(self, *arguments: str) -> None:
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, "-c", MAIN, *arguments])
        fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        self.text = ""
        self.code: int | None = None

    def read(self) -> str:
        """What has been shown since the last call, without colours."""
        shown = b""
        with contextlib.suppress(OSError):
            while select.select([self._fd], [], [], 0.1)[0]:
                if not (piece := os.read(self._fd, 1 << 16)):
                    break
                shown += piece
        self.text += (new := re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode(errors="replace")))
        return new

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def exit_code(self) -> int:
        def over() -> bool:
            self.read()
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            return bool(pid)

        until(over, "the end of the program")
        assert self.code is not None
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self._fd)


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for terminal in opened:
        terminal.close()


def test_live_across_the_death_of_the_daemon(tmp_path: Path, terminals: list[Terminal]) -> None:
    with Daemon(tmp_path, SLOW) as daemon, daemon.client() as client:
        client.submit(write_squares(tmp_path / "clip.mp4", 900))
        terminals.append(Terminal("top", "--address", daemon.address))
        terminal = terminals[0]
        until(lambda: "clip.mp4" in terminal.read(), "the job on the screen")
        mesh = client.health()["processes"]["mesh"]["pid"]
        os.kill(mesh, 9)
        until(lambda: "mesh died" in terminal.read(), "the death of a stage on the screen")
        daemon.kill()
        until(lambda: "no answer since" in terminal.read(), "the silence on the screen")
        daemon.start()
        until(lambda: "daemon  restarted" in terminal.read(), "the restart on the screen")
        until(
            lambda: re.search(r"^((?!no answer).)*clip\.mp4.* %", terminal.read(), re.DOTALL), "the job going on"
        )
        began = time.monotonic()
        terminal.press(b"\x03")
        assert terminal.exit_code() == 0, terminal.text[-2000:]
        assert time.monotonic() - began < PATIENCE / 4
        assert "Traceback" not in terminal.text and "Task was destroyed" not in terminal.text


def test_submit_on_a_terminal_shows_bars(tmp_path: Path, terminals: list[Terminal]) -> None:
    with Daemon(tmp_path, SLOW) as daemon:
        write_squares(tmp_path / "clip.mp4", 60)
        terminals.append(
            Terminal("submit", "--upload", "--wait", "--address", daemon.address, str(tmp_path / "clip.mp4"))
        )
        assert terminals[0].exit_code() == 0, terminals[0].text
        assert re.search(r"\d+/60 frames, \d+\.\d/s", terminals[0].text)
        assert "clip.mp4: done, 60 frames" in terminals[0].text
