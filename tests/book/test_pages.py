"""What every page of the book has: alt texts, a solution for each exercise, links to the pages it names."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from solutions import with_solutions

PAGES = sorted((Path(__file__).parents[2] / "notebooks").glob("[0-9]*.ipynb"))
pytestmark = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)


def cells(page, kind):
    return [cell for cell in nbformat.read(page, as_version=4).cells if cell.cell_type == kind]


def test_every_figure_has_an_alt_text(page):
    for cell in cells(page, "code"):
        drawn = sum("image/png" in output.get("data", {}) for output in cell.outputs)
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert not drawn or len(alt) > 20, f"no alt text: {cell.source[:60]}"
        assert len(alt) <= 200


def test_every_exercise_has_a_solution(page):
    text = "\n".join(cell.source for cell in cells(page, "markdown"))
    exercises, solutions = text.split("## Exercises")[1].split("## Solutions")
    asked = re.findall(r"^(\d+)\. ", exercises, re.MULTILINE)
    assert asked == re.findall(r"<summary>Exercise (\d+)</summary>", solutions)
    assert asked


def test_solutions_with_code_run_after_their_page(page):
    text = "\n".join(cell.source for cell in cells(page, "markdown"))
    copied = [cell for cell in with_solutions(page).cells if cell.id.startswith("solution-")]
    assert copied
    for block in re.findall(r"```python\n(.*?)```", text.split("## Solutions")[1], re.DOTALL):
        assert any(block in cell.source for cell in copied)


def test_pages_that_are_named_are_linked(page):
    for cell in cells(page, "markdown"):
        for word, target in re.findall(r"\[[Nn]otebooks? (\d\d)\]\((\S+?)\)", cell.source):
            assert target.startswith(f"{word}_"), f"notebook {word} links to {target}"
            assert (page.parent / target).is_file(), f"no page {target}"
        plain = re.sub(r"\[[^]]*\]\([^)]*\)", "", cell.source)
        assert not re.search(r"[Nn]otebooks? \d\d", plain), f"not a link: {plain[:80]}"


def test_cells_are_short(page):
    """A cell of at most 12 lines, none over 88 characters, is read without scrolling."""
    for cell in cells(page, "code"):
        code = [line for line in cell.source.splitlines() if line.strip()]
        assert len(code) <= 12, f"{len(code)} lines: {code[0]}"
        assert not [line for line in code if len(line) > 88]


def test_no_table_cuts_a_text_short(page):
    for cell in cells(page, "code"):
        for output in cell.outputs:
            assert "...</td>" not in output.get("data", {}).get("text/html", ""), cell.source[:60]
