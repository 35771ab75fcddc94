"""The paper's size: every published setting, the weights it starts from, and a dry run of the real networks."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml

from cxrclip import encoders, training
from cxrclip.book import dry_run, reproduce
from cxrclip.data import mixes
from cxrclip.encoders import CXRCLIPConfig
from cxrclip.errors import InputError
from cxrclip.experiments import (
    Experiment,
    Workbench,
    comparisons,
    finished_run,
    model_config,
    tokenizer_for,
    total_steps,
)
from cxrclip.experiments.cache import run_key
from cxrclip.prompts import PromptBank
from cxrclip.results import rows as results_rows
from cxrclip.results import tables
from cxrclip.transforms import TrainTransform

ROOT = Path(__file__).parents[2]
CODE = "official code"
# Setting -> (value, where it is known from). What the paper does not have is off.
PUBLISHED = {
    "image_encoder": ("resnet50", "paper, section 2.1: ResNet-50 or Swin-Tiny"),
    "text_encoder": ("bio-clinical-bert", "paper, section 2.1: Bio_ClinicalBERT"),
    "image_size": (224, CODE), "projection_dim": (512, CODE), "max_tokens": (256, CODE),
    "published_weights": (True, CODE),
    "views": (2, "paper, section 2.2"), "texts": (2, "paper, section 2.2"),
    "icl_weight": (1.0, CODE), "tcl_weight": (0.5, CODE),
    "steps": (None, CODE), "epochs": (15, CODE), "batch_size": (128, CODE),
    "learning_rate": (5e-5, CODE), "weight_decay": (1e-4, CODE), "warmup": (1 / 15, CODE + ": 1 of 15 epochs"),
    "shares": (None, "not in the paper"), "draw": ("first", "not in the paper"), "augment": (True, CODE),
    "mvs": (True, CODE), "false_negatives": ("keep", "not in the paper"), "batches": ("mixed", CODE),
    "report_share": (None, "not in the paper"), "reports_last": (0.0, "not in the paper"),
    "label_weight": (1.0, "not in the paper"), "rich_prompts": (False, "not in the paper"),
    "chunk": (None, "not in the paper"),
    "rules": ("intended", "the paper's text; what the released code does instead are the ledger's switches"),
}
# No setting of the paper; its encoders start from published weights.
OWN = {"mix", "profile", "pretraining", "validations", "seed", "text_start", "image_start"}
MODEL = {
    "image_pooling": ("mean", CODE + ": global average pool of ResNet-50"), "text_pooling": ("last_token", CODE),
    "logit_scale_init": (math.log(1 / 0.07), CODE),
    "vocab_size": (28_996, "Bio_ClinicalBERT has the vocabulary of BERT base cased"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_setting_is_the_published_one(name):
    value, source = PUBLISHED[name]
    assert getattr(Experiment.at("paper"), name) == value, source


def test_no_setting_is_left_out_of_the_table():
    assert {item.name for item in fields(Experiment)} == set(PUBLISHED) | OWN


@pytest.mark.parametrize("name", MODEL)
def test_the_model_is_the_published_one(name):
    value, source = MODEL[name]
    assert getattr(CXRCLIPConfig(), name) == value, source


def test_normalisation_and_schedule_are_the_published_ones():
    assert CXRCLIPConfig("resnet50").image_mean == [0.485, 0.456, 0.406]
    assert CXRCLIPConfig("swin-tiny").image_mean == CXRCLIPConfig("swin-tiny").image_std == [0.5, 0.5, 0.5]
    assert training.Recipe(1500).learning_rate == 5e-5
    assert training.learning_rate_factor(0, 1500, 1 / 15) == pytest.approx(1 / 100), "linear over the first epoch"
    assert training.learning_rate_factor(800, 1500, 1 / 15) == pytest.approx(math.cos(math.pi / 4) ** 2)
    assert TrainTransform(224, *encoders.IMAGENET).size == 224


# ---- weights --------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path):
    """What fetching says, a line for each pair of names, in one process with empty caches and no network.

    A number in place of a pair cuts ResNet-50's file to so many bytes."""
    code = ("import json, os, sys\nfrom cxrclip.official import published\nfrom cxrclip.errors import InputError\n"
            "place, *calls = json.loads(sys.argv[1])\n"
            "for call in calls:\n"
            "    try:\n"
            "        os.truncate(place, call) if isinstance(call, int) else published.published_fetched(*call)\n"
            "        print('fetched')\n"
            "    except InputError as error:\n        print(error)\n")
    environment = {"TORCH_HOME": str(tmp_path / "torch"), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1",
                   "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "https_proxy": "http://127.0.0.1:9"}
    place = tmp_path / "torch" / "hub" / "checkpoints" / "resnet50-0676ba61.pth"

    def printed(*calls):
        call = subprocess.run([sys.executable, "-c", code, json.dumps([str(place), *calls])], capture_output=True,
                              text=True, env=environment, cwd=tmp_path)
        assert not call.stderr, call.stderr
        return call.stdout.splitlines()
    return place, printed


def test_without_network_one_line_names_weights_source_and_place(offline, tmp_path):
    place, printed = offline
    announced, torch_line, *lines = printed(("resnet50", "bert-small"), ("swin-tiny", "bert-small"),
                                            ("resnet-small", "bio-clinical-bert"))
    assert announced.startswith("Downloading: "), "torch hub says so before it tries"
    assert torch_line == ("resnet50: IMAGENET1K_V1 is not on this machine and cannot be fetched: download "
                          f"https://download.pytorch.org/models/resnet50-0676ba61.pth to {place}")
    for line, (name, source) in zip(lines, (("swin-tiny", "microsoft/swin-tiny-patch4-window7-224"),
                                            ("bio-clinical-bert", "emilyalsentzer/Bio_ClinicalBERT")), strict=True):
        assert line.startswith(f"{name}: {source} is not on this machine and cannot be fetched: where there is a ")
        assert f"run `hf download {source}`" in line
        assert line.endswith(f"to {tmp_path}/hf/hub/models--{source.replace('/', '--')}")


def test_weights_put_into_that_place_are_found(offline):
    """A file with ResNet-50's names, where the error said; a file that was cut off is called damaged."""
    place, printed = offline
    place.parent.mkdir(parents=True)
    torch.save(encoders.ResNet50().network.state_dict(), place)
    found, _, damaged = printed(("resnet50", "bert-small"), 1000, ("resnet50", "bert-small"))
    assert found == "fetched"
    assert re.fullmatch(rf"resnet50: {place} is damaged \(\w+\): delete it and fetch it again", damaged)


# ---- the switch -----------------------------------------------------------------------------------------------------


def test_random_weights_are_part_of_the_run(tiny_experiment, tiny_bench, monkeypatch):
    data = tiny_bench.prepared(tiny_experiment.mix, "quick")
    dry = replace(tiny_experiment, published_weights=False)
    assert run_key(dry, data) != run_key(tiny_experiment, data)
    assert "published_weights=False" in dry.run_name
    paper = replace(dry, text_encoder="bio-clinical-bert")
    tokenizer = tokenizer_for(paper, data, PromptBank.load(), tiny_bench)
    assert len(tokenizer) <= 2000, "a vocabulary of the mix"
    assert model_config(paper, tokenizer).vocab_size == 28_996, "in a network of the published size"
    monkeypatch.setattr("cxrclip.experiments.train.published_tokenizer", lambda name: name)
    assert tokenizer_for(replace(paper, published_weights=True), data, None, tiny_bench) == "bio-clinical-bert"


# ---- the book's runs at this size -----------------------------------------------------------------------------------


def test_the_plan_counts_in_epochs(tiny_mix, tiny_bench):
    data = tiny_bench.prepared(tiny_mix, "quick")
    rows = comparisons.plan("paper", tiny_mix, 0, data)
    assert set(rows) == {comparisons.MAIN, "ablation", "loss weights"}, "what is compared at equal steps needs steps"
    main = {row.row: row for row in rows[comparisons.MAIN]}
    assert {"CXR-CLIP resnet50 M", "CXR-CLIP swin-tiny M,C14", "CLIP resnet50 M"} <= set(main)
    assert {row.budget for row in main.values()} == {"epochs"}
    assert {row.experiment.published_weights for part in rows.values() for row in part} == {True}
    item = replace(main["CXR-CLIP resnet50 M"].experiment, batch_size=8)
    assert total_steps(item, data) == 15 * 3
    clip = next(row for row in rows["ablation"] if (row.row, row.budget) == ("clip", "compute")).experiment
    assert total_steps(replace(clip, batch_size=8), data) == 2 * 15 * 3, "half the images and texts: twice the epochs"


def test_a_start_checks_weights_and_tells_costs_before_any_work(tiny_mix, tiny_bench, monkeypatch, capsys, tmp_path):
    content = yaml.safe_load(Path(tiny_mix).read_text())
    for role in (*content["pretraining"].values(), *content["tests"].values()):
        if "sizes" in role:
            role["sizes"] = {"paper": next(iter(role["sizes"].values()))}
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    asked = []
    monkeypatch.setattr(reproduce, "published_fetched", lambda *names: asked.append(names))
    reproduce.check("paper", str(path), 0, replace(tiny_bench, build=tmp_path / "build"))
    assert asked == [("resnet50", "bio-clinical-bert"), ("swin-tiny", "bio-clinical-bert")]
    said = capsys.readouterr().out
    assert "role C has no data: needs CheXpert: registration" in said
    assert "132,670,529" in said
    assert not (tmp_path / "build").exists()


def test_all_runs_of_the_plan_can_be_trained_at_once(tiny_mix, tiny_experiment, tiny_bench, monkeypatch):
    row = comparisons.Row("one", "a", "steps", tiny_experiment)
    monkeypatch.setattr(comparisons, "plan", lambda *_: {"one": [row]})
    assert reproduce.pretrain_all("quick", tiny_mix, 0, tiny_bench) is None
    assert finished_run(tiny_experiment, tiny_bench) is not None


# ---- the dry run ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def went(tmp_path_factory):
    """A dry run of the paper's networks at 224 pixels: one step of two studies, on a mix with one prepared folder."""
    tmp_path, seen = tmp_path_factory.mktemp("dry"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dry_run, "STUDIES", 5)
        patch.setattr(dry_run, "_print_run", lambda run: seen.append((run.experiment, run.about, run.log())))
        mix = {"pretraining": {"M": {"source": "mimic-cxr", "root": "nowhere"}},
               "tests": {"rsna": {"phantom": "rsna", "tasks": ["zero-shot", "linear-probe"], "sizes": {}},
                         "vindr-cxr": {"missing": "needs VinDr-CXR: credentialed access"},
                         "mimic-cxr": {"role": "M", "tasks": ["retrieval"]}}}
        path = tmp_path / "own.yaml"
        path.write_text(yaml.safe_dump(mix))
        out = dry_run.dry_run("paper", str(path), 0, Workbench(tmp_path / "build", progress=False),
                              dry_run.SETTINGS | {"batch_size": 2, "steps": 1})
    return out, seen


def test_the_dry_run_trains_the_real_networks(went):
    (resnet, about, log), (swin, other, _) = went[1]
    assert (resnet.image_encoder, swin.image_encoder) == ("resnet50", "swin-tiny")
    assert (resnet.image_size, resnet.text_encoder, resnet.projection_dim) == (224, "bio-clinical-bert", 512)
    assert (about["parameters"], other["parameters"]) == (132_670_529, 136_026_491)
    assert len(log) == 1
    assert math.isfinite(log["total"][0])


def test_the_dry_run_ends_in_marked_tables_and_leaves_nothing_else(went):
    out, _ = went
    tidy = results_rows.read_results(out / "results.csv")
    assert set(tidy["dataset"]) == {"rsna", "mimic-cxr"}
    assert tidy["note"].str.startswith("dry run of random weights").all()
    text = (out / "tables" / "table2.md").read_text()
    assert text.startswith("**DRY RUN. Table 2")
    assert dry_run.WARNING in text
    measured = re.findall(r"\| ([^|]*\d\.\d \[[^|]*)", text)
    assert len(measured) == 6, "three tasks of RSNA, two networks"
    assert all(cell.startswith(dry_run.MARK) for cell in measured)
    assert "needs VinDr-CXR: credentialed access" in text
    assert sorted(path.name for path in out.iterdir()) == ["results.csv", "tables"]


def test_only_measured_numbers_are_marked():
    columns = [("RSNA", "AUROC"), ("RSNA", f"{tables.PUBLISHED}AUROC")]
    cells = pd.DataFrame([["53.2 [40.0, 60.1]", "78.8 r"], ["–", "1.0 r"]], columns=pd.MultiIndex.from_tuples(columns))
    got = dry_run.marked(tables.Table("T", "H", cells, (), ("–: not measured; run notebooks/06 (X)", "–: needs C (C)")))
    assert got.cells.to_numpy().tolist() == [["dry run: 53.2 [40.0, 60.1]", "78.8 r"], ["–", "1.0 r"]]
    assert got.footnotes == ("–: not in the dry run (X)", "–: needs C (C)")


def test_a_prepared_folder_gives_its_first_studies(tiny_mix, tiny_bench, tmp_path):
    folder = tiny_bench.prepared(tiny_mix, "quick").folders["M"]
    mix = {"pretraining": {"M": {"folder": str(folder)}, "C14": {"source": "chestxray14", "root": "x"}},
           "tests": {"own": {"source": "table", "root": "x"}}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mix))
    small = mixes.load_mix(str(dry_run._small_mix(mixes.load_mix(str(tmp_path / "mine.yaml")), "paper", tmp_path)))
    data = mixes.Prepared(small, {"M": Path(small.roles["M"].value)}, {})
    for split, there in (("train", 24), ("valid", 8)):
        first = tiny_bench.prepared(tiny_mix, "quick").studies("M", split)["study_id"][:dry_run.STUDIES]
        assert data.studies("M", split)["study_id"][:] == first[:], (split, there)
    assert (small.roles["C14"].filling, small.roles["C14"].value) == ("phantom", "C14")
    assert small.roles["own"].value == "no phantom stands in for it in a dry run"
    with pytest.raises(InputError, match="gone is no study folder"):
        dry_run._small_role(mixes.Role("M", "folder", str(tmp_path / "gone")), "paper", tmp_path)
