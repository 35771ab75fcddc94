"""A film becomes a tensor: random crop, CLAHE and contrast in training, a centre crop in evaluation (paper, section 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from cxrclip.data.images import resize_shorter

CLAHE = 0.5             # probability of CLAHE in training
TONES = np.arange(256, dtype=np.float32)  # an 8-bit film has no others


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, CLAHE, brightness and contrast, normalisation; no flip, for the heart is on the left.

    size: pixels a side. mean, std: one value a channel, of images scaled to 0-1.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        """image (H, W) uint8 -> (3, size, size) float32, normalised. Source: official behaviour."""
        return normalised(self.gray(image, rng), self.mean, self.std)

    def gray(self, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The same before normalisation, which a model does by itself: (1, size, size), tones of 0 to 1."""
        image = random_resized_crop(image, self.size, rng)
        if rng.random() < CLAHE:
            image = cv2.createCLAHE(clipLimit=4.0, tileGridSize=(8, 8)).apply(image)
        return to_tensor(image, jitter(image, rng))


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to `size`, centre crop, normalisation; no CLAHE (official behaviour)."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """image (H, W) uint8 -> (3, size, size) float32, normalised; `rng` is not used."""
        return normalised(self.gray(image), self.mean, self.std)

    def gray(self, image: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """The same before normalisation, which a model does by itself: (1, size, size), tones of 0 to 1."""
        image = resize_shorter(image, self.size)
        top, left = ((side - self.size) // 2 for side in image.shape)
        return to_tensor(image[top : top + self.size, left : left + self.size], TONES)


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of `image` (H, W) uint8, resized to (size, size)."""
    top, left, height, width = crop_box(image.shape[0], image.shape[1], rng)
    method = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=method)


def crop_box(height: int, width: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.1),
             ratio: float = 4 / 3) -> tuple[int, int, int, int]:
    """A crop (top, left, height, width) of `scale` times the area, with sides 1 : `ratio` to `ratio` : 1, log-uniform.

    The published upper scale is above 1. As in torchvision and albumentations, a crop that does not fit in the
    image is neither padded nor clipped: it is drawn again, up to ten times, then the largest central crop of a
    permitted ratio is taken. For a square image that is all of it, in about 6 % of the draws.
    """
    for u_area, u_aspect, u_top, u_left in rng.random((10, 4)).tolist():
        area = (scale[0] + u_area * (scale[1] - scale[0])) * height * width
        aspect = ratio ** (2 * u_aspect - 1)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    h, w = min(height, round(width * ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter(image: np.ndarray, rng: np.random.Generator, brightness: float = 0.1,
           contrast: float = 0.2) -> np.ndarray:
    """Brightness times 1 +- `brightness`, then contrast times 1 +- `contrast` about the image's mean.

    image (H, W) uint8 -> (256,) float32: what becomes of each of the 256 tones of gray, within 0-255. Sources:
    official values; torchvision's definitions.
    """
    tones = np.minimum(TONES * np.float32(rng.uniform(1 - brightness, 1 + brightness)), 255)
    factor = np.float32(rng.uniform(1 - contrast, 1 + contrast))
    tones = tones * factor + np.float32(cv2.mean(cv2.LUT(image, tones))[0]) * (1 - factor)
    return tones.clip(0, 255)


def to_tensor(image: np.ndarray, tones: np.ndarray) -> Tensor:
    """image (H, W) uint8, drawn in `tones` (256,) of 0 to 255 -> (1, H, W) of 0 to 1."""
    return torch.from_numpy(cv2.LUT(image, tones / np.float32(255)))[None]


def normalised(gray: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(..., 1, H, W) of 0 to 1 -> (..., 3, H, W): (gray - mean) / std, channel by channel (channels last in memory)."""
    pixels = (gray.movedim(-3, -1) - gray.new_tensor(mean)) / gray.new_tensor(std)
    return pixels.movedim(-1, -3)


Transform = Callable[[np.ndarray, np.random.Generator], Tensor]
