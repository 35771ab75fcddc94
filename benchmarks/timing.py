"""Shared by the benchmarks: one thread, median seconds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

torch.set_num_threads(1)


def median_seconds(work: Callable[[], object], repeats: int = 7) -> float:
    """Median CPU seconds of `work` after one call to warm up; CPU time, so that a busy machine disturbs less."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def compare(title: str, ours: float, other_title: str, other: float, unit: str = "s") -> None:
    """One line: both figures and how many times less ours needs."""
    print(f"{title}: {ours:.4g} {unit}; {other_title}: {other:.4g} {unit}; ratio {other / ours:.2f}", flush=True)
