"""The drop folder's thread: told by the kernel, by the clock where the kernel is blind, and prompt to stop."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import watchfiles

from daemon.drop import DropFolder, folder, watching
from daemon.jobs.store import JobStore, State
from daemon.settings.schema import DropSettings
from tests.daemon.daemons import until

PROMPT = 5.0
"""Seconds that a stop may take on a busy machine; it is meant to take less than one."""
Make = Callable[..., DropFolder]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JobStore]:
    (tmp_path / "state").mkdir()
    made = JobStore(tmp_path / "state")
    yield made
    made.close()


@pytest.fixture
def make(tmp_path: Path, store: JobStore) -> Iterator[Make]:
    made = []

    def making(settle: float = 0.1, poll: float = 0.0, **more: Any) -> DropFolder:
        settings = DropSettings(str(tmp_path / "inbox"), settle, poll)
        made.append(DropFolder(settings, store, results=tmp_path / "results", **more))
        return made[-1]

    yield making
    for one in made:
        one.stop()


def comes_through(tmp_path: Path, store: JobStore, name: str) -> None:
    (tmp_path / "inbox" / name).write_bytes(b"x")
    job = until(lambda: (found := store.jobs([State.QUEUED])) and found[0], f"a job for {name}", 25.0)
    store.move(job.id, [State.QUEUED], State.RUNNING)
    store.move(job.id, [State.RUNNING], State.DONE)
    until((tmp_path / "inbox" / "done" / name).exists, f"{name} in done/", 25.0)


def test_the_thread_is_told_by_the_kernel(
    tmp_path: Path, store: JobStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SAFETY_EVERY", 10_000.0)
    drop = make()
    drop.start()
    for number in range(3):
        comes_through(tmp_path, store, f"{number}.mp4")
    assert drop.status()["watching"] == "kernel"


def test_a_file_that_comes_before_the_watch_stands_is_seen(
    tmp_path: Path, store: JobStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "SAFETY_EVERY", 10_000.0)
    monkeypatch.setattr(folder, "BLIND_EVERY", 10_000.0)
    drop = make()
    dropped = threading.Event()
    scan, watch = drop.scan, watchfiles.watch

    def scanning() -> None:
        scan()
        if not dropped.is_set():
            (tmp_path / "inbox" / "clip.mp4").write_bytes(b"x")
            dropped.set()

    def watching_late(*args: Any, **more: Any) -> Any:
        dropped.wait()
        return watch(*args, **more)

    monkeypatch.setattr(drop, "scan", scanning)
    monkeypatch.setattr(watchfiles, "watch", watching_late)
    drop.start()
    until(lambda: store.jobs(), "a job", 25.0)


def test_polling(tmp_path: Path, store: JobStore, make: Make) -> None:
    drop = make(poll=0.05)
    drop.start()
    comes_through(tmp_path, store, "clip.mp4")
    assert drop.status()["watching"] == "polling"


def test_file_systems_on_which_the_kernel_is_blind_are_polled(
    tmp_path: Path, store: JobStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "is_blind", lambda _: True)
    monkeypatch.setattr(folder, "BLIND_EVERY", 0.05)
    drop = make()
    drop.start()
    comes_through(tmp_path, store, "clip.mp4")
    assert drop.status()["watching"] == "polling"


def test_a_kernel_without_watches_is_made_up_for(
    tmp_path: Path, store: JobStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*args: object, **more: object) -> None:
        raise OSError(28, "OS file watch limit reached")

    monkeypatch.setattr(watchfiles, "watch", none_left)
    monkeypatch.setattr(folder, "SAFETY_EVERY", 10_000.0)
    monkeypatch.setattr(watching, "RETRY", 0.05)
    drop = make()
    drop.start()
    comes_through(tmp_path, store, "clip.mp4")
    assert drop.status()["watching"] == "polling"


def test_a_folder_that_is_replaced_is_watched_again(
    tmp_path: Path, store: JobStore, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "RETRY", 0.05)
    monkeypatch.setattr(folder, "SAFETY_EVERY", 10_000.0)
    said: list[str] = []
    drop = make(notify=lambda kind, text: said.append(text))
    drop.start()
    comes_through(tmp_path, store, "a.mp4")
    os.rename(tmp_path / "inbox", tmp_path / "away")
    until(lambda: said, "that it is gone", 25.0)
    (tmp_path / "inbox").mkdir()  # another one of that name
    until((tmp_path / "inbox" / "failed").is_dir, "that it is used", 25.0)
    comes_through(tmp_path, store, "b.mp4")
    comes_through(tmp_path, store, "c.mp4")
    until(lambda: drop.status()["problem"] is None, "all is well", 25.0)
    assert len(said) == 1


def test_a_stop_is_prompt_amid_thousands_of_files(tmp_path: Path, store: JobStore, make: Make) -> None:
    drop = make(settle=0.0)
    for number in range(3000):
        (tmp_path / "inbox" / f"{number}.mp4").write_bytes(b"x")
    drop.start()
    until(lambda: store.jobs(limit=1), "the first job", 25.0)
    began = time.monotonic()
    drop.stop()
    assert time.monotonic() - began < PROMPT
    assert len(store.jobs(limit=5000)) < 3000, "it was stopped in the middle"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("drop")]
    again = make(settle=0.0)  # nobody holds the lock
    again.start()
    until(lambda: store.counts()["queued"] == 3000, "the others")
    drop.stop()


def test_a_waiting_sidecar_keeps_nobody_awake(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    drop = make()
    (tmp_path / "inbox" / "clip.mp4.toml").touch()
    (tmp_path / "inbox" / "folder").mkdir()
    drop.scan()
    assert drop._pause() == folder.SAFETY_EVERY
    (tmp_path / "inbox" / "clip.mp4").write_bytes(b"x")
    drop.scan()
    assert drop._pause() <= 0.1
