"""The doctor's checks of folders, memory, clock, WSL and systemd, each with the fault made real."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import watchfiles

from daemon.doctor import places
from daemon.doctor.check import Severity
from tests.daemon.doctor import WSL1, WSL2, look, make_context, make_root, worst
from tests.paths import ROOT

OK, NOTE, WARNING, ERROR = Severity.OK, Severity.NOTE, Severity.WARNING, Severity.ERROR


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for sockets' names, wherever pytest keeps its own."""
    with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp") as folder:
        yield Path(folder)


# -- folders -------------------------------------------------------------------------------------------


def test_folders_that_can_be_written(tmp_path: Path) -> None:
    found = look(make_context(tmp_path, f"daemon.log_file={tmp_path / 'log' / 'x.log'}"), "places.folders")
    assert [finding.severity for finding in found] == [OK] * 3


@pytest.mark.parametrize("setting", ["results.folder", "daemon.state"])
def test_a_file_stands_where_a_folder_should(tmp_path: Path, setting: str) -> None:
    (tmp_path / "file").write_text("")
    found = worst(look(make_context(tmp_path, f"{setting}={tmp_path / 'file' / 'below'}"), "places.folders"))
    assert found.severity is ERROR
    assert setting in found.found and f"{tmp_path / 'file'} is a file" in found.found
    assert setting in found.way_out


@pytest.mark.parametrize("below", ["", "/below"])
def test_a_link_that_leads_nowhere(tmp_path: Path, below: str) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    context = make_context(tmp_path, f"results.folder={tmp_path / 'link'}{below}")
    found = worst(look(context, "places.folders"))
    assert found.severity is ERROR
    assert f"a link to {tmp_path / 'gone'}, which is not there" in found.found
    assert worst(look(context, "places.disk")).severity is not ERROR


@pytest.mark.parametrize("name", ["x" * 256, "é" * 128, "/".join(["x" * 200] * 21)])
def test_names_that_no_disk_takes(tmp_path: Path, name: str) -> None:
    context = make_context(tmp_path, f"results.folder={tmp_path / 'made' / name / 'results'}")
    found = worst(look(context, "places.folders"))
    assert found.severity is ERROR
    assert "bytes" in found.found and "results.folder" in found.way_out
    assert worst(look(context, "places.disk")).severity is not ERROR


@pytest.mark.skipif(os.getuid() == 0, reason="permissions do not stop root")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir(mode=0o500)
    found = worst(look(make_context(tmp_path), "places.folders"))
    assert found.severity is ERROR
    assert "chown" in found.way_out


def test_a_full_disk(tmp_path: Path, small_disk: Path) -> None:
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(2 << 20))
    context = make_context(tmp_path, f"results.folder={small_disk / 'results'}")
    found = worst(look(context, "places.folders"))
    assert found.severity is ERROR
    assert "make room" in found.way_out
    assert worst(look(context, "places.disk")).severity is ERROR


