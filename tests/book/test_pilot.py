"""book/pilot.py: the sample archive reads back as it was, and the baseline learns what can be seen."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from cxrclip import metrics
from cxrclip.book.pilot import from_scratch, write_archive
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel

CONFIG = CXRCLIPConfig("resnet-small-groupnorm", "bert-small", 16, image_size=64, vocab_size=50)


def test_an_archive_holds_films_and_codes(tmp_path):
    film = {"images": [{"bytes": b"film"}], "patient_id": "p1"}
    write_archive([film | {"study_id": "a", "positive": ["Cardiomegaly", "Edema"]},
                   film | {"study_id": "b", "positive": ["Fracture"]}],
                  tmp_path, {"CM": ["Cardiomegaly"], "ED": ["Edema"]})
    table = pd.read_csv(tmp_path / "labels.csv")
    assert table.to_dict("list") == {"file": ["a.jpg", "b.jpg"], "patient": ["p1", "p1"], "label": ["CM|ED", "NORMAL"]}
    assert (tmp_path / "a.jpg").read_bytes() == b"film"


@pytest.fixture
def films():
    """Films whose left half is bright where the first label is true; the second label cannot be seen."""
    rng = np.random.default_rng(0)
    labels = rng.random((64, 2)) < 0.5
    pixels = torch.tensor(rng.normal(size=(64, 3, 64, 64)), dtype=torch.float32)
    pixels[labels[:, 0], :, :, :32] += 1
    return pixels, labels


def test_from_scratch_learns_what_can_be_seen_and_repeats(films):
    pixels, labels = films
    scores = from_scratch(CONFIG, pixels[:32], labels[:32], pixels[32:], steps=15)
    assert metrics.auroc(scores[:, 0], labels[32:, 0]) > 0.9
    assert abs(metrics.auroc(scores[:, 1], labels[32:, 1]) - 0.5) < 0.35
    np.testing.assert_array_equal(scores, from_scratch(CONFIG, pixels[:32], labels[:32], pixels[32:], steps=15))


def test_a_start_is_copied_and_used(films):
    pixels, labels = films
    start = CXRCLIPModel(CONFIG)
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    scores = from_scratch(CONFIG, pixels[:32], labels[:32], pixels[32:], steps=0, start=start)
    assert all(torch.equal(before[name], tensor) for name, tensor in start.state_dict().items())
    assert not np.allclose(scores, from_scratch(CONFIG, pixels[:32], labels[:32], pixels[32:], steps=0))
    others = from_scratch(CONFIG, pixels[:32] + 5, labels[:32], pixels[32:], steps=0, start=start)
    np.testing.assert_array_equal(scores, others)  # before the first step no training film has been seen
