"""Files that a client reads before it sends anything: its keys, and what it uploads."""

from __future__ import annotations

import hashlib
from pathlib import Path

import zmq.auth


def load_keys(key: str | Path | None, server_key: str | Path | None) -> tuple[bytes, bytes, bytes] | None:
    """The client's public and secret CURVE keys and the daemon's public one; None without any."""
    if key is None and server_key is None:
        return None
    if key is None or server_key is None:
        raise ValueError("a CURVE connection needs both key (the client's own) and server_key (the daemon's)")
    public, secret = zmq.auth.load_certificate(Path(key).expanduser())
    server, _ = zmq.auth.load_certificate(Path(server_key).expanduser())
    if secret is None:
        raise ValueError(f"{key} holds a public key only: name the .key_secret file")
    return public, secret, server


def digest_of(path: Path) -> tuple[int, str]:
    """A file's size in bytes and its SHA-256."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
            size += len(piece)
    return size, digest.hexdigest()
