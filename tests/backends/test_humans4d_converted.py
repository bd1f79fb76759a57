"""Copies of checkpoints in a stage's own precision: the same results, and never those of another file."""

from __future__ import annotations

import importlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.backends.humans4d import converted
from stages.backends.humans4d.devices import load_state
from stages.backends.humans4d.options import Options

pytestmark = pytest.mark.humans4d

torch = pytest.importorskip("torch", reason="needs torch")


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


class Reader:
    """A checkpoint, and how often it was read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times = 0
        self.write(1.0)

    def write(self, value: float) -> None:
        weights = {
            "weight": np.full((3, 4), value, np.float32) / 3,
            "bias": np.zeros(3, np.float32),
            "more": np.ones(9),
        }
        self.path.write_bytes(pickle.dumps(weights))

    def read(self) -> dict[str, Any]:
        self.times += 1
        found: dict[str, Any] = pickle.loads(self.path.read_bytes())
        return found

    def load(self, options: Options) -> Any:
        model = torch.nn.Linear(4, 3)
        load_state(
            model, converted.state_of(self.path, options, self.read), options, quiet, source=self.path,
            half={"weight"}, may_lack=lambda name: False,
            keep=lambda placed: converted.keep(self.path, options, placed),
        )  # fmt: skip
        return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: Any, other: Any) -> bool:
    return set(one) == set(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_second_start_reads_the_copy_and_has_the_same_weights(dtype: str, tmp_path: Path) -> None:
    reader = Reader(tmp_path / "model.pkl")
    options = Options.from_mapping({"dtype": dtype, "converted": True})
    plain = reader.load(Options.from_mapping({"dtype": dtype}))
    assert sorted(tmp_path.iterdir()) == [reader.path], "only where the options want it"
    first, second = reader.load(options), reader.load(options)
    assert reader.times == 2
    assert same(plain, first) and same(plain, second)
    assert plain["weight"].dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.pkl", f"model.pkl.poseward-{dtype}"}
    # Another precision has a copy of its own.
    reader.load(Options.from_mapping({"dtype": "fp16", "converted": True}))
    assert reader.times == 3


def test_a_copy_of_another_file_is_made_anew(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = Reader(tmp_path / "model.pkl")
    options = Options.from_mapping({"converted": True})
    before = reader.load(options)
    reader.write(2.0)
    os.utime(reader.path, ns=(1, 1))
    after = reader.load(options)
    assert torch.equal(after["weight"], 2 * before["weight"])
    assert "it is of another file" in capfd.readouterr().err
    assert same(reader.load(options), after) and reader.times == 2


@pytest.mark.parametrize("damage", [b"", b"PK not an archive", "cut"])
def test_a_damaged_copy_is_made_anew(damage: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    reader = Reader(tmp_path / "model.pkl")
    options = Options.from_mapping({"converted": True})
    before = reader.load(options)
    copy = converted.copy_of(reader.path, options)
    copy.write_bytes(copy.read_bytes()[:-200] if damage == "cut" else damage)
    assert same(reader.load(options), before) and reader.times == 2
    assert "is not used" in capfd.readouterr().err
    assert same(reader.load(options), before) and reader.times == 2


def test_where_no_copy_can_be_written_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    reader = Reader(tmp_path / "model.pkl")

    def full(content: Any, path: str) -> None:
        Path(path).write_bytes(b"a beginning")
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left")

    monkeypatch.setattr(torch, "save", full)
    loaded = reader.load(Options.from_mapping({"converted": True}))
    assert float(loaded["weight"][0, 0]) > 0
    assert "was not written" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == [reader.path]


def test_a_stage_starts_from_its_copies(tmp_path: Path) -> None:
    """HMR2 itself: what it says of a crop is the same, and the checkpoint is not read any more."""
    from bench import humans4d_synthetic as synthetic

    synthetic.stand_in_torchvision_operators()
    for name in ("hmr2.models", "phalp.models.predictor"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            pytest.skip(f"needs {name}: {error}")
    network = importlib.import_module("stages.backends.humans4d.network")
    options = {**synthetic.write_files(tmp_path), "dtype": "bf16"}
    crops = torch.from_numpy(np.random.default_rng(0).normal(0, 1, (2, 3, 256, 256)).astype(np.float32))
    found = []
    with synthetic.small_vit(), torch.inference_mode():
        for wanted in (False, True, True):
            model = network.Hmr2.load(Options.from_mapping({**options, "converted": wanted}), quiet)
            found.append(model(crops))
    assert converted.copy_of(Path(options["hmr2_checkpoint"]), Options.from_mapping(options)).is_file()
    for name in ("pose", "betas", "vertices", "keypoints"):
        for other in found[1:]:
            assert torch.equal(getattr(found[0], name), getattr(other, name)), name
