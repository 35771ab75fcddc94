"""The encoders' starts: made once, the same for every run, and better at their own task than a random network."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import DataCollatorForLanguageModeling

from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import model_config, pretrain, start, tokenizer_for
from cxrclip.experiments.fractals import CONTRACTION, contracting_maps, fractals
from cxrclip.prompts import PromptBank
from cxrclip.views import generator


@pytest.fixture(scope="module")
def ready(tiny_experiment, tiny_bench):
    """An experiment with a start of some steps, its data, its tokenizer, and a maker of networks of some seed."""
    experiment = replace(tiny_experiment, text_start=60, image_start=12)
    data = tiny_bench.prepared(experiment.mix, experiment.profile)
    tokenizer = tokenizer_for(experiment, data, PromptBank.load(), tiny_bench)

    def network(seed):
        torch.manual_seed(seed)
        return CXRCLIPModel(model_config(experiment, tokenizer))
    return experiment, data, tokenizer, network


def hidden_word_loss(model, texts, tokenizer):
    """Mean cross-entropy of hidden tokens, in nats."""
    torch.manual_seed(1)
    hide = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
    with torch.no_grad():
        return model.eval()(**hide([{"input_ids": ids} for ids in tokenizer(texts)["input_ids"]])).loss.item()


def test_start_is_the_same_for_every_seed_and_role_and_made_once(ready, tiny_bench, monkeypatch):
    experiment, data, tokenizer, network = ready
    first, second = network(0), network(1)
    before = torch.get_rng_state()
    start.start_encoders(first, experiment, data, tokenizer, tiny_bench)
    assert torch.equal(before, torch.get_rng_state()), "the draws of the run that follows stay what they are"
    monkeypatch.setattr(start, "read_reports", None)
    monkeypatch.setattr(start, "see_fractals", None)
    start.start_encoders(second, replace(experiment, pretraining=("C14",), seed=1), data, tokenizer, tiny_bench)
    for part in ("text_encoder", "image_encoder"):
        pairs = zip(getattr(first, part).parameters(), getattr(second, part).parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs), part
    assert not torch.equal(first.text_projection.weight, second.text_projection.weight)


def test_start_has_read_the_reports(ready):
    experiment, data, tokenizer, network = ready
    texts = start.training_reports(data)
    config = network(0).text_encoder.network.config
    random, read = (start.read_reports(config, replace(experiment, text_start=steps), texts, tokenizer)
                    for steps in (0, 60))
    assert hidden_word_loss(read, texts, tokenizer) < hidden_word_loss(random, texts, tokenizer) - 1


def test_every_report_is_read_once_a_pass(ready):
    experiment, _, tokenizer, _ = ready
    texts = ["effusion " * (1 + i % 40) + f"of {i} mm" for i in range(200)]
    batches = start.batches_of_like_length(texts, experiment, tokenizer)
    ids = tokenizer(texts, truncation=True, max_length=experiment.max_tokens)["input_ids"]
    passes = [list(islice(batches, 4)) for _ in range(3)]
    for one_pass in passes:
        assert sorted(row for batch in one_pass for row in batch) == sorted(ids)
        spans = [max(map(len, batch)) - min(map(len, batch)) for batch in one_pass]
        assert max(spans) < max(map(len, ids)) / 2
    assert passes[0] != passes[1] or passes[1] != passes[2]


def test_fractals_of_a_class_are_alike_and_drawn_the_same():
    pictures, classes = fractals(32, generator(0, 0, "f"), classes=6, of_each=8)
    assert pictures.shape == (48, 32, 32)
    assert classes.tolist() == [i // 8 for i in range(48)]
    assert pictures.dtype == np.uint8
    assert pictures.max(axis=(1, 2)).min() > 200
    again, _ = fractals(32, generator(0, 0, "f"), classes=6, of_each=8)
    assert np.array_equal(pictures, again)
    flat = pictures.reshape(6, 8, -1).astype(float)
    flat -= flat.mean(axis=2, keepdims=True)
    flat /= np.linalg.norm(flat, axis=2, keepdims=True)
    alike = np.einsum("aip,bjp->abij", flat, flat).mean(axis=(2, 3))
    assert (alike.argmax(axis=1) == np.arange(6)).all()


def test_every_map_of_a_class_contracts():
    for seed in range(50):
        maps = contracting_maps(np.random.default_rng(seed))
        assert 2 <= len(maps) <= 6
        assert all(np.linalg.norm(one[:, :2], 2) < CONTRACTION for one in maps)


def test_start_tells_fractals_apart(ready, monkeypatch):
    experiment, *_ = ready
    monkeypatch.setattr(start, "fractals", partial(fractals, classes=8, of_each=16))
    losses = [start.see_fractals(replace(experiment, image_start=steps))[1] for steps in (1, 40)]
    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("name", ["text_start", "image_start"])
def test_run_starts_there(ready, tiny_bench, name):
    experiment = replace(ready[0], steps=1, validations=1)
    runs = [pretrain(one, tiny_bench) for one in (experiment, replace(experiment, **{name: 0}))]
    assert runs[0].folder != runs[1].folder
    part = {"text_start": "text_encoder", "image_start": "image_encoder"}[name]
    first, other = (dict(getattr(run.model, part).named_parameters()) for run in runs)
    assert not all(torch.allclose(first[key], other[key], atol=1e-2) for key in first)


def test_reports_are_those_of_the_first_role_by_name_that_has_any(ready, monkeypatch):
    """Whatever the order of the mix, for the key of a start does not hold it; a role without data is passed over."""
    _, data, *_ = ready
    sections = {"findings": "Clear.", "impression": None}
    silent, told = (Dataset.from_list([sections | row]) for row in ({"findings": None}, {}))
    monkeypatch.setattr(type(data), "studies", lambda self, role, split: {"A": silent, "B": told, "C": told}[role])
    for roles in ("CBA", "ABC"):
        mix = SimpleNamespace(pretraining=dict.fromkeys(roles))
        assert start.training_reports(replace(data, mix=mix, folders=dict.fromkeys("AB"))) == ["Clear."]
    assert start.training_reports(replace(data, mix=mix, folders=dict.fromkeys("A"))) == []


def test_without_reports_the_text_encoder_starts_at_random(ready, tiny_bench, monkeypatch):
    experiment, data, tokenizer, network = ready
    monkeypatch.setattr(start, "training_reports", lambda data: [])
    model, untouched = network(0), network(0)
    start.start_encoders(model, replace(experiment, image_start=0), data, tokenizer, tiny_bench)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_damaged_start_is_named(tmp_path):
    (tmp_path / "reports.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"reports\.safetensors: damaged"):
        start.kept(tmp_path / "reports.safetensors", lambda: None)


def test_refusals(ready, tiny_bench):
    experiment, data, tokenizer, network = ready
    with pytest.raises(InputError, match="published weights: set it to 0"):
        start.start_encoders(network(0), replace(experiment, text_encoder="bio-clinical-bert"), data, tokenizer,
                             tiny_bench)
    with pytest.raises(InputError, match="text_start=-1"):
        replace(experiment, text_start=-1)
