"""Results: one tidy table, the published numbers beside it, and the paper's tables drawn from it alone.

A row of the tidy table is one number with its interval and its origin; COLUMNS says what each column means. Values are
fractions (an AUROC of 0.788), tables print percent (78.8). A missing number is never blank: its cell says why.
"""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import t as student
from tabulate import tabulate

from cxrclip import metrics
from cxrclip.errors import InputError

COLUMNS: Mapping[str, str] = {
    "run": "name of the run, the same for all its seeds",
    "profile": "quick, standard or paper; empty for published numbers",
    "mix": "which data fill the paper's roles; 'paper' are the paper's own data sets",
    "origin": "measured, official weights or published",
    "model": "method, such as CXR-CLIP",
    "image_encoder": "name of the image encoder",
    "pretraining_data": "roles pretrained on, joined by commas: M; M,C; M,C,C14",
    "dataset": "role of the test set in the mix, such as vindr-cxr; 'all' for a sum over data sets",
    "task": "zero-shot, linear-probe-10, linear-probe-100, image_to_text, text_to_image or size",
    "metric": "auroc, accuracy, R@1, R@5, R@10, RSUM (their sum), mean rank; train, valid, test for task size",
    "class": "finding the number is for; 'all' for the mean over findings",
    "value": "the number; fractions, except mean rank and sizes (counts)",
    "low": "lower end of the 95 % interval; empty where unknown",
    "high": "upper end of the 95 % interval; empty where unknown",
    "chance": "what guessing would reach; empty where unknown",
    "n": "test studies (queries in retrieval) behind the number",
    "seeds": "training seeds behind the number, joined by spaces",
    "status": "published numbers: how far the number is checked (STATUS); empty otherwise",
    "note": "what the reader must know, such as classes left out of a mean",
    "experiment": "fingerprint of the run or runs",
    "data": "fingerprint of the test data",
    "versions": "versions of the software behind the number",
}
KEY = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", "dataset", "task", "metric",
       "class")
NUMBERS = ("value", "low", "high", "chance", "n")
ABOUT = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", "seeds", "experiment", "data",
         "versions")
STATUS: Mapping[str, tuple[str, str]] = {
    "recalled": ("r", "recalled from memory, not checked against a copy of the paper"),
    "quoted": ("q", "a third party quotes the paper"),
    "quoted (best value per dataset, row inferred)": ("q*", "a third party quotes the best value of the data set; "
                                                            "which row it belongs to is inferred"),
    "code": ("c", "read in the official code"),
    "computed": ("k", "recomputed from public tables"),
}
PUBLISHED = Path(__file__).parent.parent / "results" / "published.csv"
KS = (1, 5, 10)
SPLITS = ("train", "valid", "test")

# How ids are printed, and which published encoder stands beside a small one of its family.
LABELS: Mapping[str, str] = {
    "M": "MIMIC-CXR (M)", "C": "CheXpert (C)", "C14": "ChestX-ray14 (C14)", "vindr-cxr": "VinDr-CXR", "rsna": "RSNA",
    "siim": "SIIM", "chexpert5x200": "CheXpert5x200", "mimic-cxr": "MIMIC-CXR", "openi": "Open-I", "all": "all three",
    "zero-shot": "zero-shot", "linear-probe-10": "10 %", "linear-probe-100": "100 %",
}
FAMILY: Mapping[str, str] = {"resnet-small": "ResNet-50", "resnet50": "ResNet-50", "swin-small": "Swin-T",
                             "swin-tiny": "Swin-T"}
TABLE_2 = (*((dataset, task, "auroc") for dataset in ("vindr-cxr", "rsna", "siim")
             for task in ("zero-shot", "linear-probe-10", "linear-probe-100")),
           ("chexpert5x200", "zero-shot", "accuracy"))
RETRIEVAL_SETS = ("chexpert5x200", "mimic-cxr", "openi")
TABLE_3 = (*((dataset, "image_to_text", f"R@{k}") for dataset in RETRIEVAL_SETS for k in KS),
           ("all", "image_to_text", "RSUM"))


