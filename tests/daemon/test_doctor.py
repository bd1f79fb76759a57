"""``poseward doctor``: the runner, the report, exit codes; each check's faults are in the files beside this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from daemon.doctor.check import AT_ONCE, Check, Severity, error, exit_code, note, ok, run_checks, warning
from daemon.doctor.checks import CHECKS, THEMES
from tests.daemon.doctor import look, make_context, worst
from tests.paths import ROOT


def doctor(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """The real program, with everything that it writes below ``folder``."""
    (folder / "poseward.toml").touch()
    sets = [f"daemon.state={folder}/state", f"results.folder={folder}/results"]
    flags = [part for text in sets for part in ("--set", text)]
    return subprocess.run(
        [sys.executable, "-c", "from daemon.cli import main; main()", "doctor", *flags, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "POSEWARD_CONFIG": str(folder / "poseward.toml"), **env},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_names_are_unique_and_have_a_heading() -> None:
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert {check.theme for check in CHECKS} == set(THEMES)


def test_exit_code_is_that_of_the_worst() -> None:
    assert exit_code([]) == 0
    assert exit_code([ok("a.b", "x"), note("a.b", "x")]) == 0
    assert exit_code([ok("a.b", "x"), warning("a.b", "x", "y")]) == 1
    assert exit_code([error("a.b", "x", "y"), warning("a.b", "x", "y")]) == 2


def test_a_check_that_raises_is_a_finding_and_the_others_go_on(tmp_path: Path) -> None:
    def broken(*_: object) -> list[object]:
        raise KeyError("surprise")

    checks = [Check("a.broken", broken), Check("a.well", lambda c, n: [ok(n, "fine")])]  # type: ignore[arg-type]
    results = {check.name: found for check, found in run_checks(make_context(tmp_path), checks)}
    (found,) = results["a.broken"]
    assert found.severity is Severity.ERROR
    assert found.check == "a.broken"
    assert "KeyError" in found.found
    assert found.way_out
    assert results["a.well"] == [ok("a.well", "fine")]


def test_a_check_that_hangs_is_a_finding_and_holds_nobody_up(tmp_path: Path) -> None:
    release = threading.Event()

    def hung(*_: object) -> list[object]:
        release.wait(60)
        return []

    # More of them than may run at the same time: the last would never start if they kept their places.
    checks = [Check(f"a.hung{n}", hung, 0.2) for n in range(4)]  # type: ignore[arg-type]
    checks.append(Check("a.well", lambda c, n: [ok(n, "fine")]))
    assert len(checks) > AT_ONCE
    try:
        results = list(run_checks(make_context(tmp_path), checks))
    finally:
        release.set()
    assert [found[0].severity for _, found in results] == [Severity.ERROR] * 4 + [Severity.OK]
    assert "0 s" in results[0][1][0].found


def test_json_is_a_list_of_findings_with_four_texts(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json")
    found = json.loads(done.stdout)
    assert {frozenset(finding) for finding in found} == {frozenset(("check", "severity", "found", "way_out"))}
    assert {finding["check"] for finding in found} == {check.name for check in CHECKS}
    codes = {"ok": 0, "note": 0, "warning": 1, "error": 2}
    assert done.returncode == max(codes[finding["severity"]] for finding in found)
    assert all(finding["way_out"] for finding in found if codes[finding["severity"]])


def test_the_report_has_marks_ways_out_and_counts(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--set", "stages.track.python=/no/such/python", PYTHONIOENCODING="utf-8")
    assert done.returncode == 2
    lines = done.stdout.splitlines()
    (at,) = [number for number, line in enumerate(lines) if "✗  track: /no/such/python is not there" in line]
    assert lines[at + 1].strip().startswith("→  set stages.track.python")
    assert lines[-1].startswith("1 error, ") or "errors" in lines[-1]
    for heading in THEMES.values():
        assert heading in lines


def test_output_without_the_marks_letters(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--set", "stages.track.python=/no/such/python", PYTHONIOENCODING="ascii:replace")
    assert done.returncode == 2
    assert "ERROR  track: /no/such/python" in done.stdout
    assert "->  set stages.track.python" in done.stdout


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_a_locale_without_utf8(tmp_path: Path, flags: list[str]) -> None:
    """The real thing, with a path that this locale cannot show."""
    state = f"daemon.state={tmp_path}/Vidéo …"
    done = doctor(tmp_path, *flags, "--set", state, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")
    assert "file names are read as ascii" in done.stdout, done.stderr
    assert "LANG=C.UTF-8" in done.stdout
    assert done.returncode == 2
    if flags:
        assert isinstance(json.loads(done.stdout), list)


def test_a_configuration_that_cannot_be_read_is_a_finding(tmp_path: Path) -> None:
    done = doctor(tmp_path, "--json", "--set", "stages.mesh.batsh=2")
    (found,) = json.loads(done.stdout)
    assert done.returncode == 2
    assert found["check"] == "settings.file"
    assert "stages.mesh.batch" in found["found"]


def test_injected_faults_are_named(tmp_path: Path) -> None:
    assert worst(look(make_context(tmp_path), "settings.file")).severity is Severity.OK
    found = worst(look(make_context(tmp_path, "stages.faults=mesh:kill@57"), "settings.file"))
    assert found.severity is Severity.WARNING
    assert "mesh:kill@57" in found.found


@pytest.mark.parametrize("name", [check.name for check in CHECKS])
def test_nothing_is_left_behind(tmp_path: Path, name: str) -> None:
    (tmp_path / "drop").mkdir()
    context = make_context(tmp_path, f"drop.folder={tmp_path / 'drop'}", f"daemon.runtime={tmp_path}")
    before = set(tmp_path.rglob("*"))
    look(context, name)
    assert set(tmp_path.rglob("*")) == before
