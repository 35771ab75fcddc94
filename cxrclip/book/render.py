"""`make tables figures`: RESULTS.md, the verdicts of the first pages and the figures, from results/standard/ alone.

    cxrclip tables
    cxrclip figures
    cxrclip keep

RESULTS.md is written here as a whole, and in README.md and notebooks/index.md what stands between `<!-- verdicts -->`
and `<!-- /verdicts -->`; a test fails when they do not follow from the results. `keep` puts new results in the place of
the committed ones.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from cxrclip.data.files import write_text
from cxrclip.errors import InputError
from cxrclip.results import claims, readings, tables
from cxrclip.results.rows import accumulated, published, read_results, write_by_comparison
from cxrclip.results.statistics import over_seeds, with_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS = Path("results") / "standard"
STATUS = "status.json"
PAGE = Path("RESULTS.md")
PAGES = (Path("README.md"), Path("notebooks") / "index.md")
NOT_RUN = (f"Not run yet: there is no `{RESULTS}`. `make results` measures and fills this place.")
TABLES: Mapping[str, Callable[[pd.DataFrame], tables.Table]] = {
    "table1": tables.table1, "table2": tables.table2, "table3": tables.table3,
    "table3_text_to_image": tables.table3_text_to_image, "table4": tables.table4,
}
WIDTH = 7.6     # of a figure, in inches
VERDICTS = re.compile(r"(<!-- verdicts -->\n).*?(<!-- /verdicts -->)", re.DOTALL)


class Drawing(NamedTuple):
    """A figure of the committed results: rows -> what it draws (empty: not run), how, its height in inches, and what it
    shows, for readers who cannot see it."""

    select: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable
    height: float
    alt: str


def standard_results(root: Path = ROOT) -> pd.DataFrame | None:
    """The committed results, one row a seed; None when they are not there yet."""
    return read_results(root / RESULTS) if any((root / RESULTS).glob("*.csv")) else None


def status(root: Path = ROOT) -> dict:
    """results/standard/status.json: versions, stale (true for results of an older version of the code), reason."""
    path = root / RESULTS / STATUS
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as fault:
        raise InputError(f"{path}: cannot be read as JSON ({fault}): write versions, stale and reason") from fault
    if not isinstance(content, dict) or set(content) != {"versions", "stale", "reason"}:
        raise InputError(f"{path}: needs versions, stale and reason, and nothing else")
    return content


def check_standard(results: pd.DataFrame, said: Mapping) -> None:
    """Raises InputError for results of mixed versions, or whose `status` does not say whether they are this code's."""
    versions = sorted(set(results["versions"]) - {""})  # sizes and collisions are counted, not made by a stage
    if len(versions) != 1:
        raise InputError(f"{RESULTS}: more than one version ({', '.join(versions)}): run `make results`")
    if said["versions"] != versions[0]:
        raise InputError(f"{RESULTS}: {STATUS} says {said['versions']!r}, the rows {versions[0]!r}: correct it")
    current = _code_versions()
    if versions[0] != current and not said["stale"]:
        raise InputError(f"{RESULTS}: {versions[0]} is not of this code ({current}): run `make results`, or set stale")
    if versions[0] == current and said["stale"]:
        raise InputError(f"{RESULTS}: marked as stale, but of this code's versions: set stale to false in {STATUS}")


def _code_versions() -> str:
    """The stage versions of this code. Imported here: pages are written without the training code, in half the time."""
    from cxrclip.experiments import cache
    return cache.versions_text()


def keep_results(results: pd.DataFrame, root: Path = ROOT) -> list[str]:
    """Add results of this code's version to the committed ones, or put them in the place of an older version's; says
    what it wrote."""
    current = {"versions": _code_versions(), "stale": False, "reason": ""}
    check_standard(results, current | {"versions": results["versions"].max()})
    old = standard_results(root)
    if old is not None and set(old["versions"]) <= {current["versions"], ""}:
        results = accumulated(old, results)
    written = write_by_comparison(results, root / RESULTS)
    write_text(root / RESULTS / STATUS, json.dumps(current, indent=2) + "\n")
    return [str(path.relative_to(root)) for path in (*written, root / RESULTS / STATUS)]