# ---- per-sample scores -> tidy rows ---------------------------------------------------------------------------------


def auroc_rows(scores: pd.DataFrame, about: Mapping[str, object], dataset: str, task: str, *, n_bootstrap: int = 1000,
               seed: int = 0) -> pd.DataFrame:
    """AUROC rows of one run: the mean over classes ('all') and each class, with patient-bootstrap intervals.

    scores: per-sample frame of evaluation.score_frame (study_id, patient_id, class, score, target, and draw for the
    draws of a linear probe; the value is then the mean over draws). about: the columns ABOUT. A class with one outcome
    only has no AUROC: it is left out of the mean and the note names it.
    """
    wide = _Wide.of(scores)
    usable = wide.targets.any(axis=0) & ~wide.targets.all(axis=0)
    if not usable.any():
        raise InputError(f"{dataset}, {task}: no class has both outcomes among {len(wide.targets)} studies: no AUROC")
    draws = wide.scores.transpose(1, 0, 2)                                      # (draws, N, K)
    value = np.mean([metrics.class_aurocs(draw, wide.targets) for draw in draws], axis=0)     # (K,)
    weights = _patient_weights(wide.patients, n_bootstrap, seed)                # (R, N)
    resampled = np.mean([_weighted_aurocs(draw, wide.targets, weights) for draw in draws], axis=0)   # (R, K)
    resampled = resampled[~np.isnan(resampled).all(axis=1)]
    columns = {"all": (value[usable].mean(), np.nanmean(resampled, axis=1)),
               **{wide.classes[k]: (value[k], resampled[:, k]) for k in np.flatnonzero(usable)}}
    return _rows([{"class": name, "metric": "auroc", "value": point, **_interval(values), "chance": 0.5,
                   "n": len(wide.targets), "note": _class_note(wide, usable) if name == "all" else ""}
                  for name, (point, values) in columns.items()], about, dataset, task)


