"""Starts real daemons for tests, as processes of their own, with the fast backend of `tests.stages.blocks`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from daemon.client import Client, ClientError
from tests.paths import ROOT

MAIN = "from daemon.cli import main; main()"
PATIENCE = float(os.environ.get("POSEWARD_TEST_PATIENCE", "120"))
FAST = (
    "stages.slots=8", "stages.max_pixels=76800", "stages.ring_mb=8", "stages.snapshot_every=10",
    "stages.deadlines.working=10", "stages.deadlines.heartbeat=10", "stages.deadlines.grace=1",
    "stages.restart.base_delay=0.01", "stages.restart.max_delay=0.1", "stages.restart.max_restarts=1000",
    "results.exports=[]", "drop.settle=0.2",
)  # fmt: skip


class Daemon:
    """A daemon whose state outlives its process: `start` again after `kill` plays systemd's part."""

    def __init__(self, base: Path, *sets: str, backend: str = "tests.stages.blocks") -> None:
        base.mkdir(parents=True, exist_ok=True)
        # Unix socket paths are short; a test's own folder often is not.
        self.sockets = Path(tempfile.mkdtemp(prefix="pwd-"))
        self.base = base
        self.results = base / "results"
        self.log = base / "daemon.log"
        self.address = f"ipc://{self.sockets / 'api.sock'}"
        self.sets = [
            f"daemon.state={base / 'state'}", f"results.folder={self.results}", f"api.address={self.address}",
            f'api.roots=["{base}"]', f"stages.backend={backend}", *FAST, *sets,
        ]  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Daemon:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()
        for path in self.sockets.iterdir():
            path.unlink()
        self.sockets.rmdir()

    def start(self, wait: bool = True, env: dict[str, str] | None = None) -> Daemon:
        arguments = [part for item in self.sets for part in ("--set", item)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", MAIN, "serve", *arguments],
                stdout=log,
                stderr=log,
                cwd=ROOT,
                env={**os.environ, **(env or {})},
            )
        if wait:
            until(self._answers, "the daemon's first answer")
        return self

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.story()
        try:
            with self.client(1.0) as client:
                return bool(client.hello())
        except ClientError as error:
            assert error.name == "timeout", error
            return False

    def client(self, patience: float = PATIENCE, **more: Any) -> Client:
        return Client(self.address, patience=patience, **more)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stop in order; returns the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise AssertionError(f"the daemon did not stop:\n{self.story()}") from None
        return self.process.returncode

    def below(self) -> list[psutil.Process]:
        assert self.process is not None
        return psutil.Process(self.process.pid).children(recursive=True)

    def story(self) -> str:
        return self.log.read_text(errors="replace")[-6000:]


def until(condition: Callable[[], Any], what: str = "condition", seconds: float = PATIENCE) -> Any:
    """Wait for something to become true; returns it."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} not reached"
        time.sleep(0.02)
    return found


def ended(client: Client, jobs: Sequence[str]) -> list[dict[str, Any]]:
    """Wait for all jobs to end; returns their maps."""
    return [client.wait(job, PATIENCE) for job in jobs]
