"""What the camera sees of a person's skin, laid out on SMPL's texture map: PHALP's appearance.

The method is ``HMR2023TextureSampler`` of 4D-Humans' ``track.py``: every texel of a 256 x 256 map is a point on the
mesh; its colour is what the crop shows where the point projects to, unless another part of the body stands in
front. Upstream decides that with the depth image of the CUDA extension neural_renderer (Kato et al. 2018); the
z-buffer here follows the same conventions (pixel centres, both sides of a face, perspective-correct depth,
near 0.1 and far 100) on any device.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.backends.humans4d.crops import SIZE
from stages.backends.humans4d.options import Options
from stages.records import F32

Tensor = Any

TEXELS = 256
"""Side of the texture map."""
FOCAL = 5000.0
"""Focal length in pixels of HMR2's crops."""
_NEAR, _FAR = 0.1, 100.0
_TOLERANCE = 1e-4
"""Metres that a texel may lie behind the nearest surface and still count as seen."""
_CANDIDATES = 1 << 22
"""Pairs of face and pixel that are tested at once: bounds the memory of the z-buffer."""
_SCALE = 5.0
"""The autoencoder sees normalised colours divided by this (``process_uv_image``)."""


def depth_image(vertices: Tensor, faces: Tensor, focal: float = FOCAL, size: int = SIZE) -> Tensor:
    """Depth (B, size, size) of the nearest surface at each pixel's centre, in metres; 100 where there is none.

    Args:
        vertices: (B, V, 3) float32 in the camera's frame, metres.
        faces: (F, 3) int64.
        focal: in pixels; the principal point is the image's centre.
    """
    torch = import_module("torch")
    batch = len(vertices)
    projected = focal * vertices[..., :2] / vertices[..., 2:] + size / 2
    corners = projected[:, faces].reshape(-1, 3, 2)
    depths = vertices[:, faces, 2].reshape(-1, 3)
    low = torch.ceil(corners.amin(1) - 0.5).clamp(min=0)
    high = torch.floor(corners.amax(1) - 0.5).clamp(max=size - 1)
    drawn = torch.isfinite(corners).all(2).all(1)
    span = torch.where(drawn[:, None], (high - low + 1).clamp(min=0), 0).long()
    low = torch.where(drawn[:, None], low, 0).long()
    counts = span.prod(1)
    ends = counts.cumsum(0)
    buffer = torch.full((batch * size * size,), _FAR, dtype=vertices.dtype, device=vertices.device)
    total = int(ends[-1]) if len(ends) else 0
    start = 0
    while start < len(counts):
        begin = int(ends[start - 1]) if start else 0
        if begin >= total:
            break
        stop = max(start + 1, int(torch.searchsorted(ends, begin + _CANDIDATES, right=True)))
        part = slice(start, stop)
        _draw(buffer, corners[part], depths[part], low[part], span[part], counts[part], start, len(faces), size)
        start = stop
    return buffer.view(batch, size, size)


def _draw(
    buffer: Tensor, corners: Tensor, depths: Tensor, low: Tensor, span: Tensor, counts: Tensor,
    first: int, faces: int, size: int,
) -> None:  # fmt: skip
    """Lower ``buffer`` to the depths of some faces, number ``first`` and on, at every pixel they cover."""
    torch = import_module("torch")
    device = counts.device
    face = torch.repeat_interleave(torch.arange(len(counts), device=device), counts)
    within = torch.arange(len(face), device=device) - (counts.cumsum(0) - counts)[face]
    column = low[face, 0] + within % span[face, 0]
    row = low[face, 1] + within // span[face, 0]
    point = torch.stack((column, row), 1) + 0.5
    a, b, c = corners[face].unbind(1)
    area = _cross(b - a, c - a)
    weights = torch.stack(
        (_cross(b - point, c - point), _cross(c - point, a - point), _cross(a - point, b - point)), 1
    )
    weights = weights / area[:, None]
    inside = (weights >= 0).all(1) & (area != 0)
    weights = weights.clamp(0, 1)
    depth = weights.sum(1) / (weights / depths[face]).sum(1)
    inside &= (depth > _NEAR) & (depth < _FAR)
    pixel = ((face + first) // faces) * (size * size) + row * size + column
    buffer.scatter_reduce_(0, pixel[inside], depth[inside], "amin")


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]


