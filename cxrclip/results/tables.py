"""Tables: the paper's Tables 1 to 4 and their kin, drawn from tidy rows alone.

A cell holds one measured number with its interval, or a dash, whose reason stands once below the table. Published
numbers have columns of their own, where there are any. Values are printed in percent.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import fill

import numpy as np
import pandas as pd
from tabulate import tabulate

from cxrclip.data.files import write_text
from cxrclip.errors import InputError
from cxrclip.official.ledger import LEDGER
from cxrclip.results.rows import (
    CEILING,
    CLASSIFICATION_SETS,
    DIRECTIONS,
    FAMILY,
    KS,
    LABELS,
    RETRIEVAL_SETS,
    ROW_LABELS,
    SPLITS,
    STATUS,
    THIRD_PARTY,
    as_printed,
    in_percent,
    published,
    row_label,
)
from cxrclip.results.statistics import over_seeds, with_sums

Column = tuple[str, ...]                # data set, task, metric; of Table 1 the split
Line = tuple[str, ...]                  # model, image encoder, pretraining data; or budget, row id; or data set
TABLE_2: tuple[Column, ...] = (*((dataset, task, "auroc") for dataset in CLASSIFICATION_SETS
                                 for task in ("zero-shot", "linear-probe-10", "linear-probe-100")),
                               ("chexpert5x200", "zero-shot", "accuracy"))
TABLE_3: tuple[Column, ...] = (*((dataset, "image_to_text", f"R@{k}") for dataset in RETRIEVAL_SETS for k in KS),
                               ("all", "image_to_text", "RSUM"))
TABLE_4: tuple[Column, ...] = (("all", "zero-shot", "auroc"), ("all", "linear-probe-100", "auroc"),
                               *((dataset, "image_to_text", "R@10") for dataset in RETRIEVAL_SETS),
                               ("all", "image_to_text", "RSUM"))
# The measures that differences are shown in: task, metric (comparisons.differences).
DIFFERENCES = (("zero-shot", "auroc"), ("linear-probe-100", "auroc"), ("image_to_text", "RSUM"))
SHARPER: tuple[Column, ...] = (("all", "zero-shot", "auroc"), ("all", "zero-shot-ensemble", "auroc"),
                               ("all", "zero-shot-unseen", "auroc"), ("vindr-cxr", "zero-shot-unnamed", "auroc"),
                               ("vindr-cxr", "zero-shot", "F1"), ("vindr-cxr", "pairs", "accuracy"),
                               ("vindr-cxr", "negation", "right if present"),
                               ("vindr-cxr", "negation", "right if absent"),
                               ("mimic-cxr", "graded retrieval", "nDCG@10"),
                               *((dataset, "image_to_text", "median rank") for dataset in RETRIEVAL_SETS))
ABLATION = tuple(ROW_LABELS["ablation"])    # Table 4's lines, each with all of the line above it
BUDGETS = ("steps", "compute")
BASELINE: Line = ("CLIP", "ResNet-50", "M")
CEILING_LINE: Line = (CEILING, "any", "any")
OURS = ("CLIP", "CXR-CLIP", CEILING)    # trained or counted here; other models are published only
# Which page makes the rows of a table.
PAGES: Mapping[str, str] = {"1": "notebooks/01", "2": "notebooks/06", "3": "notebooks/07", "4": "notebooks/08"}
DASH = "–"
STOPPED = 0.01                          # of the validation loss, in the last fifth of the steps
PUBLISHED = "published "                # begins the head of a column of published numbers
FOR_LATEX = str.maketrans({mark: f"\\{mark}" for mark in "%&_#$"})


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    cells: text frame, two levels of columns (data set, measure or PUBLISHED measure). header: one sentence on what is
    measured where. legend: what the marks mean. footnotes: why cells hold a dash.
    """

    title: str
    header: str
    cells: pd.DataFrame
    legend: tuple[str, ...]
    footnotes: tuple[str, ...] = ()

    def text(self) -> str:
        """For a terminal, under 120 wide, a block a data set; without measured numbers nothing is shown."""
        ours = [not measure.startswith(PUBLISHED) for _, measure in self.cells.columns]
        measured = self.cells.ne(DASH) & np.array(ours)
        shown = self.cells.loc[measured.any(axis=1).to_numpy()]
        blocks = [f"{dataset}\n{_grid(shown[dataset], 'simple', 120)}"
                  for dataset in shown.columns[measured.any().to_numpy()].unique(level=0)]
        notes = "\n".join(fill(line, 110) for line in (*self.legend, *self.footnotes))
        return "\n\n".join([self.title, fill(self.header, 110), *blocks, notes]) + "\n"

    def markdown(self) -> str:
        """For the book, one block a data set; a line without any number is left out, and the notes say why."""
        def clean(text: str) -> str:
            return text.replace("|", "\\|").replace("*", "\\*")
        numbers = self.cells.ne(DASH).any(axis=1).to_numpy()
        shown = self.cells.loc[numbers if numbers.any() else slice(None)]
        blocks = [f"*{dataset}*\n\n{_grid(shown[dataset].map(clean), 'pipe')}"
                  for dataset in shown.columns.unique(level=0)]
        notes = "\n".join(f"- {clean(line)}" for line in (*self.legend, *self.footnotes))
        return "\n\n".join([f"**{clean(self.title)}**", clean(self.header), *blocks, notes]) + "\n"

    def latex(self) -> str:
        """A table environment; needs the package booktabs."""
        caption = f"{self.title}. {self.header} {'; '.join((*self.legend, *self.footnotes))}."
        return self.cells.to_latex(escape=True, multirow=False, multicolumn_format="c",
                                   caption=caption.translate(FOR_LATEX))


