"""What a unit must say on this machine: from the configuration in force, the interpreter and the user."""

from __future__ import annotations

import grp
import os
import pwd
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from daemon.service.units import WSL_LIBRARIES, ServiceError, Unit
from daemon.settings.addresses import addresses
from daemon.settings.loading import ConfigError, Loaded
from daemon.settings.sources import PREFIX, SEPARATOR

STATE = Path("/var/lib/poseward")
"""StateDirectory= of the system's service, for users without a home."""
XDG = ("XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME")


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@dataclass(frozen=True)
class Machine:
    """What installing looks at and changes, so that tests can give another.

    Attributes:
        root: stands for ``/`` where systemd's and the kernel's files are looked at or written.
        environ: the environment.
        uid: who asks.
        run: runs systemctl and journalctl.
        python: the interpreter of the service.
        private: the folders of which the system's service has its own (PrivateTmp=).
    """

    root: Path = Path("/")
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    uid: int = field(default_factory=os.getuid)
    run: Callable[[Sequence[str]], subprocess.CompletedProcess[str]] = _run
    python: Path = Path(sys.executable)
    private: Sequence[Path] = (Path("/tmp"), Path("/var/tmp"))

    def wsl(self) -> bool:
        try:
            version = (self.root / "proc/version").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return False
        return "microsoft" in version.lower()


@dataclass(frozen=True)
class Account:
    """Whom the service runs as; ``home`` is None where there is none."""

    name: str
    uid: int
    gid: int
    group: str
    groups: frozenset[int]
    home: Path | None


@dataclass(frozen=True)
class Choices:
    """What the person who installs chose."""

    user_unit: bool = False
    run_as: str = ""
    memory_high: str | None = None
    memory_max: str | None = None
    writable: Sequence[Path] = ()
    sets: Sequence[str] = ()


@dataclass(frozen=True)
class Plan:
    """The unit, and the folders it presumes: those in ``missing`` are to be made for ``account``."""

    unit: Unit
    account: Account
    missing: Sequence[Path] = ()
    folders: Sequence[tuple[str, str]] = ()
    """What the service uses, for people: what it is, and the path or address."""


def account_for(machine: Machine, choices: Choices) -> Account:
    """The user of a service.

    Raises:
        ServiceError: no such user, or none was named.
    """
    if choices.user_unit:
        if choices.run_as:
            raise ServiceError("usage", "--run-as is for the system's unit; a user's unit runs as that user")
        if machine.uid == 0 and machine.environ.get("SUDO_USER"):
            raise ServiceError(
                "as-root",
                "with sudo, --user would install for root: run the same without sudo, or leave out --user",
            )
        return _account(pwd.getpwuid(machine.uid))
    name = choices.run_as or machine.environ.get("SUDO_USER", "")
    if not name and machine.uid != 0:
        name = pwd.getpwuid(machine.uid).pw_name
    if not name:
        raise ServiceError("no-user", "say whom the service runs as: --run-as NAME (root too, if it must be)")
    try:
        return _account(pwd.getpwnam(name))
    except KeyError:
        raise ServiceError(
            "unknown-user", f"there is no user {name!r}; make one with: sudo useradd --create-home {name}"
        ) from None


def _account(entry: pwd.struct_passwd) -> Account:
    try:
        group = grp.getgrgid(entry.pw_gid).gr_name
    except KeyError:
        group = str(entry.pw_gid)
    home = Path(entry.pw_dir)
    return Account(
        entry.pw_name,
        entry.pw_uid,
        entry.pw_gid,
        group,
        frozenset(os.getgrouplist(entry.pw_name, entry.pw_gid)),
        home if home.is_dir() and home != Path("/") else None,
    )


def make_plan(loaded: Loaded, machine: Machine, choices: Choices, *, here: Path | None = None) -> Plan:
    """The plan for a configuration. Looks at files, changes nothing.

    Args:
        loaded: the configuration in force.
        machine: where the service is to run.
        choices: flags.
        here: the folder that a configuration found by itself may stand in; None: the current one.

    Raises:
        ServiceError: the service could not run so; says why and the way out.
        ConfigError: an address in the configuration cannot be used.
    """
    account = account_for(machine, choices)
    own_state = account.home is None
    base = account.home or STATE
    file = loaded.file.absolute() if loaded.file is not None else None
    working = file.parent if file is not None and file.parent == (here or Path.cwd()) else base
    where = _Folders(loaded, working, account.home)
    given = where.path("daemon.state")
    xdg = machine.environ.get("XDG_STATE_HOME") if choices.user_unit else None
    state = given or (STATE if own_state else Path(xdg or base / ".local/state") / "poseward")
    wanted = {
        "results": where.path("results.folder"),
        "drop folder": where.path("drop.folder"),
        "state": state,
        "sockets": where.path("daemon.runtime"),
        "log": where.parent("daemon.log_file"),
    }
    found = addresses(loaded.settings.api, state)
    for address in (found.requests, found.events):
        if address.startswith("ipc://"):
            wanted[f"socket {address}"] = Path(address[6:]).parent
    for path in choices.writable:
        wanted[f"writable {path}"] = path.absolute()
    # What systemd makes for the service needs no mention.
    own = [Path("/run/poseward"), *([STATE] if own_state else [])]
    writable = _outermost(
        path for path in wanted.values() if path is not None and not any(path.is_relative_to(one) for one in own)
    )
    command = [str(machine.python), str(_program(machine.python)), "serve"]
    if file is not None:
        command += ["--config", str(file)]
    for item in choices.sets:
        command += ["--set", item]
    unit = Unit(
        user_unit=choices.user_unit,
        command=command,
        working=working,
        user=account.name,
        group=account.group,
        environment=_environment(machine, choices.user_unit),
        own_state=own_state and not choices.user_unit,
        writable=writable,
        mounts=_outermost([*writable, working]),
        memory_high=choices.memory_high,
        memory_max=choices.memory_max,
        loopback=not found.public and _is_local(where.text("metrics.address")),
        wsl=machine.wsl() and (machine.root / WSL_LIBRARIES.lstrip("/")).is_dir(),
    )
    if not choices.user_unit:
        for path in (machine.python, _program(machine.python), *writable, *([file] if file else [])):
            _check_private(path, machine)
    for path in (machine.python, _program(machine.python), *([file] if file else [])):
        _check_readable(path, account)
    for path in writable:
        _check_writable(path, account)
    shown = [(name, str(path)) for name, path in wanted.items() if path is not None and ":" not in name]
    return Plan(
        unit,
        account,
        missing=[path for path in writable if not path.exists()],
        folders=[
            ("user", account.name),
            ("configuration", str(file) if file else "the defaults"),
            *(("environment", f"{name}={value}") for name, value in unit.environment),
            *(("setting", item) for item in choices.sets),
            *shown,
            ("API", found.requests),
        ],
    )


