"""Retrieval ranks in chunks (ours) against sorting the whole score matrix: time and peak memory.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_recall.py
"""

from __future__ import annotations

import tracemalloc

import numpy as np
from timing import compare, median_seconds

from cxrclip.metrics import recall_at_k


def sorted_ranks(images, texts):
    """The usual code: argsort of all scores, then the place of the diagonal."""
    order = np.argsort(-(images @ texts.T), axis=1)
    return np.argmax(order == np.arange(len(images))[:, None], axis=1) + 1


def peak_megabytes(work):
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    return peak


def main():
    for n in (1000, 4000):
        rng = np.random.default_rng(0)
        images, texts = (rng.normal(size=(n, 128)).astype(np.float32) for _ in range(2))
        names = [str(i) for i in range(n)]
        apart = np.abs(recall_at_k(images, texts, names).ranks - sorted_ranks(images, texts))
        assert apart.max() <= 2  # the float32 product of the usual code swaps near neighbours
        works = [lambda i=images, t=texts, m=names: recall_at_k(i, t, m), lambda i=images, t=texts: sorted_ranks(i, t)]
        for figure, unit in ((lambda work: median_seconds(work, 3), "s"), (peak_megabytes, "MB")):
            compare(f"{n} pairs, chunked ranks", figure(works[0]), "full argsort", figure(works[1]), unit)


if __name__ == "__main__":
    main()
