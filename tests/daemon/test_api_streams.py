"""Pages of records stay within a message, also where a backend gives much besides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from daemon.api.streams import BATCH_BYTES, Streams
from stages.records import FrameRecord
from stages.results.stream import ResultWriter
from tests.stages.test_results import HEADER, track

MEGABYTE = 1 << 20
FRAMES = 40


def test_a_page_ends_when_a_message_is_full_of_what_only_this_backend_gives(tmp_path: Path) -> None:
    path = tmp_path / "frames.msgpack"
    writer = ResultWriter.create(path, HEADER)
    for frame in range(FRAMES):
        one = track(1, 1)
        one.extra = {"array": np.zeros(MEGABYTE // 8, np.float32), "nested": [{"bytes": bytes(MEGABYTE // 2)}]}
        writer.append(FrameRecord(frame, frame / 30, [one]))
    writer.close()
    streams, start, pages = Streams(), 0, 0
    try:
        while start < FRAMES:
            _, records, after = streams.read(b"", "job", path, start, 1000, vertices=True)
            assert [record["frame"] for record in records] == list(range(start, after))
            assert len(records) * MEGABYTE <= BATCH_BYTES + MEGABYTE
            start, pages = after, pages + 1
    finally:
        streams.close()
    assert pages == FRAMES * MEGABYTE // BATCH_BYTES
