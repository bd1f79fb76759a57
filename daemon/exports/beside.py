"""Overlays drawn beside the pipeline, from what is committed, in a process that is watched as the stages are.

All of it belongs to the results folder that the overlay is for, which names it here. Everything may be called from
any thread; the supervisor has a thread of its own, which begins with the first overlay.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.exports.style import Style
from stages.owner.processes import code_roots
from supervisor import events as ev
from supervisor.events import ExitKind
from supervisor.runtime import make_runtime
from supervisor.spec import ProcessSpec
from supervisor.supervisor import Supervisor

NAME = "overlay"
ENTRY = "daemon.exports.drawer:main"
NICE = 4
"""The drawing gives way to the stages, but not so much that all of it is left for the end."""
TURN = 0.25
DEADLY = 3
"""Deaths over one frame after which its overlay is given up."""


class DrawingError(Exception):
    """An overlay could not be made; says why."""


@dataclass
class _Overlay:
    source: Path
    frames: Path
    work: Path
    whole: Path | None = None
    """The finished ``frames.msgpack``."""
    done: int = 0
    made: Path | None = None
    problem: str | None = None
    deaths: Counter[int] = field(default_factory=Counter)


class Beside:
    """The overlays of one run or daemon.

    Args:
        style: what can be chosen of them.
        options: of the backend.
        backend: whose code the drawing may load.
        runtime: where the supervisor's socket may be, see `supervisor.runtime.make_runtime`.
        tell: called with a results folder and the frames drawn of its overlay, from a thread of this.
    """

    def __init__(
        self,
        style: Style,
        options: Mapping[str, Any],
        backend: str,
        runtime: Path | None = None,
        tell: Callable[[Path, int], None] = lambda results, done: None,
    ) -> None:
        self._spec = ProcessSpec(
            NAME,
            ENTRY,
            {"side": style.side, "sound": style.sound, "options": dict(options)},
            env={"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            nice=NICE,
            code_roots=code_roots(backend),
        )
        self._runtime = runtime
        self._tell = tell
        self._overlays: dict[Path, _Overlay] = {}
        self._changed = threading.Condition()
        self._calls: queue.SimpleQueue[Callable[[Supervisor], None]] = queue.SimpleQueue()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread: threading.Thread | None = None
        self._up = False
        self._closing = False

    def begin(self, results: Path, source: Path, frames: Path, work: Path) -> None:
        """Draw what comes to stand in the growing ``frames``; ``work`` is a folder for the parts."""
        with self._changed:
            if results in self._overlays or self._closing:
                return
            self._overlays[results] = _Overlay(source, frames, work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="pw-overlay", daemon=True)
                self._thread.start()
        self._call(lambda supervisor: self._ask(supervisor, results))

    def drawn(self, results: Path) -> int | None:
        """Frames drawn of an overlay in work; None if there is none."""
        overlay = self._overlays.get(results)
        return None if overlay is None else overlay.done

    def export(
        self, results: Path, source: Path, frames: Path, work: Path, progress: Callable[[int], None]
    ) -> Path:
        """The results are whole: wait until the overlay is.

        Args:
            progress: called while it takes, with the frames drawn; may raise to leave it as it is.

        Raises:
            DrawingError: it cannot be made.
        """
        self.begin(results, source, frames, work)
        overlay = self._overlays.get(results)
        if overlay is None:
            raise DrawingError("the drawing of overlays has been stopped")
        overlay.whole = frames
        self._call(lambda supervisor: self._ask(supervisor, results))
        try:
            while True:
                with self._changed:
                    if overlay.made is None and overlay.problem is None:
                        self._changed.wait(0.1)
                    if overlay.made is not None:
                        return overlay.made
                    if overlay.problem is not None:
                        raise DrawingError(overlay.problem)
                    if self._closing:
                        raise DrawingError("the drawing of overlays has been stopped")
                progress(overlay.done)
        finally:
            if overlay.made is None and overlay.problem is None:
                self.drop(results)
            with self._changed:
                self._overlays.pop(results, None)

    def drop(self, results: Path) -> None:
        """Nobody wants this overlay any more; when this returns, nobody works in its folder."""
        with self._changed:
            if self._overlays.pop(results, None) is None or self._closing:
                return
        gone = threading.Event()  # the process is started anew: it may be in the middle of a part
        self._call(lambda supervisor: self._restart(supervisor, gone))
        while not gone.wait(0.1) and self._thread is not None and self._thread.is_alive():
            pass

    def close(self) -> None:
        """End the process; what is whole of the overlays stays in their work folders."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._ring()
            self._thread.join()
            self._thread = None
        os.close(self._wake)

    # -- the supervisor's thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            supervisor = Supervisor(make_runtime(self._runtime), self._on_event, wake=self._wake)
        except Exception as error:  # noqa: BLE001  (no folder, no descriptors: nothing is drawn, and that is said)
            self._closing = True
            self._give_up(f"the drawing cannot be started: {error}")
            return
        try:
            supervisor.add(self._spec)
            supervisor.start()
            while not self._closing:
                supervisor.step(TURN)
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
                with contextlib.suppress(queue.Empty):
                    while True:
                        self._calls.get_nowait()(supervisor)
        finally:
            supervisor.stop(0.0)

    def _ask(self, supervisor: Supervisor, results: Path) -> None:
        overlay = self._overlays.get(results)
        if overlay is None or overlay.problem is not None or not self._up:
            return  # it is asked for all when it is up
        told = {"results": str(results), "source": str(overlay.source), "frames": str(overlay.frames)}
        supervisor.send(NAME, "draw", {**told, "work": str(overlay.work)})
        if overlay.whole is not None:
            supervisor.send(NAME, "end", {"results": str(results), "frames": str(overlay.whole)})

    def _restart(self, supervisor: Supervisor, gone: threading.Event) -> None:
        """Have a process that knows nothing of what was dropped: its parts make that cheap."""
        supervisor.kill(NAME)
        while self._up and not self._closing:
            supervisor.step(TURN)
        supervisor.reset(NAME)
        gone.set()

    def _on_event(self, event: ev.Event) -> None:
        if isinstance(event, ev.Ready):
            self._up = True
            for results in list(self._overlays):
                self._calls.put(lambda supervisor, results=results: self._ask(supervisor, results))  # type: ignore[misc]
            self._ring()
        elif isinstance(event, ev.Message):
            self._take(event.kind, event.payload)
        elif isinstance(event, ev.Died):
            self._up = False
            self._blame(event.exit)
        elif isinstance(event, ev.CircuitOpened | ev.Failed):
            self._give_up(f"the drawing keeps ending: {event.exit.reason}")

    def _take(self, kind: str, payload: Mapping[str, Any]) -> None:
        results = Path(payload["results"])
        overlay = self._overlays.get(results)
        if overlay is None:
            return
        with self._changed:
            if kind == "drawn":
                overlay.done = int(payload["done"])
            elif kind == "made":
                overlay.made = results / str(payload["file"])
            elif kind == "failed":
                overlay.problem = str(payload["message"])
            self._changed.notify_all()
        if kind == "drawn":
            self._tell(results, overlay.done)

    def _blame(self, report: ev.ExitReport) -> None:
        """A frame over which the process dies again and again must not keep the others from being drawn."""
        if report.activity is None or report.kind in (ExitKind.STOPPED, ExitKind.RECYCLED):
            return
        overlay = self._overlays.get(Path(str(report.activity.get("results"))))
        if overlay is None:
            return
        frame = int(report.activity.get("frame", 0))
        overlay.deaths[frame] += 1
        if overlay.deaths[frame] >= DEADLY:
            with self._changed:
                overlay.problem = f"the drawing died {DEADLY} times over frame {frame}: {report.reason}"
                self._changed.notify_all()

    def _give_up(self, why: str) -> None:
        with self._changed:
            for overlay in self._overlays.values():
                if overlay.made is None:
                    overlay.problem = overlay.problem or why
            self._changed.notify_all()

    def _call(self, work: Callable[[Supervisor], None]) -> None:
        self._calls.put(work)
        self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.eventfd_write(self._wake, 1)