@dataclass(frozen=True)
class _Folders:
    """Paths of the configuration as the service will understand them, which has another home and folder."""

    loaded: Loaded
    working: Path
    home: Path | None

    def text(self, key: str) -> str:
        try:
            return str(self.loaded.value(key) or "")
        except ConfigError:
            return ""

    def path(self, key: str) -> Path | None:
        text = self.text(key)
        if not text:
            return None
        if text == "~" or text.startswith("~/"):
            if self.home is None:
                raise ServiceError("no-home", f"{key} = {text!r}: the user has no home; write an absolute path")
            text = str(self.home) + text[1:]
        return self.working / Path(text).expanduser()

    def parent(self, key: str) -> Path | None:
        path = self.path(key)
        return path.parent if path is not None else None


def _environment(machine: Machine, user_unit: bool) -> list[tuple[str, str]]:
    """Settings that stand in the environment now, so that the service has them too."""
    environ = machine.environ
    names = [name for name in sorted(environ) if name.startswith(PREFIX) and SEPARATOR in name]
    # The service's user has the standard places, whoever installs it.
    return [(name, environ[name]) for name in (*names, *(XDG if user_unit else ())) if environ.get(name)]


def _program(python: Path) -> Path:
    program = python.parent / "poseward"
    if not program.is_file():
        raise ServiceError(
            "not-installed",
            f"there is no {program}: install Poseward for this interpreter ({python} -m pip install .) and call "
            f"{program} service install",
        )
    return program


def _outermost(paths: Iterator[Path] | Sequence[Path]) -> list[Path]:
    """Without what stands below another of them."""
    found = sorted({Path(os.path.normpath(path)) for path in paths})
    return [path for path in found if not any(path != other and path.is_relative_to(other) for other in found)]


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    return not address or host == "localhost" or host == "::1" or host.startswith("127.")


# -- permissions, as the service's user will meet them -------------------------------------------------------------


def _check_private(path: Path, machine: Machine) -> None:
    for private in machine.private:
        if path.is_relative_to(private):
            raise ServiceError(
                "private-folder",
                f"{path}: the system's service has a {private} of its own and would not see this one: put it elsewhere"
                ", or use --user",
            )


def _check_readable(path: Path, account: Account) -> None:
    real = path.resolve()  # an environment's interpreter is a link to the one it was made from
    for part in (*reversed(path.parents), *reversed(real.parents), path):
        wanted = 4 if part == path else 1
        if not _may(part, account, wanted):
            raise ServiceError(
                "unreadable",
                f"{path}: the user {account.name} may not {'read' if wanted == 4 else 'enter'} {part}: install "
                "Poseward where that user can read it, or choose another user with --run-as",
            )


def _check_writable(path: Path, account: Account) -> None:
    nearest = next(part for part in (path, *path.parents) if part.exists())
    if path.exists() and not path.is_dir():
        raise ServiceError("no-folder", f"{path} is no folder: mend the setting that names it")
    for part in reversed(nearest.parents):
        if not _may(part, account, 1):
            raise ServiceError("unreadable", f"{path}: the user {account.name} may not enter {part}")
    # What is missing is made for the user.
    if nearest == path and not (_may(path, account, 2) and _may(path, account, 1)):
        raise ServiceError(
            "unwritable",
            f"{path}: the user {account.name} may not write there: sudo chown {account.name} '{path}'",
        )


def _may(path: Path, account: Account, wanted: int) -> bool:
    """Whether the mode bits allow it; what is not there is judged elsewhere."""
    try:
        found = path.stat()
    except OSError:
        return True
    if account.uid == 0:
        return True
    if found.st_uid == account.uid:
        return bool(found.st_mode >> 6 & wanted)
    if found.st_gid in account.groups:
        return bool(found.st_mode >> 3 & wanted)
    return bool(found.st_mode & wanted)