def test_a_disk_mounted_read_only(tmp_path: Path, small_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    found = worst(look(make_context(tmp_path, f"results.folder={small_disk}"), "places.folders"))
    assert found.severity is ERROR
    assert "read-only" in found.way_out


@pytest.mark.parametrize(
    ("megabytes", "files", "severity"),
    [(100_000, 9, OK), (1000, 9, WARNING), (100, 9, ERROR), (100_000, 0, ERROR)],
)
def test_room_on_the_disk(tmp_path: Path, megabytes: int, files: int, severity: Severity) -> None:
    room: Any = SimpleNamespace(f_bavail=megabytes, f_frsize=1 << 20, f_files=1000, f_favail=files)
    found = look(make_context(tmp_path, statvfs=lambda path: room), "places.disk")
    assert worst(found).severity is severity
    assert ("df -i" in worst(found).found) == (files == 0)


def test_each_disk_is_one_line(tmp_path: Path, small_disk: Path) -> None:
    found = look(make_context(tmp_path, f"results.folder={small_disk}"), "places.disk")
    assert len(found) == 2
    assert "results.folder" in found[0].found and found[0].severity is ERROR
    assert "daemon.state, TMPDIR" in found[1].found


# -- sockets -------------------------------------------------------------------------------------------


def test_a_runtime_folder(tmp_path: Path, short: Path) -> None:
    (folder := short / "run").mkdir(mode=0o700)
    context = make_context(tmp_path, f"daemon.runtime={folder}")
    assert worst(look(context, "places.sockets")).severity is OK


def test_a_runtime_folder_that_is_too_deep(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    found = worst(look(make_context(tmp_path, f"daemon.runtime={folder}"), "places.sockets"))
    assert found.severity is ERROR
    assert "107" in found.found
    assert "daemon.runtime" in found.way_out
    # As XDG_RUNTIME_DIR it is only passed over.
    environ = {"XDG_RUNTIME_DIR": str(folder), "PATH": "/usr/bin"}
    found = worst(look(make_context(tmp_path, environ=environ), "places.sockets"))
    assert found.severity is NOTE
    assert "another is used instead" in found.found


def test_a_runtime_folder_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for named in (tmp_path / "file", tmp_path / "nothing"):
        found = worst(look(make_context(tmp_path, f"daemon.runtime={named}"), "places.sockets"))
        assert found.severity is ERROR


def test_a_runtime_folder_of_somebody_else_or_open_to_all(tmp_path: Path, short: Path) -> None:
    (folder := short / "run").mkdir()
    folder.chmod(0o777)
    found = worst(look(make_context(tmp_path, f"daemon.runtime={folder}"), "places.sockets"))
    assert found.severity is WARNING
    assert "mode 777" in found.found
    folder.chmod(0o700)
    if os.getuid() == 0:
        os.chown(folder, 12345, -1)
        context = make_context(tmp_path, f"daemon.runtime={folder}")
    else:
        context = make_context(tmp_path, f"daemon.runtime={folder}", uid=12345)
    found = worst(look(context, "places.sockets"))
    assert found.severity is WARNING
    assert "belongs to user" in found.found


def test_a_file_system_without_sockets(tmp_path: Path) -> None:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("no /proc")
    found = worst(look(make_context(tmp_path, "daemon.runtime=/proc"), "places.sockets"))
    assert found.severity is ERROR
    assert "no socket can be made" in found.found


# -- drop folder ---------------------------------------------------------------------------------------


def test_the_drop_folder_tells(tmp_path: Path) -> None:
    assert worst(look(make_context(tmp_path), "places.drop")).severity is OK
    (tmp_path / "drop").mkdir()
    found = look(make_context(tmp_path, f"drop.folder={tmp_path / 'drop'}"), "places.drop")
    assert [finding.severity for finding in found] == [OK]
    assert "tells of new files" in found[0].found


def test_the_drop_folder_is_not_there(tmp_path: Path) -> None:
    found = worst(look(make_context(tmp_path, f"drop.folder={tmp_path / 'drop'}"), "places.drop"))
    assert found.severity is ERROR
    assert "mkdir -p" in found.way_out


def test_the_drop_folder_is_the_results_folder(tmp_path: Path) -> None:
    (tmp_path / "drop").mkdir()
    sets = (f"drop.folder={tmp_path / 'drop'}", f"results.folder={tmp_path / 'drop'}")
    found = worst(look(make_context(tmp_path, *sets), "places.drop"))
    assert found.severity is ERROR
    assert "results.folder" in found.way_out


def test_the_drop_folder_cannot_be_moved_out_of(tmp_path: Path) -> None:
    found = worst(look(make_context(tmp_path, "drop.folder=/proc/self"), "places.drop"))
    assert found.severity is ERROR


@pytest.mark.parametrize(("kind", "version"), [("9p", WSL2), ("nfs4", "Linux version 6.6")])
def test_a_drop_folder_that_the_kernel_is_blind_for(tmp_path: Path, kind: str, version: str) -> None:
    (tmp_path / "a b").mkdir()
    mounts = f"/dev/root / ext4 rw 0 0\nC: {tmp_path}/a\\040b {kind} rw 0 0\n"
    root = make_root(tmp_path, version, proc__mounts=mounts)
    found = worst(look(make_context(tmp_path, f"drop.folder={tmp_path / 'a b'}", root=root), "places.drop"))
    assert found.severity is NOTE
    assert kind in found.found and ("Windows" in found.found) == (kind == "9p")
    assert "drop.poll = 2" in found.way_out
    # Told to look by itself, all is well.
    sets = (f"drop.folder={tmp_path / 'a b'}", "drop.poll=2.0")
    assert worst(look(make_context(tmp_path, *sets, root=root), "places.drop")).severity is OK


def test_a_drop_folder_of_which_nothing_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deaf(*paths: Path, stop_event: threading.Event, **rest: Any) -> Iterator[set[Any]]:
        while not stop_event.wait(0.001):
            yield set()

    monkeypatch.setattr(watchfiles, "watch", deaf)
    (tmp_path / "drop").mkdir()
    found = worst(look(make_context(tmp_path, f"drop.folder={tmp_path / 'drop'}"), "places.drop"))
    assert found.severity is WARNING
    assert "nothing within" in found.found
    assert "drop.poll" in found.way_out
    assert list((tmp_path / "drop").iterdir()) == []


def test_the_kernel_gives_no_more_watches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*paths: Path, **rest: Any) -> Iterator[set[Any]]:
        raise OSError("OS file watch limit reached")
        yield set()

    monkeypatch.setattr(watchfiles, "watch", full)
    assert "limit reached" in places.try_notification(tmp_path)


# -- memory and the system -----------------------------------------------------------------------------


@pytest.mark.parametrize(("available", "severity"), [(16000, OK), (800, WARNING), (100, ERROR)])
def test_memory_against_the_ring(tmp_path: Path, available: int, severity: Severity) -> None:
    context = make_context(tmp_path, root=make_root(tmp_path, available_mb=available))
    found = worst(look(context, "memory.host"))
    assert found.severity is severity
    if severity is not OK:
        assert "stages.ring_mb" in found.way_out


@pytest.mark.parametrize(
    ("limit", "severity"), [("max", OK), (4 << 30, NOTE), (500 << 20, WARNING), (9 << 20, ERROR)]
)
@pytest.mark.parametrize("place", ["app.slice__poseward.service__", "app.slice__", ""])
def test_the_cgroups_limit(tmp_path: Path, limit: str | int, severity: Severity, place: str) -> None:
    files = {f"sys__fs__cgroup__{place}memory.max": f"{limit}\n"}
    found = worst(look(make_context(tmp_path, root=make_root(tmp_path, **files)), "memory.host"))
    assert found.severity is severity
    if severity is ERROR:
        assert "MemoryMax" in found.way_out


def test_a_version_1_cgroups_limit(tmp_path: Path) -> None:
    files = {
        "proc__self__cgroup": "5:memory:/docker/abc\n1:name=systemd:/\n",
        "sys__fs__cgroup__memory__memory.limit_in_bytes": str(9 << 20),
    }
    found = worst(look(make_context(tmp_path, root=make_root(tmp_path, **files)), "memory.host"))
    assert found.severity is ERROR
    assert "memory.limit_in_bytes" in found.way_out


def test_no_proc(tmp_path: Path) -> None:
    context = make_context(tmp_path, root=tmp_path / "empty")
    assert worst(look(context, "machine.proc")).severity is ERROR
    assert worst(look(context, "memory.host")).severity is ERROR
    assert worst(look(make_context(tmp_path), "machine.proc")).severity in (OK, NOTE)


def test_proc_that_hides_processes(tmp_path: Path) -> None:
    root = make_root(tmp_path, proc__mounts="proc /proc proc rw,nosuid,hidepid=invisible 0 0\n")
    found = worst(look(make_context(tmp_path, root=root), "machine.proc"))
    assert found.severity is NOTE
    assert "hidepid=0" in found.way_out


@pytest.mark.parametrize(("limit", "severity"), [(-1, OK), (4096, OK), (256, WARNING), (64, ERROR)])
def test_open_files(tmp_path: Path, limit: int, severity: Severity) -> None:
    found = worst(look(make_context(tmp_path, descriptors=lambda: limit), "machine.files"))
    assert found.severity is severity
    assert severity is OK or "ulimit -n" in found.way_out


def test_open_files_of_a_process_that_may_have_few(tmp_path: Path) -> None:
    """The same with a real limit."""
    program = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))\n"
        "from pathlib import Path; from tests.daemon.doctor import look, make_context\n"
        f"print(look(make_context(Path({str(tmp_path)!r})), 'machine.files')[0].severity.value)"
    )
    root = ROOT
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "error", done.stderr