def losses_markdown(results: pd.DataFrame) -> str:
    """Losses at the end of training, and whether it had stopped improving, for RESULTS.md; "" without such rows.

    A run that stands in several comparisons has one line, in the first of them.
    """
    rows = results[results["task"] == "loss"].sort_values("comparison", key=lambda name: name != "", kind="stable")
    rows = rows.drop_duplicates(["run", "seeds", "metric"])
    if rows.empty:
        return ""
    rows = rows.assign(line=[row_label(row["comparison"], row["row"] or row["run"]) for _, row in rows.iterrows()],
                       comparison=rows["comparison"].replace("", "main tables"))
    values = rows.pivot_table(index=["comparison", "budget", "line"], columns="metric", values="value", sort=False)
    fall = values.get("fall in the last fifth", pd.Series(np.nan, values.index))
    cells = pd.DataFrame({"training loss": values["training loss"].map("{:.2f}".format),
                          "validation loss": values["validation loss"].map("{:.2f}".format),
                          "its fall in the last fifth": fall.map("{:.1%}".format, na_action="ignore"),
                          "had stopped improving": np.where(fall < STOPPED, "yes", "no")})
    cells.loc[fall.isna(), ["its fall in the last fifth", "had stopped improving"]] = DASH
    said = (f"Losses in nats, means over seeds. A row had stopped improving if the last fifth of its steps lowered the "
            f"validation loss by less than {STOPPED:.0%}. Only rows with the same data and the same loss terms can be "
            "compared. [`benchmarks/sizes.md`](benchmarks/sizes.md) tells how long a row takes to stop.")
    return f"{said}\n\n{cells.reset_index().to_markdown(index=False, disable_numparse=True)}"


