"""Costs of a run: against counts and sums done by hand, and against tensors that really exist."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cxrclip.book import costs
from cxrclip.book.render import benchmark
from cxrclip.data import mixes
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment

SIZES = {"M": 222_628, "C": 216_478, "C14": 89_696}
BERT = 28_996 * 768 + 512 * 768 + 2 * 768 + 2 * 768  # words, places, segments, norm
BERT += 12 * (4 * (768 * 768 + 768) + (768 * 3072 + 3072) + (3072 * 768 + 768) + 4 * 768)  # twelve layers
SMALL = Experiment(image_encoder="resnet-small", text_encoder="bert-small", image_size=64, projection_dim=16,
                   max_tokens=20, batch_size=8, steps=10)


@pytest.fixture(scope="module")
def paper() -> costs.Costs:
    return costs.costs(Experiment(pretraining=("M", "C", "C14")), SIZES)


@pytest.fixture(scope="module")
def small() -> costs.Costs:
    return costs.costs(SMALL, {"M": 100})


def test_parameters_are_those_known_of_the_networks(paper):
    assert paper.parameters == {"image_encoder": 23_508_032, "text_encoder": BERT,
                                "image_projection": 2048 * 512 + 512, "text_projection": 768 * 512 + 512,
                                "logit_scale": 1}
    base_uncased, pooler, fewer_words = 109_482_240, 768 * 768 + 768, (30_522 - 28_996) * 768
    assert base_uncased - pooler - fewer_words == BERT
    assert paper.total_parameters == 132_670_529


def test_flops_are_those_of_the_layers(paper):
    """ResNet-50 at 224 px: 4.09 G multiply-adds (torchvision's table); BERT: four products and two matrices a layer.

    Of the last layer only keys and values are made of all tokens, the rest of the one that is pooled.
    """
    tokens, width = 256, 768
    square, wide = width ** 2, width * 3072
    whole = 2 * tokens * (4 * square + 2 * wide) + 4 * tokens ** 2 * width
    last = 2 * tokens * 2 * square + 2 * (2 * square + 2 * wide) + 4 * tokens * width
    bert = 11 * whole + last
    projections = 2 * 2 * (2048 * 512 + 768 * 512)
    resnet = (paper.forward_flops - 2 * bert - projections) / 2
    assert resnet == pytest.approx(2 * 4.09e9, rel=0.01)
    assert 2.9 * paper.forward_flops < paper.training_flops < 3 * paper.forward_flops  # no gradient of the images


def test_a_linear_layer_counts_two_a_weight_and_thrice_in_training(small):
    wider = costs.costs(replace(SMALL, projection_dim=32), {"M": 100})
    weights = 16 * (2 * 192 + 2 * 64)  # the added outputs, for two images and two texts
    assert wider.forward_flops - small.forward_flops == 2 * weights
    assert wider.training_flops - small.training_flops == 3 * 2 * weights


def test_half_the_views_and_texts_cost_half(small):
    clip = costs.costs(replace(SMALL, views=1, texts=1), {"M": 100})
    assert (2 * clip.forward_flops, 2 * clip.training_flops) == (small.forward_flops, small.training_flops)


def test_activations_are_what_a_real_pass_keeps(small):
    """The same on the CPU, with real tensors: every storage that the backward pass needs, but the weights."""
    model = CXRCLIPModel(CXRCLIPConfig("resnet-small", "bert-small", 16, image_size=64, max_tokens=20))
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(torch.rand(2, 3, 64, 64), torch.ones(2, 20, dtype=torch.long), torch.ones(2, 20, dtype=torch.long))
    size = sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in own)
    assert small.activation_bytes == pytest.approx(size, rel=0.05)


def test_memory_of_a_gpu(paper):
    four = paper.memory(4)
    assert four["weights"] == four["gradients"] == 4 * 132_670_529
    assert four["AdamW moments"] == 8 * 132_670_529
    assert four["activations"] == 32 * paper.activation_bytes
    assert paper.memory(1)["activations"] == 128 * paper.activation_bytes
    assert paper.memory(3)["activations"] == 43 * paper.activation_bytes, "the largest share of 128"


def test_steps_and_hours(paper, small):
    assert paper.steps == 15 * (528_802 // 128) == 61_965
    assert small.steps == 10
    seconds = 61_965 * 128 * paper.training_flops / (8 * 312e12 * 0.12)
    assert paper.hours("A100", 8) == pytest.approx(seconds / 3600)
    assert paper.hours("A100", 1) == pytest.approx(8 * paper.hours("A100", 8))


def test_shares_count_in_the_studies():
    half = costs.costs(replace(SMALL, pretraining=("M", "C"), shares=(1.0, 0.5), steps=None, epochs=4),
                       {"M": 100, "C": 60})
    assert (half.studies, half.steps) == (130, 4 * 16)


def test_what_is_not_known_is_said(small):
    with pytest.raises(InputError, match="no number of studies for role 'M': known are C"):
        costs.costs(SMALL, {"C": 1})
    with pytest.raises(InputError, match="tokens=21: give a length from 1 to max_tokens=20"):
        costs.costs(SMALL, {"M": 1}, tokens=21)
    with pytest.raises(InputError, match="unknown GPU 'T1000': peaks are known of V100, A100, H100"):
        small.hours("T1000", 1)


def test_the_table_says_what_is_counted_and_what_assumed(small, paper):
    text = costs.table([paper, small], gpus=(4,))
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert "132,670,529" in lines["parameters in all"]
    assert "61,965 of 128" in lines["steps of a batch"]
    assert f"{paper.hours('A100', 4):.1f}" in lines["hours, 4 x A100"]
    assert "a multiply-add counts as two" in text
    assert "12% of the peak in fp16 or bf16, as one H100 sustained" in text


def test_the_assumed_share_of_the_peak_lies_within_the_measured_ones():
    measured = benchmark(["image encoder", "tokens", "precision", "chunk"])
    shares, hours = measured["share of the peak"].dropna(), measured["hours of a run on M,C,C14"]
    assert shares.min() < costs.UTILISATION < shares.max() < 1
    steps = 15 * (528_802 // 128)
    assert hours.to_numpy() == pytest.approx(steps * measured["ms a step"].to_numpy() / 3.6e6, abs=0.06)


def test_sizes_before_anything_is_prepared(tiny_mix):
    """Phantoms have theirs; a download counts as published; a role without data does not count."""
    tiny = mixes.load_mix(tiny_mix)
    assert mixes.training_studies(tiny, "quick", SIZES) == {"M": 24, "C14": 24}
    assert mixes.training_studies(mixes.load_mix("paper"), "paper", SIZES) == SIZES
    text = costs.announced(Experiment.at("quick", mix=tiny_mix), tiny)
    assert "One run on M,C14" in text
    assert "steps of a batch" in text
    nothing = replace(tiny, pretraining={"M": replace(tiny.pretraining["M"], filling="source", name="mine")})
    assert "Costs are not counted" in costs.announced(Experiment.at("quick", pretraining=("M",)), replace(
        nothing, pretraining={"mine": nothing.pretraining["M"]}))