@pytest.mark.parametrize(("now", "severity"), [(0.0, ERROR), (1e11, ERROR), (1e30, ERROR)])
def test_a_clock_that_is_wrong(tmp_path: Path, now: float, severity: Severity) -> None:
    found = worst(look(make_context(tmp_path, now=lambda: now), "machine.clock"))
    assert found.severity is severity
    assert "set-ntp" in found.way_out


def test_a_clock_that_the_file_system_does_not_share(tmp_path: Path) -> None:
    assert worst(look(make_context(tmp_path), "machine.clock")).severity is OK
    context = make_context(tmp_path, now=lambda: time.time() + 3600, root=make_root(tmp_path, WSL2))
    found = worst(look(context, "machine.clock"))
    assert found.severity is WARNING
    assert "hwclock" in found.way_out


def test_a_monotonic_clock_that_goes_back(tmp_path: Path) -> None:
    times = iter([5.0, 4.0])
    assert worst(look(make_context(tmp_path, monotonic=lambda: next(times)), "machine.clock")).severity is ERROR


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    found = worst(look(make_context(tmp_path, file_encoding=lambda: "ascii"), "machine.text"))
    assert found.severity is ERROR
    found = worst(look(make_context(tmp_path, text_encoding=lambda: "latin-1"), "machine.text"))
    assert found.severity is WARNING
    assert "LANG=C.UTF-8" in found.way_out
    context = make_context(tmp_path, file_encoding=lambda: "utf-8", text_encoding=lambda: "UTF-8")
    assert worst(look(context, "machine.text")).severity is OK


