"""Downloads a large file over HTTP so that nothing of it is lost: whatever the network, the server, the disk or the
user does, what has come stays in a ``.part`` beside the target, the next try goes on from there, and only a whole
and checked file gets the target's name.

Ranges, ``If-Range`` and 416 as in RFC 9110, sections 13.1.5, 14.2 and 15.5.17.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import http.client
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from stages.protocols import ConfigurationError, FetchView

BLOCK = 1 << 20
MEGABYTE = 1 << 20
LONGEST_PAUSE = 60.0
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TRY_LATER = (408, 425, 429)
"""The 4xx answers that may be others soon."""


class FetchError(ConfigurationError):
    """A download failed; says which, why, and what to do. What had come of it is kept."""


class RefusedError(FetchError):
    """The server does not have this file, or has another; other files may be there all the same."""


@dataclass(frozen=True)
class Patience:
    """How long to bear with a server. There is no limit on the whole: a slow download is no failed one."""

    silence: float = 60.0
    """Seconds without a byte after which a connection counts as dead."""
    attempts: int = 5
    """Attempts in a row that bring nothing new."""
    pause: float = 1.0
    """Seconds before the next attempt; doubled each time that nothing new came, up to a minute."""


def part_of(target: Path) -> Path:
    """Where a download is kept until it is whole."""
    return target.with_name(target.name + ".part")


def mirror_of(source: str, example: str) -> str:
    """The address of what the user names instead of the publishers: a folder, or an address; empty for neither.

    Raises:
        ConfigurationError: it is neither a folder nor an address; ``example`` is a file that one has.
    """
    if not source:
        return ""
    if Path(source).expanduser().is_dir():
        return Path(source).expanduser().resolve().as_uri()
    if urlsplit(source).scheme not in ("http", "https", "file"):
        raise ConfigurationError(
            f"{source} is no folder and no address (http://…, https://…): it has to hold the files under their "
            f"publishers' names, such as {example}"
        )
    return source.rstrip("/")


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str,
    target: Path,
    view: FetchView,
    *,
    at_least: int = 1,
    check: Callable[[Path], str] = lambda path: "",
    done: Callable[[], bool] | None = None,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Download ``url`` to ``target``, going on where an earlier call or process ended. If another process is
    downloading the same, wait for it.

    Args:
        url: http, https or file.
        target: Replaced at the end, at once.
        view: Told what happens; its ``progress`` after every block.
        at_least: A server whose file has fewer bytes has another one.
        check: Says what is wrong with the whole file, before it gets its name; empty if nothing.
        done: Whether the target is there by now, asked after waiting for another process; by default whether it
            exists.
        patience: See `Patience`.
        sleep: Waits between attempts.

    Raises:
        FetchError: it failed for good, or the disk is full: what has come is kept. Or what came is not what it
            should be: removed.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _part(target, view) as file:
            if (done or target.is_file)():
                _drop(target)
                return
            _Download(url, target, file, view, at_least, patience or Patience()).run(sleep)
            if problem := check(part_of(target)):
                _drop(target)
                raise FetchError(f"{url}: {problem}; removed, run it again")
            os.fsync(file.fileno())
            _validator_of(target).unlink(missing_ok=True)
            part_of(target).replace(target)
    except OSError as error:
        raise FetchError(
            f"{target.parent} cannot be written: {error.strerror or error}; mend that (`ls -ld '{target.parent}'`), "
            "and run it again"
        ) from error


@contextmanager
def _part(target: Path, view: FetchView) -> Iterator[FileIO]:
    """The part, open and locked: the kernel lets go of the lock when its holder dies, however it dies."""
    path = part_of(target)
    while True:
        file = FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+")
        with file:
            lock(file, lambda: view.say(f"{target.name}: another fetch is at it; waiting for that"))
            # Who had the lock before may have given the file its name, or removed it: then it is no part any more.
            if _same(path, file):
                try:
                    yield file
                finally:
                    if _same(path, file) and not os.fstat(file.fileno()).st_size:
                        _drop(target)
                return


def _drop(target: Path) -> None:
    """Remove the part. It goes last: from then on another process may begin one."""
    _validator_of(target).unlink(missing_ok=True)
    part_of(target).unlink()


def _same(path: Path, file: FileIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def lock(file: Any, waiting: Callable[[], None]) -> None:
    """Lock an open file against other processes; ``waiting`` is called if it is locked by one. On file systems that
    know no locks there is none (NFS knows none on a file opened for reading: EBADF)."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF):
            raise


