"""From per-sample scores to tidy rows: intervals, chance, means over seeds, sums over data sets, paired differences.

Whole patients are drawn (metrics.resamples). A resample is the weight of each row, so that all are one matrix product.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import pandas as pd
from scipy.stats import t as student

from cxrclip import metrics
from cxrclip.errors import InputError
from cxrclip.results.rows import (
    ABOUT,
    CEILING,
    CLASSIFICATION_SETS,
    KEY,
    KS,
    RETRIEVAL_SETS,
    SPLITS,
    STAMPS,
    in_percent,
    merge_results,
    tidy_frame,
)

Scores = Sequence[pd.DataFrame] | Mapping[str, Sequence[pd.DataFrame]]


# ---- per-sample scores -> tidy rows ---------------------------------------------------------------------------------


def auroc_rows(scores: pd.DataFrame, about: Mapping[str, object], dataset: str, task: str, *,
               n_bootstrap: int = 1000) -> pd.DataFrame:
    """AUROC rows of one run: the mean over classes ('all') and each class, with patient-bootstrap intervals.

    scores: per-sample frame of evaluation.score_frame (study_id, patient_id, class, score, target, and draw for the
    draws of a linear probe; the value is then the mean over draws). about: the columns ABOUT, and STAMPS if any.
    A class with one outcome only has no AUROC: it is left out of the mean and the note names it.
    """
    wide = _Wide.of(scores)
    usable = wide.targets.any(axis=0) & ~wide.targets.all(axis=0)
    if not usable.any():
        raise InputError(f"{dataset}, {task}: no class has both outcomes among {len(wide.targets)} studies: no AUROC")
    draws = wide.scores.transpose(1, 0, 2)                                      # (draws, N, K)
    value = np.mean([metrics.class_aurocs(draw, wide.targets) for draw in draws], axis=0)     # (K,)
    weights = _patient_weights(wide.patients, n_bootstrap)                      # (R, N)
    resampled = np.mean([_weighted_aurocs(draw, wide.targets, weights) for draw in draws], axis=0)   # (R, K)
    resampled = resampled[~np.isnan(resampled).all(axis=1)]
    columns = {"all": (value[usable].mean(), np.nanmean(resampled, axis=1)),
               **{wide.classes[k]: (value[k], resampled[:, k]) for k in np.flatnonzero(usable)}}
    return _rows([{"class": name, "metric": "auroc", "value": point, **_interval(values), "chance": 0.5,
                   "n": len(wide.targets), "note": _class_note(wide, usable) if name == "all" else ""}
                  for name, (point, values) in columns.items()], about, dataset, task)


def accuracy_rows(scores: pd.DataFrame, about: Mapping[str, object], dataset: str, task: str = "zero-shot", *,
                  n_bootstrap: int = 1000) -> pd.DataFrame:
    """Accuracy of the class with the highest score, for studies with exactly one true class (CheXpert 5x200).

    scores: as for auroc_rows. Chance is 1 / classes. Raises InputError for a study without exactly one true class.
    """
    wide = _Wide.of(scores)
    wrong = np.flatnonzero(wide.targets.sum(axis=1) != 1)
    if len(wrong):
        raise InputError(f"{dataset}: study {wide.studies[wrong[0]]} has {wide.targets[wrong[0]].sum()} of the "
                         f"{len(wide.classes)} classes ({len(wrong)} such studies): accuracy needs exactly one")
    return _rows([{"class": "all", "metric": "accuracy", "chance": 1 / len(wide.classes),
                   **_mean(wide.hits(), _patient_weights(wide.patients, n_bootstrap))}], about, dataset, task)


def retrieval_rows(ranks: pd.DataFrame, about: Mapping[str, object], dataset: str, *,
                   n_bootstrap: int = 1000) -> pd.DataFrame:
    """R@1, R@5, R@10, their sum (RSUM) and the mean rank for each direction, with patient-bootstrap intervals.

    ranks: per-sample frame of evaluation.retrieve. Chance is that of candidates in random order.
    """
    tidy = []
    for direction, part in ranks.groupby("direction", sort=False):
        rank, right, candidates = (part[name].to_numpy(float) for name in ("rank", "n_right", "n_candidates"))
        weights = _patient_weights(part["patient_id"].to_numpy(), n_bootstrap)
        chance = _with_rsum({f"R@{k}": metrics.chance_of_hit(right, candidates, k).mean() for k in KS})
        chance["mean rank"] = ((candidates + 1) / (right + 1)).mean()
        tidy += [{"task": direction, "class": "all", "metric": metric, "chance": chance[metric],
                  **_mean(values, weights)} for metric, values in (_hits(rank) | {"mean rank": rank}).items()]
    return _rows(tidy, about, dataset)


def share_rows(hits: pd.DataFrame, about: Mapping[str, object], dataset: str, task: str, metric: str = "accuracy", *,
               n_bootstrap: int = 1000) -> pd.DataFrame:
    """A share of right answers for each class, with patient-bootstrap intervals: such as the accuracy of the side.

    hits: per-sample frame with patient_id, class, hit (0 or 1) and, if known, chance (of that answer).
    """
    tidy = []
    for name, part in hits.groupby("class", sort=False):
        weights = _patient_weights(part["patient_id"].to_numpy(), n_bootstrap)
        tidy.append({"class": name, "metric": metric, "chance": part["chance"].mean() if "chance" in part else np.nan,
                     **_mean(part["hit"].to_numpy(float), weights)})
    return _rows(tidy, about, dataset, task)


def f1_rows(scores: pd.DataFrame, thresholds: Mapping[str, float], about: Mapping[str, object], dataset: str,
            task: str = "zero-shot", *, n_bootstrap: int = 1000) -> pd.DataFrame:
    """The mean F1 over classes, "present" from the class's threshold on, with a patient-bootstrap interval.

    scores: as for auroc_rows, one draw. Chance is the F1 of who calls every finding present. A class that no study of a
    resample has does not count there.
    """
    wide = _Wide.of(scores)
    called = wide.scores[:, 0] >= [thresholds[name] for name in wide.classes]           # (N, K)
    weights = _patient_weights(wide.patients, n_bootstrap)

    def f1(called: np.ndarray, weights: np.ndarray) -> np.ndarray:
        both, either = (weights @ part.astype(float) for part in (called & wide.targets, 0. + called + wide.targets))
        present = weights @ wide.targets > 0                                            # (R, K)
        return np.nanmean(np.where(present, 2 * both / np.maximum(either, 1), np.nan), axis=1)

    once = np.ones((1, len(called)))
    return _rows([{"class": "all", "metric": "F1", "value": f1(called, once).item(), **_interval(f1(called, weights)),
                   "chance": f1(np.ones_like(called), once).item(), "n": len(called)}], about, dataset, task)


def median_rank_rows(ranks: pd.DataFrame, about: Mapping[str, object], dataset: str, *,
                     n_bootstrap: int = 1000) -> pd.DataFrame:
    """The median rank for each direction, with a patient-bootstrap interval. Arguments as for retrieval_rows."""
    tidy = []
    for direction, part in ranks.groupby("direction", sort=False):
        part = part.sort_values("rank")
        weights = _patient_weights(part["patient_id"].to_numpy(), n_bootstrap).cumsum(axis=1)
        middle = (weights >= weights[:, -1:] / 2).argmax(axis=1)                        # (R,) the lower median
        tidy.append({"task": direction, "class": "all", "metric": "median rank", "value": part["rank"].median(),
                     **_interval(part["rank"].to_numpy()[middle]), "chance": (part["n_candidates"].median() + 1) / 2,
                     "n": len(part)})
    return _rows(tidy, about, dataset)


def ceiling_rows(texts: Sequence[str], contents: Sequence[object], about: Mapping[str, object],
                 dataset: str) -> pd.DataFrame:
    """The attainable R@k and RSUM of a retrieval set, both directions: metrics "ceiling R@1", ..., "ceiling RSUM".

    texts, contents: metrics.recall_ceiling. The ceiling is the test set's own, no model's, so the columns that name a
    run are overwritten; it has no interval, for it is counted on these very studies.
    """
    common = {**about, "run": "ceiling", "model": CEILING, "image_encoder": "", "pretraining_data": "", "seeds": "",
              "key": "", **dict.fromkeys(STAMPS, "")}
    tidy = []
    for direction, queries in (("image_to_text", len(texts)), ("text_to_image", len(set(texts)))):
        ceiling = metrics.recall_ceiling(texts, contents, KS, direction)
        tidy += [{"task": direction, "class": "all", "metric": f"ceiling {name}", "value": value, "n": queries}
                 for name, value in _with_rsum({f"R@{k}": recall for k, recall in ceiling.items()}).items()]
    return _rows(tidy, common, dataset)


def size_rows(summary: pd.DataFrame, about: Mapping[str, object]) -> pd.DataFrame:
    """Sizes as tidy rows, for Table 1: studies of each data set and split; 0 where a data set lacks a split.

    summary: studies.summary (columns name, split, studies). about: some of ABOUT, such as profile and mix; the rest is
    empty.
    """
    counts = summary.set_index(["name", "split"])["studies"]
    return tidy_frame([{**about, "run": "sizes", "origin": "measured", "dataset": name, "task": "size",
                        "metric": split, "class": "all", "value": counts.get((name, split), 0)}
                       for name in dict.fromkeys(summary["name"]) for split in SPLITS])


# ---- over data sets and seeds ---------------------------------------------------------------------------------------


def rsum_rows(results: pd.DataFrame) -> pd.DataFrame:
    """The paper's RSUM: the sum of the recalls over its three retrieval sets, for each run that has all three.

    One row a seed: call it before over_seeds. The sets are independent samples: half-widths add in quadrature.
    """
    rsums = results[results["metric"].isin(["RSUM", "ceiling RSUM"]) & (results["reference"] == "")]
    return _across(rsums, RETRIEVAL_SETS, 1.0)


def mean_auroc_rows(results: pd.DataFrame) -> pd.DataFrame:
    """The mean AUROC over the paper's three classification sets, for each run that has all three. As rsum_rows."""
    aurocs = results[(results["metric"] == "auroc") & (results["class"] == "all") & (results["reference"] == "")]
    return _across(aurocs, CLASSIFICATION_SETS, 1 / len(CLASSIFICATION_SETS))


