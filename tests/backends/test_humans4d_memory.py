"""The 4D-Humans backend's memory: the allocator's settings, bounded attention, passes that do not fit."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.backends import humans4d
from stages.backends.humans4d import devices, requirements, rle
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.options import Options
from stages.protocols import ConfigurationError, Report, find_backend
from stages.records import Detections, Frame
from tests.paths import ROOT

LINUX, WSL = "Linux version 6.8.0-45-generic", "Linux version 5.15.167.4-microsoft-standard-WSL2"


def small(**more: Any) -> Options:
    return Options.from_mapping({"profile": "8gb", "device": "cuda", **more})


def test_the_allocator_is_told_what_works_on_this_system() -> None:
    linux, wsl = devices.allocator_settings(small(), LINUX), devices.allocator_settings(small(), WSL)
    assert linux is not None and "expandable_segments:True" in linux
    assert wsl is not None and "expandable_segments:False" in wsl and "max_split_size_mb" in wsl
    assert devices.allocator_settings(Options.from_mapping({"device": "cuda"}), LINUX) is None
    assert devices.allocator_settings(small(allocator="backend:cudaMallocAsync"), WSL) == "backend:cudaMallocAsync"
    assert devices.allocator_settings(small(allocator=""), WSL) is None


@pytest.mark.parametrize("name", devices.ALLOCATOR_VARIABLES)
def test_the_users_own_allocator_settings_go_before(name: str) -> None:
    environment = {name: "max_split_size_mb:64"}
    devices.set_allocator(small(), environment, LINUX)
    assert environment == {name: "max_split_size_mb:64"}


def test_half_precision_is_for_stages_with_a_backbone_on_a_gpu() -> None:
    on_cpu = small(device="cpu")
    for stage in ("detect", "mesh"):
        named = [str(p) for p in requirements.problems(stage, on_cpu) if "fp16" in p.what]
        assert len(named) == 1 and "8gb" in named[0] and f'stages.{stage}.device = "cuda"' in named[0]
        assert not any("fp16" in p.what for p in requirements.problems(stage, small(device="cpu", dtype="bf16")))
    assert not any("fp16" in p.what for p in requirements.problems("track", on_cpu))


def test_the_manuals_settings_for_a_laptop_are_settings(tmp_path: Path) -> None:
    """And give each stage what it needs: the tracker too, which stays on the CPU."""
    pytest.importorskip("pydantic", reason="needs what the daemon is made of")
    from daemon.settings.loading import load

    page = (ROOT / "docs" / "humans4d.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "poseward.toml"
    file.write_text(example, encoding="utf-8")
    pipeline = load(file, environ={}).settings.stages
    given = {
        stage: Options.from_mapping({"device": pipeline.stage(stage).device, **pipeline.options})
        for stage in ("detect", "mesh", "track")
    }
    assert [given[name].device for name in given] == ["cuda", "cuda", "cpu"]
    assert given["detect"].dtype == given["mesh"].dtype == "fp16"
    assert {given[name].memory_fraction for name in ("detect", "mesh")} == {0.35}
    header = find_backend("humans4d").header  # the main process reads the options without any stage's device
    with pytest.raises(ConfigurationError, match="SMPL"):
        header({**pipeline.options, "smpl_model": str(tmp_path / "none.pkl")}, 64, 48, 30.0)


# --- on the real packages ------------------------------------------------------------------------------------------


def package(name: str) -> Any:
    pytest.importorskip("torch", reason="needs torch")
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs {name}: {error}")


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


@pytest.mark.humans4d
@pytest.mark.parametrize("kernel", [LINUX, WSL])
def test_torch_reads_the_settings_that_come_after_its_import(kernel: str) -> None:
    """And knows them: an unknown one would be an error."""
    if not hasattr(package("torch")._C, "_accelerator_getAllocatorSettings"):
        pytest.skip("this torch does not tell its allocator's settings without a GPU (2.9 and later do)")
    code = (
        "import os, torch\n"
        "from stages.backends.humans4d import devices\n"
        "from stages.backends.humans4d.options import Options\n"
        f"options = Options.from_mapping({{'profile': '8gb', 'device': 'cuda'}})\n"
        f"devices.set_allocator(options, os.environ, {kernel!r})\n"
        "print(torch._C._accelerator_getAllocatorSettings())\n"
    )
    clean = {name: value for name, value in os.environ.items() if name not in devices.ALLOCATOR_VARIABLES}
    here = {**clean, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=here)
    assert ended.stdout.strip() == devices.allocator_settings(small(), kernel), ended.stderr


@pytest.mark.humans4d
@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:1", 1)])
def test_a_process_is_held_to_its_share_of_its_gpu(
    device: str, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By torch's own functions down to where they would call the driver."""
    torch = package("torch")
    asked: list[Any] = []
    monkeypatch.setattr(torch.cuda.memory, "_lazy_init", lambda: None)
    monkeypatch.setattr(torch._C, "_cuda_setDevice", lambda n: asked.append(("device", n)), raising=False)
    monkeypatch.setattr(torch._C, "_cuda_setMemoryFraction", lambda f, n: asked.append((f, n)), raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
    try:
        devices.prepare(small(device=device))
        assert asked == [("device", index), (0.35, index)]
        assert not torch.backends.cudnn.benchmark and not torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = False, True  # as torch has them
        torch.set_num_threads(threads)
        torch.set_grad_enabled(grad)


@pytest.fixture(scope="module")
def detector_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes small detectors with the same random weights."""
    package("detectron2.modeling")
    from bench import humans4d_synthetic as synthetic

    detect = package("stages.backends.humans4d.detect")
    folder: Path = tmp_path_factory.mktemp("detectors")

    def make(kind: str, report: Report = quiet, **values: Any) -> Any:
        try:
            config = detect.vitdet_config() if kind == "vitdet" else detect.regnety_config()
        except (ConfigurationError, RuntimeError) as error:
            pytest.skip(f"needs detectron2's configurations: {error}")
        synthetic.small_detector(config, kind)
        weights = folder / f"{kind}.pkl"
        if not weights.exists():
            synthetic.write_detector(weights, config)
        options = Options.from_mapping({"detector": kind, **values})
        return detect.PersonDetector.from_config(config, weights, options, report)

    return make


def frames(count: int) -> list[Frame]:
    random = np.random.default_rng(5)
    return [
        Frame(random.integers(0, 255, (360, 480, 3)).astype(np.uint8), index, index / 30) for index in range(count)
    ]


def people_in(frame: Frame) -> Detections:
    """Two people who walk."""
    height, width = frame.image.shape[:2]
    left = np.array([40.0, 240.0], np.float32) + 4 * frame.index
    boxes = np.stack((left, np.full(2, 60.0), left + 120, np.full(2, 330.0)), 1).astype(np.float32)
    masks = []
    for x0, y0, x1, y1 in boxes.astype(int):
        mask = np.zeros((height, width), bool)
        mask[y0:y1, x0:x1] = True
        masks.append(rle.encode(mask))
    extra = {"masks": masks, "size": [height, width], "padded": np.asarray(widen(boxes), np.float32),
             "classes": np.zeros(2, np.int64), "index": np.arange(2)}  # fmt: skip
    return Detections(boxes, np.full(2, 0.9, np.float32), extra)


def same(one: Detections, other: Detections) -> bool:
    return bool(
        one.boxes.tobytes() == other.boxes.tobytes()
        and one.scores.tobytes() == other.scores.tobytes()
        and one.extra["masks"] == other.extra["masks"]
    )


@pytest.mark.humans4d
@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_what_is_found_in_a_frame_does_not_depend_on_its_neighbours(detector_of: Any, kind: str) -> None:
    """After a crash the same frames come in other batches; the results must be the same to the bit."""
    detector = detector_of(kind, frames=3, min_width=8.0, min_height=8.0, min_score=0.6)
    some = frames(5)
    together = detector.detect(some)
    assert sum(map(len, together)) > 5
    alone = [detector.detect([frame])[0] for frame in some]
    backwards = detector.detect(some[::-1])[::-1]
    for a, b, c in zip(together, alone, backwards, strict=True):
        assert same(a, b) and same(a, c)


@pytest.mark.humans4d
def test_a_pass_on_the_cpu_says_after_each_block_that_it_goes_on(detector_of: Any) -> None:
    said: list[float | None] = []

    def report(detail: str, fraction: float | None = None) -> None:
        if detail == "detecting":
            said.append(fraction)

    detector_of("vitdet", report=report).detect(frames(2))
    assert said == [0.5, 1.0, 0.5, 0.5, 1.0, 1.0]  # two blocks and then the pass, for either frame


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.humans4d
def test_frames_that_do_not_fit_together_are_worked_on_in_smaller_passes(
    detector_of: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    detector = detector_of("vitdet", frames=4)
    wanted = detector_of("vitdet", frames=1).detect(frames(4))
    backbone, sizes = detector._model.backbone.forward, []

    def narrow(images: Any) -> Any:
        sizes.append(len(images))
        if len(images) > 1:
            raise OutOfMemoryError("tried to allocate 1.00 GiB")
        return backbone(images)

    monkeypatch.setattr(detector._model.backbone, "forward", narrow)
    found = detector.detect(frames(4))
    assert sizes == [4, 4, 2, 1, 1, 1, 1], "once more with the caches given back, then halved for good"
    assert "out of device memory, frames in passes of 1 now: tried" in capfd.readouterr().err
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))

    def none(images: Any) -> Any:
        raise OutOfMemoryError("tried to allocate 1.00 GiB")

    monkeypatch.setattr(detector._model.backbone, "forward", none)
    with pytest.raises(OutOfMemoryError):
        detector.detect(frames(1))


FULL = (
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API call",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
)


@pytest.mark.humans4d
@pytest.mark.parametrize("text", FULL)
def test_a_full_card_is_out_of_memory_whoever_says_it(text: str) -> None:
    """Torch's allocator is not the only one that wants memory of the card."""
    package("torch")
    passes, sizes = devices.Passes(4, "frames"), []

    def work(size: int) -> int:
        sizes.append(size)
        if size > 1 or text in FULL[:1]:
            raise RuntimeError(text)
        return size

    if text in FULL[:1]:
        with pytest.raises(RuntimeError) as caught:
            passes.run(work)
        assert type(caught.value).__name__ == "OutOfMemoryError", "by which the supervisor knows it"
    else:
        assert passes.run(work) == 1
    assert sizes == [4, 4, 2, 1]
    sizes.clear()

    def broken(size: int) -> int:
        sizes.append(size)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="illegal"):
        passes.run(broken)
    assert len(sizes) == 1
    with pytest.raises(RuntimeError) as caught, humans4d._importing("mesh"):
        raise RuntimeError(text)
    assert type(caught.value).__name__ == "OutOfMemoryError", "while loading too"


