"""HMR2 without its renderers: crops in, SMPL parameters and surfaces out (Goel et al. 2023)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from stages.backends.humans4d import converted, devices
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.texture import FOCAL
from stages.protocols import ConfigurationError, Report

Tensor = Any

_JOINTS = 24
_MARGIN = 32
"""Columns of a square crop that the ViT does not see, on either side."""


@dataclass(frozen=True)
class Bodies:
    """What HMR2 says of B crops, as float32 tensors on the device, metres.

    ``pose`` (B, 24, 3, 3), ``betas`` (B, 10), ``camera`` (B, 3) weak perspective (s, tx, ty), ``translation`` (B, 3)
    in front of the crop's camera, ``vertices`` (B, V, 3), ``joints`` (B, 24, 3) of SMPL, ``keypoints`` (B, 44, 3) in
    HMR2's own order (25 of OpenPose, 19 regressed); all in SMPL's frame, not relative to the root.
    """

    pose: Tensor
    betas: Tensor
    camera: Tensor
    translation: Tensor
    vertices: Tensor
    joints: Tensor
    keypoints: Tensor


class Hmr2:
    """An ``hmr2.models.HMR2`` in eval mode, on the device."""

    def __init__(self, model: Any, options: Options, report: Report) -> None:
        self._torch = import_module("torch")
        self._base = import_module("smplx").SMPLLayer.forward
        self._regress = import_module("smplx.lbs").vertices2joints
        self._model = model
        self._backbone = devices.compiled(model.backbone, options, report)
        self._options = options

    @property
    def faces(self) -> Any:
        """The body's triangles (F, 3)."""
        return np.asarray(self._model.smpl.faces)

    @classmethod
    def load(cls, options: Options, report: Report) -> Hmr2:
        """Build HMR2 by its configuration and load the checkpoint.

        Equal to ``load_hmr2`` of 4D-Humans, without its renderers, its discriminator, and its downloads.

        Raises:
            ConfigurationError: a file cannot be read or belongs to another model.
        """
        report("importing hmr2")
        models = import_models()
        config = read_config(options)
        report("building HMR2")
        try:
            with devices.without_initialisation(), _chumpy_stand_in():
                model = models.HMR2(config, init_renderer=False)
        except (*devices.UNREADABLE, ImportError, AssertionError) as error:
            raise ConfigurationError(
                f"HMR2 cannot be built from {options.hmr2_config}, {options.smpl_model}, {options.joint_regressor} and "
                f"{options.mean_params} ({type(error).__name__}: {error})"
            ) from error
        # The discriminator serves training only.
        model.discriminator = None
        source = options.hmr2_checkpoint
        state = converted.state_of(source, options, lambda: dict(devices.read_torch(source, "state_dict")))
        half = {f"backbone.{name}" for name in devices.halved(model.backbone)}
        devices.load_state(
            model, state, options, report, source=source, half=half, may_lack=_not_learned,
            keep=partial(converted.keep, source, options),
        )  # fmt: skip
        # smplx reads a parent's number for each joint in turn: from the device, each would wait for all work there.
        model.smpl.parents = model.smpl.parents.cpu()
        return cls(model, options, report)

    def __call__(self, crops: Tensor) -> Bodies:
        """Bodies of normalised RGB crops (B, 3, 256, 256) float32 on the device."""
        torch, model = self._torch, self._model
        with devices.autocast(self._options):
            features = self._backbone(crops[:, :, :, _MARGIN:-_MARGIN])
        # The head is small, and rotations in half precision are no longer orthogonal: fp32 from here on.
        parameters, camera, _ = model.smpl_head(features.float())
        count = len(crops)
        root = parameters["global_orient"].reshape(count, -1, 3, 3)
        body = parameters["body_pose"].reshape(count, -1, 3, 3)
        betas = parameters["betas"].reshape(count, -1)
        posed = self._base(model.smpl, global_orient=root, body_pose=body, betas=betas, pose2rot=False)
        keypoints = self._keypoints(posed)
        size = model.cfg.MODEL.IMAGE_SIZE
        depth = 2 * FOCAL / (size * camera[:, 0] + 1e-9)
        return Bodies(
            pose=torch.cat((root, body), 1),
            betas=betas,
            camera=camera,
            translation=torch.stack((camera[:, 1], camera[:, 2], depth), -1),
            vertices=posed.vertices,
            joints=posed.joints[:, :_JOINTS],
            keypoints=keypoints,
        )

    def _keypoints(self, posed: Any) -> Tensor:
        """HMR2's joint order: the one that its SMPL class makes of smplx's."""
        smpl = self._model.smpl
        keypoints = posed.joints[:, smpl.joint_map]
        extra = getattr(smpl, "joint_regressor_extra", None)
        if extra is None:
            return keypoints
        return self._torch.cat((keypoints, self._regress(extra, posed.vertices)), 1)


