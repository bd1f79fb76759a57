"""The doctor's checks of GPUs and model files. torch is a stand-in that says what a given build would."""

from __future__ import annotations

import ctypes
import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest

from daemon.doctor.check import Finding, Severity
from daemon.doctor.devices import _has_code
from daemon.doctor.driver import Driver, nvml_driver
from stages.backends.blazepose import models as blazepose
from supervisor.memory import DeviceMemory
from tests.daemon.doctor import WSL2, Gpus, look, make_context, make_root, package, worst

OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR
MB = 1 << 20
DRIVER = Driver("550.54", (12, 4), ((8, 9),))
TORCH = """
import types
__version__ = {version!r}
version = types.SimpleNamespace(cuda={cuda!r})
class cuda:
    is_available = staticmethod(lambda: {available})
    device_count = staticmethod(lambda: 1)
    get_arch_list = staticmethod(lambda: {architectures})
"""


def gpu(free_mb: int = 7000, holders: dict[int, int] | None = None, total_mb: int = 8188) -> Gpus:
    return Gpus([DeviceMemory(0, "RTX 4070 Laptop", total_mb * MB, free_mb * MB, holders)])


def test_no_driver(tmp_path: Path) -> None:
    assert worst(look(make_context(tmp_path), "gpu.driver")).severity is OK
    context = make_context(tmp_path, "stages.mesh.device=cuda", root=make_root(tmp_path))
    found = worst(look(context, "gpu.driver"))
    assert found.severity is ERROR
    assert "mesh" in found.found and "nvidia-smi" in found.way_out
    found = worst(
        look(make_context(tmp_path, "stages.mesh.device=cuda", root=make_root(tmp_path, WSL2)), "gpu.driver")
    )
    assert "in Windows" in found.way_out
    assert worst(look(context, "gpu.memory")).severity is NOTE


def test_a_driver_without_a_gpu(tmp_path: Path) -> None:
    context = make_context(tmp_path, "stages.mesh.device=cuda", driver=lambda: DRIVER)
    found = worst(look(context, "gpu.driver"))
    assert found.severity is ERROR
    assert "--gpus" in found.way_out


def test_a_driver_with_a_gpu(tmp_path: Path) -> None:
    context = make_context(tmp_path, "stages.mesh.device=cuda", driver=lambda: DRIVER, devices=gpu())
    found = worst(look(context, "gpu.driver"))
    assert found.severity is OK
    assert "12.4" in found.found and "RTX 4070" in found.found
    unused = worst(look(make_context(tmp_path, driver=lambda: DRIVER, devices=gpu()), "gpu.driver"))
    assert unused.severity is NOTE


def test_this_machines_driver_answers_or_says_why_not() -> None:
    found = nvml_driver()
    assert found.problem or found.cuda > (0, 0)


# -- torch ---------------------------------------------------------------------------------------------


def torch_findings(
    folder: Path, *, driver: Driver = DRIVER, device: str = "cuda", **build: object
) -> list[Finding]:
    whole = {"version": "2.5.1+cu124", "cuda": "12.4", "available": True, "architectures": ["sm_80", "sm_90"]}
    packages = package(folder / "packages", "torch", TORCH.format(**{**whole, **build}))
    sets = (f"stages.mesh.device={device}", f"stages.mesh.env.PYTHONPATH={packages}")
    context = make_context(folder, *sets, driver=lambda: driver, devices=gpu(), root=make_root(folder))
    # Without a GPU's driver this machine has no libcuda: that finding has a test of its own.
    return [finding for finding in look(context, "gpu.torch") if "libcuda" not in finding.found]


def test_no_stage_on_a_gpu_needs_no_torch(tmp_path: Path) -> None:
    assert worst(look(make_context(tmp_path), "gpu.torch")).severity is OK


def test_a_torch_that_fits(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path)
    assert found.severity is OK
    assert "2.5.1+cu124" in found.found


