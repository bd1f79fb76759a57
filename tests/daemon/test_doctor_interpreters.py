"""The doctor's checks of interpreters and codecs, each with the fault made real in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.doctor import interpreters
from daemon.doctor.check import Severity
from tests.daemon.doctor import bare_python, look, make_context, package, script, worst


@pytest.mark.parametrize("stage", ["decode", "detect", "mesh", "track"])
def test_a_good_interpreter_says_its_versions(tmp_path: Path, stage: str) -> None:
    (found,) = look(make_context(tmp_path), f"stages.{stage}")
    assert found.severity is Severity.OK
    assert ".".join(map(str, sys.version_info[:3])) in found.found
    assert "numpy" in found.found and "pyzmq" in found.found


@pytest.mark.parametrize(
    ("text", "what", "way"),
    [
        (None, "is not there", "set stages.mesh.python"),
        ("not executable", "is not executable", "chmod +x"),
        ("exit 3", "does not start: exit code 3", "-V"),
        ("echo hello", "it is no Python", "stages.mesh.python"),
        ("printf 3.8.10", "is Python 3.8.10", "3.10 or newer"),
        ("kill -SEGV $$", "killed by SIGSEGV", "stages.mesh.python"),
    ],
)
def test_an_interpreter_that_cannot_be_used(tmp_path: Path, text: str | None, what: str, way: str) -> None:
    python = tmp_path / "python"
    if text is not None:
        script(python, text)
        if text == "not executable":
            python.chmod(0o644)
    (found,) = look(make_context(tmp_path, f"stages.mesh.python={python}"), "stages.mesh")
    assert found.severity is Severity.ERROR
    assert found.found.startswith("mesh: ")
    assert what in found.found
    assert way in found.way_out


def test_an_interpreter_that_never_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "START_SECONDS", 0.5)
    python = script(tmp_path / "python", "sleep 600; true")
    (found,) = look(make_context(tmp_path, f"stages.mesh.python={python}"), "stages.mesh")
    assert found.severity is Severity.ERROR
    assert "no end after" in found.found


def test_everything_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "python")
    (found,) = look(make_context(tmp_path, f"stages.decode.python={python}"), "stages.decode")
    assert found.severity is Severity.ERROR
    for name in ("zmq", "msgpack", "numpy", "av", "cv2"):
        assert name in found.found
    assert f"{python} -m pip install pyzmq msgpack numpy av opencv-python" in found.way_out


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("raise ImportError('libfoo.so.3: cannot open')", "cannot import msgpack: ImportError: libfoo.so.3"),
        ("import sys; sys.exit(1)", "cannot import msgpack: SystemExit"),
        ("import os; os.kill(os.getpid(), 11)", "died while importing msgpack: killed by SIGSEGV"),
        ("import os; os._exit(5)", "died while importing msgpack: exit code 5"),
    ],
)
def test_a_broken_package(tmp_path: Path, text: str, what: str) -> None:
    packages = package(tmp_path / "packages", "msgpack", text)
    found = look(make_context(tmp_path, f"stages.track.env.PYTHONPATH={packages}"), "stages.track")
    assert all(finding.severity is Severity.ERROR for finding in found)
    assert what in found[0].found


def test_a_package_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreters, "IMPORT_SECONDS", 5.0)
    packages = package(tmp_path / "packages", "msgpack", "import time; time.sleep(600)")
    found = look(make_context(tmp_path, f"stages.track.env.PYTHONPATH={packages}"), "stages.track")
    assert "died while importing msgpack: no end after 5 s" in found[0].found


def test_a_package_that_prints_does_not_spoil_the_answer(tmp_path: Path) -> None:
    packages = package(tmp_path / "packages", "msgpack", 'print(\'{"problem": "hello"}\', flush=True)')
    context = make_context(tmp_path, f"stages.track.env.PYTHONPATH={packages}")
    assert "hello" not in look(context, "stages.track")[0].found


FAKE_BACKEND = """
from stages.backends.blazepose import BACKEND as BLAZEPOSE
from stages.protocols import ConfigurationError, Problem
import dataclasses
def problems(stage, options):
    if "colour" in options:
        raise ConfigurationError("no option colour")
    return [Problem("no package nosuch, which is sad", "pip install it"),
            Problem("no package norsuch, which is sad", "pip install it"),
            Problem("phalp is too old", "pip uninstall phalp"),
            Problem("no file /models/x.bin", "fetch it", "file"),
            Problem("device = 'cuda', but there is none", "buy it", "device")]
BACKEND = dataclasses.replace(BLAZEPOSE, name="fake", preload={}, packages={"mesh": ("numpy", "nosuch", "norsuch")},
                              problems=problems)
