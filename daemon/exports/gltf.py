"""Writes binary glTF 2.0 (.glb): one JSON chunk and one binary chunk, whose parts are added one by one."""

from __future__ import annotations

import json
import struct
from typing import IO, Any

import numpy as np
import numpy.typing as npt

FLOAT, USHORT, UINT, UBYTE = 5126, 5123, 5125, 5121
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
_KINDS = {"float32": FLOAT, "uint16": USHORT, "uint32": UINT, "uint8": UBYTE}
_SHAPES = {(): "SCALAR", (2,): "VEC2", (3,): "VEC3", (4,): "VEC4", (4, 4): "MAT4"}


class GlbWriter:
    """Collects a scene's JSON, and its arrays in a file of their own; `finish` puts them together.

    ``document`` holds glTF's top-level lists, to be appended to; `add` returns the index of a new accessor.
    """

    def __init__(self, scratch: IO[bytes]) -> None:
        self._scratch = scratch
        self._size = 0
        self.document: dict[str, list[Any]] = {
            name: []
            for name in (
                "nodes",
                "meshes",
                "skins",
                "animations",
                "materials",
                "cameras",
                "accessors",
                "bufferViews",
            )
        }

    def add(self, array: npt.NDArray[Any], *, target: int | None = None, bounds: bool = False) -> int:
        """An accessor for an array whose first axis counts; ``bounds`` writes its least and greatest values."""
        data = np.ascontiguousarray(array).tobytes()
        view: dict[str, Any] = {"buffer": 0, "byteOffset": self._size, "byteLength": len(data)}
        if target is not None:
            view["target"] = target
        self._scratch.write(data + bytes(-len(data) % 4))
        self._size += len(data) + -len(data) % 4
        accessor: dict[str, Any] = {
            "bufferView": len(self.document["bufferViews"]),
            "componentType": _KINDS[array.dtype.name],
            "count": len(array),
            "type": _SHAPES[array.shape[1:]],
        }
        if bounds:
            accessor["min"] = np.atleast_1d(array.min(axis=0)).tolist()
            accessor["max"] = np.atleast_1d(array.max(axis=0)).tolist()
        self.document["bufferViews"].append(view)
        self.document["accessors"].append(accessor)
        return len(self.document["accessors"]) - 1

    def node(self, **values: Any) -> int:
        """Add a node; returns its index."""
        self.document["nodes"].append(values)
        return len(self.document["nodes"]) - 1

    def finish(self, file: IO[bytes], roots: list[int], extras: dict[str, Any]) -> None:
        """Write the file; ``roots`` are the scene's nodes, ``extras`` go with the asset."""
        content: dict[str, Any] = {
            "asset": {"version": "2.0", "generator": "Poseward", "extras": extras},
            "scene": 0,
            "scenes": [{"nodes": roots}],
            "buffers": [{"byteLength": self._size}],
            **{name: entries for name, entries in self.document.items() if entries},
        }
        text = json.dumps(content, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + self._size
        file.write(struct.pack("<4sII", b"glTF", 2, total))
        file.write(struct.pack("<I4s", len(text), b"JSON") + text)
        file.write(struct.pack("<I4s", self._size, b"BIN\0"))
        self._scratch.seek(0)
        while piece := self._scratch.read(1 << 20):
            file.write(piece)
