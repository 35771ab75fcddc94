"""Many runs, several side by side."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import torch

from cxrclip.data.progress import progress_bar
from cxrclip.experiments.evaluate import evaluate
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.train import finished_run, pretrain, run_folder, total_steps
from cxrclip.experiments.workbench import Run, Workbench


def run_all(experiments: Sequence[Experiment], bench: Workbench | None = None) -> list[Run]:
    """Finished and evaluated runs of all `experiments`; the missing ones are trained, several side by side."""
    bench = bench or Workbench()
    found = {experiment: finished_run(experiment, bench) for experiment in experiments}
    missing = [experiment for experiment, run in found.items() if run is None]
    if missing:
        _train_side_by_side(missing, bench)
    runs = [found[experiment] or pretrain(experiment, bench) for experiment in experiments]
    for run in runs:
        evaluate(run)
    return runs


def _train_side_by_side(experiments: Sequence[Experiment], bench: Workbench) -> None:
    """One process a run, `bench.jobs` at a time, under one bar that counts the steps of all."""
    logs = [run_folder(item, bench) / "log.jsonl"
            for item in experiments]
    total = sum(total_steps(item, bench.prepared(item.mix, item.profile)) for item in experiments)
    jobs = bench.jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    quiet = replace(bench, progress=False)
    with (_environment(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false"),
          ProcessPoolExecutor(min(jobs, len(experiments)), mp_context=get_context("spawn")) as pool,
          progress_bar(total=total, unit="step", desc=f"training {len(experiments)} runs",
                       shown=bench.progress) as bar):
        futures = [pool.submit(_complete, item, quiet) for item in experiments]
        while not all(future.done() for future in futures):
            time.sleep(0.5)
            bar.update(sum(_lines(log) for log in logs) - bar.n)
        for future in futures:
            future.result()


def _complete(experiment: Experiment, bench: Workbench) -> None:
    """What one worker process does for one experiment."""
    evaluate(pretrain(experiment, bench, report=lambda step: None))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for child processes, then put the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
