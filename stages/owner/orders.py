"""What the stages are told about a job: when to open it, where to begin, how far it is safe, whom to beware of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stages.owner.active import Active

Send = Callable[[str, str, dict[str, Any]], None]
"""Sends a message of a kind to every ready process of a stage."""


class Orders:
    """Says it in the words that the stages understand (`stages.process`).

    Args:
        send: how it gets there. What a process that is not ready misses, it is told when it is.
        stream: the video stream that is decoded where a job does not say; -1 leaves the choice to the source.
    """

    def __init__(self, send: Send, stream: int) -> None:
        self._send = send
        self._stream = stream

    def open(self, active: Active) -> None:
        """To decode: open the input."""
        self.suspects(active, "decode")
        job = active.job
        stream = self._stream if job.stream is None else job.stream
        self._send(
            "decode", "open", {"job": active.number, "source": job.source, "urgent": job.urgent, "stream": stream}
        )

    def track(self, active: Active) -> None:
        """To track: open the journal, once it is known what the input is."""
        if active.info is not None:
            self.suspects(active, "track")
            wanted = {"folder": active.job.folder, "info": active.info, "segment": active.job.segment}
            self._send("track", "job", {"job": active.number, **wanted})

    def go(self, active: Active) -> None:
        """To decode: begin, once both have it open."""
        if active.opened and active.tracked:
            begin = {"start": active.next_frame, "stop": active.stop, "state": active.state}
            self._send("decode", "go", {"job": active.number, **begin})

    def committed(self, active: Active) -> None:
        """To decode: what is before the next frame is safe."""
        self._send("decode", "commit", {"job": active.number, "next": active.next_frame, "state": active.state})

    def suspects(self, active: Active, stage: str) -> None:
        """To a stage: the frames to work on alone, and those to skip."""
        if frames := active.isolated.get(stage):
            self._send(stage, "isolate", {"job": active.number, "frames": frames})
        for frame, reason in active.skipped.get(stage, {}).items():
            self._send(stage, "skip", {"job": active.number, "frame": frame, "reason": reason})
