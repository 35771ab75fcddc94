"""Tables: the paper's Tables 1 to 4 and their kin, drawn from tidy results alone.

A cell holds a measured number with its interval, or a dash: the reason then stands once below the table. Published
numbers stand beside measured ones, in a column of their own where the page is wide enough. Values are in percent.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from tabulate import tabulate

from cxrclip.data.files import write_text
from cxrclip.errors import InputError
from cxrclip.official.ledger import LEDGER
from cxrclip.results.rows import (
    CEILING,
    CLASSIFICATION_SETS,
    FAMILY,
    KS,
    LABELS,
    RETRIEVAL_SETS,
    SPLITS,
    STATUS,
    published,
)
from cxrclip.results.statistics import over_seeds, with_sums

Column = tuple[str, str, str]           # data set, task, metric
Row = tuple[str, ...]                   # labels of a line of a table
TABLE_2: tuple[Column, ...] = (*((dataset, task, "auroc") for dataset in CLASSIFICATION_SETS
                                 for task in ("zero-shot", "linear-probe-10", "linear-probe-100")),
                               ("chexpert5x200", "zero-shot", "accuracy"))
TABLE_3: tuple[Column, ...] = (*((dataset, "image_to_text", f"R@{k}") for dataset in RETRIEVAL_SETS for k in KS),
                               ("all", "image_to_text", "RSUM"))
TABLE_4: tuple[Column, ...] = (("all", "zero-shot", "auroc"), ("all", "linear-probe-100", "auroc"),
                               *((dataset, "image_to_text", "R@10") for dataset in RETRIEVAL_SETS),
                               ("all", "image_to_text", "RSUM"))
MEASURED_ELSEWHERE = {"B1": "none here: no study has more than two views; B1* is the bound"}
# The measures that differences are shown in: task, metric (comparisons.differences).
DIFFERENCES = (("zero-shot", "auroc"), ("linear-probe-100", "auroc"), ("image_to_text", "RSUM"))
# Table 4's lines, each with all of the line above it; comparison rows carry these labels (comparisons.ablation).
ABLATION = ("CLIP", "+ second image and section", "+ augmentation", "+ MVS", "+ ICL", "+ TCL")
BUDGETS = ("steps", "compute")
DIRECTIONS = ("image_to_text", "text_to_image")
BASELINE: Row = ("CLIP", "ResNet-50", "M")
CEILING_ROW: Row = (CEILING, "any", "any")
OURS = ("CLIP", "CXR-CLIP", CEILING)    # trained or counted here; other models are published only
# Which page makes the rows of a table.
PAGES: Mapping[str, str] = {"1": "notebooks/01", "2": "notebooks/06", "3": "notebooks/07", "4": "notebooks/08"}
DASH = "–"
Reasons = dict[str, dict[str, None]]    # why cells have no number -> what they lack, in order


@dataclass(frozen=True)
class Table:
    """A table ready to print. cells: text frame, two levels of columns (data set, measure); '\\n' parts measured from
    published. header: one sentence on what is measured where. legend: what the marks mean. reasons: why cells hold a
    dash."""

    title: str
    header: str
    cells: pd.DataFrame
    legend: tuple[str, ...]
    reasons: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal: one block per data set, the published number below the measured one; under 120 wide."""
        def wrapped(text: str, width: int) -> str:
            return "\n".join(textwrap.fill(line, width) for line in text.split("\n"))
        labels = [[wrapped(label, 24) for label in index] for index in self.cells.index]
        names = list(self.cells.index.names)
        taken = sum(max(len(name) + 2, *(len(line) for text in texts for line in text.split("\n"))) + 2
                    for name, *texts in zip(names, *labels, strict=True))     # tabulate pads heads by 2
        blocks = []
        for dataset in self.cells.columns.unique(level=0):
            block = self.cells[[dataset]]
            width = min(24, max(17, (120 - taken) // block.shape[1] - 2))
            rows = [[*label, *(wrapped(text, width) for text in texts)]
                    for label, texts in zip(labels, block.to_numpy(), strict=True)]
            headers = [*names, *(wrapped(column, width) for _, column in block.columns)]
            blocks.append(f"{dataset}\n{tabulate(rows, headers, tablefmt='simple', disable_numparse=True)}")
        return "\n\n".join([self.title, textwrap.fill(self.header, 110), *blocks,
                            "\n".join(textwrap.fill(line, 110) for line in (*self.legend, *self.reasons))]) + "\n"

    def markdown(self) -> str:
        """For the book: one block per data set; published numbers have a column of their own where there are any."""
        def clean(text: str) -> str:
            return text.replace("|", "\\|").replace("*", "\\*").replace("\n", "<br>")
        blocks = []
        for dataset in self.cells.columns.unique(level=0):
            block = _published_apart(self.cells[dataset])
            rows = [[clean(str(cell)) for cell in (*index, *row)]
                    for index, row in zip(block.index, block.to_numpy(), strict=True)]
            headers = [clean(name) for name in (*block.index.names, *block.columns)]
            body = tabulate(rows, headers, tablefmt="pipe", disable_numparse=True)
            blocks.append(f"*{clean(dataset)}*\n\n{body}")
        return "\n\n".join([f"**{clean(self.title)}**", clean(self.header), *blocks,
                            "\n".join(f"- {clean(line)}" for line in (*self.legend, *self.reasons))]) + "\n"

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
        caption = latex_escape(f"{self.title}. {self.header} {'; '.join((*self.legend, *self.reasons))}.")
        return f"\\begin{{table}}\n\\caption{{{caption}}}\n{body}\\end{{table}}\n"


def _published_apart(block: pd.DataFrame) -> pd.DataFrame:
    """The columns of a block; a column with published numbers is followed by one that holds them."""
    columns: list[tuple[str, pd.Series]] = []
    for name in block:
        parts = block[name].str.partition("\npub. ")
        columns.append((name, parts[0]))
        if (parts[2] != "").any():
            columns.append(("published", parts[2]))
    frame = pd.concat([values for _, values in columns], axis=1)
    return frame.set_axis([name for name, _ in columns], axis=1)


def latex_escape(text: str) -> str:
    """Text with LaTeX's special characters escaped."""
    special = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}",
               **{mark: "\\" + mark for mark in "&%$#_{}"}}
    return "".join(special.get(mark, mark) for mark in text)