def accuracy_rows(scores: pd.DataFrame, about: Mapping[str, object], dataset: str, task: str = "zero-shot", *,
                  n_bootstrap: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Accuracy of the class with the highest score, for studies with exactly one true class (CheXpert 5x200).

    scores: as for auroc_rows. Chance is 1 / classes. Raises InputError for a study without exactly one true class.
    """
    wide = _Wide.of(scores)
    wrong = np.flatnonzero(wide.targets.sum(axis=1) != 1)
    if len(wrong):
        raise InputError(f"{dataset}: study {wide.studies[wrong[0]]} has {wide.targets[wrong[0]].sum()} of the "
                         f"{len(wide.classes)} classes ({len(wrong)} such studies): accuracy needs exactly one")
    hits = (wide.scores.argmax(axis=2) == wide.targets.argmax(axis=1)[:, None]).mean(axis=1)   # (N,)
    resampled = _weighted_means(hits, _patient_weights(wide.patients, n_bootstrap, seed))
    return _rows([{"class": "all", "metric": "accuracy", "value": hits.mean(), **_interval(resampled),
                   "chance": 1 / len(wide.classes), "n": len(hits)}], about, dataset, task)


def retrieval_rows(ranks: pd.DataFrame, about: Mapping[str, object], dataset: str, *, n_bootstrap: int = 1000,
                   seed: int = 0) -> pd.DataFrame:
    """R@1, R@5, R@10, their sum (RSUM) and the mean rank for each direction, with patient-bootstrap intervals.

    ranks: per-sample frame of evaluation.retrieve. Chance is that of candidates in random order.
    """
    tidy = []
    for direction, part in ranks.groupby("direction", sort=False):
        rank, right, candidates = (part[name].to_numpy(float) for name in ("rank", "n_right", "n_candidates"))
        weights = _patient_weights(part["patient_id"].to_numpy(), n_bootstrap, seed)
        measures = {f"R@{k}": ((rank <= k).astype(float), chance_recall(right, candidates, k)) for k in KS}
        measures["RSUM"] = tuple(sum(parts) for parts in zip(*measures.values(), strict=True))
        measures["mean rank"] = (rank, ((candidates + 1) / (right + 1)).mean())
        tidy += [{"task": direction, "class": "all", "metric": metric, "value": values.mean(),
                  **_interval(_weighted_means(values, weights)), "chance": chance, "n": len(rank)}
                 for metric, (values, chance) in measures.items()]
    return _rows(tidy, about, dataset)


def chance_recall(right: np.ndarray, candidates: np.ndarray, k: int) -> float:
    """Mean over queries of the probability that k candidates, drawn at random, hold one of the `right` ones."""
    missed = np.ones(len(right))
    for j in range(k):
        missed *= np.clip((candidates - right - j) / np.maximum(candidates - j, 1), 0, 1)
    return float(1 - missed.mean())


def rsum_rows(results: pd.DataFrame, datasets: Sequence[str] = RETRIEVAL_SETS) -> pd.DataFrame:
    """The paper's RSUM: the sum of the recalls over its three retrieval sets, for each run that has all three.

    The sets are independent samples, so half-widths add in quadrature.
    """
    parts = results[(results["metric"] == "RSUM") & results["dataset"].isin(datasets)]
    tidy = []
    for _, rows in parts.groupby([*(key for key in KEY if key != "dataset"), "seeds"], dropna=False, sort=False):
        if set(rows["dataset"]) != set(datasets):
            continue
        value = rows["value"].sum()
        below, above = (np.sqrt(((rows["value"] - rows[end]) ** 2).sum()) for end in ("low", "high"))
        tidy.append({**rows.iloc[0], "dataset": "all", "value": value, "low": value - below, "high": value + above,
                     "chance": rows["chance"].sum(), "n": rows["n"].sum(), "data": _joined(rows["data"])})
    return _tidy(tidy)


def over_seeds(results: pd.DataFrame) -> pd.DataFrame:
    """One row per run and measure: the mean over its seeds; the interval covers test patients and seeds.

    Half-width = sqrt(mean patient half-width squared + (t(S-1) * sd / sqrt(S)) squared), with sd over the S seeds: the
    test set is shared, so its part does not shrink with S. A run with one seed stays as it is. Raises InputError if a
    seed stands there twice.
    """
    twice = results[results.duplicated([*KEY, "seeds"])]
    if len(twice):
        row = twice.iloc[0]
        raise InputError(f"results: run {row['run']!r}, seed {row['seeds']!r}, {row['dataset']}, {row['task']}, "
                         f"{row['metric']} stands there twice: merge_results keeps the newer")
    tidy = []
    for _, rows in results.groupby(list(KEY), dropna=False, sort=False):
        first, value, seeds = rows.iloc[0].to_dict(), rows["value"].mean(), len(rows)
        if seeds > 1:
            spread = student.ppf(0.975, seeds - 1) * rows["value"].std(ddof=1) / np.sqrt(seeds)
            below, above = (np.hypot((rows["value"] - rows[end]).abs().mean(), spread) for end in ("low", "high"))
            low, high = max(0.0, value - below), value + above
            first |= {"value": value, "low": low, "high": min(high, _top(first)), "chance": rows["chance"].mean(),
                      **{name: _joined(rows[name]) for name in ("seeds", "experiment", "data", "versions", "note")}}
        tidy.append(first)
    return _tidy(tidy)


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


def _patient_weights(patients: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n, N) how often each row stands in n bootstrap resamples of whole patients (metrics.bootstrap, as weights)."""
    number = np.unique(patients, return_inverse=True)[1]                        # (N,) patient of each row
    count = number.max() + 1
    draws = np.random.default_rng(seed).integers(count, size=(n, count))
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


def _rows(tidy: list[dict], about: Mapping[str, object], dataset: str, task: str | None = None) -> pd.DataFrame:
    """Tidy rows with the run's columns filled in. Raises InputError for lacking or unknown keys in `about`."""
    wrong = sorted(set(about) ^ set(ABOUT))
    if wrong:
        fault = "lacking" if wrong[0] in ABOUT else "unknown"
        raise InputError(f"about: {wrong[0]!r} is {fault}: give {', '.join(ABOUT)}")
    common = {**about, "dataset": dataset, "status": "", "note": "", **({"task": task} if task else {})}
    return _tidy([{**common, **row} for row in tidy])


def _tidy(rows: list[dict]) -> pd.DataFrame:
    """A frame with exactly COLUMNS: numbers as floats, all else as text."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    text = [name for name in COLUMNS if name not in NUMBERS]
    frame[text] = frame[text].fillna("").astype(str)
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def _joined(values: Iterable[object]) -> str:
    """Distinct words of a column, joined by spaces; longer texts are joined by semicolons."""
    texts = list(dict.fromkeys(str(value) for value in values if str(value)))
    return ("; " if any(" " in text for text in texts) else " ").join(texts)


def _top(row: Mapping[str, object]) -> float:
    """The largest value a metric can take."""
    return {"RSUM": float(len(KS)), "mean rank": np.inf}.get(str(row["metric"]), 1.0)


# ---- files ----------------------------------------------------------------------------------------------------------


def write_atomically(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all (a temporary name, then a rename). Raises InputError if that fails."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(draft, 0o644)
            os.replace(draft, path)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as fault:
        raise InputError(f"{path}: cannot be written ({fault.strerror}): check folder and free space") from fault
    return path


def write_results(results: pd.DataFrame, path: str | Path) -> Path:
    """Tidy results as CSV, sorted by nothing: rows stay in their order. Numbers keep six significant digits."""
    return write_atomically(path, _tidy(results.to_dict("records")).to_csv(index=False, float_format="%.6g",
                                                                           lineterminator="\n"))


def read_results(path: str | Path) -> pd.DataFrame:
    """Tidy results from CSV. Raises InputError naming the file, and the column or row at fault."""
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as fault:
        raise InputError(f"{path}: no such results file: run the notebooks first") from fault
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: not a results table ({' '.join(str(fault).split())})") from fault
    if wrong := sorted(set(frame.columns) ^ set(COLUMNS)):
        raise InputError(f"{path}: column {wrong[0]!r} is {'lacking' if wrong[0] in COLUMNS else 'unknown'}: "
                         f"a results table has {', '.join(COLUMNS)}")
    for name in NUMBERS:
        numbers = pd.to_numeric(frame[name].replace("", np.nan), errors="coerce")
        bad = np.flatnonzero(numbers.isna() & (frame[name] != ""))
        if len(bad):
            raise InputError(f"{path}, row {bad[0] + 2}, column {name}: {frame[name].iloc[bad[0]]!r} is no number")
        frame[name] = numbers
    return _tidy(frame.to_dict("records"))


def merge_results(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of both; a row of `new` takes the place of the old one with the same KEY and seeds."""
    return pd.concat([old, new]).drop_duplicates([*KEY, "seeds"], keep="last").reset_index(drop=True)


def published(path: str | Path = PUBLISHED) -> pd.DataFrame:
    """The paper's numbers as tidy rows, each with its status. Raises InputError for a status STATUS does not know."""
    frame = read_results(path)
    unknown = frame[~frame["status"].isin(list(STATUS))]
    if len(unknown):
        row, status = unknown.index[0] + 2, unknown["status"].iloc[0]
        raise InputError(f"{path}, row {row}, column status: {status!r} is unknown: use one of {', '.join(STATUS)}")
    return frame


# ---- tables ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Table:
    """A table ready to print. cells: text frame, two levels of columns (data set, measure); '\\n' parts measured from
    published. header: one sentence on what is measured where. legend: what the marks mean."""

    title: str
    header: str
    cells: pd.DataFrame
    legend: tuple[str, ...]

    def text(self) -> str:
        """For a terminal: one block per data set, the published number below the measured one; under 120 wide."""
        def wrapped(cell: str) -> str:
            return "\n".join(textwrap.fill(line, 24) for line in cell.split("\n"))
        blocks = []
        for dataset in self.cells.columns.unique(level=0):
            block = self.cells[[dataset]].map(wrapped)
            headers = [*self.cells.index.names, *(column for _, column in block.columns)]
            rows = [[*index, *row] for index, row in zip(block.index, block.to_numpy(), strict=True)]
            blocks.append(f"{dataset}\n{tabulate(rows, headers, tablefmt='simple', disable_numparse=True)}")
        return "\n\n".join([self.title, textwrap.fill(self.header, 110), *blocks,
                            "\n".join(textwrap.fill(line, 110) for line in self.legend)]) + "\n"

    def markdown(self) -> str:
        """For the book: one table; measured and published stand on two lines of a cell."""
        def clean(text: str) -> str:
            return text.replace("|", "\\|").replace("*", "\\*").replace("\n", "<br>")
        headers = [*self.cells.index.names, *(clean(f"{dataset}\n{column}") for dataset, column in self.cells.columns)]
        rows = [[clean(str(cell)) for cell in (*index, *row)]
                for index, row in zip(self.cells.index, self.cells.to_numpy(), strict=True)]
        body = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
        return "\n\n".join([f"**{clean(self.title)}**", clean(self.header), body,
                            "\n".join(f"- {clean(line)}" for line in self.legend)]) + "\n"

    def latex(self) -> str:
        """A table environment; needs the packages booktabs and makecell."""
        def cell(text: str) -> str:
            lines = [latex_escape(line) for line in text.split("\n")]
            return "\\makecell{" + r" \\ ".join(lines) + "}" if len(lines) > 1 else lines[0]
        frame = self.cells.map(cell)
        frame.index = pd.MultiIndex.from_tuples([tuple(map(latex_escape, row)) for row in frame.index],
                                                names=[latex_escape(name) for name in frame.index.names])
        frame.columns = pd.MultiIndex.from_tuples([tuple(map(latex_escape, column)) for column in frame.columns])
        body = frame.style.to_latex(hrules=True, sparse_index=False, sparse_columns=True, multicol_align="c")
        caption = latex_escape(f"{self.title}. {self.header} {'; '.join(self.legend)}.")
        return f"\\begin{{table}}\n\\caption{{{caption}}}\n{body}\\end{{table}}\n"


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
               **{mark: "\\" + mark for mark in "&%$#_{}"}}
    return "".join(special.get(mark, mark) for mark in text)


