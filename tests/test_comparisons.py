"""The grids of the comparisons: what each row is, and the steps of each budget by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest

from cxrclip import comparisons, results
from cxrclip.comparisons import (
    Row,
    ablation,
    distinct_experiments,
    label_growth,
    loss_combinations,
    loss_weights,
    remedies,
    stamp,
    tables_2_and_3,
    with_seeds,
)
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment
from cxrclip.sampling import share_of

BASE = Experiment.at("quick", steps=100)
STUDIES = {"M": 200, "C": 100, "C14": 61}
GRIDS = {"ablation": ablation(BASE), "loss combinations": loss_combinations(BASE), "loss weights": loss_weights(BASE),
         "label growth": label_growth(BASE, STUDIES), "remedies": remedies(BASE),
         "tables 2 and 3": tables_2_and_3(BASE)}


def of(rows, budget="steps"):
    return {row.row: row.experiment for row in rows if row.budget == budget}


@pytest.mark.parametrize("name", GRIDS)
def test_names_are_unique_and_the_base_is_among_the_rows(name):
    rows = GRIDS[name]
    assert {row.comparison for row in rows} == {name}
    assert max(Counter((row.row, row.budget) for row in rows).values()) == 1
    assert BASE in of(rows).values()
    assert len({row.row for row in rows}) * len({row.budget for row in rows}) == len(rows)


@pytest.mark.parametrize("name", GRIDS)
def test_different_experiments_have_different_run_names(name):
    found = distinct_experiments(GRIDS[name])
    assert len({experiment.run_name for experiment in found}) == len(found)


def test_ablation_is_cumulative_and_ends_with_the_method():
    rows = list(of(ablation(BASE)).items())
    fields = ("views", "texts", "draw", "augment", "icl_weight", "tcl_weight")
    assert [(name, *(getattr(item, field) for field in fields)) for name, item in rows[:3]] == [
        ("CLIP", 1, 1, "first", False, 0, 0), ("+ second image and section", 1, 1, "random", False, 0, 0),
        ("+ augmentation", 1, 1, "random", True, 0, 0)]
    assert [(name, *(getattr(item, field) for field in fields)) for name, item in rows[3:]] == [
        ("+ MVS", 2, 2, "first", True, 0, 0), ("+ ICL", 2, 2, "first", True, 1, 0),
        ("+ TCL", 2, 2, "first", True, 1, 0.5)]
    assert rows[-1][1] == BASE


def test_ablation_budgets():
    """One image and one text cost half of two and two, so at equal compute they take twice the steps."""
    rows = ablation(BASE)
    assert {row.budget for row in rows} == {"steps", "compute"}
    assert [item.steps for item in of(rows).values()] == [100] * 6
    assert [item.steps for item in of(rows, "compute").values()] == [200, 200, 200, 100, 100, 100]
    in_epochs = of(ablation(Experiment()), "compute")
    assert [item.epochs for item in in_epochs.values()] == [30, 30, 30, 15, 15, 15]


def test_loss_combinations_are_all_eight():
    rows = of(loss_combinations(BASE))
    assert list(rows) == ["one pair", "one pair + TCL", "one pair + ICL", "one pair + ICL + TCL",
                          "MVS", "MVS + TCL", "MVS + ICL", "MVS + ICL + TCL"]
    assert {(item.mvs, item.icl_weight, item.tcl_weight) for item in rows.values()} == {
        (mvs, icl, tcl) for mvs in (True, False) for icl in (0, 1) for tcl in (0, 0.5)}
    assert rows["MVS + ICL + TCL"] == BASE
    assert rows["one pair + ICL"] == replace(BASE, mvs=False, tcl_weight=0.0)


def test_loss_weights_vary_one_at_a_time():
    rows = of(loss_weights(BASE))
    assert {name: (item.icl_weight, item.tcl_weight) for name, item in rows.items()} == {
        "ICL 0": (0, 0.5), "ICL 0.1": (0.1, 0.5), "ICL 0.3": (0.3, 0.5), "ICL 1": (1, 0.5),
        "TCL 0": (1, 0), "TCL 0.5": (1, 0.5), "TCL 1": (1, 1)}
    assert rows["ICL 1"] == rows["TCL 0.5"] == BASE


def test_label_growth_by_hand():
    rows = label_growth(BASE, STUDIES)
    shares = {name: (item.pretraining, item.shares) for name, item in of(rows).items()}
    assert shares == {
        "M": (("M",), None), "M + 25% C": (("M", "C"), (1.0, 0.25)), "M + 50% C": (("M", "C"), (1.0, 0.5)),
        "M,C": (("M", "C"), None), "M,C + 25% C14": (("M", "C", "C14"), (1.0, 1.0, 0.25)),
        "M,C + 50% C14": (("M", "C", "C14"), (1.0, 1.0, 0.5)), "M,C,C14": (("M", "C", "C14"), None)}
    assert {item.steps for item in of(rows).values()} == {100}
    # Studies: 200; 225, 250, 300; 300 + 15, 300 + 30, 361. Steps: 100 * studies / 200, rounded (.5 to even).
    assert [item.steps for item in of(rows, "epochs").values()] == [100, 112, 125, 150, 158, 165, 180]
    assert of(rows, "epochs")["M"] == BASE


def test_equal_epochs_hold_the_exposure_of_m():
    """A batch of B holds B n_M / n studies of M on average; steps times that is the same in every row."""
    studies = {"M": 2000, "C": 1200, "C14": 800}
    for item in of(label_growth(BASE, studies), "epochs").values():
        used = comparisons.studies_used(item, studies)
        assert item.steps * BASE.batch_size * studies["M"] / used == pytest.approx(100 * BASE.batch_size, rel=0.005)


def test_studies_used_are_those_drawn():
    item = Experiment(pretraining=("M", "C14"), shares=(0.3, 0.25))
    drawn = sum(len(share_of(STUDIES[role], share, 0, role)) for role, share in zip(("M", "C14"), (0.3, 0.25),
                                                                                    strict=True))
    assert comparisons.studies_used(item, STUDIES) == drawn == 60 + 15


def test_each_remedy_changes_one_thing():
    rows = of(remedies(BASE))
    recipe = rows.pop("M,C,C14")
    assert recipe == replace(BASE, pretraining=("M", "C", "C14"))
    assert rows.pop("M alone") == BASE
    for name, item in rows.items():
        changed = [field for field in item.__dataclass_fields__ if getattr(item, field) != getattr(recipe, field)]
        assert changed == list((comparisons.REMEDIES | comparisons.GROUPNORM)[name])
    assert len(distinct_experiments(remedies(BASE))) == 11


def test_no_groupnorm_row_for_a_network_that_has_none():
    rows = of(remedies(replace(BASE, image_encoder="resnet50")))
    assert not set(rows) & set(comparisons.GROUPNORM)


def test_tables_2_and_3_have_both_encoders():
    rows = of(tables_2_and_3(BASE))
    assert list(rows) == ["CXR-CLIP resnet-small M", "CXR-CLIP resnet-small M,C", "CXR-CLIP resnet-small M,C,C14",
                          "CXR-CLIP swin-small M", "CXR-CLIP swin-small M,C", "CXR-CLIP swin-small M,C,C14",
                          "CLIP resnet-small M"]
    assert rows["CXR-CLIP resnet-small M"] == BASE
    assert rows["CLIP resnet-small M"] == of(ablation(BASE))["CLIP"], "trained once for both"
    assert {row.budget for row in tables_2_and_3(Experiment())} == {"epochs"}


def test_other_data_need_a_length_in_steps():
    for grid in (remedies, lambda base: label_growth(base, STUDIES)):
        with pytest.raises(InputError, match="give the base its `steps`"):
            grid(Experiment())


def test_seeds_and_distinct_experiments():
    rows = with_seeds(loss_weights(BASE), (0, 1, 2))
    assert len(rows) == 7 * 3
    assert len(distinct_experiments(rows)) == 6 * 3, "ICL 1 and TCL 0.5 are one experiment"
    assert Counter(item.seed for item in distinct_experiments(rows)) == {0: 6, 1: 6, 2: 6}
    assert with_seeds(rows[:1], (0,)) == rows[:1]


def tidy(seed, value):
    about = dict.fromkeys(results.COLUMNS, "x") | {"seeds": str(seed), "metric": "auroc", "value": value,
                                                   "low": value - 0.1, "high": value + 0.1, "chance": 0.5, "n": 10}
    return results._tidy([about])


def test_stamped_rows_keep_their_place_over_seeds():
    """Two rows of one run name are not mixed: results.over_seeds keeps comparison, row and budget apart."""
    one, other = Row("c", "one", "steps", BASE), Row("c", "other", "steps", BASE)
    first = stamp(one, tidy(0, 0.6))
    assert first.loc[0, ["comparison", "row", "budget", "value"]].tolist() == ["c", "one", "steps", 0.6]
    stamped = pd.concat([first, stamp(one, tidy(1, 0.8)), stamp(other, tidy(0, 0.1))])
    found = results.over_seeds(stamped).set_index("row")
    assert found["value"].to_dict() == pytest.approx({"one": 0.7, "other": 0.1})
    assert found["seeds"].to_dict() == {"one": "0 1", "other": "0"}
