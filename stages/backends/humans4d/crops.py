"""Square crops of people as HMR2 wants them.

Two styles exist upstream. ``track.py`` (PHALP's ``process_image``) cuts plainly; ``demo.py`` (``ViTDetDataset``)
first blurs the whole image, once per person, against aliasing. Here the blur covers only what the crop reads, and
nothing copies the image; the pixels are the same.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from stages.records import F32, U8

SIZE = 256
"""Side of a crop in pixels."""
ASPECT = (192, 256)
"""Width to height to which a person's box is widened before it is squared (``expand_bbox_shape``)."""

_MEAN = 255.0 * np.array([0.485, 0.456, 0.406])
_STD = 255.0 * np.array([0.229, 0.224, 0.225])
_NORMALISED = ((np.arange(256, dtype=np.float32)[:, None] - _MEAN) / _STD).astype(np.float32).T.copy()
"""What becomes of each value of a byte, (3, 256): red, green, blue."""
_TRUNCATE = 4.0
"""scikit-image's Gaussian ends after this many standard deviations."""

F64 = npt.NDArray[np.float64]


def widen(boxes: F32) -> npt.NDArray[np.floating]:
    """Boxes (N, 4) x0 y0 x1 y1 grown about their centres to the aspect 3:4 (``expand_bbox_to_aspect_ratio``)."""
    if not len(boxes):
        return boxes
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    wide, high = ASPECT
    flat = height / width < high / wide
    new_height = np.where(flat, np.maximum(width * high / wide, height), height)
    new_width = np.where(flat, width, np.maximum(height * wide / high, width))
    half = np.stack((new_width, new_height), axis=1) / 2
    return np.concatenate((centre - half, centre + half), axis=1)


def track_crop(image: U8, centre: npt.NDArray[np.floating], size: float) -> F32:
    """The crop (3, 256, 256) float32, RGB, normalised, of the square of side ``size`` pixels about ``centre``, out
    of ``image`` (H, W, 3) uint8 BGR; outside the image it is black."""
    return _normalise(cv2.warpAffine(image, _transform(centre, size), (SIZE, SIZE), flags=cv2.INTER_LINEAR))


def mask_crop(mask: npt.NDArray[np.bool_], centre: npt.NDArray[np.floating], size: float) -> F32:
    """The same cut of ``mask`` (H, W) bool: (256, 256) float32 in [0, 255]."""
    grey = mask.astype(np.uint8) * 255
    cut = cv2.warpAffine(grey, _transform(centre, size), (SIZE, SIZE), flags=cv2.INTER_LINEAR)
    return cut.astype(np.float32)


def demo_crop(image: U8, centre: npt.NDArray[np.floating], size: float) -> F32:
    """As `track_crop`, but blurred before scaling down by more than 2.2, as ``ViTDetDataset`` does."""
    transform = _transform(centre, size)
    sigma = (size / SIZE / 2.0 - 1) / 2
    if size / SIZE / 2.0 <= 1.1:
        return _normalise(cv2.warpAffine(image, transform, (SIZE, SIZE), flags=cv2.INTER_LINEAR))
    radius = int(_TRUNCATE * sigma + 0.5)
    height, width = image.shape[:2]
    # One pixel more for the interpolation, one for rounding.
    x0, y0 = (max(0, math.floor(c - size / 2) - radius - 2) for c in centre)
    x1 = min(width, math.ceil(centre[0] + size / 2) + radius + 2)
    y1 = min(height, math.ceil(centre[1] + size / 2) + radius + 2)
    if x0 >= x1 or y0 >= y1:
        return _normalise(np.zeros((SIZE, SIZE, 3), np.float64))
    region = image[y0:y1, x0:x1].astype(np.float64)
    blurred = _gaussian(region, sigma, radius)
    inverse = cv2.invertAffineTransform(transform)
    inverse[:, 2] -= (x0, y0)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return _normalise(cv2.warpAffine(blurred, inverse, (SIZE, SIZE), flags=flags))


def _transform(centre: npt.NDArray[np.floating], size: float) -> F64:
    """The affine map from the image to the crop, through three points in float32 as upstream makes it."""
    half = np.float32(size * 0.5)
    source = np.zeros((3, 2), np.float32)
    source[0] = centre
    source[1] = np.asarray(centre, np.float64) + np.array([0, half], np.float32)
    source[2] = np.asarray(centre, np.float64) + np.array([half, 0], np.float32)
    middle = np.float32(SIZE * 0.5)
    target = np.array([[middle, middle], [middle, 2 * middle], [2 * middle, middle]], np.float32)
    transform: F64 = np.asarray(cv2.getAffineTransform(source, target), np.float64)
    return transform


def _gaussian(image: F64, sigma: float, radius: int) -> F64:
    """Gaussian blur with the edge pixel repeated: the filter behind ``skimage.filters.gaussian``."""
    positions = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 / (sigma * sigma) * positions**2)
    kernel /= kernel.sum()
    blurred = cv2.sepFilter2D(image, cv2.CV_64F, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(blurred, np.float64)


def _normalise(crop: npt.NDArray[np.generic]) -> F32:
    if crop.dtype == np.uint8:
        result = np.empty((3, *crop.shape[:2]), np.float32)
        for channel, table in enumerate(_NORMALISED):
            # Bytes are never out of range, and only so does take write where it is told without a copy between.
            table.take(crop[:, :, 2 - channel], out=result[channel], mode="clip")
        return result
    rgb = crop[:, :, ::-1].astype(np.float32)
    return np.ascontiguousarray(((rgb - _MEAN) / _STD).astype(np.float32).transpose(2, 0, 1))