def _grid(block: pd.DataFrame, form: str, width: int = 0) -> str:
    """A block as tabulate prints it; its widest columns are wrapped to fit into `width` characters, if that is given.

    Without a width, for the book, what names a line is one cell, so that tables of a test set fit on the page.
    """
    if not width and block.index.names[0] == "model":
        block = block.set_axis(pd.Index([", ".join(names) for names in block.index], name=", ".join(block.index.names)))
    flat = block.reset_index()
    aside = "pub." if width else "published"
    heads, rows = [aside if head.startswith(PUBLISHED) else head for head in flat], flat.to_numpy().tolist()
    if width:
        rows = [[re.sub(r"(\[\S+,|, p) ", "\\1\N{NO-BREAK SPACE}", cell) for cell in row] for row in rows]
        sizes = [max(len(head) + 2, *map(len, column)) for head, *column in zip(heads, *rows, strict=True)]
        room = next(room for room in range(width, 0, -1) if sum(min(size, room) + 2 for size in sizes) <= width + 2)
        heads = [fill(head, room - 2) for head in heads]                        # tabulate pads heads by 2
        rows = [[fill(cell, room) for cell in row] for row in rows]
    return tabulate(rows, heads, tablefmt=form, disable_numparse=True).replace("\N{NO-BREAK SPACE}", " ")


def write_table(table: Table, stem: str | Path) -> list[Path]:
    """Writes stem.txt, stem.md and stem.tex; returns their paths."""
    texts = {Path(f"{stem}.txt"): table.text(), Path(f"{stem}.md"): table.markdown(),
             Path(f"{stem}.tex"): table.latex()}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


# ---- the paper's tables ---------------------------------------------------------------------------------------------


def table1(results: pd.DataFrame, missing: Mapping[str, str] = {}) -> Table:
    """The paper's Table 1: studies per data set and split, the published sizes beside them.

    results: tidy rows; those of task size (statistics.size_rows) are used. missing: role -> why it has no data.
    """
    paper = published().query("task == 'size'")
    counted = results[(results["task"] == "size") & (results["origin"] != "published")]
    cells = {((row.dataset,), (row.metric,)): f"{row.value:,.0f}" if row.value else "none"
             for row in counted.itertuples()}
    known = {((row.dataset,), (row.metric,)): f"{row.value:,.0f} {STATUS[row.status][0]}" for row in paper.itertuples()}
    names = dict.fromkeys([*paper["dataset"], *counted["dataset"], *missing])
    layout = _Layout("Table 1: data sets and their sizes", {(split,): ("studies", split) for split in SPLITS},
                     {(name,): (LABELS.get(name, name),) for name in names}, ("data set",))
    header = _header(counted, layout.title, "Counted", bool(known))
    return layout.table(cells, known, header, _marks({*paper["status"]}), lambda line, _: (
        missing.get(line[0], f"not measured; run {PAGES['1']}"), LABELS.get(line[0], line[0])))


def table2(results: pd.DataFrame, missing: Mapping[str, str] = {}) -> Table:
    """The paper's Table 2: zero-shot and linear-probe classification (AUROC; accuracy for CheXpert5x200), in percent.

    The plain-CLIP baseline, which the paper's table does not have, stands above the CXR-CLIP rows. results: tidy rows
    of one mix and profile, one row a seed; rows of a comparison are left out. missing: role (test set or pretraining
    data) -> why it has no data. Raises InputError if two runs claim one cell.
    """
    return _main_table("Table 2: classification", results, TABLE_2, missing)


def table3(results: pd.DataFrame, missing: Mapping[str, str] = {}) -> Table:
    """The paper's Table 3: image-to-text retrieval, R@k in percent and their sum. Arguments as for table2.

    The last line is the attainable ceiling (statistics.ceiling_rows): reports that say the same cannot be told apart.
    """
    table = _main_table("Table 3: image-to-text retrieval", results, TABLE_3, missing)
    return replace(table, legend=(*table.legend, *_gallery(results, "text_to_image", "distinct reports")))


def table3_text_to_image(results: pd.DataFrame, missing: Mapping[str, str] = {}) -> Table:
    """Table 3 the other way round, which the paper does not print: find the film of a report."""
    columns = tuple((dataset, "text_to_image", metric) for dataset, _, metric in TABLE_3)
    table = _main_table("Table 3, text-to-image retrieval (not in the paper)", results, columns, missing)
    return replace(table, legend=(*table.legend, *_gallery(results, "image_to_text", "films")))


