"""People in frames: detectron2's Cascade Mask R-CNN ViTDet-H as 4D-Humans configures it, or the RegNetY Mask R-CNN.

Configurations follow PHALP's ``setup_detectron2`` and what comes out equals its ``get_detections``; the mask head
runs for people over the threshold only, since no other mask is used.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from stages.backends.humans4d import converted, devices, rle
from stages.backends.humans4d.attention import bound_attention
from stages.backends.humans4d.crops import widen
from stages.backends.humans4d.options import Options
from stages.protocols import ConfigurationError, Report
from stages.records import Detections, Frame

PERSON = 0
"""COCO's class index of people."""
_PASTED = 8 << 20
"""Pixels of whole-frame masks that are made at once."""
_VITDET_SCORE, _REGNETY_SCORE, _REGNETY_NMS = 0.5, 0.5, 0.4


class PersonDetector:
    """Wraps a detectron2 ``GeneralizedRCNN``.

    Args:
        model: in eval mode, on the device.
        resize: detectron2's augmentation that scales a frame.
        rgb: whether the model wants RGB rather than BGR.
        report: called after each pass, and on the CPU, where one may take a minute, after each block of a ViT.
    """

    def __init__(self, model: Any, resize: Any, rgb: bool, options: Options, report: Report) -> None:
        self._torch = import_module("torch")
        self._structures = import_module("detectron2.modeling.postprocessing")
        self._transforms = import_module("detectron2.data.transforms")
        self._model = model
        self._resize = resize
        self._rgb = rgb
        self._options = options
        self._report = report
        self._passes = devices.Passes(options.frames, "frames")
        self._beside = ThreadPoolExecutor(1, "beside")
        """What the CPU does while the device computes."""

    @classmethod
    def load(cls, options: Options, report: Report) -> PersonDetector:
        """Build the configured detector and load its weights.

        Raises:
            ConfigurationError: the weights cannot be read or are another model's.
        """
        devices.prepare(options)
        report(f"building {options.detector}")
        config = vitdet_config() if options.detector == "vitdet" else regnety_config()
        lower_thresholds(config, options.follow_score)
        return cls.from_config(config, options.path(f"{options.detector}_weights"), options, report)

    @classmethod
    def from_config(cls, config: Any, weights: Path, options: Options, report: Report) -> PersonDetector:
        """The detector of a detectron2 lazy ``config`` with the ``weights`` of a file."""
        instantiate = import_module("detectron2.config").instantiate
        with devices.without_initialisation():
            model = instantiate(config.model)
        report(f"reading {weights.name}")
        half = {f"backbone.{name}" for name in devices.halved(model.backbone)}
        devices.load_state(
            model, converted.state_of(weights, options, partial(read_weights, weights)), options, report,
            source=weights, half=half, may_lack=_counts_batches, keep=partial(converted.keep, weights, options),
        )  # fmt: skip
        bound_attention(model.backbone)
        _run_backbone_in(model, options, report)
        augmentations = instantiate(config.dataloader.test.mapper.augmentations)
        resize = import_module("detectron2.data.transforms").AugmentationList(augmentations)
        rgb = config.dataloader.test.mapper.image_format == "RGB"
        if options.device == "cpu" and not options.compile:
            _report_blocks(model.backbone, report)
        return cls(model, resize, rgb, options, report)

    def detect(self, frames: Sequence[Frame]) -> list[Detections]:
        """People in each frame, best first.

        ``extra`` of a frame: ``masks``, the text of each mask (`rle`); ``size`` [H, W] of the frame; ``padded``
        (N, 4) float32, the boxes widened to 3:4; ``classes`` (N,) int64; ``index`` (N,) int64, each one's number
        among the frame's people before the small ones were dropped.
        """
        # The next frames are scaled down, and the masks of the last ones written, while the device computes.
        inputs = [self._beside.submit(self._input, frame) for frame in frames]
        found: list[Callable[[], Detections]] = []
        while len(found) < len(frames):
            rest = frames[len(found) :]
            # Frames of another size (another job's) would pad the batch, and change what is found.
            alike = len(list(takewhile(partial(_same_size, rest[0]), rest)))
            found += self._passes.run(partial(self._some, inputs[len(found) : len(found) + alike]))
            self._report("detecting", len(found) / len(frames))
        devices.trim(self._options)
        return [finish() for finish in found]

    def _some(self, prepared: Sequence[Future[dict[str, Any]]], size: int) -> list[Callable[[], Detections]]:
        """One pass over the first ``size`` of ``prepared`` frames, filled up to that number (`devices.Passes` says
        why); for the same reason the heads see one frame's proposals at a time."""
        with self._torch.inference_mode():
            inputs = [frame.result() for frame in prepared[:size]]
            images = self._model.preprocess_image([*inputs, *[inputs[-1]] * (size - len(inputs))])
            features = self._model.backbone(images.tensor)
            proposals, _ = self._model.proposal_generator(images, features, None)
            return [
                self._heads({name: feature[n : n + 1] for name, feature in features.items()}, proposals[n], own)
                for n, own in enumerate(inputs)
            ]

    def _heads(
        self, features: Mapping[str, Any], proposals: Any, own: Mapping[str, Any]
    ) -> Callable[[], Detections]:
        heads = self._model.roi_heads
        people = self._people(heads._forward_box(features, [proposals])[0])
        people = heads.forward_with_given_boxes(features, [people])[0]
        # A mask of the whole frame takes a dozen bytes a pixel while it is made: for a few people at a time.
        few = max(1, _PASTED // (own["height"] * own["width"]))
        parts = [people[start : start + few] for start in range(0, len(people), few)] or [people]
        return self._detections(
            [self._structures.detector_postprocess(part, own["height"], own["width"]) for part in parts], own
        )

    def _input(self, frame: Frame) -> dict[str, Any]:
        height, width = frame.image.shape[:2]
        scaled = self._transforms.AugInput(frame.image)
        self._resize(scaled)
        # Each channel is scaled by itself, so that they can change places afterwards, where there are fewer pixels; and
        # bytes are what travels: the model's own normalisation makes floats of them.
        channels = np.moveaxis(scaled.image[:, :, ::-1] if self._rgb else scaled.image, 2, 0)
        return {"image": self._torch.from_numpy(np.ascontiguousarray(channels)), "height": height, "width": width}

    def _people(self, instances: Any) -> Any:
        instances = instances[instances.pred_classes == PERSON]
        return instances[instances.scores > self._options.least_score]

    def _detections(self, parts: Sequence[Any], own: Mapping[str, Any]) -> Callable[[], Detections]:
        """What gives a frame's people when it is called: their masks are written meanwhile."""
        boxes = np.concatenate([part.pred_boxes.tensor.float().cpu().numpy() for part in parts])
        scores = np.concatenate([part.scores.float().cpu().numpy() for part in parts])
        classes = np.concatenate([part.pred_classes.cpu().numpy() for part in parts])
        width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        large = np.flatnonzero(~((width < self._options.min_width) | (height < self._options.min_height)))
        starts = np.cumsum([0, *(len(part) for part in parts)])
        # A part's at once: each copy waits for all that the device has to do.
        wanted = [
            part.pred_masks[large[(start <= large) & (large < end)] - start].cpu().numpy()
            for part, start, end in zip(parts, starts[:-1], starts[1:], strict=True)
        ]
        texts = [self._beside.submit(rle.encode, mask) for masks in wanted for mask in masks]

        def finish() -> Detections:
            kept = boxes[large]
            return Detections(
                kept,
                scores[large],
                {
                    "masks": [text.result() for text in texts],
                    "size": [own["height"], own["width"]],
                    "padded": np.asarray(widen(kept), np.float32).reshape(-1, 4),
                    "classes": classes[large].astype(np.int64),
                    "index": large.astype(np.int64),
                },
            )

        return finish


def _report_blocks(backbone: Any, report: Report) -> None:
    """Say after each block of a ViT that work goes on."""
    blocks = getattr(getattr(backbone, "net", None), "blocks", ())
    for number, block in enumerate(blocks, 1):
        block.register_forward_hook(partial(_say_done, report, number / len(blocks)))


def _say_done(report: Report, fraction: float, *_: Any) -> None:
    """A forward hook, whose result, if it had one, would take the place of the block's."""
    report("detecting", fraction)


def _same_size(one: Frame, other: Frame) -> bool:
    return one.image.shape == other.image.shape


def vitdet_config() -> Any:
    """Cascade Mask R-CNN with ViTDet-H: detectron2's own project configuration, rebuilt from the model zoo's common
    parts as 4D-Humans does (``configs/cascade_mask_rcnn_vitdet_h_75ep.py``), which ships with hmr2 and phalp."""
    lazy = import_module("detectron2.config").LazyConfig
    path = _beside_package("configs/cascade_mask_rcnn_vitdet_h_75ep.py")
    config = lazy.load(str(path))
    for predictor in config.model.roi_heads.box_predictors:
        predictor.test_score_thresh = _VITDET_SCORE
    return config


def lower_thresholds(config: Any, score: float) -> None:
    """Let the heads keep what scores more than ``score``, where that is above 0 and below their own threshold. What
    scores higher stays what it is: a box is suppressed by better ones only."""
    heads = config.model.roi_heads
    predictors = heads.box_predictors if "box_predictors" in heads else [heads.box_predictor]
    for predictor in predictors:
        if 0 < score < predictor.test_score_thresh:
            predictor.test_score_thresh = score


def regnety_config() -> Any:
    """The RegNetY Mask R-CNN of detectron2's new baselines."""
    zoo = import_module("detectron2.model_zoo")
    config = zoo.get_config("new_baselines/mask_rcnn_regnety_4gf_dds_FPN_400ep_LSJ.py")
    config.model.roi_heads.box_predictor.test_score_thresh = _REGNETY_SCORE
    config.model.roi_heads.box_predictor.test_nms_thresh = _REGNETY_NMS
    return config


def _beside_package(relative: str) -> Path:
    from importlib.util import find_spec

    for name in ("phalp", "hmr2"):
        spec = find_spec(name)
        for place in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(place) / relative).is_file():
                return Path(place) / relative
    raise ConfigurationError(
        f"detector vitdet: neither phalp nor hmr2 is installed with its {relative}; see docs/humans4d.md, or set "
        'detector = "regnety"'
    )


