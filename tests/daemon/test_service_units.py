"""The units' text: rendered for many machines, judged by systemd's own tools."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.service import units
from daemon.service.units import NAME, ServiceError, Unit, argument, is_marked, is_unchanged, quote_path, render
from tests.paths import ROOT

EXPOSURE = {False: 1.7, True: 6.3}
"""What docs/service.md promises of `systemd-analyze security`; lower is better."""
LEEWAY = 0.3
"""Other versions of systemd weigh a little differently."""


def unit(user_unit: bool, **more: object) -> Unit:
    # A folder that is there: verify looks.
    base = Unit(
        user_unit, [sys.executable, "/opt/poseward/bin/poseward", "serve"], Path("/var"), "daemon", "daemon"
    )
    return replace(base, **more)  # type: ignore[arg-type]


VARIANTS = [
    {},
    {"command": [sys.executable, "serve", "--config", "/home/a b/100%/poseward.toml", "--set", "x=$HOME"]},
    {"environment": [("POSEWARD_STAGES__MESH__PYTHON", "/opt/my envs/50%/bin/python")], "wsl": True},
    {"writable": [Path("/var/lib/a b"), Path("/mnt/c/it's 5%")], "mounts": [Path("/mnt/c/it's 5%")]},
    {"memory_high": "75%", "memory_max": "12G", "loopback": False, "own_state": True},
]


def lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def settings(text: str, key: str) -> list[str]:
    return [line.partition("=")[2] for line in lines(text) if line.startswith(key + "=")]


@pytest.mark.parametrize("user_unit", [False, True], ids=["system", "user"])
@pytest.mark.parametrize("more", VARIANTS)
def test_systemd_finds_no_fault(more: dict[str, object], user_unit: bool, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    file = tmp_path / NAME
    file.write_text(render(unit(user_unit, **more)))
    done = subprocess.run(
        ["systemd-analyze", "--user" if user_unit else "--system", "verify", "--man=no", str(file)],
        capture_output=True, text=True, timeout=60,
        env={"PATH": "/usr/bin:/bin", "XDG_RUNTIME_DIR": str(tmp_path), "HOME": "/"},
    )  # fmt: skip
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "poseward" in line]
    assert done.returncode == 0 and not ours, done.stdout + done.stderr


@pytest.mark.parametrize("user_unit", [False, True], ids=["system", "user"])
def test_the_security_score_is_what_the_docs_say(user_unit: bool, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("there is no systemd-analyze")
    file = tmp_path / NAME
    file.write_text(render(unit(user_unit)))
    most = round((EXPOSURE[user_unit] + LEEWAY) * 10)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", f"--threshold={most}", "--no-pager", str(file)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    assert done.returncode == 0, done.stdout[-600:] + done.stderr
    said = (ROOT / "docs/service.md").read_text(encoding="utf-8")
    assert f"**{EXPOSURE[user_unit]}**" in said


@pytest.mark.parametrize("user_unit", [False, True], ids=["system", "user"])
def test_what_every_unit_demands(user_unit: bool) -> None:
    text = render(unit(user_unit))
    assert "@" not in re.sub(r"@system-service|@privileged|modprobe@", "", text), "a placeholder is left"
    expected = {
        "Type": "notify", "NotifyAccess": "main", "Restart": "on-failure", "RestartPreventExitStatus": "2",
        "KillMode": "mixed", "OOMPolicy": "continue", "NoNewPrivileges": "yes", "UMask": "0077",
        "SystemCallArchitectures": "native", "SyslogIdentifier": "poseward", "StandardError": "journal",
        "RestrictNamespaces": "yes", "LockPersonality": "yes", "MemoryDenyWriteExecute": "no",
    }  # fmt: skip
    assert {key: settings(text, key)[-1] for key in expected} == expected
    assert int(settings(text, "WatchdogSec")[0]) >= 30 and int(settings(text, "TimeoutStopSec")[0]) >= 60
    assert "User" not in {line.partition("=")[0] for line in lines(text)} or not user_unit
    assert settings(text, "WantedBy") == ["default.target" if user_unit else "multi-user.target"]
    assert not settings(text, "PrivateDevices"), "the GPU is a device"


def test_the_system_unit_writes_its_folders_only() -> None:
    text = render(unit(False, writable=[Path("/srv/results"), Path("/srv/a b")]))
    assert settings(text, "ReadWritePaths") == ["/srv/results", '"/srv/a b"']
    assert settings(text, "ProtectSystem") == ["strict"] and settings(text, "ProtectHome") == ["read-only"]
    assert settings(text, "DevicePolicy") == ["closed"]
    assert settings(text, "DeviceAllow") == ["char-nvidia* rw"]
    assert settings(render(unit(False, wsl=True)), "DeviceAllow") == ["/dev/dxg rw"]
    assert settings(text, "CapabilityBoundingSet") == [""]


def test_options_that_are_not_given_leave_no_line() -> None:
    text = render(unit(False))
    assert not settings(text, "MemoryMax") and not settings(text, "StateDirectory")
    assert settings(text, "IPAddressDeny") == ["any"]
    text = render(unit(False, memory_max="75%", own_state=True, loopback=False))
    assert settings(text, "MemoryMax") == ["75%"] and settings(text, "StateDirectory") == ["poseward"]
    assert not settings(text, "IPAddressDeny")


@pytest.mark.parametrize("size", ["12G", "800M", "75%", "infinity", "1048576"])
def test_sizes(size: str) -> None:
    assert settings(render(unit(True, memory_high=size)), "MemoryHigh") == [size]


@pytest.mark.parametrize("size", ["12 GB", "-1", "much", "12G\nExecStart=/bin/sh", "%h"])
def test_no_sizes(size: str) -> None:
    with pytest.raises(ServiceError, match="is no size") as caught:
        render(unit(True, memory_max=size))
    assert caught.value.name == "bad-size"


@pytest.mark.parametrize("word", ["a\nExecStartPre=/bin/sh", "tab\t", "\x7f", "\udcff"])
def test_nothing_can_begin_another_line(word: str) -> None:
    for more in ({"command": [word]}, {"working": Path("/" + word)}, {"environment": [("A", word)]},
                 {"writable": [Path("/" + word)]}):  # fmt: skip
        with pytest.raises(ServiceError) as caught:
            render(unit(False, **more))
        assert caught.value.name == "bad-path"


@pytest.mark.parametrize("name", ['a "b"', "a\\b"])
def test_folders_that_no_unit_can_name(name: str) -> None:
    with pytest.raises(ServiceError, match="rename"):
        quote_path(Path("/srv") / name)


@given(st.text(st.characters(min_codepoint=32, exclude_characters="\x7f", exclude_categories=("Cs", "Cc"))))
def test_a_word_is_one_word(word: str) -> None:
    """Undone by hand as systemd.service(5) says; test_service_systemd lets systemd itself do it."""
    text = argument(word)
    if text[:1] == '"':
        assert text[-1] == '"' and not re.search(r'(?<!\\)(\\\\)*"', text[1:-1])
        text = text[1:-1]
    else:
        assert text and not re.search(r"[\s'\"\\;]", text)
    assert re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL).replace("$$", "$").replace("%%", "%") == word


def test_the_mark_tells_our_own_and_what_was_changed() -> None:
    text = render(unit(False))
    assert is_marked(text) and is_unchanged(text)
    changed = text.replace("WatchdogSec=60", "WatchdogSec=600")
    assert changed != text and is_marked(changed) and not is_unchanged(changed)
    assert not is_marked(changed.partition("\n")[2])


def test_templates_come_with_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from the checkout, they are where the package's list of files says."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert '"share/poseward/systemd" = ["systemd/*.in", "systemd/*.conf"]' in project

    class File:
        name = "poseward.service.in"

        def locate(self) -> Path:
            return tmp_path / "share" / self.name

    monkeypatch.setattr(units, "__file__", str(tmp_path / "site-packages/daemon/service/units.py"))
    monkeypatch.setattr("importlib.metadata.files", lambda name: [File()])
    with pytest.raises(ServiceError, match="install Poseward again") as caught:
        units.template(False)
    assert caught.value.name == "no-template"
    (tmp_path / "share").mkdir()
    (tmp_path / "share/poseward.service.in").write_text("here")
    assert units.template(False) == "here"


def test_the_example_drop_in_is_a_drop_in() -> None:
    text = (ROOT / "systemd/stage-interpreters.conf").read_text(encoding="utf-8")
    found = settings(text, "Environment")
    from daemon.settings.loading import load

    environ = dict(item.split("=", 1) for item in found)
    loaded = load(ROOT / "tests/__init__.py", environ=environ)  # an empty file: nobody's configuration
    assert loaded.value("stages.mesh.python") == environ["POSEWARD_STAGES__MESH__PYTHON"]
