"""The 4D-Humans backend on a device that is not the CPU, without one: see `tests.backends.other_device`.

What computes on CUDA must bring everything there and everything back; one tensor forgotten on the CPU is an error in
the first frame of every user with a GPU, and none in any test on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stages.backends.humans4d.options import Options
from stages.records import People
from tests.backends.test_humans4d_memory import frames, package, people_in, quiet, same

pytestmark = pytest.mark.humans4d

torch = pytest.importorskip("torch", reason="needs torch")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    package("torchvision")
    if not package("torchvision.extension")._has_ops():
        pytest.skip("needs torchvision's own operators: those that stand in for them mix devices")
    try:
        other = package("tests.backends.other_device")
    except AttributeError as error:
        pytest.skip(f"needs a torch with Python backends: {error}")
    # A tensor that says it lives elsewhere cannot be an inference tensor.
    monkeypatch.setattr(torch, "inference_mode", torch.no_grad)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", torch.backends.cudnn.deterministic)
    with other.Present(), other.Lists():
        yield other.NAME


def test_the_device_refuses_what_cuda_refuses(device: str) -> None:
    here, there = torch.ones(3), torch.ones(3).to(device)
    assert there.device.type == device and (there + 1).device.type == device
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises((TypeError, RuntimeError), match="numpy"):
        there.numpy()
    assert (there + there).cpu().numpy().tolist() == [2, 2, 2]


@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_detect(kind: str, device: str, tmp_path: Path) -> None:
    package("detectron2.modeling")
    detect = package("stages.backends.humans4d.detect")
    from bench import humans4d_synthetic as synthetic

    config = synthetic.small_detector(
        detect.vitdet_config() if kind == "vitdet" else detect.regnety_config(), kind
    )
    synthetic.write_detector(tmp_path / "weights.pkl", config)
    options = Options.from_mapping(
        {"detector": kind, "frames": 2, "min_width": 8, "min_height": 8, "min_score": 0.6}
    )
    found = []
    for where in ("cpu", device):
        chosen = replace(options, device=where)
        detector = detect.PersonDetector.from_config(config, tmp_path / "weights.pkl", chosen, quiet)
        assert {value.device.type for value in detector._model.state_dict().values()} == {where}
        found.append(detector.detect(frames(3)))
    assert sum(map(len, found[0])) > 5
    assert all(same(here, there) for here, there in zip(*found, strict=True))


def test_mesh_and_track(device: str, tmp_path: Path) -> None:
    for name in ("hmr2.models", "phalp.models.predictor", "phalp.external.deep_sort_.tracker"):
        package(name)
    from bench import humans4d_synthetic as synthetic
    from stages.backends.humans4d.mesh import HmrRegressor
    from stages.backends.humans4d.track import PhalpTracker

    options = Options.from_mapping({**synthetic.write_files(tmp_path), "crops": 3, "n_init": 3})
    some = frames(8)
    people: list[list[People]] = []
    records = []
    for where in ("cpu", device):
        chosen = replace(options, device=where)
        with synthetic.small_vit():
            regressor = HmrRegressor.load(chosen, quiet)
        people.append(regressor.regress(some, [people_in(frame) for frame in some]))
        tracker = PhalpTracker.load(chosen)
        made = []
        for frame, found in zip(some, people[0], strict=True):
            made += tracker.update(frame.index, frame.time, found)
            tracker.restore(tracker.snapshot())
        records.append(made + tracker.finish())
    for here, there in zip(*people, strict=True):
        assert len(here) == 2
        for name in ("vertices", "pose", "betas", "camera", "joints_2d"):
            assert getattr(here, name).tobytes() == getattr(there, name).tobytes(), name
        assert here.extra["appe"].tobytes() == there.extra["appe"].tobytes()
        assert here.extra["uv"] == there.extra["uv"]
    assert [[track.id for track in record.tracks] for record in records[0]] == [
        [track.id for track in record.tracks] for record in records[1]
    ]
    assert all(len(record.tracks) == 2 for record in records[0])
