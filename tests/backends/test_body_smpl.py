"""A user's own SMPL file: its surface is posed; a hostile pickle is refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from stages.body.model import load_body
from stages.body.skeleton import JOINT_PARENTS
from stages.protocols import ConfigurationError

VERTICES = 60


def smpl_content(sparse: bool) -> dict[str, object]:
    """An SMPL model of 60 random vertices, with the keys and shapes of the real one."""
    rng = np.random.default_rng(11)
    regressor = rng.uniform(0, 1, (24, VERTICES))
    regressor /= regressor.sum(axis=1, keepdims=True)
    weights = rng.uniform(0, 1, (VERTICES, 24))
    parents = np.array(JOINT_PARENTS, np.int64) % (1 << 32)
    return {
        "v_template": rng.normal(0, 0.5, (VERTICES, 3)),
        "f": rng.integers(0, VERTICES, (80, 3)).astype(np.uint32),
        "weights": weights / weights.sum(axis=1, keepdims=True),
        "J_regressor": scipy.sparse.csc_matrix(regressor) if sparse else regressor,
        "shapedirs": rng.normal(0, 0.01, (VERTICES, 3, 10)),
        "posedirs": rng.normal(0, 0.01, (VERTICES, 3, 207)),
        "kintree_table": np.stack([parents, np.arange(24)]),
    }


def test_a_pickled_model_is_posed(tmp_path: Path) -> None:
    content = smpl_content(sparse=True)
    path = tmp_path / "SMPL_NEUTRAL.pkl"
    path.write_bytes(pickle.dumps(content, protocol=2))
    body = load_body({"smpl_model": str(path)})
    pose = np.repeat(np.eye(3, dtype=np.float32)[None, None], 24, axis=1)
    betas = np.ones((1, 10), np.float32)
    vertices, joints = body.surface(pose, betas)
    shaped = content["v_template"] + content["shapedirs"] @ np.ones(10)  # type: ignore[operator]
    regressed = content["J_regressor"] @ shaped  # type: ignore[operator]
    assert vertices[0] == pytest.approx(shaped - regressed[0], abs=1e-5)
    assert joints[0] == pytest.approx(regressed - regressed[0], abs=1e-5)


def test_an_npz_gives_the_same_body(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(smpl_content(sparse=True), protocol=2))
    np.savez(tmp_path / "a.npz", **smpl_content(sparse=False))  # type: ignore[arg-type]
    first, second = (load_body({"smpl_model": str(tmp_path / name)}) for name in ("a.pkl", "a.npz"))
    assert first.joints_rest == pytest.approx(second.joints_rest, abs=1e-6)
    assert (first.template == second.template).all()


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps({"v_template": 1}), pickle.dumps(Hostile())]
)
def test_anything_else_is_refused_by_name(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "model.pkl"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"model\.pkl"):
        load_body({"smpl_model": str(path)})
    assert not (tmp_path / "pwned").exists()


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/smpl\.pkl"):
        load_body({"smpl_model": "/nowhere/smpl.pkl"})
