"""experiments/memory.py: a chunk that fits is chosen, and nothing of the model changes by measuring."""

from dataclasses import replace

import pytest
import torch

from cxrclip import training
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, memory, pretrain

SMALL = Experiment.at("quick", batch_size=48)


@pytest.fixture
def measured(monkeypatch):
    """A function: free bytes -> the chunk."""
    model = CXRCLIPModel(CXRCLIPConfig("resnet-small", "bert-small", 16, image_size=64))
    weights = 4 * sum(parameter.numel() for parameter in model.parameters())
    accelerator = training.start_accelerator("cpu", "no")

    def chunk(studies):
        each = memory.bytes_of_a_study(SMALL, model, accelerator) / memory.USABLE
        monkeypatch.setattr(memory, "free_bytes", lambda device: 4 * weights + int(studies * each) + 1000)
        return memory.fitting_chunk(SMALL, model, accelerator)
    chunk.model = model
    return chunk


def test_equal_chunks_that_fit(measured):
    assert [measured(studies) for studies in (1000, 48.5, 47.5, 30.5, 10.5, 1.5)] == [48, 48, 24, 24, 10, 1]


def test_nothing_fits(measured):
    with pytest.raises(InputError, match=r"GiB of memory are free .* one study needs .*: lower image_size or max_tok"):
        measured(0.5)


def test_measuring_changes_nothing(measured):
    before = {name: tensor.clone() for name, tensor in measured.model.state_dict().items()}
    state = torch.get_rng_state()
    measured(10)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in measured.model.state_dict().items())


def test_bytes_grow_with_texts_and_images(measured):
    sizes = [memory.bytes_of_a_study(replace(SMALL, **changes), measured.model, training.start_accelerator("cpu", "no"))
             for changes in ({}, {"views": 1}, {"texts": 1}, {"max_tokens": 20})]
    assert sizes[0] == max(sizes)
    assert len(set(sizes)) == 4


def test_a_run_chooses_its_chunk(tiny_experiment, tiny_bench, monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda device: 2 ** 40)
    chosen = pretrain(replace(tiny_experiment, chunk="auto", steps=2), tiny_bench)
    assert chosen.about["recipe"]["chunk"] == tiny_experiment.batch_size
    with pytest.raises(InputError, match="chunk=0: out of range"):
        replace(tiny_experiment, chunk=0)
