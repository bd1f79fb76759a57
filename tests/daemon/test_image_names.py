"""An image that cannot be read is called the image: not by where it was written, nor by what FFmpeg took it for."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from daemon.jobs.images import ImageFailed, Images
from stages.owner.jobs import JobFailed, JobOutcome
from stages.source import SourceError, open_source

GARBAGE = [
    b"[00:01.00] la la la\n[00:02.00] la\n" * 20,
    b"hello world " * 100,
    b"\0" * 5000,
    b"v=0\r\no=- 0 0 IN IP4 x\r\n",
]


class Pipeline:
    """Opens what it is given, as decode does."""

    def __init__(self) -> None:
        self.failed: JobFailed | None = None

    def submit(self, job: Any) -> None:
        with pytest.raises(SourceError) as caught:
            open_source(job.source, max_pixels=1 << 20)
        self.failed = JobFailed(job.id, caught.value.name, str(caught.value), JobOutcome())


@pytest.mark.parametrize("content", GARBAGE, ids=["lyrics", "text", "nothing", "session"])
def test_garbage_is_named_as_the_image(content: bytes, tmp_path: Path) -> None:
    images = Images(tmp_path / "scratch", 1)
    pipeline: Any = Pipeline()
    future: Future[Path] = Future()
    images.begin(pipeline, images.write(content), 60.0, future)
    images.on_event(pipeline.failed)
    with pytest.raises(ImageFailed) as caught:
        future.result(timeout=1)
    said = str(caught.value)
    assert said.startswith("the image is neither a picture nor a video")
    assert "image-1" not in said and str(tmp_path) not in said
    assert "yrics" not in said and "SDP" not in said
    images.close()
