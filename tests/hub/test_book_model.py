"""The book's model, models/phantom: plain transformers loads it; its committed numbers come out on films drawn anew."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from builders import book_model, drawn_tests

from cxrclip import evaluation, metrics
from cxrclip.prompts import PromptBank
from cxrclip.results.rows import read_results

FOLDER = Path(__file__).parents[2] / "models" / "phantom"
TOLERANCE = 0.003       # of a recall or an AUROC: other processors round otherwise


@pytest.fixture(scope="module")
def committed():
    rows = read_results(FOLDER / "results.csv").query("`class` == 'all'")
    return rows.set_index(["dataset", "task", "metric"])


@torch.inference_mode()
def embedded(studies):
    model, processor = book_model()
    films = processor(images=list(evaluation.films_of(studies)), return_tensors="pt")["pixel_values"]
    return torch.cat([model.embed_images(part) for part in films.split(128)]).numpy()


def test_zero_shot_classification(committed, tmp_path):
    model, processor = book_model()
    row = committed.loc["rsna", "zero-shot", "auroc"]
    studies = drawn_tests("rsna", int(row["n"]), tmp_path / "rsna")
    prompts = PromptBank.load().zero_shot("rsna")
    embeds = evaluation.embed_prompts(model, processor.tokenizer, prompts)
    scores = evaluation.zero_shot_scores(embedded(studies), embeds)
    truth = evaluation.targets(studies, list(prompts))
    assert np.mean(metrics.class_aurocs(scores, truth)) == pytest.approx(row["value"], abs=TOLERANCE)


def test_retrieval(committed, tmp_path):
    model, processor = book_model()
    studies = drawn_tests("openi", int(committed.loc["openi", "image_to_text", "R@10"]["n"]), tmp_path / "openi")
    position, texts = evaluation.retrieval_texts(studies)
    images = embedded(studies)[position]
    found = metrics.recall_at_k(images, evaluation.embed_texts(model, processor.tokenizer, texts, max_tokens=80), texts)
    for k, recall in found.recall.items():
        assert recall == pytest.approx(committed.loc["openi", "image_to_text", f"R@{k}"]["value"], abs=TOLERANCE)
