"""`cxrclip check-run`: train one committed run again, and compare it with its committed numbers.

    cxrclip check-run --build build/again                   # a run at random
    cxrclip check-run --build build/again --run 0bf68f940d1133a4

On the same kind of processor all numbers are equal. Another one rounds otherwise, and thousands of steps make that a
difference like that of another seed. The rule, for both: the runs agree if SHARE of the new numbers lie inside the
committed 95 % intervals, which hold the luck of the test patients alone.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping

import pandas as pd

from cxrclip.book.reproduce import planned
from cxrclip.errors import InputError
from cxrclip.experiments.evaluate import evaluate
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.schedule import run_all
from cxrclip.experiments.train import run_folder
from cxrclip.experiments.workbench import Workbench

SHARE = 0.8
MEASURE = ("dataset", "task", "metric")


def check_run(key: str, results: pd.DataFrame | None, bench: Workbench) -> tuple[pd.DataFrame, bool]:
    """Train the committed run `key` (at random if empty) in the bench's build folder; compare, and say if they agree.

    Returns the comparison, a line a measure (mean over findings): committed, low, high, again, difference, inside.
    Raises InputError where nothing is committed, for a key that is not, and for a run that is in the build folder.
    """
    if results is None:
        raise InputError("there are no committed results to compare with: run this in a clone of the repository")
    runs = committed_runs(results, bench)
    if key and key not in runs:
        raise InputError(f"run {key!r} is not among the {len(runs)} committed ones: choose one of {', '.join(runs)}")
    if not runs:
        raise InputError("no committed run is of this version of the code: run `make results`, or check out its commit")
    key = key or secrets.choice(list(runs))
    experiment = runs[key]
    if run_folder(experiment, bench).is_dir():
        raise InputError(f"{run_folder(experiment, bench)}: there already, so nothing would be trained: "
                         "give another --build")
    print(f"training {experiment.run_name}, seed {experiment.seed} ({key}), again", flush=True)
    (run,) = run_all([experiment], bench)
    table = compared(results[results["key"] == key], evaluate(run))
    return table, bool(table["inside"].mean() >= SHARE)


def committed_runs(results: pd.DataFrame, bench: Workbench) -> Mapping[str, Experiment]:
    """The committed runs that this version can train again: key -> experiment."""
    profile, mix = results["profile"].iloc[0], results["mix"].iloc[0]
    _, experiments = planned(profile, mix, 0, bench.prepared(mix, profile))
    known = set(results["key"])
    return {name: experiment for experiment in experiments if (name := run_folder(experiment, bench).name) in known}


def compared(committed: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Committed numbers beside those of the same run trained again; both tidy rows of one run."""
    means = [rows[(rows["class"] == "all") & (rows["reference"] == "")].drop_duplicates(list(MEASURE))
             for rows in (committed, again)]
    columns = [*MEASURE, "value", "low", "high"]
    table = means[0][columns].merge(means[1][[*MEASURE, "value"]], on=list(MEASURE), suffixes=("_committed", "_again"))
    table = table.rename(columns={"value_committed": "committed", "value_again": "again"})
    table["difference"] = table["again"] - table["committed"]
    table["inside"] = table["again"].between(table["low"], table["high"])
    return table
