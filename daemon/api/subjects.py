"""The subject of finished jobs: made once when it is first asked for, beside the results."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from daemon.api.messages import ApiError
from daemon.jobs import summary
from daemon.settings.schema import Settings
from stages.protocols import ConfigurationError

MOST_KEPT = 256


class Subjects:
    """Files with the subjects of jobs. ``settings`` gives those in force. Belongs to the API's thread."""

    def __init__(self, settings: Callable[[], Settings]) -> None:
        self._settings = settings
        self._pool = ThreadPoolExecutor(1, "pw-subject")
        self._made: OrderedDict[tuple[str, str], Future[Path]] = OrderedDict()

    def find(self, folder: Path, who: str) -> Future[Path]:
        """The file about ``who`` (as `MotionOptions.subject`) of the results in ``folder``; made if it is not there.

        The future raises what `daemon.exports.subject.export_subject` does.
        """
        key = (str(folder), who)
        known = self._made.pop(key, None)
        if known is None or (known.done() and not _still_there(known)):
            known = self._pool.submit(self._make, folder, who)
        self._made[key] = known
        while len(self._made) > MOST_KEPT:
            self._made.popitem(last=False)
        return known

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _make(self, folder: Path, who: str) -> Path:
        # Only now: it pulls in scipy.
        from daemon.exports import export

        finished = folder / "subject.msgpack"
        if who == "auto" and finished.is_file():
            return finished
        settings = self._settings()
        options, motion = settings.stages.options, replace(settings.motion, subject=who)
        (path,) = export("subject", folder, folder / summary.FRAMES, folder, options=options, motion=motion)
        return path


def made_subject(made: Future[Path]) -> Path:
    """What a future that is done has made.

    Raises:
        ApiError: nobody is meant, or the body's file is missing.
        OSError, ResultsError: the results cannot be read.
    """
    from daemon.exports.people_files import NobodyError
    from daemon.motion.subject import SubjectError

    try:
        return made.result()
    except (SubjectError, NobodyError) as error:
        raise ApiError("no-such-subject", str(error)) from error
    except ConfigurationError as error:
        raise ApiError("configuration-error", str(error)) from error


def _still_there(made: Future[Path]) -> bool:
    """Whether what was made is there: not after an error (it is tried again), nor when the results were removed."""
    return made.exception() is None and made.result().is_file()