class TextureSampler:
    """Texture maps of people out of their crops.

    Args:
        faces: (F, 3) of the body.
        face_of: (256, 256) the face under each texel, -1 for none (PHALP's ``fmap_256.npy``).
        weight_of: (256, 256, 3) barycentric weights there (``bmap_256.npy``).
    """

    def __init__(
        self, faces: npt.NDArray[Any], face_of: npt.NDArray[Any], weight_of: npt.NDArray[Any], options: Options
    ) -> None:
        torch = self._torch = import_module("torch")
        device = torch.device(options.device)
        self._faces = torch.as_tensor(faces.astype(np.int64), device=device)
        face_map = torch.as_tensor(face_of.astype(np.int64), device=device)
        self._valid = face_map >= 0
        self._corners = self._faces[face_map[self._valid]]
        self._weights = torch.as_tensor(weight_of.astype(np.float32), device=device)[self._valid]
        self._renderer = self._find_renderer(options)

    def sample(self, images: Tensor, masks: Tensor, vertices: Tensor) -> Tensor:
        """Maps (B, 4, 256, 256): normalised RGB / 5 where seen and 0 elsewhere; 1 where seen and -1 elsewhere.

        Args:
            images: (B, 3, 256, 256) normalised crops.
            masks: (B, 256, 256) in [0, 1].
            vertices: (B, V, 3) in the crop camera's frame, metres.
        """
        torch, sample = self._torch, self._torch.nn.functional.grid_sample
        points = torch.einsum("bnij,ni->bnj", vertices[:, self._corners], self._weights)
        places = FOCAL / (SIZE / 2) * points[..., :2] / points[..., 2:3]
        nearest = self._renderer(vertices) if self._renderer else depth_image(vertices, self._faces)
        surface = sample(nearest[:, None], places[:, None], align_corners=False)[:, 0, 0]
        colours = sample(torch.cat((images, masks[:, None]), 1), places[:, None], align_corners=False)[:, :, 0]
        seen = (points[..., 2] <= surface + _TOLERANCE) & (colours[:, 3] != 0)
        maps = torch.zeros((len(images), 4, TEXELS, TEXELS), device=images.device)
        maps[:, 3] = -1.0
        flat = torch.where(seen[:, None], colours[:, :3] / _SCALE, 0.0)
        maps[:, :, self._valid] = torch.cat((flat, torch.where(seen, 1.0, -1.0)[:, None]), 1)
        return maps

    def _find_renderer(self, options: Options) -> Any:
        there = options.device != "cpu" and find_spec("neural_renderer") is not None
        if options.depth_test == "builtin" or (options.depth_test == "auto" and not there):
            return None
        torch, module = self._torch, import_module("neural_renderer")
        renderer = module.Renderer(
            dist_coeffs=None, orig_size=SIZE, image_size=SIZE, light_intensity_ambient=1,
            light_intensity_directional=0, anti_aliasing=False,
        )  # fmt: skip
        device = self._faces.device
        camera = torch.tensor([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]], device=device)[None]
        turn, shift = torch.eye(3, device=device)[None], torch.zeros(3, device=device)[None]

        def render(vertices: Tensor) -> Tensor:
            faces = self._faces[None].expand(len(vertices), -1, -1).int()
            return renderer(vertices, faces, mode="depth", K=camera, R=turn, t=shift)

        return render


@dataclass(frozen=True)
class PackedTexture:
    """A texture map as it travels: ``seen``, one bit a texel, and the colours of the seen texels alone, which
    is lossless and some tenth of the megabyte of the whole map."""

    seen: bytes
    colours: bytes

    @classmethod
    def pack(cls, texture: F32) -> PackedTexture:
        """Out of a map (4, 256, 256) float32."""
        seen = texture[3] > 0
        return cls(np.packbits(seen).tobytes(), texture[:3, seen].astype("<f4").tobytes())

    def unpack(self) -> F32:
        """The map (4, 256, 256) float32."""
        bits = np.unpackbits(np.frombuffer(self.seen, np.uint8)).astype(bool).reshape(TEXELS, TEXELS)
        texture = np.zeros((4, TEXELS, TEXELS), np.float32)
        texture[3] = np.where(bits, 1.0, -1.0)
        texture[:3, bits] = np.frombuffer(self.colours, "<f4").reshape(3, -1)
        return texture
