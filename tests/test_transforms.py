"""transforms.py: crops and jitter are torchvision's, values and shapes are the published ones."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
from builders import HALF, IMAGENET, film
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import adjust_brightness, adjust_contrast

from cxrclip.transforms import EvalTransform, TrainTransform, crop_box, jitter


@pytest.mark.parametrize("shape", [(128, 128), (100, 140), (90, 300), (300, 90)])
def test_crop_boxes_are_distributed_as_torchvisions(shape):
    """Means and deviations of top, left, height and width; torchvision is the slow statement."""
    torch.manual_seed(0)
    rng, image = np.random.default_rng(0), torch.zeros(1, *shape)
    ours = np.array([crop_box(*shape, rng) for _ in range(3000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.8, 1.1], [3 / 4, 4 / 3]) for _ in range(3000)], float)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000) + 1e-9
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.12)
    assert np.isclose((ours[:, 2:] == shape).all(1).mean(), (theirs[:, 2:] == shape).all(1).mean(), atol=0.02)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()


def test_crop_area_and_aspect_where_every_crop_fits():
    """Area uniform, aspect log-uniform: the sorted draws lie on the straight line of a uniform distribution."""
    rng = np.random.default_rng(0)
    _, _, heights, widths = np.array([crop_box(1000, 1000, rng, scale=(0.2, 0.5)) for _ in range(4000)]).T
    areas = (heights * widths / 1e6 - 0.2) / 0.3
    aspects = np.log(widths / heights) / np.log(4 / 3) / 2 + 0.5
    for draws in (areas, aspects):
        assert np.abs(np.sort(draws) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)  # KS, p 0.001


def test_jitter_is_torchvisions_brightness_then_contrast():
    for seed in range(20):
        rng, image = np.random.default_rng(seed), film(seed)
        brightness, contrast = rng.uniform(0.9, 1.1), rng.uniform(0.8, 1.2)
        plain = torch.from_numpy(image)[None].float() / 255
        expected = adjust_contrast(adjust_brightness(plain, brightness), contrast)[0] * 255
        tones = jitter(image, np.random.default_rng(seed))
        np.testing.assert_allclose(tones[image], expected, atol=1e-3)


def test_train_transform_range_shape_and_channels():
    low, high = ((np.array([0, 1])[:, None] - IMAGENET[0]) / IMAGENET[1])
    transform = TrainTransform(24, *IMAGENET)
    for seed in range(30):
        out = transform(film(seed, side=60), np.random.default_rng(seed))
        assert out.shape == (3, 24, 24)
        assert out.dtype == torch.float32
        assert (out.amin((1, 2)).numpy() >= low - 1e-5).all()
        assert (out.amax((1, 2)).numpy() <= high + 1e-5).all()
        gray = out * torch.tensor(IMAGENET[1])[:, None, None] + torch.tensor(IMAGENET[0])[:, None, None]
        assert torch.allclose(gray[0], gray[1], atol=1e-5)
        assert torch.allclose(gray[0], gray[2], atol=1e-5)


def test_clahe_as_published_in_half_of_the_draws(monkeypatch):
    calls, real = [], cv2.createCLAHE
    monkeypatch.setattr(cv2, "createCLAHE", lambda **options: calls.append(options) or real(**options))
    transform, image = TrainTransform(16, *HALF), film(0)
    for seed in range(600):
        transform(image, np.random.default_rng(seed))
    assert {tuple(call.items()) for call in calls} == {(("clipLimit", 4.0), ("tileGridSize", (8, 8)))}
    assert abs(len(calls) - 300) < 4.5 * math.sqrt(150)
    before = len(calls)
    EvalTransform(16, *HALF)(image)
    assert len(calls) == before


def test_never_flipped():
    image = np.full((50, 50), 40, np.uint8)
    image[:, 25:], image[:25] = 200, image[:25] + 30  # right brighter than left, top brighter than bottom
    for seed in range(200):
        out = TrainTransform(16, *HALF)(image, np.random.default_rng(seed))[0]
        assert out[:, 8:].mean() > out[:, :8].mean()


@pytest.mark.parametrize("shape", [(16, 16), (16, 23), (31, 16)])
def test_eval_transform_is_centre_crop_and_normalisation(shape):
    """Shorter side already 16: only crop and arithmetic remain, written out pixel by pixel."""
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = EvalTransform(16, *IMAGENET)(image)
    top, left = (shape[0] - 16) // 2, (shape[1] - 16) // 2
    for c, y, x in itertools.product(range(3), range(16), range(16)):
        expected = (image[top + y, left + x] / 255 - IMAGENET[0][c]) / IMAGENET[1][c]
        assert out[c, y, x] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (50, 33), (8, 10)])
def test_eval_transform_resizes_the_shorter_side(shape):
    """A ramp stays the same ramp: the centre is kept, and every image comes out at the asked size."""
    ramp = np.broadcast_to(np.linspace(0, 250, shape[1]), shape).astype(np.uint8)
    out = EvalTransform(16, *HALF)(ramp)
    assert out.shape == (3, 16, 16)
    assert out.mean() == pytest.approx(ramp.mean() / 127.5 - 1, abs=0.03)
    assert torch.equal(out, EvalTransform(16, *HALF)(ramp, np.random.default_rng(0)))
