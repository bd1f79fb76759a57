"""The results file: a stream that reads back what was written, and names what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.records import Failure, FrameRecord, Header, Track
from stages.results import ResultsError, ResultWriter, read_results

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
        monkeypatch.setattr("stages.results._CHUNK", chunk)
        with read_results(tmp_path) as results:
            assert [record.frame for record in results] == list(range(30))


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


def test_a_growing_file_ends_at_its_last_whole_record(tmp_path: Path) -> None:
    write(tmp_path / "whole")
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "growing").write_bytes(data[:-100])
    with read_results(tmp_path / "growing") as results:
        assert [record.frame for record in results] == list(range(9))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cut short"),
        (b"this is text, not msgpack", "not a results file"),
        (b"\x81\xa8poseward\x63", "version 99"),
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