def read_weights(path: Path) -> dict[str, Any]:
    """The weights by name in a file of detectron2's model zoo (a pickle of numpy arrays) or a torch checkpoint.

    Raises:
        ConfigurationError: unreadable.
    """
    if path.suffix != ".pkl":
        return dict(devices.read_torch(path, "model"))
    try:
        with path.open("rb") as file:
            content = pickle.load(file, encoding="latin1")
    except devices.UNREADABLE as error:
        raise devices.unreadable(path, error) from error
    state = content.get("model", content) if isinstance(content, Mapping) else {}
    if not isinstance(state, Mapping) or not state:
        raise ConfigurationError(f"{path} has no weights in it: it is another file, or damaged")
    return dict(state)


def _counts_batches(name: str) -> bool:
    return name.endswith("num_batches_tracked") or name in ("pixel_mean", "pixel_std")


def _run_backbone_in(model: Any, options: Options, report: Report) -> None:
    """Run the backbone, where nearly all the time goes, in the configured precision, and the rest in fp32: boxes
    and masks at the edge of a threshold would tip otherwise."""
    backbone = model.backbone
    forward = devices.compiled(backbone.forward, options, report)
    if options.dtype == "fp32":
        backbone.forward = forward
        return

    def wrapped(images: Any) -> Any:
        with devices.autocast(options):
            features = forward(images)
        return {name: feature.float() for name, feature in features.items()}

    backbone.forward = wrapped
