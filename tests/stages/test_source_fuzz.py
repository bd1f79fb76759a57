"""A short run of `tests.stages.fuzz_sources`; the long one is ``python -m tests.stages.fuzz_sources``."""

from __future__ import annotations

from pathlib import Path

from tests.stages.fuzz_sources import KINDS, by_themselves, through_a_pipeline


def test_damaged_files_of_all_kinds_end_with_a_name_or_with_every_frame_accounted_for(tmp_path: Path) -> None:
    ends, wrong = by_themselves(tmp_path, 4 * len(KINDS), seed=3)
    assert not wrong, "\n".join(wrong)
    assert len(ends) >= 4, "the accidents are of too few kinds to say anything"


def test_a_pipeline_outlives_them(tmp_path: Path) -> None:
    ends, wrong = through_a_pipeline(tmp_path, 2 * len(KINDS), seed=4)
    assert not wrong, "\n".join(wrong)
    assert sum(ends.values()) == 2 * len(KINDS)
    assert ends["done"] >= 3