@pytest.mark.humans4d
def test_crops_that_do_not_fit_together_are_worked_on_in_smaller_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hmr2.models", "phalp.models.heads.encoding_head"):
        package(name)
    from bench import humans4d_synthetic as synthetic
    from stages.backends.humans4d.mesh import HmrRegressor

    with synthetic.small_vit():
        regressor = HmrRegressor.load(Options.from_mapping({**synthetic.write_files(tmp_path), "crops": 4}), quiet)
    some = frames(3)
    detections = [people_in(frame) for frame in some]
    wanted = regressor.regress(some, detections)
    real, sizes = regressor._hmr2, []

    def narrow(crops: Any) -> Any:
        sizes.append(len(crops))
        if len(crops) > 2:
            raise OutOfMemoryError("tried to allocate 1.00 GiB")
        return real(crops)

    monkeypatch.setattr(regressor, "_hmr2", narrow)
    found = regressor.regress(some, detections)
    assert sizes == [4, 4, 2, 2, 2]
    for one, other in zip(found, wanted, strict=True):
        assert len(one) == 2
        np.testing.assert_allclose(one.vertices, other.vertices, atol=1e-5)
        np.testing.assert_allclose(one.camera, other.camera, rtol=1e-5)


@pytest.mark.humans4d
@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_the_backbone_in_half_precision_sees_nearly_the_same(detector_of: Any, kind: str) -> None:
    torch = package("torch")
    whole, half = detector_of(kind), detector_of(kind, dtype="bf16")
    assert len(half.detect(frames(1))) == 1
    picture = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        wanted, found = whole._model.backbone(picture), half._model.backbone(picture)
    assert set(found) == set(wanted)
    for name, feature in wanted.items():
        assert found[name].dtype == torch.float32
        assert (found[name] - feature).norm() < 0.03 * feature.norm()
    kept = {value.dtype for value in half._model.backbone.parameters()}
    assert torch.bfloat16 in kept, "the weights are kept in half precision, not converted in each pass"


