"""Retrieval of 100,000 reports by 100,000 films, D = 512: time against the matrix products alone, and peak memory.

All embeddings stand in memory; of the queries the first QUERIES are ranked, for time grows with them and memory does
not. Run: OMP_NUM_THREADS=1 python benchmarks/bench_retrieval.py
"""

from __future__ import annotations

import multiprocessing

import numpy as np
import psutil
from timing import interleaved, table, write_section

from cxrclip import metrics

PAIRS, WIDTH, QUERIES, CHUNK = 100_000, 512, 1_024, 256


def embeddings():
    rng = np.random.default_rng(0)
    images, texts = (rng.standard_normal((PAIRS, WIDTH), dtype=np.float32) for _ in range(2))
    return [embeds / np.linalg.norm(embeds, axis=1, keepdims=True) for embeds in (images, texts)]


def products(images, texts):
    out = np.empty((CHUNK, PAIRS))
    for start in range(0, QUERIES, CHUNK):
        np.matmul(images[start:start + CHUNK], texts.T, out=out)


def peak_of_a_process(results):
    """Peak memory of a process that ranks as recall_at_k does with all pairs in memory, but a few queries."""
    images, texts = embeddings()
    first = psutil.Process().memory_info().rss
    names = [str(i) for i in range(PAIRS)]
    ranks = metrics._ranks
    metrics._ranks = lambda queries, *rest: np.resize(ranks(queries[:CHUNK * 2], *rest), len(queries))
    metrics.recall_at_k(images, texts, names, chunk_size=CHUNK)
    info = psutil.Process().memory_info()
    results.put((first, getattr(info, "peak_wset", None) or _peak()))


def _peak():
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main():
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=peak_of_a_process, args=(results,))
    process.start()
    before, peak = results.get()
    process.join()
    images, texts = (embeds.astype(np.float64) for embeds in embeddings())
    number = np.arange(PAIRS)
    took = interleaved(lambda: products(images, texts),
                       lambda: metrics._ranks(images[:QUERIES], texts, number[:QUERIES], number, CHUNK), 5)
    rows = [["ranks against the products alone (goal: at most 1.2)", took.text()],
            [f"CPU seconds, {QUERIES:,} queries", f"{took.other:.1f} against {took.ours:.1f}"],
            [f"CPU minutes, {PAIRS:,} queries, in proportion", f"{took.other * PAIRS / QUERIES / 60:.0f}"],
            ["peak memory of the process, GiB (goal: 2)", f"{peak / 2 ** 30:.2f}"],
            ["of it before ranking: packages, both embeddings in float32", f"{before / 2 ** 30:.2f}"]]
    write_section(f"Retrieval, {PAIRS:,} x {PAIRS:,}, D {WIDTH}", table(["", "measured"], rows))


if __name__ == "__main__":
    main()
