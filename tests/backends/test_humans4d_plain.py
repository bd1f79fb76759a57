"""What of the 4D-Humans backend works without torch: options, checks, masks, fetching."""

from __future__ import annotations

import importlib.util
import pickle
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.backends.humans4d import devices, requirements, rle
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.shots import ShotDetector, thumbnail
from stages.backends.humans4d.weights import FILES, files_of
from stages.protocols import ConfigurationError, find_backend
from tests.paths import ROOT

# --- masks -----------------------------------------------------------------------------------------------------


@settings(deadline=None)  # a busy machine may take any time
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_a_mask_comes_back_from_its_text(height: int, width: int, seed: int, share: float) -> None:
    mask = np.random.default_rng(seed).random((height, width)) < share
    np.testing.assert_array_equal(rle.decode(rle.encode(mask), height, width), mask)


def test_the_text_is_that_of_the_coco_tools() -> None:
    # A 4 x 4 mask with its middle 2 x 2 set: runs 5 2 2 2 5, the fourth and fifth less those two before.
    mask = np.zeros((4, 4), bool)
    mask[1:3, 1:3] = True
    assert rle.encode(mask) == "52203"
    tools = pytest.importorskip("pycocotools.mask", reason="compares with pycocotools")
    random = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 1.0):
        mask = random.random((137, 211)) < share
        expected = tools.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()
        assert rle.encode(mask) == expected


@pytest.mark.parametrize("text", ["", "5220", "52204", "\x7f", "522P"])
def test_a_damaged_mask_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="mask"):
        rle.decode(text, 4, 4)


# --- options ---------------------------------------------------------------------------------------------------


def test_no_options_are_upstreams() -> None:
    options = Options.from_mapping({})
    assert (options.detector, options.min_score, options.min_width, options.min_height) == ("vitdet", 0.8, 50, 100)
    assert (options.n_init, options.max_age_track, options.distance_type) == (5, 50, "EQ_019")
    assert options.smpl_model == Path.home() / ".cache/4DHumans/data/smpl/SMPL_NEUTRAL.pkl"