def test_a_torch_without_cuda(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path, version="2.5.1+cpu", cuda=None, available=False)
    assert found.severity is ERROR
    assert "built without CUDA, but device = cuda" in found.found
    assert 'stages.mesh.device = "cpu"' in found.way_out and "CUDA 12.4 or older" in found.way_out


def test_a_torch_that_is_newer_than_the_driver(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path, driver=Driver("470.1", (11, 4)))
    assert found.severity is ERROR
    assert "driver 470.1 runs up to 11.4" in found.found
    assert "update the driver" in found.way_out


def test_a_torch_of_the_same_major_version(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path, cuda="12.8")
    assert found.severity is NOTE


def test_a_torch_that_sees_no_gpu(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path, available=False)
    assert found.severity is ERROR
    assert "sees no GPU" in found.found and "CUDA_VISIBLE_DEVICES" in found.way_out


def test_a_device_number_that_is_too_large(tmp_path: Path) -> None:
    (found,) = torch_findings(tmp_path, device="cuda:3")
    assert found.severity is ERROR
    assert "cuda:3" in found.found


def test_a_torch_without_code_for_the_gpu(tmp_path: Path) -> None:
    (found,) = torch_findings(
        tmp_path, architectures=["sm_80", "sm_90"], driver=Driver("570", (12, 8), ((12, 0),))
    )
    assert found.severity is ERROR
    assert "sm_120" in found.found


def test_a_stage_without_torch(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    packages = package(empty, "torch", "raise ImportError('libcudart.so.12: cannot open')")
    sets = ("stages.mesh.device=cuda", f"stages.mesh.env.PYTHONPATH={packages}")
    context = make_context(tmp_path, *sets, driver=lambda: DRIVER, devices=gpu())
    found = worst(look(context, "stages.mesh"))
    assert found.severity is ERROR
    assert "cannot import torch: ImportError: libcudart.so.12" in found.found
    assert "reinstall both" in found.way_out


def test_a_linker_that_does_not_find_libcuda(tmp_path: Path) -> None:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        pass
    else:
        pytest.skip("this machine has libcuda")
    context = make_context(
        tmp_path, "stages.mesh.device=cuda", driver=lambda: DRIVER, root=make_root(tmp_path, WSL2)
    )
    found = worst(look(context, "gpu.torch"))
    assert found.severity is ERROR
    assert "libcuda.so.1" in found.found
    assert 'LD_LIBRARY_PATH = "/usr/lib/wsl/lib"' in found.way_out


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        ([], (8, 9), True),
        (["sm_80"], (8, 9), True),
        (["sm_90"], (8, 9), False),
        (["sm_86"], (8, 0), False),
        (["sm_90a"], (9, 0), True),
        (["sm_50", "compute_50"], (12, 0), True),
        (["sm_120"], (12, 0), True),
    ],
)
def test_which_code_runs_on_which_gpu(architectures: list[str], capability: tuple[int, int], runs: bool) -> None:
    assert _has_code(architectures, capability) is runs


# -- GPU memory ----------------------------------------------------------------------------------------

NEEDS = ("stages.detect.device=cuda", "stages.mesh.device=cuda")


def needs(detect: int, mesh: int) -> tuple[str, ...]:
    return (*NEEDS, f"stages.detect.device_need_mb={detect}", f"stages.mesh.device_need_mb={mesh}")


@pytest.mark.parametrize(
    ("free", "detect", "mesh", "severity", "text"),
    [
        (7000, 3000, 2500, OK, "detect 3000 + mesh 2500"),
        (3000, 3000, 2500, WARNING, "will wait"),
        (8000, 6000, 4000, ERROR, "more than it has"),
        (7000, 0, 2500, NOTE, "not known how much"),
    ],
)
def test_gpu_memory(tmp_path: Path, free: int, detect: int, mesh: int, severity: Severity, text: str) -> None:
    holders = {os.getpid(): (8188 - free) * MB}
    root = make_root(tmp_path)
    context = make_context(
        tmp_path, *needs(detect, mesh), driver=lambda: DRIVER, devices=gpu(free, holders), root=root
    )
    found = worst(look(context, "gpu.memory"))
    assert found.severity is severity
    assert text in found.found
    if severity is WARNING:
        assert f"({os.getpid()}): {8188 - free} MB" in found.found  # who holds the rest


