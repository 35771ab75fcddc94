"""Golden numbers: each stage's numbers on a tiny world, held to the stage's version (cxrclip/experiments/cache.py).

A change that moves them fails here and says which version to raise. `make golden` records them anew.
Sums of float32 differ in their last digits among CPUs, hence the tolerances; texts and indices are compared exactly.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cxrclip import evaluation, losses, transforms
from cxrclip.data.images import decode_gray
from cxrclip.experiments import batches_for, model_config, pretrain, tokenizer_for
from cxrclip.experiments import tokenizer as vocabulary
from cxrclip.experiments.cache import VERSIONS
from cxrclip.prompts import PromptBank
from cxrclip.results.rows import ABOUT
from cxrclip.results.statistics import auroc_rows, retrieval_rows

FOLDER = Path(__file__).parent / "golden"
TOLERANCE = {"phantom": 5e-3, "tokenizer": 0.0, "training": 2e-3, "evaluation": 1e-6}  # relative


@pytest.fixture(scope="module")
def golden_experiment(tiny_experiment):
    return replace(tiny_experiment, pretraining=("M", "C14"), steps=4, validations=1, seed=5)


def sha(*texts):
    return hashlib.sha256("\n".join(map(str, texts)).encode()).hexdigest()[:16]


def phantom(experiment, bench):
    """Of each role: its texts and labels exactly, its films by mean and contrast."""
    data = bench.prepared(experiment.mix, "quick")
    numbers = {}
    for role in data.folders:
        split = "train" if role in data.mix.pretraining else "test"
        rows = data.studies(role, split).to_list()[:8]
        films = [decode_gray(image["bytes"], role).astype(float) for row in rows for image in row["images"]]
        texts = [[row[name] for name in ("findings", "impression", "positive", "negative", "views")] for row in rows]
        numbers |= {f"{role} texts": sha(texts), f"{role} mean": np.mean([film.mean() for film in films]),
                    f"{role} contrast": np.mean([film.std() for film in films])}
    return numbers


def tokenizer(experiment, bench):
    """The vocabulary, piece by piece."""
    words = tokenizer_for(experiment, bench.prepared(experiment.mix, "quick"), PromptBank.load(), bench)
    return {"size": len(words), "pieces": sha(sorted(words.get_vocab().items()))}


def drawn(experiment, bench):
    """The prompts, the first batches and the validation batches."""
    data, bank = bench.prepared(experiment.mix, "quick"), PromptBank.load()
    words = tokenizer_for(experiment, data, bank, bench)
    make, validation = batches_for(experiment, data, bank, words, model_config(experiment, words))
    batches = [*itertools.islice(make(0, 0, 1), 2), next(validation())]
    return {"prompts": sha(bank.sentences()),
            "tokens": sha(*(batch["input_ids"].tolist() for batch in batches)),
            "pixels": [batch["pixel_values"].double().pow(2).mean().item() for batch in batches]}


def trained(experiment, bench):
    """Losses of a few steps, and the norm of what was trained."""
    run = pretrain(experiment, bench)
    log, weights = run.log(), run.model.state_dict()
    return {"total": log["total"].tolist(), "valid": log["valid_total"].dropna().tolist(),
            "norm": sum(weight.double().pow(2).sum().item() for weight in weights.values()) ** 0.5,
            "logit_scale": weights["logit_scale"].item()}


def evaluated():
    """Every task of the evaluation on made-up embeddings."""
    rng = np.random.default_rng(0)
    embeds, texts = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 60, 8)))
    targets = embeds @ rng.normal(size=(8, 2)) + rng.normal(size=(60, 2)) > 0
    ids = np.array([f"s{i}" for i in range(60)])
    images = evaluation.ImageEmbeddings(ids, np.array([f"p{i // 2}" for i in range(60)]), embeds, embeds)
    prompts = {name: (texts[3 * k:3 * k + 1], texts[3 * k + 1:3 * k + 3]) for k, name in enumerate("ab")}
    zero_shot = evaluation.zero_shot_scores(embeds, prompts)
    probe = evaluation.linear_probe(embeds[:40], targets[:40], embeds[40:], fraction=0.5, draws=2)
    words = [f"report {i % 50}" for i in range(60)]
    about = dict.fromkeys(ABOUT, "")
    rows = {"zero-shot": auroc_rows(evaluation.score_frame(images, ["a", "b"], zero_shot, targets), about, "x", "t"),
            "probe": auroc_rows(evaluation.score_frame(images[np.arange(40, 60)], ["a", "b"], probe, targets[40:]),
                                about, "x", "t"),
            "retrieval": retrieval_rows(evaluation.retrieve(images, 0.3 * texts + 0.7 * embeds, words), about, "x")}
    bank = PromptBank.load()
    return {"texts": sha(*(bank.zero_shot(task) for task in bank.tasks)),
            **{name: frame[["value", "low", "high"]].to_numpy(float).ravel().tolist() for name, frame in rows.items()}}


def differs(stage, numbers):
    """Names of the numbers that are not those recorded for the stage's version."""
    recorded = json.loads((FOLDER / f"{stage}.json").read_text())
    close = {name: value == recorded["numbers"].get(name) if isinstance(value, str) else
             np.allclose(value, recorded["numbers"].get(name, np.nan), rtol=TOLERANCE[stage], atol=1e-9)
             for name, value in numbers.items()}
    return recorded["version"], [name for name, same in close.items() if not same]


