"""Verdicts on synthetic results whose truth is known, one for each branch of the rule."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
import yaml
from synthetic import row, run_rows, tidy, tidy_results

from cxrclip import results
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, comparisons
from cxrclip.results import claims, tables
from cxrclip.results import rows as results_rows


def growth(classification: float, retrieval: float, seeds: int = 3, **stamps: str) -> pd.DataFrame:
    """M and M,C,C14, with these effects: rows of the main tables, or of a comparison by `stamps`."""
    m, all_three = ({"row": row} if stamps else {} for row in ("m", "m_c_c14"))
    return tidy(*run_rows(seeds, **stamps, **m), *run_rows(
        seeds, data="M,C,C14", classification=classification, retrieval=retrieval, **stamps, **all_three))


def verdict(frame: pd.DataFrame, claim: int) -> pd.Series:
    return claims.verdicts(frame).set_index("claim").loc[claim]


@pytest.mark.parametrize(("classification", "retrieval", "expected"), [
    (0.1, -0.03, "reproduced"),         # up; down by 10 %
    (0.1, -0.10, "direction only"),     # down by a third: not marginal
    (0.005, -0.03, "direction only"),   # up, but the interval holds 0
    (0.1, 0.03, "not reproduced"),      # both up: no trade-off
    (-0.1, -0.03, "not reproduced"),
])
def test_the_trade_off_needs_both_directions(classification, retrieval, expected):
    line = verdict(growth(classification, retrieval), 5)
    assert line["verdict"] == expected, line["why"]


def test_one_seed_reproduces_nothing():
    line = verdict(growth(0.1, -0.03, seeds=1), 5)
    assert line["verdict"] == "direction only"
    assert "1 seed" in line["why"]


def test_a_verdict_names_the_values_and_the_runs_behind_it():
    line = verdict(growth(0.1, -0.03), 5)
    assert "zero-shot AUROC, CXR-CLIP on M,C,C14: 80.0 [" in line["rows"]
    assert "seeds 0 1 2" in line["rows"]
    for seed in range(3):
        assert f"synthetic-CXR-CLIP-M,C,C14--{seed}" in line["rows"]
    assert "CXR-CLIP on M,C,C14 against CXR-CLIP on M +10.0 [" in line["why"]


def test_further_readings_are_told_and_do_not_decide():
    """At equal steps retrieval falls by a third: told beside the verdict at equal epochs, which stands."""
    steps = growth(0.1, -0.10, comparison="label growth", budget="steps")
    line = verdict(results.merge_results(growth(0.1, -0.03), steps), 5)
    assert line["verdict"] == "reproduced"
    assert "RSUM at equal steps: M,C,C14 against M -" in line["also"]
    assert "more than 15%): direction only" in line["also"]
    assert line["otherwise"].startswith("RSUM at equal steps: M,C,C14 against M -"), "and no reading that was not run"
    assert line["otherwise"].endswith("more than 15%)")
    assert "no row for" in verdict(growth(0.1, -0.03), 5)["also"]


def test_a_verdict_tells_the_half_width_of_its_interval():
    line = verdict(growth(0.1, -0.03), 5)
    low, high = re.search(r"\[\+([\d.]+), \+([\d.]+)\] \(unpaired, ± ", line["why"]).groups()
    assert f"± {(float(high) - float(low)) / 2:.1f}" in line["why"]


def test_without_its_rows_a_claim_is_not_run_and_says_what_is_lacking():
    table = claims.verdicts(tidy())
    assert list(table["claim"]) == [1, 2, 3, 4, 5]
    assert set(table["verdict"]) == {"not run"}
    assert "no row for + MVS and + augmentation" in table["why"][1]
    frame = growth(0.1, -0.03)
    without = frame[(frame["pretraining_data"] != "M") | (frame["dataset"] != "siim")]
    assert verdict(without, 5)["verdict"] == "not run"


def test_the_state_of_the_art_is_only_compared_with_plain_clip():
    line = verdict(tidy_results(3), 4)
    assert "CXR-CLIP on M against CLIP on M +3.0 [+1.4" in line["why"]      # clearly better, and yet
    assert line["verdict"] == "direction only"
    assert "not about the state of the art" in line["why"]


def test_a_paired_difference_is_preferred_to_the_rows_own_intervals():
    frame = growth(0.005, -0.03)
    assert "(unpaired, ±" in verdict(frame, 5)["why"]
    after = frame[frame["pretraining_data"] == "M,C,C14"].iloc[0].to_dict()
    paired = after | {"dataset": "all", "task": "zero-shot", "metric": "auroc", "reference": "CXR-CLIP resnet-small M",
                      "value": 0.005, "low": 0.001, "high": 0.009, "seeds": "0 1 2"}
    line = verdict(tidy(*frame.to_dict("records"), paired), 5)
    assert line["verdict"] == "reproduced", line["why"]
    assert "+0.5 [+0.1, +0.9] (paired, ± 0.4)" in line["why"]


def test_differences_to_the_full_method_are_made_budget_by_budget():
    full = tidy_results(2)
    measure = {"dataset": "all", "task": "image_to_text", "metric": "RSUM"}
    found = claims.differences_to(full[full["comparison"] == "ablation"], "tcl", measure)
    assert len(found) == 2 * 5
    line = found.set_index(["budget", "row"]).loc["compute", "clip"]
    assert line["value"] == pytest.approx(-3 * 0.55 * 0.025 / 0.3)      # five steps of 0.005 on three sets
    assert line["note"] == "unpaired"
    assert line["low"] < line["value"] < line["high"]


def planned_rows() -> list[comparisons.Row]:
    base, studies = Experiment.at("standard"), dict.fromkeys(("M", "C", "C14"), 5000)
    return [row for name in comparisons.COMPARISONS for row in comparisons.rows_of(name, base, studies)]


def test_the_rows_of_claims_and_tables_are_those_that_the_comparisons_stamp():
    stamped = {(row.comparison, row.budget, row.row) for row in planned_rows()}
    lines = {("ablation", budget, row) for budget in tables.BUDGETS for row in tables.ABLATION}
    assert lines == {stamp for stamp in stamped if stamp[0] == "ablation"}
    for claim in claims.load_claims().claims:
        for side in (side for item in (*claim.compare, *claim.also) for side in (item.row, item.against)):
            if side["comparison"]:
                assert (side["comparison"], side["budget"], side["row"]) in stamped, claim.claim
    assert ("remedies", "epochs", "m_c_c14") in stamped                                # figures.remedies_plot
    assert ("loss combinations", "steps", "mvs_icl_tcl") in stamped                   # render.drawings


def test_every_row_of_a_comparison_has_a_label_of_its_own():
    planned = planned_rows()
    for name, labels in results_rows.ROW_LABELS.items():
        assert len(set(labels.values())) == len(labels)
        if name != "ledger":
            assert {row.row for row in planned if row.comparison == name} == set(labels)


def test_unpaired_intervals_cover_as_often_as_they_say():
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.7, 0.02, 4000), rng.normal(0.6, 0.04, 4000)
    sides = [{"value": values, "low": values - 1.96 * sd, "high": values + 1.96 * sd}
             for values, sd in ((a, 0.02), (b, 0.04))]
    _, low, high = claims.unpaired(*sides)
    assert np.mean((low < 0.1) & (high > 0.1)) == pytest.approx(0.95, abs=0.01)


def test_ambiguous_and_faulty_claims_are_refused(tmp_path):
    frame = growth(0.1, -0.03)
    twin = frame[frame["pretraining_data"] == "M"].assign(run="twin")
    with pytest.raises(InputError, match="claim 1: 2 rows fit"):
        claims.verdicts(results.merge_results(frame, twin))
    with pytest.raises(InputError, match="more than one mix"):
        claims.verdicts(tidy(row(), row(mix="other")))
    path = tmp_path / "claims.yaml"
    content = yaml.safe_load(claims.CLAIMS.read_text())
    content["claims"][0]["compare"][0]["expekt"] = "lower"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="claims: item 1: compare: item 1: unknown key 'expekt'"):
        claims.load_claims(path)
    del content["claims"][0]["compare"][0]["expekt"]
    content["claims"][1]["compare"][0]["measure"] = "beauty"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match="claim 2: measure 'beauty' is none of classification, retrieval"):
        claims.load_claims(path)
    with pytest.raises(InputError, match="cannot be read"):
        claims.load_claims(tmp_path / "none.yaml")


def test_markdown_has_a_line_a_claim():
    frame = growth(0.1, -0.03)
    lines = claims.markdown(claims.verdicts(frame), frame).splitlines()
    assert lines[0].startswith("Measured on the mix 'phantom' (profile standard)")
    assert len(lines) == 4 + 5
    assert {line.count("|") for line in lines[2:]} == {6}
    assert "| **reproduced** |" in lines[-1]


def test_differences_to_the_row_above():
    full = tidy_results(2)
    measure = {"dataset": "all", "task": "image_to_text", "metric": "RSUM"}
    found = claims.differences_to(full[full["comparison"] == "ablation"], claims.ABOVE, measure)
    assert list(found["row"]) == [*tables.ABLATION[1:]] * 2, "the first row has none above it"
    slopes = found.groupby("budget")["value"]
    assert slopes.mean().to_dict() == pytest.approx({"steps": 3 * 0.55 * 0.02 / 0.3, "compute": 3 * 0.55 * 0.005 / 0.3})
    assert slopes.std().max() == pytest.approx(0, abs=1e-9)
