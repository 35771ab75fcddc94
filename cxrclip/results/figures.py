"""Figures: one function per figure, (tidy data, axes) -> axes.

Nothing here computes a result: intervals, chance levels and counts come in with the frame (statistics, evaluation).
Colours are the Okabe-Ito palette, told apart by readers with any common colour blindness; where colours alone would
carry the meaning, markers or line styles repeat it. Legends stand above or beside the data, never on them. No function
changes matplotlib's global settings.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.metrics import roc_curve

from cxrclip.data.files import atomic_file, write_text
from cxrclip.data.images import read_gray
from cxrclip.errors import InputError
from cxrclip.official.ledger import LEDGER
from cxrclip.results.rows import DIRECTIONS, LABELS, LOSS_WEIGHTS, row_label

# Okabe & Ito (2008), in the order used here; its yellow is left out, too faint for lines on white. Black comes last: it
# also marks references.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
CHANCE = "#6b6b6b"
CURVES = {"mvs": "MVS", "icl": "ICL", "tcl": "TCL", "valid_total": "total, validation", "valid_mvs": "MVS, validation"}
Measure = tuple[str, str, str]      # data set, task, metric
CLASSIFICATION: Measure = ("all", "zero-shot", "auroc")
RETRIEVAL: Measure = ("all", "image_to_text", "RSUM")
PAPER_RECIPE = "m_c_c14"            # a row of the remedies
PAPER_WEIGHTS = {"ICL": 1.0, "TCL": 0.5}
BUDGET_NAMES = {"evaluation": "one run, scored both ways"}  # the others are "equal <budget>"
ORIGIN = ("data", "key", "versions", "commit", "command")   # what a saved figure tells about where it comes from


def training_curves(log: pd.DataFrame, axes: Axes, columns: Sequence[str]) -> Axes:
    """Losses over optimisation steps: thin as logged, bold as running mean; validation as points.

    log: one row per step (training.fit): `step`, loss terms, and valid_... where they were read, NaN elsewhere.
    columns: which to draw. Raises InputError if one is not in the log.
    """
    _require(log, ["step", *columns], "training log")
    for name, _, colour, marker, _ in _looks(columns):
        curve = log[["step", name]].dropna()
        label = CURVES.get(name, name)
        if name.startswith("valid"):
            axes.plot(curve["step"], curve[name], marker=marker, linestyle="--", color="black", label=label)
            continue
        smooth = curve[name].rolling(max(1, len(curve) // 25), center=True, min_periods=1).mean()
        axes.plot(curve["step"], curve[name], color=colour, linewidth=0.6, alpha=0.3)
        axes.plot(curve["step"], smooth, color=colour, linewidth=2, label=label)
    axes.legend(loc="best", frameon=False, fontsize=9)
    return _finish(axes, "optimisation step", "loss (nats)")


def training_panels(logs: Mapping[str, pd.DataFrame], axes: Sequence[Axes], chance: float) -> Sequence[Axes]:
    """The training_curves of each run, its name above: the loss terms that it trains, and MVS on the validation split.

    logs: name of a run -> its log (training.fit). axes: side by side, one a run. chance: loss of a model that has
    learned nothing, drawn dashed.
    """
    for (name, log), axis in zip(logs.items(), axes, strict=True):
        terms = [term for term in ("mvs", "icl", "tcl") if log[term].any()]
        training_curves(log, axis, [*terms, "valid_mvs"]).set_title(name, fontsize=10)
        axis.axhline(chance, color=CHANCE, linestyle="--", linewidth=1)
        axis.label_outer()
    return axes


def similarity_matrix(matrix: np.ndarray, axes: Axes, rows: Sequence[str] = (), columns: Sequence[str] = (),
                      title: str = "", label: str = "cosine similarity", marked: np.ndarray | None = None) -> Axes:
    """Heat map of a similarity matrix (rows query columns); boxes mark the diagonal, the true pairs of the loss.

    matrix: (N, M). rows, columns: names of its sides, wrapped to a few lines; none are drawn when left out.
    marked: (N, M) bool, places that get a dot, such as false negatives.
    """
    limit = max(float(np.abs(matrix).max()), 1e-6)
    image = axes.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="equal")
    axes.figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, label=label)
    for i in range(min(matrix.shape)):
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.2))
    if marked is not None:
        axes.plot(*np.nonzero(marked)[::-1], "o", color="black", markersize=3)
    axes.set_yticks(range(len(rows)), [textwrap.fill(name, 24) for name in rows], fontsize=8)
    axes.set_xticks(range(len(columns)), [textwrap.fill(name, 24) for name in columns], fontsize=8, rotation=40,
                    ha="right", rotation_mode="anchor")
    axes.set_title(title)
    return axes


def auroc_forest(results: pd.DataFrame, axes: Axes, row: str = "dataset", by: str = "run") -> Axes:
    """Forest plot: one line per `row` value, one point with its interval per `by` value, the chance level dashed.

    results: tidy rows (results.COLUMNS) of one metric; values are fractions and are drawn as such.
    Raises InputError if two rows fall on the same point or if metrics are mixed.
    """
    _require(results, [row, by, "metric", "value", "low", "high", "chance"], "results")
    _one(results, "metric")
    rows = _intervals(results, axes, row, by)
    for y, name in enumerate(rows):
        for chance in results.loc[results[row] == name, "chance"].dropna().unique():
            axes.plot([chance, chance], [y - 0.45, y + 0.45], color=CHANCE, linestyle="--", linewidth=1.2,
                      label="chance" if y == 0 else "_")
    names = [row_label(results["comparison"].iloc[0], name) for name in rows] if row == "row" else rows
    return _above(_lines(axes, names, f"{_title(results['metric'].iloc[0])} (95 % interval)"), columns=2)


def main_points(results: pd.DataFrame, axes: Axes) -> Axes:
    """A main table as points: a line a measure, in percent; filled with its interval what was measured, hollow what the
    paper published of the same row, on its own films.

    results: tidy rows over seeds, with columns `measure` and `line`, how both are printed; a published row has a
    status. Published rows that nobody measured are left out. Raises InputError if two rows fall on one point.
    """
    _require(results, ["measure", "line", "status", "value", "low", "high"], "results")
    results = results.assign(**{name: 100 * results[name].astype(float) for name in ("value", "low", "high")})
    measured, known = results[results["status"] == ""], results[results["status"] != ""]
    measures = _intervals(measured, axes, "measure", "line")
    for line, offset, colour, marker, _ in _looks(measured["line"]):
        part = known[known["line"] == line]
        axes.plot(part["value"], [measures.index(name) + offset for name in part["measure"]], marker=marker,
                  linestyle="none", color=colour, fillstyle="none", markersize=7)
    axes.plot([], [], marker="o", linestyle="none", color=CHANCE, fillstyle="none", label="published, on real films")
    return _above(_lines(axes, measures, "percent (95 % interval)"), columns=2)


def recall_curve(ranks: pd.DataFrame, axes: Axes, by: str = "direction") -> Axes:
    """R@k in percent for every k, from per-sample ranks (evaluation.retrieve), with the chance diagonal.

    ranks: columns rank, n_candidates and `by`.
    """
    _require(ranks, ["rank", "n_candidates", by], "ranks")
    k = np.unique(np.round(np.geomspace(1, ranks["n_candidates"].max(), 60)).astype(int))
    for group, _, colour, _, style in _looks(ranks[by]):
        ordered = np.sort(ranks.loc[ranks[by] == group, "rank"].to_numpy())
        axes.plot(k, 100 * np.searchsorted(ordered, k, side="right") / len(ordered), style, color=colour, linewidth=2,
                  label=str(group))
    axes.plot(k, 100 * k / ranks["n_candidates"].mean(), color=CHANCE, linestyle=":", linewidth=1.5,
              label="chance (one right answer)")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, 100)
    axes.legend(loc="upper left", frameon=False, fontsize=9)  # no curve comes there
    return _finish(axes, "k (candidates looked at)", "R@k (%)")


def label_efficiency(scores: pd.DataFrame, axes: Axes) -> Axes:
    """AUROC in percent over the number of labelled films, a line a way to use them, with intervals.

    scores: rows with columns run, labels, value, low, high. Ways without labels (labels = 0) are dashed lines.
    """
    _require(scores, ["run", "labels", "value", "low", "high"], "scores")
    for group, _, colour, marker, _ in _looks(scores["run"]):
        part = 100 * scores[scores["run"] == group].set_index("labels")[["value", "low", "high"]].sort_index()
        if (part.index == 0).all():
            axes.axhline(part["value"].item(), color=colour, linestyle="--", linewidth=1.5, label=f"{group}, no label")
            continue
        axes.fill_between(part.index, part["low"], part["high"], color=colour, alpha=0.15, linewidth=0)
        axes.plot(part.index, part["value"], color=colour, marker=marker, linewidth=2, label=str(group))
    axes.axhline(50, color=CHANCE, linestyle=":", linewidth=1.5, label="chance")
    axes.set_xscale("log")
    ticks = sorted({n for n in scores["labels"] if n})
    axes.set_xticks(ticks, [f"{n:g}" for n in ticks])
    axes.set_xticks([], minor=True)
    axes.legend(frameon=False, fontsize=9)
    return _finish(axes, "labelled films", "mean AUROC (%)")


def reliability(tables: Mapping[str, pd.DataFrame], axes: Axes) -> Axes:
    """Observed against predicted probability, in percent: a line a way to make probabilities, the diagonal is right.

    tables: name -> book.safety.reliability (columns predicted, observed, low, high).
    """
    axes.plot([0, 100], [0, 100], color=CHANCE, linestyle="--", linewidth=1, label="perfectly calibrated")
    for (name, _, colour, marker, _), table in zip(_looks(tables), tables.values(), strict=True):
        part = 100 * table.rename(columns={"observed": "value"})
        axes.errorbar(part["predicted"], part["value"], yerr=_errors(part), color=colour, marker=marker, linewidth=1.5,
                      capsize=3, label=name)
    axes.legend(frameon=False, fontsize=9)
    return _finish(axes, "predicted probability (%)", "films with the finding (%)")


def risk_coverage(curves: Mapping[str, pd.DataFrame], axes: Axes) -> Axes:
    """Share of wrong answers against share of answers given, in percent. curves: name -> columns coverage, risk."""
    for (name, _, colour, _, style), curve in zip(_looks(curves), curves.values(), strict=True):
        axes.plot(100 * curve["coverage"], 100 * curve["risk"], style, color=colour, linewidth=2, label=name)
    axes.legend(frameon=False, fontsize=9)
    axes.set_xlim(0, 100)
    axes.set_ylim(bottom=0)
    return _finish(axes, "answers given (%)", "of these wrong (%)")


def over_scale(scales: np.ndarray, curves: Mapping[str, Sequence[float]], axes: Axes, label: str,
               level: Mapping[str, float] | None = None) -> Axes:
    """Curves over the logit scale s (logarithmic), its initial value marked. level: name -> a dashed line."""
    for (name, _, colour, _, style), curve in zip(_looks(curves), curves.values(), strict=True):
        axes.plot(scales, curve, style, color=colour, linewidth=2, label=name)
    for name, value in (level or {}).items():
        axes.axhline(value, color=CHANCE, linestyle="--", label=name)
    axes.axvline(1 / 0.07, color="black", linewidth=0.8, linestyle=":", label="initial $s$")
    axes.set_xscale("log")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False, fontsize=8)  # no room among the curves
    return _finish(axes, "logit scale $s$", label)


def growth(points: Mapping[str, pd.DataFrame], axes: Axes, x: str, y: str) -> Axes:
    """A cost over what it grows with, both on logarithmic axes: measured points with their range, and a model's line.

    points: name -> frame with the columns x, value, low, high and model (the predicted value; dashed).
    """
    for name, _, colour, marker, _ in _looks(points):
        frame = points[name]
        axes.errorbar(frame["x"], frame["value"], yerr=_errors(frame), fmt=marker, color=colour, capsize=3, label=name)
        axes.plot(frame["x"], frame["model"], "--", color=colour, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    ticks = sorted({tick for frame in points.values() for tick in frame["x"]})
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.legend(frameon=False, fontsize=9)
    return _finish(axes, x, y)


def on_two_rings(degrees: np.ndarray, axes: Axes, title: str, towards: np.ndarray | None = None) -> Axes:
    """Unit vectors of images (outer ring) and texts (inner ring) as points at their angle, a colour a study.

    degrees: (2, N), images first. towards: (2, N), where each goes, as arrows. axes: polar.
    """
    for side, (name, marker, radius) in enumerate((("image", "o", 1.0), ("text", "s", 0.75))):
        angles, colours = np.deg2rad(degrees[side]), PALETTE[:len(degrees[side])]
        axes.plot(np.linspace(0, 2 * np.pi, 200), np.full(200, radius), color="#cccccc", linewidth=0.8)
        axes.scatter(angles, np.full(len(angles), radius), s=110, marker=marker, color=colours, edgecolor="black",
                     zorder=3)
        axes.scatter([], [], marker=marker, s=70, color="white", edgecolor="black", label=name)
        for start, end, colour in zip(angles, np.deg2rad(degrees if towards is None else towards)[side], colours,
                                      strict=True):
            if towards is not None:
                axes.annotate("", (end, radius + 0.1), (start, radius + 0.1),
                              arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 2})
    axes.set(title=title, ylim=(0, 1.25), yticks=[], xticks=[], frame_on=False)
    axes.legend(frameon=False, loc="center")
    return axes


def recall_panels(ranks: Mapping[str, pd.DataFrame], axes: Sequence[Axes], by: str = "direction") -> Sequence[Axes]:
    """A recall_curve for each test set, its name above it, with one legend above all panels.

    ranks: name of a test set -> its ranks, as recall_curve takes them. axes: side by side, in a figure with constrained
    layout; those left over stay empty.
    """
    for (name, part), axis in zip(ranks.items(), axes, strict=False):
        recall_curve(part, axis, by).set_title(name)
        axis.get_legend().remove()
        axis.label_outer()
    axes[0].figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False,
                          fontsize=9)
    return axes


def pareto(results: pd.DataFrame, axes: Axes, x: Measure = CLASSIFICATION) -> Axes:
    """Classification against retrieval as label data grow: a line a budget, a point a `row`, both intervals.

    results: tidy rows of one comparison, a row a run and measure (statistics.over_seeds of with_sums), in the
    order in which the data grow; x: the measure of classification. Both axes are in percent; up and to the right is
    better. A mixture with a share of a data set is a small point without a name. Raises InputError if a point lacks a
    measure or has it twice.
    """
    points = _points(results, ["budget", "row"], x)
    for budget, _, colour, marker, style in _looks(points["budget"]):
        part = points[points["budget"] == budget]
        axes.errorbar(part["x"], part["y"], xerr=part[["x_low", "x_high"]].T, yerr=part[["y_low", "y_high"]].T,
                      fmt="none", ecolor=colour, alpha=0.45, capsize=2, elinewidth=0.8)
        axes.plot(part["x"], part["y"], marker=marker, linestyle=style, color=colour, markersize=3.5, linewidth=1.5,
                  label=f"equal {budget}")
        whole = part[~part["label"].str.contains("%")]
        axes.plot(whole["x"], whole["y"], marker=marker, linestyle="none", color=colour, markersize=8)
        turned = whole["x"].diff() < 0  # where the line runs back its label would cover the point before
        for i, (point, left) in enumerate(zip(whole.itertuples(), turned, strict=True)):
            shift = (-5 if left else 5, -14 if left or i % 2 else 6)    # neighbours take turns above and below
            axes.annotate(point.label, (point.x, point.y), shift, color=colour, textcoords="offset points", fontsize=10,
                          ha="right" if left else "left", path_effects=[withStroke(linewidth=3, foreground="white")])
    return _above(_finish(axes, _measure_label(x), _measure_label(RETRIEVAL)))


def remedies_plot(results: pd.DataFrame, axes: Axes) -> Axes:
    """Remedies for the trade-off, both axes, against the paper's recipe: dashed lines cross at its row, PAPER_RECIPE.

    results: as for pareto, rows of one budget. Up and to the right of the cross is better in both. Raises InputError
    without the recipe.
    """
    points = _points(results, ["row"], CLASSIFICATION)
    if PAPER_RECIPE not in set(points["row"]):
        raise InputError(f"remedies: no row {PAPER_RECIPE!r}; there are {', '.join(points['row'])}")
    _one(results, "budget")
    for point, (_, _, colour, marker, _) in zip(points.itertuples(), _looks(points["row"], PALETTE[:-1]), strict=True):
        look = {"fmt": marker, "color": colour, "markersize": 8, "label": point.label}
        if point.row == PAPER_RECIPE:
            look = {"fmt": "*", "color": "black", "markersize": 14, "label": f"{point.label} (paper's recipe)"}
            axes.axvline(point.x, color=CHANCE, linestyle="--", linewidth=1, zorder=0)
            axes.axhline(point.y, color=CHANCE, linestyle="--", linewidth=1, zorder=0)
        _, _, bars = axes.errorbar(point.x, point.y, xerr=[[point.x_low], [point.x_high]],
                                   yerr=[[point.y_low], [point.y_high]], elinewidth=1, **look)
        for bar in bars:
            bar.set_alpha(0.45)
    return _beside(_finish(axes, _measure_label(CLASSIFICATION), _measure_label(RETRIEVAL)))


def ablation_forest(differences: pd.DataFrame, axes: Axes, reference: str = "") -> Axes:
    """Difference of each row to a reference, in percentage points, with its interval; 0 is no difference.

    differences: tidy rows with a reference (claims.differences_to), of one metric; a marker and colour a budget.
    reference: how the other side is printed, by default the label of the one reference of all rows. Raises InputError
    if two fall on one point.
    """
    _require(differences, ["comparison", "row", "reference", "budget", "metric", "value", "low", "high"], "differences")
    metric, comparison = _one(differences, "metric"), _one(differences, "comparison")
    reference = reference or row_label(comparison, _one(differences, "reference"))
    points = differences.assign(**100 * differences[["value", "low", "high"]],
                                budget=differences["budget"].map(lambda name: BUDGET_NAMES.get(name, f"equal {name}")))
    rows = _intervals(points, axes, "row", "budget")
    axes.axvline(0, color=CHANCE, linestyle="--", linewidth=1.2, label="no difference")
    what = f"{_title(metric)}: difference to {reference} (percentage points, 95 % interval)"
    return _above(_lines(axes, [row_label(comparison, row) for row in rows], what))


def ledger_forest(results: pd.DataFrame, axes: Axes, task: str = "image_to_text", metric: str = "RSUM") -> Axes:
    """What each row of the ledger costs in one measure: the released code's behaviour minus the intended one.

    results: tidy rows; the differences of the comparison "ledger" are drawn (tables.ledger_table), in the ledger's
    order. Rows measured on one test set name it. Raises InputError if there are none.
    """
    part = results[(results["comparison"] == "ledger") & (results["task"] == task)
                   & (results["metric"] == metric) & (results["reference"] != "")]
    order = [item.id for item in LEDGER] + ["official"]
    part = part.sort_values("row", key=lambda rows: rows.map(order.index))
    names = [row if dataset == "all" else f"{row} ({LABELS[dataset]})"
             for row, dataset in zip(part["row"], part["dataset"], strict=True)]
    return ablation_forest(part.assign(row=names), axes, "the intended behaviour")


def weights_curve(results: pd.DataFrame, axes: Axes) -> Axes:
    """Retrieval against the weight of a loss, one line a loss; dotted lines mark the weights that the paper uses.

    results: tidy rows of the comparison 'loss weights' (rows.LOSS_WEIGHTS), a row a run and measure. Raises InputError
    for a row without a weight.
    """
    part = _measure(results, RETRIEVAL)
    _unique(part, ["row"])
    if unknown := [row for row in part["row"] if row not in LOSS_WEIGHTS]:
        raise InputError(f"loss weights: row {unknown[0]!r} has no weight: choose from {', '.join(LOSS_WEIGHTS)}")
    losses, weights = zip(*part["row"].map(LOSS_WEIGHTS), strict=True)
    part = part.assign(loss=losses, weight=weights).sort_values("weight")
    for loss, offset, colour, marker, _ in _looks(sorted(part["loss"]), span=0.02):
        line = part[part["loss"] == loss]
        axes.errorbar(line["weight"] + offset, 100 * line["value"], yerr=100 * _errors(line), fmt=marker, linestyle="-",
                      color=colour, capsize=3, label=f"{loss} weight")
        axes.axvline(PAPER_WEIGHTS[loss] + offset, color=colour, linestyle=":", linewidth=1.5, zorder=0,
                     label=f"{loss} in the paper")
    return _above(_finish(axes, "weight of the loss (MVS has weight 1)", _measure_label(RETRIEVAL)))


def coarse_text(results: pd.DataFrame, axes: Axes) -> Axes:
    """Accuracy of side, zone and severity as label data grow, with chance dashed: the rows stand in their order.

    results: tidy rows of task coarse-text (statistics.share_rows), a row a run and class, of one budget.
    """
    _require(results, ["comparison", "row", "class", "budget", "value", "low", "high", "chance"], "coarse text")
    _one(results, "budget")
    _unique(results, ["row", "class"])
    rows = list(dict.fromkeys(results["row"]))
    for name, offset, colour, marker, _ in _looks(results["class"], span=0.2):
        line = results[results["class"] == name].set_index("row").reindex(rows)
        x = np.arange(len(rows)) + offset
        axes.errorbar(x, 100 * line["value"], yerr=100 * _errors(line), fmt=marker, linestyle="-", color=colour,
                      capsize=3, label=name)
        axes.plot(x, 100 * line["chance"], color=colour, linestyle="--", linewidth=1, label=f"{name}, chance")
    names = [row_label(results["comparison"].iloc[0], row) for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=30, ha="right", rotation_mode="anchor")
    return _beside(_finish(axes, "pretraining data", "nearest reports that are right (%)"))


def text_kinds(results: pd.DataFrame, axes: Axes) -> Axes:
    """Share of label sentences among the texts nearest to a film: a line a row, a point a test set, one half dashed.

    results: tidy rows of task text-kind (comparisons.text_kinds), of one comparison and budget.
    """
    percent = results.assign(dataset=results["dataset"].map(LABELS), **100 * results[["value", "low", "high"]])
    rows = _intervals(percent, axes, "row", "dataset")
    axes.axvline(50, color=CHANCE, linestyle="--", linewidth=1.2, label="one half")
    names = [row_label(results["comparison"].iloc[0], row) for row in rows]
    return _above(_lines(axes, names, "label sentences among the ten nearest texts (%)"))


def collisions(results: pd.DataFrame, axes: Axes) -> Axes:
    """Probability that two studies carry the same text, a line a source: the phantom's beside the real tables'.

    results: tidy rows of task collision; `class` says which text; origin measured (phantom) or published (computed on
    public tables). The axis is logarithmic: a source without a collision has no point.
    """
    _require(results, ["dataset", "class", "origin", "value", "low", "high"], "collisions")
    _unique(results, ["dataset", "class", "origin"])
    names = results["dataset"].map(lambda name: LABELS.get(name, name)) + ", " + results["class"]
    rows = list(dict.fromkeys(names))
    looks = {"published": ("real public table", "black", "D", 0.12), "measured": ("phantom", PALETTE[1], "o", -0.12)}
    for origin, (label, colour, marker, offset) in looks.items():
        part = results[results["origin"] == origin]
        y = np.array([rows.index(name) for name in names[part.index]], float) + offset
        axes.errorbar(part["value"], y, xerr=_errors(part), fmt=marker, color=colour, capsize=3, label=label)
    axes.set_xscale("log")
    return _above(_lines(axes, rows, "probability that two random studies carry the same text"))


def dots(values: pd.DataFrame, axes: Axes, unit: str, log: bool = False) -> Axes:
    """Dot plot: a line for each row of the frame, and on it a point for each column, both in the frame's order.

    values: numbers in `unit`, named on both sides. On a logarithmic axis a value of 0 has no point, as has a NaN.
    """
    _require(values, [], "values")
    for name, offset, colour, marker, _ in _looks(values.columns, span=0.3):
        column = values[name].astype(float)
        axes.plot(column.where(column > 0) if log else column, np.arange(len(values)) + offset, marker, color=colour,
                  markersize=8, label=str(name))
    axes.set_xscale("log" if log else "linear")
    return _above(_lines(axes, list(values.index), unit))


def film(pixels: np.ndarray, axes: Axes, title: str = "") -> Axes:
    """One film, gray as stored. pixels: (H, W) uint8. Fixed gray range, so that films can be compared."""
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255)
    axes.set_title(textwrap.fill(title, _characters(axes, 9), break_long_words=False), fontsize=9)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return axes


def shown(data: bytes) -> np.ndarray:
    """The pixels (H, W) uint8 of an encoded film of a study, for `film` and its kin."""
    return read_gray(data, "film")


def contact_sheet(films: Sequence[np.ndarray], titles: Sequence[str], axes: np.ndarray) -> np.ndarray:
    """Many films, one per axes of the grid `axes` (from plt.subplots); axes left over are switched off.

    Raises InputError if there are more films than axes, or not one title for each film.
    """
    grid = np.ravel(axes)
    if len(films) != len(titles) or len(films) > len(grid):
        raise InputError(f"contact sheet: {len(films)} films, {len(titles)} titles, {len(grid)} axes: give one of each")
    for axis in grid[len(films):]:
        axis.set_axis_off()
    for pixels, title, axis in zip(films, titles, grid, strict=False):
        film(pixels, axis, title)
    return axes


def finding_overlay(pixels: np.ndarray, masks: Mapping[str, np.ndarray], axes: Axes, title: str = "") -> Axes:
    """A film with its findings outlined and tinted. pixels: (H, W) uint8; masks: name -> (H, W) bool, drawn in order.

    An empty mask (a finding that this view does not show) is named in the legend as such.
    """
    film(pixels, axes, title)
    handles = []
    for (name, mask), colour in zip(masks.items(), cycle(PALETTE[1:]), strict=False):
        seen = bool(mask.any())
        if seen:
            tint = np.zeros((*mask.shape, 4))
            tint[mask] = mpl.colors.to_rgba(colour, 0.25)
            axes.imshow(tint, interpolation="nearest")
            axes.contour(mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.5)
        handles.append(Patch(facecolor=colour if seen else "none", edgecolor=colour,
                             label=name if seen else f"{name} (not in this view)"))
    if handles:
        axes.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0.0), frameon=False, fontsize=8)
    return axes


def where_it_looks(pixels: np.ndarray, fall: np.ndarray, mask: np.ndarray, axes: Axes, title: str = "") -> Axes:
    """A film with how much a score falls where it is hidden (warm colours), and the outline of the true place.

    pixels: (H, W). fall: (S, S), of the same square picture. mask: (H, W) bool.
    """
    extent = (0, pixels.shape[1], pixels.shape[0], 0)
    axes.imshow(pixels, cmap="gray", extent=extent)
    axes.imshow(np.clip(fall, 0, None), cmap="inferno", alpha=0.45, extent=extent, interpolation="bilinear")
    axes.contour(mask, levels=[0.5], colors="white", linewidths=1.5)
    axes.set_axis_off()
    axes.set_title(title, fontsize=10)
    return axes


def pointing(tables: Mapping[str, pd.DataFrame], axes: Axes) -> Axes:
    """Shares of hits of the pointing game, a line a finding, with 95 % intervals.

    tables: finding -> frame with the index model and the columns hits, low, high (scoring.pointing_game).
    """
    models = next(iter(tables.values())).index
    for model, offset, colour, marker, _ in _looks(models):
        rows = 100 * pd.DataFrame({finding: table.loc[model] for finding, table in tables.items()}).T.astype(float)
        errors = None if model == "chance" else _errors(rows.rename(columns={"hits": "value"}))
        axes.errorbar(rows["hits"], np.arange(len(rows)) + offset, xerr=errors, fmt=marker,
                      color=CHANCE if model == "chance" else colour, capsize=3, label=model)
    axes.set_xlim(-3, 103)
    axes.legend(frameon=False, fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(models))
    return _lines(axes, list(tables), "points in the true place (%)")


def retrieval_example(query: np.ndarray, reports: pd.DataFrame, axes: Sequence[Axes],
                      title: str = "query") -> Sequence[Axes]:
    """A query film (left) and the reports retrieved for it (right), best first, the true one marked.

    reports: one row per shown report: rank, score (cosine), text, own (True for the query's own). axes: two axes.
    """
    _require(reports, ["rank", "score", "text", "own"], "retrieved reports")
    left, right = axes
    film(query, left, title)
    right.set_axis_off()
    right.figure.draw_without_rendering()  # a layout gives the axes their places only when it draws
    lines = {row.Index: textwrap.wrap(row.text, _characters(right, 8.5) - 2, max_lines=6, placeholder=" …")
             or ["(empty report)"] for row in reports.itertuples()}
    unit = 1.0 / (sum(len(part) for part in lines.values()) + 2.0 * len(lines))
    points = min(8.5, 72 * right.get_position().height * right.figure.get_figheight() * unit / 1.45)
    y = 1.0
    for row in reports.itertuples():
        height = (len(lines[row.Index]) + 1.6) * unit
        own = bool(row.own)
        right.add_patch(Rectangle((0, y - height), 1, height, transform=right.transAxes, clip_on=False,
                                  linewidth=1.8 if own else 0.8, facecolor="#e5f3ee" if own else "white",
                                  edgecolor=PALETTE[2] if own else "#bbbbbb"))
        mark = "   ✓ its own report" if own else ""
        font = {"fontsize": points, "va": "top", "transform": right.transAxes}
        right.text(0.012, y - 0.3 * unit, f"rank {row.rank:g}   cosine {row.score:.2f}{mark}", weight="bold",
                   color=PALETTE[2] if own else "black", **font)
        right.text(0.012, y - 1.4 * unit, "\n".join(lines[row.Index]), **font)
        y -= height + 0.4 * unit
    return axes


def co_occurrence(matrix: pd.DataFrame, axes: Axes, title: str = "") -> Axes:
    """Heat map of how often findings stand together. matrix: square frame, named on both sides, in percent."""
    sns.heatmap(matrix, ax=axes, cmap="cividis", square=True, linewidths=0.3,
                cbar_kws={"label": "% of studies with the row's finding", "shrink": 0.8},
                xticklabels=True, yticklabels=True, annot=len(matrix) <= 14, fmt=".0f", annot_kws={"fontsize": 7})
    axes.tick_params(labelsize=8, length=0)
    axes.set_xticklabels(axes.get_xticklabels(), rotation=45, ha="right", rotation_mode="anchor")
    axes.set(xlabel="", ylabel="", title=title)
    return axes


def roc_curves(scores: pd.DataFrame, axes: Axes) -> Axes:
    """ROC curves, one per class, with the chance diagonal. scores: per-sample frame with score, target and class.

    A class with a single outcome has no curve; the legend says so.
    """
    _require(scores, ["score", "target", "class"], "scores")
    for group, _, colour, _, style in _looks(scores["class"]):
        part = scores[scores["class"] == group]
        if part["target"].nunique() < 2:
            axes.plot([], [], style, color=colour, label=f"{group} (one outcome only)")
            continue
        false_positive, true_positive, _ = roc_curve(part["target"], part["score"])
        axes.plot(false_positive, true_positive, style, color=colour, linewidth=1.8,
                  label=f"{group} ({int(part['target'].sum())} positive)")
    axes.plot([0, 1], [0, 1], color=CHANCE, linestyle=":", linewidth=1.5, label="chance")
    axes.set_aspect("equal")
    axes.set(xlim=(0, 1), ylim=(0, 1.01))
    return _beside(_finish(axes, "false positive rate", "true positive rate"))


def counts_bars(counts: pd.DataFrame, axes: Axes, name: str = "name", count: str = "count", by: str | None = None,
                unit: str = "studies", digits: int = 0) -> Axes:
    """Horizontal bars of counts, each with its number. counts: columns `name`, `count` and, for colours, `by`."""
    _require(counts, [name, count, *([by] if by else [])], "counts")
    names = list(dict.fromkeys(counts[name]))
    looks = _looks(counts[by] if by else [None], span=0.8)
    alone = counts[name].is_unique  # then no bar stands beside another, and each is centred at its name
    height = 0.8 if alone else 0.8 / len(looks)
    for group, offset, colour, _, _ in looks:
        part = counts if group is None else counts[counts[by] == group]
        y = np.array([names.index(value) for value in part[name]]) + (0 if alone else offset)
        bars = axes.barh(y, part[count], 0.92 * height, color=colour, label=None if group is None else str(group))
        axes.bar_label(bars, [f"{value:,.{digits}f}" for value in part[count]], padding=3, fontsize=8)
    axes.set_yticks(range(len(names)), [str(value) for value in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.12)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    _finish(axes, unit, "")
    return _above(axes) if by else axes


def save_figure(figure: Figure, stem: str | Path, origin: Mapping[str, object], alt: str) -> list[Path]:
    """Writes stem.png (150 dpi), stem.svg and stem.json; returns their paths. Each file appears whole or not at all.

    origin: where the figure comes from; the keys ORIGIN must be there. alt: what the figure shows, for readers who
    cannot see it; it stands in all three files. The same figure gives the same bytes: no date is written and SVG ids
    are fixed. Raises InputError if a key or the text is missing, or the folder cannot be written.
    """
    stem = Path(stem)
    if lacking := [key for key in ORIGIN if key not in origin]:
        raise InputError(f"figure {stem.name}: its origin lacks {', '.join(lacking)}: give them in `origin`")
    if not alt.strip():
        raise InputError(f"figure {stem.name}: no alt text: say in `alt` what it shows")
    png, svg, about = (stem.with_name(stem.name + suffix) for suffix in (".png", ".svg", ".json"))
    with atomic_file(png) as draft:
        figure.savefig(draft, dpi=150, bbox_inches="tight", facecolor="white",
                       metadata={"Software": None, "Description": alt})
    with atomic_file(svg) as draft, mpl.rc_context({"svg.hashsalt": stem.name}):
        figure.savefig(draft, bbox_inches="tight", facecolor="white", metadata={"Date": None, "Description": alt})
    write_text(about, json.dumps({**origin, "alt": alt}, indent=2, sort_keys=True, default=str) + "\n")
    return [png, svg, about]


def _require(frame: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raises InputError if the frame is empty or lacks a column."""
    lacking = [name for name in columns if name not in frame]
    if lacking:
        raise InputError(f"{what}: no column {lacking[0]!r}; it has {', '.join(map(str, frame.columns))}")
    if frame.empty:
        raise InputError(f"{what}: no rows to draw")


def _one(frame: pd.DataFrame, column: str) -> object:
    """The one value of a column. Raises InputError if it holds several."""
    values = list(dict.fromkeys(frame[column]))
    if len(values) != 1:
        raise InputError(f"figure: needs one {column}, got {values}: filter the results first")
    return values[0]


def _unique(frame: pd.DataFrame, columns: list[str]) -> None:
    """Raises InputError if two rows would be drawn on one another."""
    twice = frame[frame.duplicated(columns)]
    if len(twice):
        key = ", ".join(str(twice.iloc[0][column]) for column in columns)
        raise InputError(f"figure: several rows for {key}: filter the results first")


def _intervals(results: pd.DataFrame, axes: Axes, row: str, by: str) -> list:
    """A point with its interval for each row of the frame: a line a value of `row`, a look a value of `by`.

    Returns the values of `row`, from the top. Raises InputError if two fall on one point.
    """
    _unique(results, [row, by])
    rows = list(dict.fromkeys(results[row]))
    for group, offset, colour, marker, _ in _looks(results[by]):
        part = results[results[by] == group]
        y = np.array([rows.index(name) for name in part[row]]) + offset
        axes.errorbar(part["value"].to_numpy(float), y, xerr=_errors(part), fmt=marker, color=colour, capsize=3,
                      label=str(group))
    return rows


def _measure(results: pd.DataFrame, measure: Measure) -> pd.DataFrame:
    """The rows of one (dataset, task, metric). Raises InputError if there are none."""
    _require(results, ["comparison", "row", "dataset", "task", "metric", "class", "reference", "value", "low", "high"],
             "results")
    results = results[(results["class"] == "all") & (results["reference"] == "")]
    part = results[(results[["dataset", "task", "metric"]] == list(measure)).all(axis=1)]
    if part.empty:
        raise InputError(f"figure: no rows for {', '.join(measure)}: evaluate it, or add sums (with_sums)")
    return part


def _points(results: pd.DataFrame, key: list[str], x: Measure) -> pd.DataFrame:
    """A row a point: key, label, x and RETRIEVAL as y in percent, and distances x_low, ... to the intervals' ends."""
    sides = []
    for name, measure in (("x", x), ("y", RETRIEVAL)):
        part = _measure(results, measure)
        _unique(part, key)
        low, high = 100 * _errors(part)
        sides.append(part[key].assign(**{name: 100 * part["value"], f"{name}_low": low, f"{name}_high": high}))
    points = sides[0].merge(sides[1], how="outer", on=key, sort=False)
    if (lacking := points[points[["x", "y"]].isna().any(axis=1)]).size:
        point = ", ".join(map(str, lacking[key].iloc[0]))
        raise InputError(f"figure: {point} lacks {' / '.join(x)} or {' / '.join(RETRIEVAL)}: leave it out or run it")
    order = sides[0][key].apply(tuple, axis=1)
    points = points.set_index(points[key].apply(tuple, axis=1)).loc[order].reset_index(drop=True)
    return points.assign(label=[row_label(results["comparison"].iloc[0], row) for row in points["row"]])


def _measure_label(measure: Measure) -> str:
    """Axis label of a measure in percent."""
    dataset, task, metric = measure
    where = "three sets" if dataset == "all" else LABELS.get(dataset, dataset)
    what = f"{task} {_title(metric)}" if metric in ("auroc", "accuracy") else _title(metric)
    how = f"{task.replace('_', ' ')}, " if task in DIRECTIONS else ""
    return f"{what} ({how}{where}; {'points' if metric == 'RSUM' else '%'})"


def _errors(part: pd.DataFrame) -> np.ndarray:
    """Distances (2, N) from the value down to low and up to high; 0 where there is no interval."""
    distances = np.stack([part["value"] - part["low"], part["high"] - part["value"]]).astype(float)
    return np.maximum(np.nan_to_num(distances), 0.0)


def _looks(values: Iterable, colours: Sequence[str] = PALETTE, span: float = 0.6) -> list[tuple]:
    """How each distinct value is drawn: (value, offset, colour, marker, line style).

    Offsets are the centres of equal slots that share `span` around 0. Line styles change when colours begin again.
    """
    groups = list(dict.fromkeys(values))
    n = len(groups)
    return [(group, (i - (n - 1) / 2) * span / n, colours[i % len(colours)], MARKERS[i % len(MARKERS)],
             ("-", "--", "-.")[i // len(colours) % 3]) for i, group in enumerate(groups)]


def _characters(axes: Axes, points: float) -> int:
    """How many characters of this font size stand side by side in the axes (a mean letter is 0.56 of its size wide)."""
    inches = axes.get_position().width * axes.figure.get_figwidth()
    return max(12, int(72 * inches / (0.56 * points)))


def _title(metric: str) -> str:
    return "AUROC" if metric == "auroc" else metric


def _lines(axes: Axes, names: Sequence[object], x: str) -> Axes:
    """A named line for each place of the y axis, the first on top, and a grid across."""
    axes.set_yticks(range(len(names)), [str(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    return _finish(axes, x, "")


def _above(axes: Axes, columns: int = 4) -> Axes:
    """A legend above the plot, in as many columns as it has entries, `columns` at most."""
    entries = len(axes.get_legend_handles_labels()[1])
    axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1), ncols=min(entries, columns))
    return axes


def _beside(axes: Axes) -> Axes:
    """A legend to the right of the plot."""
    axes.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    return axes


def _finish(axes: Axes, x: str, y: str) -> Axes:
    """Labels, no box, a light grid behind the data."""
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.grid(axis="y", alpha=0.3)
    return axes