def with_sums(results: pd.DataFrame) -> pd.DataFrame:
    """The results with RSUM and mean AUROC over the paper's three sets (data set 'all'), one row a seed."""
    return merge_results(merge_results(results, rsum_rows(results)), mean_auroc_rows(results))


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """One row per run and measure: the mean over its S seeds, with an interval that holds two sources of spread.

    Test patients: the mean half-width of the seeds' own bootstrap intervals. The seeds share one test set, so this
    part does not shrink with S; it bounds from above that of the mean, whose patient errors are at most fully shared.
    Training seeds: t(S - 1) * sd / sqrt(S), with sd over the seeds. The two are independent: half-widths add in
    quadrature (with a t per part this covers at least 95 %; a test simulates it). A run with one seed stays as it is:
    its interval covers patients only. Where a seed has no interval the mean has none. Raises InputError if a seed
    stands there twice.
    """
    twice = results[results.duplicated([*KEY, "seeds"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"results: run {row['run']!r}, seed {row['seeds']!r}, {row['dataset']}, {row['task']}, "
                         f"{row['metric']} stands there twice: merge_results keeps the newer")
    tidy = []
    for rows in _groups(results, KEY):
        first, seeds = rows[0], len(rows)
        if seeds > 1:
            values, ends = _column(rows, "value"), {end: _column(rows, end) for end in ("low", "high")}
            spread = student.ppf(0.975, seeds - 1) * values.std(ddof=1) / np.sqrt(seeds)
            below, above = (np.hypot(np.abs(values - end).mean(), spread) for end in ends.values())
            low, high = np.clip((values.mean() - below, values.mean() + above), *_range(first))
            first |= {"value": values.mean(), "low": low, "high": high, "chance": _column(rows, "chance").mean(),
                      **_joined(rows, "seeds", "key", "data", "versions", "commit", "note")}
        tidy.append(first)
    return tidy_frame(tidy)


def _across(results: pd.DataFrame, datasets: Sequence[str], weight: float) -> pd.DataFrame:
    """`weight` times the sum over data sets, for every run and seed that has them all."""
    tidy = []
    keys = [*(key for key in KEY if key != "dataset"), "seeds"]
    for rows in _groups(results[results["dataset"].isin(datasets)], keys):
        if {row["dataset"] for row in rows} != set(datasets):
            continue
        values, ends = _column(rows, "value"), [_column(rows, end) for end in ("low", "high")]
        value = weight * values.sum()
        below, above = (weight * np.sqrt(((values - end) ** 2).sum()) for end in ends)
        tidy.append({**rows[0], "dataset": "all", "value": value, "low": value - below, "high": value + above,
                     "chance": weight * _column(rows, "chance").sum(), "n": _column(rows, "n").sum(),
                     **_joined(rows, "data", "note")})
    return tidy_frame(tidy)


def _groups(results: pd.DataFrame, keys: Sequence[str]) -> list[list[dict]]:
    """Rows with the same `keys`, as dictionaries: thousands of groups of three are ten times as fast as frames."""
    groups: dict[tuple, list[dict]] = {}
    for row in results.to_dict("records"):
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.values())


def _column(rows: Sequence[Mapping], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows])


