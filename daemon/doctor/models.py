"""The backend's model files: there, whole, as published; which can be fetched and which have a licence to accept.

A backend keeps what it knows of its files in a module ``models`` beside its ``BACKEND``; nothing here names one.
Two kinds are understood: one with ``plan(options)``, whose files say for themselves how they are obtained, and one
with ``FILES``, ``cache_folder`` and ``locate``, whose files have a size and a SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from daemon.doctor.check import Context, Finding, error, note, ok
from stages.protocols import ConfigurationError, find_backend

HASH_SECONDS = 180.0
"""For reading all files once."""


def check_models(context: Context, check: str) -> Iterator[Finding]:
    """Each model file of the configured backend, with its size; by checksum where one is published."""
    stages = context.loaded.settings.stages
    try:
        find_backend(stages.backend)
    except ConfigurationError as problem:
        yield error(check, str(problem), "set stages.backend to one of those")
        return
    package = stages.backend if "." in stages.backend else f"stages.backends.{stages.backend}"
    try:
        module = importlib.import_module(f"{package}.models")
    except ModuleNotFoundError:
        yield ok(check, f"backend {stages.backend} has no model files")
        return
    try:
        if hasattr(module, "plan"):
            yield from _planned(check, package, module, stages.backend, stages.options)
        else:
            yield from _plain(check, module, str(stages.options.get("cache", "")))
    except ConfigurationError as problem:
        yield error(check, str(problem), "correct [stages.options]; `poseward config show` says where it is set")


def _plain(check: str, module: ModuleType, cache: str) -> Iterator[Finding]:
    for file in module.FILES:
        path = module.cache_folder(cache) / file.name
        try:
            module.locate(file, cache)
        except ConfigurationError as problem:
            size = f" ({path.stat().st_size} of {file.size} bytes)" if path.is_file() else ""
            what, _, way = str(problem).partition(": run ")
            yield error(check, what + size, f"run {way}" if way else "poseward models fetch")
        else:
            yield ok(check, f"{path} is whole ({file.size} bytes, SHA-256 as published)")


def _planned(
    check: str, package: str, module: ModuleType, backend: str, options: Mapping[str, Any]
) -> Iterator[Finding]:
    chosen = importlib.import_module(f"{package}.options").Options.from_mapping(options)
    requirements = importlib.import_module(f"{package}.requirements")
    plan = module.plan(chosen)
    for file in (*plan.there, *plan.to_fetch, *plan.user):
        path: Path = chosen.path(file.option)
        problem = requirements.file_problem(file, path)
        licence = f"[{file.licence}]"
        if problem is not None:
            yield error(check, f"{problem.what} {licence}", problem.way)
        elif file.sha256_begins and not (digest := _sha256(path)).startswith(file.sha256_begins):
            yield error(
                check,
                f"{path} has SHA-256 {digest[:12]}…, its publisher says {file.sha256_begins}…: damaged, or another",
                f"rm '{path}' && poseward models fetch {backend}",
            )
        else:
            how = f"SHA-256 begins {file.sha256_begins} as published" if file.sha256_begins else "end is there"
            yield ok(check, f"{path}: {path.stat().st_size >> 10} KB, {how} {licence}")
    if plan.user:
        names = ", ".join(str(chosen.path(file.option)) for file in plan.user)
        yield note(check, f"no command may fetch these for you, their licence asks for registration: {names}")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