@pytest.mark.humans4d
def test_attention_in_pieces_equals_upstreams(detector_of: Any) -> None:
    """The same numbers, in less memory."""
    del detector_of
    torch = package("torch")
    attention = package("detectron2.modeling.backbone.vit").Attention
    bound = package("stages.backends.humans4d.attention").bound_attention
    counted = package("bench.humans4d_memory").counted
    torch.manual_seed(0)
    block = attention(64, num_heads=8, use_rel_pos=True, rel_pos_zero_init=False, input_size=(20, 12)).eval()
    tokens = torch.randn(2, 20, 12, 64)
    with torch.inference_mode():
        with counted() as theirs:
            wanted = block(tokens)
        assert bound(block, scores=3 * 240 * 240 * 4) == 1
        with counted() as ours:
            found = block(tokens)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)
    # Of sixteen heads' scores (two frames') no more than three are there at once.
    assert ours() < theirs() / 3


@pytest.mark.humans4d
@pytest.mark.parametrize("bench", ["gpu", "card"])
def test_a_bench_without_a_gpu_says_so(bench: str, tmp_path: Path) -> None:
    if package("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "clip.mp4").touch()
    clip = [str(tmp_path / "clip.mp4")] if bench == "card" else []
    command = [sys.executable, "-m", f"bench.humans4d_{bench}", *clip]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1 and not done.stdout and "Traceback" not in done.stderr
    told = done.stderr.splitlines()[-1]
    assert ("GPU" in told or "without CUDA" in told) and "--device cpu" in told