def _joined(rows: Sequence[Mapping], *names: str) -> dict[str, str]:
    """Distinct texts of each column, joined by spaces; texts of several words are joined by semicolons."""
    texts = {name: list(dict.fromkeys(row[name] for row in rows if row[name])) for name in names}
    return {name: ("; " if any(" " in text for text in column) else " ").join(column)
            for name, column in texts.items()}


def _range(row: Mapping[str, object]) -> tuple[float, float]:
    """The smallest and the largest value that a row's metric can take."""
    if row["reference"]:
        return -np.inf, np.inf
    sets = len(RETRIEVAL_SETS) if row["dataset"] == "all" else 1
    return 0.0, {"RSUM": float(len(KS) * sets), "mean rank": np.inf, "median rank": np.inf}.get(str(row["metric"]), 1.0)


# ---- paired differences ---------------------------------------------------------------------------------------------


def differences(scores_a: Scores, scores_b: Scores, *, n_bootstrap: int = 2000) -> pd.DataFrame:
    """Differences a - b of two methods on the same test items: columns dataset, task, metric, value, low, high, p, n.

    scores_a, scores_b: per-sample frames, one a training seed (a list), or such a list for each data set (a mapping);
    then the rows of data set 'all' hold the mean AUROC or the summed RSUM. Frames with ranks (evaluation.retrieve)
    give R@k and RSUM for each direction; frames with scores give the mean AUROC over classes.

    Two sources of spread, each redrawn in every resample. Patients: drawn with all their films, the same patients for
    both methods and all seeds, so that what is hard for both cancels. Seeds: the two methods' seeds are other trainings
    and are not paired; their error is redrawn as se * t(df), se and df as in Welch's test, because a plain bootstrap
    of three seeds has ten distinct draws and far too narrow an interval. With one seed on a side that side adds
    nothing, and the note says so. low, high: 95 % percentiles; p: twice the smaller share of resamples beyond 0, at
    least 2 / (n_bootstrap + 1): adjust many cells with metrics.holm. Raises InputError if test items differ.
    """
    a, b = (scores if isinstance(scores, Mapping) else {"": scores} for scores in (scores_a, scores_b))
    counts = [{len(frames) for frames in part.values()} for part in (a, b)]
    if list(a) != list(b) or any(len(count) != 1 or 0 in count for count in counts):
        raise InputError(f"differences: data sets {', '.join(a)} against {', '.join(b)}, seeds {counts}: give both "
                         "sides the same data sets, and each data set the same seeds")
    cells: dict[tuple[str, str, str], tuple] = {}
    for i, dataset in enumerate(a):
        sides = [[frame.reset_index(drop=True) for frame in part[dataset]] for part in (a, b)]
        cells |= {(dataset, *key): value for key, value in _resampled(sides, n_bootstrap, i).items()}
    for task, name in dict.fromkeys((task, name) for _, task, name in cells if name in ("RSUM", "auroc")):
        parts = [cells[dataset, task, name] for dataset in a]
        if len(parts) > 1:
            weight = 1.0 if name == "RSUM" else 1 / len(parts)
            *values, items = zip(*parts, strict=True)
            cells["all", task, name] = (*(weight * np.sum(column, axis=0) for column in values), sum(items))
    order = np.random.default_rng(0).permutation(n_bootstrap)
    return pd.DataFrame([{"dataset": dataset, "task": task, "metric": name, **_contrast(*cell, order)}
                         for (dataset, task, name), cell in cells.items()])


