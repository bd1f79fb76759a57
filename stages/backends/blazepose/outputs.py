"""A TFLite model reduced to what some of its outputs need: who asks for less has less computed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

MARK = b"TFL3"
"""Stands behind the first four bytes of a TFLite file."""


def only(model: bytes, names: Sequence[str]) -> bytes:
    """``model`` without the operations on which none of the outputs ``names`` depends. The others are the same, to the
    bit.

    Raises:
        ValueError: it has no such output, or is no such model.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated

    schema: Any = schema_py_generated
    if model[4:8] != MARK:
        raise ValueError("it is not a TFLite model")
    try:
        whole = schema.ModelT.InitFromPackedBuf(model, 0)
    except (struct.error, LookupError, TypeError) as error:
        raise ValueError(f"the model is damaged: {error}") from error
    graph = whole.subgraphs[0]
    named = {graph.tensors[output].name.decode(): output for output in graph.outputs}
    if missing := [name for name in names if name not in named]:
        raise ValueError(f"the model has no output {', '.join(missing)}; it has {', '.join(named)}")
    needed = {named[name] for name in names}
    operations = []
    for operation in reversed(graph.operators):
        if not needed.isdisjoint(operation.outputs):
            operations.append(operation)
            needed.update(operation.inputs)
    graph.operators = operations[::-1]
    graph.outputs = [output for name, output in named.items() if name in names]
    whole.signatureDefs = []  # it would name outputs that are gone
    builder = flatbuffers.Builder(len(model))
    builder.Finish(whole.Pack(builder), MARK)
    return bytes(builder.Output())
