"""book/page.py: folders whatever the working directory, and where each table, figure and row goes."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from cxrclip.book import page as book_page
from cxrclip.book.page import Page
from cxrclip.experiments import comparisons
from cxrclip.results.tables import Table


@pytest.fixture
def page(tiny_mix, tiny_bench):
    """A page on the tiny mix, its folders given as from the pages' own."""
    return Page("06_classification", "quick", tiny_mix, 0, str(tiny_bench.build.resolve()))


def test_relative_folders_are_counted_from_the_pages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Page("06_classification", data="../downloads")
    assert page.bench.build == book_page.NOTEBOOKS.parent / "build"
    assert page.bench.data == str(book_page.NOTEBOOKS.parent / "downloads")
    assert page.out == book_page.NOTEBOOKS.parent / "build" / "phantom-quick"
    assert Page("06_classification").bench.data == "", "no downloads"


def test_rows_tell_what_was_left_out(page):
    assert {row.experiment.pretraining for row in page.rows(comparisons.MAIN)} == {("M", "C14")}
    assert "fewer than a batch" in page.missing["M"]
    assert "fewer than a batch" in page.left_out
    assert page.tests("retrieval")
    assert page.tests("no such task") == []


def test_what_a_page_makes_has_its_number_and_its_origin(page, tmp_path):
    page.out = tmp_path
    figure, _ = plt.subplots()
    page.save(figure, "forest", "A forest of nothing", data="drawn for this test")
    about = json.loads((tmp_path / "figures" / "06_forest.json").read_text())
    assert about["command"] == "notebooks/06_classification.ipynb"
    assert about["data"] == "drawn for this test"
    page.keep(pd.DataFrame({"run": ["a"], "value": [1.0]}))
    page.keep(pd.DataFrame({"run": ["a"], "value": [1.0]}), "06_differences")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"06_classification.csv", "06_differences.csv"}
    table = Table("Title", "Measured.", pd.DataFrame({("RSNA", "AUROC"): ["80.1"]}, index=["CLIP"]), ())
    assert page.show(table, "table2").data == table.markdown()
    assert (tmp_path / "tables" / "table2.tex").is_file()
