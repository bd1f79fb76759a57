"""The mesh stage: HMR2 over everyone in a batch of frames, and the appearance that PHALP tracks people by.

What comes out equals PHALP's ``get_human_features`` with 4D-Humans' ``HMR2023TextureSampler`` (``track.py``): crops
of a fixed number pass through the networks together, whoever and in whichever frame they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.backends.humans4d import devices, rle
from stages.backends.humans4d.crops import SIZE, demo_crop, mask_crop, track_crop
from stages.backends.humans4d.encoder import load_encoder
from stages.backends.humans4d.network import Bodies, Hmr2
from stages.backends.humans4d.options import Options
from stages.backends.humans4d.shots import thumbnail
from stages.backends.humans4d.texture import FOCAL, PackedTexture, TextureSampler
from stages.protocols import ConfigurationError, Report
from stages.records import F32, U8, Detections, Frame, People

_DEPTH_SCALE = 200.0
"""PHALP's pose vector holds the depth divided by this."""


@dataclass(frozen=True)
class _Person:
    """One person to work on: which frame of the batch, and the square in its image."""

    frame: int
    centre: F32
    extent: F32

    @property
    def side(self) -> float:
        return float(self.extent.max())


class HmrRegressor:
    """`MeshRegressor` out of HMR2, the texture sampler and PHALP's autoencoder."""

    def __init__(
        self, hmr2: Hmr2, texture: TextureSampler, encoder: Any, options: Options, report: Report
    ) -> None:
        self._torch = import_module("torch")
        self._hmr2 = hmr2
        self._texture = texture
        self._encoder = encoder
        self._options = options
        self._report = report
        self._passes = devices.Passes(options.crops, "crops")
        self._beside = ThreadPoolExecutor(1, "beside")
        """What the CPU does while the device computes."""

    @classmethod
    def load(cls, options: Options, report: Report) -> HmrRegressor:
        """Load everything the mesh stage needs.

        Raises:
            ConfigurationError: a file cannot be read or belongs to another model.
        """
        devices.prepare(options)
        hmr2 = Hmr2.load(options, report)
        report("reading PHALP's texture maps")
        try:
            face_of, weight_of = np.load(options.texture_faces), np.load(options.texture_weights)
        except (OSError, ValueError) as error:
            raise ConfigurationError(
                f"cannot read {options.texture_faces} or {options.texture_weights} ({error})"
            ) from error
        texture = TextureSampler(hmr2.faces, face_of, weight_of, options)
        return cls(hmr2, texture, load_encoder(options, report), options, report)

    def regress(self, frames: Sequence[Frame], detections: Sequence[Detections]) -> list[People]:
        """Meshes of everyone detected.

        ``camera`` is the translation of the root joint, so that vertices and joints relative to the root plus
        ``camera`` project into the image with the focal length 5000 / 256 * max(W, H) pixels; upstream's own
        translation of SMPL's origin stands in ``extra["camera"]``. ``extra`` holds what PHALP's ``Detection``
        wants, by its names: ``appe`` (N, 4096), ``pose`` (N, 229), ``loca`` (N, 99), ``center`` and ``scale``
        (N, 2) of the widened box, ``camera`` and ``camera_bbox`` (N, 3), ``3d_joints`` (N, 45, 3), ``2d_joints``
        (N, 90), ``uv`` (packed, see `PackedTexture`), ``masks``, ``size``, ``classes``, ``index``.
        """
        people: list[_Person] = []
        cuts: list[Future[tuple[F32, F32]]] = []
        cut = track_crop if self._options.crop == "track" else demo_crop
        for number, (frame, found) in enumerate(zip(frames, detections, strict=True)):
            padded = np.asarray(found.extra["padded"], np.float32).reshape(-1, 4) if len(found) else ()
            for box, counts in zip(padded, found.extra.get("masks", ()), strict=True):
                person = _Person(number, np.asarray((box[2:] + box[:2]) / 2, np.float32), box[2:] - box[:2])
                people.append(person)
                # Of the next pass while the device is busy with the last.
                cuts.append(self._beside.submit(_cut, cut, frame.image, person, counts))
        rows = self._chunks(cuts) if people else {}
        result = []
        for number, (frame, found) in enumerate(zip(frames, detections, strict=True)):
            own = [index for index, person in enumerate(people) if person.frame == number]
            result.append(
                self._people(frame, found, [people[i] for i in own], {k: v[own] for k, v in rows.items()})
            )
        devices.trim(self._options)
        return result

    def _chunks(self, cuts: list[Future[tuple[F32, F32]]]) -> dict[str, npt.NDArray[Any]]:
        """Everyone's arrays, from passes of always the same number of crops."""
        parts: list[dict[str, Any]] = []
        start = 0
        textures: list[Future[PackedTexture]] = []
        while start < len(cuts):
            part = self._passes.run(partial(self._pass, cuts[start:]))
            textures += [self._beside.submit(PackedTexture.pack, texture) for texture in part.pop("uv")]
            parts.append(part)
            start += len(part["pose"])
            self._report("meshing", start / len(cuts))
        rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        rows["uv"] = np.empty(len(textures), object)
        rows["uv"][:] = [texture.result() for texture in textures]
        return rows

    def _pass(self, cuts: list[Future[tuple[F32, F32]]], size: int) -> dict[str, Any]:
        """One pass over the first ``size`` of ``cuts``, filled up with empty ones."""
        crops, masks = zip(*(cut.result() for cut in cuts[:size]), strict=True)
        torch, count = self._torch, len(crops)
        images = np.zeros((size, 3, SIZE, SIZE), np.float32)
        seen = np.zeros((size, SIZE, SIZE), np.float32)
        images[:count], seen[:count] = crops, masks
        with torch.inference_mode():
            device = torch.device(self._options.device)
            image = torch.from_numpy(images).to(device, non_blocking=True)
            mask = torch.from_numpy(seen).to(device).clip(0, 1)
            bodies: Bodies = self._hmr2(image)
            textures = self._texture.sample(image, mask, bodies.vertices + bodies.translation[:, None])
            appearance = self._encoder(textures, en=True).reshape(size, -1)
            found = {
                "pose": bodies.pose, "betas": bodies.betas, "camera_bbox": bodies.camera,
                "vertices": bodies.vertices, "joints": bodies.joints, "keypoints": bodies.keypoints,
                "appe": appearance, "uv": textures,
            }  # fmt: skip
            return {name: value[:count].float().cpu().numpy() for name, value in found.items()}

    def _people(self, frame: Frame, found: Detections, own: list[_Person], rows: dict[str, Any]) -> People:
        scene = {"scene": thumbnail(frame.image)} if self._options.detect_shots else {}
        if not own:
            empty = People.empty()
            empty.extra = scene
            return empty
        height, width = frame.image.shape[:2]
        centres, extents = np.stack([p.centre for p in own]), np.stack([p.extent for p in own])
        translation = full_translation(rows["camera_bbox"], centres, extents, width, height)
        keypoints = np.concatenate((rows["keypoints"], np.zeros((len(own), 1, 3), np.float32)), 1)
        flat = project(keypoints, translation).reshape(len(own), -1)
        root = rows["joints"][:, :1]
        longest = max(width, height)
        left_top = np.array([(longest - width) // 2, (longest - height) // 2])
        placed = translation.copy()
        placed[:, 2] /= _DEPTH_SCALE
        count = len(own)
        return People(
            boxes=np.asarray(found.boxes, np.float32),
            scores=np.asarray(found.scores, np.float32),
            camera=translation + root[:, 0],
            pose=rows["pose"],
            betas=rows["betas"],
            joints_3d=rows["joints"] - root,
            joints_2d=(project(rows["joints"], translation) * longest - left_top).astype(np.float32),
            vertices=rows["vertices"] - root,
            extra={
                **scene,
                "appe": rows["appe"],
                "pose": np.concatenate((rows["pose"].reshape(count, -1), rows["betas"], placed), 1),
                "loca": np.concatenate((flat, translation, translation, translation), 1),
                "uv": [[texture.seen, texture.colours] for texture in rows["uv"]],
                "center": centres,
                "scale": extents,
                "camera": translation,
                "camera_bbox": rows["camera_bbox"],
                "3d_joints": keypoints,
                "2d_joints": flat,
                "masks": list(found.extra["masks"]),
                "size": [height, width],
                "classes": np.asarray(found.extra["classes"]),
                "index": np.asarray(found.extra["index"]),
            },
        )


def _cut(cut: Callable[[U8, F32, float], F32], image: U8, person: _Person, mask: str) -> tuple[F32, F32]:
    """A person's crop, and that of his mask."""
    height, width = image.shape[:2]
    crop = cut(image, person.centre, person.side)
    return crop, mask_crop(rle.decode(mask, height, width), person.centre, person.side)


def full_translation(camera: F32, centres: F32, extents: F32, width: int, height: int) -> F32:
    """Translation (N, 3) of SMPL's origin before the whole image's camera, metres.

    The camera's focal length is 5000 / 256 * max(width, height) pixels, its principal point the image's centre
    (``get_3d_parameters`` of PHALP's HMAR, on the image padded to a square and scaled to 256).

    Args:
        camera: (N, 3) weak perspective (s, tx, ty) of the crops.
        centres: (N, 2) of the widened boxes, pixels.
        extents: (N, 2) width and height of the widened boxes, pixels.
    """
    longest = max(width, height)
    ratio = 1.0 / longest * SIZE
    left_top = np.array([(longest - width) // 2, (longest - height) // 2])
    side = (extents.max(1) * ratio).astype(np.float32)
    depth = 2 * np.float32(FOCAL) / (camera[:, 0] * side + np.float32(1e-9))
    offset = ((centres + left_top) * ratio - SIZE / 2.0).astype(np.float32)
    across = camera[:, 1:3] + offset * depth[:, None] / np.float32(FOCAL)
    return np.concatenate((across, depth[:, None]), 1).astype(np.float32)


def project(points: F32, translation: F32) -> F32:
    """Points (N, K, 3) in metres to (N, K, 2) in the image padded to a square, where its side is 1."""
    moved = points + translation[:, None]
    flat: F32 = moved[..., :2] / moved[..., 2:] * np.float32(FOCAL / SIZE) + np.float32(0.5)
    return flat
