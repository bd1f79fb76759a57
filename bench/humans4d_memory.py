"""How much device memory the 4D-Humans backend would take, counted tensor by tensor without a device.

    python -m bench.humans4d_memory [--profile 8gb] [--people 12] [--size 1920x1080]

Runs detect (both detectors) and mesh at full size with random weights on the CPU, in bf16 where the profile says fp16
(the same bytes), with those operations in fp32 that CUDA's autocast runs in fp32. What is counted is every tensor's
storage while it lives: weights, and the most beside them. Not counted is what only a device has: the CUDA context,
cuDNN's and cuBLAS's workspaces, and what the allocator rounds up or cannot reuse.

Needs 16 GB of memory, 6 GB of disk in the temporary folder and some minutes. Prints one JSON line a measurement.
"""

from __future__ import annotations

import argparse
import gc
import json
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from bench import humans4d_synthetic as synthetic
from stages.backends.humans4d import rle
from stages.backends.humans4d.attention import bound_attention
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.options import PROFILES, Options
from stages.records import Detections, Frame

GIB, UNBOUNDED = 2**30, 2**62


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Within, every operation's results are counted by storage; the function given says the most bytes that lived
    at once. Tensors from before are not counted: not what an operation returns of them, either."""
    torch = import_module("torch")
    mode: Any = import_module("torch.utils._python_dispatch").TorchDispatchMode
    leaves = import_module("torch.utils._pytree").tree_leaves
    live: dict[int, int] = {}
    total = most = 0

    def gone(key: int) -> None:
        nonlocal total
        total -= live.pop(key)

    class Count(mode):
        def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal total, most
            del types
            given = {t.untyped_storage()._cdata for t in leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            result = operation(*args, **(kwargs or {}))
            for tensor in leaves(result):
                if not isinstance(tensor, torch.Tensor):
                    continue
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key in given or key in live:
                    continue
                live[key] = storage.nbytes()
                total += live[key]
                most = max(most, total)
                weakref.finalize(storage, gone, key)
            return result

    with Count():
        yield lambda: most


@contextmanager
def as_on_cuda() -> Iterator[None]:
    """Softmax and layer normalisation of half precision in fp32, as CUDA's autocast runs them; the CPU's does not."""
    torch = import_module("torch")
    mode: Any = import_module("torch.overrides").TorchFunctionMode

    def wide(value: Any) -> Any:
        return value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    class Wide(mode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if getattr(function, "__name__", "") in ("softmax", "layer_norm"):
                args = tuple(map(wide, args))
            return function(*args, **(kwargs or {}))

    with Wide():
        yield


def weights(*modules: Any) -> int:
    """Bytes of the modules' weights and buffers."""
    tensors = {t.data_ptr(): t.nbytes for module in modules for t in (*module.parameters(), *module.buffers())}
    return sum(tensors.values())


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


def tell(what: str, held: int, most: int, **values: Any) -> None:
    say(what, weights_gib=round(held / GIB, 2), beside_gib=round(most / GIB, 2),
        together_gib=round((held + most) / GIB, 2), **values)  # fmt: skip


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


def measure_detect(values: dict[str, Any], folder: Path, kind: str, frame: Frame) -> None:
    module = import_module("stages.backends.humans4d.detect")
    config = module.vitdet_config() if kind == "vitdet" else module.regnety_config()
    path = folder / f"{kind}.pkl"
    synthetic.write_detector(path, config)
    options = Options.from_mapping({**values, "detector": kind})
    detector = module.PersonDetector.from_config(config, path, options, quiet)
    path.unlink()
    held = weights(detector._model)
    with as_on_cuda(), counted() as most:
        found = detector.detect([frame] * options.frames)
    tell(f"detect {kind}", held, most(), frames=options.frames, people=len(found[0]))
    if bound_attention(detector._model.backbone, UNBOUNDED):
        with as_on_cuda(), counted() as most:
            detector.detect([frame] * options.frames)
        tell(f"detect {kind}, attention not in pieces", held, most(), frames=options.frames)


def measure_mesh(values: dict[str, Any], frame: Frame, people: int) -> None:
    options = Options.from_mapping(values)
    regressor = import_module("stages.backends.humans4d.mesh").HmrRegressor.load(options, quiet)
    height, width = frame.image.shape[:2]
    boxes = np.array(
        [[n * width / people, height / 5, (n + 0.8) * width / people, height] for n in range(people)], np.float32
    )
    extra = {"masks": [rle.encode(np.ones((height, width), bool))] * people, "size": [height, width],
             "padded": np.asarray(widen(boxes), np.float32), "classes": np.zeros(people, np.int64),
             "index": np.arange(people)}  # fmt: skip
    found = Detections(boxes, np.full(people, 0.9, np.float32), extra)
    with as_on_cuda(), counted() as most:
        regressor.regress([frame], [found])
    tell("mesh", weights(regressor._hmr2._model, regressor._encoder), most(), crops=options.crops, people=people)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="8gb", choices=list(PROFILES))
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--size", default="1920x1080", help="of the frame, WIDTHxHEIGHT")
    given = parser.parse_args()
    synthetic.stand_in_torchvision_operators()
    # In inference mode operations arrive here whole, below autocast, and mix precisions.
    torch = import_module("torch")
    torch.inference_mode = torch.no_grad
    width, height = map(int, given.size.split("x"))
    image = np.random.default_rng(0).integers(0, 255, (height, width, 3)).astype(np.uint8)
    frame = Frame(image, 0, 0.0)
    values: dict[str, Any] = {"profile": given.profile, "device": "cpu"}
    if PROFILES[given.profile].get("dtype") == "fp16":
        values["dtype"] = "bf16"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in ("regnety", "vitdet"):
            measure_detect(values, folder, kind, frame)
            gc.collect()
        measure_mesh({**synthetic.write_files(folder, full=True), **values}, frame, given.people)


if __name__ == "__main__":
    main()
