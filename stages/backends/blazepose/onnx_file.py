"""Writes a network as an ONNX file: the few parts of the format (onnx/onnx.proto3) that a plain network needs.

The format is protocol buffers; the same network always gives the same bytes, so that a converted file can be known by
its SHA-256.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

IR_VERSION = 8
OPSET = 13
"""Operators as they were defined then: every runtime of the last years knows them."""
_FLOAT, _INT, _FLOATS, _INTS, _STRING = 1, 2, 6, 7, 3
"""Kinds of attributes (AttributeProto.AttributeType)."""
_TYPES = {np.dtype(np.float32): 1, np.dtype(np.int64): 7}
"""Kinds of tensors (TensorProto.DataType)."""

Attribute = float | int | str | Sequence[int]


@dataclass
class OnnxGraph:
    """A network in the making: nodes in the order in which they are to be computed."""

    nodes: list[bytes] = field(default_factory=list)
    constants: dict[str, bytes] = field(default_factory=dict)

    def constant(self, name: str, values: npt.NDArray[Any]) -> str:
        """Add a constant of float32 or int64; returns its name."""
        tensor = b"".join(_number(1, size) for size in values.shape)
        tensor += _number(2, _TYPES[values.dtype]) + _text(8, name)
        little = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        self.constants[name] = tensor + _bytes(9, little.tobytes())
        return name

    def node(self, kind: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Attribute) -> str:
        """Add an operator; returns the name of its first output."""
        node = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
        node += _text(3, outputs[0]) + _text(4, kind)
        node += b"".join(_bytes(5, _attribute(name, value)) for name, value in sorted(attributes.items()))
        self.nodes.append(node)
        return outputs[0]

    def model(
        self, inputs: Mapping[str, Sequence[int | str]], outputs: Mapping[str, Sequence[int | str]]
    ) -> bytes:
        """The file. ``inputs`` and ``outputs`` are float32: their shapes by their names, a name in place of a size
        that may be any."""
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _text(2, "network")
        graph += b"".join(_bytes(5, tensor) for tensor in self.constants.values())
        graph += b"".join(_bytes(11, _value(name, shape)) for name, shape in inputs.items())
        graph += b"".join(_bytes(12, _value(name, shape)) for name, shape in outputs.items())
        return _number(1, IR_VERSION) + _bytes(7, graph) + _bytes(8, _number(2, OPSET))


def _value(name: str, shape: Sequence[int | str]) -> bytes:
    sizes = (_text(2, size) if isinstance(size, str) else _number(1, size) for size in shape)
    dimensions = b"".join(_bytes(1, size) for size in sizes)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, dimensions)))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, float):
        content = _tag(2, 5) + struct.pack("<f", value) + _number(20, _FLOAT)
    elif isinstance(value, int):
        content = _number(3, value) + _number(20, _INT)
    elif isinstance(value, str):
        content = _text(4, value) + _number(20, _STRING)
    else:
        content = b"".join(_number(8, item) for item in value) + _number(20, _INTS)
    return _text(1, name) + content


def _tag(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _number(number: int, value: int) -> bytes:
    return _tag(number, 0) + _varint(value & (1 << 64) - 1)


def _bytes(number: int, value: bytes) -> bytes:
    return _tag(number, 2) + _varint(len(value)) + value


def _text(number: int, value: str) -> bytes:
    return _bytes(number, value.encode())


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