def table4(results: pd.DataFrame, missing: Mapping[str, str] = {}) -> Table:
    """The ablation, the paper's Table 4: what each part of the method adds, one block a budget. No published number is
    known. Arguments as for table2; the rows are those of the comparison 'ablation'."""
    lines = [(budget, row) for budget in BUDGETS for row in ABLATION]
    return _comparison_table("Table 4: ablation", results, "ablation", lines, missing, PAGES["4"])


def comparison_table(results: pd.DataFrame, comparison: str, missing: Mapping[str, str] = {}) -> Table:
    """Table 4's columns for any other comparison (loss weights, label growth, remedies), which the paper lacks.

    Raises InputError if the results hold no row of it.
    """
    part = results[results["comparison"] == comparison]
    if part.empty:
        raise InputError(f"table of {comparison!r}: no such rows; comparisons there: "
                         f"{', '.join(filter(None, results['comparison'].unique())) or 'none'}")
    lines = [line for _, rows in part.groupby("budget", sort=False)
             for line in dict.fromkeys(zip(rows["budget"], rows["row"], strict=True))]
    return _comparison_table(f"Comparison: {comparison} (not in the paper)", results, comparison, lines, missing,
                             "the page that makes them")


def sharper_table(results: pd.DataFrame) -> Table:
    """The main rows by measures that the paper lacks (experiments.sharper), a line a run. Arguments as for table2.

    Chance is told below the table where it is not 50 %.
    """
    title = "Sharper readings (not in the paper)"
    main = results[results["comparison"] == ""]
    cells = by_cell(main, SHARPER, title, main_line)
    layout = _main_layout(title, SHARPER, (line for line, _ in cells), cells)
    table = _filled(layout, main, cells, {}, {}, PAGES["2"])
    told = {column: " ".join((*column_label(*column), as_printed(row["chance"], column[-1])))
            for (_, column), row in cells.items() if abs(row["chance"] - 0.5) > 0}
    return replace(table, legend=(*table.legend, "a median rank is a place in the order, not a percentage",
                                  f"chance is 50 %, but: {'; '.join(told.values())}"))


def other_sets_table(results: pd.DataFrame) -> Table:
    """Classification on test sets that the paper does not have (a mix of one's own): one line a run, set and task.

    results: tidy rows of one mix and profile. The mean over findings with its interval, chance, and how many films.
    """
    known = {dataset for dataset, _, _ in (*TABLE_2, *TABLE_3)}
    main = (results[["class", "comparison", "reference"]] == ["all", "", ""]).all(axis=1)
    beyond = results[main & ~results["dataset"].isin(known) & results["metric"].isin(["auroc", "accuracy"])]
    if beyond.empty:
        raise InputError("table of other sets: no result on a test set beyond the paper's: evaluate a run on one first")
    beyond = over_seeds(beyond)
    cells = [[in_percent(row), f"{100 * row['chance']:.0f}", f"{row['n']:.0f}", row["note"]]
             for row in beyond.to_dict("records")]
    index = pd.MultiIndex.from_frame(beyond[["dataset", "image_encoder", "pretraining_data", "task", "metric"]],
                                     names=["test set", "image encoder", "pretrained on", "task", "metric"])
    columns = pd.MultiIndex.from_product([["films"], ["measured", "chance", "test films", "note"]])
    return Table("Test sets of this mix that the paper does not have", _measured_on(beyond, "other sets"),
                 pd.DataFrame(cells, columns=columns, index=index),
                 ("measured [95 % interval over patients]; in percent",))