def difference_rows(found: pd.DataFrame, about: Mapping[str, object], reference: str) -> pd.DataFrame:
    """Rows of `differences` as tidy rows of the first method.

    reference: the other method's `row` id inside a comparison, else its `run`. found: may have a column p_holm
    (metrics.holm over all cells looked at together).
    """
    return _rows([{**line, "class": "all", "reference": reference} for line in found.to_dict("records")], about)


def _resampled(sides: Sequence[Sequence[pd.DataFrame]], n: int, seed: int) -> dict[tuple[str, str], tuple]:
    """(task, metric) -> per-seed values (S,) of a and b, per-seed resamples (S, n) of a and b, test items."""
    statistic = _recall_samples if "rank" in sides[0][0] else _score_samples
    found = [[statistic(frame, n, seed) for frame in side] for side in sides]
    items = {key: value[2] for key, value in found[0][0].items()}
    for frame in chain(*found):
        if {key: value[2] for key, value in frame.items()} != items:
            raise InputError("differences: the frames do not hold the same test items and answers: "
                             "evaluate both methods on one test set")
    return {key: (*(np.array([frame[key][0] for frame in side]) for side in found),
                  *(np.stack([frame[key][1] for frame in side]) for side in found), len(item[0]))
            for key, item in items.items()}


