"""What each misuse of trained weights costs: measured with the book's model on films drawn anew."""

from __future__ import annotations

import numpy as np
import pytest
from builders import book_model, drawn_tests

from cxrclip.official import misuse
from cxrclip.official.misuse import mistakes
from cxrclip.prompts import PromptBank


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    return drawn_tests("rsna", 200, tmp_path_factory.mktemp("misuse") / "rsna")


@pytest.fixture(scope="module")
def table(studies):
    model, processor = book_model()
    lines = mistakes(model, processor.tokenizer, studies, PromptBank.load().zero_shot("rsna"))
    return lines.set_index("use")["auroc"]


def test_every_mistake_costs(table):
    assert table["as trained"] > 0.7
    assert table["weights never loaded (names differ, strict=False)"] < 0.65
    assert table["films normalised for the other image encoder"] != table["as trained"]


def test_features_before_the_projection_give_a_number_only_where_sizes_are_equal(table, studies, monkeypatch):
    assert np.isnan(table["features before the projection"])
    rng = np.random.default_rng(0)
    sides = {"Pneumonia": tuple(rng.normal(size=(1, 192)) for _ in range(2))}     # as wide as an image's features
    monkeypatch.setattr(misuse, "_before_projection", lambda *_: sides)
    model, processor = book_model()
    lines = mistakes(model, processor.tokenizer, studies, PromptBank.load().zero_shot("rsna"))
    assert 0 < lines.set_index("use").loc["features before the projection", "auroc"] < 1