# ---- text -----------------------------------------------------------------------------------------------------------


def committed(comparison: str, *tables_of: Callable[..., tables.Table]) -> str:
    """What the committed results say of a comparison, for a page: a line a row, then the tables asked for, as Markdown.

    A comparison without a committed difference says so, and what would measure it.
    """
    results = standard_results()
    if results is None or not ((results["comparison"] == comparison) & (results["reference"] != "")).any():
        return f"**Not measured yet at this version**: `make results` trains the runs ({comparison or 'main tables'})."
    made = [make(results, *([comparison] if make is tables.comparison_table else [])).markdown() for make in tables_of]
    return "\n\n".join([readings.markdown(results, comparison), *made])


def _results_page(results: pd.DataFrame, verdicts: pd.DataFrame, said: Mapping) -> str:
    parts = ["# Results"]
    parts.append(f"Written by `make tables` from `{RESULTS.as_posix()}/`; nothing here is typed in.")
    if said["stale"]:
        parts.append(f"> **These numbers are of an older version of the code** ({said['versions']}): {said['reason']}.")
    parts += ["## Verdicts on the paper's claims", claims.markdown(verdicts, results, rows=True),
              "## What a third party measured on real data", tables.third_party_markdown()]
    if losses := tables.losses_markdown(results):
        parts += ["## Had the training stopped improving?", losses]
    for title, told, made in _sections(results):
        parts += [f"## {title}", *filter(None, [told]), *(table.markdown().strip() for table in made)]
    return "\n\n".join(parts) + "\n"


def _sections(results: pd.DataFrame) -> list[tuple[str, str, list[tables.Table]]]:
    """Title, what the differences say, and the tables of each section of RESULTS.md."""
    sections = [("The paper's tables", readings.markdown(results, ""), [make(results) for make in TABLES.values()])]
    if (results["task"] == "pairs").any():
        sections.append(("Sharper readings", "", [tables.sharper_table(results)]))
    shown = [task for _, task, _ in tables.TABLE_4]
    for name in dict.fromkeys(results["comparison"]):
        part = results[(results["comparison"] == name) & results["task"].isin(shown)]
        compared, told = (part["reference"] != "").any(), readings.markdown(results, name)
        differences = [tables.differences_table(results, name)] if compared and name != "ledger" else []
        if name == "ledger" and compared:
            sections.append(("Paper against code", told, [tables.ledger_table(results)]))
        elif name == "ablation":                        # table 4 is above
            sections.append(("Ablation: differences", told, differences))
        elif name not in ("", "ledger") and part["row"].nunique() > 1:      # one row alone compares nothing
            sections.append((name.capitalize(), told, [tables.comparison_table(results, name), *differences]))
    return sections


def _verdict_lines(verdicts: pd.DataFrame, said: Mapping) -> str:
    """One line a claim, with the numbers behind its verdict, for the first pages."""
    lines = [f"- **{line['verdict']}**: {line['text']} *{line['why']}*"
             + (f" A further reading says less: *{line['otherwise']}.*" if line["otherwise"] else "")
             for line in verdicts.to_dict("records")]
    return "\n".join([*lines, *(["", "These numbers are of an older version of the code."] if said["stale"] else [])])


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Path of each page -> its text as the results make it; those of PAGES only where they have a block of verdicts."""
    if (results := standard_results(root)) is None:
        page, lines = f"# Results\n\n{NOT_RUN}\n", NOT_RUN
    else:
        verdicts, said = claims.verdicts(results), status(root)
        page, lines = _results_page(results, verdicts, said), _verdict_lines(verdicts, said)
    drawn = {root / PAGE: page}
    for name in PAGES:
        if (root / name).is_file() and VERDICTS.search(text := (root / name).read_text(encoding="utf-8")):
            drawn[root / name] = VERDICTS.sub(lambda match: f"{match[1]}{lines}\n{match[2]}", text)
    return drawn


def write_tables(root: Path = ROOT) -> list[str]:
    """Writes RESULTS.md and the verdicts of the first pages; says what it wrote."""
    drawn = pages(root)
    for path, text in drawn.items():
        write_text(path, text)
    return [str(path.relative_to(root)) for path in drawn]


# ---- figures --------------------------------------------------------------------------------------------------------


def _comparison(name: str, *budgets: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Rows of a comparison at some budgets (all, if none are given), over seeds; one row alone is none."""
    def select(results: pd.DataFrame) -> pd.DataFrame:
        rows = results[(results["comparison"] == name) & (results["class"] == "all")]
        rows = rows[rows["budget"].isin(budgets)] if budgets else rows
        return over_seeds(with_sums(rows)) if rows["row"].nunique() > 1 else rows.iloc[:0]
    return select


