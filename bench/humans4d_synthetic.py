"""Synthetic stand-ins for every file of the 4D-Humans backend: right shapes, random values, small networks.

Tests and benchmarks run the real packages on them. Nothing here resembles the licensed SMPL body: the "person" is an
ellipsoid of 6,890 vertices with SMPL's joint count and file layout.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from stages.backends.humans4d.companion import phalp_config
from stages.backends.humans4d.network import import_models, read_config
from stages.backends.humans4d.options import Options
from stages.body.skeleton import JOINT_PARENTS

ROWS, COLUMNS = 65, 106
VERTICES = ROWS * COLUMNS
EMBED, DEPTH, HEADS = 64, 2, 4
"""The small ViT in HMR2's place of 1280, 32 and 16."""

HMR2_YAML = """
MODEL:
  IMAGE_SIZE: 256
  IMAGE_MEAN: [0.485, 0.456, 0.406]
  IMAGE_STD: [0.229, 0.224, 0.225]
  BACKBONE: {{TYPE: vit}}
  SMPL_HEAD:
    TYPE: transformer_decoder
    IN_CHANNELS: 2048
    TRANSFORMER_DECODER: {{depth: {layers}, heads: 8, mlp_dim: {mlp}, dim_head: 64, dropout: 0.0, emb_dropout: 0.0,
                          norm: layer, context_dim: {context}}}
SMPL: {{MODEL_PATH: data/smpl, GENDER: neutral, NUM_BODY_JOINTS: 23, JOINT_REGRESSOR_EXTRA: data/x.pkl,
       MEAN_PARAMS: data/x.npz}}
EXTRA: {{FOCAL_LENGTH: 5000}}
LOSS_WEIGHTS: {{KEYPOINTS_3D: 0.05, KEYPOINTS_2D: 0.01, GLOBAL_ORIENT: 0.001, BODY_POSE: 0.001, BETAS: 0.0005,
               ADVERSARIAL: 0.0005}}
TRAIN: {{LR: 1.0e-05, WEIGHT_DECAY: 1.0e-04}}
"""

PREDICTOR_YAML = """
configs:
  in_feat: 64
  frame_length: 24
  num_smpl_heads: 1
  mask_type_test: zero
  mask_ratio: 0.5
  ava: {num_action_classes: 80, num_valid_action_classes: 60, predict_valid: true}
  extra_feat: {enable: "", pose_shape: {dim: 229, mid_dim: 64, en_dim: 64}}
  transformer: {depth: 2, heads: 4, mlp_dim: 64, dim_head: 16, dropout: 0.1, emb_dropout: 0.0, droppath: 0.1,
                conv: {pad: 1, stride: 4}}
"""


