"""The 4D-Humans backend against upstream's own functions, on the real packages with synthetic weights.

Skipped where torch, hmr2, phalp or detectron2 cannot be imported. Upstream's hard-coded ``.cuda()`` is made to do
nothing, and its neural_renderer, a CUDA extension, gives the depth image of our z-buffer.
"""

from __future__ import annotations

import importlib
import os
import pickle
import re
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stages.backends.humans4d import rle
from stages.backends.humans4d.crops import demo_crop, mask_crop, track_crop, widen
from stages.backends.humans4d.options import Options
from stages.records import Detections, Frame, People
from tests.paths import SHARED

pytestmark = pytest.mark.humans4d

torch = pytest.importorskip("torch", reason="needs torch")

from bench import humans4d_synthetic as synthetic  # noqa: E402

torch.set_num_threads(1)


def _import(name: str) -> Any:
    synthetic.stand_in_torchvision_operators()
    try:
        return importlib.import_module(name)
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"needs {name}: {error}")


def quiet(detail: str, fraction: float | None = None) -> None:
    del detail, fraction


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    for name in ("hmr2.models", "phalp.models.predictor"):
        _import(name)
    return {**synthetic.write_files(tmp_path_factory.mktemp("weights")), "crops": 4}


@pytest.fixture
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self, *a, **k: self)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self, *a, **k: self)


@pytest.fixture
def image() -> Any:
    """A picture with structure at every scale."""
    random = np.random.default_rng(1)
    coarse = random.integers(0, 255, (12, 20, 3)).astype(np.uint8)
    import cv2

    smooth = cv2.resize(coarse, (960, 540), interpolation=cv2.INTER_CUBIC)
    return np.clip(smooth.astype(int) + random.integers(-20, 20, smooth.shape), 0, 255).astype(np.uint8)


BOXES = np.array(
    [[100.5, 60.25, 260, 500], [300, 20, 640.75, 420.5], [820, 300, 955, 539], [-20, -10, 200, 300]], np.float32
)


def scripted(image: Any, boxes: Any = BOXES) -> Detections:
    masks = []
    for x0, y0, x1, y1 in boxes.clip(0).astype(int):
        mask = np.zeros(image.shape[:2], bool)
        mask[y0 + 5 : y1 - 5, x0 + 5 : x1 - 5] = True
        masks.append(rle.encode(mask))
    count = len(boxes)
    return Detections(
        boxes,
        np.linspace(0.99, 0.85, count).astype(np.float32),
        {
            "masks": masks, "size": list(image.shape[:2]), "padded": np.asarray(widen(boxes), np.float32),
            "classes": np.zeros(count, np.int64), "index": np.arange(count),
        },
    )  # fmt: skip


# --- crops -----------------------------------------------------------------------------------------------------


def test_boxes_are_widened_as_upstream_widens_them(files: dict[str, Any]) -> None:
    utils = _import("hmr2.datasets.utils")
    expected = utils.expand_bbox_to_aspect_ratio(BOXES, (192, 256))
    np.testing.assert_array_equal(widen(BOXES), expected)


def test_plain_crops_equal_phalps(image: Any) -> None:
    dataset = _import("phalp.utils.utils_dataset")
    mask = rle.decode(scripted(image).extra["masks"][0], *image.shape[:2])
    for box in np.asarray(widen(BOXES), np.float32):
        centre, side = (box[2:] + box[:2]) / 2, np.max(box[2:] - box[:2])
        ours = track_crop(image, centre, side)
        np.testing.assert_array_equal(ours, dataset.process_image(image, centre, 1.0 * side).numpy())
        three = np.repeat((mask.astype(int) * 255)[:, :, None], 3, 2).astype(np.uint8)
        expected = dataset.process_mask(three, centre, 1.0 * side)[0].numpy()
        np.testing.assert_array_equal(mask_crop(mask, centre, side), expected)


def test_blurred_crops_equal_those_of_the_demo(image: Any, files: dict[str, Any]) -> None:
    dataset = _import("hmr2.datasets.vitdet_dataset")
    network = _import("stages.backends.humans4d.network")
    big = np.concatenate([np.concatenate([image] * 3, 1)] * 3, 0)
    boxes = np.concatenate((BOXES * 3, [[40, 30, 90, 200]])).astype(np.float32)
    config = network.read_config(Options.from_mapping(files)).clone()
    config.defrost()
    config.MODEL.BBOX_SHAPE = [192, 256]
    theirs = dataset.ViTDetDataset(config, big, boxes)
    for number in range(len(boxes)):
        item = theirs[number]
        ours = demo_crop(big, item["box_center"], item["box_size"])
        # Both blurs sum in double precision, in another order: a last bit of a normalised float32.
        np.testing.assert_allclose(ours, item["img"], atol=2e-5)


# --- mesh ------------------------------------------------------------------------------------------------------


@pytest.fixture
def regressor(files: dict[str, Any]) -> Any:
    mesh = _import("stages.backends.humans4d.mesh")
    with synthetic.small_vit():
        return mesh.HmrRegressor.load(Options.from_mapping(files), quiet)


def upstream_hmr2(files: dict[str, Any]) -> Any:
    network = _import("stages.backends.humans4d.network")
    config = network.read_config(Options.from_mapping(files))
    with synthetic.small_vit():
        model = _import("hmr2.models").HMR2.load_from_checkpoint(
            files["hmr2_checkpoint"], strict=False, cfg=config, init_renderer=False, map_location="cpu",
            weights_only=False,
        )  # fmt: skip
    return model.eval()


def test_hmr2_equals_upstreams_forward(regressor: Any, files: dict[str, Any]) -> None:
    crops = torch.from_numpy(np.random.default_rng(3).normal(0, 1, (3, 3, 256, 256)).astype(np.float32))
    with torch.no_grad():
        theirs = upstream_hmr2(files)({"img": crops})
        ours = regressor._hmr2(crops)
    pose = torch.cat((theirs["pred_smpl_params"]["global_orient"], theirs["pred_smpl_params"]["body_pose"]), 1)
    for mine, expected in (
        (ours.pose, pose), (ours.betas, theirs["pred_smpl_params"]["betas"]), (ours.camera, theirs["pred_cam"]),
        (ours.translation, theirs["pred_cam_t"]), (ours.vertices, theirs["pred_vertices"]),
        (ours.keypoints, theirs["pred_keypoints_3d"]),
    ):  # fmt: skip
        np.testing.assert_allclose(mine.numpy(), expected.numpy(), atol=1e-6, rtol=1e-6)
    assert float(theirs["pred_vertices"].std()) > 0.05