def write_table(table: Table, stem: str | Path, forms: Sequence[str] = (".txt", ".md", ".tex")) -> list[Path]:
    """Writes stem.txt, stem.md and stem.tex, or those of `forms`; returns their paths."""
    stem, write = Path(stem), {".txt": table.text, ".md": table.markdown, ".tex": table.latex}
    paths = [stem.with_name(stem.name + form) for form in forms]
    for path, form in zip(paths, forms, strict=True):
        write_text(path, write[form]())
    return paths


# ---- the paper's tables ---------------------------------------------------------------------------------------------


def table1(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 1: studies per data set and split, the published sizes beside them.

    results: tidy rows; those of task size (results.size_rows) are used. missing: role -> why it has no data.
    """
    missing = missing or {}
    there = (published() if reference is None else reference).query("task == 'size'")
    here = results[(results["task"] == "size") & (results["origin"] != "published")]
    mix, profile = one_mix(here, "Table 1")
    counted = {(row.dataset, row.metric): f"{row.value:,.0f}" if row.value else "none" for row in here.itertuples()}
    paper = {(row.dataset, row.metric): f"pub. {row.value:,.0f} {STATUS[row.status][0]}" for row in there.itertuples()}
    names = list(dict.fromkeys([*there["dataset"], *here["dataset"], *missing]))
    reasons: Reasons = {}
    for name in names:
        if any((name, split) not in counted for split in SPLITS):
            _note(reasons, missing.get(name, f"not measured; run {PAGES['1']}"), LABELS.get(name, name))
    cells = [["\n".join(filter(None, [counted.get((name, split), DASH), paper.get((name, split))]))
              for split in SPLITS] for name in names]
    frame = pd.DataFrame(cells, pd.MultiIndex.from_tuples([(LABELS.get(name, name),) for name in names],
                                                          names=["data set"]),
                         pd.MultiIndex.from_product([["studies"], SPLITS]))
    return Table("Table 1: data sets and their sizes", _header(mix, profile, "Counted"), frame, _marks(there),
                 _reason_lines(reasons))


def table2(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 2: zero-shot and linear-probe classification (AUROC; accuracy for CheXpert5x200), in percent.

    The plain-CLIP baseline, which the paper's table does not have, stands above the CXR-CLIP rows. results: tidy rows
    of one mix and profile, one row a seed; rows of a comparison are left out. missing: role (test set or pretraining
    data) -> why it has no data. reference: published rows. Raises InputError if two runs claim one cell.
    """
    return _main_table("Table 2: classification", results, TABLE_2, missing, reference)


def table3(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           reference: pd.DataFrame | None = None) -> Table:
    """The paper's Table 3: image-to-text retrieval, R@k in percent and their sum. Arguments as for table2.

    The last line is the attainable ceiling (results.ceiling_rows): reports that say the same cannot be told apart.
    """
    return _main_table("Table 3: image-to-text retrieval", results, TABLE_3, missing, reference)


def table3_text_to_image(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
                         reference: pd.DataFrame | None = None) -> Table:
    """Table 3 the other way round, which the paper does not print: find the film of a report."""
    columns = tuple((dataset, "text_to_image", metric) for dataset, _, metric in TABLE_3)
    return _main_table("Table 3, text-to-image retrieval (not in the paper)", results, columns, missing, reference)


def table4(results: pd.DataFrame, missing: Mapping[str, str] | None = None,
           budgets: Sequence[str] = BUDGETS) -> Table:
    """The ablation, the paper's Table 4: what each part of the method adds, one block a budget. No published number is
    known. Arguments as for table2; the rows are those with comparison 'ablation' and the labels ABLATION."""
    lines = [(budget, row) for budget in budgets for row in ABLATION]
    return _comparison_table("Table 4: ablation", results, "ablation", lines, missing, PAGES["4"])


def comparison_table(results: pd.DataFrame, comparison: str, missing: Mapping[str, str] | None = None) -> Table:
    """Table 4's columns for any other comparison (loss weights, label growth, remedies), which the paper lacks.

    Raises InputError if the results hold no row of it.
    """
    here = results[results["comparison"] == comparison]
    if here.empty:
        raise InputError(f"table of {comparison!r}: no such rows; comparisons there: "
                         f"{', '.join(filter(None, results['comparison'].unique())) or 'none'}")
    lines = [row for _, part in here.groupby("budget", sort=False)
             for row in dict.fromkeys(zip(part["budget"], part["row"], strict=True))]
    return _comparison_table(f"Comparison: {comparison} (not in the paper)", results, comparison, lines, missing,
                             "the page that makes them")


def other_sets_table(results: pd.DataFrame) -> Table:
    """Classification on test sets that the paper does not have (a mix of one's own): one line a run, set and task.

    results: tidy rows of one mix and profile. The mean over findings with its interval, chance, and how many films.
    """
    known = {dataset for dataset, _, _ in (*TABLE_2, *TABLE_3)}
    main = (results[["class", "comparison", "reference"]] == ["all", "", ""]).all(axis=1)
    beyond = main & ~results["dataset"].isin(known)
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


def differences_table(results: pd.DataFrame, comparison: str = "") -> Table:
    """Paired differences of a comparison (of the main tables if empty): each row minus its reference, in points.

    results: tidy rows; those of comparisons.differences are used. In a cell: difference, its 95 % interval, and p
    adjusted for all cells of the comparison (Holm). Raises InputError if there are none.
    """
    here = results[(results["comparison"] == comparison) & (results["reference"] != "")]
    if here.empty:
        raise InputError(f"no differences of {comparison or 'the main tables'!r}: make them, comparisons.differences")
    here = here.assign(name=here["row"].where(here["row"] != "", here["run"]))
    heads = {column: _comparison_label("all", *column)[1] for column in DIFFERENCES}
    lines = list(dict.fromkeys(zip(here["budget"], here["name"], here["reference"], strict=True)))
    cells = {(line, column): DASH for line in lines for column in heads}
    for row in here.itertuples():
        cells[(row.budget, row.name, row.reference), (row.task, row.metric)] = (
            f"{100 * row.value:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}]\np {row.p_holm:.2g}")
    frame = pd.DataFrame([[cells[line, column] for column in heads] for line in lines],
                         pd.MultiIndex.from_tuples([(f"equal {budget}" if budget else "", name, other)
                                                    for budget, name, other in lines],
                                                   names=["budget", "row", "minus"]),
                         pd.MultiIndex.from_product([["all three sets"], list(heads.values())]))
    mix, profile = one_mix(here, "differences")
    seeds = max(len(text.split()) for text in here["seeds"])
    spread = "and over seeds" if seeds > 1 else "one seed"
    legend = (f"percentage points (RSUM: of nine recalls) [95 % interval over test patients, paired; {spread}]",
              f"p: adjusted for the {len(here)} cells of this table (Holm)")
    header = f"Measured on the mix '{mix}' (profile {profile})."
    reasons = (f"{DASH}: not measured",) if DASH in cells.values() else ()
    return Table(f"Paired differences: {comparison or 'main tables'}", header, frame, legend, reasons)


def ledger_table(results: pd.DataFrame) -> Table:
    """Paper against code: what the released code does in each row of the ledger, and the measured effect of it.

    results: tidy rows; the differences of the comparison "ledger" are used. An effect is the released code's behaviour
    minus the intended one; a row without any says that it was not measured. Raises InputError if there are none.
    """
    here = results[(results["comparison"] == "ledger") & (results["reference"] != "")]
    if here.empty:
        raise InputError("no effects of the ledger: make them, comparisons.ledger and ledger_effects")
    effects: dict[str, list[str]] = {}
    for row in here.itertuples():
        what = " ".join(column_label(row.dataset, row.task, row.metric))
        effects.setdefault(row.row, []).append(
            f"{what}: {100 * row.value:+.1f} [{100 * row.low:+.1f}, {100 * row.high:+.1f}], p {row.p_holm:.2g}")
    rows = {item.id: (item.where, item.official) for item in LEDGER}
    rows["official"] = ("all of it", 'rules="official": all B rows together')
    cells = [[official, "\n".join(effects.get(name, [MEASURED_ELSEWHERE.get(name, DASH)]))]
             for name, (_, official) in rows.items()]
    frame = pd.DataFrame(cells, pd.MultiIndex.from_tuples([(name, where) for name, (where, _) in rows.items()],
                                                          names=["row", "where"]),
                         pd.MultiIndex.from_tuples([("paper against code", "what the released code does"),
                                                    ("paper against code", "effect: it minus the intended")]))
    mix, profile = one_mix(here, "the ledger")
    legend = ("percentage points (RSUM: of nine recalls, or of three on one set) [95 % interval over test patients, "
              "paired, and over seeds where there are several]",
              "p: adjusted for all cells of the same kind, training or evaluation (Holm)")
    reasons = (f"{DASH}: not measured",) if DASH in frame.to_numpy() else ()
    return Table("Paper against code", f"Measured on the mix '{mix}' (profile {profile}).", frame, legend, reasons)


# ---- cells ----------------------------------------------------------------------------------------------------------


def column_label(dataset: str, task: str, metric: str) -> tuple[str, str]:
    """The two levels of a column's head: data set, measure."""
    measure = {"auroc": f"{LABELS.get(task, task)} AUROC", "accuracy": f"{LABELS.get(task, task)} accuracy"}
    if task.startswith("linear-probe"):
        measure["auroc"] = f"probe {LABELS.get(task, task)} AUROC"
    return LABELS.get(dataset, dataset), measure.get(metric, metric)


def _comparison_label(dataset: str, task: str, metric: str) -> tuple[str, str]:
    """The head of a comparison's column: what is tested, and on which set where it is one."""
    name, measure = column_label(dataset, task, metric)
    group = "retrieval" if task in DIRECTIONS else "classification"
    return group, measure if dataset == "all" else f"{name} {measure}"


@dataclass(frozen=True)
class _Layout:
    """What a table is before its cells are filled: lines (and how each is printed), columns, and where both come from.

    line_of: the line that a result stands in. page: which notebook makes the rows.
    """

    title: str
    columns: Sequence[Column]
    lines: Sequence[Row]
    labels: Sequence[Row]
    names: Sequence[str]
    line_of: Callable[[Mapping], Row]
    page: str
    marks: Sequence[str] = ()
    head: Callable[..., tuple[str, str]] = column_label


def _main_table(title: str, results: pd.DataFrame, columns: Sequence[Column], missing: Mapping[str, str] | None,
                reference: pd.DataFrame | None) -> Table:
    """A table of the main rows: (model, encoder, pretraining data), the published lines first."""
    paper = published() if reference is None else reference
    numbers = _of_columns(paper, columns)
    main = _ceilings_named(results[results["comparison"] == ""])
    here = _by_cell(over_seeds(_of_columns(with_sums(main), columns)), title, _main_row)
    lines = list(dict.fromkeys(_main_row(row) for row in paper.to_dict("records") if row["model"]))
    if numbers.empty:
        lines = [line for line in lines if line[0] in OURS]
    first = next((i for i, line in enumerate(lines) if line[0] in OURS), len(lines))
    lines[first:first] = [] if BASELINE in lines else [BASELINE]
    retrieval = columns[0][1] in DIRECTIONS
    lines = [*dict.fromkeys([*lines, *(line for line, _ in here if line != CEILING_ROW)]),
             *([CEILING_ROW] if retrieval else [])]
    used = {_main_row(row): row["image_encoder"] for row in here.values() if row["image_encoder"]}
    labels = [(line[0], _encoder_label(line[1], used.get(line, line[1])), line[2]) for line in lines]
    layout = _Layout(title, columns, lines, labels, ("model", "image encoder (paper's)", "pretrained on"), _main_row,
                     PAGES["3" if retrieval else "2"], _marks(numbers))
    return _fill(layout, main, here, _by_cell(numbers, title, _main_row), missing or {})


def _comparison_table(title: str, results: pd.DataFrame, comparison: str, lines: Sequence[Row],
                      missing: Mapping[str, str] | None, page: str) -> Table:
    """A table of one comparison: lines (budget, row), columns TABLE_4."""
    own = results[results["comparison"] == comparison]
    here = _by_cell(over_seeds(_of_columns(with_sums(own), TABLE_4)), title, _comparison_row)
    lines = list(dict.fromkeys([*lines, *(line for line, _ in here)]))
    labels = [(f"equal {budget}", row) for budget, row in lines]
    layout = _Layout(title, TABLE_4, lines, labels, ("budget", "row"), _comparison_row, page,
                     head=_comparison_label)
    return _fill(layout, own, here, {}, missing or {})


def _fill(layout: _Layout, results: pd.DataFrame, here: Mapping, there: Mapping, missing: Mapping[str, str]) -> Table:
    """The table with its cells. results: the rows it may draw from, one a seed; here, there: measured and published
    numbers by (line, column)."""
    mix, profile = one_mix(results, layout.title)
    seeds = max((len(row["seeds"].split()) for row in here.values()), default=0)
    runs = {line: row["run"] for (line, _), row in here.items()} if layout.line_of is _main_row else {}
    reasons: Reasons = {}

    def cell(line: Row, column: Column) -> str:
        text = DASH
        if (line, column) in here:
            text = _measured(here[line, column], seeds)
        else:
            _note(reasons, *_reason(line, column, runs, missing, layout.page))
        if (line, column) in there:
            return f"{text}\npub. {_percent(there[line, column]['value'])} {STATUS[there[line, column]['status']][0]}"
        return text

    frame = pd.DataFrame([[cell(line, column) for column in layout.columns] for line in layout.lines],
                         pd.MultiIndex.from_tuples(layout.labels, names=layout.names),
                         pd.MultiIndex.from_tuples([layout.head(*column) for column in layout.columns]))
    return Table(layout.title, _header(mix, profile, "Measured", bool(there)), frame,
                 (*_legend(layout, seeds, bool(there)), *layout.marks), _reason_lines(reasons))


def one_mix(results: pd.DataFrame, title: str) -> tuple[str, str]:
    """Mix and profile of the results, empty if there are none. Raises InputError if there are several."""
    for name in ("mix", "profile"):
        if results[name].nunique() > 1:
            raise InputError(f"{title}: results of more than one {name} ({', '.join(results[name].unique())}): "
                             "choose one")
    return (results["mix"].iloc[0], results["profile"].iloc[0]) if len(results) else ("", "")


def _of_columns(results: pd.DataFrame, columns: Sequence[Column]) -> pd.DataFrame:
    """The rows that stand in a table with these (dataset, task, metric) columns."""
    keys = pd.MultiIndex.from_frame(results[["dataset", "task", "metric"]])
    return results[keys.isin(columns) & (results[["class", "reference"]] == ["all", ""]).all(axis=1).to_numpy()]


def _ceilings_named(results: pd.DataFrame) -> pd.DataFrame:
    """Ceiling rows under the metric they are the ceiling of: they are a line of the table, not a column."""
    return results.assign(metric=results["metric"].str.removeprefix("ceiling "))


def _main_row(result: Mapping) -> Row:
    """A result's line; a small encoder stands in the line of the published one of its family."""
    if result["model"] == CEILING:
        return CEILING_ROW
    encoder = result["image_encoder"]
    return result["model"], FAMILY.get(encoder, encoder), result["pretraining_data"]


def _comparison_row(result: Mapping) -> Row:
    """A result's line inside a comparison."""
    return result["budget"], result["row"]


def _by_cell(results: pd.DataFrame, title: str, line: Callable[[Mapping], Row]) -> dict[tuple, dict]:
    """Results by (line, column). Raises InputError if two fall into one cell."""
    cells: dict[tuple, dict] = {}
    for result in results.to_dict("records"):
        key = (line(result), (result["dataset"], result["task"], result["metric"]))
        if key in cells:
            raise InputError(f"{title}: runs {cells[key]['run']!r} and {result['run']!r} claim the same cell "
                             f"({', '.join(key[0])}; {', '.join(key[1])}): choose one")
        cells[key] = result
    return cells


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _measured(result: Mapping[str, object], seeds: int) -> str:
    """'value [low, high]', and how many seeds if fewer than the table's other cells have."""
    interval = "" if np.isnan(result["low"]) else f" [{_percent(result['low'])}, {_percent(result['high'])}]"
    own = len(result["seeds"].split())
    return f"{_percent(result['value'])}{interval}" + (f" ({own} of {seeds} seeds)" if 0 < own < seeds else "")


def _reason(line: Row, column: Column, runs: Mapping[Row, str], missing: Mapping[str, str],
            page: str) -> tuple[str, str]:
    """Why a cell has no measured number (published only, missing data, no row), and which model, role or row lacks it.
    """
    main = len(line) == 3
    if main and line[0] not in OURS and line not in runs:
        return "published only: not trained here", line[0]
    dataset, _, metric = column
    summed = RETRIEVAL_SETS if metric == "RSUM" else CLASSIFICATION_SETS
    sets = summed if dataset == "all" else (dataset,)
    for role in (*sets, *(line[2].split(",") if main else ())):
        if role in missing:
            return missing[role], LABELS.get(role, role)
    run = CEILING if line == CEILING_ROW else runs.get(line, " ".join(line) if main else f"'{line[1]}', {line[0]}")
    return f"not measured; run {page}", run


def _note(reasons: Reasons, reason: str, lacking: str) -> None:
    """Remember why a cell has no number."""
    reasons.setdefault(reason, {})[lacking] = None


def _reason_lines(reasons: Reasons) -> tuple[str, ...]:
    """One line a reason, with what lacks a number: five of them by name."""
    def joined(names: list[str]) -> str:
        return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return tuple(f"{DASH}: {reason} ({joined(list(lacking))})" for reason, lacking in reasons.items())


def _encoder_label(published_name: str, used: str) -> str:
    return used if used == published_name else f"{used} ({published_name})"


def _header(mix: str, profile: str, verb: str, published: bool = True) -> str:
    """What the measured numbers, and the published ones if there are any, stand on."""
    if not mix:
        return "Nothing measured yet." + " Published numbers (pub.) are the paper's, on its own data." * published
    if not published:
        return f"{verb} on the mix '{mix}' (profile {profile})."
    if mix == "paper":
        return f"{verb} on the paper's data sets (profile {profile}). Published numbers (pub.) are the paper's."
    return (f"{verb} on the mix '{mix}' (profile {profile}), NOT on the paper's data. Published numbers (pub.) are the "
            f"paper's, on its own data: the two stand on different films and must not be compared as if on the same.")


def _legend(layout: _Layout, seeds: int, known: bool) -> list[str]:
    """What a cell holds, in the words that this table needs."""
    interval = {0: "measured [95 % interval]", 1: "measured [95 % interval over test patients, bootstrap; one seed]"}
    lines = [interval.get(seeds, f"measured: mean over {seeds} training seeds [95 % interval over test patients "
                                 "(bootstrap) and over seeds (Student's t), half-widths added in quadrature]")]
    if any(task.startswith("linear-probe") for _, task, _ in layout.columns):
        lines.append("probe 10 %, 100 %: linear probe on that share of the labels")
    if any(dataset == "all" for dataset, _, _ in layout.columns):
        lines.append("all three: mean AUROC over VinDr-CXR, RSNA and SIIM; RSUM, the sum of the nine recalls of "
                     "CheXpert5x200, MIMIC-CXR and Open-I")
    if CEILING_ROW in layout.lines:
        lines.append(f"{CEILING}: what a perfect reader of the findings reaches; reports that say the same cannot be "
                     "told apart")
    lines += ["pub.: published; no pub.: the paper does not have that line"] * known
    return [f"all in percent; {lines[0]}", *lines[1:]]


def _marks(reference: pd.DataFrame) -> tuple[str, ...]:
    """What the marks of the published numbers mean, those in use only."""
    used = set(reference["status"])
    return tuple(f"{mark}: {meaning}" for status, (mark, meaning) in STATUS.items() if status in used)
