"""Many runs at once: those that are missing are trained and evaluated, all cores busy, under one bar."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import torch

from cxrclip.data.progress import progress_bar
from cxrclip.data.workers import Task, side_by_side
from cxrclip.experiments.evaluate import evaluate
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.train import finished_run, pretrain, run_folder, total_steps
from cxrclip.experiments.workbench import Run, Workbench

# A run on a CPU takes one thread, so that the same machine gives the same weights however many are side by side.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_all(experiments: Sequence[Experiment], bench: Workbench | None = None) -> list[Run]:
    """Finished and evaluated runs of all `experiments`; the missing ones are made, `bench.jobs` side by side.

    Raises WorkFailed (data.workers) if a run fails: one line with the run, the fault and the file to look at.
    """
    bench = bench or Workbench()
    if missing := missing_runs(experiments, bench):
        _make(missing, bench)
    return [pretrain(experiment, bench) for experiment in experiments]


def missing_runs(experiments: Sequence[Experiment], bench: Workbench) -> list[Experiment]:
    """Those of `experiments` that are not trained or not evaluated yet, each once."""
    runs = {experiment: finished_run(experiment, bench) for experiment in experiments}
    return [experiment for experiment, run in runs.items()
            if run is None or not (run.evaluation_folder / "results.csv").is_file()]


def _make(experiments: Sequence[Experiment], bench: Workbench) -> None:
    """Train and evaluate in processes of their own, under one bar that counts the steps of all."""
    quiet = replace(bench, progress=False)
    tasks = [Task(f"run {item.run_name}, seed {item.seed}", (item, quiet), run_folder(item, bench) / "log.jsonl")
             for item in experiments]
    total = sum(total_steps(item, bench.prepared(item.mix, item.profile)) for item in experiments)
    workers = bench.jobs or (1 if torch.cuda.is_available() else os.cpu_count() or 1)
    with progress_bar(total=total, unit="step", desc=f"training {len(tasks)} runs", shown=bench.progress) as bar:
        side_by_side(_complete, tasks, workers, bar, ONE_THREAD, progress=lambda: sum(map(_steps, tasks)))


def _complete(experiment: Experiment, bench: Workbench) -> None:
    """What a worker process does for one experiment."""
    with warnings.catch_warnings(action="ignore"):  # `reproduce` lists doubtful numbers in the end
        evaluate(pretrain(experiment, bench, report=lambda step: None))


def _steps(task: Task) -> int:
    """Steps that a run has made: the lines of its log."""
    return _lines(task.log, task.log.stat().st_size) if task.log.is_file() else 0


@lru_cache(maxsize=256)
def _lines(path: Path, size: int) -> int:
    """Lines of a file, counted again only when its size has changed."""
    return path.read_bytes().count(b"\n")