def write_smpl(path: Path, seed: int = 0) -> None:
    """An SMPL file of smplx's layout holding an ellipsoid."""
    random = np.random.default_rng(seed)
    latitude = np.linspace(0.05, np.pi - 0.05, ROWS)[:, None]
    longitude = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)[None]
    template = np.stack(
        (
            0.3 * np.sin(latitude) * np.cos(longitude),
            np.broadcast_to(0.85 * np.cos(latitude), (ROWS, COLUMNS)),
            0.2 * np.sin(latitude) * np.sin(longitude),
        ),
        -1,
    ).reshape(-1, 3)
    row, column = np.meshgrid(np.arange(ROWS - 1), np.arange(COLUMNS), indexing="ij")
    a, b = row * COLUMNS + column, row * COLUMNS + (column + 1) % COLUMNS
    faces = np.concatenate((np.stack((a, b, a + COLUMNS), -1), np.stack((b, b + COLUMNS, a + COLUMNS), -1)))
    regressor = np.zeros((24, VERTICES))
    weights = np.zeros((VERTICES, 24))
    centres = np.linspace(5, ROWS - 6, 24)
    for joint, centre in enumerate(centres):
        ring = int(centre) * COLUMNS
        regressor[joint, ring : ring + COLUMNS] = 1 / COLUMNS
    near = np.exp(-(((np.arange(VERTICES) // COLUMNS)[:, None] - centres) ** 2) / 20)
    weights[:] = near / near.sum(1, keepdims=True)
    parents = np.array(JOINT_PARENTS, np.int64)
    content = {
        "v_template": template, "shapedirs": random.normal(0, 0.003, (VERTICES, 3, 10)),
        "posedirs": random.normal(0, 0.0005, (VERTICES, 3, 207)), "J_regressor": regressor, "weights": weights,
        "kintree_table": np.stack((parents, np.arange(24))), "f": faces.reshape(-1, 3).astype(np.uint32),
        "bs_style": "lbs", "bs_type": "lrotmin",
    }  # fmt: skip
    path.write_bytes(pickle.dumps(content, 2))


@contextmanager
def small_vit() -> Iterator[None]:
    """Let HMR2 build a small ViT, whoever builds it."""
    import_models()
    models = import_module("hmr2.models.hmr2")
    vit = import_module("hmr2.models.backbones.vit").ViT
    before = models.create_backbone

    def create(cfg: Any) -> Any:
        del cfg
        return vit(img_size=(256, 192), patch_size=16, embed_dim=EMBED, depth=DEPTH, num_heads=HEADS, ratio=1,
                   mlp_ratio=4, qkv_bias=True, drop_path_rate=0.55)  # fmt: skip

    models.create_backbone = create
    try:
        yield
    finally:
        models.create_backbone = before


def write_files(folder: Path, *, full: bool = False, seed: int = 0) -> dict[str, Any]:
    """Write everything but the detector's weights; returns the options that name it. With ``full``, HMR2 has its
    real size (2.7 GB)."""
    torch = import_module("torch")
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    write_smpl(folder / "SMPL_NEUTRAL.pkl", seed)
    extra = np.zeros((19, VERTICES))
    for joint in range(19):
        extra[joint, random.integers(0, VERTICES, 30)] = 1 / 30
    (folder / "SMPL_to_J19.pkl").write_bytes(pickle.dumps(extra, 2))
    np.savez(
        folder / "mean.npz",
        pose=np.tile([1.0, 0, 0, 0, 1.0, 0], 24), shape=np.zeros(10), cam=np.array([0.9, 0.0, 0.0]),
    )  # fmt: skip
    sizes = {"layers": 6, "mlp": 1024, "context": 1280} if full else {"layers": 1, "mlp": 64, "context": EMBED}
    (folder / "model_config.yaml").write_text(HMR2_YAML.format(**sizes))
    np.save(folder / "fmap.npy", _face_map(random))
    weights = random.random((256, 256, 3)).astype(np.float32)
    np.save(folder / "bmap.npy", weights / weights.sum(-1, keepdims=True))
    (folder / "predictor.yaml").write_text(PREDICTOR_YAML)
    np.save(folder / "mean_std.npy", np.stack((random.normal(0, 0.1, (1, 226)), 1 + random.random((1, 226)))))
    names = {
        "smpl_model": "SMPL_NEUTRAL.pkl", "joint_regressor": "SMPL_to_J19.pkl", "mean_params": "mean.npz",
        "hmr2_config": "model_config.yaml", "hmr2_checkpoint": "hmr2.ckpt", "hmar_weights": "hmar.pth",
        "texture_faces": "fmap.npy", "texture_weights": "bmap.npy", "predictor_weights": "predictor.pth",
        "predictor_config": "predictor.yaml", "predictor_mean_std": "mean_std.npy",
        "predictor_mean_params": "mean.npz",
    }  # fmt: skip
    options = {option: str(folder / name) for option, name in names.items()}
    _write_networks(options, full)
    return options


def _face_map(random: np.random.Generator) -> Any:
    faces = 2 * (ROWS - 1) * COLUMNS
    table = random.integers(0, faces, (256, 256))
    table[random.random((256, 256)) < 0.3] = -1
    return table


def _write_networks(options: dict[str, Any], full: bool) -> None:
    torch = import_module("torch")
    chosen = Options.from_mapping(options)
    config = read_config(chosen)
    with nullcontext() if full else small_vit():
        model = import_models().HMR2(config, init_renderer=False)
    head = model.smpl_head
    for layer, spread in ((head.decpose, 0.02), (head.decshape, 0.02), (head.deccam, 0.002)):
        torch.nn.init.normal_(layer.weight, std=spread)
    state = {"state_dict": model.state_dict(), "hyper_parameters": {"cfg": config},
             "pytorch-lightning_version": "2.0.0", "epoch": 35, "global_step": 1}  # fmt: skip
    torch.save(state, options["hmr2_checkpoint"])
    cfg = phalp_config(chosen)
    encoder = import_module("phalp.models.heads.encoding_head").EncodingHead(cfg=cfg, img_H=256, img_W=256)
    names = {f"hmar.encoding_head.{name}": value for name, value in encoder.state_dict().items()}
    torch.save({"model": names}, options["hmar_weights"])
    transformer = import_module("phalp.models.predictor.pose_transformer_v2").Pose_transformer_v2
    predictor = transformer(cfg, SimpleNamespace(HMAR=SimpleNamespace(smpl=None)))
    names = {f"encoder.{name}": value for name, value in predictor.encoder.state_dict().items()}
    torch.save({"state_dict": names}, options["predictor_weights"])


def small_detector(config: Any, kind: str) -> Any:
    """A detectron2 lazy ``config`` made small enough for a test, in place."""
    if kind == "vitdet":
        net = config.model.backbone.net
        net.embed_dim, net.depth, net.num_heads, net.img_size = 32, 2, 2, 256
        net.window_block_indexes = [0]
        config.model.backbone.square_pad = 256
        for head in config.model.roi_heads.box_heads:
            head.conv_dims = [32]
    resize = config.dataloader.test.mapper.augmentations[0]
    resize.short_edge_length, resize.max_size = 256, 256
    config.model.proposal_generator.post_nms_topk = [60, 30]
    return config


def write_detector(path: Path, config: Any, seed: int = 0) -> None:
    """Random weights for a detectron2 lazy ``config`` that take most things for people, as the model zoo stores
    them."""
    torch = import_module("torch")
    torch.manual_seed(seed)
    model = import_module("detectron2.config").instantiate(config.model)
    for name, value in model.named_parameters():
        if name.endswith("cls_score.bias"):
            value.data[0] += 8.0
        if name.endswith("cls_score.weight"):
            value.data *= 5.0
        if name.endswith("mask_head.predictor.weight"):
            value.data *= 100.0
    state = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "synthetic"}, 4))


_libraries: list[Any] = []


def stand_in_torchvision_operators() -> None:
    """Let torchvision work without its compiled operators, as installed beside a torch they do not fit: plain
    non-maximum suppression and RoI alignment. Call it before detectron2 is imported."""
    torch = import_module("torch")
    try:
        import_module("torchvision")
    except RuntimeError:
        import sys

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "FRAGMENT")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)
        import_module("torchvision")
    extension = import_module("torchvision.extension")
    if extension._has_ops():
        return
    import_module("torchvision.ops.boxes").nms = _suppress
    # torchvision's own Python version holds every sampling point of every box at once: tens of gigabytes.
    import_module("torchvision.ops").roi_align = _align


