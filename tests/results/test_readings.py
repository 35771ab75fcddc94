"""Sentences about results follow from the numbers: the sign, the interval and the adjusted p decide each word."""

from __future__ import annotations

import numpy as np
import pytest

from cxrclip.results import readings, statistics
from cxrclip.results.rows import COLUMNS, tidy_frame


def difference(row, value, low, high, p_holm=0.5, *, comparison="ablation", reference="augmentation",
               metric="RSUM", task="image_to_text", dataset="all", **about):
    return dict.fromkeys(COLUMNS, "") | {
        "comparison": comparison, "row": row, "reference": reference, "budget": "steps", "dataset": dataset,
        "task": task, "metric": metric, "class": "all", "value": value, "low": low, "high": high, "chance": np.nan,
        "p": p_holm, "p_holm": p_holm, "n": 10, "seeds": "0 1 2"} | about


@pytest.mark.parametrize(("low", "high", "word"), [(0.01, 0.2, "raises"), (-0.2, -0.01, "lowers"),
                                                   (-0.1, 0.1, "cannot tell"), (0.0, 0.1, "cannot tell")])
def test_the_interval_decides(low, high, word):
    assert readings.reading(low, high) == word


def test_a_line_says_row_reference_and_numbers():
    rows = tidy_frame([difference("mvs", 0.881, 0.7, 1.05), difference("mvs", -0.02, -0.03, -0.01, 0.01, metric="auroc",
                                                                      task="zero-shot"),
                       difference("mvs", 0.01, -0.03, 0.05, metric="auroc", task="linear-probe-100")])
    line, _, rule = readings.markdown(rows, "ablation").split("\n")
    assert line == ("- *equal steps: + MVS* against + augmentation: raises RSUM by 88.1 [+70.0, +105.0]; "
                    "**lowers zero-shot AUROC by 2.0 [-3.0, -1.0]**; probe 100 % AUROC +1.0 [-3.0, +5.0], cannot tell.")
    assert rule.endswith("Seeds a row: 3.")
    turned = readings.markdown(rows.assign(value=-rows["value"], low=-rows["high"], high=-rows["low"]), "ablation")
    assert "lowers RSUM by 88.1 [-105.0, -70.0]" in turned
    assert "**raises zero-shot AUROC by 2.0" in turned


def test_main_rows_are_named_by_method_encoder_and_data():
    rows = tidy_frame([difference("", 0.1, 0.05, 0.2, comparison="", reference="CXR-CLIP resnet-small M", budget="",
                                  run="CXR-CLIP resnet-small M,C steps=2000", model="CXR-CLIP",
                                  image_encoder="resnet-small", pretraining_data="M,C")])
    assert readings.markdown(rows, "").startswith(
        "- *CXR-CLIP resnet-small M,C* against CXR-CLIP resnet-small M: raises RSUM by 10.0")


def test_a_measure_on_one_set_names_the_set():
    rows = tidy_frame([difference("B1*", 0.1, 0.05, 0.2, comparison="ledger", reference="intended", dataset="openi",
                                  budget="evaluation")])
    assert "Open-I RSUM" in readings.markdown(rows, "ledger")
    assert readings.markdown(rows, "ledger").startswith("- *B1"), "nothing is held equal where one run is scored twice"
    assert r"B1\** against" in readings.markdown(rows, "ledger"), "a star of a name is no emphasis"


def test_seeds_are_counted_and_nothing_says_nothing():
    rows = tidy_frame([difference("mvs", 0.1, 0.05, 0.2),
                       difference("icl", 0.1, 0.05, 0.2, reference="mvs", seeds="0")])
    assert "Seeds a row: 1 to 3." in readings.markdown(rows, "ablation")
    assert readings.markdown(rows, "remedies") == ""


def test_numbers_that_no_trained_model_has_are_listed():
    def row(metric, value, low, high, chance, **columns):
        return {"run": "CLIP", "origin": "measured", "dataset": "siim", "class": "all", "reference": "", "seeds": "0",
                "task": "zero-shot", "metric": metric, "value": value, "low": low, "high": high, "chance": chance,
                **columns}
    fine = [row("auroc", 0.45, 0.39, 0.51, 0.5), row("R@10", 0.2, 0.1, 0.3, 0.05), row("R@1", 0.0, 0.0, 0.1, 0.01),
            row("R@10", 1.0, 1.0, 1.0, 1.0),
            row("auroc", 0.2, 0.1, 0.3, 0.5, **{"class": "Edema"}), row("auroc", -0.2, -0.3, -0.1, 0.5, reference="a")]
    doubted = [row("auroc", 0.36, 0.3, 0.42, 0.5), row("R@10", 0.05, 0.02, 0.1, 0.03, task="image_to_text")]
    results = tidy_frame([*fine, *doubted, *doubted])
    assert statistics.doubtful(results) == [
        "CLIP, seed 0: siim zero-shot auroc 36.0 [30.0, 42.0], chance 50.0",
        "CLIP, seed 0: siim image to text R@10 5.0 [2.0, 10.0], chance 3.0"]
    assert statistics.doubtful(tidy_frame(fine)) == []
