"""The process that draws overlays while their jobs run: whatever kills it, the results are elsewhere.

Asked by messages of the supervisor's link: ``draw`` begins an overlay or goes on with it, ``end`` says that its
results are whole and where they are. It answers ``drawn`` (how far it is), ``made`` and ``failed``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2

from daemon.exports.drawing import Drawing
from daemon.exports.style import Style
from supervisor.child import Link

IDLE = 0.05
"""Seconds between two looks for new results."""
TELL_EVERY = 0.2


def main(link: Link, config: Mapping[str, Any]) -> None:
    """Entry of the drawing process. ``config`` holds ``side``, ``sound``, and the backend's ``options``."""
    cv2.setNumThreads(1)
    drawer = Drawer(link, Style(int(config["side"]), bool(config["sound"])), config["options"])
    link.ready()
    busy = False
    while not link.stopping:
        while (message := link.receive(0 if busy else IDLE)) is not None:
            drawer.take(*message)
            busy = True
        busy = drawer.turn()


class Drawer:
    """The overlays in work, in the order in which they were asked for."""

    def __init__(self, link: Link, style: Style, options: Mapping[str, Any]) -> None:
        self._link = link
        self._style = style
        self._options = options
        self._drawings: dict[str, Drawing] = {}
        self._ends: dict[str, Path] = {}
        self._told = 0.0

    def take(self, kind: str, payload: Mapping[str, Any]) -> None:
        """One message."""
        results = str(payload.get("results", ""))
        if kind == "draw" and results not in self._drawings:
            self._drawings[results] = Drawing(
                Path(payload["source"]), Path(payload["frames"]), Path(payload["work"]), self._style, self._options,
                self._link.progress,
            )  # fmt: skip
        elif kind == "end" and results in self._drawings:
            self._ends[results] = Path(payload["frames"])

    def turn(self) -> bool:
        """Draw one frame of the first overlay for which there is one, or finish one; False if nothing was to do."""
        for results, drawing in list(self._drawings.items()):
            try:
                with self._link.working({"results": results, "frame": drawing.done}):
                    if results in self._ends and not drawing.settled:
                        drawing.settle(self._ends[results])
                    moved = drawing.step()
                    film = drawing.finish(Path(results)) if results in self._ends and not moved else None
            except MemoryError:
                raise
            except Exception as error:  # noqa: BLE001  (whatever a video library raises; the parts stay)
                self._link.idle()
                self._drop(results)
                said = str(error) or type(error).__name__
                self._link.send("failed", {"results": results, "message": said})
                return True
            if film is not None:
                self._drop(results)
                self._link.send("made", {"results": results, "file": film.name})
                return True
            if moved:
                self._tell(results, drawing.done)
                return True
        return False

    def _drop(self, results: str) -> None:
        self._drawings.pop(results).close()
        self._ends.pop(results, None)

    def _tell(self, results: str, done: int) -> None:
        if time.monotonic() - self._told >= TELL_EVERY:
            self._told = time.monotonic()
            self._link.send("drawn", {"results": results, "done": done})