def _suppress(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    torch = import_module("torch")
    box_iou = import_module("torchvision.ops.boxes").box_iou
    order = scores.argsort(descending=True, stable=True)
    overlap = box_iou(boxes[order], boxes[order]) > iou_threshold
    kept: list[int] = []
    dropped = torch.zeros(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if not dropped[index]:
            kept.append(index)
            dropped |= overlap[index]
    return order[kept]


def _align(
    input: Any, boxes: Any, output_size: Any, spatial_scale: float = 1.0, sampling_ratio: int = -1,
    aligned: bool = False,
) -> Any:  # fmt: skip
    """RoI alignment (He et al. 2017): bilinear sampling is separable, so each box is two small matrix products."""
    torch = import_module("torch")
    rows, columns = output_size
    height, width = input.shape[2:]
    out = input.new_zeros((len(boxes), input.shape[1], rows, columns))
    shift = 0.5 if aligned else 0.0
    for index, (image, x0, y0, x1, y1) in enumerate(boxes.tolist()):
        left, top, right, bottom = (side * spatial_scale - shift for side in (x0, y0, x1, y1))
        down = _sampling(top, bottom, rows, height, sampling_ratio, aligned)
        over = _sampling(left, right, columns, width, sampling_ratio, aligned)
        out[index] = torch.einsum("ph,chw,qw->cpq", down.to(input), input[int(image)], over.to(input))
    return out


def _sampling(begin: float, end: float, bins: int, length: int, ratio: int, aligned: bool) -> Any:
    """Weights (bins, length) with which each bin reads each cell."""
    torch = import_module("torch")
    extent = end - begin if aligned else max(end - begin, 1.0)
    count = ratio if ratio > 0 else max(int(np.ceil(extent / bins)), 1)
    places = begin + (np.arange(bins)[:, None] + (np.arange(count) + 0.5)[None] / count) * extent / bins
    weights = np.zeros((bins, length), np.float32)
    inside = (places >= -1) & (places <= length)
    low = np.clip(np.floor(places), 0, length - 1).astype(int)
    high = np.minimum(low + 1, length - 1)
    part = np.clip(places, 0, length - 1) - low
    for target, share in ((low, 1 - part), (high, part)):
        np.add.at(weights, (np.arange(bins)[:, None], target), np.where(inside, share, 0) / count)
    return torch.from_numpy(weights)
