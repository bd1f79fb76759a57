"""Overlays are drawn beside the pipeline by a process that may die at any moment, and so may whoever started it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from daemon.exports.beside import Beside, DrawingError
from daemon.exports.drawing import write_overlay
from daemon.exports.style import Style
from daemon.jobs import places, summary
from tests.daemon.daemons import MAIN, Daemon, until
from tests.daemon.test_overlay_parts import write
from tests.paths import ROOT
from tests.stages.harness import write_squares

FRAMES = 500


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_squares(tmp_path_factory.mktemp("clip") / "clip.mp4", FRAMES)


@pytest.fixture(scope="module")
def results(clip: Path) -> tuple[Path, bytes]:
    """A finished ``frames.msgpack``, and its overlay as it is drawn at once."""
    path = clip.parent / "frames.msgpack"
    write(path, range(FRAMES)).close()
    return path, write_overlay(clip, path, clip.parent).read_bytes()


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Beside]:
    with closing(Beside(Style(), {}, "tests.stages.blocks")) as made:
        yield made


def drawers(process: psutil.Process | None = None) -> list[psutil.Process]:
    found = []
    for child in (process or psutil.Process()).children(recursive=True):
        with suppress(psutil.Error):
            if child.name() == "pw-overlay":
                found.append(child)
    return found


def test_killed_again_and_again(tmp_path: Path, clip: Path, results: tuple[Path, bytes], beside: Beside) -> None:
    out = tmp_path / "out"
    out.mkdir()
    killed: set[int] = set()

    def kill(done: int) -> None:
        if len(killed) < 3 and done > 100 * len(killed):
            for process in drawers():
                if process.pid not in killed:
                    killed.add(process.pid)
                    process.kill()

    made = beside.export(out, clip, results[0], tmp_path / "work", kill)
    assert made.read_bytes() == results[1] and len(killed) == 3
    assert [path.name for path in out.iterdir()] == ["overlay.mp4"] and not (tmp_path / "work").exists()


def test_what_is_dropped_is_let_go_of(
    tmp_path: Path, clip: Path, results: tuple[Path, bytes], beside: Beside
) -> None:
    out, work = tmp_path / "out", tmp_path / "work"
    beside.begin(out, clip, results[0], work)
    until(lambda: (work / "0.mp4").exists(), "a part")
    before = {process.pid for process in drawers()}
    beside.drop(out)
    assert not before & {process.pid for process in drawers()}
    names = sorted(path.name for path in work.iterdir())
    time.sleep(0.3)
    assert sorted(path.name for path in work.iterdir()) == names
    assert beside.drawn(out) is None
    out.mkdir()  # and whoever wants it after all goes on with it
    assert beside.export(out, clip, results[0], work, lambda done: None).read_bytes() == results[1]


def test_an_input_that_is_gone_is_named_and_others_go_on(
    tmp_path: Path, clip: Path, results: tuple[Path, bytes], beside: Beside
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    beside.begin(tmp_path / "gone", tmp_path / "gone.mp4", results[0], tmp_path / "other")
    with pytest.raises(DrawingError, match=r"gone\.mp4 does not exist"):
        beside.export(tmp_path / "gone", tmp_path / "gone.mp4", results[0], tmp_path / "other", lambda done: None)
    assert beside.export(out, clip, results[0], tmp_path / "work", lambda done: None).read_bytes() == results[1]


def test_a_frame_that_kills_the_drawing_is_named(
    tmp_path: Path, clip: Path, results: tuple[Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        "from daemon.exports import drawer, drawing\n"
        "draw = drawing.draw_record\n"
        "def deadly(image, record, *rest):\n"
        "    if record.frame == 20:\n"
        "        os.abort()\n"
        "    draw(image, record, *rest)\n"
        "drawing.draw_record = deadly\n"
        "main = drawer.main\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("daemon.exports.beside.ENTRY", "deadly:main")
    with (
        closing(Beside(Style(), {}, "tests.stages.blocks")) as beside,
        pytest.raises(DrawingError, match="over frame 20: killed by SIGABRT"),
    ):
        beside.export(tmp_path / "out", clip, results[0], tmp_path / "work", lambda done: None)


def test_leaving_leaves_nobody_and_what_is_drawn(tmp_path: Path, clip: Path, results: tuple[Path, bytes]) -> None:
    beside = Beside(Style(), {}, "tests.stages.blocks")
    failed: list[str] = []

    def wait() -> None:
        try:
            beside.export(tmp_path / "out", clip, results[0], tmp_path / "work", lambda done: None)
        except DrawingError as error:
            failed.append(str(error))

    waiting = threading.Thread(target=wait)
    waiting.start()
    until(lambda: (tmp_path / "work" / "0.json").exists(), "a whole part")
    beside.close()
    waiting.join()
    assert failed and not drawers() and (tmp_path / "work" / "0.mp4").exists()


# -- whole programs ----------------------------------------------------------------------------------------


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run_command(clip: Path, out: Path, *more: str) -> list[str]:
    sets = ("stages.backend=tests.stages.blocks", "stages.max_pixels=76800", "stages.ring_mb=8")
    arguments = [part for item in sets for part in ("--set", item)]
    return [sys.executable, "-c", MAIN, "run", "-o", str(out), "--export", "overlay", *arguments, *more, str(clip)]


@pytest.fixture(scope="module")
def undisturbed(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The overlay of a run that nothing happens to."""
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(run_command(clip, out), check=True, cwd=ROOT, capture_output=True)
    assert sorted(path.name for path in out.iterdir()) == ["clip"]
    names = sorted(path.name for path in (out / "clip").iterdir())
    assert names == ["frames.msgpack", "overlay.mp4", "summary.json"]
    return (out / "clip" / "overlay.mp4").read_bytes()


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=0)[1]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("when", ["0.json", "placed"])
def test_a_run_that_is_ended_goes_on(
    tmp_path: Path, clip: Path, undisturbed: bytes, how: signal.Signals, when: str
) -> None:
    out = tmp_path / "out"
    work = out / f"clip{places.WORK_SUFFIX}"
    process = subprocess.Popen(run_command(clip, out), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    if when == "placed":
        until(lambda: (out / "clip" / summary.SUMMARY).exists() or process.poll() is not None, "results")
    else:
        until(lambda: (work / "overlay" / when).exists() or process.poll() is not None, "a part")
    below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(how)
    assert process.stderr is not None
    said = process.stderr.read()
    process.wait()
    until(lambda: gone(below), "the end of everybody")
    if process.returncode == 0:
        pytest.skip(f"it was done before the signal came: {said}")
    if (film := out / "clip" / "overlay.mp4").exists():  # the signal came just behind it
        assert film.read_bytes() == undisturbed
    again = subprocess.run(
        run_command(clip, out, "--resume"), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert (out / "clip" / "overlay.mp4").read_bytes() == undisturbed
    assert sorted(path.name for path in out.iterdir()) == ["clip"]
    names = sorted(path.name for path in (out / "clip").iterdir())
    assert names == ["frames.msgpack", "overlay.mp4", "summary.json"]
    assert "overlay" in json.loads((out / "clip" / summary.SUMMARY).read_text())["exports"]


@pytest.mark.parametrize("when", ["beside", "placed"])
def test_a_daemon_that_is_killed_goes_on(tmp_path: Path, clip: Path, undisturbed: bytes, when: str) -> None:
    base = tmp_path / "base"
    base.mkdir()
    video = base / "clip.mp4"
    video.write_bytes(clip.read_bytes())
    with Daemon(base, 'results.exports=["overlay"]') as daemon:
        with daemon.client() as client:
            job = client.submit(str(video))["id"]
            if when == "beside":
                until(lambda: list(daemon.results.glob("*/overlay/0.json")) or done(client, job), "a part")
            else:
                until(lambda: (daemon.results / "clip" / summary.SUMMARY).exists(), "results")
        below = daemon.below()
        daemon.kill()
        until(lambda: gone(below), "the end of everybody")
        daemon.start()
        with daemon.client() as client:
            assert client.wait(job, 120)["state"] == "done"
        assert (daemon.results / "clip" / "overlay.mp4").read_bytes() == undisturbed
        assert sorted(path.name for path in daemon.results.iterdir() if not path.name.startswith(".")) == ["clip"]
        assert len(list((daemon.results / "clip").iterdir())) == 3


def done(client: Any, job: str) -> bool:
    return bool(client.status(job)["state"] == "done")
