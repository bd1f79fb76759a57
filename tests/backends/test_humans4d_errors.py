"""What a person meets whose machine lacks something that 4D-Humans needs: the real commands, a real daemon.

Everywhere: packages that are missing, or empty ones in their place. With ``POSEWARD_HUMANS4D_PYTHON`` and ``_PATH`` (as
in test_humans4d_pipeline): the real ones, one of them spoilt.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stages.backends.humans4d.requirements import PACKAGES
from tests.daemon.daemons import Daemon, until
from tests.paths import ROOT
from tests.stages.clips import write_clip

STAGES = ("detect", "mesh", "track")
IN_SECONDS = 60.0
"""For a busy machine; it takes two or three. What must not happen is a loop of restarts, or a wait for loading."""
REAL_PYTHON = os.environ.get("POSEWARD_HUMANS4D_PYTHON", "")
REAL_PATH = [Path(part) for part in os.environ.get("POSEWARD_HUMANS4D_PATH", "").split(os.pathsep) if part]

without_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is not None, reason="this interpreter has torch"
)
with_real = pytest.mark.skipif(not REAL_PYTHON, reason="POSEWARD_HUMANS4D_PYTHON names no interpreter with torch")

TORCH = """
from types import SimpleNamespace
__version__ = "2.5.1+cpu"
version = SimpleNamespace(cuda=None)
cuda = SimpleNamespace(is_available=lambda: False, device_count=lambda: 0, get_arch_list=lambda: [])
"""


class Machine:
    """A home folder without weights, and a folder of packages for the stages."""

    def __init__(self, base: Path) -> None:
        self.home = base / "home"
        self.packages = base / "packages"
        self.clip = base / "clip.mp4"
        self.home.mkdir()
        write_clip(self.clip, frames=3)
        self.sets = ["stages.backend=humans4d"]
        self.daemons = 0
        self._looked: dict[tuple[str, ...], list[dict[str, Any]]] = {}

    def pretend(self, *but: str) -> None:
        """Empty packages for all that is not installed, but for those named."""
        for name in sorted({name for names in PACKAGES.values() for name in names} - set(but)):
            if importlib.util.find_spec(name) is None:
                (self.packages / name).mkdir(parents=True)
                (self.packages / name / "__init__.py").write_text(TORCH if name == "torch" else "")
        if "phalp" not in but:
            self.phalp()
        self.use(self.packages)

    def phalp(self, release: str = "") -> None:
        """The right phalp; or that of 2022, as pip installs it from the package index."""
        (self.packages / "phalp" / "models").mkdir(parents=True, exist_ok=True)
        (self.packages / "phalp" / "__init__.py").write_text(f'__version__="{release or "0.1.3"}"\n')
        if release:
            (self.packages / "phalp/models/pose_transformer.py").touch()
            info = self.packages / f"phalp-{release}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: phalp\nVersion: {release}\n")
            (info / "RECORD").write_text("phalp/__init__.py,,\nphalp/models/pose_transformer.py,,\n")
            (info / "top_level.txt").write_text("phalp\n")
        else:
            (self.packages / "phalp/models/predictor").mkdir()
            (self.packages / "phalp/models/predictor/pose_transformer_v2.py").touch()

    def use(self, *path: Path, python: str = "") -> None:
        for stage in STAGES:
            if path:
                self.sets.append(f"stages.{stage}.env.PYTHONPATH={os.pathsep.join(map(str, path))}")
            if python:
                self.sets.append(f"stages.{stage}.python={python}")

    def command(self, *arguments: str) -> tuple[int, str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("POSEWARD")}
        started = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-c", "from daemon.cli import main; main()", *arguments],
            capture_output=True,
            text=True,
            timeout=2 * IN_SECONDS,
            cwd=self.home,
            env={**kept, "HOME": str(self.home), "PYTHONPATH": str(ROOT)},
        )
        assert time.monotonic() - started < IN_SECONDS
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr

    def _sets(self) -> list[str]:
        return [part for item in self.sets for part in ("--set", item)]

    def run(self) -> str:
        """What ``poseward run`` says of the one thing that keeps it from running."""
        code, output, said = self.command("run", "--json", *self._sets(), str(self.clip))
        (result,) = json.loads(output)
        assert code == 2 and not result["ok"], said
        assert result["error"] == "configuration-error", result
        # A fork server that cannot be started is done without, once for each stage.
        assert said.count("again in") <= len(STAGES), "a configuration error is not tried again"
        message = str(result["message"])
        assert "\n" not in message and len(message) < 1000
        return message

    def doctor(self, check: str) -> list[tuple[str, str]]:
        """What ``poseward doctor`` finds wrong in a check, and the ways out."""
        key = tuple(self.sets)
        if key not in self._looked:
            code, output, _ = self.command("doctor", "--json", *self._sets())
            assert code == 2
            self._looked[key] = json.loads(output)
        errors = [one for one in self._looked[key] if one["severity"] == "error"]
        assert all(one["way_out"] for one in errors)
        return [(one["found"], one["way_out"]) for one in errors if one["check"] == check]

    @contextmanager
    def at_home(self) -> Iterator[None]:
        before, os.environ["HOME"] = os.environ.get("HOME", ""), str(self.home)
        try:
            yield
        finally:
            os.environ["HOME"] = before

    def failures(self, *stages: str) -> dict[str, str]:
        """What the health of a real daemon says of stages that have failed, each for itself."""
        self.daemons += 1
        daemon = Daemon(self.home.parent / f"daemon{self.daemons}", *self.sets[1:], backend="humans4d")
        with self.at_home(), daemon, daemon.client() as client:

            def failed() -> bool:
                processes = client.health()["processes"]
                return all(processes[stage]["state"] == "failed" for stage in stages)

            until(failed, f"the end of {stages}", IN_SECONDS)
            health = client.health()
        told = {}
        for stage in stages:
            assert health["processes"][stage]["restarts"] == 0, "what only a person can mend is not tried again"
            (told[stage],) = [text for text in health["problems"] if text.startswith(f"{stage}: failed")]
            assert health["processes"][stage]["last_exit"]["kind"] == "configuration error"
            assert "\n" not in told[stage] and len(told[stage]) < 1000
        return told


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


# --- packages --------------------------------------------------------------------------------------------------


@without_torch
def test_no_torch(machine: Machine) -> None:
    message = machine.run()
    assert f"{sys.executable} has no torch" in message
    assert ".python to the python of the environment that has them" in message and "docs/humans4d.md" in message
    assert "poseward doctor" in message and "poseward models fetch humans4d" in message
    for stage, message in machine.failures("detect", "mesh").items():
        assert f"{sys.executable} has no torch" in message and f"set stages.{stage}.python" in message
    for stage in STAGES:
        found = machine.doctor(f"stages.{stage}")
        assert f"{stage}: no package torch, which {sys.executable} does not find" in [what for what, _ in found]
        assert any("https://pytorch.org" in way for _, way in found)


@without_torch
@pytest.mark.parametrize(("package", "stage"), [("hmr2", "mesh"), ("detectron2", "detect"), ("dill", "track")])
def test_one_package_is_missing(machine: Machine, package: str, stage: str) -> None:
    machine.pretend(package)
    found = machine.doctor(f"stages.{stage}")
    assert [what for what, _ in found] == [f"{stage}: no package {package}, which {sys.executable} does not find"]
    assert "pip install" in found[0][1]
    if package != "dill":
        assert "git+https://github.com/" in found[0][1]
    others = [other for other in STAGES if other != stage]
    assert not any(machine.doctor(f"stages.{other}") for other in others)
    if stage != "track":
        assert f"no package {package}, which {sys.executable} does not find" in machine.failures(stage)[stage]


@without_torch
def test_the_phalp_of_2022(machine: Machine) -> None:
    machine.pretend("phalp")
    machine.phalp("0.1.3")
    for stage in ("mesh", "track"):
        ((what, way),) = machine.doctor(f"stages.{stage}")
        assert f"the phalp in {machine.packages / 'phalp'} is the 2022 release from the package index" in what
        assert f"{sys.executable} -m pip uninstall phalp" in way and "brjathu/PHALP" in way
    message = machine.failures("mesh")["mesh"]
    assert "2022 release from the package index" in message and "pip uninstall phalp" in message


@without_torch
def test_a_package_that_is_broken(machine: Machine) -> None:
    """All is there by its name; what detect wants of torch is not."""
    machine.pretend()
    detector = machine.home / "detector.pkl"
    detector.write_bytes(b"\x80\x04N.")
    machine.sets.append(f"stages.options.vitdet_weights={detector}")
    message = machine.failures("detect")["detect"]
    assert "broken or of the wrong version (" in message and "docs/humans4d.md" in message


# --- weights and device ----------------------------------------------------------------------------------------


@without_torch
def test_no_weights(machine: Machine) -> None:
    machine.pretend()
    message = machine.run()
    assert f"no file {machine.home}" in message and "`poseward models fetch humans4d` downloads it" in message
    found = machine.doctor("models.files")
    assert len(found) == 13
    assert all("poseward models fetch humans4d" in way or "register at" in way for _, way in found)
    assert not any(machine.doctor(f"stages.{stage}") for stage in STAGES), "files are told once, not by each stage"


@without_torch
def test_only_smpl_is_missing(machine: Machine) -> None:
    machine.pretend()
    other = machine.home / "file.bin"
    other.write_bytes(b"x" * 100)
    for option in ("vitdet_weights", "hmr2_checkpoint", "hmr2_config", "joint_regressor", "mean_params", "hmar_weights",
                   "texture_faces", "texture_weights", "predictor_weights", "predictor_config", "predictor_mean_std",
                   "predictor_mean_params"):  # fmt: skip
        machine.sets.append(f"stages.options.{option}={other}")
    # The detector's file has a checksum, which 100 letters do not have.
    (detector, (what, way)) = machine.doctor("models.files")
    assert "SHA-256" in detector[0]
    assert "SMPL_NEUTRAL.pkl" in what and "registration required" in what
    assert "register at https://smplify.is.tue.mpg.de" in way and "option smpl_model" in way
    message = machine.failures("mesh")["mesh"]
    assert "no file" in message and "SMPL_NEUTRAL.pkl; " in message and "register at https://smplify" in message
    assert "models fetch" not in message, "it cannot fetch that"


@without_torch
def test_no_cuda(machine: Machine) -> None:
    machine.pretend()
    machine.sets += ["stages.detect.device=cuda", "stages.mesh.device=cuda"]
    found = machine.doctor("gpu.torch")
    assert [what.split(":")[0] for what, _ in found] == ["detect", "mesh"]
    assert all("is built without CUDA, but device = cuda" in what for what, _ in found)
    assert all('= "cpu"' in way and "pip install" in way for _, way in found)
    machine.run()  # tells of the first stage that ends
    for message in machine.failures("detect", "mesh").values():
        assert "device = 'cuda', but this torch is built without CUDA" in message
        assert 'set device = "cpu" for this stage' in message


# --- interpreters ----------------------------------------------------------------------------------------------


def test_an_interpreter_that_is_not_there(machine: Machine) -> None:
    python = str(machine.home / "venv/bin/python")
    machine.use(python=python)
    message = machine.run()
    assert f"cannot start {python}: No such file or directory" in message
    assert "python" in message.rpartition(";")[2] and "set stages." in message
    for stage in STAGES:
        ((what, way),) = machine.doctor(f"stages.{stage}")
        assert what == f"{stage}: {python} is not there" and f"set stages.{stage}.python" in way


@pytest.mark.parametrize("kind", ["too old", "bare"])
def test_an_interpreter_that_is_another(machine: Machine, kind: str) -> None:
    """An old one is made of this one, which is told to take itself for it before anything of ours is imported."""
    python = machine.home / "python"
    old = machine.home / "old"
    old.mkdir()
    (old / "sitecustomize.py").write_text("import sys\nsys.version_info = (3, 8, 18, 'final', 0)\n")
    path = f'PYTHONPATH="{old}:$PYTHONPATH" ' if kind == "too old" else ""
    python.write_text(f'#!/bin/sh\n{path}exec "{sys.executable}" {"-S " if kind == "bare" else ""}"$@"\n')
    python.chmod(0o755)
    machine.use(python=str(python))
    message = machine.run()
    assert (
        "Python 3.8 is too old, 3.10 or newer is needed" if kind == "too old" else "No module named"
    ) in message
    assert re.search(rf"in {re.escape(str(python))}; set stages\.(decode|detect|mesh|track)\.python to", message)
    for stage in STAGES:
        what, way = machine.doctor(f"stages.{stage}")[0]
        assert str(python) in what and f"set stages.{stage}.python" in way


# --- the real packages -----------------------------------------------------------------------------------------


@with_real
def test_the_real_packages_without_hmr2(machine: Machine) -> None:
    without = [path for path in REAL_PATH if not (path / "hmr2").is_dir()]
    if len(without) == len(REAL_PATH):
        pytest.skip("POSEWARD_HUMANS4D_PATH has no hmr2 that could be left out")
    machine.use(*without, python=REAL_PYTHON)
    ways = dict(machine.doctor("stages.mesh"))
    way = ways[f"mesh: no package hmr2, which {REAL_PYTHON} does not find"]
    assert f"{REAL_PYTHON} -m pip install --no-deps 'git+https://github.com/shubham-goel/4D-Humans@" in way
    assert not [
        what for stage in ("detect", "track") for what, _ in machine.doctor(f"stages.{stage}") if "no pack" in what
    ]
    assert f"no package hmr2, which {REAL_PYTHON} does not find; pip install" in machine.failures("mesh")["mesh"]


@with_real
def test_the_real_packages_with_the_phalp_of_2022_before_the_right_one(machine: Machine) -> None:
    machine.phalp("0.1.3")
    machine.use(machine.packages, *REAL_PATH, python=REAL_PYTHON)
    release = f"the phalp in {machine.packages / 'phalp'} is the 2022 release"
    for stage in ("mesh", "track"):
        assert any(release in what for what, _ in machine.doctor(f"stages.{stage}"))
        assert release in machine.failures(stage)[stage]


@with_real
def test_the_real_packages_without_weights_and_cuda(machine: Machine) -> None:
    machine.use(*REAL_PATH, python=REAL_PYTHON)
    told = [what for stage in STAGES for what, _ in machine.doctor(f"stages.{stage}")]
    # An environment whose torchvision does not fit its torch is told as such, which is right.
    assert all("cannot import torchvision" in what for what in told)
    assert len(machine.doctor("models.files")) == 13
    for message in machine.failures("detect", "mesh").values():
        assert "no file" in message and "poseward models fetch humans4d" in message and "no package" not in message
    machine.sets += [f"stages.{stage}.device=cuda" for stage in STAGES]
    if not (found := machine.doctor("gpu.torch")):
        pytest.skip("there is a GPU")
    assert len(found) == 3
    for message in machine.failures(*STAGES).values():
        assert "device = 'cuda', but" in message


@with_real
def test_a_torchvision_that_does_not_fit_its_torch(machine: Machine) -> None:
    """As two index pages give them: found, of the right name, and unusable."""
    package = machine.packages / "torchvision"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    machine.use(machine.packages, *REAL_PATH, python=REAL_PYTHON)
    detector = machine.home / "detector.pkl"
    detector.write_bytes(b"\x80\x04N.")
    machine.sets.append(f"stages.options.vitdet_weights={detector}")
    message = machine.failures("detect")["detect"]
    assert "RuntimeError: operator torchvision::nms does not exist" in message and "docs/humans4d.md" in message
