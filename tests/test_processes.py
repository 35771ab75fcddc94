"""Cached gradients, and several processes: the losses and gradients of one process with the whole batch."""

from __future__ import annotations

import math
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from cxrclip import training
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.experiments.remedies import MarkedLoss
from cxrclip.losses import CXRCLIPLoss

STUDIES = 8
TOLERANCE = {"atol": 1e-5, "rtol": 1e-5}


def small_model(image_encoder="resnet-small-groupnorm", dropout=0.0):
    torch.manual_seed(0)
    model = CXRCLIPModel(CXRCLIPConfig(image_encoder, "bert-small", 16, image_size=64, vocab_size=50))
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = dropout
    return model


def whole_batch(views=2, texts=2, marks=False):
    """STUDIES studies with texts of different lengths; with marks the first and the last say the same."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(views, STUDIES, 3, 64, 64, generator=generator)
    lengths = torch.randint(3, 12, (texts, STUDIES, 1), generator=generator)
    mask = (torch.arange(12) < lengths).long()
    ids = torch.randint(1, 50, (texts, STUDIES, 12), generator=generator) * mask
    said = {"content": torch.tensor([5, *range(STUDIES - 2), 5]), "weight": torch.linspace(0.2, 1, STUDIES)}
    return {"pixel_values": pixels, "input_ids": ids, "attention_mask": mask, **(said if marks else {})}


def share(batch, rank, world):
    """The studies of one of `world` processes."""
    size = STUDIES // world
    mine = slice(rank * size, (rank + 1) * size)
    return {name: tensor[:, mine] if name in training.INPUTS else tensor[mine] for name, tensor in batch.items()}


def step(accelerator, criterion, batch, chunk=None, **options):
    """One training step without an update to speak of: the line of the log, and the gradients by name."""
    model = small_model(**options)
    wrapped, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.0))
    recipe = training.Recipe(1, learning_rate=0.0, precision="no", chunk=chunk)
    line = training.read_lines([training.train_step(accelerator, wrapped, optimizer, criterion, batch, 0, recipe)], 1)
    return line[0], {name: parameter.grad for name, parameter in model.named_parameters()}, model


# Every switch that changes the loss: the paper's, plain CLIP, the mean over one pair, remedies with their marks.
CASES = {
    "MVS, ICL and TCL": (CXRCLIPLoss(), {}),
    "CLIP": (CXRCLIPLoss(), {"views": 1, "texts": 1}),
    "ICL and TCL beside one pair": (CXRCLIPLoss(0.3, 0.7, mvs=False), {}),
    "masked and weighed": (MarkedLoss(false_negatives="mask"), {"marks": True}),
    "soft and weighed": (MarkedLoss(false_negatives="soft"), {"marks": True}),
}


def assert_same(found, expected):
    line, gradients, *_ = found
    for name, value in expected[0].items():
        assert line[name] == pytest.approx(value, abs=1e-5), name
    for name, gradient in expected[1].items():
        torch.testing.assert_close(gradients[name], gradient, **TOLERANCE)


@pytest.fixture(scope="module")
def one_process():
    return training.start_accelerator("cpu", "no")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("chunk", [1, 3, STUDIES])
def test_cached_gradients_are_those_of_the_plain_step(one_process, case, chunk):
    criterion, options = CASES[case]
    batch = whole_batch(**options)
    assert_same(step(one_process, criterion, batch, chunk), step(one_process, criterion, batch))


def test_cached_gradients_of_a_swin(one_process):
    batch = whole_batch()
    assert_same(step(one_process, CXRCLIPLoss(), batch, 3, image_encoder="swin-small"),
                step(one_process, CXRCLIPLoss(), batch, image_encoder="swin-small"))


@pytest.mark.parametrize("options", [{"dropout": 0.3}, {"image_encoder": "resnet-small"}])
def test_dropout_and_batch_statistics_are_those_of_each_chunk_passed_once(one_process, options):
    """The slow reference: one pass of each chunk with its graph, and the loss of all."""
    batch, chunk = whole_batch(), 4
    model = small_model(**options).train()
    parts = []
    for number in range(2):
        torch.manual_seed(number << 48)
        parts.append(training.embed(model, share(batch, number, 2)))
    x, t = (torch.cat([part[kind] for part in parts], dim=1) for kind in (0, 1))
    CXRCLIPLoss()(x, t, parts[0][2]).total.backward()
    _, gradients, cached = step(one_process, CXRCLIPLoss(), batch, chunk, **options)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, **TOLERANCE)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(dict(cached.named_buffers())[name], buffer)


def test_a_loss_that_is_not_finite_is_named_with_its_step():
    lines = [{"learning_rate": 1.0, "total": torch.tensor(value)} for value in (1.0, math.nan, 2.0)]
    with pytest.raises(FloatingPointError, match="loss is nan at step 8: "):
        training.read_lines(lines, 10)


# ---- several processes ----------------------------------------------------------------------------------------------


CASES_OF_FOUR = ("MVS, ICL and TCL", "masked and weighed")


def child(rank, world, port, results, names):
    """Some cases in one of `world` processes: what it logs, and its averaged gradients."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    accelerator = training.start_accelerator("cpu", "no")
    found = {}
    for name in names:
        criterion, options = CASES[name]
        for chunk in (None, 1):
            found[name, chunk] = step(accelerator, criterion, share(whole_batch(**options), rank, world), chunk)[:2]
    torch.save(found, results / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("world", "names"), [(2, tuple(CASES)), (4, CASES_OF_FOUR)])
def test_processes_have_the_losses_and_gradients_of_one_with_the_whole_batch(one_process, world, names, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(child, (world, port, tmp_path, names), nprocs=world)
    for name in names:
        criterion, options = CASES[name]
        expected = step(one_process, criterion, whole_batch(**options))
        for rank in range(world):
            for chunk in (None, 1):
                assert_same(torch.load(tmp_path / f"{rank}.pt")[name, chunk], expected)
