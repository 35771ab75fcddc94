"""Pictures by formula, each with the formula as its class: what an image encoder can learn to see from without a film.

A few contracting affine maps of the plane have one attractor, which a random walk among the maps draws. Its class is
the set of maps; within a class the maps vary a little (Kataoka et al. 2020, FractalDB).
"""

from __future__ import annotations

import numpy as np

CLASSES, OF_EACH = 200, 40
MAPS = (2, 6)            # fewest and most maps of a class
CONTRACTION = 0.9        # the largest singular value that a map of a class may have
VARIATION = 0.1          # each map of a picture is its class's, times 1 +- this
POINTS, STEPS, SETTLING = 256, 60, 10   # walks side by side, their length, and the steps that are not drawn yet
MARGIN = 2               # pixels


def fractals(side: int, rng: np.random.Generator, classes: int = CLASSES,
             of_each: int = OF_EACH) -> tuple[np.ndarray, np.ndarray]:
    """Pictures (N, side, side) of 0 to 255, uint8, and their classes (N,), class by class."""
    pictures = [drawn(attractors(contracting_maps(rng), of_each, rng), side) for _ in range(classes)]
    return np.concatenate(pictures), np.repeat(np.arange(classes), of_each)


def contracting_maps(rng: np.random.Generator) -> np.ndarray:
    """The affine maps of a class, (n, 2, 3): x -> A x + b, every A a contraction."""
    count = rng.integers(MAPS[0], MAPS[1], endpoint=True)
    while True:
        maps = rng.uniform(-1, 1, (count, 2, 3))
        if (np.linalg.norm(maps[:, :, :2], 2, axis=(1, 2)) < CONTRACTION).all():
            return maps


def attractors(maps: np.ndarray, pictures: int, rng: np.random.Generator) -> np.ndarray:
    """Points (pictures, P, 2) of random walks among `maps`, each taken as often as it keeps area."""
    areas = np.abs(np.linalg.det(maps[:, :, :2])) + 1e-3
    varied = maps * rng.uniform(1 - VARIATION, 1 + VARIATION, (pictures, len(maps), 1, 1))
    at, each = np.zeros((pictures, POINTS, 2)), np.arange(pictures)[:, None]
    points = []
    for step in range(STEPS):
        taken = varied[each, rng.choice(len(maps), (pictures, POINTS), p=areas / areas.sum())]
        at = np.einsum("kpij,kpj->kpi", taken[..., :2], at) + taken[..., 2]
        if step >= SETTLING:
            points.append(at)
    return np.concatenate(points, axis=1)


def drawn(points: np.ndarray, side: int) -> np.ndarray:
    """Points (K, P, 2) -> (K, side, side) uint8: how often each pixel is met, on a logarithmic scale, frame filled."""
    low, high = np.percentile(points, [1, 99], axis=1, keepdims=True)
    cells = ((points - low) / (high - low + 1e-6) * (side - 2 * MARGIN) + MARGIN).astype(int)
    seen = ((cells >= 0) & (cells < side)).all(axis=2)
    counts = np.zeros((len(points), side, side))
    for count, cell, keep in zip(counts, cells, seen, strict=True):
        np.add.at(count, tuple(cell[keep].T), 1)
    shades = np.log1p(counts)
    return (255 * shades / (shades.max(axis=(1, 2), keepdims=True) + 1e-6)).astype(np.uint8)
