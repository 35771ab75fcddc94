"""The grids of the comparisons: what each row is, and the steps of each budget by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from cxrclip import evaluation, metrics, results
from cxrclip.data import mixes
from cxrclip.data.batches import share_of
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, comparisons, evaluate
from cxrclip.experiments.comparisons import (
    COMPARISONS,
    MAIN,
    Row,
    ablation,
    distinct_experiments,
    label_growth,
    loss_combinations,
    loss_weights,
    remedies,
    rows_of,
    stamps,
    tables_2_and_3,
    with_seeds,
)
from cxrclip.experiments.experiment import PROFILES
from cxrclip.results import rows as results_rows

BASE = Experiment.at("standard", steps=100)
STUDIES = {"M": 200, "C": 100, "C14": 61}
GRIDS = {name: rows_of(name, BASE, STUDIES) for name in COMPARISONS if name != "ledger"}  # test_ledger.py has that


def of(rows, budget=None):
    """The experiments at a budget, at the first one if none is given."""
    return {row.row: row.experiment for row in rows if row.budget == (budget or rows[0].budget)}


@pytest.mark.parametrize("name", GRIDS)
def test_names_are_unique_and_the_base_is_among_the_rows(name):
    rows = GRIDS[name]
    assert {row.comparison for row in rows} == {name}
    assert max(Counter((row.row, row.budget) for row in rows).values()) == 1
    assert (BASE in of(rows).values()) == (name != "longer training"), "which has no row of the base's length"
    assert {row.row for row in rows} == set(of(rows)), "every row stands there at the first budget"


@pytest.mark.parametrize("name", GRIDS)
def test_different_experiments_have_different_run_names(name):
    found = distinct_experiments(GRIDS[name])
    assert len({experiment.run_name for experiment in found}) == len(found)


def test_ablation_is_cumulative_and_ends_with_the_method():
    rows = list(ablation(BASE).items())
    fields = ("views", "texts", "draw", "augment", "icl_weight", "tcl_weight")
    assert [(name, *(getattr(item, field) for field in fields)) for name, item in rows[:3]] == [
        ("clip", 1, 1, "first", False, 0, 0), ("second_view", 1, 1, "random", False, 0, 0),
        ("augmentation", 1, 1, "random", True, 0, 0)]
    assert [(name, *(getattr(item, field) for field in fields)) for name, item in rows[3:]] == [
        ("mvs", 2, 2, "first", True, 0, 0), ("icl", 2, 2, "first", True, 1, 0),
        ("tcl", 2, 2, "first", True, 1, 0.5)]
    assert rows[-1][1] == BASE


def test_ablation_budgets():
    """One image and one text cost half of two and two, so at equal compute they take twice the steps."""
    rows = rows_of("ablation", BASE, STUDIES)
    assert {row.budget for row in rows} == {"steps", "compute"}
    assert [item.steps for item in of(rows).values()] == [100] * 6
    assert [item.steps for item in of(rows, "compute").values()] == [200, 200, 200, 100, 100, 100]
    in_epochs = of(rows_of("ablation", Experiment(), {}), "compute")
    assert [item.epochs for item in in_epochs.values()] == [30, 30, 30, 15, 15, 15]


def test_loss_combinations_are_all_eight():
    rows = loss_combinations(BASE)
    assert list(rows) == ["pair", "pair_tcl", "pair_icl", "pair_icl_tcl", "mvs", "mvs_tcl", "mvs_icl", "mvs_icl_tcl"]
    assert {(item.mvs, item.icl_weight, item.tcl_weight) for item in rows.values()} == {
        (mvs, icl, tcl) for mvs in (True, False) for icl in (0, 1) for tcl in (0, 0.5)}
    assert rows["mvs_icl_tcl"] == BASE
    assert rows["pair_icl"] == replace(BASE, mvs=False, tcl_weight=0.0)


def test_longer_training_is_four_times_the_base_and_holds_the_epochs():
    rows = of(GRIDS["longer training"])
    assert {name: item.steps for name, item in rows.items()} == {
        "mvs": 400, "tcl": 400, "m_c_c14": 722}        # 400 x 361 studies / 200
    shorter = ablation(BASE) | {"m_c_c14": replace(BASE, pretraining=("M", "C", "C14"))}
    assert rows == {name: replace(shorter[name], steps=item.steps) for name, item in rows.items()}
    assert comparisons.pairs(GRIDS["longer training"]) == [
        ("tcl", "mvs"), ("m_c_c14", "tcl")]
    assert len({row.experiment for row in planned_at("standard")["longer training"]}) == 3 * 3


def test_starts_are_taken_away_on_m():
    base = Experiment.at("standard", pretraining=("M", "C"))
    rows = comparisons.starts(base)
    assert rows["reports_and_fractals"] == replace(base, pretraining=("M",))
    assert (rows["random"].text_start, rows["random"].image_start) == (0, 0)
    assert min(base.text_start, base.image_start) > 0
    assert rows["random"] == replace(base, pretraining=("M",), text_start=0, image_start=0)


def test_loss_weights_vary_one_at_a_time():
    rows = loss_weights(BASE)
    assert {name: (item.icl_weight, item.tcl_weight) for name, item in rows.items()} == {
        "icl_0": (0, 0.5), "icl_0.1": (0.1, 0.5), "icl_0.3": (0.3, 0.5), "icl_1": (1, 0.5),
        "tcl_0": (1, 0), "tcl_0.5": (1, 0.5), "tcl_1": (1, 1)}
    assert rows["icl_1"] == rows["tcl_0.5"] == BASE


def test_label_growth_by_hand():
    rows = rows_of("label growth", BASE, STUDIES)
    assert of(rows, "steps") == label_growth(BASE)
    shares = {name: (item.pretraining, item.shares) for name, item in of(rows).items()}
    assert shares == {
        "m": (("M",), None), "m_c25": (("M", "C"), (1.0, 0.25)), "m_c50": (("M", "C"), (1.0, 0.5)),
        "m_c": (("M", "C"), None), "m_c_c14_25": (("M", "C", "C14"), (1.0, 1.0, 0.25)),
        "m_c_c14_50": (("M", "C", "C14"), (1.0, 1.0, 0.5)), "m_c_c14": (("M", "C", "C14"), None)}
    assert {item.steps for item in of(rows, "steps").values()} == {100}
    # Studies: 200; 225, 250, 300; 300 + 15, 300 + 30, 361. Steps: 100 * studies / 200, rounded (.5 to even).
    assert [item.steps for item in of(rows, "epochs").values()] == [100, 112, 125, 150, 158, 165, 180]
    assert of(rows, "epochs")["m"] == BASE


def test_equal_epochs_hold_the_exposure_of_m():
    """A batch of B holds B n_M / n studies of M on average; steps times that is the same in every row."""
    studies = {"M": 2000, "C": 1200, "C14": 800}
    for item in of(rows_of("label growth", BASE, studies), "epochs").values():
        used = comparisons.studies_used(item, studies)
        assert item.steps * BASE.batch_size * studies["M"] / used == pytest.approx(100 * BASE.batch_size, rel=0.005)


@pytest.mark.parametrize(("profile", "seeds", "budgets"),
                         [("quick", 1, {"steps"}), ("standard", 5, {"steps", "compute"})])
def test_planned_rows_are_those_of_the_plan_that_can_be_trained(profile, seeds, budgets, tiny_experiment, tiny_bench,
                                                                monkeypatch):
    monkeypatch.setitem(PROFILES["standard"], "batch_size", 48)
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    every, reasons = comparisons.planned(profile, tiny_experiment.mix, 0, data, MAIN)
    assert {row.experiment.pretraining for row in every} == {("M", "C14")}, "48 studies are a batch"
    assert set(reasons) == {"M"}, "24 studies are fewer than a batch"
    assert {row.experiment.steps for row in every} == {PROFILES[profile]["steps"]}, "M,C14 is the smallest trained"
    monkeypatch.setattr(comparisons, "runnable", lambda experiment, data: None)
    rows, reasons = comparisons.planned(profile, tiny_experiment.mix, 0, data, "remedies", "ablation")
    assert reasons == {}
    assert {row.comparison for row in rows} == {"ablation"}, "remedies need C"
    assert {row.budget for row in rows} == budgets
    assert {row.experiment.seed for row in rows} == set(range(seeds))


def test_verdicts_rest_on_more_seeds_and_a_swin_has_fewer():
    resnet, swin = (Experiment.at("standard", image_encoder=name) for name in ("resnet", "swin"))
    assert comparisons.seeds_of(resnet, COMPARISONS[MAIN].seeds) == 5
    assert comparisons.seeds_of(swin, COMPARISONS[MAIN].seeds) == 3
    assert comparisons.seeds_of(resnet, COMPARISONS["loss weights"].seeds) == 3


def test_studies_used_are_those_drawn():
    item = Experiment(pretraining=("M", "C14"), shares=(0.3, 0.25))
    drawn = sum(len(share_of(STUDIES[role], share, 0, role)) for role, share in zip(("M", "C14"), (0.3, 0.25),
                                                                                    strict=True))
    assert comparisons.studies_used(item, STUDIES) == drawn == 60 + 15


def test_each_remedy_changes_what_it_names():
    rows = remedies(BASE)
    recipe = rows.pop("m_c_c14")
    assert recipe == replace(BASE, pretraining=("M", "C", "C14"))
    assert rows.pop("m") == BASE
    assert rows.pop("labels_only") == replace(BASE, pretraining=("C", "C14"))
    for name, item in rows.items():
        changed = [field for field in item.__dataclass_fields__ if getattr(item, field) != getattr(recipe, field)]
        assert sorted(changed) == sorted((comparisons.REMEDIES | comparisons.GROUPNORM)[name])
    assert len(distinct_experiments(GRIDS["remedies"])) == 13


def test_no_groupnorm_row_for_a_network_that_has_none():
    rows = remedies(replace(BASE, image_encoder="resnet50"))
    assert not set(rows) & set(comparisons.GROUPNORM)


def test_tables_2_and_3_have_both_encoders():
    rows = tables_2_and_3(BASE)
    assert list(rows) == ["CXR-CLIP resnet-small M", "CXR-CLIP resnet-small M,C", "CXR-CLIP resnet-small M,C,C14",
                          "CXR-CLIP swin-small M", "CXR-CLIP swin-small M,C", "CXR-CLIP swin-small M,C,C14",
                          "CLIP resnet-small M"]
    assert rows["CXR-CLIP resnet-small M"] == BASE
    assert rows["CLIP resnet-small M"] == ablation(BASE)["clip"], "trained once for both"
    assert {row.budget for row in rows_of(MAIN, Experiment(), {})} == {"epochs"}


def planned_at(profile):
    """The plan for the phantom mix with STUDIES, none of which is prepared."""
    mix = mixes.load_mix("phantom")
    data = SimpleNamespace(mix=mix, folders=STUDIES, missing={}, studies=lambda role, split: range(STUDIES[role]))
    return comparisons.plan(profile, "phantom", 0, data)


def test_quick_trains_few_rows_as_long_as_the_main_ones():
    plan = planned_at("quick")
    assert {name: list(dict.fromkeys(row.row for row in rows)) for name, rows in plan.items()} == {
        MAIN: ["CXR-CLIP resnet-small M", "CXR-CLIP resnet-small M,C", "CXR-CLIP resnet-small M,C,C14",
               "CLIP resnet-small M"],
        "ablation": list(ablation(BASE)), "label growth": ["m", "m_c", "m_c_c14"],
        "remedies": ["m", "m_c_c14", "reports_75"], "ledger": ["intended_m", "B4"]}
    rows = [row for part in plan.values() for row in part]
    assert {row.budget for row in rows} == {"epochs", "steps"}
    assert {row.budget for row in plan["label growth"]} == {"epochs"}, "the first budget alone"
    assert {row.experiment.steps for row in plan["ablation"]} == {PROFILES["quick"]["steps"]}
    assert len(distinct_experiments(rows)) == 4 + 4 + 1 + 1, "all others are among the main rows or the ablation"


def test_what_is_left_out_is_said():
    data = SimpleNamespace(missing={"C": "needs CheXpert", "C14": "needs NIH"})
    assert comparisons.left_out([object()], {}, data) == "left out: nothing"
    assert comparisons.left_out([object()], {"M,C": "too few"}, data) == "left out: {'M,C': 'too few'}"
    assert comparisons.left_out([], {}, data) == (
        "left out: all rows: this mix has no C or no C14 (needs CheXpert; needs NIH)")


def test_standard_trains_every_row_at_every_budget():
    plan = planned_at("standard")
    assert set(plan) == set(COMPARISONS)
    for name, rows in plan.items():
        assert {row.budget for row in rows} == set(COMPARISONS[name].budgets)
        assert {row.row for row in rows} == set(COMPARISONS[name].rows(Experiment.at("standard")))


def test_other_data_need_a_length_in_steps():
    for name in ("remedies", "label growth", "longer training", "ledger"):
        with pytest.raises(InputError, match="give the base its `steps`"):
            rows_of(name, Experiment(), STUDIES)


def test_seeds_and_distinct_experiments():
    rows = with_seeds(GRIDS["loss weights"], (0, 1, 2))
    assert len(rows) == 7 * 3
    assert len(distinct_experiments(rows)) == 6 * 3, "ICL 1 and TCL 0.5 are one experiment"
    assert Counter(item.seed for item in distinct_experiments(rows)) == {0: 6, 1: 6, 2: 6}
    assert with_seeds(rows[:1], (0,)) == rows[:1]


def tidy(seed, value):
    about = dict.fromkeys(results.COLUMNS, "x") | {"seeds": str(seed), "metric": "auroc", "value": value,
                                                   "low": value - 0.1, "high": value + 0.1, "chance": 0.5, "n": 10,
                                                   "p": np.nan, "p_holm": np.nan, "reference": ""}
    return results_rows.tidy_frame([about])


def test_stamped_rows_keep_their_place_over_seeds():
    """Two rows of one run name are not mixed: results.over_seeds keeps comparison, row and budget apart."""
    one, other = Row("c", "one", "steps", BASE), Row("c", "other", "steps", BASE)
    first = tidy(0, 0.6).assign(**stamps(one))
    assert first.loc[0, ["comparison", "row", "budget", "value"]].tolist() == ["c", "one", "steps", 0.6]
    stamped = pd.concat([first, tidy(1, 0.8).assign(**stamps(one)), tidy(0, 0.1).assign(**stamps(other))])
    found = results.over_seeds(stamped).set_index("row")
    assert found["value"].to_dict() == pytest.approx({"one": 0.7, "other": 0.1})
    assert found["seeds"].to_dict() == {"one": "0 1", "other": "0"}


# ---- results of rows ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tiny_experiment, tiny_bench):
    """Two rows of the ablation with two seeds each, trained on the tiny mix."""
    rows = [Row("ablation", name, "steps", ablation(tiny_experiment)[name]) for name in ("mvs", "icl")]
    return comparisons.finished(with_seeds(rows, (0, 1)), tiny_bench)


def test_each_row_has_the_run_of_its_experiment(finished):
    assert {row.row for row in finished} == {"mvs", "icl"}
    assert all(run.experiment == row.experiment for row, run in finished.items())


def test_measured_rows_are_the_means_of_their_runs(finished):
    tidy = comparisons.measured(finished)
    assert set(tidy["class"]) == {"all"}
    for row, run in finished.items():
        own = evaluate(run)
        own = own[own["class"] == "all"].reset_index(drop=True)
        here = tidy[(tidy["row"] == row.row) & (tidy["seeds"] == str(row.experiment.seed))].reset_index(drop=True)
        stamps = list(results_rows.STAMPS)
        pd.testing.assert_frame_equal(here.drop(columns=stamps), own.drop(columns=stamps))
        assert set(here["comparison"]) == {"ablation"}
        assert set(here["budget"]) == {"steps"}


def test_differences_are_those_of_the_scores_in_the_right_order(finished):
    tidy = comparisons.differences(finished, n_bootstrap=50)
    assert set(tidy["metric"]) == {"auroc", "RSUM"}
    assert set(tidy["reference"]) == {"mvs"}, "the row below minus the row above"
    assert set(tidy["row"]) == {"icl"}
    assert set(tidy["seeds"]) == {"0 1"}
    single = comparisons.measured(finished).query("task == 'zero-shot' and metric == 'auroc'")
    means = single.groupby("row")["value"].mean()
    line = tidy[tidy["task"] == "zero-shot"].iloc[0]
    assert line["value"] == pytest.approx(means["icl"] - means["mvs"], abs=2e-6)
    assert line["low"] <= line["value"] <= line["high"]
    assert all(run.key in line["key"] for run in finished.values())
    assert tidy["p_holm"].tolist() == metrics.holm(tidy["p"]).tolist(), "adjusted over all cells"
    assert (tidy["p_holm"] >= tidy["p"]).all()


def test_the_same_runs_are_compared_once(finished):
    """At equal compute "mvs" and "icl" are the runs of equal steps: no second line, no second cell for Holm."""
    again = {replace(row, budget="compute"): run for row, run in finished.items()}
    pd.testing.assert_frame_equal(comparisons.differences(finished | again, n_bootstrap=20),
                                  comparisons.differences(finished, n_bootstrap=20))
    itself = {replace(row, row="icl"): run for row, run in finished.items() if row.row == "mvs"}
    alone = {row: run for row, run in finished.items() if row.row == "mvs"}
    assert comparisons.differences(alone | itself, n_bootstrap=20).empty


def test_losses_are_those_of_the_log(finished):
    row, run = next(iter(finished.items()))
    (tidy,) = [comparisons.losses({row: run}).set_index("metric")["value"]]
    log = run.log()
    assert tidy["training loss"] == pytest.approx(log["total"].iloc[-max(1, len(log) // 5):].mean())
    assert tidy["validation loss"] == log["valid_total"].dropna().iloc[-1]

    class Longer:
        data, experiment, row_columns = run.data, run.experiment, run.row_columns

        def log(self):
            return pd.DataFrame({"step": range(1, 11), "total": 1.0, "valid_total": [np.nan] * 3 + [9.0, np.nan] * 2
                                 + [8.0, np.nan, 6.0]})
    longer = comparisons.losses({row: Longer()})
    assert longer.set_index("metric")["value"]["fall in the last fifth"] == pytest.approx(1 - 6 / 8)
    assert set(longer["comparison"]) == {"ablation"}
    Longer.log = lambda _: pd.DataFrame({"step": range(1, 12), "total": 1.0, "valid_total": [np.nan] * 6 + [8.0, np.nan]
                                         + [7.0, np.nan, 6.0]})
    steps_of_no_whole_fifths = comparisons.losses({row: Longer()}).set_index("metric")["value"]
    assert steps_of_no_whole_fifths["fall in the last fifth"] == pytest.approx(1 - 6 / 7)
    main = comparisons.losses({replace(row, comparison=MAIN): Longer()})
    assert set(main["comparison"]) == {""}


def test_rows_are_compared_over_the_seeds_that_both_have(finished):
    fewer = {row: run for row, run in finished.items() if (row.row, row.experiment.seed) != ("icl", 1)}
    one = {row: run for row, run in finished.items() if row.experiment.seed == 0}
    pd.testing.assert_frame_equal(comparisons.differences(fewer, n_bootstrap=20),
                                  comparisons.differences(one, n_bootstrap=20))
    (icl,) = [row for row in fewer if row.row == "icl"]
    other = {row: run for row, run in fewer.items() if row.experiment.seed == 1} | {icl: fewer[icl]}
    assert comparisons.differences(other, n_bootstrap=20).empty, "no seed in common"


def test_nothing_to_compare_gives_an_empty_table():
    for empty in (comparisons.measured({}), comparisons.differences({}), comparisons.coarse_text({}),
                  comparisons.text_kinds({})):
        assert list(empty.columns) == list(results.COLUMNS)
        assert empty.empty


def test_pairs_of_each_comparison():
    assert comparisons.pairs(GRIDS["ablation"]) == [
        ("second_view", "clip"), ("augmentation", "second_view"),
        ("mvs", "augmentation"), ("icl", "mvs"), ("tcl", "icl"), ("tcl", "mvs")]
    assert comparisons.pairs(GRIDS["tables 2 and 3"]) == [
        ("CXR-CLIP resnet-small M,C", "CXR-CLIP resnet-small M"),
        ("CXR-CLIP resnet-small M,C,C14", "CXR-CLIP resnet-small M"),
        ("CXR-CLIP swin-small M,C", "CXR-CLIP swin-small M"),
        ("CXR-CLIP swin-small M,C,C14", "CXR-CLIP swin-small M"),
        ("CXR-CLIP resnet-small M", "CLIP resnet-small M")]
    for name, reference in {name: item.reference for name, item in COMPARISONS.items() if item.reference}.items():
        found = comparisons.pairs(GRIDS[name])
        assert {other for _, other in found} == {reference}
        assert len(found) == len({row.row for row in GRIDS[name]}) - 1
        assert reference in {row.row for row in GRIDS[name]}


def test_a_perfect_retriever_is_always_right(finished, monkeypatch):
    """Where every film stands on its own report, side, zone and severity are right: and never by chance alone."""
    row, run = next(iter(finished.items()))
    studies = run.data.studies("openi", "test")
    position, texts = evaluation.retrieval_texts(studies)
    own = dict(zip(texts, run.embeddings("openi").embeds[position], strict=True))
    monkeypatch.setattr(evaluation, "embed_texts", lambda *args, **_: np.array([own[text] for text in args[2]]))
    tidy = comparisons.coarse_text({row: run}, role="openi")
    assert set(tidy["task"]) == {"coarse-text"}
    assert set(tidy["class"]) <= {"side", "zone", "severity"}
    assert (tidy["value"] == 1).all()
    assert (tidy["chance"] < 1).all()
    assert set(tidy["row"]) == {row.row}


def test_a_study_with_neither_report_nor_label_has_no_label_sentence():
    """Nor does a sentence say more negatives than the role's rule keeps."""
    empty = dict.fromkeys(("findings", "impression")) | {
        name: [] for name in ("positive", "negative", "uncertain", "findings_aug", "impression_aug")}
    absent = ["Pneumonia", "Fracture", "Pneumothorax"]
    studies = Dataset.from_list([empty | {"study_id": "a", "images": "", "positive": ["Edema"], "negative": absent},
                                 empty | {"study_id": "b", "images": ""},
                                 empty | {"study_id": "c", "images": "", "findings": "Clear.", "positive": ["Edema"]}])
    mix = SimpleNamespace(pretraining={"C": SimpleNamespace(max_negatives=1), "C14": SimpleNamespace(max_negatives=3)})
    (sentence,) = comparisons.label_sentences(SimpleNamespace(mix=mix, folders={"C": "c"}, studies=lambda *_: studies))
    assert "edema" in sentence.lower()
    assert sentence.count(".") == 2  # one finding that is there, one of three that are not


