"""Tidy rows and differences against plain re-statements; files through their faults."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind
from sklearn.metrics import f1_score, roc_auc_score
from synthetic import ABOUT, row, tidy

from cxrclip import metrics, results
from cxrclip.errors import InputError
from cxrclip.results import rows as results_rows
from cxrclip.results import statistics


def score_frame(n: int = 60, classes: str = "AB", draws: int = 1, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    truth = rng.random((n, len(classes))) < 0.4
    return pd.DataFrame([{"study_id": f"s{i}", "patient_id": f"p{i}", "class": name, "target": truth[i, k],
                          "draw": draw, "score": truth[i, k] + rng.normal()}
                         for draw in range(draws) for i in range(n) for k, name in enumerate(classes)])


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
    found = statistics.accuracy_rows(frame, ABOUT, "chexpert5x200", n_bootstrap=10).iloc[0]
    assert found[["metric", "value", "n", "task"]].tolist() == ["accuracy", 0.75, 4, "zero-shot"]
    assert found["chance"] == pytest.approx(1 / 3)
    frame.loc[0, "target"] = False
    with pytest.raises(InputError, match="study s0 has 0 of the 3 classes"):
        statistics.accuracy_rows(frame, ABOUT, "chexpert5x200")


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


def test_median_rank_by_hand_and_its_interval_by_resampling():
    ranks = pd.DataFrame({"study_id": range(7), "patient_id": list("ppqrstu"), "rank": [9.0, 1, 3, 2, 5, 40, 7],
                          "n_candidates": 50, "n_right": 1, "direction": "image_to_text"})
    (found,) = statistics.median_rank_rows(ranks, ABOUT, "openi", n_bootstrap=200).to_dict("records")
    assert (found["value"], found["chance"], found["n"]) == (5, 25.5, 7)
    medians = []
    for weight in statistics._patient_weights(ranks["patient_id"].to_numpy(), 200).astype(int):
        drawn = np.sort(np.repeat(ranks["rank"], weight))
        medians.append(drawn[(len(drawn) - 1) // 2])
    assert [found["low"], found["high"]] == np.percentile(medians, (2.5, 97.5)).tolist()


def test_f1_is_that_of_scikit_learn_and_of_repeated_rows():
    rng = np.random.default_rng(0)
    names, patients = ["a", "b", "c"], rng.integers(0, 12, 30)
    frame = pd.DataFrame([{"study_id": f"s{i}", "patient_id": f"p{patient}", "class": name, "score": rng.random(),
                           "target": bool(rng.random() < 0.4)} for i, patient in enumerate(patients) for name in names])
    thresholds = {"a": 0.3, "b": 0.5, "c": np.inf}
    (found,) = statistics.f1_rows(frame, thresholds, ABOUT, "vindr-cxr", n_bootstrap=50).to_dict("records")
    called = frame["score"] >= frame["class"].map(thresholds)
    targets, answers = (values.to_numpy().reshape(30, 3) for values in (frame["target"], called))
    assert found["value"] == pytest.approx(f1_score(targets, answers, average="macro", zero_division=0))
    assert found["chance"] == pytest.approx(f1_score(targets, np.ones((30, 3)), average="macro"))
    weights = statistics._patient_weights(frame["patient_id"].to_numpy()[::3], 50).astype(int)
    redrawn = [f1_score(np.repeat(targets, weight, axis=0), np.repeat(answers, weight, axis=0), average="macro",
                        zero_division=0) for weight in weights]
    assert [found["low"], found["high"]] == pytest.approx(np.percentile(redrawn, (2.5, 97.5)))


def test_chance_of_several_right_candidates_is_counted_out():
    """Of 5 candidates 2 are right: drawing 2 finds none in 3 * 2 of 5 * 4 ways."""
    assert metrics.chance_of_hit([2], [5], 2) == pytest.approx([1 - 6 / 20])
    assert metrics.chance_of_hit([2, 1], [5, 5], 1) == pytest.approx([0.4, 0.2])
    assert metrics.chance_of_hit([1], [4], 10) == [1]


def test_weighted_aurocs_are_those_of_repeated_rows():
    rng = np.random.default_rng(0)
    scores, targets = np.round(rng.normal(size=(30, 3)), 0), rng.random((30, 3)) < 0.3
    weights = rng.integers(0, 4, size=(8, 30)).astype(float)
    weights[0, targets[:, 1]] = 0
    found = statistics._weighted_aurocs(scores, targets, weights)
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
    rows = [row(seeds=str(seed), key=f"e{seed}", value=value, low=value - 0.03, high=value + 0.02)
            for seed, value in enumerate((0.70, 0.72, 0.74))]
    other = row(run="another", value=0.5)
    found = results.over_seeds(tidy(*rows, other))
    first = found.iloc[0]
    spread = 4.302653 * 0.02 / np.sqrt(3)      # t(2) at 97.5 %, sd of .70 .72 .74
    np.testing.assert_allclose(first[["value", "low", "high"]].astype(float),
                               [0.72, 0.72 - np.hypot(0.03, spread), 0.72 + np.hypot(0.02, spread)], atol=1e-6)
    assert first[["seeds", "key", "data"]].tolist() == ["0 1 2", "e0 e1 e2", "d0"]
    assert found.iloc[1]["value"] == 0.5
    with pytest.raises(InputError, match=r"seed '1'.*twice"):
        results.over_seeds(tidy(*rows, rows[1]))


# ---- files


def test_results_survive_the_disk(tmp_path):
    frame = tidy(row(pretraining_data="M,C", note='a "quoted", comma', seeds="0 1"), row(low=np.nan, high=np.nan))
    path = results.write_results(frame, tmp_path / "deep" / "results.csv")
    pd.testing.assert_frame_equal(results_rows.read_results(path), frame)
    assert [entry.name for entry in path.parent.iterdir()] == ["results.csv"]
    assert results.write_results(results_rows.read_results(path), tmp_path / "b.csv").read_bytes() == path.read_bytes()


def test_faulty_results_files_are_named(tmp_path):
    path = results.write_results(tidy(row(), row()), tmp_path / "r.csv")
    text = path.read_text()
    path.write_text(text.replace("0.75", "high", 1))
    with pytest.raises(InputError, match="row 2, column high: 'high' is no number"):
        results_rows.read_results(path)
    path.write_text(text.replace("chance", "luck", 1))
    with pytest.raises(InputError, match="column 'chance' is lacking"):
        results_rows.read_results(path)
    path.write_text("")
    with pytest.raises(InputError, match="not a results table"):
        results_rows.read_results(path)
    with pytest.raises(InputError, match="no such results file"):
        results_rows.read_results(tmp_path / "none.csv")


def test_merging_replaces_the_same_measure_of_the_same_seed():
    old = tidy(row(value=0.1), row(seeds="1", value=0.2))
    found = results.merge_results(old, tidy(row(value=0.3), row(dataset="siim", value=0.4)))
    assert sorted(found["value"]) == [0.2, 0.3, 0.4]


# ---- published numbers


def test_published_numbers_are_complete_and_each_has_a_status():
    frame = results.published()
    assert len(frame) == 140 + 18 + 5        # Tables 2 and 3, Table 1, collisions
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


# ---- stamps, ceilings, shares, sizes


def test_files_without_stamps_are_read_as_main_rows(tmp_path):
    path = results.write_results(tidy(row()), tmp_path / "r.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False).drop(columns=list(results_rows.STAMPS))
    frame.to_csv(path, index=False)
    found = results_rows.read_results(path)
    assert found[list(results_rows.STAMPS)].iloc[0].tolist() == ["", "", ""]
    pd.testing.assert_frame_equal(found, tidy(row()))


def test_stamps_are_part_of_the_key_and_come_from_about():
    main, stamped = row(), row(comparison="ablation", row="mvs", budget="steps", value=0.9)
    assert len(results.merge_results(tidy(main), tidy(stamped))) == 2
    assert sorted(results.over_seeds(tidy(main, stamped))["value"]) == [0.7, 0.9]
    about = ABOUT | {"comparison": "ablation", "row": "mvs", "budget": "steps"}
    found = results.auroc_rows(score_frame(), about, "rsna", "t", n_bootstrap=1)
    assert set(map(tuple, found[list(results_rows.STAMPS)].to_numpy())) == {("ablation", "mvs", "steps")}
    plain = results.auroc_rows(score_frame(), ABOUT, "rsna", "t", n_bootstrap=1)
    assert (plain[list(results_rows.STAMPS)] == "").all(axis=None)


def test_ceiling_rows_are_the_metric_and_belong_to_no_run():
    texts, contents = list("aabcd"), ["normal"] * 4 + ["effusion"]
    found = results.ceiling_rows(texts, contents, ABOUT, "openi")
    assert set(found["run"]) == {"ceiling"}
    assert set(found["pretraining_data"]) == {""}
    to_text = found[found["task"] == "image_to_text"].set_index("metric")
    assert to_text["value"].to_dict() == pytest.approx({"ceiling R@1": 0.6, "ceiling R@5": 1, "ceiling R@10": 1,
                                                        "ceiling RSUM": 2.6})
    assert found.groupby("task")["n"].first().to_dict() == {"image_to_text": 5, "text_to_image": 4}
    assert found["low"].isna().all()
    sets = pd.concat([found.assign(dataset=name) for name in results.RETRIEVAL_SETS])
    total = results.rsum_rows(sets).set_index("task").loc["image_to_text"]
    assert total["value"] == pytest.approx(7.8)
    assert np.isnan(total["low"])


def test_shares_are_means_a_class():
    hits = pd.DataFrame({"patient_id": list("ppqq"), "class": ["side", "side", "zone", "zone"], "hit": [1, 0, 1, 1],
                         "chance": [0.5, 0.5, 0.2, 0.4]})
    found = statistics.share_rows(hits, ABOUT, "mimic-cxr", "coarse-text", n_bootstrap=20).set_index("class")
    assert found["value"].to_dict() == {"side": 0.5, "zone": 1.0}
    assert found["chance"].to_dict() == pytest.approx({"side": 0.5, "zone": 0.3})


def test_mean_auroc_over_the_three_sets_is_made_for_complete_seeds_only():
    rows = [row(dataset=name, seeds=seed, value=value, low=value - 0.03, high=value + 0.03)
            for seed in "01" for name, value in zip(results.CLASSIFICATION_SETS, (0.6, 0.7, 0.8), strict=True)]
    found = results.mean_auroc_rows(tidy(*rows[:5]))
    assert len(found) == 1
    np.testing.assert_allclose(found[["value", "low", "high"]].to_numpy(float)[0],
                               [0.7, 0.7 - 0.03 / np.sqrt(3), 0.7 + 0.03 / np.sqrt(3)])
    assert set(results.with_sums(tidy(*rows))["dataset"]) == {*results.CLASSIFICATION_SETS, "all"}


def test_intervals_over_seeds_cover_the_truth_at_least_as_often_as_they_say():
    """600 worlds: one test set's luck shared by three seeds, each seed's own luck; the interval must hold the truth."""
    rng, rows = np.random.default_rng(0), []
    for world in range(600):
        luck = rng.normal(0, 0.01)
        for seed, value in enumerate(0.7 + luck + rng.normal(0, 0.01, 3)):
            rows.append(row(run=f"{world}", seeds=str(seed), value=value, low=value - 0.0196, high=value + 0.0196))
    found = results.over_seeds(tidy(*rows))
    inside = ((found["low"] < 0.7) & (found["high"] > 0.7)).mean()
    assert 0.945 < inside <= 1


def test_a_mean_over_seeds_without_intervals_has_none():
    found = results.over_seeds(tidy(*(row(seeds=seed, low=np.nan, high=np.nan) for seed in "01"))).iloc[0]
    assert np.isnan(found["low"])
    assert np.isnan(found["high"])


# ---- paired differences


def patients(frame: pd.DataFrame, films: int = 2) -> pd.DataFrame:
    return frame.assign(patient_id="p" + (frame["study_id"].str[1:].astype(int) // films).astype(str))


def worse(frame: pd.DataFrame, seed: int) -> pd.DataFrame:
    return frame.assign(score=frame["score"] + np.random.default_rng(seed).normal(size=len(frame)))


def slow_differences(a, b, statistic, n):
    """Slow reference: repeat each row as often as its patient was drawn, one resample at a time; patients only."""
    weights = statistics._patient_weights(a["patient_id"].to_numpy(), n, 0).astype(int)
    return [statistic(a.iloc[np.repeat(np.arange(len(a)), weight)]) - statistic(b.iloc[np.repeat(np.arange(len(b)),
                                                                                                weight)])
            for weight in weights]


def mean_auroc(frame: pd.DataFrame) -> float:
    return np.mean([metrics.auroc(part["score"], part["target"]) for _, part in frame.groupby("class")])


def test_one_seed_gives_the_plain_paired_bootstrap():
    a = patients(score_frame(classes="A").drop(columns="draw")).sort_values("study_id").reset_index(drop=True)
    b = worse(a, 1)
    found = statistics.differences([a], [b], n_bootstrap=200).iloc[0]
    slow = slow_differences(a, b, mean_auroc, 200)
    assert found["value"] == pytest.approx(mean_auroc(a) - mean_auroc(b))
    np.testing.assert_allclose(found[["low", "high"]].astype(float), np.percentile(slow, (2.5, 97.5)))
    assert found["p"] == pytest.approx(2 * (1 + min(np.sum(np.array(slow) <= 0), np.sum(np.array(slow) >= 0))) / 201)
    assert "one seed" in found["note"]


def test_row_order_does_not_matter_for_differences():
    a = patients(score_frame().drop(columns="draw"))
    b = worse(a, 1)
    one = statistics.differences([a], [b], n_bootstrap=50)
    shuffled = [[side.sample(frac=1, random_state=i)] for i, side in enumerate((a, b))]
    other = statistics.differences(*shuffled, n_bootstrap=50)
    pd.testing.assert_frame_equal(one, other)


def ranks(values, direction="image_to_text") -> pd.DataFrame:
    n = len(values)
    return pd.DataFrame({"study_id": [f"s{i:03d}" for i in range(n)], "patient_id": [f"p{i // 2}" for i in range(n)],
                         "rank": np.asarray(values, float), "n_right": 1, "n_candidates": n, "direction": direction})


def test_differences_of_ranks_are_those_of_each_recall_and_their_sum():
    rng = np.random.default_rng(0)
    a, b = (ranks(rng.integers(1, top, 60)) for top in (12, 25))
    found = statistics.differences([a], [b], n_bootstrap=100).set_index("metric")
    for k in results_rows.KS:
        slow = slow_differences(a, b, lambda frame, k=k: (frame["rank"] <= k).mean(), 100)
        assert found.loc[f"R@{k}", "value"] == pytest.approx((a["rank"] <= k).mean() - (b["rank"] <= k).mean())
        np.testing.assert_allclose(found.loc[f"R@{k}", ["low", "high"]].astype(float), np.percentile(slow, (2.5, 97.5)))
    assert found.loc["RSUM", "value"] == pytest.approx(found["value"].drop("RSUM").sum())
    assert set(found["task"]) == {"image_to_text"}


def test_seeds_alone_give_welchs_interval():
    """All patients alike within a seed: nothing but seeds spreads, and the interval is Welch's t."""
    a, b = ([ranks([1] * hits + [50] * (60 - hits)).assign(patient_id="p") for hits in counts]
            for counts in ((30, 36, 33), (20, 26, 29, 21)))
    found = statistics.differences(a, b, n_bootstrap=20000).set_index("metric").loc["R@1"]
    welch = ttest_ind([30 / 60, 36 / 60, 33 / 60], [20 / 60, 26 / 60, 29 / 60, 21 / 60], equal_var=False)
    np.testing.assert_allclose(found[["low", "high"]].astype(float), welch.confidence_interval(0.95), atol=2e-4)
    assert found["p"] == pytest.approx(welch.pvalue, rel=0.02)
    assert found[["seeds_a", "seeds_b", "note"]].tolist() == [3, 4, ""]


