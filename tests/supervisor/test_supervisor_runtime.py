"""Runtime folders: private, short, swept; and device memory as different drivers tell it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from supervisor.memory import DeviceGate, DeviceMemory, Nvml, describe_holders, tree_memory
from supervisor.runtime import RuntimePathError, make_runtime, remove_runtime, sweep
from tests.paths import ROOT


@pytest.fixture
def base() -> Iterator[Path]:
    # Short, unlike pytest's own: socket paths end at 107 bytes.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="pwt") as folder:
        yield Path(folder)


def test_a_folder_is_private_and_goes_when_told(base: Path) -> None:
    folder = make_runtime(base)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sweep(base) == []
    remove_runtime(folder)
    assert not folder.exists()


def test_a_dead_run_s_folder_is_swept_and_a_living_one_s_is_not(base: Path) -> None:
    code = "import sys, os, pathlib; from supervisor.runtime import make_runtime; "
    code += "print(make_runtime(pathlib.Path(sys.argv[1])), flush=True); os.kill(os.getpid(), 9)"
    root = ROOT
    dead = subprocess.run([sys.executable, "-c", code, str(base)], stdout=subprocess.PIPE, cwd=root, text=True)
    left = Path(dead.stdout.strip())
    assert left.is_dir()
    alive = make_runtime(base)
    assert not left.exists()
    assert alive.exists()
    remove_runtime(alive)


def test_what_others_have_put_there_stays(base: Path) -> None:
    other = base / "poseward-results"
    other.mkdir()
    (other / "precious").touch()
    assert sweep(base) == []
    assert (other / "precious").exists()


def test_a_path_too_long_for_a_socket_is_explained(base: Path) -> None:
    deep = base / ("d" * 100)
    deep.mkdir()
    with pytest.raises(RuntimePathError, match="107 bytes"):
        make_runtime(deep)


def test_the_default_falls_back_to_a_short_path(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = base / ("d" * 100)
    deep.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(deep))
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = make_runtime()
    assert folder.parent == Path("/tmp")
    remove_runtime(folder)


class Machine:
    """Two GPUs: the first full, the second free."""

    def devices(self) -> list[DeviceMemory]:
        return [
            DeviceMemory(0, "full", 8 << 30, 1 << 30, {os.getpid(): 6 << 30, 2**22 + 1: 1 << 30}, "GPU-aaaa"),
            DeviceMemory(1, "free", 8 << 30, 8 << 30, None, "GPU-bbbb"),
        ]


@pytest.mark.parametrize(
    ("device", "env", "opened"),
    [
        (0, {}, False),
        (1, {}, True),
        (0, {"CUDA_VISIBLE_DEVICES": "1"}, True),
        (1, {"CUDA_VISIBLE_DEVICES": "1,0"}, False),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-bb"}, True),
        (0, {"CUDA_VISIBLE_DEVICES": "GPU-aa"}, False),
    ],
)
def test_the_gate_looks_at_the_gpu_that_the_process_will_use(
    device: int, env: dict[str, str], opened: bool
) -> None:
    assert DeviceGate(Machine()).ask(device, 4 << 30, env).open is opened


@pytest.mark.parametrize(("device", "env"), [(7, {}), (0, {"CUDA_VISIBLE_DEVICES": ""})])
def test_no_figures_leave_the_gate_open_and_say_so(device: int, env: dict[str, str]) -> None:
    answer = DeviceGate(Machine()).ask(device, 4 << 30, env)
    assert answer.open
    assert "unknown" in answer.holders[0]


def test_holders_are_named_largest_first_even_when_they_are_gone() -> None:
    full, free = Machine().devices()
    mine, gone = describe_holders(full)
    assert psutil.Process().name() in mine
    assert "6144 MB" in mine
    assert gone.startswith("? ")
    assert "WSL" in describe_holders(free)[0]


def test_a_machine_without_a_driver_has_no_devices() -> None:
    nvml = Nvml()
    devices = nvml.devices()
    assert devices or nvml.problem


def test_a_tree_s_memory_includes_children_and_a_dead_one_s_is_nothing() -> None:
    alone = tree_memory(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        assert tree_memory(os.getpid()) > alone // 2
        assert tree_memory(child.pid) > 0
    finally:
        child.communicate(b"\n")
    assert tree_memory(child.pid) == 0