def differences_table(results: pd.DataFrame, comparison: str = "") -> Table:
    """Paired differences of a comparison (of the main tables if empty): each row minus its reference, in points.

    results: tidy rows; those of comparisons.differences are used. In a cell: difference, its 95 % interval, and p
    adjusted for all cells of the comparison (Holm). Raises InputError if there are none.
    """
    title = f"Paired differences: {comparison or 'main tables'}"
    part = results[(results["comparison"] == comparison) & (results["reference"] != "")]
    if part.empty:
        raise InputError(f"no differences of {comparison or 'the main tables'!r}: make them, comparisons.differences")
    cells, lines = {}, {}
    for row in part.to_dict("records"):
        line = (row["budget"], row["row"] or row["run"], row["reference"])
        names = [row_label(comparison, name) for name in line[1:]]
        lines[line] = (_budget_label(row["budget"]), *names) if comparison else tuple(names)
        cells[line, (row["task"], row["metric"])] = _difference(row)
    columns = {column: ("all three sets", column_label("all", *column)[1]) for column in DIFFERENCES}
    spread = "and over seeds" if max(len(text.split()) for text in part["seeds"]) > 1 else "one seed"
    legend = (f"percentage points (RSUM: of nine recalls) [95 % interval over test patients, paired; {spread}]",
              f"p: adjusted for the {len(part)} cells of this table (Holm)")
    return _Layout(title, columns, lines, ("budget", "row", "minus") if comparison else ("row", "minus")).table(
        cells, {}, _measured_on(part, title), legend, lambda line, column: ("not measured", ""))


def ledger_table(results: pd.DataFrame) -> Table:
    """Paper against code: what the released code does in each row of the ledger, and the measured effects, a line each.

    results: tidy rows; the differences of the comparison "ledger" are used. An effect is the released code's behaviour
    minus the intended one. Raises InputError if there are none.
    """
    part = results[(results["comparison"] == "ledger") & (results["reference"] != "")]
    if part.empty:
        raise InputError("no effects of the ledger: make them, comparisons.ledger and official.effects")
    behaviour = {item.id: (item.where, item.official) for item in LEDGER}
    behaviour["official"] = ("all of it", 'rules="official": all B rows but B1*, B4 and B14')
    lines, cells = [], []
    for name, about in behaviour.items():
        effects = [(" ".join(column_label(row["dataset"], row["task"], row["metric"])), _difference(row))
                   for row in part[part["row"] == name].to_dict("records")]
        for i, effect in enumerate(effects or [(DASH, DASH)]):
            lines.append((name, "" if i else about[0]))
            cells.append(("" if i else about[1], *effect))
    frame = pd.DataFrame(cells, pd.MultiIndex.from_tuples(lines, names=["row", "where"]), pd.MultiIndex.from_product(
        [["paper against code"], ["what the released code does", "measure", "effect: it minus the intended"]]))
    lacking = [name for (name, _), (*_, effect) in zip(lines, cells, strict=True) if effect == DASH]
    footnotes = [f"{DASH}: not measured ({', '.join(lacking)})"] if lacking else []
    footnotes += ["B1: no study has more than two views here; B1* is the bound"] if "B1" in lacking else []
    legend = ("percentage points (RSUM: of nine recalls, or of three on one set) [95 % interval over test patients, "
              "paired, and over seeds where there are several]",
              "p: adjusted for all cells of the same kind, training or evaluation (Holm)")
    return Table("Paper against code", _measured_on(part, "the ledger"), frame, legend, tuple(footnotes))


# ---- lines, columns, cells ------------------------------------------------------------------------------------------


def third_party_markdown() -> str:
    """What others measured when they trained CXR-CLIP and CLIP on real data (third_party.csv), for RESULTS.md."""
    rows = pd.read_csv(THIRD_PARTY)
    rows["measure"] = rows["task"].str.replace("_", " ") + " " + rows["metric"]
    values = rows.pivot_table(index="measure", columns="model", values="value", sort=False)
    ahead = (values["CXR-CLIP"] > values["CLIP"]).sum()
    said = (f"{rows['source'].iloc[0]} trained both methods again on MIMIC-CXR alone, once, and gives no interval. "
            f"CXR-CLIP is ahead of CLIP in {ahead} of {len(values)} numbers (see claim 4). The gallery holds about "
            f"{rows['n'].max():,.0f} reports, so these are not comparable with the paper's numbers.")
    return f"{said}\n\n{(100 * values).to_markdown(floatfmt='.2f')}"