def _validator_of(target: Path) -> Path:
    """Which version of the server's file the part is of: its ``Last-Modified`` or ``ETag``."""
    return target.with_name(target.name + ".part.version")


class _AgainError(Exception):
    """This attempt failed; another may not."""


class _Download:
    def __init__(
        self, url: str, target: Path, file: FileIO, view: FetchView, at_least: int, patience: Patience
    ) -> None:
        self._url = url
        self._target = target
        self._file = file
        self._view = view
        self._at_least = at_least
        self._patience = patience
        self._ranges = True
        """The server goes on in the middle, as far as is known."""

    @property
    def _have(self) -> int:
        return os.fstat(self._file.fileno()).st_size

    def run(self, sleep: Callable[[float], None]) -> None:
        """Until the part is whole."""
        best, failures = self._have, 0
        if best:
            self._view.say(f"{self._target.name}: going on after {size_text(best)} that are there")
        while True:
            try:
                self._attempt()
                return
            except _AgainError as again:
                reason = str(again)
            best, failures = (self._have, 0) if self._have > best else (best, failures + 1)
            if failures >= self._patience.attempts:
                kept = (
                    f"{size_text(self._have)} are kept, run it again to go on from there"
                    if self._have
                    else "run it again"
                )
                raise FetchError(f"{self._url}: {reason}; {kept} (if this network needs a proxy, set https_proxy)")
            pause = min(self._patience.pause * 2 ** max(failures - 1, 0), LONGEST_PAUSE)
            after = f" after {size_text(self._have)}" if self._have else ""
            self._view.say(f"{self._target.name}: {reason}; going on{after} in {pause:.0f} s")
            sleep(pause)

    def _attempt(self) -> None:
        """One connection. Returns when the part is whole.

        Raises:
            _AgainError: it is not, but may be next time.
            FetchError: it never will.
        """
        have = self._have if self._ranges else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and (version := self._version()):
            headers["If-Range"] = version
        try:
            with _OPENER.open(
                urllib.request.Request(self._url, headers=headers), None, self._patience.silence
            ) as got:
                self._receive(got, have)
        except urllib.error.HTTPError as error:
            self._refused(error, have)
        except (http.client.HTTPException, OSError) as error:
            raise self._broken(error) from error
        except ValueError as error:
            raise RefusedError(f"{self._url}: no address to download from ({error})") from error

    def _refused(self, error: urllib.error.HTTPError, have: int) -> None:
        """Return if the answer says that nothing is left to fetch; else raise."""
        if error.code == 416 and have:
            length = str(error.headers.get("Content-Range", "")).removeprefix("bytes */")
            if length == str(have):
                return
            self._ranges = False
            known = f", its file has {length} bytes" if length.isdecimal() else ""
            raise _AgainError(f"the server has nothing after byte {have}{known}")
        if error.code >= 500 or error.code in _TRY_LATER:
            raise _AgainError(f"the server answers {error.code} {error.reason}")
        raise RefusedError(
            f"{self._url}: the server answers {error.code} {' '.join(str(error.reason).split())}; if the file has "
            f"moved, put it at {self._target}"
        )

    def _broken(self, error: Exception) -> Exception:
        """What becomes of an attempt that ended in ``error``."""
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            return FetchError(
                f"{self._url}: the server's certificate is not trusted ({reason.verify_message}); behind a proxy that "
                "has its own, name that in the environment variable SSL_CERT_FILE"
            )
        if isinstance(reason, FileNotFoundError):  # an address file://…
            return RefusedError(f"{self._url}: there is no such file; it belongs to {self._target}")
        if isinstance(reason, TimeoutError):
            return _AgainError(f"not a byte for {self._patience.silence:.0f} s")
        if isinstance(error, http.client.IncompleteRead):
            return _AgainError("the connection ended early")
        return _AgainError(getattr(reason, "strerror", None) or str(reason) or type(reason).__name__)

    def _receive(self, response: Any, have: int) -> None:
        start, total = self._place(response)
        changed = start and self._version() and _version(response) not in ("", self._version())
        if changed or start not in (0, have):
            self._ranges = False
            raise _AgainError("the server's file has changed" if changed else f"not byte {have} comes but {start}")
        if not start:
            self._look(response, total)
        self._room(start, total)
        if not start:
            if self._have:
                why = "the server cannot go on in the middle, or its file has changed"
                self._view.say(f"{self._target.name}: from the start: {why}")
            self._begin(_version(response))
        self._file.seek(start)
        have = start
        while total is None or have < total:
            # read1 comes back with whatever is there: a block may take minutes, and would be lost with the connection.
            block = response.read1(BLOCK if total is None else min(BLOCK, total - have))
            if not block:
                break
            self._write(block)
            have += len(block)
            self._view.progress(self._target.name, have, total)
        if total is not None and have < total:
            raise _AgainError(f"the connection ended early, {size_text(total - have)} are missing")

    def _place(self, response: Any) -> tuple[int, int | None]:
        """Where in the file this answer begins, and the file's whole length where it says that."""
        length = response.headers.get("Content-Length", "")
        rest = int(length) if length.isdecimal() else None
        if response.status != 206:
            return 0, rest  # a server that ignores Range, or sees by If-Range that its file is another now
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", "").strip())
        if found is None:
            raise RefusedError(f"{self._url}: the server sends a part of the file without saying which")
        start = int(found[1])
        if found[2] != "*":
            return start, int(found[2])
        return start, None if rest is None else start + rest

    def _look(self, response: Any, total: int | None) -> None:
        """Before what is there is given up for an answer: is that the file at all?"""
        if response.headers.get_content_type() == "text/html":
            raise RefusedError(
                f"{self._url}: a web page comes instead of the file: a login page of this network, or the file has "
                f"moved; open the address in a browser, and put the file at {self._target}"
            )
        if total is not None and total < self._at_least:
            raise RefusedError(
                f"{self._url}: the file there has {total} bytes, at least {self._at_least} are expected: it is another "
                f"one; put the right one at {self._target}"
            )

    def _room(self, start: int, total: int | None) -> None:
        missing = 0 if total is None else total - start
        free = shutil.disk_usage(self._target.parent).free + self._have - start
        if missing > free:
            raise self._no_room(f"{size_text(missing)} more are needed, {size_text(free)} are free")

    def _write(self, block: bytes) -> None:
        rest = memoryview(block)
        while rest:
            try:
                rest = rest[self._file.write(rest) :]
            except OSError as error:
                if error.errno in _FULL:
                    raise self._no_room(error.strerror or str(error)) from error
                raise FetchError(f"{part_of(self._target)} cannot be written: {error.strerror}") from error

    def _no_room(self, why: str) -> FetchError:
        return FetchError(
            f"no room in {self._target.parent}: {why}; {size_text(self._have)} are kept: make room, and run it again"
        )

    def _begin(self, version: str) -> None:
        """From the start, of the given version of the server's file."""
        self._file.truncate(0)
        _validator_of(self._target).unlink(missing_ok=True)
        if version:
            _validator_of(self._target).write_text(version, encoding="latin-1")

    def _version(self) -> str:
        try:
            return _validator_of(self._target).read_text(encoding="latin-1").strip()
        except OSError:
            return ""


def _version(response: Any) -> str:
    """A strong validator. The date first: it is the same on all machines behind one address, an ETag may not be."""
    tag = str(response.headers.get("ETag", ""))
    return str(response.headers.get("Last-Modified", "")) or ("" if tag.startswith("W/") else tag)


def size_text(count: int) -> str:
    """``12 MB``; below one MB the very number, so that what is missing can be compared with what is there."""
    return f"{count / MEGABYTE:.0f} MB" if count >= MEGABYTE else f"{count} bytes"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from an encrypted connection to one that anybody on the way can change."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if req.type == "https" and not newurl.startswith("https:"):
            raise urllib.error.HTTPError(newurl, code, "a redirect to an unencrypted address", headers, fp)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


_OPENER = urllib.request.build_opener(_Redirects)
