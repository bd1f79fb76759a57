"""The results file: a stream that reads back what was written, and names what is wrong with it."""

from __future__ import annotations

import re
import resource
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.records import Failure, FrameRecord, Header, Track
from stages.results.stream import ResultsError, ResultWriter, encode_header, encode_record, read_results
from stages.transport.wire import pack_value
from tests.paths import ROOT

HEADER = Header(64, 48, 29.97, "blocks", ("root", "tip"), (-1, 0), np.array([[0, 1, 2]], np.int32))


def track(number: int, seed: int, vertices: bool = True) -> Track:
    rng = np.random.default_rng(seed)

    def values(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return Track(
        number, values(4), 0.5, values(3), values(24, 3, 3), values(10), values(24, 3), values(24, 2),
        values(5, 3) if vertices else None, detected=seed % 2 == 0,
    )  # fmt: skip


def records(count: int) -> list[FrameRecord]:
    found = [FrameRecord(n, n / 30, [track(1, n), track(2, n + 1, vertices=False)]) for n in range(count)]
    found[count // 2].tracks = []
    found[count // 2].failed = Failure("mesh", "out of memory")
    return found


def write(path: Path, count: int = 10) -> list[FrameRecord]:
    writer = ResultWriter.create(path, HEADER)
    for record in records(count):
        writer.append(record)
    writer.close()
    return records(count)


def same(first: FrameRecord, second: FrameRecord) -> bool:
    return repr(first) == repr(second)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    expected = write(tmp_path / "frames.msgpack")
    with read_results(tmp_path) as results:
        assert results.header.fps == 29.97
        assert results.header.joint_parents == (-1, 0)
        assert results.header.faces.tolist() == [[0, 1, 2]]
        found = list(results)
        assert all(same(a, b) for a, b in zip(found, expected, strict=True))
        assert [record.frame for record in results] == list(range(10)), "a second reading begins anew"


def test_records_that_cross_the_reading_chunks_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "frames.msgpack", 30)
    for chunk in (7, 100, 4096):
        monkeypatch.setattr("stages.results.stream._CHUNK", chunk)
        with read_results(tmp_path) as results:
            assert [record.frame for record in results] == list(range(30))


def test_a_failed_frame_has_no_tracks_even_where_the_tracker_filled_it_in(tmp_path: Path) -> None:
    writer = ResultWriter.create(tmp_path / "frames.msgpack", HEADER)
    writer.append(FrameRecord(0, 0.0, [track(1, 1)], Failure("mesh", "kept dying")))
    writer.close()
    with read_results(tmp_path) as results:
        assert [record.tracks for record in results] == [[]]


def test_resuming_at_an_offset_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    writer = ResultWriter.create(tmp_path / "parts", HEADER)
    offset = 0
    for record in records(10)[:7]:
        if record.frame == 4:
            offset = writer.offset
        writer.append(record)
    writer.close()
    writer = ResultWriter.resume(tmp_path / "parts", offset)
    for record in records(10)[4:]:
        writer.append(record)
    writer.close()
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_resuming_behind_the_end_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "frames")
    with pytest.raises(ResultsError, match="had been written"):
        ResultWriter.resume(tmp_path / "frames", 1 << 30)


def test_a_growing_file_is_followed(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    growing = tmp_path / "growing"
    growing.write_bytes(data[:-100])
    with read_results(growing, follow=True) as results:
        assert [record.frame for record in results] == list(range(9))
        assert [record.frame for record in results] == []
        growing.open("ab").write(data[-100:])
        assert [record.frame for record in results] == [9]


def test_a_file_cut_at_any_byte_says_after_which_frame(tmp_path: Path) -> None:
    write(tmp_path / "whole", 3)
    data = (tmp_path / "whole").read_bytes()
    writer = ResultWriter.create(tmp_path / "ends", HEADER)
    ends = {writer.offset}
    for record in records(3):
        writer.append(record)
        ends.add(writer.offset)
    writer.close()
    cut = tmp_path / "cut"
    for length in range(0, len(data) + 1, 7):
        cut.write_bytes(data[:length])
        found = []
        try:
            with read_results(cut) as results:
                for record in results:
                    found.append(record.frame)
            assert length in ends, "only a cut between two records cannot be told from a shorter file"
        except ResultsError as error:
            assert length not in ends
            where = f"after frame {found[-1]}" if found else "in its header|before the first frame"
            assert re.search(f"cut short {where}", str(error)), error
        assert found == list(range(len(found)))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_damage_is_named_or_harmless(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("damaged") / "frames.msgpack"
    write(path, 3)
    content = bytearray(path.read_bytes())
    # Most bytes are array data, where nothing can be noticed: aim at the first bytes of the header and of a record.
    second = content.index(b"\x83\xa5frame")
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.one_of(st.integers(0, second + 150), st.integers(0, len(content) - 1)))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        with read_results(path) as results:
            for record in results:
                assert all(track.pose.shape[1:] == (3, 3) for track in record.tracks)
    except ResultsError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("missing", ["frame", "time", "tracks"])
def test_a_record_without_a_field_is_named(tmp_path: Path, missing: str) -> None:
    write(tmp_path / "frames.msgpack", 2)
    value = encode_record(FrameRecord(2, 0.1))
    del value[missing]
    (tmp_path / "frames.msgpack").open("ab").write(pack_value(value))
    with read_results(tmp_path) as results, pytest.raises(ResultsError, match=f"after frame 1: no '{missing}'"):
        list(results)


def test_arrays_of_another_shape_are_refused(tmp_path: Path) -> None:
    value = encode_record(FrameRecord(0, 0.0, [track(1, 1)]))
    value["tracks"][0]["pose"] = np.zeros((24, 3), np.float32)
    ResultWriter.create(tmp_path / "frames.msgpack", HEADER).close()
    (tmp_path / "frames.msgpack").open("ab").write(pack_value(value))
    with read_results(tmp_path) as results, pytest.raises(ResultsError, match="pose has shape"):
        list(results)


def test_two_readings_at_once_do_not_disturb_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "frames.msgpack")
    monkeypatch.setattr("stages.results.stream._CHUNK", 100)
    with read_results(tmp_path) as results:
        assert [(a.frame, b.frame) for a, b in zip(results, results, strict=True)] == [(n, n) for n in range(10)]


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    def peak(frames: int) -> int:
        writer = ResultWriter.create(tmp_path / "frames.msgpack", HEADER)
        person = track(1, 1)
        person.vertices = np.zeros((20_000, 3), np.float32)
        for number in range(frames):
            writer.append(FrameRecord(number, number / 30, [person]))
        writer.close()
        tracemalloc.start()
        with read_results(tmp_path) as results:
            assert sum(len(record.tracks) for record in results) == frames
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(200) < 1.2 * peak(20)


def test_a_full_disk_is_named_and_can_be_gone_on_from(tmp_path: Path) -> None:
    """The limit on a file's size stands for the full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    whole = write(tmp_path / "whole")
    path = tmp_path / "frames.msgpack"
    writer = ResultWriter.create(path, HEADER)
    for record in whole[:4]:
        writer.append(record)
    offset = writer.offset
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (offset + 1000, old[1]))
    try:
        writer.append(whole[4])
        with pytest.raises(ResultsError, match="cannot write results: File too large; make room") as caught:
            writer.flush()
        assert isinstance(caught.value, OSError)
        assert str(path) in str(caught.value)
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    writer = ResultWriter.resume(path, offset)
    for record in whole[4:]:
        writer.append(record)
    writer.close()
    assert path.read_bytes() == (tmp_path / "whole").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"this is text, not msgpack", "not a results file"),
        (b"\x81\xa8poseward\x63", "version 99"),
        (b"\x81\xa8poseward\x01", "damaged header: no 'skeleton'"),
        (b"\x81\xa8poseward", "cut short in its header"),
        (b"\x93\x01\x02\x03", "not a results file"),
    ],
)
def test_something_else_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "frames.msgpack"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=message) as caught:
        read_results(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="nothing-here"):
        read_results(tmp_path / "nothing-here")


@pytest.mark.parametrize("number", range(3))
def test_the_documented_examples_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "results.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(examples) == 3
    folder = tmp_path / "results" / "clip"
    folder.mkdir(parents=True)
    names = tuple("left_wrist" if joint == 20 else f"joint {joint}" for joint in range(24))
    writer = ResultWriter.create(folder / "frames.msgpack", replace(HEADER, joint_names=names))
    for record in records(4):
        writer.append(record)
    writer.close()
    printed: list[tuple[object, ...]] = []
    monkeypatch.chdir(tmp_path)
    exec(compile(examples[number], "docs/results.md", "exec"), {"print": lambda *words: printed.append(words)})
    assert len(printed) >= 6, "three frames with two people each"


def test_what_a_header_and_a_record_say_of_the_input_comes_back(tmp_path: Path) -> None:
    header = replace(HEADER, rate=(30000, 1001), variable=True, focal=900.0, principal=(30.0, 25.5))
    writer = ResultWriter.create(tmp_path / "frames", header)
    said = FrameRecord(0, 0.0, damaged="the end of it is missing", source="IMG_7.heic", size=(4032, 3024))
    writer.append(said)
    writer.append(FrameRecord(1, 0.1))
    writer.close()
    with read_results(tmp_path / "frames") as results:
        found = results.header
        assert (found.rate, found.variable, found.focal) == ((30000, 1001), True, 900.0)
        assert found.principal == (30.0, 25.5)
        first, second = results
    assert (first.damaged, first.source, first.size) == (said.damaged, said.source, said.size)
    assert (second.damaged, second.source, second.size) == (None, None, None)


def test_a_header_without_rate_and_camera_has_those_of_the_convention(tmp_path: Path) -> None:
    assert HEADER.rate == (2997, 100)
    assert replace(HEADER, fps=0.0, rate=(0, 0)).rate == (0, 1)
    assert (HEADER.focal, HEADER.principal) == (5000 / 256 * 64, (32.0, 24.0))
    new = ("rate", "variable", "focal", "principal")
    old = {key: value for key, value in encode_header(HEADER).items() if key not in new}
    (tmp_path / "old").write_bytes(pack_value({"poseward": 1, **old}))
    with read_results(tmp_path / "old") as results:
        assert (results.header.rate, results.header.focal) == (HEADER.rate, HEADER.focal)
