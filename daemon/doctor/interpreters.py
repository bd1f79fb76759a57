"""Each stage's interpreter: there, new enough, and able to import what its backend needs, asked in itself."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daemon.doctor.check import Context, Finding, error, note, ok, warning
from stages.owner.processes import ENTRIES, HOUSE, PRELOAD
from stages.protocols import ConfigurationError, find_backend
from stages.settings import STAGES, StageSettings
from supervisor.launch import command

OLDEST = (3, 10)
START_SECONDS = 15.0
"""For an interpreter to start and say its version."""
IMPORT_SECONDS = 150.0
"""For the imports: torch from a cold disk takes a minute."""
CHECK_SECONDS = START_SECONDS + IMPORT_SECONDS + 15.0
BASE = {"decode": ("zmq", "msgpack", "numpy", "av", "cv2"), "track": ("zmq", "msgpack", "numpy")}
"""What every stage's own modules import (`stages.process`): asked for one by one, so
that all that is missing is named at once."""
TOLD_ELSEWHERE = ("file", "device")
"""What those of a backend's complaints are about that the checks of the models and of the GPU tell."""
_VERSION = "import sys; sys.stdout.write('%d.%d.%d' % sys.version_info[:3])"


@dataclass
class Interpreter:
    """What one stage's interpreter said. ``problem`` and ``way_out`` are set where it could not be asked."""

    stage: str
    python: str
    version: str = ""
    prefix: str = ""
    problem: str = ""
    way_out: str = ""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Imports that failed: ``{failed, missing, error}``."""
    problems: list[dict[str, str]] = field(default_factory=list)
    """What the backend itself finds lacking: ``{what, way, about}``."""
    versions: dict[str, str] = field(default_factory=dict)
    libcuda: str | None = None
    """None: not asked; empty: found; else the dynamic linker's complaint."""
    torch: dict[str, Any] | None = None
    codecs: dict[str, list[str]] | None = None


