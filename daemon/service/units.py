"""The units: templates from `systemd/`, filled in for one machine, escaped as systemd demands."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

NAME = "poseward.service"
TEMPLATES = {False: "poseward.service.in", True: "poseward-user.service.in"}
MARK = "# poseward-unit: "
"""Begins the first line of every unit that `poseward service install` wrote; the hash of the rest follows."""
WSL_LIBRARIES = "/usr/lib/wsl/lib"
CACHES = {
    "CUDA_CACHE_PATH": "cuda",
    "MPLCONFIGDIR": "matplotlib",
    "NUMBA_CACHE_DIR": "numba",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""What writes to the home otherwise, which is read-only for the system's service."""

_MEMORY = re.compile(r"infinity|\d+(\.\d+)?%|\d+[KMGT]?")


class ServiceError(Exception):
    """What was asked cannot be done; ``name`` is for programs, the text names the way out."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text)
        self.name = name


@dataclass(frozen=True)
class Unit:
    """What a unit says about this machine. All paths are absolute.

    Attributes:
        user_unit: for a user's own systemd, not the system's.
        command: the program and its arguments.
        working: the folder that relative paths in the configuration start from.
        user: whom the system's service runs as; unused in a user's unit.
        group: that user's group.
        environment: ``KEY=VALUE`` of settings that stand in no file.
        own_state: keep the state in /var/lib/poseward; otherwise it is one of ``writable``.
        writable: the folders that the system's service may write.
        mounts: folders whose file systems must be mounted first.
        memory_high: above this the kernel slows the service down (see `check_memory`), or None.
        memory_max: above this the kernel kills a stage, or None.
        loopback: nobody but this machine may talk to the service.
        wsl: whether this is WSL with a GPU, whose device and CUDA library stand elsewhere.
    """

    user_unit: bool
    command: Sequence[str]
    working: Path
    user: str = ""
    group: str = ""
    environment: Sequence[tuple[str, str]] = ()
    own_state: bool = False
    writable: Sequence[Path] = ()
    mounts: Sequence[Path] = ()
    memory_high: str | None = None
    memory_max: str | None = None
    loopback: bool = True
    wsl: bool = False


def template(user_unit: bool) -> str:
    """The template's text: from the checkout, or from where pip put it.

    Raises:
        ServiceError: it is in neither place.
    """
    name = TEMPLATES[user_unit]
    beside = Path(__file__).parents[2] / "systemd" / name
    places = [beside]
    try:
        files = importlib.metadata.files("poseward") or []
        places += [Path(str(file.locate())) for file in files if file.name == name]
    except importlib.metadata.PackageNotFoundError:
        pass
    for place in places:
        if place.is_file():
            return place.read_text(encoding="utf-8")
    raise ServiceError("no-template", f"{beside} is not there: install Poseward again (pip install .)")


def render(unit: Unit) -> str:
    """The unit's text, with the mark line on top.

    Raises:
        ServiceError: a path or a size that no unit can hold.
    """
    environment = [assignment(key, value) for key, value in unit.environment]
    if not unit.user_unit:
        # What stands below it goes with the service; a user's services have one of their own.
        environment.append('Environment="XDG_RUNTIME_DIR=%t/poseward"')
        environment += [f'Environment="{key}=%C/poseward/{folder}"' for key, folder in CACHES.items()]
    if unit.wsl:
        environment.append(assignment("LD_LIBRARY_PATH", WSL_LIBRARIES))
    memory = [
        f"{key}={check_memory(size)}"  # no specifiers here: a percent sign stands for itself
        for key, size in (("MemoryHigh", unit.memory_high), ("MemoryMax", unit.memory_max))
        if size
    ]
    network = ["IPAddressDeny=any", "IPAddressAllow=localhost"] if unit.loopback else []
    values = {
        "COMMAND": " ".join(argument(word) for word in unit.command),
        "USER": unit.user.replace("%", "%%"),
        "GROUP": unit.group.replace("%", "%%"),
        "WORKING": _plain(str(unit.working)).replace("%", "%%"),
        "ENVIRONMENT": "\n".join(environment),
        "STATE": "StateDirectory=poseward\nStateDirectoryMode=0700" if unit.own_state else "",
        "FOLDERS": "\n".join(f"ReadWritePaths={quote_path(path)}" for path in unit.writable),
        "MOUNTS": "\n".join(f"RequiresMountsFor={quote_path(path)}" for path in unit.mounts),
        "MEMORY": "\n".join(memory)
        or "# MemoryHigh= and MemoryMax=: `poseward service install --memory-max 12G`.",
        "DEVICES": "/dev/dxg rw" if unit.wsl else "char-nvidia* rw",
        "NETWORK": "\n".join(network),
    }
    text = template(unit.user_unit)
    # The template's own head explains the template.
    text = text[text.index("[Unit]") :]
    text = re.sub(r"@([A-Z]+)@", lambda match: values[match[1]], text)
    return sign(re.sub(r"\n{3,}", "\n\n", text))


def sign(body: str) -> str:
    """Put the mark line above a unit's text."""
    return f"{MARK}written by `poseward service install`, sha256 {_digest(body)}\n{body}"


def is_marked(text: str) -> bool:
    """Whether `poseward service install` wrote this, changed since or not."""
    return text.startswith(MARK)


def is_unchanged(text: str) -> bool:
    """Whether a marked unit is still as it was written."""
    head, _, body = text.partition("\n")
    return is_marked(head) and head.endswith(_digest(body))


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


# -- escaping: systemd.syntax(7), systemd.service(5) "Command lines", systemd.exec(5) -----------------------------


def argument(word: str) -> str:
    """One word of ExecStart=: specifiers and variables escaped, quoted where needed.

    Raises:
        ServiceError: it holds a control character, or is no UTF-8.
    """
    text = _plain(word).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if re.fullmatch(r"[\w@%+=:,./$-]+", text, re.ASCII) else f'"{text}"'


def assignment(key: str, value: str) -> str:
    """An Environment= line; raises as `argument`."""
    text = _plain(value).replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return f'Environment="{key}={text}"'


def quote_path(path: Path) -> str:
    """One word of ReadWritePaths= and its like, in which nothing but a quote ends a quoted word.

    Raises:
        ServiceError: it holds a control character, a double quote or a backslash, or is no UTF-8.
    """
    text = _plain(str(path))
    if '"' in text or "\\" in text:
        raise ServiceError(
            "bad-path", f"{path}: no unit can name a folder with a double quote or a backslash: rename it"
        )
    text = text.replace("%", "%%")
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text, re.ASCII) else f'"{text}"'


def _plain(text: str) -> str:
    if any(ord(char) < 32 or ord(char) == 127 or "\ud800" <= char <= "\udfff" for char in text):
        shown = os.fsencode(text).decode("utf-8", "backslashreplace") if "\n" not in text else repr(text)
        raise ServiceError(
            "bad-path", f"{shown}: a unit holds no control characters and no bytes that are not UTF-8"
        )
    return text


def check_memory(size: str) -> str:
    """A size as MemoryMax= takes it: bytes, with K, M, G or T, or a share of the machine's such as 75%.

    Raises:
        ServiceError: it is none.
    """
    if not _MEMORY.fullmatch(size):
        raise ServiceError("bad-size", f"{size!r} is no size: write 12G, 800M, 75% or infinity")
    return size
