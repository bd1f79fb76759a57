"""The command line: help, configuration commands, exit codes."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import IO

import click
import numpy as np
import pytest
from click.testing import CliRunner

from daemon.cli import COMMANDS, cli
from daemon.jobs.summary import write_summary
from stages.records import FrameRecord, Header, Track
from stages.results.stream import ResultWriter
from tests.paths import ROOT


def poseward(
    *arguments: str, cwd: Path = ROOT, stdout: IO[str] | int = subprocess.PIPE, **env: str
) -> subprocess.CompletedProcess[str]:
    """The real program in a process of its own."""
    import os

    return subprocess.run(
        [sys.executable, "-c", "from daemon.cli import main; main()", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XDG_CONFIG_HOME": "/nonexistent", **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


def make_results(folder: Path, frames: int = 3) -> Path:
    folder.mkdir(parents=True)
    header = Header(64, 48, 25.0, "blazepose", ("pelvis",), (-1,), np.zeros((1, 3), np.int32))
    writer = ResultWriter.create(folder / "frames.msgpack", header)

    def zeros(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        return np.zeros(shape, np.float32)

    for frame in range(frames):
        track = Track(7, zeros(4), 0.5, zeros(3), zeros(24, 3, 3), zeros(10), zeros(24, 3), zeros(24, 2))
        writer.append(FrameRecord(frame, frame / 25, [track] if frame else []))
    writer.close()
    summary = {
        "poseward": 1, "input": {"name": "clip.mp4", "path": "clip.mp4", "sha256": "x"}, "frames": frames,
        "truncated": None, "backend": "blazepose",
    }  # fmt: skip
    write_summary(folder, summary)
    return folder


def test_help_names_all_commands_and_gives_examples() -> None:
    result = CliRunner().invoke(cli, ["--help"])
    assert result.exit_code == 0
    for name, (_, text) in COMMANDS.items():
        assert name in result.output
        assert text in result.output
    assert "poseward run clip.mp4" in result.output


@pytest.mark.parametrize("name", COMMANDS)
def test_first_line_of_help_is_the_commands_own(name: str) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    own = (command.help or "").strip("\b\n ").splitlines()[0]
    assert own.split()[0] == COMMANDS[name][1].split()[0]
    assert CliRunner().invoke(cli, [name, "--help"]).exit_code == 0


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom daemon.cli import cli\n"
        "try: cli.main(['--help'], prog_name='poseward')\nexcept SystemExit: pass\n"
        "print(sorted({'numpy', 'av', 'cv2', 'rich', 'pydantic', 'zmq', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_unknown_command_offers_the_nearest() -> None:
    result = CliRunner().invoke(cli, ["rnu"])
    assert result.exit_code == 2
    assert "did you mean `poseward run`?" in result.output


def test_config_show_says_where_values_come_from(tmp_path: Path) -> None:
    (tmp_path / "poseward.toml").write_text("[stages]\nslots = 4\n")
    done = poseward(
        "config", "show", "--json", "--changed", "--set", "stages.mesh.batch=2",
        cwd=tmp_path, POSEWARD_STAGES__TRACK__NICE="3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = {row["key"]: (row["value"], row["origin"]) for row in json.loads(done.stdout)["settings"]}
    assert found == {
        "stages.slots": (4, "poseward.toml:2"),
        "stages.mesh.batch": (2, "--set stages.mesh.batch"),
        "stages.track.nice": (3, "environment POSEWARD_STAGES__TRACK__NICE"),
    }


def test_config_show_as_a_table_filters_by_word() -> None:
    result = CliRunner().invoke(cli, ["config", "show", "max_failed"])
    assert result.exit_code == 0
    assert "stages.max_failed_fraction" in result.output
    assert "stages.slots" not in result.output


def test_configuration_errors_are_one_line_and_code_2(tmp_path: Path) -> None:
    done = poseward("run", "clip.mp4", "--set", "stages.mesh.bacth=2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("poseward: --set stages.mesh.bacth: unknown key")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [("config", "show"), ("config", "show", "--json"), ("logs",), ("--help",)])
def test_a_full_disk_behind_the_output_is_named(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    log = tmp_path / "logs" / "poseward.jsonl"
    log.parent.mkdir()
    log.write_text(json.dumps({"time": "2026-03-01T10:00:00Z", "level": "info", "event": "x"}) + "\n")
    with open("/dev/full", "w") as full:
        done = poseward(*arguments, stdout=full, POSEWARD_DAEMON__STATE=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr == "poseward: the output cannot be written: No space left on device\n"


def test_a_configuration_of_nobody_is_one_line(tmp_path: Path) -> None:
    done = poseward("config", "show", POSEWARD_CONFIG="~no-such-user-here/poseward.toml")
    assert done.returncode == 2
    assert done.stderr.startswith("poseward: POSEWARD_CONFIG: '~no-such-user-here/poseward.toml': no home folder")
    assert done.stderr.count("\n") == 1


def test_unknown_export_and_backend_are_named_before_any_work(tmp_path: Path) -> None:
    done = poseward("run", "clip.mp4", "--export", "overlya", cwd=tmp_path)
    assert done.returncode == 2
    assert "did you mean overlay?" in done.stderr
    done = poseward("run", "clip.mp4", "--set", "stages.backend=nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert "blazepose" in done.stderr
    assert not (tmp_path / "results").exists()


def test_config_init_does_not_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    assert CliRunner().invoke(cli, ["config", "init", str(path)]).exit_code == 0
    path.write_text("# mine\n")
    result = CliRunner().invoke(cli, ["config", "init", str(path)])
    assert result.exit_code == 1
    assert "--force" in result.output
    assert path.read_text() == "# mine\n"
    assert CliRunner().invoke(cli, ["config", "init", "--force", str(path)]).exit_code == 0
    assert "[stages.mesh]" in path.read_text()


def test_inspect_counts_tracks(tmp_path: Path) -> None:
    folder = make_results(tmp_path / "clip")
    result = CliRunner().invoke(cli, ["inspect", "--json", str(folder)])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found["tracks"] == [{"id": 7, "first": 1, "frames": 2, "last": 2, "confidence": 0.5}]
    assert set(found["files"]) == {"frames.msgpack", "summary.json"}
    assert CliRunner().invoke(cli, ["inspect", str(folder)]).exit_code == 0


def test_inspect_notices_missing_and_damaged_results(tmp_path: Path) -> None:
    assert "is" in CliRunner().invoke(cli, ["inspect", str(tmp_path)]).output
    folder = make_results(tmp_path / "clip")
    frames = folder / "frames.msgpack"
    frames.write_bytes(frames.read_bytes()[:-200])
    result = CliRunner().invoke(cli, ["inspect", str(folder)])
    assert result.exit_code == 1
    assert "frames.msgpack: cut short after frame 1" in result.output


def test_models_list_with_an_empty_cache_says_how_to_fetch(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["models", "list", "--json"], env={"POSEWARD_CACHE": str(tmp_path)})
    assert result.exit_code == 1
    problems = [row["problem"] for row in json.loads(result.output)["files"]]
    assert len(problems) == 3
    assert all("poseward models fetch" in problem for problem in problems)


def test_models_of_an_unknown_backend_are_refused() -> None:
    result = CliRunner().invoke(cli, ["models", "fetch", "nothing"])
    assert result.exit_code == 1
    assert "nothing" in result.output


def test_resume_and_fresh_exclude_each_other() -> None:
    result = CliRunner().invoke(cli, ["run", "--resume", "--fresh", "clip.mp4"])
    assert result.exit_code == 2


def test_inspect_says_who_matters_most(tmp_path: Path) -> None:
    from tests.daemon.motion_clips import records, walking, write

    folder, actor = tmp_path / "clip", walking()
    folder.mkdir()
    write(
        folder / "frames.msgpack",
        records(
            (f / 30, [actor.track(1 if f < 15 else 4, f / 30)] if not 15 <= f < 20 else []) for f in range(40)
        ),
    )
    write_summary(folder, {"frames": 40, "input": {"name": "clip.mp4"}, "truncated": None, "poseward": 1})
    told = CliRunner().invoke(cli, ["inspect", "--json", "--subject", "4", str(folder)])
    found = json.loads(told.output)
    assert found["subject"] == 1 and [person["tracks"] for person in found["people"]] == [[1, 4]]
    assert found["people"][0]["filled"] == 5
    nobody = CliRunner().invoke(cli, ["inspect", "--subject", "9", str(folder)])
    assert nobody.exit_code == 1 and "there are 1, 4" in nobody.output