def _recall_samples(ranks: pd.DataFrame, n: int, seed: int) -> dict[tuple[str, str], tuple]:
    """(direction, R@k or RSUM) -> value, its resamples (n,), and the items they stand on."""
    found = {}
    for direction, part in ranks.sort_values("study_id").groupby("direction", sort=False):
        weights = _patient_weights(part["patient_id"].to_numpy(), n, seed)
        items = (tuple(part["study_id"]), tuple(part["n_candidates"]))
        found |= {(direction, name): (hits.mean(), _weighted_means(hits, weights), items)
                  for name, hits in _hits(part["rank"].to_numpy(float)).items()}
    return found


def _score_samples(scores: pd.DataFrame, n: int, seed: int) -> dict[tuple[str, str], tuple]:
    """('', auroc) -> value, its resamples (n,), and the items they stand on."""
    wide = _Wide.of(scores.sort_values(["study_id", "class"]))
    weights = _patient_weights(wide.patients, n, seed)
    draws = wide.scores.transpose(1, 0, 2)
    value = np.mean([metrics.auroc(draw, wide.targets) for draw in draws])
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):     # a resample without any positive
        samples = np.nanmean(np.mean([_weighted_aurocs(draw, wide.targets, weights) for draw in draws], axis=0), 1)
    return {("", "auroc"): (value, samples, (tuple(wide.studies), tuple(wide.classes), wide.targets.tobytes()))}


