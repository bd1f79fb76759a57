"""The janitor: a shell that outlives a supervisor that was killed, and cleans up after it."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

SCRIPT = """
while read -r line; do
  case $line in
    +*) pids="$pids ${line#+}" ;;
    -*) left=; for pid in $pids; do [ "$pid" = "${line#-}" ] || left="$left $pid"; done; pids=$left ;;
  esac
done
for pid in $pids; do kill -s KILL -- "-$pid" 2>/dev/null; done
rm -rf -- "$1"
"""


class Janitor:
    """Knows the process groups that are alive. When its pipe closes, whether in order or by the owner's death, it
    ends what is left of them and removes the runtime folder."""

    def __init__(self, runtime: Path) -> None:
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", SCRIPT, "pw-janitor", str(runtime)], stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd="/",
        )  # fmt: skip
        assert self._process.stdin is not None
        self._pipe = self._process.stdin

    def began(self, pid: int) -> None:
        """A process group of this number is alive."""
        self._tell(f"+{pid}\n")

    def ended(self, pid: int) -> None:
        """It is not any more."""
        self._tell(f"-{pid}\n")

    def close(self) -> None:
        """Let it finish, and wait for that."""
        with contextlib.suppress(BrokenPipeError):
            self._pipe.close()
        self._process.wait()

    def _tell(self, line: str) -> None:
        # Somebody may have killed it; stale folders are swept at the next start.
        with contextlib.suppress(BrokenPipeError):
            self._pipe.write(line.encode())
            self._pipe.flush()
