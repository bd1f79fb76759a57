"""Single images with the answer in the reply: urgent jobs that go ahead of videos and leave nothing behind."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from daemon.jobs.scheduler import PipelineLike
from stages.owner.jobs import Job, JobDone, JobEvent, JobFailed

PREFIX = "image-"


class ImageFailed(Exception):  # noqa: N818  (``name`` says what)
    """An image without a result; ``name`` is a stable name."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(message)
        self.name = name


@dataclass
class _Asked:
    folder: Path
    future: Future[Path]
    until: float


class Images:
    """The images in work. Belongs to the daemon's loop, except `room` and `store`.

    Args:
        folder: a scratch folder of its own; emptied.
        most: how many may be in work.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        self._folder = folder
        self._most = most
        self._clock = clock
        self._numbers = itertools.count(1)
        self._asked: dict[str, _Asked] = {}

    def room(self) -> bool:
        """Whether one more is taken. May be called from any thread."""
        return len(self._asked) < self._most

    def write(self, data: bytes) -> Path:
        """Write an image into a folder of its own; returns that. May be called from any thread.

        Raises:
            OSError: there is no room.
        """
        folder = self._folder / f"{PREFIX}{next(self._numbers)}"
        folder.mkdir()
        (folder / "image").write_bytes(data)
        return folder

    def begin(self, pipeline: PipelineLike, folder: Path, timeout: float, future: Future[Path]) -> None:
        """Give an image to the pipeline; ``future`` gets the folder with its ``frames.msgpack``, or `ImageFailed`.

        Whoever gets the folder removes it.
        """
        work = folder / "work"
        work.mkdir()
        self._asked[folder.name] = _Asked(folder, future, self._clock() + timeout)
        pipeline.submit(Job(folder.name, str(folder / "image"), str(work), urgent=True))

    def turn(self, pipeline: PipelineLike) -> None:
        """Give up those that nobody waits for any more."""
        now = self._clock()
        for name, asked in list(self._asked.items()):
            if now >= asked.until or asked.future.cancelled():
                pipeline.cancel(name)
                self._fail(name, "busy", "the image was not done in time: the stages are busy or not ready")

    def on_event(self, event: JobEvent) -> bool:
        """Whether an event of the pipeline was about an image."""
        if not event.job.startswith(PREFIX):
            return False
        if isinstance(event, JobDone) and (asked := self._asked.pop(event.job, None)) is not None:
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_result(asked.folder)
            else:
                shutil.rmtree(asked.folder, ignore_errors=True)
        elif isinstance(event, JobFailed):
            self._fail(
                event.job, event.error, event.message.replace(str(self._folder / event.job / "image"), "the image")
            )
        return True

    def close(self) -> None:
        for name in list(self._asked):
            self._fail(name, "busy", "the daemon stops: ask again when it is back")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _fail(self, name: str, error: str, message: str) -> None:
        asked = self._asked.pop(name, None)
        if asked is None:
            return
        shutil.rmtree(asked.folder, ignore_errors=True)
        if asked.future.set_running_or_notify_cancel():
            asked.future.set_exception(ImageFailed(error, message))
