"""Turns NanoDet as it is published, a TensorFlow.js graph, into an ONNX file.

The graph holds its tensors in NCHW and computes in NHWC, so that around every convolution stand two transpositions, a
padding and an addition. All of it becomes plain ONNX operators in NCHW; and since nothing in the network depends on
the size of its input, the ONNX file takes pictures of any height and width that are multiples of 32.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.backends.blazepose.onnx_file import OnnxGraph

LAYOUTS = ([0, 2, 3, 1], [0, 3, 1, 2])
"""The transpositions from NCHW to NHWC and back."""


def to_onnx(graph: bytes, weights: bytes) -> bytes:
    """The ONNX file of a TensorFlow.js graph model.

    Args:
        graph: The model's .json file.
        weights: Its .bin file.

    Returns:
        The same bytes for the same input, always. Inputs and outputs are named as in the graph, without ``:0``.

    Raises:
        ValueError: the graph has something that NanoDet's does not have.
    """
    model = json.loads(graph)
    return _Conversion(model, _tensors(model["weightsManifest"], weights)).run()


def _tensors(manifest: list[dict[str, Any]], data: bytes) -> dict[str, npt.NDArray[Any]]:
    """The constants by name; those kept in float16 as float32."""
    found = {}
    at = 0
    for entry in (entry for group in manifest for entry in group["weights"]):
        kept = np.dtype(entry.get("quantization", entry)["dtype"]).newbyteorder("<")
        values = np.frombuffer(data, kept, int(np.prod(entry["shape"], dtype=int)), at).reshape(entry["shape"])
        at += values.nbytes
        found[entry["name"]] = values.astype(entry["dtype"])
    return found


class _Conversion:
    """Walks the graph from its outputs to its input. A tensor and its transpositions are one: that in NCHW."""

    def __init__(self, model: Mapping[str, Any], constants: Mapping[str, npt.NDArray[Any]]) -> None:
        self._nodes = {node["name"]: node for node in model["modelTopology"]["node"]}
        self._inputs = list(model["signature"]["inputs"].values())
        self._outputs = sorted(model["signature"]["outputs"].values(), key=lambda output: str(output["name"]))
        self._constants = constants
        self._graph = OnnxGraph()
        self._done: dict[str, int] = {}
        """The tensors that are in the ONNX file; of each, how high it is for an input of the published size."""

    def run(self) -> bytes:
        inputs: dict[str, list[int | str]] = {}
        for entry in self._inputs:
            shape = _shape(entry)
            self._done[entry["name"].removesuffix(":0")] = shape[2]
            inputs[entry["name"].removesuffix(":0")] = [*shape[:2], "height", "width"]
        outputs: dict[str, list[int | str]] = {}
        for number, entry in enumerate(self._outputs):
            name = entry["name"].removesuffix(":0")
            self._graph.node("Identity", [self._tensor(self._nodes[name]["input"][0])], [name])
            outputs[name] = [1, f"cells{number}", _shape(entry)[2]]
        return self._graph.model(inputs, outputs)

    def _constant(self, name: str) -> list[Any]:
        """The value of a tensor that is known beforehand; some are the sum of a constant and an empty tensor."""
        while name not in self._constants:
            name = self._nodes[name]["input"][0]
        values: list[Any] = self._constants[name].tolist()
        return values

    def _plain(self, name: str) -> str:
        """The tensor that ``name`` is, but for its layout."""
        node = self._nodes.get(name, {})
        if node.get("op") == "Transpose" and self._constant(node["input"][1]) in LAYOUTS:
            return self._plain(node["input"][0])
        return name

    def _padded(self, name: str) -> tuple[str, list[int]]:
        """A tensor without the padding that the graph gives it, and that padding: top, left, bottom, right."""
        node = self._nodes.get(self._plain(name), {})
        if node.get("op") not in ("Pad", "PadV2"):
            return self._tensor(name), [0, 0, 0, 0]
        _, _, (top, bottom), (left, right) = self._constant(node["input"][1])
        return self._tensor(node["input"][0]), [top, left, bottom, right]

    def _tensor(self, name: str) -> str:
        """The ONNX name of a tensor, which is added to the file unless it is there."""
        name = self._plain(name)
        if name not in self._done:
            self._add(name)
        return name

    def _add(self, name: str) -> None:
        base, _, part = name.partition(":")
        if part:  # a further output of a node
            self._done[name] = self._done[self._tensor(base)]
            return
        node = self._nodes[name]
        kind, names, attributes = node["op"], node.get("input", []), node.get("attr", {})
        if kind == "Add" and names[1] in self._constants:
            convolution = self._nodes[names[0]]
            source, pads = self._padded(convolution["input"][0])
            strides = _numbers(convolution, "strides")[1:3]
            kernel = self._constants[convolution["input"][1]]
            weights = self._graph.constant(f"{name}/kernel", np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
            bias = self._graph.constant(f"{name}/bias", self._constants[names[1]])
            self._graph.node(
                "Conv", [source, weights, bias], [name],
                kernel_shape=list(kernel.shape[:2]), pads=pads, strides=strides,
            )  # fmt: skip
            self._done[name] = (self._done[source] + pads[0] + pads[2] - kernel.shape[0]) // strides[0] + 1
        elif kind == "MaxPool":
            source, pads = self._padded(names[0])
            size, strides = _numbers(node, "ksize")[1:3], _numbers(node, "strides")[1:3]
            self._graph.node("MaxPool", [source], [name], kernel_shape=size, pads=pads, strides=strides)
            self._done[name] = (self._done[source] + pads[0] + pads[2] - size[0]) // strides[0] + 1
        elif kind == "LeakyRelu":
            self._like("LeakyRelu", name, names, alpha=float(attributes["alpha"]["f"]))
        elif kind in ("Add", "Sigmoid"):
            self._like(kind, name, names)
        elif kind == "ConcatV2":
            self._like("Concat", name, names[:-1], axis=int(np.array(self._constant(names[-1]))))
        elif kind == "Transpose":
            self._like("Transpose", name, names[:1], perm=self._constant(names[1]))
        elif kind == "Reshape":
            shape = self._graph.constant(f"{name}/shape", np.array(self._constant(names[1]), np.int64))
            self._graph.node("Reshape", [self._tensor(names[0]), shape], [name])
            self._done[name] = 0
        elif kind == "SplitV":
            sizes = self._graph.constant(f"{name}/sizes", np.array(self._constant(names[1]), np.int64))
            source = self._tensor(names[0])
            outputs = [name, *(f"{name}:{number}" for number in range(1, len(self._constant(names[1]))))]
            self._graph.node("Split", [source, sizes], outputs, axis=int(np.array(self._constant(names[2]))))
            self._done[name] = self._done[source]
        elif kind == "ResizeBilinear" and attributes["half_pixel_centers"]["b"]:
            source = self._tensor(names[0])
            height = self._constant(names[1])[0]
            times = height / self._done[source]
            scales = self._graph.constant(f"{name}/scales", np.array([1, 1, times, times], np.float32))
            self._graph.node(
                "Resize", [source, "", scales], [name],
                mode="linear", coordinate_transformation_mode="half_pixel",
            )  # fmt: skip
            self._done[name] = height
        else:
            raise ValueError(f"{name} is a {kind}, in a form that NanoDet does not have")

    def _like(self, kind: str, name: str, inputs: list[str], **attributes: Any) -> None:
        """Add an operator whose output is as high as its inputs."""
        sources = [self._tensor(source) for source in inputs]
        self._graph.node(kind, sources, [name], **attributes)
        self._done[name] = self._done[sources[0]]


def _shape(entry: Mapping[str, Any]) -> list[int]:
    return [int(dimension["size"]) for dimension in entry["tensorShape"]["dim"]]


def _numbers(node: Mapping[str, Any], name: str) -> list[int]:
    return [int(number) for number in node["attr"][name]["list"]["i"]]