def test_pairing_takes_out_what_is_hard_for_both():
    base = patients(score_frame(n=200, classes="A", seed=3).drop(columns="draw"))
    a, b = base.assign(score=base["score"] + 0.01 * base["target"]), base
    found = statistics.differences([a], [b], n_bootstrap=300).iloc[0]
    alone = results.auroc_rows(base, ABOUT, "rsna", "t", n_bootstrap=300).iloc[0]
    assert found["high"] - found["low"] < 0.1 * (alone["high"] - alone["low"])
    assert statistics.differences([b], [b], n_bootstrap=50).iloc[0][["value", "p"]].tolist() == [0.0, 1.0]


def test_several_data_sets_give_their_mean_or_sum_too():
    a = {name: [ranks(np.random.default_rng(i).integers(1, 12, 40))] for i, name in enumerate(results.RETRIEVAL_SETS)}
    b = {name: [frame.assign(rank=frame["rank"] + 3) for frame in frames] for name, frames in a.items()}
    found = statistics.differences(a, b, n_bootstrap=100).set_index(["dataset", "metric"])["value"]
    assert found["all", "RSUM"] == pytest.approx(sum(found[name, "RSUM"] for name in results.RETRIEVAL_SETS))
    scores = {name: [score_frame(seed=i).drop(columns="draw")] for i, name in enumerate(results.CLASSIFICATION_SETS)}
    other = {name: [worse(frame, 7) for frame in frames] for name, frames in scores.items()}
    found = statistics.differences(scores, other, n_bootstrap=50).set_index("dataset")["value"]
    assert found["all"] == pytest.approx(found.drop("all").mean())


