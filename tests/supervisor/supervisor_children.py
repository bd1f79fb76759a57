"""Entries that tests of the supervisor run as children: each does one thing, well or badly."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from typing import Any

from supervisor.child import Link

FOR_EVER = 1_000_000


class ConfigurationError(Exception):
    """Recognised by its name."""


class OutOfMemoryError(RuntimeError):
    """Recognised by its name."""


def echo(link: Link, config: dict[str, Any]) -> None:
    """Answers every message until it is asked to stop; does what messages called ``do`` say."""
    link.phase("loading", "nothing", 0.5)
    link.ready(answer=42)
    while not link.stopping:
        message = link.receive(0.5)
        if message is None or message[0] == "stop":
            continue
        kind, payload = message
        with link.working({"message": kind, **payload}):
            if kind == "do":
                misbehave(payload["what"])
        link.send(kind, payload)


def misbehave(what: str) -> None:
    if what == "raise":
        raise ValueError("on purpose")
    if what == "oom":
        raise OutOfMemoryError("CUDA out of memory, on purpose")
    if what == "memory":
        hoard = []
        while True:
            hoard.append(bytearray(16 << 20))
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "segv":
        ctypes.string_at(0)
    if what == "hang":
        time.sleep(FOR_EVER)
    if what == "hang-gil":
        while True:  # a signal ends the sleep early
            ctypes.PyDLL(None).sleep(FOR_EVER)
    if what == "exit":
        os._exit(3)
    if what == "leave":
        sys.exit(0)
    if what == "grandchild":
        subprocess.Popen(["sleep", "1000"])
    if what == "chatter":
        print("line after line\n" * 3, file=sys.stderr, flush=True)


def unconfigured(link: Link, config: dict[str, Any]) -> None:
    raise ConfigurationError("weights are missing: fetch them")


def lacks_package(link: Link, config: dict[str, Any]) -> None:
    __import__("no_such_package_anywhere")


def stuck_loading(link: Link, config: dict[str, Any]) -> None:
    link.phase("loading", "for ever")
    time.sleep(FOR_EVER)


def slow_but_moving(link: Link, config: dict[str, Any]) -> None:
    """Loads longer than its deadline allows without progress, but progresses."""
    for step in range(int(config["steps"])):
        link.phase("loading", "weights", step / config["steps"])
        time.sleep(config["seconds"])
    link.ready()
    while not link.stopping:
        link.receive(0.5)


def dies_at_once(link: Link, config: dict[str, Any]) -> None:
    raise RuntimeError("cannot live")


def grows(link: Link, config: dict[str, Any]) -> None:
    """Takes memory until it is asked to leave, unless it has been here before."""
    link.ready()
    hoard = []
    while not link.stopping:
        link.receive(0.02)
        if len(hoard) < 40:
            hoard.append(bytearray(os.urandom(8 << 20)))


def deaf(link: Link, config: dict[str, Any]) -> None:
    """Leaves for nobody."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    link.ready()
    while True:
        time.sleep(FOR_EVER)
