"""A linear body surface: a template, shape directions and skinning weights over SMPL's 24 joints.

The template stands in a T-pose in its own axes: x to the person's left, y up, z the way it faces, metres.
Posed surfaces are in the camera's axes (x right, y down, z away), because the root's rotation takes the one
to the other; that is how HMR2 writes SMPL's ``global_orient`` too, so poses are interchangeable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.body.skeleton import JOINT_NAMES, JOINT_PARENTS
from stages.body.smpl_file import read_smpl
from stages.protocols import ConfigurationError
from stages.records import F32

__all__ = ["JOINT_NAMES", "JOINT_PARENTS", "TEMPLATE_FILE", "LinearBody", "load_body"]

TEMPLATE_FILE = Path(__file__).with_name("template.npz")
"""Our own body, written by ``python -m stages.body.build_template``."""

F64 = npt.NDArray[np.float64]

_PARENTS = np.array([max(parent, 0) for parent in JOINT_PARENTS])
_DEPTH = [0]
for _parent in JOINT_PARENTS[1:]:
    _DEPTH.append(_DEPTH[_parent] + 1)
_EQUALLY_DEEP = [np.flatnonzero(np.array(_DEPTH) == depth) for depth in range(1, max(_DEPTH) + 1)]
_LEVELS = [(level, _PARENTS[level]) for level in _EQUALLY_DEEP]
"""Joints that are equally far from the root, which are posed at once, and their parents."""


@dataclass(frozen=True)
class LinearBody:
    """A surface that moves with 24 joints by linear blend skinning (Loper et al. 2015, equations 2 to 4).

    ``template`` (V, 3) and ``joints_rest`` (24, 3) float32 metres in the template's axes; ``faces`` (F, 3)
    int32, counter-clockwise from outside; ``weights`` (V, 24) float32, rows sum to 1; ``shapedirs``
    (V, 3, 10) and ``joint_shapedirs`` (24, 3, 10) metres per unit of beta; ``posedirs`` (V, 3, 207) metres
    per entry of the 23 joints' rotations less the identity, or None.
    """

    faces: npt.NDArray[np.int32]
    template: F32
    weights: F32
    joints_rest: F32
    shapedirs: F32
    joint_shapedirs: F32
    posedirs: F32 | None = None

    def rest_joints(self, betas: npt.NDArray[Any]) -> F64:
        """Joints (24, 3) of the rest pose for ``betas`` (10,), metres in the template's axes."""
        rest: F64 = self.joints_rest.astype(np.float64) + self.joint_shapedirs @ np.asarray(betas, np.float64)
        return rest

    def skeleton(self, pose: npt.NDArray[Any], betas: npt.NDArray[Any]) -> tuple[F64, F64]:
        """Forward kinematics of one person.

        Args:
            pose: (24, 3, 3) rotations, each relative to its parent; ``betas`` (10,).

        Returns:
            World rotations (24, 3, 3) and joints (24, 3), metres relative to the root.
        """
        rest = self.rest_joints(betas)
        return forward_kinematics(np.asarray(pose, np.float64), rest)

    def surface(self, pose: F32, betas: F32) -> tuple[F32, F32]:
        """Pose the surface.

        Args:
            pose: (N, 24, 3, 3) rotations, root first, each relative to its parent.
            betas: (N, 10) shape coefficients.

        Returns:
            Vertices (N, V, 3) and joints (N, 24, 3), float32 metres relative to the root joint, in the
            camera's axes. A person's result does not depend on the others in the batch.
        """
        count = len(pose)
        vertices = np.empty((count, *self.template.shape), np.float32)
        joints = np.empty((count, len(JOINT_NAMES), 3), np.float32)
        for person in range(count):
            vertices[person], joints[person] = self._one(pose[person], betas[person])
        return vertices, joints

    def _one(self, pose: F32, betas: F32) -> tuple[F32, F64]:
        rotations, joints = self.skeleton(pose, betas)
        rest = self.rest_joints(betas)
        template, shapedirs, posedirs, weights = self._rows
        shaped = template + (shapedirs @ np.asarray(betas, np.float32)).reshape(template.shape)
        if posedirs is not None:
            change = np.asarray(pose[1:], np.float32) - np.eye(3, dtype=np.float32)
            shaped += (posedirs @ change.reshape(-1)).reshape(template.shape)
        # Each joint carries x -> R (x - rest) + joint; blending the maps first is one small matrix product.
        maps = np.empty((12, len(rest)), np.float32)
        maps[:9] = rotations.reshape(-1, 9).T
        maps[9:] = (joints - (rotations @ rest[:, :, None])[..., 0]).T
        blended = maps @ weights
        moved = blended[9:]
        for axis in range(3):
            for part in range(3):
                moved[axis] += blended[3 * axis + part] * shaped[part]
        return moved.T, joints

    @cached_property
    def _rows(self) -> tuple[F32, F32, F32 | None, F32]:
        """Template (3, V), shape directions (3 V, 10), pose directions (3 V, 207) and weights (24, V), each row of a
        matrix one piece of memory: several times faster than with the vertices first."""

        def rows(directions: F32) -> F32:
            return np.ascontiguousarray(directions.transpose(1, 0, 2).reshape(-1, directions.shape[2]))

        return (
            np.ascontiguousarray(self.template.T),
            rows(self.shapedirs),
            None if self.posedirs is None else rows(self.posedirs),
            np.ascontiguousarray(self.weights.T),
        )