def test_different_test_items_are_refused():
    a = score_frame().drop(columns="draw")
    with pytest.raises(InputError, match="same test items"):
        statistics.differences([a], [a.assign(target=~a["target"])], n_bootstrap=5)
    with pytest.raises(InputError, match="same test items"):
        statistics.differences([ranks([1, 2, 3])], [ranks([1, 2, 3, 4])], n_bootstrap=5)
    with pytest.raises(InputError, match="the same data sets"):
        statistics.differences({"rsna": [a]}, {"siim": [a]})


def test_difference_rows_are_tidy_and_say_what_they_are():
    a = score_frame().drop(columns="draw")
    found = statistics.differences({"rsna": [a]}, {"rsna": [worse(a, 1)]}, n_bootstrap=50)
    found["p_holm"], found["task"] = metrics.holm(found["p"]), "zero-shot"
    about = ABOUT | {"comparison": "ablation", "row": "mvs", "budget": "steps"}
    line = statistics.difference_rows(found, about, "clip").iloc[0]
    assert line[["metric", "reference", "task", "dataset", "row"]].tolist() == ["auroc", "clip", "zero-shot", "rsna",
                                                                                "mvs"]
    assert line[["value", "low", "high", "p", "p_holm"]].tolist() == (
        found.iloc[0][["value", "low", "high", "p", "p_holm"]].tolist())
    pd.testing.assert_frame_equal(results.over_seeds(tidy(line.to_dict())), tidy(line.to_dict()))