def test_replicas_each_need_their_memory(tmp_path: Path) -> None:
    sets = (*needs(1000, 3500), "stages.mesh.replicas=2")
    context = make_context(tmp_path, *sets, driver=lambda: DRIVER, devices=gpu(7000, {}))
    assert "need 8000 MB" in worst(look(context, "gpu.memory")).found


def test_under_wsl_less_is_free_than_is_named(tmp_path: Path) -> None:
    root = make_root(tmp_path, WSL2)
    context = make_context(tmp_path, *needs(3000, 3000), driver=lambda: DRIVER, devices=gpu(7000), root=root)
    found = worst(look(context, "gpu.memory"))
    assert found.severity is WARNING
    assert "spills" in found.found


def test_a_gpu_that_is_hidden(tmp_path: Path) -> None:
    sets = ("stages.mesh.device=cuda", "stages.mesh.env.CUDA_VISIBLE_DEVICES=")
    context = make_context(tmp_path, *sets, driver=lambda: DRIVER, devices=gpu())
    found = worst(look(context, "gpu.memory"))
    assert found.severity is ERROR
    assert "CUDA_VISIBLE_DEVICES=" in found.found


# -- model files ---------------------------------------------------------------------------------------


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model file as published, in the cache folder."""
    content = b"weights" * 100
    file = replace(
        blazepose.PERSON, name="small.tflite", size=len(content), sha256=hashlib.sha256(content).hexdigest()
    )
    monkeypatch.setattr(blazepose, "FILES", (file,))
    path = tmp_path / "cache" / "blazepose" / "small.tflite"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_model_files(tmp_path: Path, model: Path) -> None:
    cache = f"stages.options.cache={tmp_path / 'cache'}"
    (found,) = look(make_context(tmp_path, cache), "models.files")
    assert found.severity is OK and "700 bytes" in found.found

    content = bytearray(model.read_bytes())
    content[350] ^= 1
    model.write_bytes(content)
    (found,) = look(make_context(tmp_path, cache), "models.files")
    assert found.severity is ERROR
    assert "damaged" in found.found and "models fetch" in found.way_out

    model.write_bytes(content[:350])
    (found,) = look(make_context(tmp_path, cache), "models.files")
    assert "350 of 700 bytes" in found.found

    model.unlink()
    (found,) = look(make_context(tmp_path, cache), "models.files")
    assert found.severity is ERROR
    assert str(model) in found.found and "models fetch" in found.way_out


def test_files_that_must_be_fetched_and_files_with_a_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    found = look(make_context(tmp_path, "stages.backend=humans4d"), "models.files")
    missing = [finding for finding in found if finding.severity is ERROR]
    assert all(str(tmp_path) in finding.found for finding in missing)
    fetched = [finding for finding in missing if "models fetch humans4d" in finding.way_out]
    own = [finding for finding in missing if finding not in fetched]
    assert fetched and all("MIT" in f.found or "Creative Commons" in f.found for f in fetched)
    assert own and all("registration required" in f.found and "register at" in f.way_out for f in own)


def test_a_file_whose_checksum_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "model_final.pkl"
    path.write_bytes(b"\x80\x04N.")
    sets = ("stages.backend=humans4d", f"stages.options.vitdet_weights={path}")
    found = look(make_context(tmp_path, *sets), "models.files")
    (damaged,) = [finding for finding in found if str(path) in finding.found]
    assert damaged.severity is ERROR
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:12] in damaged.found
    assert f"rm '{path}'" in damaged.way_out


def test_options_that_the_backend_refuses(tmp_path: Path) -> None:
    found = worst(
        look(make_context(tmp_path, "stages.backend=humans4d", "stages.options.dtipe=fp16"), "models.files")
    )
    assert found.severity is ERROR
    assert "dtipe" in found.found and "stages.options" in found.way_out
