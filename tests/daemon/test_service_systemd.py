"""The units under a real systemd: one of the test's own, as process 1 of namespaces of its own.

It sees the machine's files, with /etc, /var, /run, /dev and /tmp of its own, has its own network, processes and
control groups, and knows no units but the test's. Needs root and Linux namespaces, as a container or a VM has.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from daemon.client import Client
from daemon.service.units import NAME, Unit, render
from tests.daemon.daemons import FAST
from tests.paths import ROOT
from tests.stages.harness import write_squares

PATIENCE = float(os.environ.get("POSEWARD_TEST_PATIENCE", "120"))
SYSTEMD = next((str(p) for p in map(Path, ("/usr/lib/systemd/systemd", "/lib/systemd/systemd")) if p.exists()), "")
PROGRAM = Path(sys.executable).parent / "poseward"
UNITS = "/run/test-units"
USER = {"XDG_RUNTIME_DIR": "/run/user/0", "XDG_CONFIG_HOME": "/srv/user"}
MANAGER = f"""
[Service]
Type=notify
Delegate=yes
Environment=XDG_RUNTIME_DIR=/run/user/0 XDG_CONFIG_HOME=/srv/user SYSTEMD_UNIT_PATH=/srv/user/systemd/user:{UNITS}
ExecStart={SYSTEMD} --user --unit=default.target
"""
JOURNAL = ("systemd-journald.service", "systemd-journald.socket")

INIT = f"""
set -e
own=$1
mount -t tmpfs none $own
for one in etc var; do
    mkdir $own/$one $own/$one.work
    mount -t overlay -o lowerdir=/$one,upperdir=$own/$one,workdir=$own/$one.work none /$one
done
mkdir -p $own/dev/shm
for one in null zero full random urandom; do touch $own/dev/$one; mount --bind /dev/$one $own/dev/$one; done
ln -s /proc/self/fd $own/dev/fd
mount --rbind $own/dev /dev
mount -t tmpfs none /srv
mkdir /srv/checkout && mount --rbind "$2" /srv/checkout
mount -t tmpfs none /run
mount -t tmpfs none /tmp
# Kernel settings are the machine's, not the test's.
mount -o bind,ro /proc/sys /proc/sys
for one in $(awk '$2 ~ "^/sys/fs/cgroup" {{print $2}}' /proc/mounts | sort -r); do umount -l $one; done
mount -t cgroup2 none /sys/fs/cgroup
mkdir -p /run/systemd/system {UNITS}
for one in {" ".join(JOURNAL)}; do cp /lib/systemd/system/$one {UNITS}/; done
for one in sysinit basic shutdown multi-user network; do
    printf '[Unit]\\nDefaultDependencies=no\\n' > {UNITS}/$one.target
