"""Plans, installation, removal and status, with a systemctl of the test's own and a root that is a folder."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from daemon.cli import cli
from daemon.service.install import check_systemd, install_steps, remarks, run_steps, uninstall_steps, unit_file
from daemon.service.plan import Account, Choices, Machine, Plan, account_for, make_plan
from daemon.service.plan import _check_readable as check_readable
from daemon.service.plan import _check_writable as check_writable
from daemon.service.status import read_status
from daemon.service.units import NAME, ServiceError, Unit, is_unchanged, render
from daemon.settings.loading import ConfigError, load

ME = pwd.getpwuid(os.getuid())
SYSTEMCTL = """#!/bin/sh
# Notes what it is asked, and keeps the unit's state in files as systemd does.
here=$(dirname "$0")
echo "$(basename "$0") $*" >> "$here/asked"
for word; do case $word in
    is-enabled) test -e "$here/enabled"; exit ;;
    is-active) test -e "$here/active"; exit ;;
    enable) touch "$here/enabled" ;;
    restart)
        if test -e "$here/broken"; then echo "Job for poseward.service failed." >&2; exit 1; fi
        touch "$here/active" ;;
    disable) rm -f "$here/enabled" "$here/active" ;;
    show) cat "$here/shown" ;;
esac; done
"""


class Fake:
    """A machine that is a folder, with a systemctl and a journalctl that it can be asked about."""

    def __init__(self, folder: Path, wsl: bool = False) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        for name in ("systemctl", "journalctl"):
            (self.bin / name).write_text(SYSTEMCTL)
            (self.bin / name).chmod(0o755)
        (self.bin / "journalctl").write_text('#!/bin/sh\ncat "$(dirname "$0")/journal"\n')
        (self.bin / "journal").touch()
        self.root = folder / "root"
        for path in ("run/systemd/system", "etc/systemd/system", "proc"):
            (self.root / path).mkdir(parents=True)
        (self.root / "proc/version").write_text("Linux version 5.15 (microsoft-standard-WSL2)" if wsl else "Linux")
        self.python = folder / "env/bin/python"
        self.python.parent.mkdir(parents=True)
        self.python.symlink_to(sys.executable)
        (self.python.parent / "poseward").write_text("#!program")
        self.home = folder / "home"
        (self.home / ".config/systemd").mkdir(parents=True)
        (folder / "runtime/systemd").mkdir(parents=True)

    def machine(self, uid: int = 0, **environ: str) -> Machine:
        def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run([self.bin / command[0], *command[1:]], capture_output=True, text=True)

        known = {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.folder / "runtime"), **environ}
        return Machine(self.root, known, uid, run, self.python, private=[Path("/no")])

    def asked(self) -> list[str]:
        file = self.bin / "asked"
        found = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [line for line in found if " is-" not in line]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def plan(fake: Fake, *sets: str, user_unit: bool = False, config: Path | None = None, here: Path | None = None,
         machine: Machine | None = None, **more: object) -> Plan:  # fmt: skip
    choices = Choices(user_unit, "" if user_unit else ME.pw_name, sets=sets, **more)  # type: ignore[arg-type]
    loaded = load(config or empty(fake), environ={}, sets=sets)
    return make_plan(loaded, machine or fake.machine(os.getuid()), choices, here=here)


def empty(fake: Fake) -> Path:
    file = fake.folder / "poseward.toml"
    if not file.exists():
        file.touch()
    return file


def refused(name: str, what: Callable[[], object], *words: str) -> None:
    with pytest.raises(ServiceError) as caught:
        what()
    assert caught.value.name == name, caught.value
    for word in words:
        assert word in str(caught.value), caught.value


# -- plans ---------------------------------------------------------------------------------------------------------


def test_a_plan_names_this_interpreter_and_configuration(fake: Fake) -> None:
    found = plan(fake, "stages.mesh.batch=2", f"results.folder={fake.folder}/results")
    assert found.unit.command == [
        str(fake.python), str(fake.python.parent / "poseward"), "serve", "--config", str(empty(fake)),
        "--set", "stages.mesh.batch=2", "--set", f"results.folder={fake.folder}/results",
    ]  # fmt: skip
    assert found.unit.user == ME.pw_name and found.account.uid == os.getuid()


def test_the_folders_are_those_of_the_services_user(fake: Fake) -> None:
    sets = ["results.folder=~/results", "drop.folder=inbox", "daemon.log_file=~/log/poseward.log",
            f"api.address=ipc://{fake.folder}/sockets/api.sock", f"daemon.runtime={fake.folder}/run"]  # fmt: skip
    found = plan(fake, *sets, writable=[fake.folder / "more"])
    home = Path(ME.pw_dir)
    expected = [home / "results", home / "inbox", home / ".local/state/poseward", home / "log",
                fake.folder / "sockets", fake.folder / "run", fake.folder / "more"]  # fmt: skip
    assert set(found.unit.writable) == set(expected)
    assert set(found.missing) == {path for path in expected if not path.exists()}
    assert found.unit.working == home


def test_a_configuration_in_this_folder_starts_relative_paths_here(fake: Fake) -> None:
    found = plan(fake, here=fake.folder)
    assert found.unit.working == fake.folder and fake.folder / "results" in found.unit.writable


def test_what_stands_below_another_folder_is_not_named_twice(fake: Fake) -> None:
    found = plan(fake, f"daemon.state={fake.folder}/p", f"results.folder={fake.folder}/p/../p/results",
                 f"drop.folder={fake.folder}/pq")  # fmt: skip
    assert [str(path) for path in found.unit.writable] == [f"{fake.folder}/p", f"{fake.folder}/pq"]


def test_settings_of_the_environment_go_with_the_service(fake: Fake) -> None:
    environ = {"POSEWARD_STAGES__MESH__PYTHON": "/opt/my env/bin/python", "POSEWARD_CONFIG": "x", "OTHER": "y"}
    system = plan(fake, machine=fake.machine(os.getuid(), XDG_STATE_HOME="/s", **environ))
    assert system.unit.environment == [("POSEWARD_STAGES__MESH__PYTHON", "/opt/my env/bin/python")]
    assert ("environment", "POSEWARD_STAGES__MESH__PYTHON=/opt/my env/bin/python") in system.folders
    state = str(fake.folder / "s")
    own = plan(fake, user_unit=True, machine=fake.machine(os.getuid(), XDG_STATE_HOME=state, **environ))
    assert ("XDG_STATE_HOME", state) in own.unit.environment and Path(state, "poseward") in own.missing


def test_only_loopback_means_no_other_machine(fake: Fake) -> None:
    assert plan(fake).unit.loopback
    assert plan(fake, "api.address=tcp://127.0.0.1:5555", "metrics.address=127.0.0.1:9464").unit.loopback
    assert plan(fake, "metrics.address=[::1]:9464").unit.loopback
    assert not plan(fake, "metrics.address=0.0.0.0:9464").unit.loopback
    keys = [f"api.key={fake.folder}/key", f"api.allow={fake.folder}/allow"]
    assert not plan(fake, "api.address=tcp://0.0.0.0:5555", *keys).unit.loopback
    with pytest.raises(ConfigError, match="keys"):
        plan(fake, "api.address=tcp://0.0.0.0:5555")


def test_wsl_gets_its_cuda_library(tmp_path: Path) -> None:
    fake = Fake(tmp_path, wsl=True)
    assert not plan(fake).unit.wsl, "no library there"
    (fake.root / "usr/lib/wsl/lib").mkdir(parents=True)
    assert 'Environment="LD_LIBRARY_PATH=/usr/lib/wsl/lib"' in render(plan(fake).unit)
    assert any("Windows ends WSL" in text for text in remarks(plan(fake), fake.machine()))


def test_a_user_without_a_home_gets_a_state_folder_of_systemds(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = Account("runner", os.getuid(), os.getgid(), "runner", frozenset({os.getgid()}), None)
    monkeypatch.setattr("daemon.service.plan.account_for", lambda machine, choices: account)
    found = plan(fake)
    assert found.unit.own_state and found.unit.working == Path("/var/lib/poseward") and not found.unit.writable
    assert ("state", "/var/lib/poseward") in found.folders and (
        "results",
        "/var/lib/poseward/results",
    ) in found.folders
    refused("no-home", lambda: plan(fake, "results.folder=~/results"), "results.folder")


def test_whom_it_runs_as(fake: Fake) -> None:
    machine = fake.machine(0, SUDO_USER=ME.pw_name)
    assert account_for(machine, Choices()).name == ME.pw_name
    refused("no-user", lambda: account_for(fake.machine(0), Choices()), "--run-as")
    refused("unknown-user", lambda: account_for(machine, Choices(run_as="nobody-of-this-name")), "useradd")
    refused("as-root", lambda: account_for(machine, Choices(user_unit=True)), "without sudo")
    refused("usage", lambda: account_for(fake.machine(), Choices(user_unit=True, run_as="root")))


def test_what_is_not_installed_is_refused(fake: Fake) -> None:
    (fake.python.parent / "poseward").unlink()
    refused("not-installed", lambda: plan(fake), "pip install", str(fake.python))


def test_folders_below_tmp_are_refused(fake: Fake) -> None:
    machine = replace(fake.machine(os.getuid()), private=[fake.folder / "tmp"])
    sets = f"results.folder={fake.folder}/tmp/results"
    refused("private-folder", lambda: plan(fake, sets, machine=machine), "--user")
    plan(fake, sets, machine=machine, user_unit=True)


def test_what_the_services_user_may_not_touch_is_refused(tmp_path: Path) -> None:
    other = Account("other", 54321, 54321, "other", frozenset({54321}), None)
    refused("unwritable", lambda: check_writable(Path("/usr"), other), "chown other")
    check_writable(Path("/tmp"), other)
    check_writable(Path("/usr/not/yet/there"), other)  # is made by root, for the user
    check_writable(Path("/usr"), replace(other, uid=0))
    private = tmp_path / "private"
    (private / "more").mkdir(parents=True)
    private.chmod(0o700)
    file = private / "more/file"
    file.touch()
    file.chmod(0o644)
    refused("unreadable", lambda: check_writable(private / "more", other), "enter")
    refused("unreadable", lambda: check_readable(file, other), "enter", "--run-as")
    own = replace(other, uid=os.getuid())
    check_readable(file, own)
    file.chmod(0o200)
    if own.uid:  # root reads everything
        refused("unreadable", lambda: check_readable(file, own), "read")
    refused("no-folder", lambda: check_writable(file, own))


# -- whether there is a systemd ------------------------------------------------------------------------------------


def test_without_systemd_the_way_out_is_named(tmp_path: Path) -> None:
    fake = Fake(tmp_path, wsl=True)
    check_systemd(fake.machine(0), False)
    check_systemd(fake.machine(1000), True)
    refused("not-root", lambda: check_systemd(fake.machine(1000), False), "--user")
    refused(
        "no-user-manager", lambda: check_systemd(fake.machine(1000, XDG_RUNTIME_DIR=""), True), "enable-linger"
    )
    (fake.root / "run/systemd/system").rmdir()
    refused(
        "no-systemd", lambda: check_systemd(fake.machine(0), False), "/etc/wsl.conf", "systemd=true", "--shutdown"
    )
    (fake.root / "proc/version").write_text("Linux version 6.1")
    refused("no-systemd", lambda: check_systemd(fake.machine(0), False), "poseward serve")


# -- installing ----------------------------------------------------------------------------------------------------


def do(steps: Sequence[object]) -> list[str]:
    said: list[str] = []
    run_steps(steps, said.append)  # type: ignore[arg-type]
    return said


def test_install_again_change_and_uninstall(fake: Fake) -> None:
    machine = fake.machine(os.getuid())
    sets = (f"daemon.state={fake.folder}/state", f"results.folder={fake.folder}/r/results")
    first = plan(fake, *sets)
    file = fake.root / "etc/systemd/system" / NAME
    steps = install_steps(first, machine)
    assert not file.exists() and not (fake.folder / "state").exists() and fake.asked() == [], "only shown so far"
    said = do(steps)
    assert said == [f"make {fake.folder}/r/results for {ME.pw_name}", f"make {fake.folder}/state for {ME.pw_name}",
                    f"write {file}", "systemctl daemon-reload", f"systemctl enable {NAME}",
                    f"systemctl restart {NAME}"]  # fmt: skip
    assert fake.asked() == [*said[3:]]
    assert file.read_text() == render(first.unit) and file.stat().st_mode & 0o777 == 0o644
    assert (fake.folder / "r/results").is_dir() and (fake.folder / "state").stat().st_uid == os.getuid()

    assert install_steps(plan(fake, *sets), machine) == [], "nothing to do"
    (fake.bin / "active").unlink()
    assert do(install_steps(plan(fake, *sets), machine)) == [f"systemctl restart {NAME}"]
    changed = plan(fake, *sets, memory_max="8G")
    assert do(install_steps(changed, machine)) == [
        f"write {file}",
        "systemctl daemon-reload",
        f"systemctl restart {NAME}",
    ]
    assert "MemoryMax=8G" in file.read_text()

    fake.asked()
    assert do(uninstall_steps(machine, False)) == [
        f"systemctl disable --now {NAME}", f"remove {file}", "systemctl daemon-reload"
    ]  # fmt: skip
    assert fake.asked() == [f"systemctl disable --now {NAME}", "systemctl daemon-reload"]
    assert not file.exists() and (fake.folder / "state").is_dir() and list(file.parent.iterdir()) == []
    assert uninstall_steps(machine, False) == []


@pytest.mark.parametrize("after", ["writing", "daemon-reload"])
def test_an_installation_that_was_interrupted_is_gone_on_with(fake: Fake, after: str) -> None:
    machine = fake.machine(os.getuid())
    sets = (f"daemon.state={fake.folder}/state", f"results.folder={fake.folder}/results")
    do(install_steps(plan(fake, *sets), machine))
    found = plan(fake, *sets)
    shown = fake.bin / "shown"
    now = time.monotonic()
    shown.write_text(f"NeedDaemonReload=no\nActiveEnterTimestampMonotonic={(now + 5) * 1e6:.0f}\n")
    assert install_steps(found, machine) == []
    needs, started = ("yes", now + 5) if after == "writing" else ("no", now - 50)
    shown.write_text(f"NeedDaemonReload={needs}\nActiveEnterTimestampMonotonic={started * 1e6:.0f}\n")
    assert do(install_steps(found, machine)) == ["systemctl daemon-reload", f"systemctl restart {NAME}"]


def test_somebody_elses_unit_is_left_alone(fake: Fake) -> None:
    machine = fake.machine(os.getuid())
    file = unit_file(machine, False)
    file.write_text("[Service]\nExecStart=/bin/true\n")
    found = plan(fake)
    refused("foreign-unit", lambda: install_steps(found, machine, force=True))
    refused("foreign-unit", lambda: uninstall_steps(machine, False, force=True))
    assert file.read_text().startswith("[Service]")


def test_a_unit_changed_by_hand_is_not_overwritten_unasked(fake: Fake) -> None:
    machine = fake.machine(os.getuid())
    found = plan(fake, f"daemon.state={fake.folder}/state", f"results.folder={fake.folder}/results")
    do(install_steps(found, machine))
    file = unit_file(machine, False)
    file.write_text(file.read_text().replace("WatchdogSec=60", "WatchdogSec=600"))
    refused("changed-unit", lambda: install_steps(found, machine), "drop-in")
    refused("changed-unit", lambda: uninstall_steps(machine, False))
    do(install_steps(found, machine, force=True))
    assert is_unchanged(file.read_text())


def test_a_failed_step_says_what_systemd_said(fake: Fake) -> None:
    (fake.bin / "broken").touch()
    machine = fake.machine(os.getuid())
    found = plan(fake, f"daemon.state={fake.folder}/state", f"results.folder={fake.folder}/results")
    refused(
        "systemctl-failed",
        lambda: do(install_steps(found, machine)),
        "Job for poseward.service failed",
        "journalctl",
    )
    assert unit_file(machine, False).exists(), "what was done stays done"

    def absent(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    refused("no-systemd", lambda: read_status(replace(machine, run=absent), False))


def test_a_users_unit_goes_to_the_user(fake: Fake) -> None:
    machine = fake.machine(os.getuid(), XDG_CONFIG_HOME=str(fake.folder / "cfg"))
    found = plan(fake, f"daemon.state={fake.folder}/state", f"results.folder={fake.folder}/results", user_unit=True,
                 machine=machine)  # fmt: skip
    do(install_steps(found, machine))
    assert (fake.folder / "cfg/systemd/user" / NAME).exists()
    assert fake.asked() == [
        f"systemctl --user {words}" for words in ("daemon-reload", f"enable {NAME}", f"restart {NAME}")
    ]
    assert any("enable-linger" in text for text in remarks(found, machine))
    (fake.root / "var/lib/systemd/linger").mkdir(parents=True)
    (fake.root / "var/lib/systemd/linger" / ME.pw_name).touch()
    assert not any("enable-linger" in text for text in remarks(found, machine))


def test_a_folder_that_cannot_be_written_is_named(fake: Fake) -> None:
    machine = fake.machine(os.getuid())
    found = Plan(Unit(False, ["/bin/true"], Path("/")), account_for(machine, Choices(run_as=ME.pw_name)))
    (fake.root / "etc/systemd/system").rmdir()
    (fake.root / "etc/systemd").rename(fake.root / "etc/other")
    (fake.root / "etc/systemd").touch()
    refused("no-permission", lambda: do(install_steps(found, machine)), "etc/systemd")


# -- status --------------------------------------------------------------------------------------------------------


def shown(**values: str) -> str:
    base = {"LoadState": "loaded", "ActiveState": "active", "SubState": "running", "UnitFileState": "enabled",
            "StatusText": "clip 40 %; 2 waiting", "Result": "success", "ExecMainStatus": "0", "NRestarts": "0",
            "MainPID": "77", "MemoryCurrent": str(512 << 20), "ActiveEnterTimestamp": "Mon",
            "NeedDaemonReload": "no"}  # fmt: skip
    return "".join(f"{key}={value}\n" for key, value in {**base, **values}.items())


def test_status_of_a_running_service(fake: Fake) -> None:
    (fake.bin / "shown").write_text(shown(NRestarts="3", NeedDaemonReload="yes"))
    found = read_status(fake.machine(), True)
    assert found.exit_code == 0 and found.text == "clip 40 %; 2 waiting" and not found.cause
    assert "process 77" in found.headline and "512 MB" in found.headline and "restarted 3 times" in found.headline
    assert "systemctl --user daemon-reload" in " ".join(found.notes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"Result": "exit-code", "ExecMainStatus": "2"}, ["configuration", "systemctl restart poseward"]),
        ({"Result": "exit-code", "ExecMainStatus": "203"}, ["interpreter"]),
        ({"Result": "exit-code", "ExecMainStatus": "226"}, ["not mounted"]),
        ({"Result": "exit-code", "ExecMainStatus": "1"}, ["exit code 1", "defect"]),
        ({"Result": "watchdog", "ExecMainStatus": "6"}, ["main loop stood still"]),
        ({"Result": "oom-kill", "ExecMainStatus": "9"}, ["memory"]),
        ({"Result": "signal", "ExecMainStatus": "11"}, ["signal 11"]),
        ({"Result": "start-limit-hit"}, ["reset-failed"]),
        ({"Result": "novelty"}, ["novelty"]),
    ],
)
def test_status_of_a_failed_service(fake: Fake, values: dict[str, str], words: list[str]) -> None:
    (fake.bin / "shown").write_text(shown(ActiveState="failed", SubState="failed", **values))
    found = read_status(fake.machine(), False)
    assert found.exit_code == 3 and found.headline == "failed"
    assert all(word in found.cause for word in words), found.cause
    assert "{" not in found.cause


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"LoadState": "not-found", "ActiveState": "inactive"}, 4, "not installed"),
        ({"ActiveState": "inactive", "SubState": "dead"}, 3, "stopped"),
        ({"ActiveState": "activating", "SubState": "start"}, 3, "API does not answer yet"),
        ({"ActiveState": "activating", "SubState": "auto-restart", "NRestarts": "2"}, 3, "2 restarts so far"),
        ({"ActiveState": "maintenance"}, 3, "maintenance"),
        ({"MemoryCurrent": "[not set]"}, 0, "running since"),
    ],
)
def test_status_of_other_states(fake: Fake, values: dict[str, str], code: int, words: str) -> None:
    (fake.bin / "shown").write_text(shown(**values))
    found = read_status(fake.machine(), False)
    assert found.exit_code == code and words in found.headline, found


def test_recent_problems(fake: Fake) -> None:
    (fake.bin / "shown").write_text(shown())

    def line(message: object, identifier: str = "poseward", priority: str = "6") -> str:
        return json.dumps({"MESSAGE": message, "SYSLOG_IDENTIFIER": identifier, "PRIORITY": priority})

    warning = {
        "level": "warning",
        "event": "stage",
        "stage": "mesh",
        "state": "died",
        "message": "segfault",
        "timestamp": "T",
    }
    (fake.bin / "journal").write_text("\n".join([
        "no JSON", line([1, 2]), line("{broken"), line(json.dumps({"level": "info", "event": "done"})),
        line(json.dumps(warning)), line("poseward: results.folder: no"), line("chatter"),
        line("poseward.service: Main process exited, code=killed, status=9/KILL", "systemd", "5"),
        line("poseward.service: Killing process 9 (pw-mesh) with signal SIGKILL.", "systemd", "5"),
        line("Started poseward.service.", "systemd"),
    ]))  # fmt: skip
    assert read_status(fake.machine(), False).problems == [
        "T stage: mesh: died: segfault",
        "poseward: results.folder: no",
        "poseward.service: Main process exited, code=killed, status=9/KILL",
    ]


# -- the command line ----------------------------------------------------------------------------------------------


@pytest.fixture
def command(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """`poseward service …` on the fake machine."""
    monkeypatch.setattr("daemon.service.plan.Machine", lambda **more: replace(fake.machine(os.getuid()), **more))
    sets = ("--config", str(empty(fake)), "--set", f"daemon.state={fake.folder}/state",
            "--set", f"results.folder={fake.folder}/results")  # fmt: skip

    def run(verb: str, *words: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli, ["service", verb, *(sets if verb == "install" else ()), *words])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return done.exit_code, done.output

    return run


def test_a_dry_run_shows_the_unit_and_changes_nothing(fake: Fake, command: Callable[..., tuple[int, str]]) -> None:
    for words in (["--user"], ["--user", "--yes", "--dry-run"]):
        code, said = command("install", *words)
        assert code == 0 and "ExecStart=" in said and f"write {fake.home}/.config/systemd/user/{NAME}" in said, (
            said
        )
    assert fake.asked() == [] and not (fake.folder / "state").exists()
    assert not (fake.home / ".config/systemd/user").exists()


def test_install_status_uninstall(fake: Fake, command: Callable[..., tuple[int, str]]) -> None:
    code, said = command("install", "--user", "--yes")
    assert code == 0 and said.count("done: ") == 6 and "Installed and running" in said, said
    code, said = command("install", "--user", "--apply")
    assert code == 0 and "Nothing to do" in said and "done: " not in said
    (fake.bin / "shown").write_text(shown())
    code, said = command("status", "--user")
    assert code == 0 and "it says: clip 40 %" in said
    code, said = command("status", "--user", "--json")
    assert json.loads(said)["properties"]["MainPID"] == "77"
    code, said = command("uninstall", "--user")
    assert code == 0 and "would" in said and (fake.home / f".config/systemd/user/{NAME}").exists()
    code, said = command("uninstall", "--user", "--yes")
    assert code == 0 and not (fake.home / f".config/systemd/user/{NAME}").exists()
    code, said = command("uninstall", "--user", "--yes")
    assert code == 0 and "Nothing to do" in said


def test_without_systemd_the_unit_is_shown_and_nothing_done(
    fake: Fake, command: Callable[..., tuple[int, str]]
) -> None:
    (fake.root / "run/systemd/system").rmdir()
    code, said = command("install", "--user")
    assert code == 0 and "ExecStart=" in said and "But not yet: systemd does not run" in said
    for words in (["install", "--user", "--yes"], ["status", "--user"]):
        code, said = command(*words)
        assert code == 1 and "poseward: no-systemd: " in said, said
    assert not (fake.folder / "state").exists()


def test_a_size_that_is_none_is_refused(command: Callable[..., tuple[int, str]]) -> None:
    code, said = command("install", "--user", "--memory-max", "12 gigs")
    assert code == 1 and "poseward: bad-size: " in said


def test_with_sudo_it_is_the_users_configuration(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    from daemon.cli.service import _load

    user = Account("user", os.getuid() + 1, 1, "user", frozenset({1}), fake.home)
    monkeypatch.setattr("daemon.service.plan.account_for", lambda machine, choices: user)
    monkeypatch.chdir(fake.root)
    roots, users = fake.folder / "root-config/poseward", fake.home / ".config/poseward"
    for folder in (roots, users):
        folder.mkdir(parents=True)
        (folder / "poseward.toml").write_text("[stages.mesh]\nbatch = 2\n")
    machine = fake.machine(os.getuid(), XDG_CONFIG_HOME=str(roots.parent))
    assert _load(None, (), machine, Choices()).file == users / "poseward.toml"
    assert _load(roots / "poseward.toml", (), machine, Choices()).file == roots / "poseward.toml"