def column_label(dataset: str, task: str, metric: str) -> tuple[str, str]:
    """The two levels of a column's head: data set, measure."""
    name = f"probe {LABELS[task]}" if task.startswith("linear-probe") else LABELS.get(task, task)
    measure = {"auroc": f"{name} AUROC", "accuracy": f"{name} accuracy"}
    return LABELS.get(dataset, dataset), measure.get(metric, metric)


@dataclass(frozen=True)
class _Layout:
    """The lines and columns of a table, each with its labels; names: what the labels of a line are."""

    title: str
    columns: Mapping[Column, tuple[str, str]]
    lines: Mapping[Line, Line]
    names: Sequence[str]

    def table(self, cells: Mapping[tuple, str], known: Mapping[tuple, str], header: str, legend: Sequence[str],
              why: Callable[[Line, Column], tuple[str, str]]) -> Table:
        """cells, known: (line, column) -> our number and the published one. why: of a dash, its reason and who lacks a
        number for it."""
        frame: dict[tuple[str, str], list[str]] = {}
        reasons: dict[str, dict[str, None]] = {}        # reason -> who, in order
        for column, (group, measure) in self.columns.items():
            frame[group, measure] = [cells.get((line, column), DASH) for line in self.lines]
            if any((line, column) in known for line in self.lines):
                frame[group, PUBLISHED + measure] = [known.get((line, column), DASH) for line in self.lines]
        for line in self.lines:
            for reason, who in (why(line, column) for column in self.columns if (line, column) not in cells):
                reasons.setdefault(reason, {})[who] = None
        footnotes = [f"{DASH}: {reason}" + (f" ({_listed([*who])})" if any(who) else "")
                     for reason, who in reasons.items()]
        index = pd.MultiIndex.from_tuples(list(self.lines.values()), names=self.names)
        return Table(self.title, header, pd.DataFrame(frame, index), tuple(legend), tuple(footnotes))


def _listed(names: Sequence[str]) -> str:
    """The first five names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _main_table(title: str, results: pd.DataFrame, columns: Sequence[Column], missing: Mapping[str, str]) -> Table:
    """A table of the main rows: (model, encoder, pretraining data), the published lines first."""
    paper = published()
    main = results[results["comparison"] == ""]
    main = main.assign(metric=main["metric"].str.removeprefix("ceiling "))      # a line of the table, not a column
    cells = by_cell(main, columns, title, main_line)
    known = by_cell(paper, columns, title, main_line)
    retrieval = columns[0][1] in DIRECTIONS
    in_paper = dict.fromkeys(main_line(row) for row in paper.to_dict("records") if row["model"])
    with_numbers = {line for line, _ in known}
    lines = [line for line in in_paper if line[0] in OURS or line in with_numbers]
    first = next((i for i, line in enumerate(lines) if line[0] in OURS), len(lines))
    lines[first:first] = [] if BASELINE in lines else [BASELINE]
    lines = [*dict.fromkeys([*lines, *(line for line, _ in cells if line != CEILING_LINE)]),
             *([CEILING_LINE] if retrieval else [])]
    layout = _main_layout(title, columns, lines, cells)
    return _filled(layout, main, cells, known, missing, PAGES["3" if retrieval else "2"])


def _main_layout(title: str, columns: Sequence[Column], lines: Iterable[Line], cells: Mapping[tuple, dict]) -> _Layout:
    """Lines of main rows, each with the encoder that was measured and the paper's in brackets where it is another."""
    used = {line: row["image_encoder"] for (line, _), row in cells.items() if row["image_encoder"]}
    labels = {line: (line[0], line[1] if used.get(line, line[1]) == line[1] else f"{used[line]} ({line[1]})", line[2])
              for line in lines}
    return _Layout(title, {column: column_label(*column) for column in columns}, labels,
                   ("model", "image encoder (paper's)", "pretrained on"))


