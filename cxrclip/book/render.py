"""`make tables figures`: tables, verdicts, the first page's parts and the figures, from results/standard.csv alone.

    python -m cxrclip.book.render tables
    python -m cxrclip.book.render figures

Text between `<!-- begin: NAME -->` and `<!-- end: NAME -->` in README.md and notebooks/index.md is written here and
nowhere else; a test fails when it does not follow from the results. Without results the parts say "not run yet".
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd

from cxrclip.data.files import write_text
from cxrclip.errors import InputError
from cxrclip.results import claims, over_seeds, published, read_results, tables, with_sums

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROOT = Path(__file__).parents[2]
RESULTS = Path("results") / "standard.csv"
PAGES = (Path("README.md"), Path("notebooks") / "index.md")
NOT_RUN = (f"Not run yet: there is no `{RESULTS}`. `make reproduce PROFILE=standard` measures; `make tables figures` "
           "then fills this place.")
TABLES: Mapping[str, Callable[[pd.DataFrame], tables.Table]] = {
    "table1": tables.table1, "table2": tables.table2, "table3": tables.table3,
    "table3_text_to_image": tables.table3_text_to_image, "table4": tables.table4,
}
BLOCK = re.compile(r"(<!-- begin: (?P<name>[^>]+?) -->\n).*?(<!-- end: (?P=name) -->)", re.DOTALL)


class Drawing(NamedTuple):
    """A figure of the committed results: rows -> what it draws (empty: not run), how, and its size in inches."""

    select: Callable[[pd.DataFrame], pd.DataFrame]
    draw: Callable
    size: tuple[float, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 after one line that says what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m cxrclip.book.render", description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("tables", "figures"))
    parser.add_argument("--root", default=ROOT, type=Path, help="folder that holds results/ and README.md")
    options = parser.parse_args(arguments)
    try:
        written = write_tables(options.root) if options.what == "tables" else write_figures(options.root)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for line in written:
        print(line)
    return 0


def standard_results(root: Path = ROOT) -> pd.DataFrame | None:
    """The committed results, one row a seed; None when they are not there yet."""
    return read_results(root / RESULTS) if (root / RESULTS).is_file() else None


# ---- text -----------------------------------------------------------------------------------------------------------


def blocks(results: pd.DataFrame | None) -> dict[str, str]:
    """Name of a block -> its Markdown."""
    if results is None:
        return {"claims": NOT_RUN + "\n", "tables": "Not run yet either.\n"}
    drawn = [draw(results).markdown() for draw in TABLES.values()]
    return {"claims": claims.markdown(claims.verdicts(results), results) + "\n", "tables": "\n".join(drawn)}


def filled(text: str, parts: Mapping[str, str], where: str) -> str:
    """The page with each block replaced. Raises InputError for a block that nobody renders or that does not end."""
    names = [match["name"] for match in BLOCK.finditer(text)]
    begun = re.findall(r"<!-- begin: (.+?) -->", text)
    if wrong := [name for name in begun if name not in names or name not in parts]:
        raise InputError(f"{where}: block {wrong[0]!r} is unknown or has no end: known are {', '.join(parts)}")
    return BLOCK.sub(lambda match: f"{match[1]}\n{parts[match['name']]}\n{match[3]}", text)


def pages(root: Path = ROOT) -> dict[Path, str]:
    """Path of each page with blocks -> its text as the results make it."""
    parts = blocks(standard_results(root))
    return {root / name: filled((root / name).read_text(encoding="utf-8"), parts, str(name)) for name in PAGES}


def write_tables(root: Path = ROOT) -> list[str]:
    """Writes the pages' blocks and, when there are results, results/tables/*.md and *.txt; says what it wrote."""
    results = standard_results(root)
    written = list(drawn_pages := pages(root))
    for path, text in drawn_pages.items():
        write_text(path, text)
    if results is None:
        return [*(str(path.relative_to(root)) for path in written), NOT_RUN]
    folder = root / "results" / "tables"
    drawn = {stem: draw(results) for stem, draw in TABLES.items()}
    own = dict.fromkeys(name for name in results["comparison"] if name not in ("", "ablation", "ledger"))
    drawn |= {name.replace(" ", "_"): tables.comparison_table(results, name) for name in own
              if not (results[results["comparison"] == name]["task"] == "coarse-text").all()}
    if (results["comparison"] == "ledger").any():
        drawn["paper_against_code"] = tables.ledger_table(results)
    for stem, table in drawn.items():
        written += tables.write_table(table, folder / stem, (".md", ".txt"))
    verdicts = claims.verdicts(results)
    write_text(folder / "claims.md", claims.markdown(verdicts, results, rows=True) + "\n")
    text = "\n\n".join("\n".join(f"{name}: {value}" for name, value in line.items())
                       for line in verdicts.to_dict("records"))
    write_text(folder / "claims.txt", text + "\n")
    written += [folder / "claims.md", folder / "claims.txt"]
    return [str(path.relative_to(root)) for path in written]


