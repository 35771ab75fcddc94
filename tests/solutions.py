"""Copies of the notebooks in which the folded solutions are cells, so that nbval runs them after their page.

    python tests/solutions.py build/nbval     # make nbval
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
SOLUTION = re.compile(r"<summary>Exercise (\d+)</summary>(.*?)</details>", re.DOTALL)
CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)


def with_solutions(page: Path) -> nbformat.NotebookNode:
    """The page and behind it a cell for each solution that has code; its output is not compared."""
    notebook = nbformat.read(page, as_version=4)
    notebook.cells.insert(0, new_code_cell(f"import os\nos.chdir({str(page.parent)!r})", id="folder"))
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for exercise, answer in SOLUTION.findall(text.split("## Solutions")[1]):
        if code := "\n".join(CODE.findall(answer)):
            notebook.cells.append(new_code_cell(f"# the solution of exercise {exercise}\n{code}",
                                                metadata={"tags": ["nbval-ignore-output"]},
                                                id=f"solution-{exercise}"))
    return notebook


def write(folder: Path) -> None:
    """Copies of all pages."""
    folder.mkdir(parents=True, exist_ok=True)
    for page in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        nbformat.write(with_solutions(page), folder / page.name)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
