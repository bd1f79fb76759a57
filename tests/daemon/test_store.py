"""The job store: transitions, damage, a full disk, kills in the middle."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.jobs.store import FILE, JobStore, State, StoreError, Submission, new_id


def wanted(name: str = "clip.mp4", **more: object) -> Submission:
    return Submission(f"/videos/{name}", name, "api", **more)  # type: ignore[arg-type]


def test_a_job_goes_its_way_and_keeps_what_was_said(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job, new = store.add(wanted(priority=3, client_key="k", options={"exports": ["glb"]}))
    assert new and job.state is State.QUEUED and job.options == {"exports": ["glb"]}
    assert store.move(job.id, [State.QUEUED], State.RUNNING, attempts=1, folder="clip")
    done = store.move(job.id, [State.RUNNING], State.DONE, results="/r/clip", summary={"frames": 3})
    assert done is not None and done.ended is not None and done.summary == {"frames": 3}
    store.close()
    again = JobStore(tmp_path).get(job.id)
    assert again == done and again.as_map()["state"] == "done"


def test_no_state_is_entered_twice(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted())
    assert store.move(job.id, [State.QUEUED], State.CANCELLED)
    assert store.move(job.id, [State.QUEUED, State.RUNNING], State.DONE) is None
    assert store.get(job.id).state is State.CANCELLED  # type: ignore[union-attr]


def test_the_same_key_is_the_same_job(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted(client_key="k"))
    same, new = store.add(wanted("other.mp4", client_key="k"))
    assert not new and same.id == job.id and store.by_key("k") == job


def test_order_is_by_priority_then_as_they_came(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    for name, priority in (("a", 0), ("b", 5), ("c", 0), ("d", 5)):
        store.add(wanted(name, priority=priority))
    assert [job.name for job in store.waiting(10)] == ["b", "d", "a", "c"]
    assert [job.name for job in store.jobs(limit=2)] == ["d", "c"]
    assert [job.name for job in store.jobs(before=3)] == ["b", "a"]


def test_a_full_queue_is_named(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    store.add(wanted(), most_waiting=1)
    with pytest.raises(StoreError) as error:
        store.add(wanted("b"), most_waiting=1)
    assert error.value.name == "queue-full" and store.counts()["queued"] == 1


@pytest.mark.parametrize(
    "name", ["a\nb.mp4", "ü 😀.mp4", os.fsdecode(b"\xff\xfe.mp4"), "-rf", "'; DROP TABLE jobs"]
)
def test_any_file_name_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted(name))
    assert store.get(job.id).name == name  # type: ignore[union-attr]


@given(st.binary(min_size=1, max_size=40))
def test_names_of_any_bytes(raw: bytes) -> None:
    import daemon.jobs.store as module

    name = os.fsdecode(raw)
    assert module._text(module._storable(name)) == name


def test_a_damaged_database_is_named_and_left_alone(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    for number in range(200):
        store.add(wanted(f"{number}"))
    store.close()
    path = tmp_path / FILE
    data = bytearray(path.read_bytes())
    data[4096:12000] = os.urandom(12000 - 4096)
    path.write_bytes(data)
    with pytest.raises(StoreError) as error:
        JobStore(tmp_path)
    assert error.value.name == "store-damaged" and str(path) in str(error.value)
    assert path.read_bytes() == bytes(data)


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"not a database at all" * 100)
    with pytest.raises(StoreError) as error:
        JobStore(tmp_path)
    assert error.value.name == "store-damaged"


def test_a_later_version_is_not_touched(tmp_path: Path) -> None:
    JobStore(tmp_path).close()
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreError, match="version 9"):
        JobStore(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as error:
        JobStore(tmp_path / "missing")
    assert error.value.name == "store-unwritable"


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted())
    (pages,) = store._database.execute("PRAGMA page_count").fetchone()
    store._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError) as error:
        for number in range(1000):
            store.add(wanted(f"{number}", options={"exports": ["x" * 500]}))
    assert error.value.name == "disk-full"
    store.close()
    again = JobStore(tmp_path)
    assert again.get(job.id) == job
    again.add(wanted("after"))


CHILD = """
import sys
from pathlib import Path
from daemon.jobs.store import JobStore, Submission
store = JobStore(Path(sys.argv[1]))
while True:
    job, _ = store.add(Submission("/x", "x", "api"))
    print(job.id, flush=True)
"""


def test_what_was_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    said = [child.stdout.readline().strip() for _ in range(20)]
    child.send_signal(signal.SIGKILL)
    said += [line.strip() for line in child.stdout if line.endswith("\n")]
    child.wait()
    store = JobStore(tmp_path)
    assert all(store.get(job) is not None for job in said)


def test_many_threads_one_winner(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted())
    won = []

    def take(number: int) -> None:
        if store.move(job.id, [State.QUEUED], State.RUNNING, attempts=number):
            won.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1 and store.get(job.id).attempts == won[0]  # type: ignore[union-attr]


def test_ids_sort_by_time() -> None:
    assert new_id(1.0) < new_id(1000.0) < new_id(1e9)


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_nothing_is_acknowledged_into_a_file_that_is_not_there_any_more(tmp_path: Path, how: str) -> None:
    store = JobStore(tmp_path)
    job, _ = store.add(wanted())
    for path in list(tmp_path.iterdir()):
        path.rename(path.with_name(f"old-{path.name}"))
    if how == "replaced":
        JobStore(tmp_path).close()
    for write in (lambda: store.add(wanted("b")), lambda: store.note(job.id, frames=3)):
        with pytest.raises(StoreError, match="restart the daemon") as error:
            write()
        assert error.value.name == "store-unwritable"
    assert store.get(job.id) is not None, "what was known can still be asked for"


def test_a_lock_of_another_program_is_named_before_those_who_ask_lose_patience(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    began = time.monotonic()
    with pytest.raises(StoreError) as error:
        store.add(wanted())
    assert error.value.name == "store-locked" and time.monotonic() - began < 4.5
    other.execute("ROLLBACK")
    other.close()
    assert store.add(wanted())[1]


def test_a_disk_with_errors_is_no_reason_to_move_the_store_away(tmp_path: Path) -> None:
    store = JobStore(tmp_path)
    with pytest.raises(StoreError, match="dmesg") as error, store._database._named():
        raise sqlite3.OperationalError("disk I/O error")
    assert error.value.name == "store-unwritable"