def _contrast(a: np.ndarray, b: np.ndarray, resampled_a: np.ndarray, resampled_b: np.ndarray, items: int,
              order: np.ndarray) -> dict[str, object]:
    """Difference of means over seeds, its interval and p. a, b: (S,) a side; resampled: (S, R); order: (R,)."""
    parts = [(len(side), side.var(ddof=1) / len(side)) for side in (a, b) if len(side) > 1]
    variance = sum(part for _, part in parts)
    draws = resampled_a.mean(axis=0) - resampled_b.mean(axis=0)                         # (R,) patients redrawn
    if variance > 0:
        df = variance**2 / sum(part**2 / (count - 1) for count, part in parts)
        draws = draws + np.sqrt(variance) * student.ppf((order + 0.5) / len(order), df)  # seeds redrawn
    draws = draws[~np.isnan(draws)]
    low, high = np.percentile(draws, (2.5, 97.5))
    beyond = min((draws <= 0).sum(), (draws >= 0).sum())
    note = "" if len(parts) == 2 else "one seed on a side: its spread over seeds is unknown and left out"
    return {"value": a.mean() - b.mean(), "low": low, "high": high, "p": min(1.0, 2 * (1 + beyond) / (len(draws) + 1)),
            "n": items, "seeds_a": len(a), "seeds_b": len(b), "note": note}


@dataclass(frozen=True)
class _Wide:
    """A tidy score frame as arrays: scores (N, draws, K), targets (N, K) bool."""

    studies: np.ndarray
    patients: np.ndarray
    classes: list[str]
    scores: np.ndarray
    targets: np.ndarray

    @classmethod
    def of(cls, frame: pd.DataFrame) -> _Wide:
        """Raises InputError if a study lacks a class or a draw, or has one twice."""
        frame = frame if "draw" in frame else frame.assign(draw=0)
        studies, patients = (pd.unique(frame["study_id"]), frame.groupby("study_id", sort=False)["patient_id"].first())
        classes, draws = list(pd.unique(frame["class"])), list(pd.unique(frame["draw"]))
        whole = len(frame) == len(studies) * len(classes) * len(draws)
        if not whole or frame.duplicated(["study_id", "class", "draw"]).any():
            raise InputError(f"scores: {len(frame)} rows for {len(studies)} studies, {len(classes)} classes and "
                             f"{len(draws)} draws: each study needs each class once a draw")
        index = pd.MultiIndex.from_product([studies, draws, classes])
        ordered = frame.set_index(["study_id", "draw", "class"]).loc[index]
        shape = (len(studies), len(draws), len(classes))
        return cls(np.asarray(studies), patients.to_numpy(), classes, ordered["score"].to_numpy(float).reshape(shape),
                   ordered["target"].to_numpy(bool).reshape(shape)[:, 0])

    def hits(self) -> np.ndarray:
        """(N,) share of draws whose highest score is at the true class, the only one of its study."""
        return (self.scores.argmax(axis=2) == self.targets.argmax(axis=1)[:, None]).mean(axis=1)


# ---- resamples ------------------------------------------------------------------------------------------------------


def _patient_weights(patients: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    """(n, N) how often each row stands in n bootstrap resamples of whole patients."""
    number = np.unique(patients, return_inverse=True)[1]                        # (N,) patient of each row
    count = number.max() + 1
    draws = islice(metrics.resamples(count, seed), n)
    return np.stack([np.bincount(draw, minlength=count) for draw in draws])[:, number].astype(float)


def _weighted_means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R,) means of values (N,) in the resamples weights (R, N)."""
    return weights @ values / weights.sum(axis=1)


def _weighted_aurocs(scores: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(R, K) AUROC of each class of scores, targets (N, K) in the resamples weights (R, N), NaN where one outcome only.

    The weighted share of negatives below each positive, ties counting half. Every resample at once: a resampling loop
    over metrics.class_aurocs takes 50 times as long, and a test holds the two together.
    """
    aurocs = np.empty((len(weights), scores.shape[1]))
    for k, (column, positive) in enumerate(zip(scores.T, targets.T, strict=True)):
        negatives = np.flatnonzero(~positive)[np.argsort(column[~positive])]
        below = np.pad(np.cumsum(weights[:, negatives], axis=1), ((0, 0), (1, 0)))      # (R, negatives + 1)
        first, last = (np.searchsorted(column[negatives], column[positive], side) for side in ("left", "right"))
        won = (weights[:, positive] * (below[:, first] + below[:, last]) / 2).sum(axis=1)
        with np.errstate(invalid="ignore"):
            aurocs[:, k] = won / (weights[:, positive].sum(axis=1) * below[:, -1])
    return aurocs