def upstream_phalp(files: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    """PHALP with 4D-Humans' predictor, without detectors and visualizer: only what `__init__` would download or
    render is left out."""
    texture = _import("stages.backends.humans4d.texture")
    _import("phalp.trackers.PHALP")
    script = _track_script()
    phalp_hmar = _import("phalp.models.hmar.hmar")
    smpl = _import("phalp.utils.smpl_utils").SMPL
    from omegaconf import OmegaConf

    cfg = OmegaConf.structured(script.Human4DConfig)
    cfg.device, cfg.render.enable = "cpu", False
    cfg.pose_predictor.config_path = files["predictor_config"]
    cfg.pose_predictor.mean_std = files["predictor_mean_std"]
    cfg.MODEL.SMPL_HEAD.SMPL_MEAN_PARAMS = files["predictor_mean_params"]
    hmar = phalp_hmar.HMAR.__new__(phalp_hmar.HMAR)
    torch.nn.Module.__init__(hmar)
    hmar.cfg = cfg
    hmar.encoding_head = phalp_hmar.EncodingHead(cfg=cfg, img_H=256, img_W=256)
    hmar.load_state_dict({n[5:]: v for n, v in torch.load(files["hmar_weights"])["model"].items()}, strict=False)
    hmar.smpl = smpl(
        model_path=files["smpl_model"], gender="neutral", model_type="smpl", num_body_joints=23,
        joint_regressor_extra=files["joint_regressor"],
    )  # fmt: skip
    sampler = script.HMR2023TextureSampler.__new__(script.HMR2023TextureSampler)
    torch.nn.Module.__init__(sampler)
    sampler.cfg, sampler.model, sampler.hmar_old, sampler.smpl = cfg, upstream_hmr2(files), hmar, hmar.smpl
    sampler.register_buffer("tex_bmap", torch.tensor(np.load(files["texture_weights"]), dtype=torch.float))
    sampler.register_buffer("tex_fmap", torch.tensor(np.load(files["texture_faces"]), dtype=torch.long))
    sampler.img_size, sampler.focal_length = 256, 5000.0

    def depth(vertices: Any, faces: Any, **kwargs: Any) -> Any:
        return texture.depth_image(vertices, faces[0].long())

    sampler.neural_renderer = depth
    phalp = script.HMR2_4dhuman.__new__(script.HMR2_4dhuman)
    torch.nn.Module.__init__(phalp)
    phalp.cfg, phalp.HMAR, phalp.device = cfg, sampler, torch.device("cpu")
    phalp.pose_predictor = _import("phalp.models.predictor").Pose_transformer_v2(cfg, phalp)
    # Not by its load_weights, which leaves the pose encoder at random values (see load_predictor).
    state = torch.load(files["predictor_weights"])["state_dict"]
    phalp.pose_predictor.encoder.load_state_dict({n.removeprefix("encoder."): v for n, v in state.items()})
    return phalp.eval()


def _track_script() -> Any:
    """4D-Humans' track.py, which is a script beside the package and not a module of it."""
    if "humans4d_track_script" in sys.modules:
        return sys.modules["humans4d_track_script"]
    path = Path(_import("hmr2").__file__ or "").parents[1] / "track.py"
    if not path.is_file():
        path = Path(next(iter(importlib.import_module("hmr2").__path__))).parent / "track.py"
    if not path.is_file():
        pytest.skip("needs 4D-Humans' track.py beside the package hmr2 (a checkout)")
    spec = importlib.util.spec_from_file_location("humans4d_track_script", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["humans4d_track_script"] = module
    spec.loader.exec_module(module)
    return module


def test_people_equal_phalps_human_features(
    regressor: Any, files: dict[str, Any], image: Any, no_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    track = _import("stages.backends.humans4d.track")
    phalp = upstream_phalp(files, monkeypatch)
    found = scripted(image)
    height, width = image.shape[:2]
    masks = np.stack([rle.decode(m, height, width) for m in found.extra["masks"]])
    side = max(height, width)
    theirs = phalp.get_human_features(
        image, masks, found.boxes, found.extra["padded"], found.scores, "a/b.jpg", found.extra["classes"], 0,
        [height, width, side, (side - width) // 2, (side - height) // 2], [1] * 4, [[]] * 4, list(range(4)),
    )  # fmt: skip
    people = regressor.regress([Frame(image, 0, 0.0)], [found])[0]
    ours = [track.PhalpTracker.load(Options.from_mapping(files))._detection(data)
            for data in track.detection_data(people, 0)]  # fmt: skip
    assert len(ours) == len(theirs) == 4
    assert sum((d.detection_data["uv"][3] > 0).sum() for d in theirs) > 1000
    for mine, expected in zip(ours, theirs, strict=True):
        a, b = mine.detection_data, expected.detection_data
        for name in ("bbox", "center", "scale", "xy", "conf", "time", "class_name", "extra_data"):
            np.testing.assert_allclose(a[name], b[name], rtol=1e-6, err_msg=name)
        assert_same(a["mask"], b["mask"], "mask")
        for name in (
            "bbox",
            "center",
            "pose",
            "camera",
            "camera_bbox",
            "3d_joints",
            "2d_joints",
            "loca",
            "uv",
            "appe",
        ):
            assert (a[name].dtype, a[name].shape) == (b[name].dtype, b[name].shape), name
        for name in ("conf", "size", "scale", "class_name", "annotations"):
            assert type(a[name]) is type(b[name]) and a[name] == pytest.approx(b[name]), name
        for name in ("pose", "camera_bbox", "3d_joints", "2d_joints"):
            np.testing.assert_allclose(a[name], b[name], atol=2e-6, rtol=2e-6, err_msg=name)
        for name in ("camera", "loca"):
            np.testing.assert_allclose(a[name], b[name], atol=1e-5, rtol=2e-6, err_msg=name)
        for name in ("global_orient", "body_pose", "betas"):
            np.testing.assert_allclose(a["smpl"][name], b["smpl"][name], atol=1e-6)
        # A texel on the edge of being hidden may fall to either side by the last bit of a vertex.
        differing = ((a["uv"][3] > 0) != (b["uv"][3] > 0)).mean()
        assert differing < 1e-4
        same = (a["uv"][3] > 0) == (b["uv"][3] > 0)
        np.testing.assert_allclose(a["uv"][:, same], b["uv"][:, same], atol=1e-4)
        np.testing.assert_allclose(a["appe"], b["appe"], atol=1e-3)


def test_the_depth_image_is_what_rays_meet() -> None:
    """Against the rays through the pixels' centres and the triangles: the comparison above takes it for granted."""
    texture = _import("stages.backends.humans4d.texture")
    size, focal = 48, 60.0
    corners = np.random.default_rng(11).uniform((-0.5, -0.5, 1.0), (0.5, 0.5, 3.0), (2, 12, 3, 3))
    corners[1, 0] += (0, 0, 200)  # too far away
    corners[1, 1, 0, 2] = -1.0  # in part behind the camera
    vertices = torch.tensor(corners.reshape(2, 36, 3), dtype=torch.float32)
    image, odd = texture.depth_image(vertices, torch.arange(36).reshape(12, 3), focal, size).numpy()
    steps = (np.arange(size) + 0.5 - size / 2) / focal
    rays = np.stack(np.broadcast_arrays(steps[None, :], steps[:, None], 1.0), -1)
    depth, sure = np.full((size, size), 100.0), np.ones((size, size), bool)
    for a, b, c in corners[0]:
        edges = np.stack((b - a, c - a), 1)
        normal = np.cross(*edges.T)
        reach = (a @ normal) / (rays @ normal)
        shares = (rays * reach[..., None] - a) @ np.linalg.pinv(edges).T
        least = np.minimum(shares.min(-1), 1 - shares.sum(-1))
        sure &= np.abs(least) > 1e-3  # on an edge it may fall to either side
        depth = np.where((least > 0) & (reach > 0), np.minimum(depth, reach), depth)
    assert 0.2 < (depth < 100).mean() < 0.95 and sure.mean() > 0.9
    np.testing.assert_allclose(image[sure], depth[sure], rtol=1e-4)
    assert np.isfinite(odd).all() and (odd > 0.1).all() and (odd <= 100).all() and (odd < 100).any()


def test_a_person_does_not_depend_on_the_crowd(regressor: Any, image: Any) -> None:
    together = regressor.regress([Frame(image, 0, 0.0)] * 2, [scripted(image), scripted(image, BOXES[1:2])])
    alone = regressor.regress([Frame(image, 0, 0.0)], [scripted(image, BOXES[1:2])])[0]
    crowd = together[0]
    np.testing.assert_array_equal(together[1].vertices, alone.vertices)
    np.testing.assert_array_equal(crowd.vertices[1], alone.vertices[0])
    np.testing.assert_array_equal(crowd.pose[1], alone.pose[0])
    np.testing.assert_array_equal(crowd.camera[1], alone.camera[0])
    assert crowd.extra["uv"][1] == alone.extra["uv"][0]


def test_vertices_and_camera_project_to_the_joints(regressor: Any, image: Any) -> None:
    people = regressor.regress([Frame(image, 0, 0.0)], [scripted(image)])[0]
    height, width = image.shape[:2]
    focal = 5000 / 256 * max(width, height)
    placed = people.joints_3d + people.camera[:, None]
    flat = focal * placed[..., :2] / placed[..., 2:] + np.array([width / 2, height / 2])
    np.testing.assert_allclose(flat, people.joints_2d, atol=0.02)
    assert np.abs(people.joints_3d[:, 0]).max() == 0


def test_half_precision_weights_are_kept_once_and_stay_close(files: dict[str, Any], image: Any) -> None:
    mesh = _import("stages.backends.humans4d.mesh")
    results = {}
    for dtype in ("fp32", "bf16"):
        with synthetic.small_vit():
            loaded = mesh.HmrRegressor.load(Options.from_mapping({**files, "dtype": dtype}), quiet)
        results[dtype] = loaded.regress([Frame(image, 0, 0.0)], [scripted(image)])[0]
        weight = loaded._hmr2._model.backbone.blocks[0].mlp.fc1.weight
        assert weight.dtype == (torch.bfloat16 if dtype == "bf16" else torch.float32)
    turns = results["bf16"].pose
    np.testing.assert_allclose(turns @ turns.swapaxes(-1, -2), np.broadcast_to(np.eye(3), turns.shape), atol=1e-5)
    np.testing.assert_allclose(results["bf16"].vertices, results["fp32"].vertices, atol=0.02)


DAMAGED = {
    "a page": b"<!DOCTYPE html><html>404 not found</html>",
    "text": b"hello\n",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12\n",
    "zeros": bytes(5000),
    "a list": pickle.dumps([1]),
    "a number": pickle.dumps(1),
    "cut": pickle.dumps({"state_dict": {"a": np.zeros(1000)}}, 4)[:-300],
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_file_that_is_no_model_is_named(content: bytes, files: dict[str, Any], tmp_path: Path) -> None:
    """And is no crash to be tried again: each file of the three stages that the user may name."""
    from stages.protocols import ConfigurationError, find_backend

    backend = find_backend("humans4d")
    requirements = _import("stages.backends.humans4d.requirements")
    detect = _import("stages.backends.humans4d.detect")
    for option in ("hmr2_checkpoint", "smpl_model", "joint_regressor", "hmar_weights", "predictor_weights"):
        bad = tmp_path / Path(files[option]).name
        bad.write_bytes(content)
        stage = "track" if option == "predictor_weights" else "mesh"
        options = {**files, option: str(bad)}
        others = [p for p in requirements.problems(stage, Options.from_mapping(options)) if str(bad) not in p.what]
        if others:
            pytest.skip(str(others[0]))
        # A regressor that is another object shows by the checkpoint, which does not go with it.
        named = "" if option == "joint_regressor" else re.escape(str(bad))
        with pytest.raises(ConfigurationError, match=named), synthetic.small_vit():
            if stage == "mesh":
                backend.mesh(options, quiet)
            else:
                assert backend.load_tracking is not None
                backend.load_tracking(options, quiet)
    for name in ("model.pkl", "model.pth"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigurationError, match=name):
            detect.read_weights(tmp_path / name)


# --- detect ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_backbone_gives_the_same(files: dict[str, Any], image: Any) -> None:
    found = []
    for compiled in (False, True):
        with synthetic.small_vit():
            mesh = _import("stages.protocols").find_backend("humans4d").mesh({**files, "compile": compiled}, quiet)
            found.append(mesh.regress([Frame(image, 0, 0.0)], [scripted(image)])[0])
    np.testing.assert_allclose(found[1].vertices, found[0].vertices, atol=1e-5)
    np.testing.assert_allclose(found[1].camera, found[0].camera, rtol=1e-5)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_vitdet_compiles_in_one_piece(tmp_path: Path, image: Any) -> None:
    _import("detectron2.modeling")
    detect = _import("stages.backends.humans4d.detect")
    counters = _import("torch._dynamo.utils").counters
    config = synthetic.small_detector(detect.vitdet_config(), "vitdet")
    synthetic.write_detector(tmp_path / "model.pkl", config)
    counters.clear()
    found = []
    for compiled in (False, True):
        options = Options.from_mapping({"min_score": 0.8, "compile": compiled})
        detector = detect.PersonDetector.from_config(config, tmp_path / "model.pkl", options, quiet)
        found += detector.detect([Frame(image, 0, 0.0)])
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert len(found[0]) == len(found[1]) >= 2
    np.testing.assert_allclose(found[1].boxes, found[0].boxes, atol=2e-3)


@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_detections_equal_phalps(
    kind: str, tmp_path: Path, image: Any, no_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _import("detectron2.modeling")
    detect = _import("stages.backends.humans4d.detect")
    upstream = _import("phalp.utils.utils_detectron2")
    make = detect.vitdet_config if kind == "vitdet" else detect.regnety_config
    try:
        config = synthetic.small_detector(make(), kind)
    except (FileNotFoundError, RuntimeError) as error:
        pytest.skip(f"needs detectron2's model zoo configurations: {error}")
    weights = tmp_path / "model.pkl"
    synthetic.write_detector(weights, config)
    config.train.init_checkpoint = str(weights)
    theirs = upstream.DefaultPredictor_Lazy(config)
    options = Options.from_mapping({"detector": kind, "frames": 2, "min_score": 0.8})
    ours = detect.PersonDetector.from_config(config, weights, options, quiet)
    frames = [Frame(image, 0, 0.0), Frame(np.ascontiguousarray(image[:, ::-1]), 1, 0.1)]
    results = ours.detect(frames)
    dropped = 0
    for frame, mine in zip(frames, results, strict=True):
        instances = theirs(frame.image)["instances"]
        instances = instances[instances.pred_classes == 0]
        instances = instances[instances.scores > 0.8]
        boxes = instances.pred_boxes.tensor.numpy()
        size = boxes[:, 2:] - boxes[:, :2]
        large = ~((size[:, 0] < 50) | (size[:, 1] < 100))
        dropped += int((~large).sum())
        assert large.sum() >= 2
        np.testing.assert_array_equal(mine.extra["index"], np.flatnonzero(large))
        np.testing.assert_allclose(mine.boxes, boxes[large], atol=2e-3)
        np.testing.assert_allclose(mine.scores, instances.scores.numpy()[large], atol=1e-5)
        masks = instances.pred_masks.numpy()[large]
        height, width = frame.image.shape[:2]
        for text, mask in zip(mine.extra["masks"], masks, strict=True):
            assert (rle.decode(text, height, width) != mask).mean() < 1e-4


@pytest.mark.parametrize("kind", ["vitdet", "regnety"])
def test_the_detectors_are_configured_as_phalp_configures_them(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PHALP's ``setup_detectron2`` itself, of which only the networks are left out."""
    upstream = _import("phalp.trackers.PHALP")
    detect = _import("stages.backends.humans4d.detect")
    from stages.backends.humans4d.weights import FILES

    built: list[Any] = []
    monkeypatch.setattr(
        upstream, "DefaultPredictor_Lazy", lambda config: built.append(config) or SimpleNamespace(metadata={})
    )
    chosen = SimpleNamespace(detector={"vitdet": "vitdet", "regnety": "maskrcnn"}[kind])
    upstream.PHALP.setup_detectron2(
        SimpleNamespace(cfg=SimpleNamespace(phalp=chosen), setup_detectron2_with_RPN=lambda: None)
    )
    (theirs,) = built
    ours = detect.vitdet_config() if kind == "vitdet" else detect.regnety_config()
    assert plain(ours.model) == plain(theirs.model)
    for name in ("augmentations", "image_format"):
        assert plain(ours.dataloader.test.mapper[name]) == plain(theirs.dataloader.test.mapper[name])
    assert theirs.train.init_checkpoint == next(file.url for file in FILES if file.option == f"{kind}_weights")


def plain(config: Any) -> str:
    """A part of a configuration as text, in which the same function has the same name each time it is made."""
    from omegaconf import OmegaConf

    content = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    return re.sub(r" at 0x[0-9a-f]+", "", repr(content))


def test_no_options_are_those_of_track_py(files: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    from stages.backends.humans4d.companion import phalp_config
    from stages.backends.humans4d.crops import ASPECT, SIZE

    theirs = OmegaConf.structured(_track_script().Human4DConfig)
    options = Options.from_mapping({})
    ours = phalp_config(options)
    for name, value in vars(ours.phalp).items():
        assert value == theirs.phalp[name], name
    for name, value in vars(ours.pose_predictor).items():
        assert value == theirs.pose_predictor[name], name
    assert options.detector == theirs.phalp.detector and options.detect_shots == theirs.detect_shots
    assert (options.min_score, options.min_width, options.min_height) == (
        theirs.phalp.low_th_c, theirs.phalp.small_w, theirs.phalp.small_h,
    )  # fmt: skip
    assert str(options.predictor_weights) == theirs.pose_predictor.weights_path
    assert str(options.hmar_weights) == theirs.hmr.hmar_path
    assert ours.SMPL.NUM_BODY_JOINTS == theirs.SMPL.NUM_BODY_JOINTS
    assert ours.MODEL.SMPL_HEAD.SMPL_MEAN_PARAMS == theirs.MODEL.SMPL_HEAD.SMPL_MEAN_PARAMS
    assert tuple(theirs.expand_bbox_shape) == ASPECT and theirs.render.res == SIZE
    assert theirs.EXTRA.FOCAL_LENGTH == _import("stages.backends.humans4d.texture").FOCAL


# --- the whole pipeline ------------------------------------------------------------------------------------------


def test_a_real_clip_end_to_end(files: dict[str, Any], tmp_path: Path) -> None:
    """Twelve frames of a real video through the three stages and over the wire, by the backend's own factories."""
    clip = SHARED / "runner.mp4"
    if not clip.is_file():
        pytest.skip("needs ../shared/data/runner.mp4")
    _import("detectron2.modeling")
    av = pytest.importorskip("av")
    wire = pytest.importorskip("stages.transport.wire")
    detect = _import("stages.backends.humans4d.detect")
    requirements = _import("stages.backends.humans4d.requirements")
    import joblib

    from stages.backends.humans4d.pickle import KEYS, write_tracks_pickle
    from stages.protocols import find_backend

    config = synthetic.small_detector(detect.vitdet_config(), "vitdet")
    weights = tmp_path / "model.pkl"
    synthetic.write_detector(weights, config)
    options = {**files, "vitdet_weights": str(weights), "frames": 3}
    problems = requirements.problems("detect", Options.from_mapping(options))
    if problems:
        pytest.skip(str(problems[0]))
    detector = detect.PersonDetector.from_config(config, weights, Options.from_mapping(options), quiet)
    backend = find_backend("humans4d")
    with synthetic.small_vit():
        mesh = backend.mesh(options, quiet)
    with av.open(str(clip)) as container:
        pictures = [
            picture.to_ndarray(format="bgr24")
            for _, picture in zip(range(12), container.decode(video=0), strict=False)
        ]
    height, width = pictures[0].shape[:2]
    tracker = backend.tracker(options, width, height, 30.0)
    frames = [Frame(picture, index, index / 30) for index, picture in enumerate(pictures)]
    records = []
    for start in range(0, 12, 3):
        batch = frames[start : start + 3]
        found = detector.detect(batch)
        found = [
            wire.decode_detections(wire.unpack_value(wire.pack_value(wire.encode_detections(f)))) for f in found
        ]
        assert all(len(f) for f in found)
        # The random detector sees dozens of people: a few do.
        for one in found:
            one.boxes, one.scores = one.boxes[:3], one.scores[:3]
            one.extra = {n: v if n == "size" else v[:3] for n, v in one.extra.items()}
        for frame, people in zip(batch, mesh.regress(batch, found), strict=True):
            sent = wire.decode_people(wire.unpack_value(wire.pack_value(wire.encode_people(people))))
            records += tracker.update(frame.index, frame.time, sent)
    records += tracker.finish()
    assert [record.frame for record in records] == list(range(12))
    assert any(record.tracks for record in records)
    write_tracks_pickle(tmp_path / "tracks.pkl", records)
    stored = joblib.load(tmp_path / "tracks.pkl")
    assert len(stored) == 12 and all(tuple(frame) == KEYS for frame in stored.values())
    header = backend.header(options, width, height, 30.0)
    assert header.faces.max() == synthetic.VERTICES - 1
    track = next(t for r in records for t in r.tracks)
    vertices, joints = backend.body(options).surface(track.pose[None], track.betas[None])
    np.testing.assert_allclose(vertices[0], track.vertices, atol=1e-4)
    np.testing.assert_allclose(joints[0], track.joints_3d, atol=1e-4)


# --- track -----------------------------------------------------------------------------------------------------


FRAMES = 64


def scenario(frame: int, seed: int = 5) -> People:
    """Three people who walk, cross and are hidden for a while, with the features that HMR2 and PHALP would give."""
    texture = _import("stages.backends.humans4d.texture")
    mesh = _import("stages.backends.humans4d.mesh")
    height, width = 540, 960
    rows = []
    for person in range(3):
        fixed = np.random.default_rng(1000 * seed + person)
        moving = np.random.default_rng((seed, person, frame))
        hidden = (person == 1 and 20 <= frame < 29) or (person == 2 and (frame < 6 or frame % 17 == 0))
        base_turns = fixed.normal(0, 1, (24, 3, 3))
        look = fixed.normal(0, 0.2, (3, 256, 256)).astype(np.float32)
        seen = fixed.random((256, 256)) < 0.3
        if hidden or frame == 40:
            continue
        turns = np.linalg.qr(base_turns + moving.normal(0, 0.02, base_turns.shape))[0].astype(np.float32)
        x = (150 + 9.0 * frame, 800 - 8.0 * frame, 400 + 40 * np.sin(frame / 9))[person]
        box = np.array([x - 60, 90, x + 60, 450], np.float32) + moving.normal(0, 1, 4).astype(np.float32)
        uv = np.zeros((4, 256, 256), np.float32)
        uv[3] = np.where(seen & (moving.random((256, 256)) < 0.9), 1, -1)
        uv[:3] = np.where(uv[3] > 0, look + moving.normal(0, 0.01, look.shape), 0)
        rows.append((box, turns, fixed.normal(0, 1, 10).astype(np.float32), uv, fixed.normal(0, 5, 4096), person))
    if not rows:
        return People.empty()
    count = len(rows)
    boxes = np.stack([row[0] for row in rows])
    padded = np.asarray(widen(boxes), np.float32)
    extent, centre = padded[:, 2:] - padded[:, :2], (padded[:, 2:] + padded[:, :2]) / 2
    camera = np.tile(np.array([[0.9, 0.0, 0.1]], np.float32), (count, 1))
    where = mesh.full_translation(camera, centre, extent, width, height)
    joints = np.random.default_rng(7).normal(0, 0.3, (count, 45, 3)).astype(np.float32)
    joints[:, 44] = 0
    flat = mesh.project(joints, where).reshape(count, -1)
    pose, betas = np.stack([row[1] for row in rows]), np.stack([row[2] for row in rows])
    placed = where / np.array([1, 1, 200], np.float32)
    mask = np.zeros((height, width), bool)
    mask[100:440, 50:90] = True
    packed = [texture.PackedTexture.pack(row[3]) for row in rows]
    return People(
        boxes=boxes, scores=np.linspace(0.99, 0.9, count).astype(np.float32), camera=where, pose=pose, betas=betas,
        joints_3d=joints[:, :24], joints_2d=flat.reshape(count, 45, 2)[:, :24] * width,
        vertices=np.zeros((count, 10, 3), np.float32),
        extra={
            "appe": np.stack([row[4] for row in rows]).astype(np.float32),
            "pose": np.concatenate((pose.reshape(count, -1), betas, placed), 1),
            "loca": np.concatenate((flat, where, where, where), 1), "uv": [[p.seen, p.colours] for p in packed],
            "center": centre, "scale": extent, "camera": where, "camera_bbox": camera, "3d_joints": joints,
            "2d_joints": flat, "masks": [rle.encode(mask)] * count, "size": [height, width],
            "classes": np.zeros(count, np.int64), "index": np.arange(count),
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def script_of_frames() -> list[People]:
    _import("hmr2.models")
    return [scenario(frame) for frame in range(FRAMES)]


def run_upstream(
    files: dict[str, Any],
    script: list[People],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    render: bool,
    shots: frozenset[int],
) -> dict[str, Any]:
    """PHALP.track() itself, with scripted detections instead of networks, and nothing that draws what is rendered."""
    track = _import("stages.backends.humans4d.track")
    phalp = upstream_phalp(files, monkeypatch)
    paths = [f"video/{frame + 1:06d}.jpg" for frame in range(len(script))]
    phalp.cfg.video.output_dir = str(folder)
    phalp.cfg.render.enable = render
    phalp.visualizer = SimpleNamespace(reset_render=lambda size: None, render_video=lambda frame: (None, None))
    phalp.get_list_of_shots = lambda frames: sorted(shots)
    detection = _import("phalp.external.deep_sort_.detection").Detection
    phalp.io_manager = SimpleNamespace(
        get_frames_from_source=lambda: {"list_of_frames": paths, "additional_data": {}, "video_name": "clip"},
        read_frame=lambda path: np.zeros((540, 960, 3), np.uint8),
        save_video=lambda *a, **k: None,
        close_video=lambda: None,
    )
    phalp.get_detections = lambda *a: ([],) * 7
    phalp.run_additional_models = lambda *a: []

    def features(image: Any, *rest: Any) -> Any:
        data = track.detection_data(script[rest[6]], rest[6])
        for one in data:
            del one["poseward"]
            one.update(img_path=paths[rest[6]], img_name=paths[rest[6]].split("/")[-1])
        return [detection(one) for one in data]

    phalp.get_human_features = features
    result = phalp.track()
    assert result is not None, "upstream swallowed an error, see above"
    import joblib

    stored: dict[str, Any] = joblib.load(result[1])
    return stored


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    assert type(ours) is type(theirs), f"{where}: {type(ours)}, upstream has {type(theirs)}"
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs) or set(ours) == set(theirs), where
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(theirs, list):
        assert isinstance(ours, list) and len(ours) == len(theirs), where
        for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(theirs, np.ndarray):
        assert isinstance(ours, np.ndarray) and ours.shape == theirs.shape and ours.dtype == theirs.dtype, where
        np.testing.assert_allclose(ours, theirs, atol=1e-6, err_msg=where)
    else:
        assert ours == theirs, where


@pytest.mark.parametrize(
    ("render", "shots", "length"),
    [(True, frozenset(), FRAMES), (False, frozenset({2, 12}), 20)],
    ids=["as-it-is", "with-cuts"],
)
def test_identities_and_the_pickle_equal_upstreams_over_64_frames(
    render: bool, shots: frozenset[int], length: int, files: dict[str, Any], script_of_frames: list[People],
    tmp_path: Path, no_cuda: None, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """track.py as it is, which renders and so keeps more in its file; and without, but with cuts."""
    track = _import("stages.backends.humans4d.track")
    import joblib

    from stages.backends.humans4d.pickle import KEYS, write_tracks_pickle
    from stages.records import Header
    from stages.results.stream import ResultWriter, read_results

    script = script_of_frames[:length]
    theirs = run_upstream(files, script, tmp_path, monkeypatch, render=render, shots=shots)
    tracker = track.PhalpTracker.load(Options.from_mapping(files))
    header = Header(960, 540, 30.0, "humans4d", ("root",), (-1,), np.zeros((0, 3), np.int32))
    writer = ResultWriter.create(tmp_path / "frames.msgpack", header)
    for frame, people in enumerate(script):
        new = tracker._fold(frame, frame / 30, people, shot=frame in shots)
        assert frame < 4 or len(new) == 1
        for record in new:
            writer.append(record)
    for record in tracker.finish():
        writer.append(record)
    writer.close()
    with read_results(tmp_path / "frames.msgpack") as results:
        records = list(results)
    assert [record.frame for record in records] == list(range(length))
    write_tracks_pickle(tmp_path / "tracks.pkl", records, lambda frame: f"video/{frame + 1:06d}.jpg")
    ours = joblib.load(tmp_path / "tracks.pkl")
    assert list(ours) == list(theirs)
    identities = {identity for frame in theirs.values() for identity in frame["tid"]}
    assert len(identities) >= 3
    assert any(0 not in [t] for f in theirs.values() for t in f["tracked_time"] if t), "nobody was ever hidden"
    assert {frame["time"] for frame in theirs.values() if frame["shot"]} == shots
    for path, frame in theirs.items():
        assert tuple(ours[path]) == KEYS
        assert tuple(frame) == tuple(key for key in KEYS if render or key not in RENDERED)
        assert_same({key: ours[path][key] for key in frame}, frame, path)


RENDERED = ("appe", "loca", "pose")
"""What only a track.py that renders, as it does unless told otherwise, leaves in its file."""


@pytest.mark.parametrize("seed", [0, 2, 3])
def test_cuts_are_those_of_phalps_list_of_shots(seed: int, tmp_path: Path) -> None:
    """PHALP looks through the whole file, as JPEG and MPEG-4, with PySceneDetect. Some have a flash within a
    shot; where its frames are at the edge of the criterion, as in a fast pan, the two may choose neighbours."""
    upstream = _import("phalp.trackers.PHALP").PHALP
    _import("scenedetect")
    import cv2

    from stages.backends.humans4d.shots import ShotDetector, thumbnail

    random = np.random.default_rng(seed)
    pictures, detector, cuts = [], ShotDetector(), []
    for scene in range(4):
        look = cv2.resize(
            random.integers(0, 255, (6, 9, 3)).astype(np.uint8), (480, 270), interpolation=cv2.INTER_CUBIC
        )
        length, pan = int(random.choice([8, 14, 15, 16, 20])), int(random.integers(0, 2))
        for number in range(length):
            flash = 120 * (seed % 3 == 0 and scene == 1 and number == length // 2)
            shown = np.roll(look, number * pan, 1).astype(int) + random.integers(-4, 5, look.shape) + flash
            pictures.append(np.clip(shown, 0, 255).astype(np.uint8))
    paths = [str(tmp_path / f"{number:06d}.jpg") for number in range(len(pictures))]
    for path, picture in zip(paths, pictures, strict=True):
        cv2.imwrite(path, picture)
        cuts += detector.push(thumbnail(picture))
    cuts += detector.finish()
    (tmp_path / "_TMP").mkdir()
    video = SimpleNamespace(output_dir=str(tmp_path))
    wanted = upstream.get_list_of_shots(
        SimpleNamespace(cfg=SimpleNamespace(detect_shots=True, video=video, video_seq="clip")), paths
    )
    assert len(wanted) >= 1
    assert [number for number, cut in enumerate(cuts) if cut] == [int(number) for number in wanted]


def test_a_restored_tracker_goes_on_identically(files: dict[str, Any], script_of_frames: list[People]) -> None:
    track = _import("stages.backends.humans4d.track")
    wire = pytest.importorskip("stages.transport.wire")
    options = Options.from_mapping(files)

    def flat(records: list[Any]) -> bytes:
        rows = []
        for r in records:
            rows.append([r.frame, [[t.id, t.box, t.camera, t.pose, t.detected, t.extra] for t in r.tracks]])
        return bytes(wire.pack_value(rows))

    whole = track.PhalpTracker.load(options)
    expected = [
        r for f, p in enumerate(script_of_frames[:22]) for r in whole.update(f, f / 30, p)
    ] + whole.finish()
    first = track.PhalpTracker.load(options)
    records = [r for f, p in enumerate(script_of_frames[:13]) for r in first.update(f, f / 30, p)]
    state = first.snapshot()
    # The one that was saved goes on too, and must not disturb its successor.
    first.update(13, 0.8, script_of_frames[3])
    second = track.PhalpTracker.load(options)
    second.restore(state)
    for frame in range(13, 22):
        records += second.update(frame, frame / 30, script_of_frames[frame])
    records += second.finish()
    assert flat(records) == flat(expected)


def test_two_trackers_of_one_process_do_not_share_state(
    files: dict[str, Any], script_of_frames: list[People]
) -> None:
    track = _import("stages.backends.humans4d.track")
    options = Options.from_mapping(files)
    one, two = (track.PhalpTracker.load(options) for _ in range(2))
    for frame in range(8):
        one.update(frame, 0.0, script_of_frames[frame])
    assert two.finish() == []
    for frame in range(8):
        two.update(frame, 0.0, script_of_frames[frame])
    assert {t.id for r in two.finish() for t in r.tracks} == {t.id for r in one.finish() for t in r.tracks}


def test_the_answers_to_phalps_tracker_equal_its_own(
    files: dict[str, Any], script_of_frames: list[People], no_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    companion = _import("stages.backends.humans4d.companion")
    track = _import("stages.backends.humans4d.track")
    phalp = upstream_phalp(files, monkeypatch)
    ours = companion.Companion.load(Options.from_mapping(files), quiet)
    past = [track.detection_data(script_of_frames[f], f)[0] for f in (1, 1, 1, 2, 3, 5, 9)]
    other = [track.detection_data(script_of_frames[f], f)[1] for f in (0, 1, 2, 3, 4, 5, 6)]
    pose = np.array([[d["pose"] for d in one] for one in (past, other)])
    loca = np.array([[d["loca"] for d in one] for one in (past, other)])
    when = np.array([[d["time"] for d in one] for one in (past, other)])
    ahead = np.array([0, 60])
    with torch.no_grad():
        expected = phalp.forward_for_tracking([pose.copy(), pose, when], "P", ahead)
    np.testing.assert_allclose(ours.forward_for_tracking([pose, pose, when], "P", ahead), expected, atol=1e-6)
    expected = phalp.forward_for_tracking([loca.copy(), when, when], "L", ahead).numpy()
    np.testing.assert_allclose(ours.forward_for_tracking([loca, when, when], "L", ahead), expected, rtol=1e-6)
    np.testing.assert_array_equal(
        ours.get_pose_distance(pose[0], pose[1]), phalp.get_pose_distance(pose[0], pose[1])
    )
    maps = [[data["uv"] for data in one] for one in (past, other)]
    maps[0][1] = maps[0][1].astype(np.float64)  # as PHALP's tracks have them after their first mix
    for mine, own, found in zip(ours.texture_codes(*maps), *maps, strict=True):
        theirs = phalp.get_uv_distance(own.copy(), found.copy())
        for code, expected in zip(mine, theirs[:2], strict=True):
            np.testing.assert_allclose(code, expected, atol=1e-7)


class Eager:
    """PHALP's own metric, every pair by its own ``get_uv_distance``: what `LazyMetric` must not differ from."""

    def __init__(self, metric: Any, phalp: Any) -> None:
        self._metric = metric
        self._phalp = phalp
        self.matching_threshold = metric.matching_threshold

    def partial_fit(self, *features: Any) -> None:
        self._metric.partial_fit(*features)

    def distance(self, features: Any, targets: Any, dims: Any = None, phalp_tracker: Any = None) -> Any:
        costs: Any = self._metric.distance(features, targets, dims, self._phalp)
        return costs


@pytest.mark.parametrize(("lookback", "length"), [(1, 32), (3, 11)])
def test_textures_that_are_not_encoded_change_nothing(
    lookback: int,
    length: int,
    files: dict[str, Any],
    script_of_frames: list[People],
    no_cuda: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Identities, and all that the records hold, over people who come, go, cross and are hidden."""
    track = _import("stages.backends.humans4d.track")
    phalp = upstream_phalp(files, monkeypatch)
    options = Options.from_mapping({**files, "past_lookback": lookback})
    results, encoded = [], []
    for eager in (False, True):
        tracker = track.PhalpTracker.load(options)
        if eager:
            tracker._tracker.metric = Eager(tracker._tracker.metric._upstream, phalp)
        ask = tracker._companion.texture_codes
        tracker._companion.texture_codes = lambda t, f, ask=ask: encoded.append(len(t)) or ask(t, f)
        records = [r for f, p in enumerate(script_of_frames[:length]) for r in tracker.update(f, f / 30, p)]
        results.append(records + tracker.finish())
    pairs = sum(len(script_of_frames[f]) * len(script_of_frames[f + 1]) for f in range(length - 1))
    assert 0 < sum(encoded) < 0.7 * pairs * lookback
    assert any(len(record.tracks) == 3 for record in results[0])
    for ours, theirs in zip(*results, strict=True):
        assert [t.id for t in ours.tracks] == [t.id for t in theirs.tracks]
        for mine, their in zip(ours.tracks, theirs.tracks, strict=True):
            np.testing.assert_array_equal(mine.box, their.box)
            np.testing.assert_array_equal(mine.pose, their.pose)


def unsure(people: People, person: int, score: float) -> People:
    """The same people, one of whom the detector is less sure of."""
    scores = people.scores.copy()
    scores[person] = score
    return replace(people, scores=scores)


def test_who_is_less_sure_goes_on_a_track_and_begins_none(
    files: dict[str, Any], script_of_frames: list[People]
) -> None:
    """Frames of a person without a mesh of his own, with the option and without; and nobody comes of it."""
    track = _import("stages.backends.humans4d.track")
    script = script_of_frames[7:17]
    unseen = range(6, 9)  # after all tracks are confirmed, the second person scores 0.4
    script = [unsure(people, 1, 0.4) if frame in unseen else people for frame, people in enumerate(script)]
    script = [unsure(people, 2, 0.3) for people in script]  # and the third one always less than that
    without, identities = {}, {}
    for score in (0.0, 0.25):
        options = Options.from_mapping({**files, "follow_score": score})
        tracker = track.PhalpTracker.load(options)
        records = []
        for frame, people in enumerate(script):
            # As the detector leaves them out.
            kept = np.flatnonzero(people.scores > options.least_score)
            records += tracker.update(frame, frame / 30, pick(people, kept))
            if frame == 7:
                state = tracker.snapshot()
                tracker = track.PhalpTracker.load(options)
                tracker.restore(state)
        records += tracker.finish()
        identities[score] = {found.id for record in records for found in record.tracks}
        boxes = {
            record.frame: [found.box.tolist() for found in record.tracks if found.detected] for record in records
        }
        without[score] = [f for f, people in enumerate(script) if people.boxes[1].tolist() not in boxes[f]]
    assert without == {0.0: list(unseen), 0.25: []}
    assert len(identities[0.0]) == len(identities[0.25]) == 2


def pick(people: People, kept: Any) -> People:
    rows = {
        name: getattr(people, name)[kept]
        for name in ("boxes", "scores", "camera", "pose", "betas", "joints_3d", "joints_2d", "vertices")
    }
    extra = {
        name: value if name == "size" else [value[n] for n in kept] if isinstance(value, list) else value[kept]
        for name, value in people.extra.items()
    }
    return People(**rows, extra=extra)


@pytest.mark.parametrize("length", [1, 2, 4, 5])
@pytest.mark.parametrize("cut", [None, 2], ids=["whole", "restored"])
def test_what_is_too_short_to_confirm_a_track_keeps_everyone(
    length: int, cut: int | None, files: dict[str, Any], script_of_frames: list[People]
) -> None:
    track = _import("stages.backends.humans4d.track")
    options = Options.from_mapping(files)
    script = script_of_frames[7 : 7 + length]  # all three are there
    tracker = track.PhalpTracker.load(options)
    records = []
    for frame, people in enumerate(script):
        if frame == cut:
            state = tracker.snapshot()
            tracker = track.PhalpTracker.load(options)
            tracker.restore(state)
        records += tracker.update(frame, frame / 30, people)
    records += tracker.finish()
    assert [record.frame for record in records] == list(range(length))
    assert [len(record.tracks) for record in records] == [len(people) for people in script]
    assert len({track.id for record in records for track in record.tracks}) == 3
    for record, people in zip(records, script, strict=True):
        found = np.stack([track.box for track in sorted(record.tracks, key=lambda track: track.id)])
        np.testing.assert_array_equal(found, people.boxes)
        assert all(track.detected for track in record.tracks)


def test_upstreams_loader_leaves_the_pose_encoder_random(
    files: dict[str, Any], no_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason why `load_predictor` reads the names itself; if upstream mends it, ours should follow."""
    phalp = upstream_phalp(files, monkeypatch)
    fresh = _import("phalp.models.predictor").Pose_transformer_v2(phalp.cfg, phalp)
    before = fresh.encoder.pose_shape_encoder[0].weight.clone()
    fresh.load_weights(files["predictor_weights"])
    assert torch.equal(fresh.encoder.pose_shape_encoder[0].weight, before)
    assert not torch.equal(phalp.pose_predictor.encoder.pose_shape_encoder[0].weight, before)


def test_importing_the_track_stage_loads_neither_detector_nor_hmr2(files: dict[str, Any]) -> None:
    import subprocess

    code = (
        "import sys; import stages.backends.humans4d.track as t\n"
        "from stages.backends.humans4d.options import Options\n"
        f"t.PhalpTracker.load(Options.from_mapping({files!r}))\n"
        "print([m for m in ('detectron2', 'hmr2', 'pytorch_lightning', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_the_mesh_stage_needs_nothing_that_draws(files: dict[str, Any]) -> None:
    """pyrender's PyOpenGL cannot be imported where there is no EGL, as on a server or a fresh WSL."""
    import subprocess

    code = (
        "import os, sys; sys.modules.update(dict.fromkeys(('pyrender', 'OpenGL', 'neural_renderer')))\n"
        "from bench import humans4d_synthetic as synthetic; synthetic.stand_in_torchvision_operators()\n"
        "from stages.protocols import find_backend\n"
        "with synthetic.small_vit():\n"
        f"    find_backend('humans4d').mesh({files!r}, lambda *told: None)\n"
        "print(sys.modules.get('pyrender'), os.environ.get('PYOPENGL_PLATFORM'))"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYOPENGL_PLATFORM"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=kept)
    if "ConfigurationError" in done.stderr and "no package" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "None None"


@pytest.fixture(autouse=True)
def _stub_neural_renderer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if importlib.util.find_spec("neural_renderer") is None:
        monkeypatch.setitem(sys.modules, "neural_renderer", ModuleType("neural_renderer"))
    yield