"""


def test_the_backend_is_asked_in_the_stages_interpreter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = package(tmp_path / "packages", "pkgfake", "")
    package(packages / "pkgfake", "model", FAKE_BACKEND)
    monkeypatch.syspath_prepend(packages)
    sets = ("stages.backend=pkgfake.model", f"stages.mesh.env.PYTHONPATH={packages}")
    found = look(make_context(tmp_path, *sets), "stages.mesh")
    # What is missing of files is told by models.files, of the device by gpu.torch.
    assert [finding.found for finding in found] == [
        "mesh: no package nosuch, norsuch, which is sad",
        "mesh: phalp is too old",
    ]
    assert found[0].way_out == f"{sys.executable} -m pip install it"
    assert found[1].way_out == f"{sys.executable} -m pip uninstall phalp"
    (found,) = look(make_context(tmp_path, *sets, "stages.options.colour=red"), "stages.mesh")
    assert found.found == "mesh: no option colour" and "[stages.options]" in found.way_out


def test_what_the_stage_and_what_the_backend_lacks_are_told_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = package(tmp_path / "packages", "pkgboth", "")
    package(packages / "pkgboth", "model", FAKE_BACKEND.replace("preload={}", "preload={'mesh': ('nosuch',)}"))
    monkeypatch.syspath_prepend(packages)
    sets = ("stages.backend=pkgboth.model", f"stages.mesh.env.PYTHONPATH={packages}")
    found = [finding.found for finding in look(make_context(tmp_path, *sets), "stages.mesh")]
    assert found[0] == f"mesh: {sys.executable} has no nosuch" and "mesh: phalp is too old" in found


PLAIN_BACKEND = """
from stages.backends.blazepose import BACKEND as BLAZEPOSE
from stages.protocols import Backend
BACKEND = Backend("plain", BLAZEPOSE.detector, BLAZEPOSE.mesh, BLAZEPOSE.tracker, BLAZEPOSE.header, BLAZEPOSE.body, {})
"""


def test_a_backend_that_says_nothing_of_its_packages_and_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = package(tmp_path / "packages", "plainfake", "")
    package(packages / "plainfake", "model", PLAIN_BACKEND)
    package(packages / "plainfake" / "model", "requirements", "raise RuntimeError('guessed by its name')")
    package(packages / "plainfake" / "model", "models", "raise RuntimeError('guessed by its name')")
    monkeypatch.syspath_prepend(packages)
    sets = ("stages.backend=plainfake.model", f"stages.mesh.env.PYTHONPATH={packages}")
    context = make_context(tmp_path, *sets)
    for check in ("stages.mesh", "models.files"):
        (found,) = look(context, check)
        assert found.severity is Severity.OK, found
    assert "has no model files" in found.found
    result = CliRunner().invoke(cli, ["models", "list", "plainfake.model"])
    assert result.exit_code == 1 and "no files" in result.output


def test_an_unknown_backend(tmp_path: Path) -> None:
    (found,) = look(make_context(tmp_path, "stages.backend=nosuch"), "stages.mesh")
    assert found.severity is Severity.ERROR
    assert "blazepose, humans4d" in found.found


def test_an_interpreter_looked_up_on_path(tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    script(folder / "mypython", f'exec "{sys.executable}" "$@"')
    environ = {"PATH": f"{folder}:/usr/bin:/bin"}
    found = worst(look(make_context(tmp_path, "stages.mesh.python=mypython", environ=environ), "stages.mesh"))
    assert found.severity is Severity.NOTE
    assert str(folder / "mypython") in found.way_out


def test_the_wrong_environment_is_active(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin", "VIRTUAL_ENV": str(tmp_path / "other")}
    found = worst(look(make_context(tmp_path, environ=environ), "settings.interpreter"))
    assert found.severity is Severity.WARNING
    assert str(tmp_path / "other") in found.found
    active = {"PATH": "/usr/bin", "VIRTUAL_ENV": str(Path(sys.executable).parent.parent)}
    assert worst(look(make_context(tmp_path, environ=active), "settings.interpreter")).severity is Severity.OK


def test_another_poseward_on_path(tmp_path: Path) -> None:
    (tmp_path / "poseward").write_text("#!/opt/other/bin/python3\n")
    (tmp_path / "poseward").chmod(0o755)
    found = worst(look(make_context(tmp_path, environ={"PATH": str(tmp_path)}), "settings.interpreter"))
    assert found.severity is Severity.WARNING
    assert "/opt/other/bin/python3" in found.found


@pytest.mark.parametrize(
    ("texts", "joined"),
    [
        (["no x in Y"], "no x in Y"),
        (["no package ab, which Y", "no package cb, which Y"], "no package ab, cb, which Y"),
        (["a torn file", "another matter"], "a torn file; another matter"),
        (["no x", "no y"], "no x; no y"),
    ],
)
def test_complaints_with_the_same_way_out_are_one(texts: list[str], joined: str) -> None:
    assert interpreters._joined(texts) == joined


# -- codecs --------------------------------------------------------------------------------------------

NO_CODEC = """
import importlib.util, sys
def make(name, mode): raise ValueError(name)
class CodecContext: create = staticmethod(make)
def open(*args, **rest): raise ValueError("no encoder")
class VideoFrame: pass
"""


def test_codecs_of_this_machine(tmp_path: Path) -> None:
    found = look(make_context(tmp_path), "video.codecs")
    assert worst(found).severity is Severity.OK
    assert "hevc" in found[0].found


def test_codecs_that_are_missing(tmp_path: Path) -> None:
    stub = package(tmp_path / "packages", "av", NO_CODEC)
    for name in ("stream", "error", "container", "codec", "video"):
        (stub / "av" / f"{name}.py").write_text("def __getattr__(name): return object\n")
    found = look(make_context(tmp_path, f"stages.decode.env.PYTHONPATH={stub}"), "video.codecs")
    assert [finding.severity for finding in found] == [Severity.WARNING] * 2
    assert "h264, hevc, vp9, av1, mpeg4 cannot be decoded" in found[0].found
    assert "no overlays" in found[1].found


def test_no_av_at_all(tmp_path: Path) -> None:
    python = bare_python(tmp_path / "python")
    (found,) = look(make_context(tmp_path, f"stages.decode.python={python}"), "video.codecs")
    assert found.severity is Severity.ERROR
    assert "pip install av" in found.way_out
