"""The backbones in half precision by CUDA's own rules, without a GPU.

A torch that is built with CUDA has its autocast, which decides for each operation in which precision it runs, and
tensors on CUDA that have shapes and types but no values: an operation on types that do not go together fails here as
it would on a GPU. Comes before the tests of other devices, by its name: torch gives no such tensors after one is
registered.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stages.backends.humans4d import devices
from stages.backends.humans4d.options import Options
from tests.backends.test_humans4d_memory import package, quiet

pytestmark = pytest.mark.humans4d

torch = pytest.importorskip("torch", reason="needs torch")


def index_lists() -> Any:
    """Lists as indices (``x[:, [0]]``) as tensors, where torch would look at values."""
    mode: Any = package("torch.overrides").TorchFunctionMode

    class Lists(mode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            del types
            if function is torch.Tensor.__getitem__ and isinstance(args[1], tuple):
                places = tuple(torch.tensor(place) if isinstance(place, list) else place for place in args[1])
                args = (args[0], places)
            return function(*args, **(kwargs or {}))

    return Lists()


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Tensors on CUDA that have shapes and types but no values, under CUDA's own autocast; turns modules' weights
    into such."""
    if torch.version.cuda is None:
        pytest.skip("needs a torch that is built with CUDA")
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        pytest.skip("torch 2.5 asks the driver even of tensors without values")
    common = package("torch.cuda.amp.common")
    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    mode = package("torch._subclasses.fake_tensor").FakeTensorMode

    def move(model: Any) -> None:
        for module in model.modules():
            for owned in (module._parameters, module._buffers):
                for name, value in owned.items():
                    if value is not None:
                        moved = torch.empty(value.shape, dtype=value.dtype, device="cuda")
                        owned[name] = torch.nn.Parameter(moved, False) if owned is module._parameters else moved

    with mode(allow_non_fake_inputs=True), index_lists(), torch.no_grad():
        yield move


def loaded_outside(load: Any) -> Any:
    with package("torch._subclasses.fake_tensor").unset_fake_temporarily():
        return load()


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_the_detectors_backbone_in_half_precision(kind: str, dtype: str, fake_cuda: Any, tmp_path: Path) -> None:
    package("detectron2.modeling")
    detect = package("stages.backends.humans4d.detect")
    from bench import humans4d_synthetic as synthetic

    options = Options.from_mapping({"detector": kind, "profile": "8gb", "dtype": dtype})

    def load() -> Any:
        make = detect.vitdet_config if kind == "vitdet" else detect.regnety_config
        config = synthetic.small_detector(make(), kind)
        synthetic.write_detector(tmp_path / "weights.pkl", config)
        return detect.PersonDetector.from_config(config, tmp_path / "weights.pkl", options, quiet)

    model = loaded_outside(load)._model
    fake_cuda(model)
    detect._run_backbone_in(model, replace(options, device="cuda"), quiet)
    features = model.backbone(torch.empty(1, 3, 256, 256, device="cuda"))
    assert {(value.dtype, value.device.type) for value in features.values()} == {(torch.float32, "cuda")}
    kept = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert {value.dtype for value in model.backbone.parameters()} == {kept, torch.float32}
    assert {value.dtype for value in model.roi_heads.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_hmr2_in_half_precision(dtype: str, fake_cuda: Any, tmp_path: Path) -> None:
    package("hmr2.models")
    from bench import humans4d_synthetic as synthetic
    from stages.backends.humans4d.network import Hmr2

    def load() -> Any:
        options = Options.from_mapping({**synthetic.write_files(tmp_path), "profile": "8gb", "dtype": dtype})
        with synthetic.small_vit():
            return options, Hmr2.load(options, quiet)._model

    options, model = loaded_outside(load)
    parents = model.smpl._buffers.pop("parents")  # read one by one, which a tensor without values cannot be
    model.smpl.parents = parents.numpy()
    fake_cuda(model)
    bodies = Hmr2(model, replace(options, device="cuda"), quiet)(torch.empty(4, 3, 256, 256, device="cuda"))
    assert bodies.vertices.shape == (4, 6890, 3)
    for name in ("pose", "betas", "camera", "translation", "vertices", "joints", "keypoints"):
        value = getattr(bodies, name)
        assert (value.dtype, value.device.type) == (torch.float32, "cuda"), name
    assert devices.precision(options) in {value.dtype for value in model.backbone.parameters()}
