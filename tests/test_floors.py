"""The house stands as docs/architecture.md draws it: who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

from tests.paths import ROOT

PACKAGES = ("daemon", "stages", "supervisor")
FLOORS = (
    ("supervisor",),
    ("stages.records", "stages.names"),
    ("stages.protocols", "stages.settings", "stages.source", "stages.transport"),
    ("stages.results", "stages.body"),
    ("stages.backends", "stages.process"),
    ("stages.owner",),
    ("daemon.motion",),
    ("daemon.settings",),
    ("daemon.telemetry.logs",),
    ("daemon.jobs", "daemon.client", "daemon.doctor", "daemon.service"),
    ("daemon.exports", "daemon.telemetry", "daemon.retention", "daemon.drop", "daemon.run"),
    ("daemon.api",),
    ("daemon.http",),
    ("daemon.cluster",),
    ("daemon.assembly",),
    ("daemon.serve",),
    ("daemon.cli",),
)
"""From the ground up: a room may import rooms of lower floors only. ``daemon.telemetry.logs`` is how everybody speaks,
and knows nobody; the rest of its room listens to the jobs."""
MOST_LINES = 450


def modules() -> Iterator[tuple[str, ast.Module]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            yield name, ast.parse(path.read_text(encoding="utf-8"))


TREES = dict(modules())


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules of the house that a tree imports, also those that it imports late."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                yield inside if inside in TREES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] in PACKAGES)


def room_of(module: str) -> tuple[int, str]:
    """The floor and the room in which a module stands: the longest name that fits."""
    fitting = [
        (len(room), floor, room)
        for floor, rooms in enumerate(FLOORS)
        for room in rooms
        if module == room or module.startswith(f"{room}.")
    ]
    assert fitting, (
        f"{module} stands in no room that this test knows: put it into one, or draw a new one here and in docs"
    )
    _, floor, room = max(fitting)
    return floor, room


def test_nobody_imports_upwards() -> None:
    upwards = []
    for module, tree in TREES.items():
        if module in PACKAGES and module != "supervisor":
            continue
        floor, room = room_of(module)
        for imported in imports(tree):
            if imported in PACKAGES and imported != "supervisor":
                upwards.append(f"{module} imports the bare package {imported}")
                continue
            other_floor, other = room_of(imported)
            if other != room and other_floor >= floor:
                upwards.append(f"{module} imports {imported}")
    assert not upwards


def test_no_modules_import_each_other_in_a_circle() -> None:
    def at_once(tree: ast.Module) -> set[str]:
        top = ast.Module([n for n in tree.body if isinstance(n, ast.Import | ast.ImportFrom)], [])
        return set(imports(top))

    graph = {module: at_once(tree) - {module} for module, tree in TREES.items()}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_only_a_backends_folder_names_its_models() -> None:
    def strangers(module: str, backend: str) -> bool:
        return not module.startswith(f"stages.backends.{backend}")

    named = [
        f"{module} imports {imported}"
        for backend in ("blazepose", "humans4d")
        for module, tree in TREES.items()
        if strangers(module, backend)
        for imported in imports(tree)
        if imported.startswith(f"stages.backends.{backend}")
    ]
    assert not named


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_too_long_to_be_read(package: str) -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / package).rglob("*.py")}
    long = {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > MOST_LINES}
    assert not long


def test_every_room_says_what_lives_in_it() -> None:
    silent = [
        module
        for module, tree in TREES.items()
        if module.count(".") == 1 and (ROOT / module.replace(".", "/")).is_dir() and not ast.get_docstring(tree)
    ]
    assert not silent
