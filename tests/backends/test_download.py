"""Downloads from a real HTTP server that misbehaves, onto disks that do."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.backends import download as module
from stages.backends.download import FetchError, Patience, RefusedError, download, part_of
from tests.backends.hostile_server import DATE, Act, Server, serving
from tests.paths import ROOT

CONTENT = random.Random(7).randbytes(300_000)
QUICK = Patience(silence=20.0, attempts=3, pause=0.0)
"""Silence is long: only the tests about silence may meet its end, however busy the machine is."""


class Watch:
    """A `FetchView` that keeps what it is told."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.seen: list[tuple[str, int, int | None]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def progress(self, name: str, done: int, total: int | None) -> None:
        self.seen.append((name, done, total))

    @property
    def story(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving({"/f": CONTENT}) as found:
        yield found


def get(server: Server, target: Path, **options: Any) -> Watch:
    view = Watch()
    download(f"{server.url}/f", target, view, **{"patience": QUICK, "sleep": lambda seconds: None, **options})
    return view


def alone(target: Path) -> bool:
    """Nothing but the file is left in its folder."""
    return [path.name for path in target.parent.iterdir()] == [target.name]


def test_a_file_comes_whole_and_is_watched(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "new" / "folder" / "file.bin"
    view = get(server, target)
    assert target.read_bytes() == CONTENT and alone(target)
    assert view.seen[-1] == ("file.bin", len(CONTENT), len(CONTENT))
    done = [have for _, have, _ in view.seen]
    assert done == sorted(set(done))
    assert server.asked == [("/f", None)]


@pytest.mark.parametrize("act", [Act(cut=100_000), Act(cut=100_000, reset=True)])
def test_a_connection_cut_half_way_is_resumed(server: Server, tmp_path: Path, act: Act) -> None:
    server.acts.append(act)
    view = get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT and alone(tmp_path / "f")
    first, second = server.asked
    assert first == ("/f", None) and second[1] is not None
    if not act.reset:  # what the kernel still had when the reset came is lost
        assert second[1] == "bytes=100000-"
    assert server.versions == [None, DATE]
    assert "; going on after " in view.story


def test_as_often_as_something_new_comes(server: Server, tmp_path: Path) -> None:
    server.acts.extend([Act(cut=20_000)] * 10)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked[1:]] == [f"bytes={20_000 * n}-" for n in range(1, 11)]


def test_a_server_without_ranges_begins_anew(server: Server, tmp_path: Path) -> None:
    server.usual = Act(ranges=False)
    server.acts.append(Act(cut=1000))
    view = get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert "cannot go on in the middle" in view.story


def test_a_server_without_ranges_that_always_breaks_is_given_up(server: Server, tmp_path: Path) -> None:
    server.usual = Act(ranges=False, cut=1000)
    with pytest.raises(FetchError, match="run it again"):
        get(server, tmp_path / "f")
    assert len(server.asked) == 1 + QUICK.attempts
    assert part_of(tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_a_server_that_sends_another_range_than_asked(server: Server, tmp_path: Path) -> None:
    server.acts.extend([Act(cut=1000), Act(shift=5)])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=1000-", None]


def test_a_range_without_its_place_is_not_trusted(server: Server, tmp_path: Path) -> None:
    server.acts.extend([Act(cut=1000), Act(headers={"Content-Range": "bytes all"})])
    with pytest.raises(RefusedError, match="without saying which"):
        get(server, tmp_path / "f")
    assert part_of(tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path / "f").write_bytes(CONTENT)
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT and alone(tmp_path / "f")
    assert server.asked == [("/f", f"bytes={len(CONTENT)}-")]


def test_a_part_that_is_longer_than_the_file_is_given_up(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path / "f").write_bytes(CONTENT + b"more")
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT and alone(tmp_path / "f")


def test_a_server_that_answers_416_to_everything_is_given_up(server: Server, tmp_path: Path) -> None:
    server.usual = Act(status=416)
    part_of(tmp_path / "f").write_bytes(CONTENT[:10])
    with pytest.raises(FetchError, match="416"):
        get(server, tmp_path / "f")
    assert part_of(tmp_path / "f").read_bytes() == CONTENT[:10]


def test_a_file_that_changed_meanwhile_is_not_patched_together(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(cut=1000))
    server.usual = Act(status=503)
    with pytest.raises(FetchError):
        get(server, tmp_path / "f")
    server.files["/f"] = new = CONTENT[::-1]
    server.usual = Act(headers={"Last-Modified": "Wed, 06 Sep 2023 10:00:00 GMT"})
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == new and alone(tmp_path / "f")


def test_nor_where_the_server_does_not_know_if_range(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(cut=1000, headers={"Last-Modified": "", "ETag": '"old"'}))
    server.usual = Act(headers={"Last-Modified": "", "ETag": '"old"'}, status=503)
    with pytest.raises(FetchError):
        get(server, tmp_path / "f")
    server.files["/f"] = new = CONTENT[::-1]
    part = part_of(tmp_path / "f")
    assert part.read_bytes() == CONTENT[:1000]
    # Heeds Range, whatever If-Range says: what it sends is of another version.
    server.usual = Act()
    server.acts.append(Act(headers={"ETag": '"old"', "Last-Modified": "Wed, 06 Sep 2023 10:00:00 GMT"}))
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == new


@pytest.mark.parametrize("act", [Act(chunked=True), Act(headers={"Content-Length": ""})])
def test_a_length_that_is_not_told(server: Server, tmp_path: Path, act: Act) -> None:
    server.acts.append(act)
    view = get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert view.seen[-1] == ("f", len(CONTENT), None)


def test_chunks_that_end_early(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(chunked=True, cut=5000))
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked[1] == ("/f", "bytes=5000-")


def test_more_than_was_told_is_not_read(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(body=CONTENT + b"x" * 1000, headers={"Content-Length": str(len(CONTENT))}))
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_length_that_is_too_large(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(headers={"Content-Length": str(len(CONTENT) + 10)}))
    get(server, tmp_path / "f")  # the second connection finds out that nothing is left
    assert (tmp_path / "f").read_bytes() == CONTENT


def test_a_file_that_is_too_small_does_not_cost_what_is_there(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path / "f").write_bytes(CONTENT[:1000])
    server.usual = Act(ranges=False, body=b"tiny", headers={"Content-Length": "4"})
    with pytest.raises(RefusedError, match=r"has 4 bytes, at least 300000"):
        get(server, tmp_path / "f", at_least=300_000)
    assert part_of(tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_nor_does_a_login_page(server: Server, tmp_path: Path) -> None:
    part_of(tmp_path / "f").write_bytes(CONTENT[:1000])
    page = b"<html>Welcome to our hotel</html>" * 20_000
    server.usual = Act(
        ranges=False,
        body=page,
        headers={"Content-Type": "text/html; charset=utf-8", "Content-Length": str(len(page))},
    )
    with pytest.raises(RefusedError, match="web page"):
        get(server, tmp_path / "f")
    assert part_of(tmp_path / "f").read_bytes() == CONTENT[:1000]


def test_a_wrong_checksum_is_refused_and_removed(server: Server, tmp_path: Path) -> None:
    def check(path: Path) -> str:
        same = hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(CONTENT).digest()
        return "" if same else "another SHA-256"

    get(server, tmp_path / "f", check=check)
    assert alone(tmp_path / "f")
    server.files["/f"] = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
    (tmp_path / "f").unlink()
    with pytest.raises(FetchError, match="another SHA-256; removed"):
        get(server, tmp_path / "f", check=check)
    assert list(tmp_path.iterdir()) == []


def test_redirects_are_followed_with_their_range(server: Server, tmp_path: Path) -> None:
    server.files["/g"] = CONTENT
    away = Act(status=302, headers={"Location": "/g"})
    server.acts.extend([away, Act(cut=1000), away])
    get(server, tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked == [("/f", None), ("/g", None), ("/f", "bytes=1000-"), ("/g", "bytes=1000-")]


@pytest.mark.parametrize("to", ["/f", "file:///etc/passwd", "ftp://127.0.0.1:1/x", "http://[bad", "gopher:x"])
def test_redirects_that_lead_nowhere(server: Server, tmp_path: Path, to: str) -> None:
    server.usual = Act(status=302, headers={"Location": to})
    with pytest.raises(FetchError):
        get(server, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


def test_no_redirect_leaves_encryption() -> None:
    from urllib.error import HTTPError
    from urllib.request import Request

    follow = module._Redirects().redirect_request
    with pytest.raises(HTTPError, match="unencrypted"):
        follow(Request("https://a/f"), None, 302, "Found", {}, "http://a/f")
    assert follow(Request("https://a/f"), None, 302, "Found", {}, "https://b/f").full_url == "https://b/f"
    assert follow(Request("http://a/f"), None, 302, "Found", {}, "http://b/f").full_url == "http://b/f"


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_file_that_is_not_there_is_told_at_once_with_its_place(
    server: Server, tmp_path: Path, status: int
) -> None:
    server.usual = Act(status=status)
    with pytest.raises(RefusedError, match=f"{status}.*put it at {tmp_path / 'f'}"):
        get(server, tmp_path / "f")
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_server_in_trouble_is_asked_again_with_growing_pauses(
    server: Server, tmp_path: Path, status: int
) -> None:
    pauses: list[float] = []
    server.acts.extend([Act(status=status)] * 4)
    patience = Patience(silence=20, attempts=5, pause=1.0)
    get(server, tmp_path / "f", patience=patience, sleep=pauses.append)
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert pauses == [1, 2, 4, 8]


def test_nobody_there(tmp_path: Path) -> None:
    with serving({}) as gone:
        pass
    with pytest.raises(FetchError, match=r"refused.*run it again"):
        get(gone, tmp_path / "f")
    assert list(tmp_path.iterdir()) == []


# --- time ------------------------------------------------------------------------------------------------------


def test_a_silent_server_is_left(server: Server, tmp_path: Path) -> None:
    server.acts.append(Act(cut=70_000, stall=True))
    started = time.monotonic()
    view = get(server, tmp_path / "f", patience=Patience(silence=0.5, attempts=5, pause=0))
    assert (tmp_path / "f").read_bytes() == CONTENT
    assert server.asked[1] == ("/f", "bytes=70000-"), "what had come before the silence is kept"
    assert "not a byte for" in view.story
    assert time.monotonic() - started < 60


def test_a_slow_server_is_not(server: Server, tmp_path: Path) -> None:
    """A kilobyte in a while, for several times as long as silence may last."""
    server.files["/f"] = CONTENT[:20_000]
    server.usual = Act(drip=0.1)
    started = time.monotonic()
    view = get(server, tmp_path / "f", patience=Patience(silence=1.5, attempts=1, pause=0))
    assert time.monotonic() - started > 2 * 1.5
    assert (tmp_path / "f").read_bytes() == CONTENT[:20_000]
    assert len(server.asked) == 1
    assert len(view.seen) > 10, "progress is told as it comes, not when a block is full"


# --- several at once, and ends in the middle -------------------------------------------------------------------


def fetch_in_process(url: str, target: str) -> None:
    download(url, Path(target), Watch(), patience=Patience(silence=60, attempts=3, pause=0))


def test_two_at_once_download_once(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "f"
    server.usual = Act(drip=0.001)
    spawn = multiprocessing.get_context("spawn")
    pair = [spawn.Process(target=fetch_in_process, args=(f"{server.url}/f", str(target))) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(60)
    assert [process.exitcode for process in pair] == [0, 0]
    assert target.read_bytes() == CONTENT and alone(target)
    assert server.asked == [("/f", None)]


def test_who_waited_goes_on_where_a_killed_one_was(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "f"
    server.acts.append(Act(cut=60_000, stall=True))
    spawn = multiprocessing.get_context("spawn")
    first = spawn.Process(target=fetch_in_process, args=(f"{server.url}/f", str(target)))
    first.start()
    assert server.stalled.wait(60)
    wait_until(lambda: part_of(target).stat().st_size == 60_000)
    view = Watch()
    second = threading.Thread(
        target=download, args=(f"{server.url}/f", target, view), kwargs={"patience": QUICK}, daemon=True
    )
    second.start()
    wait_until(lambda: "another fetch is at it" in view.story)
    first.kill()
    first.join()
    second.join(60)
    assert target.read_bytes() == CONTENT and alone(target)
    assert server.asked == [("/f", None), ("/f", "bytes=60000-")]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.builds(Act, cut=st.integers(0, 4000), ranges=st.booleans(), reset=st.booleans()),
            st.builds(Act, chunked=st.just(True), cut=st.integers(1, 4000)),
            st.builds(Act, shift=st.integers(1, 50)),
            st.builds(Act, status=st.sampled_from([500, 503, 429, 408])),
            st.just(Act(headers={"Last-Modified": "Wed, 06 Sep 2023 10:00:00 GMT"})),
        ),
        max_size=6,
    ),
    st.integers(0, 4500),
)
def test_whatever_happens_the_file_is_right_or_has_no_name(
    tmp_path_factory: pytest.TempPathFactory, acts: list[Act], begun: int
) -> None:
    target = tmp_path_factory.mktemp("x") / "f"
    with serving({"/f": CONTENT[:4000]}) as server:
        part_of(target).write_bytes(CONTENT[:begun])
        server.acts.extend(acts)
        try:
            get(server, target)
        except FetchError:
            assert not target.exists()
        else:
            assert target.read_bytes() == CONTENT[:4000]


# --- disks -----------------------------------------------------------------------------------------------------


def on_small_disk(
    size: str, script: str, *arguments: str, env: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run a script that has a disk of ``size`` of its own at /mnt."""
    mount = f"mount -t tmpfs -o size={size} none /mnt"
    start = ["unshare", "-Urm", "sh", "-c"]
    if shutil.which("unshare") is None or subprocess.run([*start, mount], capture_output=True).returncode:
        pytest.skip("needs a mount namespace (unshare -Urm)")
    return subprocess.run(
        [*start, f'{mount} && exec "$@"', "sh", sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**env, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
    )


ON_SMALL_DISK = """
import sys
from pathlib import Path
from stages.backends.download import FetchError, download
from tests.backends.test_download import Watch, QUICK
from tests.backends.hostile_server import Act, serving
from tests.backends.test_download import CONTENT
told = sys.argv[1] == "told"
with serving({"/f": CONTENT}) as server:
    server.usual = Act() if told else Act(headers={"Content-Length": ""})
    try:
        download(server.url + "/f", Path("/mnt/f"), Watch(), patience=QUICK)
    except FetchError as error:
        print(error)
    print(len(server.asked), [(p.name, p.stat().st_size > 0) for p in sorted(Path("/mnt").iterdir())])
"""


@pytest.mark.parametrize("told", ["told", "not told"])
def test_a_full_disk_is_told_as_such(told: str) -> None:
    done = on_small_disk("200k", ON_SMALL_DISK, told, env=os.environ)
    assert done.returncode == 0, done.stderr
    message, left = done.stdout.strip().splitlines()
    assert message.startswith("no room in /mnt: ") and "make room, and run it again" in message
    if told == "told":  # the answer says how long the file is: nothing is begun that cannot end
        assert "300000 bytes more are needed" in message and left == "1 []"
    else:
        assert left.startswith("1 [('f.part', True)")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match="cannot be written"):
        get(server, tmp_path / "file" / "f")


def test_from_a_folder(tmp_path: Path) -> None:
    (tmp_path / "from").write_bytes(CONTENT)
    part_of(tmp_path / "f").write_bytes(CONTENT[:50])
    download((tmp_path / "from").as_uri(), tmp_path / "f", Watch(), patience=QUICK)
    assert (tmp_path / "f").read_bytes() == CONTENT
    with pytest.raises(RefusedError, match="no such file"):
        download((tmp_path / "nothing").as_uri(), tmp_path / "g", Watch(), patience=QUICK)
