"""Sharper readings against cases that can be counted by hand, and against a model that is always right."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from cxrclip.data.phantom.anatomy import VOCABULARIES
from cxrclip.experiments import oracle, sharper
from cxrclip.experiments.schedule import run_all
from cxrclip.prompts import PromptBank

EDEMA = {("Edema", None): {"side": "both", "zone": None, "severity": 2}}
LEFT = {("Effusion", None): {"side": "left", "zone": "lower", "severity": 1}}
RIGHT = {("Effusion", None): {"side": "right", "zone": "lower", "severity": 1}}


def test_agreement_by_hand():
    assert sharper.agreement({}, {}) == 1
    assert sharper.agreement(EDEMA, {}) == sharper.agreement({}, EDEMA) == sharper.agreement(EDEMA, LEFT) == 0
    assert sharper.agreement(EDEMA, EDEMA) == 1
    assert sharper.agreement(LEFT, RIGHT) == 3 / 4, "the side is wrong"
    assert sharper.agreement(EDEMA | LEFT, EDEMA) == sharper.agreement(EDEMA, EDEMA | LEFT) == 1 / 2
    assert sharper.agreement(EDEMA | LEFT, EDEMA | RIGHT) == (4 + 3) / 4 / 2


def test_ndcg_by_hand_and_of_a_tie():
    gains = np.array([[1.0, 0.5, 0.0]])
    best = 1 + 0.5 / np.log2(3)
    assert sharper.ndcg(gains, np.array([[3.0, 2, 1]])) == pytest.approx([1])
    assert sharper.ndcg(gains, np.array([[1.0, 2, 3]])) == pytest.approx([(0.5 / np.log2(3) + 1 / 2) / best])
    mean = 0.5 * (1 + 1 / np.log2(3) + 1 / 2)       # every place holds the mean gain, 1/2
    assert sharper.ndcg(gains, np.zeros((1, 3))) == pytest.approx([mean / best]), "chance is a tie of all"


def test_pairs_by_hand():
    cosines = np.array([[0.9, 0.1, 0.5], [0.9, 0.5, 0.5], [0.9, 0.1, 0.5], [0.1, 0.2, 0.3]])
    truth = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 1]], bool)
    hits = sharper.pair_hits(np.array(["a", "b", "c", "d"]), cosines, truth)
    assert hits[["patient_id", "hit"]].to_numpy().tolist() == [["a", 1.0], ["b", 0.25]], "b: one lost, one tie"


def test_negation_by_hand():
    scores = pd.DataFrame({"patient_id": list("abcd"), "score": [0.6, 0.4, 0.4, 0.5],
                           "target": [True, True, False, False]})
    hits = sharper.negation_hits(scores)
    assert hits["hit"].tolist() == [1, 0, 1, 0.5]
    assert hits["state"].tolist() == ["present"] * 2 + ["absent"] * 2


def test_distinct_texts_keep_their_first_study():
    assert oracle.first_of_each(["b", "a", "b", "c", "a"]).tolist() == [0, 1, 3]


def test_the_unseen_wording_is_in_no_prompt():
    deny, assert_ = sharper.unseen_wording(["Edema"])["Edema"]
    assert (deny, assert_) == (["Not a sign of edema is visible on this study."],
                               ["A sign of edema is visible on this study."])
    assert "a sign of" not in str(vars(PromptBank.load())).lower()


def test_no_training_prompt_speaks_of_an_unnamed_finding():
    sentences = str(PromptBank.load().prompts).lower()
    assert set(sharper.UNNAMED) < set(VOCABULARIES["vindr"])
    assert not re.findall("aort|calcif|shift|tubercul|granulom", sentences)
    assert "effusion" in sentences


def test_the_threshold_with_the_highest_f1_by_trying_all():
    draw = np.random.default_rng(0)
    truth = draw.random(60) < 0.3
    scores = (draw.random(60) + 0.5 * truth).round(1)       # with ties
    best = sharper.best_threshold(scores, truth)
    assert f1_score(truth, scores >= best) == max(f1_score(truth, scores >= each) for each in np.unique(scores))
    assert sharper.best_threshold(scores, np.zeros(60, bool)) == np.inf


def test_a_run_has_all_readings(tiny_experiment, tiny_bench):
    (run,) = run_all([tiny_experiment], tiny_bench)
    tidy = sharper.sharper([run])
    assert {"negation", "zero-shot-unseen"} <= set(tidy["task"])
    assert {"F1", "median rank"} <= set(tidy["metric"])
    assert set(tidy.loc[tidy["task"] == "negation", "metric"]) == {"right if present", "right if absent"}
    assert (tidy["low"] <= tidy["value"]).all()
    assert (tidy["key"] == run.key).all()


def test_a_perfect_retriever_has_the_highest_grade(tiny_experiment, tiny_bench, monkeypatch):
    """Where every film stands on its own report the first report agrees, and no order is better."""
    (run,) = run_all([tiny_experiment], tiny_bench)
    role = next(name for name, item in run.data.mix.tests.items() if "retrieval" in item.tasks)
    (measured,) = sharper.graded_retrieval([run], role)
    assert 0 < measured["chance"].item() < 1
    monkeypatch.setattr(sharper, "ndcg", lambda gains, scores: gains.max(axis=1))
    (best,) = sharper.graded_retrieval([run], role)
    assert best["value"].item() == 1, "every film's own report agrees with it"
