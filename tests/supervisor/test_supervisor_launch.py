"""A child's own interpreter sees Poseward's packages, and nothing that merely lies beside them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest

from stages.owner.processes import ENTRIES
from supervisor.launch import PACKAGES
from tests.paths import ROOT

PROBE = """
import json, sys
import {imports}
print(json.dumps([sys.argv[1:], {imports}.__file__, __name__]))
"""


def ask(python: Path, launch: Path, *arguments: str, cwd: Path) -> list[object]:
    done = subprocess.run(
        [python, launch, *arguments], cwd=cwd, capture_output=True, text=True, env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    found: list[object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own, in which nothing is installed but a package that Poseward's own has too."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, with_pip=False)
    (packages_of(folder) / "shared_name.py").write_text("")
    return folder


def packages_of(environment: Path) -> Path:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / python / "site-packages"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Poseward installed, not in place, among other packages: one of these of the stage's environment too."""
    site = tmp_path / "installed" / "site-packages"
    site.mkdir(parents=True)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, site / name, ignore=shutil.ignore_patterns("__pycache__"))
    (site / "shared_name.py").write_text("")
    (site / "only_here.py").write_text("")
    return site


def test_only_our_packages_come_of_the_house(bare: Path, installed: Path, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    launch = installed / "supervisor" / "launch.py"
    python = bare / "bin" / "python"
    for name, place in (
        ("shared_name", packages_of(bare)),
        ("supervisor.spec", installed),
        ("stages.settings", installed),
    ):
        (work / "probe.py").write_text(PROBE.format(imports=name))
        arguments, path, main = ask(python, launch, "probe", "--flag", "two words", cwd=work)
        assert arguments == ["--flag", "two words"] and main == "__main__"
        assert Path(str(path)).is_relative_to(place), name
    (work / "probe.py").write_text(PROBE.format(imports="only_here"))
    done = subprocess.run([python, launch, "probe"], cwd=work, capture_output=True, text=True)
    assert done.returncode == 1 and "No module named 'only_here'" in done.stderr
    # Nor what lies beside the launcher itself, whose names are anybody's.
    (work / "probe.py").write_text(PROBE.format(imports="exits"))
    done = subprocess.run([python, launch, "probe"], cwd=work, capture_output=True, text=True)
    assert done.returncode == 1 and "No module named 'exits'" in done.stderr


def test_an_interpreter_without_poseward_runs_every_stage(tmp_path: Path) -> None:
    """It has the packages that the stages import, but not Poseward: neither its distribution nor its packages."""
    folder = tmp_path / "own"
    venv.create(folder, with_pip=False)
    # What a path file adds is not searched for path files itself, so that an editable Poseward there plays no part.
    (packages_of(folder) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    alone = subprocess.run([python, "-c", "import zmq, stages"], cwd=tmp_path, capture_output=True, text=True)
    if "No module named 'stages'" not in alone.stderr:
        pytest.skip("Poseward is installed, not in place, where the tests run")
    for stage, entry in ENTRIES.items():
        modules: Sequence[str] = (entry.partition(":")[0],)
        request = {"stage": stage, "backend": "humans4d", "options": {}, "modules": modules, "packages": [],
                   "frameworks": [], "cuda": False, "codecs": False}  # fmt: skip
        launch = ROOT / "supervisor" / "launch.py"
        done = subprocess.run(
            [python, launch, "daemon.doctor.inside", json.dumps(request)],
            cwd=tmp_path, capture_output=True, text=True,
        )  # fmt: skip
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines[-1] == {"done": True}, done.stderr
        assert not [line for line in lines if "failed" in line]
