"""One network: arrays in, arrays out, on LiteRT or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.backends.blazepose.outputs import only
from stages.protocols import ConfigurationError
from stages.records import F32


class Network:
    """A TFLite file with one float32 input. Repeated runs on the same input are bit-identical.

    Args:
        path: The .tflite file.
        threads: Threads that one run may use.
        outputs: Names of the outputs that will be asked for; what only others need is not computed.

    Raises:
        ConfigurationError: the runtime is not installed, or it cannot load the file.
    """

    def __init__(self, path: Path, threads: int, outputs: Sequence[str]) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ConfigurationError(
                f"the LiteRT runtime cannot be imported ({error}): install the package ai-edge-litert for this "
                "stage's interpreter"
            ) from error
        try:
            self._interpreter: Any = Interpreter(
                model_content=only(path.read_bytes(), outputs), num_threads=threads
            )
            self._interpreter.allocate_tensors()
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigurationError(f"LiteRT cannot load {path}: {error}") from error
        self._input = int(self._interpreter.get_input_details()[0]["index"])
        self._outputs = {d["name"]: int(d["index"]) for d in self._interpreter.get_output_details()}

    def run(self, values: F32, *names: str) -> list[F32]:
        """Copies of the outputs ``names`` for ``values``, a float32 array of the input's shape."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(values, np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]


class OnnxNetwork:
    """An ONNX file with one float32 input of any height and width. Repeated runs on the same input are bit-identical.

    Args:
        path: The .onnx file.
        threads: Threads that one run may use.

    Raises:
        ConfigurationError: the runtime is not installed, or it cannot load the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ConfigurationError(
                f"ONNX Runtime cannot be imported ({error}): install the package onnxruntime for this stage's "
                "interpreter"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # Threads that wait for work would otherwise spin, on cores that the other stages need.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise ConfigurationError(f"ONNX Runtime cannot load {path}: {error}") from error
        self._input = str(self._session.get_inputs()[0].name)

    def run(self, values: F32, *names: str) -> list[F32]:
        """The outputs ``names`` for ``values`` (1, 3, H, W) float32."""
        found: list[F32] = self._session.run(list(names), {self._input: values})
        return found
