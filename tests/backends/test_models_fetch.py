"""``poseward models fetch`` of 4D-Humans' files, from a real server, by the real command."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.cli.models import Lines
from stages.backends.download import FetchError, Patience, part_of
from stages.backends.humans4d import models
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.weights import FILES
from stages.protocols import ConfigurationError
from tests.backends.fetch_small import SMALL, content, packed, served
from tests.backends.hostile_server import Act, Server, serving
from tests.backends.test_download import Watch, on_small_disk
from tests.paths import ROOT

ARCHIVE = "/hmr2_data.tar.gz"
MEMBERS = [file for file in SMALL if file.member]
REGNETY = next(file for file in SMALL if file.option == "regnety_weights")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(served()) as found:
        yield found


def fetch(source: str, **options: Any) -> Watch:
    view = Watch()
    chosen = Options.from_mapping({"detector": "regnety", **options})
    models.fetch(chosen, view, source, files=SMALL, patience=Patience(silence=20, attempts=3, pause=0))
    return view


def is_there(home: Path, *but: str) -> bool:
    """Every file but SMPL and the other detector is there with its content, and no part of one."""
    for file in SMALL:
        path = home / file.default
        wanted = file.url is not None and file.detector in ("", "regnety") and file.option not in but
        if path.is_file() != wanted or (wanted and path.read_bytes() != content(file)):
            return False
    return not list(home.rglob("*.part*"))


# --- what is fetched -------------------------------------------------------------------------------------------


def test_all_that_may_be_fetched_is_put_where_it_belongs(home: Path, server: Server) -> None:
    view = fetch(server.url)
    assert is_there(home)
    assert "MIT" in view.story and "Creative Commons" in view.story and "registration" in view.story
    asked = [path for path, _ in server.asked]
    assert len(asked) == len(set(asked)), "the archive has several files and comes once"
    server.asked.clear()
    fetch(server.url)
    assert server.asked == []


def test_every_file_has_another_name_so_that_a_folder_can_be_a_mirror() -> None:
    urls = {file.url for file in FILES if file.url}
    assert len({url.rsplit("/", 1)[-1] for url in urls}) == len(urls)


def test_a_folder_and_what_is_neither(home: Path, tmp_path: Path) -> None:
    stick = tmp_path / "a stick"
    stick.mkdir()
    for name, data in served().items():
        (stick / name[1:]).write_bytes(data)
    fetch(str(stick))
    assert is_there(home)
    with pytest.raises(ConfigurationError, match="no folder and no address"):
        fetch(str(stick / "nothing"))


def test_only_the_named_members_leave_the_archive(home: Path, server: Server) -> None:
    server.files[ARCHIVE] = packed([("../../evil", b"x"), ("/tmp/evil", b"x"), (MEMBERS[0].member + "/x", b"x")])
    fetch(server.url)
    assert is_there(home)
    assert not list(home.parent.rglob("*evil*"))


def test_one_missing_file_keeps_no_other_from_coming(home: Path, server: Server) -> None:
    del server.files["/bmap_256.npy"]
    with pytest.raises(FetchError, match=r"bmap_256.npy: the server answers 404.*put it at"):
        fetch(server.url)
    assert is_there(home, "texture_weights")
    server.files |= served()
    fetch(server.url)
    assert is_there(home)


def test_another_checksum_than_in_the_name(home: Path, server: Server) -> None:
    name = f"/{str(REGNETY.url).rsplit('/', 1)[-1]}"
    right = server.files[name]
    server.files[name] = right[:1000] + bytes([right[1000] ^ 1]) + right[1001:]
    with pytest.raises(FetchError, match=r"SHA-256 [0-9a-f]{64} does not begin with [0-9a-f]{6}; removed"):
        fetch(server.url)
    assert not (home / REGNETY.default).exists() and not part_of(home / REGNETY.default).exists()
    server.files[name] = right
    fetch(server.url)
    assert is_there(home)


def test_a_file_that_breaks_off_where_no_length_is_told(home: Path, server: Server) -> None:
    """Nothing but the file itself can show it."""
    server.acts.append(Act(headers={"Content-Length": ""}, cut=500))
    with pytest.raises(FetchError, match=r"has 500 bytes, at least 10000 are expected"):
        fetch(server.url)
    assert not (home / REGNETY.default).exists()


def test_a_users_own_file_is_not_replaced(home: Path, server: Server, tmp_path: Path) -> None:
    own = tmp_path / "mine.pkl"
    own.write_bytes(b"\x80\x04 broken")
    with pytest.raises(FetchError, match="option regnety_weights names it"):
        fetch(server.url, regnety_weights=str(own))
    assert own.read_bytes() == b"\x80\x04 broken"
    own.unlink()
    fetch(server.url, regnety_weights=str(own))
    assert own.read_bytes() == content(REGNETY)


# --- the archive -----------------------------------------------------------------------------------------------


def test_what_upstreams_own_download_left_is_gone_on_with(home: Path, server: Server) -> None:
    """Upstream downloads to the last name itself, so that a broken-off archive passes for a whole one."""
    for kept in (1000, len(server.files[ARCHIVE]) - 5):
        archive = home / ".cache/4DHumans" / ARCHIVE[1:]
        archive.parent.mkdir(parents=True, exist_ok=True)
        archive.write_bytes(server.files[ARCHIVE][:kept])
        for file in MEMBERS:
            (home / file.default).unlink(missing_ok=True)
        server.asked.clear()
        view = fetch(server.url)
        assert is_there(home)
        assert (ARCHIVE, f"bytes={kept}-") in server.asked and "its end is missing" in view.story
        assert archive.read_bytes() == server.files[ARCHIVE]


@pytest.mark.parametrize("place", [20, 0.3, 0.9, -6])
def test_a_damaged_archive_that_came_is_removed(home: Path, server: Server, place: float) -> None:
    """-6 is the checksum at its end: nothing but that tells of changed content where the packing bears it."""
    data = bytearray(server.files[ARCHIVE])
    at = int(place * len(data)) if 0 < place < 1 else int(place)
    data[at : at + 3] = bytes(255 - value for value in data[at : at + 3])
    server.files[ARCHIVE] = bytes(data)
    with pytest.raises(FetchError, match=r"cannot be unpacked.*removed, run it again"):
        fetch(server.url)
    assert not any((home / file.default).exists() for file in MEMBERS)
    assert not list(home.rglob("*.part")) and not (home / ".cache/4DHumans" / ARCHIVE[1:]).exists()
    server.files |= served()
    fetch(server.url)
    assert is_there(home)


def test_a_damaged_archive_of_the_users_stays_where_it_is(home: Path, server: Server) -> None:
    archive = home / ".cache/4DHumans" / ARCHIVE[1:]
    archive.parent.mkdir(parents=True)
    archive.write_bytes(b"no archive at all")
    with pytest.raises(FetchError, match="remove it, and run it again"):
        fetch(server.url)
    assert archive.read_bytes() == b"no archive at all"


def test_an_archive_with_another_layout(home: Path, server: Server) -> None:
    server.files[ARCHIVE] = packed(leave="data/SMPL_to_J19.pkl")
    with pytest.raises(FetchError, match=r"has no data/SMPL_to_J19.pkl: its layout has changed"):
        fetch(server.url)
    assert not any((home / file.default).exists() for file in MEMBERS)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE])
def test_a_member_that_is_no_file(home: Path, server: Server, kind: bytes) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for file in MEMBERS:
            entry = tarfile.TarInfo(file.member)
            entry.type, entry.linkname = kind, "/etc/hostname"
            archive.addfile(entry)
    server.files[ARCHIVE] = buffer.getvalue() + bytes(20_000)  # the server's file may be longer than its content
    with pytest.raises(FetchError, match="its layout has changed"):
        fetch(server.url)
    assert not any((home / file.default).exists() for file in MEMBERS)


# --- the command -----------------------------------------------------------------------------------------------


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-c", "from daemon.cli import main; main()", "models", *arguments]


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("POSEWARD", "COV"))}
    return {**kept, "HOME": str(home), "NO_PROXY": "127.0.0.1", "PYTHONPATH": str(ROOT)}


def models_command(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, timeout=120, env=environment(home), cwd=home
    )


SETS = ("--set", "stages.backend=tests.backends.fetch_small", "--set", "stages.options.detector=regnety")


def test_smpl_is_told_with_the_way_out_and_an_exit_code_of_its_own(home: Path, server: Server) -> None:
    done = models_command(home, "fetch", "--from", server.url, *SETS)
    assert done.returncode == 3, done.stderr
    assert is_there(home)
    smpl = home / ".cache/4DHumans/data/smpl/SMPL_NEUTRAL.pkl"
    assert f"no file {smpl}" in done.stderr
    assert "register at https://smplify.is.tue.mpg.de" in done.stderr and "option smpl_model" in done.stderr
    listed = models_command(home, "list", "--json", *SETS)
    assert listed.returncode == 1
    rows = json.loads(listed.stdout)["files"]
    assert {row["path"] for row in rows if row["problem"] is None} == set(done.stdout.split())
    (bad,) = [row for row in rows if row["problem"]]
    assert bad["path"] == str(smpl) and "register" in bad["problem"]
    smpl.parent.mkdir(parents=True, exist_ok=True)
    smpl.write_bytes(b"x" * 20_000)
    again = models_command(home, "fetch", "--from", server.url, *SETS)
    assert again.returncode == 0, again.stderr
    assert models_command(home, "list", *SETS).returncode == 0


def test_options_of_another_backend_are_not_left_aside_silently(home: Path) -> None:
    mine = ("humans4d", "--set", f"stages.options.smpl_model={home}/mine.pkl")
    listed = models_command(home, "list", *mine)
    assert "mine.pkl" not in listed.stdout and "--set stages.backend=humans4d" in listed.stderr
    listed = models_command(home, "list", *mine, "--set", "stages.backend=humans4d")
    assert "mine.pkl" in listed.stdout and not listed.stderr


def test_failure_has_another_exit_code(home: Path, server: Server) -> None:
    server.files.clear()
    done = models_command(home, "fetch", "--from", server.url, *SETS)
    assert done.returncode == 1
    assert "404" in done.stderr and "Traceback" not in done.stderr
    assert models_command(home, "fetch", "--from", "/nowhere", *SETS).returncode == 1


def test_a_log_is_neither_silent_nor_flooded(home: Path, server: Server) -> None:
    done = models_command(home, "fetch", "--from", server.url, *SETS)
    lines = done.stderr.splitlines()
    name = Path(REGNETY.default).name
    assert f"{name}: 3 MB in all" in lines and f"{name}: all of it is there" in lines
    assert len(lines) < 50
    assert "\r" not in done.stderr and "\x1b" not in done.stderr


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_what_was_stopped_goes_on(home: Path, server: Server, stop: signal.Signals) -> None:
    server.acts.append(Act(cut=1_000_000, stall=True))
    process = subprocess.Popen(
        command("fetch", "--from", server.url, *SETS),
        stderr=subprocess.PIPE,
        text=True,
        env=environment(home),
        cwd=home,
    )
    part = part_of(home / REGNETY.default)
    assert server.stalled.wait(60)
    wait_until(lambda: part.is_file() and part.stat().st_size == 1_000_000)
    process.send_signal(stop)
    said = process.communicate(timeout=60)[1]
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from there" in said and "Traceback" not in said
    assert part.stat().st_size == 1_000_000
    listed = models_command(home, "list", *SETS)
    assert "0 MB of it were downloaded before" in listed.stdout
    done = models_command(home, "fetch", "--from", server.url, *SETS)
    assert done.returncode == 3, done.stderr
    assert is_there(home)
    assert server.asked[1][1] == "bytes=1000000-"
    assert "going on after 1000000 bytes" in done.stderr


def test_two_commands_at_once(home: Path, server: Server) -> None:
    server.usual = Act(drip=0.0002)
    pair = [
        subprocess.Popen(
            command("fetch", "--from", server.url, *SETS),
            stderr=subprocess.PIPE,
            text=True,
            env=environment(home),
            cwd=home,
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in pair]
    assert [process.returncode for process in pair] == [3, 3], said
    assert is_there(home)
    asked = [path for path, _ in server.asked]
    assert len(asked) == len(set(asked)), "each file came once"


def test_a_terminal_shows_a_bar(home: Path, server: Server) -> None:
    server.usual = Act(drip=0.0002)
    here, there = pty.openpty()
    process = subprocess.Popen(
        command("fetch", "--from", server.url, *SETS),
        stdout=subprocess.DEVNULL,
        stderr=there,
        env={**environment(home), "TERM": "xterm", "COLUMNS": "120"},
        cwd=home,
    )
    os.close(there)
    shown = b""
    try:
        while block := os.read(here, 4096):
            shown += block
    except OSError:
        pass  # how a terminal tells its end
    finally:
        os.close(here)
    assert process.wait(60) == 3
    text = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", shown).decode()
    assert Path(REGNETY.default).name in text and "━" in text and "/3.0 MB" in text


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_now_and_then_with_rate_and_rest() -> None:
    clock, lines = Clock(), list[str]()
    view = Lines(lines.append, clock)
    total = 1000 << 20
    for step in range(1, 1001):
        clock.now += 0.25
        view.progress("a.ckpt", step << 20, total)
    assert lines[0] == "a.ckpt: 1000 MB in all" and lines[-1] == "a.ckpt: all of it is there"
    assert 10 <= len(lines) <= 15
    assert lines[1] == "a.ckpt: 81 MB of 1000 MB, 4.0 MB/s, 4 min to go"
    view.progress("b", 5, None)
    clock.now += 60
    view.progress("b", 6 << 20, None)
    assert lines[-2:] == ["b: its size is not told", "b: 6 MB, 0.1 MB/s"]
    view.say("same")
    view.say("same")
    assert lines.count("same") == 1


# --- a full disk -----------------------------------------------------------------------------------------------

ON_SMALL_DISK = """
import sys
from pathlib import Path
from stages.backends.download import FetchError
from stages.backends.humans4d import models
from stages.backends.humans4d.options import Options
from tests.backends.fetch_small import SMALL
from tests.backends.test_download import Watch
own = {file.option: Path("/mnt", file.option) for file in SMALL if file.member}
try:
    models.fetch(Options.from_mapping({"detector": "regnety", **own}), Watch(), sys.argv[1], files=SMALL)