done
printf '[Unit]\\nWants=systemd-journald.service\\n' > {UNITS}/test.target
rm -rf /etc/systemd/system/* /etc/systemd/journald.conf.d /var/log/journal /etc/fstab
printf '[Journal]\\nStorage=volatile\\nReadKMsg=no\\nAudit=no\\n' > /etc/systemd/journald.conf
printf 0123456789abcdef0123456789abcdef > /etc/machine-id
export container=poseward-test SYSTEMD_UNIT_PATH={UNITS}:/etc/systemd/system
exec {SYSTEMD} --system --unit=test.target --log-target=journal --show-status=no
"""


class Booted:
    """A running systemd. ``run`` runs a program beside it, and ``path`` is one of its files from here."""

    def __init__(self, init: int) -> None:
        self.init = init

    def run(self, *command: str, check: bool = True, **environ: str) -> str:
        done = subprocess.run(
            ["nsenter", "--target", str(self.init), "--all", "--", *command],
            capture_output=True, text=True, timeout=PATIENCE, cwd="/",
            env={"PATH": os.environ["PATH"], "HOME": "/root", "PYTHONPATH": "/srv/checkout", **environ},
        )  # fmt: skip
        assert not check or done.returncode == 0, (command, done.returncode, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def path(self, text: str) -> Path:
        return Path(f"/proc/{self.init}/root") / text.lstrip("/")

    def show(self, name: str, unit: str = "poseward.service") -> str:
        return self.run("systemctl", "show", unit, "--property", name, "--value").strip()

    def processes(self, unit: str = "poseward.service") -> list[int]:
        """Of the unit's control group, as the unit's systemd numbers them."""
        group = self.run("systemctl", "show", unit, "--property", "ControlGroup", "--value").strip()
        if not group:
            return []
        files = self.run("find", f"/sys/fs/cgroup{group}", "-name", "cgroup.procs", check=False)
        found: list[int] = []
        for file in files.splitlines():
            if file.startswith("/"):
                found += [int(word) for word in self.run("cat", file, check=False).split() if word.isdecimal()]
        return found

    def story(self) -> str:
        return self.run("journalctl", "--no-pager", "-o", "cat", "-n", "300", check=False)


def until(true: Callable[[], bool], what: str, story: Callable[[], str] = str, patience: float = PATIENCE) -> None:
    end = time.monotonic() + patience
    while not true():
        assert time.monotonic() < end, f"{what}: not within {patience} s\n{story()}"
        time.sleep(0.1)


def _cgroups() -> Path | None:
    mounts = Path("/proc/mounts").read_text().splitlines()
    return next((Path(line.split()[1]) for line in mounts if line.split()[2] == "cgroup2"), None)


@contextlib.contextmanager
def boot(folder: Path) -> Iterator[Booted]:
    """Start a systemd, and leave nothing of it."""
    if os.getuid() != 0:
        pytest.skip("a systemd of the test's own: needs root")
    missing = [name for name in ("unshare", "nsenter", "mount", "systemctl") if shutil.which(name) is None]
    cgroups = _cgroups()
    if missing or not SYSTEMD or cgroups is None:
        pytest.skip(f"a systemd of the test's own: there is no {', '.join(missing) or 'systemd or cgroup2'}")
    if not PROGRAM.is_file():
        pytest.skip(f"Poseward is not installed for this interpreter: no {PROGRAM}")
    if any(PROGRAM.is_relative_to(place) for place in ("/tmp", "/var/tmp", "/run", "/srv")):
        pytest.skip(f"{PROGRAM}: a system's service does not see this folder")
    group = Path(tempfile.mkdtemp(prefix="poseward-test-", dir=cgroups))
    group.chmod(0o755)  # the service's user looks at it too
    log = folder / "systemd.log"
    own = folder / "own"
    own.mkdir()
    with log.open("wb") as output:
        outer = subprocess.Popen(
            ["unshare", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--fork", "--kill-child",
             "--mount-proc", "--propagation", "private", "sh", "-c", INIT, "sh", str(own), str(ROOT)],
            stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            preexec_fn=lambda: (group / "cgroup.procs").write_text(str(os.getpid())) and None,
        )  # fmt: skip
    try:
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
        until(lambda: outer.poll() is not None or bool(children.read_text().split()), "process 1")
        if outer.poll() is not None:
            pytest.skip(f"a systemd of the test's own: no namespaces here: {log.read_text()[-300:]}")
        booted = Booted(int(children.read_text().split()[0]))
        up = lambda: "running" in booted.run("systemctl", "is-system-running", check=False)  # noqa: E731
        end = time.monotonic() + 30
        while not up():
            if outer.poll() is not None or time.monotonic() > end:
                pytest.skip(f"a systemd of the test's own does not start here: {log.read_text()[-500:]}")
            time.sleep(0.1)
        yield booted
    finally:
        outer.kill()  # and with it process 1, and with that all others
        outer.wait()
        emptied = time.monotonic() + 10
        for path in [*sorted((p for p in group.rglob("*") if p.is_dir()), reverse=True), group]:
            while path.is_dir() and time.monotonic() < emptied:
                with contextlib.suppress(OSError):
                    path.rmdir()
                    break
                time.sleep(0.05)


@pytest.fixture(scope="module")
def systemd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Booted]:
    with boot(tmp_path_factory.mktemp("systemd")) as booted:
        yield booted


@pytest.fixture(scope="module")
def installed(systemd: Booted) -> Booted:
    """The service, installed and running as `poseward service install` leaves it, but quick to restart."""
    lines = [*FAST, 'stages.backend="tests.stages.blocks"', 'stages.faults=["mesh:slow=0.03%1/1"]',
             'api.roots=["/srv"]',
             'results.folder="/srv/results"', 'daemon.state="/srv/state"']  # fmt: skip
    systemd.path("/srv/poseward.toml").write_text("\n".join(lines))
    more = systemd.path(f"/etc/systemd/system/{NAME}.d/test.conf")
    more.parent.mkdir(parents=True)
    more.write_text(
        "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=100ms\nWatchdogSec=6\nTimeoutAbortSec=2\n"
        "UnsetEnvironment=\nEnvironment=PYTHONPATH=/srv/checkout\n"
    )
    said = service(systemd, "install", "--run-as", "root", "--config", "/srv/poseward.toml",
                   "--writable", "/srv/more", "--yes")  # fmt: skip
    assert "done: write /etc/systemd/system/poseward.service" in said, said
    return systemd


def service(systemd: Booted, *words: str, check: bool = True) -> str:
    return systemd.run(str(PROGRAM), "service", *words, check=check)


@pytest.fixture
def running(installed: Booted) -> Booted:
    installed.run("systemctl", "start", NAME)
    return installed


def client(systemd: Booted) -> Client:
    return Client(f"ipc://{systemd.path('/srv/state/api.sock')}", patience=PATIENCE)


def test_ready_means_that_the_api_answers(running: Booted) -> None:
    assert running.show("ActiveState") == "active" and running.show("Type") == "notify"
    with client(running) as asked:
        assert asked.hello()["backend"] == "tests.stages.blocks"
    until(lambda: "idle" in running.show("StatusText"), "STATUS", running.story)


def test_status_in_simple_words(running: Booted) -> None:
    until(lambda: "idle" in running.show("StatusText"), "STATUS", running.story)
    said = service(running, "status")
    assert "running since" in said and "it says: idle" in said and "started at boot" in said, said
    assert "drop-in: /etc/systemd/system/poseward.service.d/test.conf" in said
    found = json.loads(service(running, "status", "--json"))
    assert found["state"] == "active" and found["properties"]["MainPID"] == running.show("MainPID")


def test_the_processes_are_locked_in(running: Booted) -> None:
    with client(running) as asked:
        until(lambda: bool(asked.health()["ready"]), "stages", running.story)
    found = running.processes()
    assert len(found) >= 5  # the daemon and four stages at least
    for pid in found:
        status = running.path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status
        assert "CapEff:\t0000000000000000" in status and "CapBnd:\t0000000000000000" in status, status
        mounts = running.path(f"/proc/{pid}/mounts").read_text().splitlines()
        places = {line.split()[1]: line.split()[3].split(",") for line in mounts}
        assert "ro" in places["/"] and "ro" in places["/etc"], mounts
        assert "rw" in places["/srv/results"] and "rw" in places["/srv/state"], mounts


def test_a_killed_daemon_is_restarted_and_its_job_resumed(running: Booted) -> None:
    write_squares(running.path("/srv/clip.mp4"), 150)
    with client(running) as asked:
        job = asked.submit("/srv/clip.mp4")["id"]
        until(
            lambda: (asked.status(job).get("progress") or {}).get("committed", 0) > 10, "progress", running.story
        )
        before, main = set(running.processes()), running.show("MainPID")
        restarts = int(running.show("NRestarts"))
        running.run("kill", "-KILL", main)
        until(lambda: int(running.show("NRestarts")) > restarts, "a restart", running.story)
    until(lambda: running.show("ActiveState") == "active", "the API again", running.story)
    assert not before & set(running.processes()), "processes of the killed daemon were left"
    with client(running) as asked:
        done = asked.wait(job, PATIENCE)
    assert done["state"] == "done" and done["frames"] == 150 and done["attempts"] == 2, done
    problems = json.loads(service(running, "status", "--json"))["problems"]
    assert any("status=9/KILL" in line for line in problems), problems


def test_a_frozen_main_loop_is_ended_by_the_watchdog(running: Booted) -> None:
    main, restarts = running.show("MainPID"), int(running.show("NRestarts"))
    running.run("kill", "-STOP", main)
    until(lambda: int(running.show("NRestarts")) > restarts, "the watchdog", running.story)
    until(lambda: running.show("ActiveState") == "active", "the API again", running.story)
    assert "Watchdog timeout" in running.story()


def test_stop_leaves_no_process(running: Booted) -> None:
    write_squares(running.path("/srv/other.mp4"), 160)
    with client(running) as asked:
        job = asked.submit("/srv/other.mp4")["id"]
        until(
            lambda: (asked.status(job).get("progress") or {}).get("committed", 0) > 10, "progress", running.story
        )
    before = running.processes()
    began = time.monotonic()
    running.run("systemctl", "stop", NAME)
    assert time.monotonic() - began < 60
    assert running.show("ActiveState") == "inactive" and running.show("Result") == "success", running.story()
    assert not [pid for pid in before if running.path(f"/proc/{pid}").exists()]
    assert "stopped" in service(running, "status", check=False)
    running.run("systemctl", "start", NAME)
    with client(running) as asked:
        assert asked.wait(job, PATIENCE)["frames"] == 160


def test_a_wrong_configuration_is_not_tried_again(running: Booted) -> None:
    file = running.path("/srv/poseward.toml")
    good = file.read_text()
    try:
        file.write_text(good + "\nstages.slotz=3\n")
        running.run("systemctl", "restart", NAME, check=False)
        assert running.show("ActiveState") == "failed" and running.show("ExecMainStatus") == "2", running.story()
        said = service(running, "status", check=False)
        assert "the configuration cannot be used" in said and "slotz" in said, said
    finally:
        file.write_text(good)


def test_uninstall_undoes_what_install_did(installed: Booted) -> None:
    assert "With --yes" in service(installed, "uninstall")
    said = service(installed, "uninstall", "--yes")
    assert "done: remove /etc/systemd/system/poseward.service" in said and "left alone" in said, said
    assert not installed.path(f"/etc/systemd/system/{NAME}").exists()
    assert not installed.path(f"/etc/systemd/system/multi-user.target.wants/{NAME}").is_symlink()
    assert installed.show("LoadState") == "not-found" and not installed.processes()
    assert "not installed" in service(installed, "status", check=False)


def test_a_users_own_service(systemd: Booted) -> None:
    """Installed, ready, killed and restarted, and gone again, under a user's manager."""
    systemd.path("/srv/own.toml").write_text(
        "\n".join(
            [
                *FAST,
                'stages.backend="tests.stages.blocks"',
                'results.folder="/srv/own results"',
                'daemon.state="/srv/own-state"',
                'api.roots=["/srv"]',
            ]
        )
    )
    systemd.path("/run/user/0").mkdir(parents=True)
    systemd.path(f"/srv/user/systemd/user/{NAME}.d").mkdir(parents=True)
    systemd.path(f"/srv/user/systemd/user/{NAME}.d/test.conf").write_text(
        "[Service]\nRestartSec=100ms\nUnsetEnvironment=\nEnvironment=PYTHONPATH=/srv/checkout\n"
    )
    systemd.path(f"{UNITS}/manager.service").write_text(MANAGER)
    systemd.path(f"{UNITS}/default.target").write_text("[Unit]\nDescription=the end of the start\n")
    systemd.run("systemctl", "start", "manager.service")

    def user(*words: str, check: bool = True) -> str:
        return systemd.run(str(PROGRAM), "service", *words, "--user", check=check, **USER)

    def show(name: str) -> str:
        return systemd.run("systemctl", "--user", "show", NAME, "--property", name, "--value", **USER).strip()

    said = user("install", "--config", "/srv/own.toml", "--yes")
    assert "done: write /srv/user/systemd/user/poseward.service" in said and "enable-linger root" in said, said
    write_squares(systemd.path("/srv/own.mp4"), 60)
    with Client(f"ipc://{systemd.path('/srv/own-state/api.sock')}", patience=PATIENCE) as asked:
        main = show("MainPID")
        status = systemd.path(f"/proc/{main}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "Seccomp:\t2" in status, status
        systemd.run("kill", "-KILL", main)
        until(
            lambda: show("NRestarts") not in ("", "0") and show("ActiveState") == "active",
            "a restart",
            systemd.story,
        )
        job = asked.wait(asked.submit("/srv/own.mp4")["id"], PATIENCE)
        assert job["state"] == "done" and job["frames"] == 60, job
    until(lambda: "1 done" in show("StatusText"), "STATUS", systemd.story)
    assert "it says: idle" in user("status")
    assert "done: remove" in user("uninstall", "--yes")
    assert show("LoadState") == "not-found" and "not installed" in user("status", check=False)


def test_awkward_names_arrive_as_they_are(systemd: Booted) -> None:
    """systemd itself undoes the escaping: the program gets every word, and may write every folder."""
    words = [
        "two words",
        "100%h %%",
        "$HOME ${HOME} $$",
        "it's",
        'a "quoted" word',
        "back\\slash \\n",
        "ä ö",
        "",
        ";",
        "#x",
    ]
    folders = [Path("/srv/names") / name for name in ("two words", "100%h", "$HOME", "it's", "ä ö", "#x; y")]
    for folder in folders:
        systemd.path(str(folder)).mkdir(parents=True)
    systemd.path("/srv/echo.py").write_text(
        "import json, os, sys\n"
        f"for folder in {[str(folder) for folder in folders]!r}: open(folder + '/written', 'w').close()\n"
        "open(os.getcwd() + '/echo.json', 'w').write(json.dumps([sys.argv[1:], os.environ['POSEWARD_A__B']]))\n"
    )
    unit = Unit(
        user_unit=False, command=[sys.executable, "/srv/echo.py", *words], working=folders[0], user="root",
        group="root", environment=[("POSEWARD_A__B", "\n".join(words).replace("\n", " "))], writable=folders,
        mounts=folders,
    )  # fmt: skip
    systemd.path(f"{UNITS}/echo.service").write_text(render(unit).replace("Type=notify", "Type=oneshot"))
    systemd.run("systemctl", "start", "echo.service")
    said = json.loads(systemd.path(str(folders[0] / "echo.json")).read_text())
    assert said == [words, " ".join(words)]
    assert all(systemd.path(str(folder / "written")).exists() for folder in folders)
