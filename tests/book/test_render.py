"""The first page and the drawn files follow from results/standard.csv, or say that it is not there."""

from __future__ import annotations

import json
import shutil

import pandas as pd
import pytest
from synthetic import tidy_results

from cxrclip import results
from cxrclip.book import render
from cxrclip.errors import InputError


@pytest.fixture
def root(tmp_path):
    """A copy of the pages, without results."""
    for page in render.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(render.ROOT / page, tmp_path / page)
    return tmp_path


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return tidy_results(seeds=2)


def test_the_pages_follow_from_the_committed_results():
    """Fails when results/standard.csv changed, or a page was edited inside its markers: run `make tables`."""
    for path, text in render.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run make tables"


def test_without_results_every_part_says_not_run_yet(root):
    assert render.NOT_RUN in render.write_tables(root)
    text = (root / "README.md").read_text()
    assert text.count("Not run yet") == 2
    assert "70.0 [" not in text
    assert render.write_figures(root) == [render.NOT_RUN]
    assert not (root / "results").exists()


def test_with_results_the_pages_hold_tables_and_verdicts_and_go_stale_with_them(root, full):
    results.write_results(full, root / "results" / "standard.csv")
    before = (root / "README.md").read_text()
    assert render.pages(root)[root / "README.md"] != before           # stale until it is rendered
    written = render.write_tables(root)
    text = (root / "README.md").read_text()
    assert text == render.pages(root)[root / "README.md"]
    assert "Not run yet" not in text
    assert "**Table 4: ablation**" in text
    assert "| 5 | The enlarged data" in text
    assert text.split("<!-- begin: claims -->")[0] == before.split("<!-- begin: claims -->")[0]
    assert "results/tables/table3_text_to_image.md" in written
    assert "results/tables/loss_weights.txt" in written
    assert "-1.0 [-3.0, +1.0], p 0.4" in (root / "results" / "tables" / "paper_against_code.md").read_text()
    assert "runs synthetic-" in (root / "results" / "tables" / "claims.md").read_text()
    changed = full.copy()
    changed.loc[changed["dataset"] == "rsna", "value"] += 0.01
    results.write_results(changed, root / "results" / "standard.csv")
    assert render.pages(root)[root / "README.md"] != text


def test_figures_are_drawn_from_the_results_alone_with_their_origin(root, full):
    results.write_results(full, root / "results" / "standard.csv")
    written = render.write_figures(root)
    assert {line.split(".")[0] for line in written} == {f"figures/{stem}" for stem in render.drawings()}
    origin = json.loads((root / "figures" / "ablation_retrieval.json").read_text())
    assert origin["command"] == "make figures"
    assert {line["row"] for line in origin["rows"]} == set(render.tables.ABLATION[1:])
    assert any(name.startswith("synthetic-CXR-CLIP-M-ablation-+_TCL") for name in origin["experiment"])
    assert origin["versions"] == ["synthetic=0"]
    real = [line for line in json.loads((root / "figures" / "collisions.json").read_text())["rows"]
            if line["origin"] == "published"]
    assert {line["status"] for line in real} == {"computed"}


def test_a_figure_without_rows_is_named_and_not_drawn(root, full):
    results.write_results(full[full["comparison"] != "remedies"], root / "results" / "standard.csv")
    assert any(line.startswith("figures/remedies: not drawn") for line in render.write_figures(root))
    assert not (root / "figures" / "remedies.png").exists()


def test_unknown_and_open_blocks_are_refused():
    for text in ("<!-- begin: table 9 -->\n<!-- end: table 9 -->", "<!-- begin: claims -->\n"):
        with pytest.raises(InputError, match="unknown or has no end"):
            render.filled(text, {"claims": ""}, "README.md")


def test_a_faulty_results_file_gives_one_line(root, capsys):
    (root / "results").mkdir()
    (root / "results" / "standard.csv").write_text("nothing\n")
    assert render.main(["tables", "--root", str(root)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_nothing_synthetic_is_committed():
    for folder in ("results", "figures"):
        for path in (render.ROOT / folder).rglob("*"):
            if path.suffix in (".csv", ".md", ".txt", ".json", ".svg"):
                assert "synthetic" not in path.read_text(encoding="utf-8"), path
