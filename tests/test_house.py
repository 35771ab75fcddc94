"""The house plan, counted: the paper's files are few and short, and the package does not grow again unseen."""

from __future__ import annotations

from pathlib import Path

import cxrclip

PACKAGE = Path(cxrclip.__file__).parent
PAPER = {"errors", "metrics", "prompts", "losses", "encoders", "transforms", "views", "studies", "training",
         "evaluation"}
APPARATUS = ("official", "remed", "experiments", "ledger", "behaviour")  # words of what the paper's files do not hold


def lines(path):
    return len(path.read_text(encoding="utf-8").splitlines())


def test_the_top_floor_is_the_paper():
    files = {path.stem for path in PACKAGE.glob("*.py")}
    assert files == PAPER | {"__init__", "cli"}
    assert sum(lines(PACKAGE / f"{name}.py") for name in PAPER) <= 2300


def test_the_papers_files_import_no_apparatus():
    for name in PAPER:
        code = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        imports = [line for line in code.splitlines() if line.lstrip().startswith(("import ", "from "))]
        assert not [line for line in imports if any(word in line for word in APPARATUS)], name
