"""The versions that a stage says it runs."""

from __future__ import annotations

import importlib.metadata
import json
from dataclasses import replace
from pathlib import Path

import pytest

from stages.owner.jobs import JobDone
from stages.process.versions import versions
from tests.stages.harness import FAST, Run, write_squares


def distribution(folder: Path, name: str, version: str, direct_url: str | None = None) -> None:
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if direct_url is not None:
        (info / "direct_url.json").write_text(direct_url)


def test_what_came_from_a_repository_is_told_by_its_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "6ec79656a23c33237c724742ca2a0ec00b398b53"
    url = {"url": "https://example.org/x.git", "vcs_info": {"vcs": "git", "commit_id": commit}}
    distribution(tmp_path, "of_a_repository", "0.0.0", json.dumps(url))
    distribution(tmp_path, "of_the_index", "1.2")
    distribution(tmp_path, "of_a_folder", "3.4", json.dumps({"url": "file:///x", "dir_info": {}}))
    distribution(tmp_path, "damaged", "5", "[")
    monkeypatch.syspath_prepend(tmp_path)
    found = versions(("of_a_repository", "of_the_index", "of_a_folder", "damaged", "not_there"))
    assert found.pop("numpy") == importlib.metadata.version("numpy")
    found = {name: version for name, version in found.items() if not name.startswith("opencv")}
    assert found == {
        "of_a_repository": "0.0.0 (6ec79656a23c)", "of_the_index": "1.2", "of_a_folder": "3.4", "damaged": "5",
    }  # fmt: skip


def test_a_jobs_outcome_has_the_versions_of_its_stages(tmp_path: Path) -> None:
    with Run(replace(FAST)) as run:
        run.work(write_squares(tmp_path / "clip.mp4", frames=6), tmp_path / "job", "job")
        ended = run.finish("job")
    assert isinstance(ended, JobDone)
    assert ended.outcome.versions["numpy"] == importlib.metadata.version("numpy")
