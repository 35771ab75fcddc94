"""Export: the folder is complete, its card tells the run's own numbers, and what it tells to do works."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import HfApi, ModelCard, hf_api
from huggingface_hub.errors import EntryNotFoundError
from PIL import Image
from transformers import AutoModel, AutoProcessor
from typer.testing import CliRunner

from cxrclip import cli, results
from cxrclip.book import governance
from cxrclip.data.images import decode_gray
from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import Run, evaluate, pretrain
from cxrclip.hub import export as exporting
from cxrclip.hub.export import card, export, open_run
from cxrclip.hub.processing import CXRCLIPProcessor
from cxrclip.results import rows as results_rows

ROOT = Path(__file__).parents[2]
FILES = {"README.md", "config.json", "model.safetensors", "processor_config.json", "results.csv", "tokenizer.json",
         "tokenizer_config.json"}


@pytest.fixture(scope="module")
def run(tiny_experiment, tiny_bench) -> Run:
    return pretrain(replace(tiny_experiment, pretraining=("M", "C14")), tiny_bench)


@pytest.fixture(scope="module")
def rows(run):
    return evaluate(run)


@pytest.fixture(scope="module")
def folder(run, rows, tmp_path_factory):
    return export(run.folder, tmp_path_factory.mktemp("export") / "model")


@pytest.fixture
def hub(monkeypatch):
    """What would be uploaded: path in the repository -> content. Nothing goes anywhere."""
    sent = {}

    def create_commit(self, repo_id, operations, **_):
        for operation in operations:
            with operation.as_file() as file:
                sent[operation.path_in_repo] = file.read()

        class Info:
            oid, commit_url, pr_url = "0", "https://hub/commit/0", None
        return Info()

    def create_repo(self, repo_id, **_):
        class Url(str):
            pass
        url = Url(f"https://hub/{repo_id}")
        url.repo_id, url.repo_type = repo_id, "model"
        return url

    def load(*_, **__):
        if "README.md" not in sent:
            raise EntryNotFoundError("no card yet")
        return ModelCard(sent["README.md"].decode())

    fakes = {"create_commit": create_commit, "create_repo": create_repo, "_validate_yaml": lambda self, content, **_: 0}
    for name, fake in fakes.items():
        monkeypatch.setattr(HfApi, name, fake)
    monkeypatch.setattr(ModelCard, "load", load)
    monkeypatch.setattr(hf_api, "is_xet_available", lambda: False)  # the other way to upload asks the network first
    return sent


def section(text: str, name: str) -> str:
    return text.split(f"\n## {name}\n")[1].split("\n## ")[0]


def lines_of(table: str) -> list[list[str]]:
    """The cells of a Markdown table, without its head."""
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_folder_is_complete_and_is_the_run(folder, run):
    assert {path.name for path in folder.iterdir()} == FILES
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o644}
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert not model.training
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in run.model.state_dict().items())
    study = run.data.studies("rsna", "test")[0]
    film = decode_gray(study["images"][0]["bytes"], "film")
    inputs = processor(images=film, text="No pneumonia.", return_tensors="pt")
    assert torch.equal(inputs["pixel_values"][0], run.transform(film))
    assert inputs["input_ids"].tolist() == run.tokenizer(["No pneumonia."])["input_ids"]
    embeds = run.embeddings("rsna")
    assert embeds.study_ids[0] == study["study_id"]
    with torch.inference_mode():
        np.testing.assert_allclose(model(**inputs).image_embeds[0].numpy(), embeds.embeds[0], atol=1e-5)


def test_no_path_of_this_machine_is_in_the_folder(folder, run):
    places = (str(run.bench.build), str(run.folder.parent), str(Path(run.experiment.mix).parent), str(folder.parent))
    for path in folder.iterdir():
        assert not [place for place in places if place.encode() in path.read_bytes()], path


def test_the_head_of_the_card(folder, run, rows):
    data = ModelCard(folder.joinpath("README.md").read_text()).data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "apache-2.0", "transformers", "zero-shot-image-classification")
    assert data.datasets == ["phantom-M", "phantom-C14"]
    assert {"chest-x-ray", "simulated-data"} <= set(data.tags)
    (found,) = data.eval_results
    (row,) = rows[(rows["task"] == "zero-shot") & (rows["class"] == "all")].to_dict("records")
    assert (found.metric_type, found.metric_value, found.dataset_type) == ("roc_auc", row["value"], "phantom-rsna")
    assert (found.dataset_name, found.dataset_split, found.dataset_revision) == (
        "RSNA (simulated)", "test", row["data"])
    assert found.metric_args == {"low": row["low"], "high": row["high"], "chance": 0.5, "n": 30,
                                 "experiment": run.key}


def test_every_number_of_the_results_is_a_row_of_the_run(folder, run, rows):
    whole = rows[rows["class"] == "all"]
    text = section((folder / "README.md").read_text(), "Results")
    table = lines_of(text)
    assert len(table) == len(whole) > 10
    assert run.key in text
    for line, (_, row) in zip(table, whole.iterrows(), strict=True):
        value, low, high = map(float, re.fullmatch(r"(\S+) \[(\S+), (\S+)\]", line[3]).groups())
        digits = 1 if row["metric"] == "mean rank" else 3
        name = f"{results.LABELS[row['dataset']]} (simulated)"
        assert (line[0], line[1], line[2]) == (name, row["task"], row["metric"])
        assert [value, low, high, float(line[4])] == [round(row[name], digits)
                                                      for name in ("value", "low", "high", "chance")]
        assert (int(line[5]), line[6]) == (row["n"], row["data"])
    assert results_rows.read_results(folder / "results.csv").equals(rows)


def test_other_results_give_another_card(run, rows):
    other = rows.assign(value=rows["value"] + 0.125)
    before, after = (lines_of(section(str(card(run, given)), "Results")) for given in (rows, other))
    assert all(a[3].split()[0] != b[3].split()[0] for a, b in zip(before, after, strict=True))


def test_the_card_tells_data_and_settings(folder, run):
    text = (folder / "README.md").read_text()
    data = run.data.fingerprints(("M", "C14"))
    assert lines_of(section(text, "Training data")) == [
        ["MIMIC-CXR (M) (simulated)", "phantom-M", "24", "8", data["M"]],
        ["ChestX-ray14 (C14) (simulated)", "phantom-C14", "24", "8", data["C14"]]]
    settings = dict(lines_of(section(text, "Training")))
    assert (settings["steps"], settings["batch_size"], settings["pretraining"], settings["learning_rate"]) == (
        "6", "8", "M, C14", "0.003")
    assert settings["parameters"] == f"{sum(p.numel() for p in run.model.parameters()):,}"
    assert not {"mix", "epochs", "shares"} & set(settings)
    assert f"torch {run.about['versions']['torch']}" in section(text, "Training")
    assert "Trained on simulated films. Not a medical device" in text
    assert "{{" not in text.replace('"{}"', "")
    assert not governance.scan(folder, [folder / "README.md"])


def test_what_a_reader_must_know_of_a_number_is_told(run, rows):
    told = rows.assign(note=np.where(rows["task"] == "zero-shot", "mean of 1 of 2 classes", ""))
    found = section(str(card(run, told)), "Results")
    assert found.count("- RSNA (simulated), zero-shot: mean of 1 of 2 classes") == 1


def test_epochs_are_told_where_they_count(run, rows, monkeypatch):
    monkeypatch.setattr(Run, "about", {**run.about, "experiment": {**run.about["experiment"], "steps": None}})
    other = replace(run, experiment=replace(run.experiment, steps=None))
    settings = dict(lines_of(section(str(card(other, rows)), "Training")))
    assert (settings["epochs"], settings["steps"]) == ("15", "6")


def test_a_card_of_real_films_says_other_things(run, rows, monkeypatch):
    mix = run.data.mix
    real = replace(mix.pretraining["C14"], filling="source", value="chestxray14")
    mixed = replace(mix, pretraining={**mix.pretraining, "C14": real})
    monkeypatch.setitem(run.__dict__, "data", replace(run.data, mix=mixed))
    found = card(run, rows)
    assert (found.data.license, found.data.datasets) == ("other", ["phantom-M", "chestxray14"])
    assert "simulated-data" not in found.data.tags
    assert "Trained on simulated films" not in found.text
    assert "Read the agreements" in found.text
    assert "ChestX-ray14 (C14)" in found.text
    assert "ChestX-ray14 (C14) (simulated)" not in found.text
    assert "Another hospital" in found.text


def test_a_study_folder_is_named_without_its_place(run, rows, monkeypatch):
    mix = run.data.mix
    own = replace(mix.pretraining["M"], filling="folder", value="/data/somebody/studies")
    monkeypatch.setitem(run.__dict__, "data", replace(run.data, mix=replace(mix, pretraining={
        **mix.pretraining, "M": own})))
    found = str(card(run, rows))
    assert "`studies`" in found
    assert "somebody" not in found


def test_what_the_card_says_to_do_works(folder, tmp_path):
    """The code of the card, in a folder that holds the model and a film, offline and in a process of its own."""
    here = shutil.copytree(folder, tmp_path / "model")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 70)).astype(np.uint8)).save(here / "film.png")
    (code,) = re.findall(r"```python\n(.*?)```", section((here / "README.md").read_text(), "Use"), re.S)
    assert len([line for line in code.splitlines() if line]) == 6
    code += "import json; print(json.dumps([scores, embedding.shape, embedding.norm().item()]))"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=here,
                           check=False)
    assert ended.returncode == 0, ended.stderr
    scores, shape, norm = json.loads(ended.stdout)
    assert {item["label"] for item in scores} == {"No pneumonia", "Pneumonia"}
    assert sum(item["score"] for item in scores) == pytest.approx(1)
    assert (shape, norm) == ([1, 16], pytest.approx(1))


def test_what_would_be_uploaded_is_the_whole_folder(folder, hub):
    HfApi().upload_folder(repo_id="us/model", folder_path=folder)
    assert hub == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_push_to_hub_sends_the_same_files_and_keeps_the_card(folder, hub):
    def push():
        CXRCLIPModel.from_pretrained(folder).push_to_hub("us/model")
        CXRCLIPProcessor.from_pretrained(folder).push_to_hub("us/model")
    push()
    assert set(hub) == FILES - {"results.csv"}
    for name in ("config.json", "model.safetensors", "processor_config.json", "tokenizer.json"):
        assert hub[name] == (folder / name).read_bytes()
    hub["README.md"] = (folder / "README.md").read_bytes()
    push()
    assert hub["README.md"] == (folder / "README.md").read_bytes()


def test_a_run_is_opened_by_its_folder(run, rows):
    again = open_run(run.folder)
    assert again.experiment == run.experiment
    assert again.key == run.key
    assert again.bench.build == run.bench.build.resolve()
    assert evaluate(again).equals(rows)


@pytest.mark.parametrize(("name", "message"), [
    ("gone", "no such folder: give the folder of a finished run"),
    ("unfinished", r"not a finished run \(no run\.json\): train it to its end"),
    ("elsewhere", "not in a folder 'runs'"),
    ("damaged", "run.json: damaged, or of another version"),
    ("strange", "run.json: damaged, or of another version .*'colour'"),
])
def test_runs_that_cannot_be_exported(name, message, tmp_path, run):
    folder = tmp_path / ("build" if name == "elsewhere" else "runs") / name
    contents = {"damaged": "{", "strange": json.dumps({"experiment": {"colour": 1}})}
    if name != "gone":
        folder.mkdir(parents=True)
    if name in contents:
        (folder / "run.json").write_text(contents[name])
    with pytest.raises(InputError, match=message):
        open_run(folder)


def test_a_folder_with_files_is_left_alone(run, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="there already: choose a new folder"):
        export(run.folder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_other_data_than_trained_on_is_refused(run, tmp_path):
    shutil.copytree(run.folder, tmp_path / "runs" / run.key)
    about = {**run.about, "data": {**run.about["data"], "M": "0" * 16}}
    (tmp_path / "runs" / run.key / "run.json").write_text(json.dumps(about))
    with pytest.raises(InputError, match=r"trained on data .*0000.*restore the data, or train again"):
        export(tmp_path / "runs" / run.key, tmp_path / "model")


def test_governance_is_heard_and_nothing_is_left(run, rows, tmp_path, monkeypatch):
    told = rows.assign(note=["of patient12345"] * len(rows))
    monkeypatch.setattr(exporting, "evaluate", lambda run: told)
    with pytest.raises(InputError, match=r"model: not exported: README\.md, text: a patient as in CheXpert"):
        export(run.folder, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_command_line(run, rows, tmp_path):
    done = CliRunner().invoke(cli.app, ["export", "--run", str(run.folder), "--out", str(tmp_path / "model")])
    assert done.exit_code == 0, done.output
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES
    gone = CliRunner().invoke(cli.app, ["export", "--run", str(tmp_path / "gone"), "--out", str(tmp_path / "other")])
    assert gone.exit_code == 2


def test_make_export_asks_for_what_it_needs():
    """Dry (-n): nothing is made, but what is asked for is asked for."""
    call = subprocess.run(["make", "-n", "export"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert call.returncode
    assert "make export needs RUN=build/runs/<key> OUT=<new folder>" in call.stderr
