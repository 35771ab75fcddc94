"""Experiments: the published defaults, the profiles, the fingerprint, the memo, and runs side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cxrclip import experiments
from cxrclip.errors import InputError
from cxrclip.experiments import (
    Experiment,
    Workbench,
    evaluate,
    fingerprint,
    growing_mixtures,
    pretrain,
    run_all,
    runnable,
)


def test_defaults_are_the_published_settings():
    paper = Experiment()
    assert (paper.image_encoder, paper.text_encoder, paper.image_size, paper.projection_dim) == (
        "resnet50", "bio-clinical-bert", 224, 512)
    assert (paper.batch_size, paper.learning_rate, paper.weight_decay, paper.epochs) == (128, 5e-5, 1e-4, 15)
    assert (paper.icl_weight, paper.tcl_weight, paper.max_tokens, paper.views, paper.texts) == (1.0, 0.5, 256, 2, 2)
    assert Experiment.at("paper") == paper
    assert Experiment.at("paper", image_encoder="swin").image_encoder == "swin-tiny"


def test_profiles_leave_the_method_alone():
    for profile in experiments.PROFILES:
        here = Experiment.at(profile)
        assert (here.views, here.texts, here.icl_weight, here.tcl_weight) == (2, 2, 1.0, 0.5)


def test_fingerprint_follows_settings_and_data_but_not_names(tiny_experiment, tiny_bench):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    base = fingerprint(tiny_experiment, data)
    assert fingerprint(replace(tiny_experiment, mix="elsewhere"), data) == base
    changes = ({"seed": 1}, {"learning_rate": 1e-3}, {"pretraining": ("M", "C14")}, {"views": 1}, {"icl_weight": 0.0})
    for change in changes:
        assert fingerprint(replace(tiny_experiment, **change), data) != base, change


def test_a_role_without_data_gives_its_reason(tiny_experiment, tiny_bench):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    assert growing_mixtures(data.mix) == [("M",), ("M", "C14")]
    assert runnable(replace(tiny_experiment, pretraining=("M", "C")), data) == "needs CheXpert: registration"
    assert "fewer than a batch of 64" in runnable(replace(tiny_experiment, batch_size=64), data)
    assert runnable(tiny_experiment, data) is None
    with pytest.raises(InputError, match="no pretraining role 'X'"):
        runnable(replace(tiny_experiment, pretraining=("X",)), data)
    with pytest.raises(InputError, match="needs CheXpert: registration"):
        pretrain(replace(tiny_experiment, pretraining=("C",)), tiny_bench)


def test_a_folder_without_run_json_is_not_taken_as_finished(tiny_experiment, tiny_bench):
    run = pretrain(tiny_experiment, tiny_bench)
    (run.folder / "run.json").rename(run.folder / "run.json.away")
    assert experiments.finished_run(tiny_experiment, tiny_bench) is None
    (run.folder / "run.json.away").rename(run.folder / "run.json")
    assert experiments.finished_run(tiny_experiment, tiny_bench) == run


def test_side_by_side_equals_one_after_the_other(tiny_experiment, tiny_bench, tmp_path):
    pair = [replace(tiny_experiment, seed=seed) for seed in (0, 1)]
    together = run_all(pair, Workbench(build=tmp_path, progress=False, jobs=2))
    for experiment, run in zip(pair, together, strict=True):
        alone = pretrain(experiment, tiny_bench)
        assert alone.fingerprint == run.fingerprint
        assert alone.log()["total"].equals(run.log()["total"])


def test_evaluation_covers_the_mix_and_is_found_again(tiny_experiment, tiny_bench):
    run = pretrain(tiny_experiment, tiny_bench)
    rows = evaluate(run)
    got = set(zip(rows["dataset"], rows["task"], rows["metric"], strict=True))
    assert ("rsna", "zero-shot", "auroc") in got
    assert ("rsna", "linear-probe-10", "auroc") in got
    assert ("openi", "image_to_text", "R@10") in got
    assert set(rows["experiment"]) == {run.fingerprint}
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    assert evaluate(run).equals(rows)
    scores = run.scores("rsna", "zero-shot")
    assert set(scores.columns) >= {"study_id", "patient_id", "class", "score", "target"}
    assert len(scores) == 30