def environment(context: Context, settings: StageSettings) -> dict[str, str]:
    """The environment that the supervisor gives a process of the stage."""
    own = {"PYTHONUNBUFFERED": "1"}
    if settings.device.startswith("cuda"):
        own["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    return {**context.machine.environ, **settings.env, **own}


def interpreter(context: Context, stage: str) -> Interpreter:
    """What the interpreter of a stage says; asked once, in a process of its own with the stage's environment."""
    return context.once(f"interpreter {stage}", lambda: _ask(context, stage))


def _ask(context: Context, stage: str) -> Interpreter:
    settings = context.loaded.settings.stages.stage(stage)
    found = Interpreter(stage, settings.python)
    environ = environment(context, settings)
    path = shutil.which(settings.python, path=environ.get("PATH"))
    setting = f"stages.{stage}.python"
    if path is None:
        there = Path(settings.python).exists()
        found.problem = f"{settings.python} " + ("is not executable" if there else "is not there")
        found.way_out = (
            f"chmod +x {settings.python}"
            if there and Path(settings.python).is_file()
            else f"set {setting} to the python of the environment that has the stage's packages, such as "
            f"/path/to/venv/bin/python (this one is {context.machine.executable})"
        )
        return found
    start = _run([path, "-c", _VERSION], environ, START_SECONDS)
    found.version = start.output.strip()
    numbers = tuple(int(part) for part in found.version.split(".") if part.isdecimal())
    if start.problem or len(numbers) != 3:
        found.problem = f"{path} does not start: {start.problem or 'it is no Python'}"
        found.way_out = f"try `{path} -V`; if its environment is broken, make it anew, or set {setting}"
        return found
    if numbers < OLDEST:
        found.problem = f"{path} is Python {found.version}"
        found.way_out = f"Python {OLDEST[0]}.{OLDEST[1]} or newer is needed: set {setting} to one"
        return found
    _ask_inside(context, found, path, environ)
    return found


def _ask_inside(context: Context, found: Interpreter, path: str, environ: Mapping[str, str]) -> None:
    stages = context.loaded.settings.stages
    stage, settings = found.stage, stages.stage(found.stage)
    try:
        backend = find_backend(stages.backend)
    except ConfigurationError as missing:
        found.problem, found.way_out = str(missing), "set stages.backend to one of those"
        return
    preload, packages = backend.preload.get(stage, ()), backend.packages.get(stage, ())
    cuda = settings.device.startswith("cuda")
    request = {
        "stage": stage,
        "backend": stages.backend,
        "options": {"device": settings.device, **stages.options},
        "modules": list(
            dict.fromkeys(
                (*BASE.get(stage, BASE["track"]), ENTRIES[stage].partition(":")[0], *PRELOAD[stage], *preload)
            )
        ),
        "packages": packages,
        "frameworks": [name for name in ("torch", "torchvision") if name in packages or cuda],
        "cuda": cuda,
        "codecs": stage == "decode",
    }
    done = _run(command(path, "daemon.doctor.inside", json.dumps(request)), environ, IMPORT_SECONDS)
    step = ""
    for line in done.output.splitlines():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # the last line of a process that was killed
        step = said.get("step", step)
        if "failed" in said:
            found.failed.append(said)
            continue
        for name, value in said.items():
            if hasattr(found, name):
                setattr(found, name, value)
    if done.problem:
        found.problem = f"{path} died while {step or 'starting'}: {done.problem}"
        found.way_out = (
            f"run `{path} -m pip check`; a package there is broken, or built for another processor or library: "
            "reinstall it"
        )


@dataclass(frozen=True)
class _Done:
    output: str
    problem: str
    """Empty, or why the output is not whole."""


def _run(command: list[str], environ: Mapping[str, str], seconds: float) -> _Done:
    try:
        process = subprocess.Popen(
            command,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as problem:
        return _Done("", problem.strerror or str(problem))
    late = ""
    try:
        output, said = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        late = f"no end after {seconds:.0f} s"
        # The group: the interpreter may be a script, and what it started would hold the pipes open.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        output, said = process.communicate()
    text, complaint = output.decode(errors="replace"), said.decode(errors="replace").strip()
    if late:
        return _Done(text, late)
    if process.returncode < 0:
        return _Done(text, f"killed by {signal.Signals(-process.returncode).name}")
    if process.returncode:
        last = complaint.splitlines()[-1] if complaint else "it said nothing"
        return _Done(text, f"exit code {process.returncode}: {last}")
    return _Done(text, "")


def check_interpreter(context: Context, check: str) -> Iterator[Finding]:
    """One stage's interpreter; the stage is the check's name after the dot."""
    stage = check.partition(".")[2]
    settings = context.loaded.settings.stages.stage(stage)
    found = interpreter(context, stage)
    if found.problem:
        yield error(check, f"{stage}: {found.problem}", found.way_out)
        if not found.failed:
            return
    broken = False
    missing = list(dict.fromkeys(failure["missing"] for failure in found.failed if failure["missing"]))
    if missing:
        broken = True
        yield error(
            check,
            f"{stage}: {found.python} has no {', '.join(missing)}",
            f"{found.python} -m pip install {' '.join(dict.fromkeys(map(_distribution, missing)))}, or set "
            f"stages.{stage}.python to the interpreter that has them",
        )
    for failure in found.failed:
        name = failure["failed"]
        if not failure["missing"]:
            broken = True
            yield error(
                check,
                f"{stage}: {found.python} cannot import {name}: {failure['error']}",
                _mend(found.python, name),
            )
    lacking: dict[str, list[str]] = {}
    for problem in found.problems:
        if problem["about"] not in TOLD_ELSEWHERE:
            lacking.setdefault(problem["way"], []).append(problem["what"])
    for way, whats in lacking.items():
        broken = True
        yield error(check, f"{stage}: {_joined(whats)}", _in_environment(way, found.python))
    if not os.path.isabs(settings.python):
        path = shutil.which(settings.python, path=environment(context, settings).get("PATH"))
        yield note(
            check,
            f"stages.{stage}.python = {settings.python!r} is looked up on PATH, which a service does not share",
            f"set stages.{stage}.python to {os.path.abspath(path or settings.python)}",
        )
    if not broken and not found.problem:
        head = f"{stage}: {found.python} is Python {found.version}"
        versions = ", ".join(f"{name} {version}" for name, version in sorted(found.versions.items()))
        yield ok(check, f"{head}; {versions}" if versions else head)


def _joined(texts: list[str]) -> str:
    """``["no x in Y", "no z in Y"]`` as ``"no x, z in Y"``."""
    words = [re.findall(r"\w+|\W+", text) for text in texts]
    start = _same(words)
    end = _same([list(reversed(text[start:])) for text in words])
    middle = ["".join(text[start : len(text) - end]) for text in words]
    if len(texts) < 2 or not start or not end or not all(middle):
        return "; ".join(texts)
    return "".join(words[0][:start]) + ", ".join(middle) + "".join(words[0][-end:])


def _same(words: list[list[str]]) -> int:
    """How many words the lists begin with that are the same in all."""
    return next(
        (n for n, found in enumerate(zip(*words, strict=False)) if len(set(found)) > 1), min(map(len, words))
    )


def _in_environment(way: str, python: str) -> str:
    """A backend's advice, with the pip of the stage's own environment, whichever pip is on PATH."""
    return re.sub(r"(?<!-m )\bpip (install|uninstall)\b", lambda found: f"{python} -m pip {found[1]}", way)


def _mend(python: str, module: str) -> str:
    if module in ("torch", "torchvision"):
        return (
            "torch and torchvision must be builds of the same release for the same CUDA: reinstall both in one "
            f"command, {python} -m pip install --force-reinstall torch torchvision --index-url URL, with the URL "
            "from https://pytorch.org"
        )
    if module.partition(".")[0] == "stages":
        return f"{HOUSE} is damaged or changed: install Poseward anew"
    return f"{python} -m pip install --force-reinstall {_distribution(module)}"


def _distribution(module: str) -> str:
    """What pip calls the package of a module."""
    names = {"cv2": "opencv-python", "zmq": "pyzmq", "ai_edge_litert": "ai-edge-litert", "PIL": "pillow"}
    top = module.split(".")[0]
    return "poseward" if top in ("daemon", "stages", "supervisor") else names.get(top, top)


def check_own(context: Context, check: str) -> Iterator[Finding]:
    """The interpreter that runs this command, the environment the shell has active, and ``poseward`` on PATH."""
    machine = context.machine
    trouble = False
    active = machine.environ.get("VIRTUAL_ENV", "")
    own = Path(machine.executable).parent.parent
    if active and Path(active).resolve() != own.resolve():
        trouble = True
        yield warning(
            check,
            f"the shell has the environment {active} active, but this runs under {machine.executable}",
            f"run {active}/bin/poseward, after `{active}/bin/python -m pip install poseward`, or `deactivate`",
        )
    program = shutil.which("poseward", path=machine.environ.get("PATH", ""))
    if program is not None:
        used = _shebang(Path(program))
        if used and Path(used).parent.resolve() != Path(machine.executable).parent.resolve():
            trouble = True
            yield warning(
                check,
                f"`poseward` on PATH is {program}, which runs under {used}, not under {machine.executable}",
                f"call {Path(machine.executable).parent / 'poseward'}, or put its folder first on PATH",
            )
    others = sorted(
        {python for stage in STAGES if (python := context.loaded.settings.stages.stage(stage).python)}
        - {machine.executable}
    )
    if others:
        yield note(check, f"some stages run under another interpreter than this one: {', '.join(others)}")
    if not trouble:
        yield ok(check, f"running under {machine.executable}, Poseward from {HOUSE}")


def _shebang(program: Path) -> str:
    try:
        with program.open("rb") as file:
            first = file.readline(300).decode(errors="replace").strip()
    except OSError:
        return ""
    used = first[2:].split()
    return used[0] if first.startswith("#!") and used and "python" in used[0] else ""