def _gallery(results: pd.DataFrame, opposite: str, what: str) -> list[str]:
    """How many candidates a query of each set is ranked among: the queries of the opposite direction."""
    rows = results[(results["task"] == opposite) & (results["comparison"] == "")]
    sizes = rows.groupby("dataset", sort=False)["n"].max()
    counts = [f"{LABELS[name]} {sizes[name]:,.0f}" for name in RETRIEVAL_SETS if name in sizes]
    return [f"gallery, the {what} that a query is ranked among: {', '.join(counts)}"] if counts else []


def _comparison_table(title: str, results: pd.DataFrame, comparison: str, lines: Sequence[Line],
                      missing: Mapping[str, str], page: str) -> Table:
    """A table of one comparison: lines (budget, row id), columns TABLE_4."""
    part = results[results["comparison"] == comparison]
    cells = by_cell(part, TABLE_4, title, lambda row: (row["budget"], row["row"]))
    labels = {(budget, row): (_budget_label(budget), row_label(comparison, row))
              for budget, row in (*lines, *(line for line, _ in cells))}
    columns = {}
    for column in TABLE_4:
        name, measure = column_label(*column)
        columns[column] = ("retrieval" if column[1] in DIRECTIONS else "classification",
                           measure if column[0] == "all" else f"{name} {measure}")
    return _filled(_Layout(title, columns, labels, ("budget", "row")), part, cells, {}, missing, page)


def _filled(layout: _Layout, results: pd.DataFrame, cells: Mapping[tuple, dict], known: Mapping[tuple, dict],
            missing: Mapping[str, str], page: str) -> Table:
    """The table of `cells` measured and numbers `known`, both (line, column) -> row. page: what makes the cells."""
    seeds = max((len(row["seeds"].split()) for row in cells.values()), default=0)
    runs = {line: row["run"] for (line, _), row in cells.items()}

    def why(line: Line, column: Column) -> tuple[str, str]:
        """Published only, missing data, or not run."""
        main = len(line) == 3
        if main and line[0] not in OURS and line not in runs:
            return "published only: not trained here", line[0]
        summed = RETRIEVAL_SETS if column[-1] == "RSUM" else CLASSIFICATION_SETS
        roles = [*(summed if column[0] == "all" else column[:1]), *(line[2].split(",") if main else ())]
        if role := next((role for role in roles if role in missing), None):
            return missing[role], LABELS.get(role, role)
        return lacking, " ".join(dict.fromkeys(layout.lines[line]))

    lacking = f"not measured; run {'PROFILE=standard' if one_mix(results, layout.title)[1] == 'quick' else page}"
    measured = {key: in_percent(row) + _seeds_lacking(row, seeds) for key, row in cells.items()}
    numbers = {key: f"{100 * row['value']:.1f} {STATUS[row['status']][0]}" for key, row in known.items()}
    legend = [*_legend(layout, seeds), *_marks({row["status"] for row in known.values()})]
    return layout.table(measured, numbers, _header(results, layout.title, "Measured", bool(known)), legend, why)


def by_cell(results: pd.DataFrame, columns: Sequence[Column], title: str,
            line: Callable[[Mapping], Line]) -> dict[tuple, dict]:
    """(line, column) -> row over seeds, of means (class 'all'). Raises InputError if two rows fall into one cell."""
    means = with_sums(results[(results[["class", "reference"]] == ["all", ""]).all(axis=1)])
    keys = pd.MultiIndex.from_frame(means[["dataset", "task", "metric"]])
    cells: dict[tuple, dict] = {}
    for row in over_seeds(means[keys.isin(columns)]).to_dict("records"):
        key = (line(row), (row["dataset"], row["task"], row["metric"]))
        if key in cells:
            raise InputError(f"{title}: runs {cells[key]['run']!r} and {row['run']!r} claim the same cell "
                             f"({', '.join(key[0])}; {', '.join(key[1])}): choose one")
        cells[key] = row
    return cells


