"""The drop folder's sidecars: options beside a file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.drop.sidecar import SidecarError, read_sidecar
from daemon.jobs.store import State
from tests.daemon.test_drop import SETTLE, Drop, notice


@pytest.fixture
def drop(tmp_path: Path) -> Iterator[Drop]:
    made = Drop(tmp_path)
    yield made
    made.folder.stop()
    made.store.close()


def test_a_sidecar_goes_with_its_file(drop: Drop) -> None:
    drop.put("clip.mp4.toml", b'exports = ["glb"]\npriority = 7\nrecompute = true\n')
    assert not drop.settle() and drop.left() == {"clip.mp4.toml"}, "a sidecar waits for its file"
    drop.put("clip.mp4")
    (job,) = drop.settle()
    assert job.priority == 7 and job.options == {"exports": ["glb"], "recompute": True}
    drop.end(job)
    assert drop.names("done") == {"clip.mp4", "clip.mp4.toml", "clip.mp4.results.txt"}


@pytest.mark.parametrize(
    ("suffix", "text", "said"),
    [
        (".toml", "priority = ", "not valid TOML"),
        (".json", "{", "not valid JSON"),
        (".json", "[1]", "must be a table"),
        (".toml", "prioritty = 1", "did you mean priority"),
        (".toml", "priority = 1000", "priority = 1000"),
        (".json", '{"priority": "5"}', "priority = '5'"),
        (".json", '{"recompute": 1}', "recompute"),
        (".json", '{"exports": "glb"}', "exports"),
        (".toml", "\udcff", "not valid TOML"),
        (".json", "[" * 60_000, "not valid JSON"),
        (".toml", "#" * 70_000, "is this a sidecar"),
    ],
)
def test_a_bad_sidecar_is_named(drop: Drop, suffix: str, text: str, said: str) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4" + suffix, text.encode("utf-8", "surrogateescape"))
    assert not drop.settle()
    assert {"clip.mp4", "clip.mp4" + suffix, "clip.mp4.error.txt"} == drop.names("failed")
    notice = (drop.inbox / "failed" / "clip.mp4.error.txt").read_text()
    assert said in notice and "bad-sidecar" in notice and "clip.mp4" + suffix in notice


@given(st.binary(max_size=200), st.sampled_from([".toml", ".json"]))
def test_any_sidecar_is_options_or_a_named_error(
    tmp_path_factory: pytest.TempPathFactory, raw: bytes, suffix: str
) -> None:
    path = tmp_path_factory.mktemp("s") / f"a.mp4{suffix}"
    path.write_bytes(raw)
    try:
        read_sidecar(path).as_map()
    except SidecarError as error:
        assert path.name in str(error)


@given(
    st.dictionaries(
        st.sampled_from(["exports", "priority", "recompute", "x"]),
        st.none() | st.integers() | st.text() | st.lists(st.text()),
    )
)
def test_any_json_sidecar(tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]) -> None:
    path = tmp_path_factory.mktemp("s") / "a.mp4.json"
    path.write_text(json.dumps(value))
    try:
        read_sidecar(path).as_map()
    except SidecarError as error:
        assert path.name in str(error)


hostile = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(
        st.sampled_from(["exports", "priority", "recompute"]) | st.text(st.characters(codec=None)), hostile
    )
)
def test_any_value_sends_its_file_somewhere(
    tmp_path_factory: pytest.TempPathFactory, value: dict[str, object]
) -> None:
    drop = Drop(tmp_path_factory.mktemp("sidecar"))
    try:
        drop.put("clip.mp4")
        drop.put("clip.mp4.json", json.dumps(value).encode())
        jobs = drop.settle()
        refused = {"clip.mp4", "clip.mp4.json", "clip.mp4.error.txt"}
        assert (len(jobs), drop.names("failed")) in ((1, set()), (0, refused))
    finally:
        drop.folder.stop()
        drop.store.close()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("clip.mp4.json", b'{"priority": "\\ud800"}'),
        ("clip.mp4.json", b'{"\\ud800": 1}'),
        ("clip.mp4.toml", b"priority = 0x" + b"f" * 20_000),
        ("clip.mp4.toml", b"priority = " + b"[" * 500 + b"]" * 500),
    ],
)
def test_no_sidecar_holds_up_the_others(drop: Drop, name: str, content: bytes) -> None:
    drop.put("clip.mp4")
    drop.put(name, content)
    drop.put("other.mp4")
    assert [job.name for job in drop.settle()] == ["other.mp4"]
    assert {"clip.mp4", name, "clip.mp4.error.txt"} == drop.names("failed") and name in notice(drop, "clip.mp4")


def test_a_sidecar_must_be_complete_too(drop: Drop) -> None:
    drop.put("clip.mp4")
    side = drop.put("clip.mp4.toml", b"prio")
    drop.scan()
    drop.scan(SETTLE * 0.9)
    side.write_bytes(b"priority = 5")
    drop.scan(SETTLE * 0.9)
    assert not drop.jobs()
    drop.scan(SETTLE * 1.1)
    assert [job.priority for job in drop.jobs()] == [5]


def test_a_sidecar_written_on_after_the_claim_is_waited_for(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")
    writer = drop.put("clip.mp4.toml", b"priority").open("ab", buffering=0)
    rename = os.rename

    def late(source: str, target: str) -> None:
        rename(source, target)
        if str(target).endswith(".toml"):
            writer.write(b" = 6")

    drop.scan()
    monkeypatch.setattr(os, "rename", late)
    drop.scan(SETTLE)
    monkeypatch.undo()
    assert not drop.jobs() and not drop.left()
    assert [job.priority for job in drop.settle()] == [6]


def test_a_sidecar_that_comes_too_late_is_said(drop: Drop) -> None:
    drop.put("clip.mp4")
    (job,) = drop.settle()
    drop.put("clip.mp4.json", b'{"priority": 3}')
    drop.settle()
    drop.end(job)
    drop.settle()
    assert drop.left() == {"clip.mp4.json"}
    assert len(drop.said) == 1 and "late-sidecar" in drop.said[0] and job.id in drop.said[0], "said once"
    drop.put("clip.mp4")
    assert drop.settle()[0].priority == 3, "for the next one of that name"


def test_endings_in_capitals(drop: Drop) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4.TOML", b"priority = 4")
    (job,) = drop.settle()
    assert job.priority == 4
    (drop.inbox / "done" / "clip.mp4.TOML").touch()
    drop.end(job)
    assert {"clip (2).mp4", "clip (2).mp4.TOML", "clip (2).mp4.results.txt"} < drop.names("done")


def test_two_sidecars_are_one_too_many(drop: Drop) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4.toml", b"priority = 4")
    drop.put("clip.mp4.json", b'{"priority": 5}')
    assert not drop.settle()
    assert "clip.mp4.toml" in notice(drop, "clip.mp4") and "clip.mp4.json" in notice(drop, "clip.mp4")
    assert {"clip.mp4", "clip.mp4.toml", "clip.mp4.json"} < drop.names("failed")


def test_a_sidecar_that_is_a_link_is_not_followed(drop: Drop, tmp_path: Path) -> None:
    secret = drop.put("secret.toml", b"priority = 4", folder=tmp_path)
    (drop.inbox / "clip.mp4.toml").symlink_to(secret)
    drop.put("clip.mp4")
    assert not drop.settle() and "link" in notice(drop, "clip.mp4") and "clip.mp4.toml" in notice(drop, "clip.mp4")
    assert (drop.inbox / "failed" / "clip.mp4.toml").is_symlink()


def test_a_sidecar_that_cannot_be_read_is_named(drop: Drop, monkeypatch: pytest.MonkeyPatch) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4.toml")
    opened = os.open

    def denied(path: str, *args: object, **more: object) -> int:
        if str(path).endswith(".toml"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", denied)
    assert not drop.settle() and "clip.mp4.toml: Permission denied" in notice(drop, "clip.mp4")


def test_a_folder_is_no_sidecar(drop: Drop) -> None:
    drop.put("clip.mp4")
    (drop.inbox / "clip.mp4.toml").mkdir()
    assert [job.name for job in drop.settle()] == ["clip.mp4"]


def test_a_newer_sidecar_does_not_lose_the_one_half_claimed(drop: Drop) -> None:
    job = drop.inbox / ".claimed" / "20260101-000000-00000000"
    job.mkdir()
    (job / "clip.mp4.toml").write_bytes(b"priority = 1")
    drop.put("clip.mp4.toml", b"priority = 2")
    drop.restart()
    drop.put("clip.mp4")
    assert [job.priority for job in drop.settle()] == [2] and not drop.claimed() - {drop.jobs()[0].id}
    assert (drop.inbox / "failed" / "clip.mp4.toml").read_bytes() == b"priority = 1"


def test_the_sidecar_of_a_failed_job_goes_with_it(drop: Drop) -> None:
    drop.put("clip.mp4")
    drop.put("clip.mp4.json", b"{}")
    (job,) = drop.settle()
    drop.end(job, State.FAILED, error="x")
    assert drop.names("failed") == {"clip.mp4", "clip.mp4.json", "clip.mp4.error.txt"}
