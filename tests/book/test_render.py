"""RESULTS.md, the verdicts and the drawn files follow from results/standard/, or say that it is not there."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from synthetic import tidy_results

from cxrclip.book import render
from cxrclip.errors import InputError
from cxrclip.experiments import cache
from cxrclip.results import rows as results_rows


@pytest.fixture
def root(tmp_path):
    """A copy of the pages, without results."""
    for page in render.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("before\n\n<!-- verdicts -->\n<!-- /verdicts -->\n\nafter\n")
    return tmp_path


@pytest.fixture(scope="module")
def full() -> pd.DataFrame:
    return tidy_results(seeds=2)


def put(frame: pd.DataFrame, root, stale: bool = False) -> None:
    """Make a frame the committed results."""
    results_rows.write_by_comparison(frame, root / render.RESULTS)
    about = {"versions": "synthetic=0", "stale": stale, "reason": "older"}
    (root / render.RESULTS / render.STATUS).write_text(json.dumps(about))


def test_the_pages_follow_from_the_committed_results():
    """Fails when results/standard/ changed, or a page was edited inside its markers: run `make tables`."""
    for path, text in render.pages().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} is stale: run make tables"


def test_without_results_every_part_says_not_run_yet(root):
    assert set(render.write_tables(root)) == {"RESULTS.md", "README.md", "notebooks/index.md"}
    for page in ("README.md", "RESULTS.md"):
        assert (root / page).read_text().count("Not run yet") == 1
    assert render.write_figures(root) == [render.NOT_RUN]
    assert not (root / "results").exists()


def test_with_results_the_pages_hold_tables_and_verdicts_and_go_stale_with_them(root, full):
    put(full, root)
    render.write_tables(root)
    text = (root / "RESULTS.md").read_text()
    for heading in ("**Table 4: ablation**", "**Table 3, text-to-image", "## Label growth", "## Loss weights",
                    "## Remedies", "## Paper against code"):
        assert heading in text
    assert "-1.0 [-3.0, +1.0], p 0.4" in text
    assert "| 5 | The enlarged data" in text
    assert "runs synthetic-" in text
    assert "older version" not in text
    readme = (root / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert readme.count("\n- **") == 5
    changed = full.copy()
    changed.loc[changed["dataset"] == "rsna", "value"] += 0.01
    put(changed, root, stale=True)
    drawn = render.pages(root)
    assert drawn[root / "RESULTS.md"] != text
    assert "older version" in drawn[root / "RESULTS.md"]
    assert "older version" in drawn[root / "README.md"]


def test_a_page_without_a_block_of_verdicts_is_left_alone(root):
    (root / "README.md").write_text("no block\n")
    assert root / "README.md" not in render.pages(root)


def test_results_are_kept_by_comparison_and_replace_those_before(root, full):
    put(full, root)
    current = full[full["comparison"] != "remedies"].assign(versions=cache.versions_text())
    written = render.keep_results(current, root)
    assert {"results/standard/main.csv", "results/standard/label_growth.csv", "results/standard/sizes.csv",
            "results/standard/status.json"} <= set(written)
    assert not (root / render.RESULTS / "remedies.csv").exists()
    assert not render.status(root)["stale"]
    kept = render.standard_results(root)
    assert len(kept) == len(current)
    remedies = full[full["comparison"] == "remedies"].assign(versions=cache.versions_text())
    render.keep_results(remedies, root)  # of the same version: added to what is there
    assert len(render.standard_results(root)) == len(full)
    with pytest.raises(InputError, match="not of this code"):
        render.keep_results(full, root)


def test_figures_are_drawn_from_the_results_alone_with_their_origin(root, full):
    put(full, root)
    written = render.write_figures(root)
    assert {line.split(".")[0] for line in written} == {f"figures/{stem}" for stem in render.drawings()}
    origin = json.loads((root / "figures" / "ablation_retrieval.json").read_text())
    assert origin["command"] == "make figures"
    assert {line["row"] for line in origin["rows"]} == set(render.tables.ABLATION[1:])
    assert any(name.startswith("synthetic-CXR-CLIP-M-ablation-tcl") for name in origin["key"])
    assert origin["versions"] == ["synthetic=0"]
    assert origin["alt"]
    real = [line for line in json.loads((root / "figures" / "collisions.json").read_text())["rows"]
            if line["origin"] == "published"]
    assert {line["status"] for line in real} == {"computed"}


def test_a_figure_without_rows_is_named_and_not_drawn(root, full):
    put(full[full["comparison"] != "remedies"], root)
    assert any(line.startswith("figures/remedies: not drawn") for line in render.write_figures(root))
    assert not (root / "figures" / "remedies.png").exists()


def test_a_faulty_results_file_gives_one_line(root):
    (root / render.RESULTS).mkdir(parents=True)
    (root / render.RESULTS / "main.csv").write_text("nothing\n")
    with pytest.raises(InputError) as fault:
        render.write_tables(root)
    assert "\n" not in str(fault.value)


def test_nothing_synthetic_is_committed():
    for folder in ("results", "figures"):
        for path in (render.ROOT / folder).rglob("*"):
            if path.suffix in (".csv", ".md", ".txt", ".json", ".svg"):
                assert "synthetic" not in path.read_text(encoding="utf-8"), path
