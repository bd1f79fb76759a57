"""An empty mount point is not the results folder: nothing is begun, computed again, or said to be removed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.client import ClientError
from daemon.jobs import results_folder
from daemon.jobs.results_folder import MARK, ResultsFolder
from tests.daemon.daemons import PATIENCE, Daemon, until
from tests.daemon.disks import disk_at
from tests.stages.harness import write_squares


@pytest.fixture
def own_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The results folder stands on another disk than everything else."""
    monkeypatch.setattr(results_folder, "_device", lambda folder: 2 if folder.name == "results" else 1)


def test_a_disk_that_is_not_mounted_is_noticed(tmp_path: Path, own_disk: None) -> None:
    state, folder = tmp_path / "state", tmp_path / "results"
    state.mkdir()
    home = ResultsFolder(folder, state)
    home.mark()
    assert home.away() is None, "there was none so far"
    folder.mkdir()
    home.mark()
    assert home.away() is None and (folder / MARK).is_file()
    folder.rename(tmp_path / "elsewhere")
    home = ResultsFolder(folder, state)
    for _ in range(2):
        away = home.away()
        assert away is not None and "mount" in away and f"touch {folder / MARK}" in away
        folder.mkdir(exist_ok=True)
        home.mark()
    folder.rmdir()
    (tmp_path / "elsewhere").rename(folder)
    assert home.away() is None
    assert ResultsFolder(tmp_path / "others", state).away() is None, "another setting is another folder"


def test_a_folder_that_is_there_when_the_daemon_is_needs_no_mark(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    home = ResultsFolder(tmp_path / "results", tmp_path)
    home.mark()
    (tmp_path / "results").rmdir()
    assert home.away() is None and not (tmp_path / "results.json").exists()


def test_a_disk_that_cannot_be_marked_is_used_all_the_same(tmp_path: Path, own_disk: None) -> None:
    (tmp_path / "results").write_text("")
    home = ResultsFolder(tmp_path / "results", tmp_path)
    home.mark()
    assert home.away() is None


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    with disk_at(folder, "20m"):
        yield folder
        subprocess.run(["umount", "-l", tmp_path / "results"], check=False, capture_output=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk")
def test_a_daemon_whose_results_disk_is_not_mounted_waits_for_it(tmp_path: Path, disk: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    subprocess.run(["mount", "--bind", disk, results], check=True)
    clips = [write_squares(tmp_path / f"{count}.mp4", count) for count in (8, 9)]
    with Daemon(tmp_path, "retention.jobs_days=0.0000001") as daemon, daemon.client() as client:
        done = client.wait(client.submit(clips[0])["id"], PATIENCE)
        assert done["state"] == "done", done
        daemon.stop()
        subprocess.run(["umount", "-l", results], check=True)
        daemon.start()
        with pytest.raises(ClientError, match="results-away"):
            client.results(done["id"])
        again, other = client.submit(clips[0])["id"], client.submit(clips[1])["id"]
        until(lambda: any("mount its disk" in text for text in client.health()["problems"]), "a problem")
        assert client.status(done["id"])["state"] == "done", "retention has not forgotten it"
        assert client.status(again)["state"] == client.status(other)["state"] == "queued"
        assert not list(results.iterdir())
        subprocess.run(["mount", "--bind", disk, results], check=True)
        assert client.wait(again, PATIENCE)["same_as"] == done["id"], daemon.story()
        assert client.wait(other, PATIENCE)["state"] == "done"
        assert not client.health()["problems"] and client.results(done["id"])["files"]
