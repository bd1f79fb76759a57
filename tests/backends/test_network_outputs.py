"""A network computes what is asked for, and no more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated

from stages.backends.blazepose.network import Network
from stages.backends.blazepose.outputs import only
from stages.protocols import ConfigurationError

SCHEMA: Any = schema_py_generated


def model() -> bytes:
    """Of an input x (1, 4): ``squared`` is x², ``fourth`` the square of that, ``other`` -x."""
    graph = SCHEMA.SubGraphT()
    graph.tensors, graph.operators = [], []
    for name in ("x", "squared", "fourth", "other"):
        tensor = SCHEMA.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = name.encode(), [1, 4], SCHEMA.TensorType.FLOAT32, 0
        graph.tensors.append(tensor)
    for code, source, target in ((0, 0, 1), (0, 1, 2), (1, 0, 3)):
        operator = SCHEMA.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = code, [source], [target]
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], [1, 2, 3]
    whole = SCHEMA.ModelT()
    whole.version, whole.subgraphs, whole.buffers, whole.operatorCodes = 3, [graph], [SCHEMA.BufferT()], []
    for kind in (SCHEMA.BuiltinOperator.SQUARE, SCHEMA.BuiltinOperator.NEG):
        operation = SCHEMA.OperatorCodeT()
        operation.builtinCode = operation.deprecatedBuiltinCode = kind
        operation.version = 1
        whole.operatorCodes.append(operation)
    builder = flatbuffers.Builder(1024)
    builder.Finish(whole.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def operations(data: bytes) -> int:
    return len(SCHEMA.ModelT.InitFromPackedBuf(data, 0).subgraphs[0].operators)


@pytest.mark.parametrize(
    ("names", "left"), [(("squared",), 1), (("other",), 1), (("fourth",), 2), (("other", "fourth"), 3)]
)
def test_only_what_the_wanted_outputs_need_is_left_and_is_the_same(
    names: tuple[str, ...], left: int, tmp_path: Path
) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(model())
    x = np.array([[1.0, -2.0, 3.0, 0.5]], np.float32)
    expected = {"squared": x**2, "fourth": x**4, "other": -x}
    assert operations(only(file.read_bytes(), names)) == left
    found = Network(file, 1, names).run(x, *names)
    for name, values in zip(names, found, strict=True):
        np.testing.assert_array_equal(values, expected[name])


def test_an_output_that_a_file_lacks_is_named(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    file.write_bytes(model())
    with pytest.raises(ConfigurationError, match=r"cannot load .*model.tflite: .* no output mask; it has squared"):
        Network(file, 1, ("squared", "mask"))


def test_a_file_that_is_no_model_is_a_configuration_error(tmp_path: Path) -> None:
    for content in (b"", b"\0\1\2", b"\xff" * 200, model()[:100]):
        (tmp_path / "model.tflite").write_bytes(content)
        with pytest.raises(ConfigurationError, match=r"LiteRT cannot load .*model.tflite"):
            Network(tmp_path / "model.tflite", 1, ("squared",))