def read_config(options: Options) -> Any:
    """HMR2's configuration with the paths of the options in it.

    Raises:
        ConfigurationError: not readable, or of a model with other crops.
    """
    configs = import_module("hmr2.configs")
    try:
        config = configs.get_config(str(options.hmr2_config))
        config.defrost()
        config.SMPL.MODEL_PATH = str(options.smpl_model)
        config.SMPL.JOINT_REGRESSOR_EXTRA = str(options.joint_regressor)
        config.SMPL.MEAN_PARAMS = str(options.mean_params)
        # Weights from before training; the checkpoint has all of them.
        config.MODEL.BACKBONE.pop("PRETRAINED_WEIGHTS", None)
        size, focal = config.MODEL.IMAGE_SIZE, config.EXTRA.FOCAL_LENGTH
    except (OSError, AttributeError, KeyError, ValueError) as error:
        raise ConfigurationError(f"{options.hmr2_config} is not HMR2's model_config.yaml ({error})") from error
    if (size, focal) != (256, FOCAL):
        raise ConfigurationError(
            f"{options.hmr2_config}: crops of {size} pixels with focal length {focal}; 256 and 5000 are supported"
        )
    if config.SMPL.get("UPDATE_HIPS", False):
        raise ConfigurationError(f"{options.hmr2_config}: SMPL.UPDATE_HIPS is not supported")
    config.freeze()
    return config


def _not_learned(name: str) -> bool:
    """Whether a weight comes from other files (SMPL, mean parameters) or plays no part."""
    return name.startswith(("smpl.", "smpl_head.init_", "discriminator.", "keypoint", "smpl_parameter")) or (
        name == "initialized"
    )


def import_models() -> Any:
    """``hmr2.models``, without what draws."""
    with _without_renderers():
        return import_module("hmr2.models")


class _Undrawn(ModuleType):
    """Stands in for ``pyrender`` while hmr2 is imported, which names its classes in signatures."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


@contextmanager
def _without_renderers() -> Iterator[None]:
    """hmr2 imports pyrender, whose PyOpenGL fails at import where no display library is (EGL, OSMesa): a server, or a
    fresh WSL. Nothing here draws. hmr2 also picks PyOpenGL's platform by a variable, which is left as it was."""
    before, platform = sys.modules.get("pyrender"), os.environ.get("PYOPENGL_PLATFORM")
    sys.modules["pyrender"] = before or _Undrawn("pyrender")
    try:
        yield
    finally:
        if before is None:
            sys.modules.pop("pyrender", None)
        if platform is None:
            os.environ.pop("PYOPENGL_PLATFORM", None)


class _ChumpyArray:
    """Stands in for ``chumpy.ch.Ch`` while SMPL's original pickle is read."""

    def __setstate__(self, state: Any) -> None:
        self.x = state["x"] if isinstance(state, dict) else state

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        return np.asarray(self.x, dtype)


@contextmanager
def _chumpy_stand_in() -> Iterator[None]:
    """SMPL's original files are pickles of chumpy arrays, and chumpy no longer installs."""
    if find_spec("chumpy") is not None:
        yield
        return
    names = ("chumpy", "chumpy.ch")
    for name in names:
        module = ModuleType(name)
        module.Ch = _ChumpyArray  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