def a_row(row, seeds, value, *, reference="", p=float("nan"), budget="steps"):
    return {"run": f"run {row}", "comparison": "remedies", "row": row, "budget": budget, "seeds": seeds,
            "value": value, "reference": reference, "p": p, "p_holm": p}


def test_results_of_several_goes_lose_no_run():
    old = [a_row("a", "0", 1.0), a_row("a", "1", 1.1), a_row("a", "0 1", 0.1, reference="m", p=0.01)]
    new = [a_row("a", "0", 2.0), a_row("b", "0", 3.0), a_row("a", "0", 0.5, reference="m", p=0.02),
           a_row("b", "0", 0.2, reference="m", p=0.04), a_row("b", "0", 1.0, reference="m", p=0.5, budget="evaluation")]
    kept = results_rows.accumulated(*map(results_rows.tidy_frame, (old, new)))
    runs, cells = kept[kept["reference"] == ""], kept[kept["reference"] != ""]
    assert dict(zip(runs["row"] + runs["seeds"], runs["value"], strict=True)) == {"a0": 2.0, "a1": 1.1, "b0": 3.0}
    assert cells["seeds"].tolist() == ["0 1", "0", "0"], "of two differences the one over more seeds"
    assert cells["p_holm"].tolist() == [0.02, 0.04, 0.5], "two cells of training: .01 twice, .04; evaluation by itself"


def test_of_two_differences_over_as_many_seeds_the_new_one_stays():
    old, new = (results_rows.tidy_frame([a_row("a", "0", value, reference="m", p=0.01)]) for value in (0.1, 0.2))
    assert results_rows.accumulated(old, new)["value"].tolist() == [0.2]
