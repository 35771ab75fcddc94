"""What every page of the book does: find its data and runs, show tables, keep figures with their origin.

    page = Page("07_retrieval", profile, mix, seed, build, data, device)
    runs = page.runs(page.rows("tables 2 and 3"))
    page.show(tables.table3(comparisons.measured(runs), page.missing), "table3")

A page's cells call these and do not plumb. What is made goes to build/<mix>-<profile>/: `figures`, `tables`, `results`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import cached_property

import pandas as pd
from IPython.display import Code, Markdown
from matplotlib.figure import Figure
from transformers import AutoModel

from cxrclip.book import render
from cxrclip.data.mixes import Prepared
from cxrclip.encoders import CXRCLIPModel
from cxrclip.experiments import comparisons
from cxrclip.experiments.comparisons import Row
from cxrclip.experiments.workbench import Run, Workbench, origin, without_weight_bars
from cxrclip.hub.processing import CXRCLIPProcessor
from cxrclip.results import figures, tables
from cxrclip.results.rows import write_results

NOTEBOOKS = render.ROOT / "notebooks"
BOOK_MODEL = render.ROOT / "models" / "phantom"  # the book's own model: standard profile, M,C,C14, seed 0


class Page:
    """One page with its parameters.

    name: the notebook's, such as "07_retrieval". build, data: folders; relative ones are counted from the folder of the
    pages, whatever the working directory. The other parameters are those of every page.
    """

    def __init__(self, name: str, profile: str = "quick", mix: str = "phantom", seed: int = 0, build: str = "../build",
                 data: str = "", device: str = "auto") -> None:
        self.name, self.profile, self.mix, self.seed = name, profile, mix, seed
        self.bench = Workbench((NOTEBOOKS / build).resolve(), str((NOTEBOOKS / data).resolve()) if data else "", device)
        self.out = self.bench.outputs(mix, profile)
        self.reasons: dict[str, str] = {}
        self.left_out = ""

    @cached_property
    def prepared(self) -> Prepared:
        """The data of the mix, prepared on the first call."""
        return self.bench.prepared(self.mix, self.profile)

    @property
    def missing(self) -> dict[str, str]:
        """Roles without data and mixtures that cannot be trained, each with the reason."""
        return {**self.prepared.missing, **self.reasons}

    def tests(self, task: str) -> list[str]:
        """Test sets of the mix that have data and this task: "zero-shot", "linear-probe" or "retrieval"."""
        return [name for name, role in self.prepared.mix.tests.items()
                if task in role.tasks and name in self.prepared.folders]

    def rows(self, *names: str) -> list[Row]:
        """The rows of some comparisons that this mix can train; `left_out` then says what was left out, and why."""
        rows, reasons = comparisons.planned(self.profile, self.mix, self.seed, self.prepared, *names)
        self.reasons |= reasons
        self.left_out = comparisons.left_out(rows, reasons, self.prepared)
        return rows

    def runs(self, rows: Sequence[Row]) -> dict[Row, Run]:
        """The finished run of each row; what is missing is trained."""
        return comparisons.finished(rows, self.bench)

    def differences(self, runs: dict[Row, Run]) -> pd.DataFrame:
        """Differences of rows on the same test items, with 1,000 resamples at "quick" and 2,000 else."""
        return comparisons.differences(runs, 1000 if self.profile == "quick" else 2000)

    # ---- what a page shows and keeps ----

    def show(self, table: tables.Table, stem: str) -> Markdown:
        """A table, kept as text, Markdown and LaTeX."""
        tables.write_table(table, self.out / "tables" / stem)
        return Markdown(table.markdown())

    def keep(self, rows: pd.DataFrame, stem: str = "") -> None:
        """Keep tidy rows as results/<page>.csv, or under another stem."""
        write_results(rows, self.out / "results" / f"{stem or self.name}.csv")

    def save(self, figure: Figure, stem: str, alt: str, runs: Sequence[Run] = (), data: object = None) -> None:
        """Keep figures/<number>_<stem>.png, .svg and .json: its origin, that is `runs`, or what `data` it shows."""
        source = origin(list(runs), f"notebooks/{self.name}.ipynb", data)
        figures.save_figure(figure, self.out / "figures" / f"{self.name[:2]}_{stem}", source, alt)


def committed(comparison: str, *tables_of: Callable[..., tables.Table]) -> Markdown:
    """The committed results of a comparison ("" for the main tables): a sentence a row, then the tables asked for."""
    return Markdown(render.committed(comparison, *tables_of))


def source_of(*functions: Callable) -> Code:
    """The live source of library functions, in colour."""
    return Code("\n\n".join(inspect.getsource(function).rstrip() for function in functions), language="python")


def book_model() -> tuple[CXRCLIPModel, CXRCLIPProcessor]:
    """The book's trained model and its processor, loaded by plain transformers."""
    with without_weight_bars():
        return AutoModel.from_pretrained(BOOK_MODEL), CXRCLIPProcessor.from_pretrained(BOOK_MODEL)