@pytest.mark.parametrize("kind", [0, 1])
def test_films_that_stand_on_one_kind_of_text_find_no_other(kind, finished, monkeypatch):
    """Embeddings know the kind of a text alone: 0 a report, 1 a label sentence. All films stand on one of the two."""
    row, run = next(iter(finished.items()))
    sentences = comparisons.label_sentences(run.data)
    assert sentences == comparisons.label_sentences(run.data)
    assert len(sentences) == len(run.data.studies("C14", "valid")) == 8
    unit, found = np.eye(2, dtype=np.float32), run.embeddings("openi")
    films = replace(found, embeds=np.repeat(unit[[kind]], len(found), axis=0))
    monkeypatch.setattr(type(run), "embeddings", lambda *_: films)
    monkeypatch.setattr(type(run), "embed_texts", lambda _, texts: unit[[int(text in sentences) for text in texts]])
    tidy = comparisons.text_kinds({row: run}, top=8)
    assert tidy[["dataset", "row", "value", "chance"]].to_numpy().tolist() == [["openi", row.row, kind, 0.5]]
    assert comparisons.text_kinds({row: run}, top=16)["value"].item() == 0.5  # as many of each in the gallery


def test_collisions_are_those_of_all_pairs(tiny_experiment, tiny_bench):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    tidy = comparisons.collisions(data, "quick").set_index(["dataset", "class"])
    labels = [frozenset(study["positive"]) for study in data.studies("C14", "train")]
    pairs = [a == b for i, a in enumerate(labels) for j, b in enumerate(labels) if i != j]
    assert tidy.loc[("C14", "label set"), "value"] == pytest.approx(sum(pairs) / len(pairs))
    assert ("C", "labels") not in tidy.index, "a role without data"
    assert set(tidy["metric"]) == {"collision probability"}


def test_ceilings_are_of_the_sets_whose_truth_is_known(tiny_experiment, tiny_bench):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    tidy = comparisons.ceilings(data, "quick").set_index(["dataset", "task", "metric"])["value"]
    assert {name for name, *_ in tidy.index} == {"openi"}
    texts = evaluation.retrieval_texts(data.studies("openi", "test"))[1]
    assert tidy["openi", "image_to_text", "ceiling R@10"] <= 1
    assert tidy["openi", "text_to_image", "ceiling RSUM"] > 2, f"{len(texts)} reports, few of which say the same"


def test_what_a_study_says():
    study = {"findings": " Lungs clear. ", "impression": "Normal.", "positive": ["B", "A"], "negative": ["C"],
             "uncertain": []}
    assert comparisons.said(study, "impression") == "Normal."
    assert comparisons.said(study, "longest section") == "Lungs clear."
    assert comparisons.said(study, "label set") == (("A", "B"),)
    assert comparisons.said(study, "labels") == (("A", "B"), ("C",), ())
    assert comparisons.said(study | {"impression": None}, "impression") is None