def write_table(table: Table, stem: str | Path) -> list[Path]:
    """Writes stem.txt, stem.md and stem.tex; returns their paths."""
    stem = Path(stem)
    forms = {".txt": table.text(), ".md": table.markdown(), ".tex": table.latex()}
    return [write_atomically(stem.with_name(stem.name + suffix), text) for suffix, text in forms.items()]


def table1(summary: pd.DataFrame, mix: str, profile: str, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 1: studies per data set and split, the published sizes beside them.

    summary: studies.summary (columns name, split, studies). missing: role -> why it has no data.
    """
    missing = missing or {}
    sizes = (published() if reference is None else reference).query("task == 'size'")
    here = {(row["name"], row["split"]): f"{row['studies']:,}" for _, row in summary.iterrows()}
    there = {(row["dataset"], row["metric"]): f"pub. {row['value']:,.0f} {STATUS[row['status']][0]}"
             for _, row in sizes.iterrows()}
    names = list(dict.fromkeys([*sizes["dataset"], *summary["name"], *missing]))
    cells = {}
    for name in names:
        has_data = any(name == known for known, _ in here)
        for split in SPLITS:
            measured = here.get((name, split)) or ("none" if has_data else missing.get(name, "not in this mix"))
            cells[name, split] = "\n".join(filter(None, [measured, there.get((name, split), "")]))
    frame = pd.DataFrame([[cells[name, split] for split in SPLITS] for name in names],
                         pd.MultiIndex.from_tuples([(LABELS.get(name, name),) for name in names], names=["data set"]),
                         pd.MultiIndex.from_product([["studies"], SPLITS]))
    return Table("Table 1: data sets and their sizes", _header(mix, profile, "Counted"), frame, _legend(sizes))


def table2(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 2: zero-shot and linear-probe classification (AUROC; accuracy for CheXpert5x200), in percent.

    results: tidy rows of one mix and profile, one or more seeds. missing: role (test set or pretraining data) -> why it
    has no data. reference: published rows. Raises InputError if two runs claim one cell.
    """
    return _table("Table 2: classification", results, TABLE_2, missing, reference)


def table3(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 3: image-to-text retrieval, R@k in percent and their sum. Arguments as for table2."""
    results = merge_results(results, rsum_rows(results))
    return _table("Table 3: image-to-text retrieval", results, TABLE_3, missing, reference)


def other_sets_table(results: pd.DataFrame) -> Table:
    """Classification on test sets that the paper does not have (a mix of one's own): one line a run, set and task.

    results: tidy rows of one mix and profile. The mean over findings with its interval, chance, and how many films.
    """
    known = {dataset for dataset, _, _ in (*TABLE_2, *TABLE_3)}
    beyond = ~results["dataset"].isin(known) & (results["class"] == "all")
    own = results[beyond & results["metric"].isin(["auroc", "accuracy"])]
    if own.empty:
        raise InputError("table of other sets: no result on a test set beyond the paper's: evaluate a run on one first")
    own = over_seeds(own)
    cells = [[f"{100 * row.value:.1f} [{100 * row.low:.1f}, {100 * row.high:.1f}]", f"{100 * row.chance:.0f}",
              f"{row.n:.0f}", row.note] for row in own.itertuples()]
    index = pd.MultiIndex.from_frame(own[["dataset", "image_encoder", "pretraining_data", "task", "metric"]],
                                     names=["test set", "image encoder", "pretrained on", "task", "metric"])
    columns = pd.MultiIndex.from_product([["films"], ["measured", "chance", "test films", "note"]])
    header = f"Measured on the mix '{own['mix'].iloc[0]}' (profile {own['profile'].iloc[0]})."
    legend = ("measured [95 % interval over patients]; in percent",)
    frame = pd.DataFrame(cells, columns=columns, index=index)
    return Table("Test sets of this mix that the paper does not have", header, frame, legend)


def _table(title: str, results: pd.DataFrame, columns: Sequence[tuple[str, str, str]],
           missing: Mapping[str, str] | None, reference: pd.DataFrame | None) -> Table:
    missing, reference = missing or {}, published() if reference is None else reference
    measured = over_seeds(_of_columns(results, columns))
    reference = _of_columns(reference, columns)
    for name in ("mix", "profile"):
        if measured[name].nunique() > 1:
            several = ", ".join(measured[name].unique())
            raise InputError(f"{title}: results of more than one {name} ({several}): choose one")
    here, there = _by_cell(measured, title), _by_cell(reference, title)
    rows = list(dict.fromkeys(row for row, _ in [*there, *here]))
    cells = [[_cell(row, column, here, there, missing) for column in columns] for row in rows]
    names = {_row(run): run["image_encoder"] for _, run in measured.iterrows()}
    labels = [(model, _encoder_label(encoder, names.get((model, encoder, data), encoder)), data)
              for model, encoder, data in rows]
    index = pd.MultiIndex.from_tuples(labels, names=["model", "image encoder (paper's)", "pretrained on"])
    frame = pd.DataFrame(cells, index, pd.MultiIndex.from_tuples([_column_label(*column) for column in columns]))
    mix, profile = (measured[name].iloc[0] if len(measured) else "" for name in ("mix", "profile"))
    legend = ("measured [95 % interval]; pub.: published; all in percent; probe 10 %: linear probe on 10 % of the "
              "labels; published only: not trained here", *_legend(reference))
    return Table(title, _header(mix, profile, "Measured"), frame, legend)


def _of_columns(results: pd.DataFrame, columns: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """The rows that stand in a table with these (dataset, task, metric) columns."""
    keys = pd.MultiIndex.from_frame(results[["dataset", "task", "metric"]])
    return results[keys.isin(columns) & (results["class"] == "all").to_numpy()]


def _row(result: pd.Series) -> tuple[str, str, str]:
    """A result's table row; a small encoder stands in the row of the published one of its family."""
    encoder = result["image_encoder"]
    return result["model"], FAMILY.get(encoder, encoder), result["pretraining_data"]


def _by_cell(results: pd.DataFrame, title: str) -> dict[tuple, pd.Series]:
    """Results by (row, column). Raises InputError if two fall into one cell."""
    cells: dict[tuple, pd.Series] = {}
    for _, result in results.iterrows():
        key = (_row(result), (result["dataset"], result["task"], result["metric"]))
        if key in cells:
            raise InputError(f"{title}: runs {cells[key]['run']!r} and {result['run']!r} claim the same cell "
                             f"({', '.join(key[0])}; {', '.join(key[1])}): choose one")
        cells[key] = result
    return cells


def _cell(row: tuple[str, str, str], column: tuple[str, str, str], here: Mapping, there: Mapping,
          missing: Mapping[str, str]) -> str:
    """'measured [low, high]' or the reason why not; below it the published value and its mark."""
    lines = []
    if (row, column) in here:
        result = here[row, column]
        interval = "" if np.isnan(result["low"]) else f" [{100 * result['low']:.1f}, {100 * result['high']:.1f}]"
        lines.append(f"{100 * result['value']:.1f}{interval}")
    else:
        lines.append(_reason(row, column, here, missing))
    if (row, column) in there:
        result = there[row, column]
        lines.append(f"pub. {100 * result['value']:.1f} {STATUS[result['status']][0]}")
    return "\n".join(lines)


def _reason(row: tuple[str, str, str], column: tuple[str, str, str], here: Mapping, missing: Mapping[str, str]) -> str:
    """Why a cell has no measured number."""
    if here and not any(row[0] == model for (model, _, _), _ in here):
        return "published only"
    sets = RETRIEVAL_SETS if column[0] == "all" else (column[0],)
    for role in (*sets, *row[2].split(",")):
        if role in missing:
            return missing[role]
    if not any(row == known for known, _ in here):
        return "no such run" if here else "no run yet"
    return "not evaluated"


def _column_label(dataset: str, task: str, metric: str) -> tuple[str, str]:
    measure = {"auroc": f"{LABELS.get(task, task)} AUROC", "accuracy": f"{LABELS.get(task, task)} accuracy"}
    if task.startswith("linear-probe"):
        measure["auroc"] = f"probe {LABELS.get(task, task)} AUROC"
    return LABELS.get(dataset, dataset), measure.get(metric, metric)


def _encoder_label(published_name: str, used: str) -> str:
    return used if used == published_name else f"{used} ({published_name})"


def _header(mix: str, profile: str, verb: str) -> str:
    """One sentence that says what the two numbers of a cell stand on."""
    if not mix:
        return "Nothing measured yet. Published numbers (pub.) are the paper's, on its own data."
    if mix == "paper":
        return f"{verb} on the paper's data sets (profile {profile}). Published numbers (pub.) are the paper's."
    return (f"{verb} on the mix '{mix}' (profile {profile}), NOT on the paper's data. Published numbers (pub.) are the "
            f"paper's, on its own data: the two stand on different films and must not be compared as if on the same.")


def _legend(reference: pd.DataFrame) -> tuple[str, ...]:
    """What the marks of the published numbers mean, those in use only."""
    used = set(reference["status"])
    return tuple(f"{mark}: {meaning}" for status, (mark, meaning) in STATUS.items() if status in used)