except FetchError as error:
    print(error)
print([path.name for path in Path("/mnt").iterdir()])
"""


def test_no_room_to_unpack(home: Path, tmp_path: Path) -> None:
    """The archive comes, and what is in it has no room where an option wants it: not the archive's fault."""
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for name, data in served().items():
        (mirror / name[1:]).write_bytes(data)
    done = on_small_disk("40k", ON_SMALL_DISK, str(mirror), env=environment(home))
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.strip().splitlines()
    assert re.match(r"/mnt/\w+ cannot be written: .* are needed, .* are free; make room", message), message
    assert left == "[]", "parts of what was unpacked are removed"
    assert (home / ".cache/4DHumans" / ARCHIVE[1:]).read_bytes() == (mirror / ARCHIVE[1:]).read_bytes()


# --- a backend that has files, but nothing to fetch ------------------------------------------------------------


def test_a_backend_whose_files_only_the_user_has(home: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "only.py").write_text(
        "from dataclasses import replace\nfrom tests.backends.fetch_small import BACKEND as SMALL\n"
        "BACKEND = replace(SMALL, name='mine.only', fetch=None)\n"
    )
    environ = environment(home)
    done = subprocess.run(
        command("fetch", "--set", "stages.backend=mine.only"),
        capture_output=True,
        text=True,
        env={**environ, "PYTHONPATH": f"{tmp_path}:{environ['PYTHONPATH']}"},
        cwd=home,
    )
    assert done.returncode == 1 and "only you can supply: `poseward models list`" in done.stderr
