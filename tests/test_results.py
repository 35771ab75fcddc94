"""Tidy rows against plain re-statements; tables through their cells; files through their faults."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from cxrclip import metrics, results
from cxrclip.errors import InputError

ABOUT = {"run": "resnet-small M", "profile": "quick", "mix": "phantom", "origin": "measured", "model": "CXR-CLIP",
         "image_encoder": "resnet-small", "pretraining_data": "M", "seeds": "0", "experiment": "e0", "data": "d0",
         "versions": "torch 2"}


def score_frame(n: int = 60, classes: str = "AB", draws: int = 1, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.random((n, len(classes))) < 0.4
    return pd.DataFrame([{"study_id": f"s{i}", "patient_id": f"p{i}", "class": name, "target": truth[i, k],
                          "draw": draw, "score": truth[i, k] + rng.normal()}
                         for draw in range(draws) for i in range(n) for k, name in enumerate(classes)])


def row(**changes) -> dict:
    return {**ABOUT, "dataset": "rsna", "task": "zero-shot", "metric": "auroc", "class": "all", "value": 0.7,
            "low": 0.6, "high": 0.75, "chance": 0.5, "n": 100, "status": "", "note": "", **changes}


def tidy(*rows: dict) -> pd.DataFrame:
    return results._tidy(list(rows))


# ---- rows from scores


def test_auroc_rows_are_scikit_learns_with_every_class_and_their_mean():
    frame = score_frame().drop(columns="draw")
    found = results.auroc_rows(frame, ABOUT, "rsna", "zero-shot", n_bootstrap=50).set_index("class")
    direct = {name: roc_auc_score(part["target"], part["score"]) for name, part in frame.groupby("class")}
    for name, value in direct.items():
        assert found.loc[name, "value"] == pytest.approx(value)
    assert found.loc["all", "value"] == pytest.approx(np.mean(list(direct.values())))
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()
    assert found.loc["all", ["n", "chance", "run", "dataset", "task"]].tolist() == [60, 0.5, "resnet-small M", "rsna",
                                                                                    "zero-shot"]


def test_row_order_does_not_matter():
    frame = score_frame(draws=2)
    shuffled = frame.sample(frac=1, random_state=1)
    one, other = (results.auroc_rows(part, ABOUT, "rsna", "t", n_bootstrap=1).set_index("class")["value"]
                  for part in (frame, shuffled))
    pd.testing.assert_series_equal(one.sort_index(), other.sort_index())


def test_draws_are_averaged_as_aurocs_not_as_scores():
    frame = score_frame(draws=3)
    found = results.auroc_rows(frame, ABOUT, "rsna", "linear-probe-10", n_bootstrap=20)
    each = [roc_auc_score(part["target"], part["score"]) for _, part in frame[frame["class"] == "A"].groupby("draw")]
    assert found.set_index("class").loc["A", "value"] == pytest.approx(np.mean(each))
    assert found["n"].unique() == [60]


def test_patients_are_resampled_whole():
    """Five identical films of each patient carry no more than one does: the interval must not shrink."""
    once = score_frame(n=40)
    copies = pd.concat([once.assign(study_id=once["study_id"] + f"-{copy}") for copy in range(5)])
    alone = copies.assign(patient_id=copies["study_id"])
    def width(frame):
        found = results.auroc_rows(frame, ABOUT, "rsna", "t", n_bootstrap=300).iloc[0]
        return found["high"] - found["low"]
    assert width(copies) == pytest.approx(width(once), rel=0.25)
    assert width(alone) < 0.7 * width(once)


def test_classes_without_both_outcomes_are_left_out_and_named():
    frame = score_frame(classes="ABC")
    frame.loc[frame["class"] == "C", "target"] = False
    frame.loc[frame["class"] == "B", "score"] = 0.0
    found = results.auroc_rows(frame, ABOUT, "rsna", "t", n_bootstrap=10)
    assert list(found["class"]) == ["all", "A", "B"]
    assert found["note"][0] == ("mean of 2 of 3 classes: one outcome only for C; constant score for B in 1 of 1 draws")
    frame["target"] = False
    with pytest.raises(InputError, match="no class has both outcomes"):
        results.auroc_rows(frame, ABOUT, "rsna", "t")


def test_incomplete_scores_and_unknown_origin_are_refused():
    with pytest.raises(InputError, match="each study needs each class once"):
        results.auroc_rows(score_frame().iloc[1:], ABOUT, "rsna", "t")
    with pytest.raises(InputError, match="'data' is lacking"):
        results.auroc_rows(score_frame(), {k: v for k, v in ABOUT.items() if k != "data"}, "rsna", "t", n_bootstrap=1)
    with pytest.raises(InputError, match="'colour' is unknown"):
        results.auroc_rows(score_frame(), {**ABOUT, "colour": 1}, "rsna", "t", n_bootstrap=1)


def test_accuracy_is_the_share_of_right_argmaxes():
    studies = [("A", (3, 1, 2)), ("B", (3, 1, 2)), ("C", (0, 1, 2)), ("B", (0, 4, 2))]
    frame = pd.DataFrame([{"study_id": f"s{i}", "patient_id": f"p{i}", "class": name, "score": score,
                           "target": name == true}
                          for i, (true, scores) in enumerate(studies)
                          for name, score in zip("ABC", scores, strict=True)])
    found = results.accuracy_rows(frame, ABOUT, "chexpert5x200", n_bootstrap=10).iloc[0]
    assert found[["metric", "value", "n", "task"]].tolist() == ["accuracy", 0.75, 4, "zero-shot"]
    assert found["chance"] == pytest.approx(1 / 3)
    frame.loc[0, "target"] = False
    with pytest.raises(InputError, match="study s0 has 0 of the 3 classes"):
        results.accuracy_rows(frame, ABOUT, "chexpert5x200")


def test_retrieval_rows_by_hand():
    ranks = pd.DataFrame({"study_id": list("abcd"), "patient_id": list("ppqr"), "rank": [1.0, 1.5, 7.0, 20.0],
                          "n_candidates": 20, "n_right": 1, "direction": "image_to_text"})
    found = results.retrieval_rows(ranks, ABOUT, "openi", n_bootstrap=20).set_index("metric")
    assert found["value"].to_dict() == {"R@1": 0.25, "R@5": 0.5, "R@10": 0.75, "RSUM": 1.5, "mean rank": 7.375}
    assert found["chance"].to_dict() == pytest.approx({"R@1": 0.05, "R@5": 0.25, "R@10": 0.5, "RSUM": 0.8,
                                                       "mean rank": 10.5})
    assert (found["task"] == "image_to_text").all()
    assert (found["low"] <= found["value"]).all()
    assert (found["high"] >= found["value"]).all()


def test_chance_of_several_right_candidates_is_counted_out():
    """Of 5 candidates 2 are right: drawing 2 finds none in 3 * 2 of 5 * 4 ways."""
    assert results.chance_recall(np.array([2.0]), np.array([5.0]), 2) == pytest.approx(1 - 6 / 20)
    assert results.chance_recall(np.array([2.0, 1.0]), np.array([5.0, 5.0]), 1) == pytest.approx(0.3)
    assert results.chance_recall(np.array([1.0]), np.array([4.0]), 10) == 1


def test_weighted_aurocs_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    scores, targets = np.round(rng.normal(size=(30, 3)), 0), rng.random((30, 3)) < 0.3
    weights = rng.integers(0, 4, size=(8, 30)).astype(float)
    weights[0, targets[:, 1]] = 0
    found = results._weighted_aurocs(scores, targets, weights)
    for r, weight in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(30), weight)
        np.testing.assert_allclose(found[r], metrics.class_aurocs(scores[rows], targets[rows]))
    assert np.isnan(found[0, 1])


def test_intervals_are_those_of_the_plain_bootstrap():
    frame = score_frame(n=80)
    frame["patient_id"] = "p" + (frame["study_id"].str[1:].astype(int) // 3).astype(str)
    found = results.auroc_rows(frame, ABOUT, "rsna", "t", n_bootstrap=3000).set_index("class").loc["A"]
    part = frame[frame["class"] == "A"]
    plain = metrics.bootstrap(metrics.auroc, part["score"], part["target"], n=1000, groups=part["patient_id"])
    np.testing.assert_allclose(found[["value", "low", "high"]].astype(float), plain, atol=0.015)


def test_rsum_adds_the_three_sets_and_their_widths_in_quadrature():
    parts = [row(dataset=name, task="image_to_text", metric="RSUM", value=value, low=value - width,
                 high=value + 2 * width)
             for name, value, width in zip(results.RETRIEVAL_SETS, (0.3, 1.0, 0.2), (0.03, 0.04, 0.0), strict=True)]
    found = results.rsum_rows(tidy(*parts)).iloc[0]
    assert found["dataset"] == "all"
    np.testing.assert_allclose(found[["value", "low", "high"]].astype(float), [1.5, 1.45, 1.6])
    assert results.rsum_rows(tidy(*parts[:2])).empty


def test_seeds_are_averaged_with_an_interval_that_covers_both_sources():
    rows = [row(seeds=str(seed), experiment=f"e{seed}", value=value, low=value - 0.03, high=value + 0.02)
            for seed, value in enumerate((0.70, 0.72, 0.74))]
    other = row(run="another", value=0.5)
    found = results.over_seeds(tidy(*rows, other))
    first = found.iloc[0]
    spread = 4.302653 * 0.02 / np.sqrt(3)      # t(2) at 97.5 %, sd of .70 .72 .74
    np.testing.assert_allclose(first[["value", "low", "high"]].astype(float),
                               [0.72, 0.72 - np.hypot(0.03, spread), 0.72 + np.hypot(0.02, spread)], atol=1e-6)
    assert first[["seeds", "experiment", "data"]].tolist() == ["0 1 2", "e0 e1 e2", "d0"]
    assert found.iloc[1]["value"] == 0.5
    with pytest.raises(InputError, match=r"seed '1'.*twice"):
        results.over_seeds(tidy(*rows, rows[1]))


# ---- files


def test_results_survive_the_disk(tmp_path):
    frame = tidy(row(pretraining_data="M,C", note='a "quoted", comma', seeds="0 1"), row(low=np.nan, high=np.nan))
    path = results.write_results(frame, tmp_path / "deep" / "results.csv")
    pd.testing.assert_frame_equal(results.read_results(path), frame)
    assert [entry.name for entry in path.parent.iterdir()] == ["results.csv"]
    assert results.write_results(results.read_results(path), tmp_path / "b.csv").read_bytes() == path.read_bytes()


def test_faulty_results_files_are_named(tmp_path):
    path = results.write_results(tidy(row(), row()), tmp_path / "r.csv")
    text = path.read_text()
    path.write_text(text.replace("0.75", "high", 1))
    with pytest.raises(InputError, match="row 2, column high: 'high' is no number"):
        results.read_results(path)
    path.write_text(text.replace("chance", "luck", 1))
    with pytest.raises(InputError, match="column 'chance' is lacking"):
        results.read_results(path)
    path.write_text("")
    with pytest.raises(InputError, match="not a results table"):
        results.read_results(path)
    with pytest.raises(InputError, match="no such results file"):
        results.read_results(tmp_path / "none.csv")
    with pytest.raises(InputError, match="cannot be written"):
        results.write_atomically(path / "below", "x")


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = results.write_atomically(tmp_path / "a.txt", "old")

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(results.os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        results.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_merging_replaces_the_same_measure_of_the_same_seed():
    old = tidy(row(value=0.1), row(seeds="1", value=0.2))
    found = results.merge_results(old, tidy(row(value=0.3), row(dataset="siim", value=0.4)))
    assert sorted(found["value"]) == [0.2, 0.3, 0.4]


# ---- published numbers


def test_published_numbers_are_complete_and_each_has_a_status():
    frame = results.published()
    assert len(frame) == 140 + 18
    assert (frame["origin"] == "published").all()
    scores = frame[frame["task"] != "size"]
    assert scores.loc[scores["metric"] != "RSUM", "value"].between(0, 1).all()
    quoted = scores[scores["status"].str.startswith("quoted")]
    assert quoted.set_index(["dataset", "metric"])["value"].to_dict() == {
        ("vindr-cxr", "auroc"): 0.89, ("rsna", "auroc"): 0.898, ("siim", "auroc"): 0.94,
        ("chexpert5x200", "R@1"): 0.094, ("mimic-cxr", "R@1"): 0.216}


def test_published_rsum_is_the_sum_of_its_nine_recalls():
    frame = results.published().query("task == 'image_to_text'")
    for _, rows in frame.groupby(["image_encoder", "pretraining_data"]):
        recalls = rows[rows["metric"].isin(["R@1", "R@5", "R@10"])]["value"]
        assert len(recalls) == 9
        assert recalls.sum() == pytest.approx(rows.loc[rows["metric"] == "RSUM", "value"].item(), abs=0.0011)


def test_an_unknown_status_is_refused(tmp_path):
    path = results.write_results(tidy(row(status="guessed")), tmp_path / "p.csv")
    with pytest.raises(InputError, match="row 2, column status: 'guessed' is unknown"):
        results.published(path)


# ---- tables


def measured(columns=results.TABLE_2, encoder="resnet-small", data="M", **changes) -> list[dict]:
    return [row(dataset=dataset, task=task, metric=metric, image_encoder=encoder, pretraining_data=data,
                run=f"{encoder} {data}", **changes) for dataset, task, metric in columns]


def cell(table: results.Table, encoder: str, data: str, dataset: str, column: str, model: str = "CXR-CLIP") -> str:
    return table.cells.loc[(model, encoder, data), (dataset, column)]


def test_table_2_shows_measured_and_published_side_by_side():
    table = results.table2(tidy(*measured()))
    assert cell(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC") == "70.0 [60.0, 75.0]\npub. 83.3 r"
    assert cell(table, "ResNet-50", "M,C", "RSNA", "zero-shot AUROC") == "no such run\npub. 81.7 r"
    assert cell(table, "Swin-T", "M,C,C14", "RSNA", "probe 100 % AUROC") == "no such run\npub. 89.8 q*"
    assert cell(table, "ResNet-50", "C with reports", "CheXpert5x200", "zero-shot accuracy", "GLoRIA") == (
        "published only\npub. 62.4 r")
    assert "NOT on the paper's data" in table.header
    assert any(line.startswith("r: recalled from memory") for line in table.legend)
    assert any(line.startswith("q*: ") for line in table.legend)


def test_no_cell_is_ever_blank_and_a_deleted_row_says_why():
    rows = measured()
    lacking = [line for line in rows if (line["dataset"], line["task"]) != ("siim", "linear-probe-10")]
    encoder = "resnet-small (ResNet-50)"
    for part in (rows, lacking, []):
        table = results.table2(tidy(*part))
        assert table.cells.map(lambda text: bool(text.split("\n")[0].strip())).all(axis=None)
    table = results.table2(tidy(*lacking))
    assert cell(table, encoder, "M", "SIIM", "probe 10 % AUROC") == "not evaluated\npub. 88.3 r"
    assert cell(results.table2(tidy()), "ResNet-50", "M", "SIIM", "probe 10 % AUROC") == "no run yet\npub. 88.3 r"


def test_data_that_are_missing_give_their_reason():
    missing = {"rsna": "needs RSNA: Kaggle account", "C14": "no C14 here"}
    rows = measured([column for column in results.TABLE_2 if column[0] != "rsna"])
    table = results.table2(tidy(*rows), missing)
    encoder = "resnet-small (ResNet-50)"
    assert cell(table, encoder, "M", "RSNA", "zero-shot AUROC") == "needs RSNA: Kaggle account\npub. 83.3 r"
    assert cell(table, "Swin-T", "M,C,C14", "SIIM", "zero-shot AUROC") == "no C14 here\npub. 91.4 r"
    assert "needs RSNA: Kaggle" in table.text()         # the terminal's cells wrap
    assert "needs RSNA: Kaggle account" in table.markdown()
    assert "needs RSNA: Kaggle account" in table.latex()


def test_table_3_sums_the_recalls_itself():
    columns = [(name, "image_to_text", metric) for name in results.RETRIEVAL_SETS
               for metric in ("R@1", "R@5", "R@10", "RSUM")]
    rows = measured(columns)
    for line in rows:
        line |= {"value": 0.9, "low": 0.8, "high": 1.0} if line["metric"] == "RSUM" else {}
    table = results.table3(tidy(*rows))
    assert list(table.cells.columns) == [(name, metric) for name in ("CheXpert5x200", "MIMIC-CXR", "Open-I")
                                         for metric in ("R@1", "R@5", "R@10")] + [("all three", "RSUM")]
    encoder = "resnet-small (ResNet-50)"
    assert cell(table, encoder, "M", "all three", "RSUM") == "270.0 [252.7, 287.3]\npub. 215.9 r"
    merged = results.merge_results(tidy(*rows), results.rsum_rows(tidy(*rows)))
    assert results.table3(merged).text() == table.text()
    missing = results.table3(tidy(*rows[:8]), {"openi": "needs Open-I"})
    assert cell(missing, encoder, "M", "all three", "RSUM") == "needs Open-I\npub. 215.9 r"


def test_tables_average_seeds_and_refuse_to_mix():
    one, two = (measured(seeds=seed, value=value) for seed, value in (("0", 0.7), ("1", 0.71)))
    assert cell(results.table2(tidy(*one, *two)), "resnet-small (ResNet-50)", "M", "RSNA",
                "zero-shot AUROC").startswith("70.5 [")
    with pytest.raises(InputError, match="claim the same cell"):
        results.table2(tidy(*one, *({**line, "run": "other"} for line in one)))
    with pytest.raises(InputError, match="more than one mix"):
        results.table2(tidy(*one, *measured(data="M,C", mix="real-sample")))


def test_a_run_the_paper_does_not_have_gets_its_own_row():
    table = results.table2(tidy(*measured(model="CLIP", encoder="resnet50")))
    assert cell(table, "resnet50 (ResNet-50)", "M", "RSNA", "zero-shot AUROC", "CLIP") == "70.0 [60.0, 75.0]"


def test_class_rows_do_not_reach_the_table():
    table = results.table2(tidy(*measured(), row(run="resnet-small M", value=0.1, **{"class": "Edema"})))
    assert cell(table, "resnet-small (ResNet-50)", "M", "RSNA", "zero-shot AUROC").startswith("70.0")


def test_table_1_counts_beside_the_published_sizes():
    summary = pd.DataFrame({"name": ["M", "M", "own"], "split": ["train", "valid", "test"], "studies": [2000, 200, 7]})
    table = results.table1(summary, "phantom", "quick", {"rsna": "needs RSNA"})
    cells = {(index[0], split): text for index, values in table.cells.iterrows() for (_, split), text in values.items()}
    assert cells["MIMIC-CXR (M)", "train"] == "2,000\npub. 222,628 r"
    assert cells["MIMIC-CXR (M)", "test"] == "none"
    assert cells["RSNA", "test"] == "needs RSNA\npub. 4,003 k"
    assert cells["CheXpert (C)", "train"] == "not in this mix\npub. 216,478 c"
    assert cells["own", "test"] == "7"
    assert "NOT on the paper's data" in table.header
    assert "NOT" not in results.table1(summary, "paper", "paper").header


def test_text_fits_a_terminal():
    tables = results.table2(tidy(*measured())), results.table3(tidy())
    assert max(len(line) for table in tables for line in table.text().splitlines()) <= 120


def test_latex_and_markdown_are_escaped(tmp_path):
    assert results.latex_escape("50 % of A_b & C\\d {x} #1 $y ~^") == (
        "50 \\% of A\\_b \\& C\\textbackslash{}d \\{x\\} \\#1 \\$y \\textasciitilde{}\\textasciicircum{}")
    rows = measured(results.TABLE_2[:1])
    table = results.table2(tidy(*rows), {"siim": "a|b & 5 %"})
    latex = table.latex()
    body = latex[latex.index("\\midrule"):latex.index("\\bottomrule")].strip().splitlines()[1:]
    assert {line.replace("\\&", "").count("&") for line in body} == {12}
    assert "a|b \\& 5 \\%" in latex
    assert "\\multicolumn{3}{c}{RSNA}" in latex
    assert "\\makecell{70.0 [60.0, 75.0] \\\\ pub. 78.8 r}" in latex
    lines = [line for line in table.markdown().splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in lines} == {14}
    paths = results.write_table(table, tmp_path / "t2.x")
    assert [path.name for path in paths] == ["t2.x.txt", "t2.x.md", "t2.x.tex"]


def test_sets_beyond_the_paper_get_a_table_of_their_own():
    own = tidy(row(dataset="mine", task="zero-shot", metric="auroc", value=0.61, low=0.5, high=0.72, chance=0.5, n=90),
               row(dataset="rsna", task="zero-shot", metric="auroc", value=0.9, low=0.8, high=0.95))
    text = results.other_sets_table(own).text()
    assert "61.0 [50.0, 72.0]" in text
    assert "90.0" not in text
    with pytest.raises(InputError, match="beyond the paper's"):
        results.other_sets_table(own[own["dataset"] == "rsna"])