def main_line(row: Mapping) -> Line:
    """A row's line; a small encoder stands in the line of the published one of its family."""
    if row["model"] == CEILING:
        return CEILING_LINE
    return row["model"], FAMILY.get(row["image_encoder"], row["image_encoder"]), row["pretraining_data"]


def _budget_label(budget: str) -> str:
    return f"equal {budget}" if budget else ""


def _difference(row: Mapping) -> str:
    return f"{in_percent(row, '+')}, p {row['p_holm']:.2g}"


def _seeds_lacking(row: Mapping, seeds: int) -> str:
    """How many seeds a number has, if fewer than the table's other cells."""
    count = len(row["seeds"].split())
    return f" ({count} of {seeds} seeds)" if 0 < count < seeds else ""


# ---- what stands above and below ------------------------------------------------------------------------------------


def one_mix(results: pd.DataFrame, title: str) -> tuple[str, str]:
    """Mix and profile of the results, empty if there are none. Raises InputError if there are several."""
    for name in ("mix", "profile"):
        if results[name].nunique() > 1:
            raise InputError(f"{title}: results of more than one {name} ({', '.join(results[name].unique())}): "
                             "choose one")
    return (results["mix"].iloc[0], results["profile"].iloc[0]) if len(results) else ("", "")


def _measured_on(results: pd.DataFrame, title: str, verb: str = "Measured") -> str:
    mix, profile = one_mix(results, title)
    return f"{verb} on the mix '{mix}' (profile {profile})."


def _header(results: pd.DataFrame, title: str, verb: str, known: bool) -> str:
    """What the measured numbers, and the published ones if there are any (`known`), stand on."""
    mix, profile = one_mix(results, title)
    if not mix:
        return "Nothing measured yet." + " Published numbers are the paper's, on its own data." * known
    if not known:
        return _measured_on(results, title, verb)
    if mix == "paper":
        return f"{verb} on the paper's data sets (profile {profile}). Published numbers are the paper's."
    return (f"{verb} on the mix '{mix}' (profile {profile}), NOT on the paper's data. Published numbers are the "
            "paper's, on its own data: the two stand on different films and must not be compared as if on the same.")


def _legend(layout: _Layout, seeds: int) -> list[str]:
    """What a cell holds, in the words that this table needs."""
    interval = {0: "measured [95 % interval]", 1: "measured [95 % interval over test patients, bootstrap; one seed]"}
    lines = [interval.get(seeds, f"measured: mean over {seeds} training seeds [95 % interval over test patients "
                                 "(bootstrap) and over seeds (Student's t), half-widths added in quadrature]")]
    if any(task.startswith("linear-probe") for _, task, _ in layout.columns):
        lines.append("probe 10 %, 100 %: linear probe on that share of the labels")
    if any(dataset == "all" for dataset, _, _ in layout.columns):
        lines.append("all three: mean AUROC over VinDr-CXR, RSNA and SIIM; RSUM, the sum of the nine recalls of "
                     "CheXpert5x200, MIMIC-CXR and Open-I")
    if CEILING_LINE in layout.lines:
        lines.append(f"{CEILING}: what a perfect reader of the findings reaches; reports that say the same cannot be "
                     "told apart")
    return [f"all in percent; {lines[0]}", *lines[1:]]


def _marks(used: set[str]) -> tuple[str, ...]:
    """What the marks of the published numbers mean, those of the statuses in use only."""
    marks = [f"{mark}: {meaning}" for status, (mark, meaning) in STATUS.items() if status in used]
    return (*marks, *[f"{DASH} in a published column: no published number is known"][:len(marks)])
