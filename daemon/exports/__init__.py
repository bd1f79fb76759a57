"""Exports: results in forms that other programs and people read.

Imported lazily: each export pulls in its own libraries only when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from stages.protocols import ConfigurationError, find_backend
from stages.results import read_results

EXPORTS: Mapping[str, str] = {
    "overlay": "overlay.mp4 (or .png): the meshes drawn on the input",
    "glb": "mesh.glb: the posed meshes of the frame that shows the most people, for 3D viewers",
    "json": "frames.jsonl: everything but the surfaces, a JSON object a line",
}
"""Exports of every backend, with what each writes. A backend may offer more (`stages.protocols.Backend.exports`)."""


def export(
    name: str,
    source: str | Path,
    results: str | Path,
    folder: str | Path,
    progress: Callable[[int], None] = lambda done: None,
    options: Mapping[str, Any] | None = None,
) -> Path:
    """Write one export of ``results`` (a ``frames.msgpack``) of ``source`` into ``folder``.

    Args:
        progress: told how many frames are done.
        options: of the backend.

    Returns:
        The file written.

    Raises:
        ConfigurationError: there is no such export for these results; names those there are.
    """
    source, results, folder = Path(source), Path(results), Path(folder)
    if name == "overlay":
        from daemon.exports.overlay import write_overlay

        return write_overlay(source, results, folder, progress=progress, options=options)
    if name == "glb":
        from daemon.exports.glb import write_glb

        return write_glb(results, folder, options=options)
    if name == "json":
        from daemon.exports.json_lines import write_json

        return write_json(results, folder)
    with read_results(results) as found:
        backend = find_backend(found.header.backend)
    if name not in backend.exports:
        known = ", ".join([*EXPORTS, *backend.exports])
        raise ConfigurationError(f"export {name!r}: results of backend {backend.name} can be exported as {known}")
    return backend.exports[name](results, folder)