def check(stage, numbers):
    """Compare, or with GOLDEN_RECORD=1 record."""
    if os.environ.get("GOLDEN_RECORD"):
        FOLDER.mkdir(exist_ok=True)
        text = json.dumps({"version": VERSIONS[stage], "numbers": numbers}, indent=1, default=float)
        (FOLDER / f"{stage}.json").write_text(text + "\n")
    version, moved = differs(stage, numbers)
    if version != VERSIONS[stage]:
        pytest.fail(f"{stage}: version {VERSIONS[stage]} has no golden numbers yet: run make golden")
    if moved:
        pytest.fail(f"{stage}: numbers changed ({', '.join(moved)}): if you mean it, raise {stage} in VERSIONS "
                    "(cxrclip/experiments/cache.py) and run make golden")


def test_phantom(golden_experiment, tiny_bench):
    check("phantom", phantom(golden_experiment, tiny_bench))


def test_tokenizer(golden_experiment, tiny_bench):
    check("tokenizer", tokenizer(golden_experiment, tiny_bench))


def test_training(golden_experiment, tiny_bench):
    check("training", drawn(golden_experiment, tiny_bench) | trained(golden_experiment, tiny_bench))


def test_evaluation():
    check("evaluation", evaluated())


# ---- the golden numbers bite ----------------------------------------------------------------------------------------


def test_another_crop_moves_the_training(golden_experiment, tiny_bench, monkeypatch):
    whole = transforms.crop_box
    monkeypatch.setattr(transforms, "crop_box", lambda *shape_and_rng: whole(*shape_and_rng, scale=(0.5, 1.1)))
    assert differs("training", drawn(golden_experiment, tiny_bench))[1] == ["pixels"]


def test_another_sentence_moves_the_training(golden_experiment, tiny_bench, monkeypatch):
    load = PromptBank.load

    def reworded(path=None):
        bank = load(path)
        states = bank.prompts["Edema"]
        return replace(bank, prompts=bank.prompts | {"Edema": states | {"positive": ("Wet lungs.",)}})
    monkeypatch.setattr(PromptBank, "load", reworded)
    assert "prompts" in differs("training", {"prompts": sha(PromptBank.load().sentences())})[1]


def test_another_vocabulary_rule_moves_the_tokenizer(golden_experiment, tiny_bench):
    words = vocabulary.train_tokenizer(["Heart is large."], vocab_size=60)
    numbers = {"size": len(words), "pieces": sha(sorted(words.get_vocab().items()))}
    assert differs("tokenizer", numbers)[1] == ["size", "pieces"]


def test_another_loss_moves_the_training(golden_experiment, tiny_bench, monkeypatch, tmp_path):
    one_way = losses.symmetric_info_nce
    monkeypatch.setattr(losses, "symmetric_info_nce", lambda *args, **kwargs: 1.1 * one_way(*args, **kwargs))
    bench = replace(tiny_bench, build=tmp_path)
    (tmp_path / "data").symlink_to((tiny_bench.build / "data").resolve())
    assert "total" in differs("training", trained(golden_experiment, bench))[1]


def test_another_metric_moves_the_evaluation(monkeypatch):
    plain = evaluation.zero_shot_scores
    monkeypatch.setattr(evaluation, "zero_shot_scores", lambda *args: plain(*args) ** 2 * torch.randn(60, 2).numpy())
    assert differs("evaluation", evaluated())[1] == ["zero-shot"]