def _hits(rank: np.ndarray) -> dict[str, np.ndarray]:
    """Of each query (Q,): is its rank within 1, 5 and 10, and their sum (RSUM)."""
    return _with_rsum({f"R@{k}": (rank <= k).astype(float) for k in KS})


def _with_rsum(recalls: dict) -> dict:
    return recalls | {"RSUM": sum(recalls.values())}


def _mean(values: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Mean of values (N,), its interval over the resamples weights (R, N), and N."""
    return {"value": values.mean(), **_interval(_weighted_means(values, weights)), "n": len(values)}


def _interval(resampled: np.ndarray) -> dict[str, float]:
    """95 % percentile interval; resamples without a value are left out."""
    return dict(zip(("low", "high"), np.nanpercentile(resampled, (2.5, 97.5)), strict=True))


def _class_note(wide: _Wide, usable: np.ndarray) -> str:
    """Names the classes without both outcomes in the test set, and those the scores do not separate at all."""
    parts = []
    without = [name for name, use in zip(wide.classes, usable, strict=True) if not use]
    if without:
        parts.append(f"mean of {usable.sum()} of {len(usable)} classes: one outcome only for {', '.join(without)}")
    constant = np.ptp(wide.scores, axis=0) == 0                                 # (draws, K)
    for k in np.flatnonzero(constant.any(axis=0) & usable):
        parts.append(f"constant score for {wide.classes[k]} in {constant[:, k].sum()} of {len(constant)} draws")
    return "; ".join(parts)


def _rows(tidy: list[dict], about: Mapping[str, object], dataset: str = "", task: str = "") -> pd.DataFrame:
    """Tidy rows with the run's columns filled in. Raises InputError for lacking or unknown keys in `about`."""
    if wrong := sorted((set(about) - set(STAMPS)) ^ set(ABOUT)):
        fault = "lacking" if wrong[0] in ABOUT else "unknown"
        raise InputError(f"about: {wrong[0]!r} is {fault}: give {', '.join(ABOUT)}")
    return tidy_frame([{**about, "dataset": dataset, "task": task, **row} for row in tidy])


# ---- numbers that point to a mistake --------------------------------------------------------------------------------


CAUSES = ("features before the projection, the normalisation of the other image encoder, prompts of another task or "
          "the wrong way round, weights that do not fit, or too little training (notebook 12 shows what each costs)")


def doubtful(results: pd.DataFrame) -> list[str]:
    """Numbers that point to a mistake: an AUROC whose interval lies below chance, an R@10 that chance may explain.

    results: tidy rows. A line a run and test set; the usual `CAUSES` are the same for all.
    """
    measured = results[(results["reference"] == "") & (results["class"] == "all") & (results["origin"] != "published")]
    below = measured[(measured["metric"] == "auroc") & (measured["high"] < measured["chance"])]
    lost = measured[(measured["metric"] == "R@10") & (measured["low"] <= measured["chance"]) & (measured["chance"] < 1)]
    lines = [f"{row['run']}, seed {row['seeds']}: {row['dataset']} {row['task'].replace('_', ' ')} {row['metric']} "
             f"{in_percent(row)}, chance {100 * row['chance']:.1f}"
             for row in pd.concat([below, lost]).to_dict("records")]
    return list(dict.fromkeys(lines))
