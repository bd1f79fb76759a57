"""Daemons that speak HTTP, and who asks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx

from tests.daemon.daemons import PATIENCE, Daemon, until


def with_http(base: Path, *sets: str, backend: str = "tests.stages.blocks") -> Daemon:
    """A daemon with a gateway at a port of its own choice."""
    return Daemon(base, "http.address=127.0.0.1:0", *sets, backend=backend)


def address(daemon: Daemon) -> str:
    """Where its gateway answers, without the last slash."""
    with daemon.client() as client:
        return str(client.health()["http"]).rstrip("/")


def asker(daemon: Daemon, **more: Any) -> httpx.Client:
    return httpx.Client(base_url=address(daemon), timeout=PATIENCE, **more)


def finished(http: httpx.Client, job: str) -> dict[str, Any]:
    """A job's map once it has ended."""

    def look() -> Any:
        found = http.get(f"/v1/jobs/{job}/wait", params={"timeout": 10}).json()["job"]
        return found if found["state"] in ("done", "failed", "cancelled") else None

    found: dict[str, Any] = until(look, f"the end of {job}")
    return found
