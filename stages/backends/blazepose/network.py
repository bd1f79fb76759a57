"""One LiteRT network: arrays in, arrays out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stages.protocols import ConfigurationError
from stages.records import F32


class Network:
    """A TFLite file with one float32 input. Repeated runs on the same input are bit-identical.

    Args:
        path: The .tflite file.
        threads: Threads that one run may use.

    Raises:
        ConfigurationError: the runtime is not installed, or it cannot load the file.
    """

    def __init__(self, path: Path, threads: int) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise ConfigurationError(
                f"the LiteRT runtime cannot be imported ({error}): install the package ai-edge-litert for this "
                "stage's interpreter"
            ) from error
        try:
            self._interpreter: Any = Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ConfigurationError(f"LiteRT cannot load {path}: {error}") from error
        self._input = int(self._interpreter.get_input_details()[0]["index"])
        self._outputs = {d["name"]: int(d["index"]) for d in self._interpreter.get_output_details()}

    def run(self, values: F32, *names: str) -> list[F32]:
        """Copies of the outputs ``names`` for ``values``, a float32 array of the input's shape."""
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(values, np.float32))
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(self._outputs[name]) for name in names]