# -- WSL and systemd -----------------------------------------------------------------------------------

GPU = "stages.mesh.device=cuda"


def test_not_wsl(tmp_path: Path) -> None:
    (found,) = look(make_context(tmp_path, root=make_root(tmp_path)), "machine.wsl")
    assert found.severity is OK


def test_wsl_1(tmp_path: Path) -> None:
    (found,) = look(make_context(tmp_path, root=make_root(tmp_path, WSL1)), "machine.wsl")
    assert found.severity is ERROR
    assert "--set-version" in found.way_out


def test_wsl_without_a_gpu_passed_on(tmp_path: Path) -> None:
    root = make_root(tmp_path, WSL2)
    found = worst(look(make_context(tmp_path, GPU, root=root), "machine.wsl"))
    assert found.severity is ERROR
    assert "wsl --update" in found.way_out
    assert worst(look(make_context(tmp_path, root=root), "machine.wsl")).severity is NOTE


def test_wsl_without_the_library_path(tmp_path: Path) -> None:
    root = make_root(tmp_path, WSL2, usr__lib__wsl__lib__libcuda__so__1="")
    (root / "usr/lib/wsl/lib/libcuda.so.1").write_text("")
    found = worst(look(make_context(tmp_path, GPU, root=root), "machine.wsl"))
    assert found.severity is ERROR
    assert "ldconfig" in found.way_out
    (root / "etc/ld.so.conf.d").mkdir(parents=True)
    (root / "etc/ld.so.conf.d/ld.wsl.conf").write_text("/usr/lib/wsl/lib\n")
    found = worst(look(make_context(tmp_path, GPU, root=root), "machine.wsl"))
    assert found.severity is NOTE
    assert "spills" in " ".join(
        finding.found for finding in look(make_context(tmp_path, GPU, root=root), "machine.wsl")
    )


def test_wsl_with_little_memory(tmp_path: Path) -> None:
    root = make_root(tmp_path, WSL2, proc__meminfo=f"MemTotal: {4000 * 1024} kB\nMemAvailable: {3000 * 1024} kB\n")
    found = look(make_context(tmp_path, GPU, root=root), "machine.wsl")
    (memory,) = [finding for finding in found if "4000 MB" in finding.found]
    assert memory.severity is WARNING
    assert ".wslconfig" in memory.way_out


@pytest.mark.parametrize(
    ("version", "config", "severity", "way"),
    [
        ("Linux version 6.6", "", NOTE, "poseward serve"),
        (WSL2, "", WARNING, "systemd=true"),
        (WSL2, "[user]\ndefault=me\n[boot]\ncommand=x\n", WARNING, "systemd=true"),
        (WSL2, "[boot]\n systemd = true # on\n", WARNING, "wsl --shutdown"),
    ],
)
def test_no_systemd(tmp_path: Path, version: str, config: str, severity: Severity, way: str) -> None:
    root = make_root(tmp_path, version, etc__wsl__conf="")
    (root / "etc/wsl.conf").write_text(config)
    (found,) = look(make_context(tmp_path, root=root), "service.systemd")
    assert found.severity is severity
    assert way in found.way_out
    assert ("tee -a" in found.way_out) == (way == "systemd=true")


def test_systemd_runs_but_the_users_ends_with_the_login(tmp_path: Path) -> None:
    root = make_root(tmp_path)
    (root / "run/systemd/system").mkdir(parents=True)
    assert worst(look(make_context(tmp_path, root=root, uid=0), "service.systemd")).severity is OK
    import pwd

    user = next((entry for entry in pwd.getpwall() if entry.pw_uid), None)
    if user is None:
        pytest.skip("there is no user but root")
    context = make_context(tmp_path, root=root, uid=user.pw_uid)
    found = worst(look(context, "service.systemd"))
    assert found.severity is NOTE
    assert "enable-linger" in found.way_out
    (root / "var/lib/systemd/linger").mkdir(parents=True)
    (root / "var/lib/systemd/linger" / user.pw_name).write_text("")
    assert worst(look(context, "service.systemd")).severity is OK