def forward_kinematics(pose: F64, rest: F64) -> tuple[F64, F64]:
    """World rotations (24, 3, 3) and joints (24, 3) relative to the root, of ``pose`` (24, 3, 3) over the
    rest joints ``rest`` (24, 3)."""
    placed = np.zeros((len(pose), 4, 4))
    placed[:, :3, :3] = pose
    placed[1:, :3, 3] = rest[1:] - rest[_PARENTS[1:]]
    placed[:, 3, 3] = 1.0
    for level, above in _LEVELS:
        placed[level] = placed[above] @ placed[level]
    return placed[:, :3, :3].copy(), placed[:, :3, 3].copy()


def load_body(options: Mapping[str, Any]) -> LinearBody:
    """The body that the backend's ``options`` ask for.

    ``options["smpl_model"]`` names an SMPL file (.pkl or .npz), whose surface is then used; without it, or
    with an empty one, it is our own template.

    Raises:
        ConfigurationError: the file is missing or is not an SMPL model.
    """
    chosen = options.get("smpl_model")
    if chosen:
        if not isinstance(chosen, (str, Path)):
            raise ConfigurationError(f"option smpl_model: {chosen!r} is not the path of an SMPL file")
        return _from_smpl(Path(chosen).expanduser())
    return _load_template(TEMPLATE_FILE)


def _from_smpl(path: Path) -> LinearBody:
    smpl = read_smpl(path)
    regress = smpl.joint_regressor
    return LinearBody(
        faces=smpl.faces,
        template=smpl.template.astype(np.float32),
        weights=smpl.weights.astype(np.float32),
        joints_rest=(regress @ smpl.template).astype(np.float32),
        shapedirs=smpl.shapedirs.astype(np.float32),
        joint_shapedirs=np.einsum("jv,vcb->jcb", regress, smpl.shapedirs).astype(np.float32),
        posedirs=smpl.posedirs.astype(np.float32),
    )


def _load_template(path: Path) -> LinearBody:
    try:
        with np.load(path) as stored:
            faces = stored["faces"].astype(np.int32)
            scale = stored["shape_scale"].astype(np.float32)
            weights = np.zeros((len(stored["template"]), len(JOINT_NAMES)), np.float32)
            rows = np.arange(len(weights))[:, None]
            weights[rows, stored["weight_joints"]] = stored["weights"].astype(np.float32)
            return LinearBody(
                faces=faces,
                template=stored["template"].astype(np.float32),
                weights=weights / weights.sum(1, keepdims=True),
                joints_rest=stored["joints_rest"].astype(np.float32),
                shapedirs=stored["shapedirs"].astype(np.float32) * scale,
                joint_shapedirs=stored["joint_shapedirs"].astype(np.float32),
            )
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"the body template {path} is missing: install Poseward again, or rebuild it with "
            "`python -m stages.body.build_template`"
        ) from error