def test_a_profile_sets_what_the_user_leaves_open() -> None:
    options = Options.from_mapping({"profile": "8gb", "device": "cuda", "crops": 2})
    assert (options.dtype, options.frames, options.crops, options.trim) == ("fp16", 1, 2, True)
    assert 0 < options.memory_fraction <= 0.5


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"detecter": "vitdet"}, "detecter"), ({"detector": "yolo"}, "vitdet, regnety"), ({"dtype": "int8"}, "dtype"),
        ({"crops": 0}, "crops"), ({"crops": True}, "crops"), ({"min_score": 1.5}, "min_score"),
        ({"device": "gpu"}, "device"), ({"n_init": 9}, "track_history"), ({"profile": "4gb"}, "profile"),
        ({"smpl_model": 7}, "smpl_model"), ({"compile": "yes"}, "compile"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        Options.from_mapping(values)


def test_every_file_has_an_option() -> None:
    options = Options.from_mapping({})
    for file in FILES:
        assert options.path(file.option) == Path.home() / file.default
    assert {f.option for f in files_of("detect", "regnety")} == {"regnety_weights"}


# --- checks ----------------------------------------------------------------------------------------------------


def test_importing_the_backend_is_cheap() -> None:
    code = (
        "import sys, stages.protocols as p; p.find_backend('humans4d');"
        "print([m for m in ('torch', 'cv2', 'hmr2', 'phalp', 'detectron2', 'smplx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("stage", ["detect", "mesh", "track"])
def test_missing_packages_are_named_with_their_source_in_seconds(
    stage: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    started = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        requirements.check(stage, Options.from_mapping({}))
    assert time.monotonic() - started < 5
    text = str(caught.value)
    assert f"{sys.executable} has no torch, " in text and f"set stages.{stage}.python" in text
    assert str(tmp_path) in text and "\n" not in text
    found = requirements.problems(stage, Options.from_mapping({}))
    named = [problem.what.removeprefix(requirements.NO_PACKAGE).split(",")[0] for problem in found]
    assert named[: len(requirements.PACKAGES[stage])] == list(requirements.PACKAGES[stage])
    repository = {
        "detect": "facebookresearch/detectron2",
        "mesh": "shubham-goel/4D-Humans",
        "track": "brjathu/PHALP",
    }
    assert any(repository[stage] in problem.way for problem in found)


def test_the_factories_check_before_they_load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    backend = find_backend("humans4d")

    def report(detail: str, fraction: float | None = None) -> None:
        raise AssertionError("loading began")

    for stage, call in (
        ("detect", lambda: backend.detector({}, report)),
        ("mesh", lambda: backend.mesh({}, report)),
        ("track", lambda: backend.tracker({}, 64, 64, 30.0)),
    ):
        with pytest.raises(ConfigurationError, match=f"humans4d, {stage}"):
            call()


def test_the_phalp_of_the_package_index_is_told_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "phalp").mkdir()
    (tmp_path / "phalp" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "phalp", raising=False)
    monkeypatch.setattr(requirements, "PACKAGES", {"track": ("phalp",)})
    found = [str(p) for p in requirements.problems("track", Options.from_mapping({})) if "phalp in" in str(p)]
    assert len(found) == 1
    assert "uninstall" in found[0] and "brjathu/PHALP" in found[0]
    (tmp_path / "phalp/models/predictor").mkdir(parents=True)
    (tmp_path / "phalp/models/predictor/pose_transformer_v2.py").touch()
    assert not [p for p in requirements.problems("track", Options.from_mapping({})) if "phalp in" in str(p)]


def test_a_broken_off_download_and_a_missing_smpl_are_told(tmp_path: Path) -> None:
    smpl = next(f for f in FILES if f.option == "smpl_model")
    assert "smplify.is.tue.mpg.de" in str(requirements.file_problem(smpl, tmp_path / "SMPL.pkl"))
    weights = next(f for f in FILES if f.option == "hmar_weights")
    path = tmp_path / "weights.pth"
    assert "no file" in str(requirements.file_problem(weights, path))
    (tmp_path / "weights.pth.part").write_bytes(b"x" * (3 << 20))
    assert "3 MB of it" in str(requirements.file_problem(weights, path))
    np.savez(tmp_path / "whole.npz", a=np.zeros(1000))
    content = (tmp_path / "whole.npz").read_bytes()
    path.write_bytes(content)
    assert requirements.file_problem(weights, path) is None
    path.write_bytes(content[:-100])
    assert "damaged" in str(requirements.file_problem(weights, path))
    model = tmp_path / "model.pkl"
    whole = pickle.dumps({"model": list(range(100))}, 4)
    model.write_bytes(whole)
    assert requirements.file_problem(weights, model) is None
    model.write_bytes(whole[:-7])
    assert "damaged" in str(requirements.file_problem(weights, model))
    model.write_bytes(b"")
    assert requirements.file_problem(weights, model) is not None


@pytest.mark.parametrize(
    ("architectures", "capability", "dtype", "told"),
    [
        (["sm_75", "sm_80", "sm_90"], (8, 9), "bf16", ""), (["sm_75", "sm_86"], (7, 5), "fp16", ""),
        (["sm_75", "sm_80"], (7, 5), "bf16", "bf16"), (["sm_75", "sm_80"], (6, 1), "fp16", "sm_61"),
        (["sm_80", "sm_90a"], (12, 0), "fp16", "sm_120"), (["sm_80", "compute_90"], (12, 0), "fp16", ""),
        ([], (9, 0), "fp16", ""),
    ],
)  # fmt: skip
def test_a_gpu_that_this_torch_has_no_code_for(
    architectures: list[str], capability: tuple[int, int], dtype: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading would succeed, and the first pass fail."""
    cuda = SimpleNamespace(
        is_available=lambda: True, device_count=lambda: 2, get_arch_list=lambda: architectures,
        get_device_capability=lambda index: capability if index == 1 else (5, 0),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    options = Options.from_mapping({"device": "cuda:1", "dtype": dtype})
    found = [str(problem) for problem in requirements._device(options)]
    assert len(found) == bool(told) and told in "".join(found)


@pytest.mark.parametrize(
    ("version", "old"), [("1.13.1+cu117", True), ("2.0.1", True), ("2.1.0", False), ("2.13.0+cpu", False)]
)
def test_a_torch_that_is_too_old_is_told(version: str, old: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "_package", lambda name: None)
    monkeypatch.setattr(requirements.importlib.metadata, "version", lambda name: version)
    found = [str(p) for p in requirements.problems("detect", Options.from_mapping({})) if "too old" in str(p)]
    assert len(found) == old and all(version in text and "2.1" in text and "pytorch.org" in text for text in found)


def test_a_renderer_that_is_not_there_is_told_before_loading() -> None:
    for device, why in (("cpu", "runs on the CPU"), ("cuda", "does not find")):
        for depth_test, told in (("neural_renderer", True), ("auto", False), ("builtin", False)):
            options = Options.from_mapping({"device": device, "depth_test": depth_test})
            found = [str(p) for p in requirements._renderer("mesh", options)]
            assert len(found) == told and all(why in text and "builtin" in text for text in found)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_what_compiling_needs_is_looked_for_before_loading(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def found(**values: Any) -> list[str]:
        options = Options.from_mapping({"device": device, **values})
        return [str(p) for p in requirements.problems("mesh", options) if "compile = true" in str(p)]

    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(requirements.shutil, "which", lambda name: None)
    monkeypatch.setattr(requirements.sysconfig, "get_path", lambda name: "/nowhere")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    assert not found()
    text = "\n".join(found(compile=True))
    assert "g++" in text and "/nowhere/Python.h" in text and ("triton" in text) == (device == "cuda")


def test_compiling_is_said_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than ``deadlines.working``, and would be taken for a hang."""
    told = threading.Event()
    passes: list[bool] = []

    def compile(forward: Any, dynamic: bool) -> Any:
        def first_slow(images: Any) -> Any:
            passes.append(bool(passes) or told.wait(30))
            return forward(images)

        return first_slow

    monkeypatch.setattr(devices, "import_module", lambda name: SimpleNamespace(compile=compile))
    monkeypatch.setattr(devices, "_EVERY", 0.01)
    options = Options.from_mapping({"compile": True})
    run = devices.compiled(lambda images: images + 1, options, lambda detail, fraction=None: told.set())
    before = threading.active_count()
    assert run(np.zeros((2, 3))).shape == run(np.zeros((2, 3))).shape == (2, 3)
    assert passes == [True, True] and threading.active_count() == before


def test_upstreams_own_file_must_have_its_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    checkpoint = next(f for f in FILES if f.option == "hmr2_checkpoint")
    path = Options.from_mapping({}).hmr2_checkpoint
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    assert "broke off" in str(requirements.file_problem(checkpoint, path))


# --- shots -----------------------------------------------------------------------------------------------------


def test_cuts_are_found_two_frames_late_and_survive_pickling() -> None:
    random = np.random.default_rng(0)
    scenes = [random.integers(0, 255, (90, 160, 3)).astype(np.uint8) for _ in range(3)]
    shown = [0] * 20 + [1] * 18 + [2] * 5 + [0] * 12
    detector, cuts = ShotDetector(), []
    for number, scene in enumerate(shown):
        noise = random.integers(0, 3, scenes[0].shape).astype(np.uint8)
        cuts += detector.push(thumbnail(np.clip(scenes[scene] // 2 + noise, 0, 255).astype(np.uint8)))
        assert len(cuts) == max(0, number - 1)
        detector = pickle.loads(pickle.dumps(detector))
    cuts += detector.finish()
    assert len(cuts) == len(shown)
    # The last change comes 5 frames after the one before it: too short for a shot.
    assert [number for number, cut in enumerate(cuts) if cut] == [20, 38]


def test_the_commands_in_the_documentation_name_all_packages() -> None:
    """Those of an environment without Poseward: what the extra lists, and what the stages themselves import."""
    text = (ROOT / "docs" / "humans4d.md").read_text()
    commands = [line for line in text.splitlines() if line.startswith("pip install")]
    named = {re.split(r"[<>=]", word)[0] for line in commands for word in re.findall(r"[\w<>=.-]+", line)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extra = {re.split(r"[<>=]", name)[0] for name in project["optional-dependencies"]["humans4d"]}
    assert extra <= named
    assert {"numpy", "opencv-python", "pyzmq", "msgpack", "psutil", "scipy", "rich", "trimesh"} <= named
    for commit in (requirements.HMR2_COMMIT, requirements.PHALP_COMMIT, requirements.DETECTRON2_COMMIT):
        assert any(commit in line for line in commands)


def test_phalps_smpl_is_found_where_4d_humans_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first = tmp_path / ".cache/4DHumans/data/smpl/SMPL_NEUTRAL.pkl"
    other = tmp_path / ".cache/phalp/3D/models/smpl/SMPL_NEUTRAL.pkl"
    assert Options.from_mapping({}).smpl_model == first
    for path in (other, first):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x")
        assert Options.from_mapping({}).smpl_model == path
