"""Experiments: the published defaults, the profiles, the key, the memo, and runs side by side."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from cxrclip import experiments
from cxrclip.encoders import CXRCLIPConfig
from cxrclip.errors import InputError
from cxrclip.experiments import (
    Experiment,
    Run,
    Workbench,
    batches_for,
    cache,
    evaluate,
    growing_mixtures,
    model_config,
    oracle,
    pretrain,
    run_all,
    runnable,
    tokenizer_for,
    total_steps,
    used_studies,
)
from cxrclip.experiments.cache import run_key
from cxrclip.prompts import DEFAULT_FILE, PromptBank

SWITCHES = ({"shares": (0.5, 1.0)}, {"draw": "random", "views": 1, "texts": 1}, {"augment": False}, {"mvs": False},
            {"false_negatives": "mask"}, {"batches": "one-source"}, {"report_share": 0.75}, {"reports_last": 0.5},
            {"label_weight": 0.25}, {"rich_prompts": True})


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


def test_key_follows_settings_and_data_but_not_names(tiny_experiment, tiny_bench):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    base = run_key(tiny_experiment, data)
    assert run_key(replace(tiny_experiment, mix="elsewhere"), data) == base
    changes = ({"seed": 1}, {"learning_rate": 1e-3}, {"pretraining": ("M", "C14")}, {"views": 1}, {"icl_weight": 0.0})
    for change in changes:
        assert run_key(replace(tiny_experiment, **change), data) != base, change


def test_every_switch_is_part_of_the_key(tiny_experiment, tiny_bench):
    base = replace(tiny_experiment, pretraining=("M", "C14"))
    data = tiny_bench.prepared(base.mix, "quick")
    assert len({run_key(replace(base, **switch), data) for switch in ({}, *SWITCHES)}) == len(SWITCHES) + 1


def test_switches_are_off_by_default():
    paper = Experiment()
    assert (paper.shares, paper.draw, paper.augment, paper.mvs, paper.false_negatives) == (
        None, "first", True, True, "keep")
    assert (paper.batches, paper.report_share, paper.reports_last, paper.label_weight, paper.rich_prompts) == (
        "mixed", None, 0.0, 1.0, False)


@pytest.mark.parametrize(("change", "message"), [
    ({"draw": "last"}, "draw='last': choose one of first, random"),
    ({"false_negatives": "drop"}, "choose one of keep, mask, soft"),
    ({"batches": "two-source"}, "choose one of mixed, one-source"),
    ({"shares": (0.5, 0.5)}, r"shares=\(0.5, 0.5\) of M: give one share for each role"),
    ({"shares": (0.0,)}, "shares=.*out of range"), ({"shares": (1.5,)}, "shares=.*out of range"),
    ({"report_share": 1.0}, "report_share=1.0: out of range"), ({"reports_last": 1.0}, "reports_last=1.0"),
    ({"label_weight": 0.0}, "label_weight=0.0"), ({"steps": 0}, "steps=0"), ({"steps": 2.5}, "steps=2.5"),
    ({"validations": 0}, "validations=0"), ({"views": 3}, "views=3"), ({"texts": 0}, "texts=0"),
    ({"warmup": 2}, "warmup=2"), ({"learning_rate": -1.0}, "learning_rate=-1"), ({"epochs": 0}, "epochs=0"),
    ({"icl_weight": -0.1}, "icl_weight=-0.1"), ({"pretraining": ()}, r"pretraining=\(\)"),
    ({"batches": "one-source", "report_share": 0.5}, "exclude each other")])
def test_switches_out_of_range(change, message):
    with pytest.raises(InputError, match=message):
        Experiment(**change)


def batches_of(experiment, bench, n=6):
    """The first n training batches and the validation batches."""
    data, bank = bench.prepared(experiment.mix, "quick"), PromptBank.load()
    tokenizer = tokenizer_for(experiment, data, bank, bench)
    make, validation = batches_for(experiment, data, bank, tokenizer, model_config(experiment, tokenizer))
    return list(itertools.islice(make(0, 0, 1), n)), list(validation())


def same(batches, others):
    return all(set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)
               for a, b in zip(batches, others, strict=True))


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: next(iter(switch)))
def test_each_switch_reaches_the_batches_it_should(switch, tiny_experiment, tiny_bench):
    base = replace(tiny_experiment, pretraining=("M", "C14"))
    before, after = (batches_of(item, tiny_bench) for item in (base, replace(base, **switch)))
    assert same(before[0], after[0]) == ("mvs" in switch), "only the loss knows of mvs"
    only_training = {"mvs", "shares", "batches", "report_share", "reports_last"}
    assert same(before[1], after[1]) == bool(only_training & set(switch))


def test_shares_are_nested_and_count_in_the_steps(tiny_experiment, tiny_bench):
    base = replace(tiny_experiment, pretraining=("M", "C14"), steps=None, epochs=4)
    data = tiny_bench.prepared(base.mix, "quick")

    def used(role, share, split="train"):
        return used_studies(replace(base, shares=(1.0, share)), data, role, split)["study_id"][:]
    assert set(used("C14", 0.25)) < set(used("C14", 0.5)) < set(used("C14", 1.0))
    assert used("C14", 1.0) == data.studies("C14", "train")["study_id"][:]
    assert (len(used("C14", 0.5)), len(used("M", 0.5)), len(used("C14", 0.5, "valid"))) == (12, 24, 8)
    assert total_steps(base, data) == 4 * (48 // 8)
    assert total_steps(replace(base, shares=(1.0, 0.5)), data) == 4 * (36 // 8)
    assert "has 6 training studies, fewer than a batch of 8" in runnable(
        replace(base, pretraining=("C14",), shares=(0.25,)), data)


def test_rich_prompts_tell_the_truth_and_need_it(tiny_experiment, tiny_bench, tmp_path):
    base = replace(tiny_experiment, pretraining=("C14",), rich_prompts=True)
    data, bank = tiny_bench.prepared(base.mix, "quick"), PromptBank.load()
    truth = oracle.read_truth(data.folders["C14"])
    rich = experiments.pretraining_studies(base, data, bank, "train", CXRCLIPConfig(image_encoder="resnet-small"))
    told = 0
    for item in rich.__getitems__([(0, i) for i in range(len(rich))]):
        severities = {oracle.SEVERITIES[f["severity"]] for f in truth[item["study_id"]]}
        told += ": " in item["texts"][0]
        for words in [part.split(".")[0] for part in item["texts"][0].split(": ")[1:]]:
            assert set(words.split()) & set(oracle.SEVERITIES.values()) <= severities
    assert told > 4
    with pytest.raises(InputError, match=r"no truth\.parquet beside the study table"):
        oracle.read_truth(tmp_path)


@pytest.mark.parametrize("switch", [{"mvs": False}, {"false_negatives": "soft"}], ids=str)
def test_switches_of_the_loss_reach_it(switch, tiny_experiment, tiny_bench):
    """The first step has the same batch and weights: only the loss differs."""
    base = replace(tiny_experiment, pretraining=("C14",), steps=5)
    (before, after) = (pretrain(item, tiny_bench).log().iloc[0] for item in (base, replace(base, **switch)))
    assert before["mvs"] != after["mvs"]
    assert (before["icl"] == after["icl"]) == ("mvs" in switch)


def test_run_names_tell_what_departs_from_the_recipe():
    assert Experiment.at("quick").run_name == "CXR-CLIP resnet-small M"
    assert Experiment.at("quick", seed=3, pretraining=("M", "C")).run_name == "CXR-CLIP resnet-small M,C"
    assert Experiment.at("quick", views=1, texts=1).run_name == "CLIP resnet-small M"
    odd = Experiment.at("quick", image_encoder="swin", icl_weight=0.3, mvs=False)
    assert odd.run_name == "CXR-CLIP swin-small M icl_weight=0.3 mvs=False"


def test_switches_train_together(tiny_experiment, tiny_bench):
    run = pretrain(replace(tiny_experiment, pretraining=("M", "C14"), mvs=False, false_negatives="soft",
                           report_share=0.5, reports_last=0.5, label_weight=0.5, rich_prompts=True,
                           shares=(1.0, 0.5)), tiny_bench)
    log = run.log()
    assert len(log) == 6
    assert log["total"].notna().all()
    assert run.about["experiment"]["shares"] == [1.0, 0.5]


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
    experiment = replace(tiny_experiment, steps=2, seed=11)  # a run of its own: no other test finds it half away
    run = pretrain(experiment, tiny_bench)
    (run.folder / "run.json").rename(run.folder / "run.json.away")
    assert experiments.finished_run(experiment, tiny_bench) is None
    (run.folder / "run.json.away").rename(run.folder / "run.json")
    assert experiments.finished_run(experiment, tiny_bench) == run


def test_side_by_side_equals_one_after_the_other(tiny_experiment, tiny_bench, tmp_path):
    pair = [replace(tiny_experiment, seed=seed) for seed in (0, 1)]
    together = run_all(pair, Workbench(build=tmp_path, progress=False, jobs=2))
    for experiment, run in zip(pair, together, strict=True):
        alone = pretrain(experiment, tiny_bench)
        assert alone.key == run.key
        assert alone.log()["total"].equals(run.log()["total"])


def test_rows_tell_what_trained_the_run_and_what_evaluated_it(tiny_experiment, tiny_bench, monkeypatch):
    run = pretrain(tiny_experiment, tiny_bench)
    about = {**run.about, "commit": "older", "stages": {"phantom": 1, "tokenizer": 1, "training": 7, "evaluation": 5}}
    monkeypatch.setattr(Run, "about", about)
    monkeypatch.setattr(cache, "commit", lambda: "newer")
    columns = run.row_columns("rsna")
    assert columns["versions"] == f"phantom=1 tokenizer=1 training=7 evaluation={cache.VERSIONS['evaluation']}"
    assert columns["commit"] == "older newer"
    monkeypatch.setattr(cache, "commit", lambda: "older")
    assert run.row_columns("rsna")["commit"] == "older"


def test_evaluation_covers_the_mix_and_is_found_again(tiny_experiment, tiny_bench):
    run = pretrain(tiny_experiment, tiny_bench)
    rows = evaluate(run)
    got = set(zip(rows["dataset"], rows["task"], rows["metric"], strict=True))
    assert ("rsna", "zero-shot", "auroc") in got
    assert ("rsna", "linear-probe-10", "auroc") in got
    assert ("openi", "image_to_text", "R@10") in got
    assert set(rows["key"]) == {run.key}
    assert ((rows["low"] <= rows["value"]) & (rows["value"] <= rows["high"])).all()
    assert evaluate(run).equals(rows)
    assert run.about["stages"] == dict(cache.VERSIONS)
    assert set(rows["versions"]) == {cache.versions_text()}
    scores = run.scores("rsna", "zero-shot")
    assert set(scores.columns) >= {"study_id", "patient_id", "class", "score", "target"}
    assert len(scores) == 30


def test_other_prompts_and_another_probe_are_measured_anew_and_hide_nothing(tiny_experiment, tiny_bench, tmp_path):
    run = pretrain(tiny_experiment, tiny_bench)
    rows = evaluate(run)
    probed = evaluate(run, probe_strength=1e-6)
    changes = (rows["value"] != probed["value"]) & rows["value"].notna()
    assert set(rows[changes]["task"]) == {"linear-probe-10", "linear-probe-100"}
    official, copy = DEFAULT_FILE.read_text(), tmp_path / "own.yaml"
    copy.write_text(official.replace("- No evidence of pneumonia\n", "- Old rib fractures\n"))
    worded = evaluate(run, prompts=copy)
    changes = (rows["value"] != worded["value"]) & rows["value"].notna()
    assert set(rows[changes]["task"]) == {"zero-shot"}
    copy.write_text(official.replace("- No evidence of pneumonia\n", "- A pacemaker\n"))
    assert not evaluate(run, prompts=copy).equals(worded), "a file that changed is read again"
    assert evaluate(run).equals(rows)