# ---- figures --------------------------------------------------------------------------------------------------------


def drawings() -> dict[str, Drawing]:
    """Stem -> figure. Matplotlib is imported here: the tables do not need it."""
    from cxrclip.results import figures

    def comparison(name: str, *budgets: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
        """Rows of a comparison at some budgets (all, if none are given), over seeds."""
        def select(results: pd.DataFrame) -> pd.DataFrame:
            rows = results[(results["comparison"] == name) & (results["class"] == "all")]
            return over_seeds(with_sums(rows[rows["budget"].isin(budgets)] if budgets else rows))
        return select

    def against(name: str, reference: str, measure: figures.Measure) -> Callable[[pd.DataFrame], pd.DataFrame]:
        """Differences of a comparison's rows to one of them, or to the row above."""
        keys = dict(zip(("dataset", "task", "metric"), measure, strict=True))
        return lambda results: claims.differences_to(results[results["comparison"] == name], reference, keys)

    def task(name: str, reference: bool = False) -> Callable[[pd.DataFrame], pd.DataFrame]:
        """Rows of a task, and the published ones beside them if there is such a `reference`."""
        def select(results: pd.DataFrame) -> pd.DataFrame:
            rows = over_seeds(results[(results["task"] == name) & results["budget"].isin(["", "steps"])])
            paper = published().query("task == @name") if reference and len(rows) else rows.iloc[:0]
            return pd.concat([rows, paper], ignore_index=True) if len(paper) else rows
        return select

    def effects(results: pd.DataFrame) -> pd.DataFrame:
        """The differences of the ledger."""
        return results[(results["comparison"] == "ledger") & (results["reference"] != "")]

    sides = {"retrieval": figures.RETRIEVAL, "classification": figures.CLASSIFICATION}
    return {
        "tradeoff": Drawing(comparison("label growth"), figures.pareto, (7, 5)),
        **{f"{stem}_{side}": Drawing(against(name, reference, measure), figures.ablation_forest, (7, 4))
           for stem, name, reference in (("ablation", "ablation", claims.ABOVE),
                                         ("loss_combinations", "loss combinations", "MVS + ICL + TCL"))
           for side, measure in sides.items()},
        "loss_weights": Drawing(comparison("loss weights", "steps", ""), figures.weights_curve, (7, 4.5)),
        "remedies": Drawing(comparison("remedies", "steps", ""), figures.remedies_plot, (8, 5)),
        **{f"ledger_{side}": Drawing(effects, partial(figures.ledger_forest, task=measure[1], metric=measure[2]),
                                     (8, 5)) for side, measure in sides.items()},
        "coarse_text": Drawing(task("coarse-text"), figures.coarse_text, (7, 4.5)),
        "collisions": Drawing(task("collision", reference=True), figures.collisions, (8, 4)),
    }


def draw(stem: str, results: pd.DataFrame | None = None) -> tuple[Figure, pd.DataFrame] | None:
    """The figure `stem` of drawings() and the rows it shows, from the committed results unless others are given.

    None where there are no such rows.
    """
    import matplotlib.pyplot as plt

    results = standard_results() if results is None else results
    drawing = drawings()[stem]
    if results is None or (rows := drawing.select(results)).empty:
        return None
    figure, axes = plt.subplots(figsize=drawing.size, layout="constrained")
    drawing.draw(rows, axes)
    return figure, rows


def write_figures(root: Path = ROOT) -> list[str]:
    """Writes figures/*.png, *.svg and *.json (drawn rows, data, experiments, versions, command); says what it wrote."""
    results = standard_results(root)
    if results is None:
        return [NOT_RUN]
    import matplotlib as mpl
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from cxrclip.results import figures
    written = []
    for stem in drawings():
        if (drawn := draw(stem, results)) is None:
            written.append(f"figures/{stem}: not drawn, no such rows in {RESULTS}")
            continue
        figure, rows = drawn
        written += [str(path.relative_to(root))
                    for path in figures.save_figure(figure, root / "figures" / stem, _origin(rows))]
        plt.close(figure)
    return written


def _origin(rows: pd.DataFrame) -> dict[str, object]:
    """Where a figure comes from: the rows drawn, and the data, experiments and versions behind them."""
    def words(name: str) -> list[str]:
        return sorted({word for text in rows[name] for word in text.split(" ") if word})
    kept = [name for name in rows if name not in ("key", "versions", "commit", "data")]
    drawn = [{name: value for name, value in row.items() if value != "" and value == value}
             for row in rows[kept].to_dict("records")]
    return {"rows": drawn, "data": words("data"), "experiment": words("key"), "versions": words("versions"),
            "command": "make figures", "results": str(RESULTS)}


if __name__ == "__main__":
    sys.exit(main())
