"""The runbook is complete: every error name that the code can give, every alert, every setting that it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from daemon.settings.loading import leaves
from tests.paths import ROOT

NAMED = {"ApiError", "StoreError", "ImageFailed", "Refused", "SourceError", "ClientError", "ServiceError"}
FAILING = {"_fail", "_fail_all", "_refuse"}
"""Methods that take something and an error's name."""
NAME = re.compile(r"[a-z]+(-[a-z]+)*")
MADE = {"decode-crashed", "detect-crashed", "mesh-crashed", "track-crashed", "state-unwritable", "cannot-resume"}
"""Names that are put together, or given by a variable."""


def error_names(folder: Path) -> set[str]:
    """The stable names that the code of a folder gives to errors."""
    found: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            texts: list[ast.expr | None] = []
            if isinstance(node, ast.Call):
                called = node.func
                name = called.id if isinstance(called, ast.Name) else getattr(called, "attr", "")
                texts += node.args[:1] if name in NAMED else node.args[:3] if name in FAILING else []
            elif isinstance(node, ast.Dict):
                pairs = zip(node.keys, node.values, strict=True)
                texts += [value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "error"]
            for text in texts:
                for one in (text.body, text.orelse) if isinstance(text, ast.IfExp) else (text,):
                    if isinstance(one, ast.Constant) and isinstance(one.value, str) and NAME.fullmatch(one.value):
                        found.add(one.value)
    return found


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def test_every_error_name_is_explained(page: str) -> None:
    names = error_names(ROOT / "daemon") | error_names(ROOT / "stages") | MADE
    assert len(names) > 60 and {"unreadable-video", "disk-full", "queue-full", "no-daemon"} <= names
    assert not {name for name in {*names, "cannot-write-results"} if f"`{name}`" not in page}


def test_every_name_of_the_protocol_is_explained(page: str) -> None:
    protocol = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    table = protocol.split("## Errors")[1].split("## ")[0]
    names = {
        name for row in table.splitlines() if row.startswith("| `") for name in re.findall(r"`([a-z-]+)`", row)
    }
    names -= {"v", "retry", "timeout", "hello"}
    assert len(names) > 15
    assert not {name for name in names if f"`{name}`" not in page}


def test_every_alert_has_its_row(page: str) -> None:
    alerts = re.findall(r"- alert: (\w+)", (ROOT / "docs" / "alerts.yml").read_text(encoding="utf-8"))
    assert len(alerts) > 10 and len(set(alerts)) == len(alerts)
    rows = re.findall(r"^\| `(Poseward\w+)` \|", page, re.MULTILINE)
    assert sorted(rows) == sorted(alerts)


def test_the_settings_that_it_names_exist(page: str) -> None:
    sections = "stages|results|daemon|drop|api|metrics|retention"
    named = set(re.findall(rf"`((?:{sections})\.[a-z_.]+)\b", page))
    known = set(leaves())
    # stages.restart.window and the like stand whole; in code, stages.faults.
    unknown = {name for name in named if name not in known and not any(key.startswith(name) for key in known)}
    assert len(named) > 20 and not unknown, unknown
