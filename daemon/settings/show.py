"""The configuration for people: every key explained, and a commented file to begin with.

The explanations are the attribute docstrings of the settings' dataclasses, read from their source: there is
no second text that could go out of date.
"""

from __future__ import annotations

import ast
import functools
import inspect
import json
import sys
import textwrap
from collections.abc import Mapping
from typing import Any

from daemon.settings.loading import DEFAULT, Leaf, Loaded, Settings, leaves

_WIDTH = 100
_UNEXPLAINED = {
    "stages.deadlines.importing": "Longest time in seconds without progress while importing.",
    "stages.deadlines.loading": "Longest time in seconds without progress while loading models.",
    "stages.deadlines.warming": "Longest time in seconds without progress while warming up.",
    "stages.deadlines.working": "Longest time in seconds that one batch may take.",
    "stages.restart.base_delay": "Seconds before the first restart.",
    "stages.restart.factor": "Each further restart waits this many times longer.",
    "stages.restart.max_delay": "Longest wait in seconds before a restart.",
    "stages.restart.max_restarts": "More deaths than this within the window open the circuit.",
}
"""Fields that their dataclass explains together, in its own docstring."""


def explain(leaf: Leaf) -> str:
    """What a key is for, in one or two sentences."""
    own = _docstrings(leaf.owner).get(leaf.key.rpartition(".")[2], "")
    return own.replace("``", "`") or _UNEXPLAINED.get(leaf.key, "")


@functools.cache
def _docstrings(owner: type) -> Mapping[str, str]:
    """The string that follows each field in the class's source."""
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
    found: dict[str, str] = {}
    name = ""
    for node in body.body if isinstance(body, ast.ClassDef) else []:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif name and isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            found[name] = " ".join(str(node.value.value).split())
            name = ""
        else:
            name = ""
    return found


def rows(loaded: Loaded) -> list[dict[str, Any]]:
    """One map a key: ``key``, ``value`` (JSON-able), ``origin``, ``help``."""
    known = leaves()
    found = []
    for key in loaded.keys():  # noqa: SIM118  (not a mapping)
        leaf = known.get(key)
        value = loaded.value(key)
        found.append(
            {
                "key": key,
                "value": list(value) if isinstance(value, tuple) else value,
                "origin": loaded.origins.get(key, DEFAULT),
                "help": explain(leaf) if leaf else "",
            }
        )
    return found


def toml_value(value: Any) -> str:
    """A value as it is written in the file."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    return json.dumps(str(value))


def template() -> str:
    """A configuration file in which every key stands, explained and commented out at its default."""
    standard = Loaded(Settings(), {})
    lines = [
        "# Configuration of Poseward. Every key stands here at its default; remove the # to change one.",
        "# `poseward config show` prints what is in force, and where each value came from.",
    ]
    section = ""
    tables: list[tuple[Leaf, str]] = []
    known = leaves()
    # TOML wants the keys of a table before the tables in it.
    for leaf in sorted(known.values(), key=lambda item: _section_order(item, list(known))):
        if leaf.table:
            tables.append((leaf, explain(leaf)))
            continue
        where = leaf.key.rpartition(".")[0]
        if where != section:
            section = where
            lines += ["", f"[{section}]"]
        lines += textwrap.wrap(explain(leaf), _WIDTH, initial_indent="# ", subsequent_indent="# ")
        value = standard.value(leaf.key)
        if value == sys.executable:
            lines.append('# python = "/path/to/venv/bin/python"   (default: the interpreter that runs poseward)')
        else:
            lines.append(f"# {leaf.key.rpartition('.')[2]} = {toml_value(value)}")
    for leaf, text in tables:
        lines += ["", f"[{leaf.key}]"]
        lines += textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ")
        lines.append("# name = value")
    return "\n".join(lines) + "\n"


def _section_order(leaf: Leaf, keys: list[str]) -> tuple[int, int]:
    section = leaf.key.rpartition(".")[0]
    return min(i for i, key in enumerate(keys) if key.rpartition(".")[0] == section), keys.index(leaf.key)