def _against(name: str, reference: str, measure: tables.Column) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Differences of a comparison's rows to one of them, or to the row above."""
    keys = dict(zip(("dataset", "task", "metric"), measure, strict=True))
    return lambda results: claims.differences_to(results[results["comparison"] == name], reference, keys)


def _task(name: str, reference: bool = False) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Rows of a task, and the published ones beside them if there is such a `reference`."""
    def select(results: pd.DataFrame) -> pd.DataFrame:
        rows = over_seeds(results[(results["task"] == name) & results["budget"].isin(["", "epochs"])])
        paper = published().query("task == @name") if reference and len(rows) else rows.iloc[:0]
        return pd.concat([rows, paper], ignore_index=True) if len(paper) else rows
    return select


def _main(*columns: tables.Column) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """Main rows of some columns of a table, in their order, and the published numbers of the same rows."""
    def select(results: pd.DataFrame) -> pd.DataFrame:
        measured, known = (tables.by_cell(rows, columns, "figure", tables.main_line)
                           for rows in (results[results["comparison"] == ""], published()))
        lines = {line for line, _ in measured}
        cells = [*measured.items(), *(cell for cell in known.items() if cell[0][0] in lines)]
        return pd.DataFrame([{**row, "measure": " ".join(tables.column_label(*column)), "line": ", ".join(line)}
                             for (line, column), row in sorted(cells, key=lambda cell: columns.index(cell[0][1]))])
    return select


def _effects(results: pd.DataFrame) -> pd.DataFrame:
    """The differences of the ledger."""
    return results[(results["comparison"] == "ledger") & (results["reference"] != "")]


def drawings() -> dict[str, Drawing]:
    """Stem -> figure. Matplotlib is imported here: the tables do not need it."""
    from cxrclip.results import figures

    auroc = [column for column in tables.TABLE_2 if column[1] != "linear-probe-10" and column[2] == "auroc"]
    recall = [column for column in tables.TABLE_3 if column[2] == "R@10"]
    found = {
        "table2": Drawing(_main(*auroc), figures.main_points, 8,
                          "AUROC of each method and mixture, zero-shot and by the probe, beside the published numbers"),
        "table3": Drawing(_main(*recall), figures.main_points, 5,
                          "R@10 of each method and mixture on the three sets, beside the published numbers"),
        "tradeoff": Drawing(_comparison("label growth"), figures.pareto, 5,
                            "Retrieval against zero-shot classification as label data join, at equal steps and epochs"),
        "loss_weights": Drawing(_comparison("loss weights"), figures.weights_curve, 4.5,
                                "Retrieval against the weights of the losses ICL and TCL"),
        "remedies": Drawing(_comparison("remedies", "epochs"), figures.remedies_plot, 4.5,
                            "Retrieval against zero-shot classification of each remedy, and of the paper's recipe"),
        "coarse_text": Drawing(_task("coarse-text"), figures.coarse_text, 4.5,
                               "Share of nearest reports with the right side, zone and severity as label data join"),
        "text_kinds": Drawing(_task("text-kind"), figures.text_kinds, 5,
                              "Share of label sentences among the ten texts nearest to a film, by remedy and test set"),
        "collisions": Drawing(_task("collision", reference=True), figures.collisions, 4,
                              "Probability that two studies carry the same text, in the phantom and in public tables"),
    }
    for side, measure in {"retrieval": figures.RETRIEVAL, "classification": figures.CLASSIFICATION}.items():
        above = partial(figures.ablation_forest, reference=claims.ABOVE)
        found |= {
            f"ablation_{side}": Drawing(_against("ablation", claims.ABOVE, measure), above, 4,
                                        f"What each part of the method adds to {side}, with its interval"),
            f"loss_combinations_{side}": Drawing(_against("loss combinations", "mvs_icl_tcl", measure),
                                                 figures.ablation_forest, 4,
                                                 f"Difference in {side} of every combination of losses to all three"),
            f"ledger_{side}": Drawing(_effects, partial(figures.ledger_forest, task=measure[1], metric=measure[2]), 5,
                                      f"What each behaviour of the released code changes in {side}"),
        }
    return found


def draw(stem: str, results: pd.DataFrame | None = None) -> tuple[Figure, pd.DataFrame] | None:
    """The figure `stem` of drawings() and the rows it shows, from the committed results unless others are given.

    None where there are no such rows.
    """
    import matplotlib.pyplot as plt

    results = standard_results() if results is None else results
    drawing = drawings()[stem]
    if results is None or (rows := drawing.select(results)).empty:
        return None
    figure, axes = plt.subplots(figsize=(WIDTH, drawing.height), layout="constrained")
    drawing.draw(rows, axes)
    return figure, rows


def benchmark(columns: Sequence[str], root: Path = ROOT) -> pd.DataFrame:
    """The table of benchmarks/results.md whose first columns have these names, as numbers.

    A cell "253 (213 to 264)" fills three columns: its own, "<name> low" and "<name> high". "-2%" is -0.02. A name that
    stands there twice follows that of the column before it.
    Raises InputError if there is no such table.
    """
    lines = iter((root / "benchmarks" / "results.md").read_text(encoding="utf-8").splitlines())
    for line in lines:
        names = [cell.strip() for cell in line.strip("| ").split("|")]
        if names[: len(columns)] == list(columns):
            next(lines)  # the rule below the head
            names = [f"{names[i - 1]}, {name}" if names.count(name) > 1 else name for i, name in enumerate(names)]
            rows = [line.strip("| ").split("|") for line in takewhile(lambda line: line.startswith("|"), lines)]
            return pd.DataFrame([dict(_numbers(names, row)) for row in rows])
    raise InputError(f"benchmarks/results.md: no table with the columns {', '.join(columns)}: run `make bench`")


def _numbers(names: Sequence[str], cells: Sequence[str]) -> Iterator[tuple[str, float]]:
    for name, cell in zip(names, cells, strict=True):
        numbers = [float(number) for number in re.findall(r"[-+]?[\d.]+", cell.replace(",", ""))]
        scale = 0.01 if "%" in cell else 1
        for suffix, number in zip(("", " low", " high"), numbers, strict=False):
            yield name + suffix, scale * number


def write_figures(root: Path = ROOT) -> list[str]:
    """Writes figures/*.png, *.svg and *.json (the drawn rows, and where they come from); says what it wrote."""
    results = standard_results(root)
    if results is None:
        return [NOT_RUN]
    import matplotlib as mpl
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from cxrclip.results import figures
    written = []
    for stem, drawing in drawings().items():
        if (drawn := draw(stem, results)) is None:
            written.append(f"figures/{stem}: not drawn, no such rows in {RESULTS}")
            continue
        figure, rows = drawn
        written += [str(path.relative_to(root))
                    for path in figures.save_figure(figure, root / "figures" / stem, _origin(rows), drawing.alt)]
        plt.close(figure)
    return written


def _origin(rows: pd.DataFrame) -> dict[str, object]:
    """Where a figure comes from: the rows drawn, and the data, runs, versions and commits behind them."""
    behind = ("data", "key", "versions", "commit")
    drawn = [{name: value for name, value in row.items() if value != "" and value == value}
             for row in rows.drop(columns=list(behind)).to_dict("records")]
    return {"rows": drawn, "command": "make figures", "results": RESULTS.as_posix(),
            **{name: sorted({word for text in rows[name] for word in text.split()}) for name in behind}}
