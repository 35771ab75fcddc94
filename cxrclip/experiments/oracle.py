"""What only the phantom's truth knows: side, zone and severity of every finding.

It answers three questions. How hard is each finding to see? Which recall can be reached at all? Is coarse text the
reason why label data cost retrieval (prompts can tell the truth here; no real label file could)? The truth is in
`truth.parquet` beside the phantom's study table (data/phantom/world.py).
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F

from cxrclip.data.phantom.anatomy import Finding
from cxrclip.data.phantom.world import VOCABULARIES
from cxrclip.encoders import CXRCLIPConfig, build_image_encoder
from cxrclip.errors import InputError
from cxrclip.evaluation import ImageEmbeddings, films_of, first_images
from cxrclip.prompts import PromptBank
from cxrclip.transforms import EvalTransform, TrainTransform
from cxrclip.views import DrawTexts, Report, Study

SEVERITIES: Mapping[int, str] = {1: "mild", 2: "moderate", 3: "severe"}
Truth = Mapping[str, Sequence[Mapping[str, Any]]]  # study id -> its findings: name, side, zone, severity, kind
Details = Mapping[str, Mapping[str, str]]           # study id -> class -> words that a prompt adds
Facts = Mapping[Hashable, Mapping[str, Any]]        # finding (name, kind) -> its side, zone, severity


def read_truth(folder: str | Path) -> Truth:
    """The true findings of every study of a phantom study folder. InputError where the folder has no truth."""
    path = Path(folder) / "truth.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no truth.parquet beside the study table: only phantom data know the truth")
    table = pq.read_table(path, columns=["study_id", "findings"])
    return dict(zip(table["study_id"].to_pylist(), table["findings"].to_pylist(), strict=True))


def facts_of(truth: Truth, study_ids: Sequence[str]) -> list[Facts]:
    """What there is to see in each study, by finding."""
    return [{(finding["name"], finding["kind"]): finding for finding in truth[study]} for study in study_ids]


def first_of_each(texts: Sequence[str]) -> np.ndarray:
    """The position of the first study of each distinct text: what stands for the text among the candidates."""
    return np.array(sorted({text: i for i, text in reversed(list(enumerate(texts)))}.values()))


def contents(truth: Truth, study_ids: Sequence[str]) -> list[frozenset]:
    """What there is to see in each study: its findings with side, zone, severity and kind (metrics.recall_ceiling)."""
    return [frozenset(tuple(sorted(finding.items())) for finding in truth[study]) for study in study_ids]


def chestxray14_labels(findings: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
    """(positive, negative) of a study in ChestX-ray14's names, by the truth: what NIH says of a film that RSNA has."""
    found = [Finding(**finding) for finding in findings]
    names = VOCABULARIES["chestxray14"]
    positive = [name for name, rule in names.items() if any(map(rule, found))]
    return positive or ["No Finding"], [name for name in names if name not in positive]


def rich_details(truth: Truth, bank: PromptBank) -> dict[str, dict[str, str]]:
    """Study id -> class -> the words a prompt adds, such as "severe left lower zone".

    A class collects all findings it covers: "Lung Opacity" may say "mild left upper zone and severe bilateral". A
    label with no such finding (a labeller's mistake) gets no words.
    """
    rules = {bank.class_of(name): rule for vocabulary in ("chestxray14", "chexpert")
             for name, rule in VOCABULARIES[vocabulary].items()}
    details = {}
    for study, findings in truth.items():
        found = [Finding(**finding) for finding in findings]
        words = {name: " and ".join(filter(None, map(place_in_words, filter(rule, found))))
                 for name, rule in rules.items()}
        details[study] = {name: text for name, text in words.items() if text}
    return details


def place_in_words(finding: Finding) -> str:
    """Severity, side and zone of a finding, in that order; a device has a side at most."""
    severity = "" if finding.name == "Support Devices" else SEVERITIES[finding.severity]
    side = "bilateral" if finding.side == "both" else finding.side
    return " ".join(filter(None, (severity, side, finding.zone and f"{finding.zone} zone")))


def with_details(draw: DrawTexts, details: Details) -> DrawTexts:
    """`draw` with prompts that also tell side, zone and severity of what is not denied: "There is edema: severe." """
    def drawn(study: Study, report: Report, rng: np.random.Generator) -> list[str]:
        words = details.get(study["study_id"], {})

        def sentence(name: str, state: str, text: str) -> str:
            told = "" if state == "negative" else words.get(name, "")
            return f"{text.rstrip('. ')}: {told}." if told else text
        return draw(study, partial(report, sentence=sentence), rng)
    return drawn


# ---- the difficulty of a data set -----------------------------------------------------------------------------------


def supervised_reference(train_studies: Dataset, train_targets: np.ndarray, test_studies: Dataset, *,
                         image_size: int = 64, steps: int = 400, batch_size: int = 64, seed: int = 0) -> np.ndarray:
    """Scores (N_test, K) of the small ResNet trained from scratch on the labels themselves (binary cross-entropy).

    Not a method of the paper: it tells how hard each finding is to see, given every label. First image of each study,
    training augmentation of the paper, AdamW with a one-cycle rate; about 0.1 s a step on one core at 64 px.
    train_targets: (N_train, K) bool.
    """
    config = CXRCLIPConfig(image_encoder="resnet-small", image_size=image_size)
    films = list(films_of(train_studies))
    augment = TrainTransform(image_size, config.image_mean, config.image_std)
    labels, rng = torch.from_numpy(train_targets).float(), np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_image_encoder(config)
        network = nn.Sequential(encoder, nn.Linear(encoder.features, train_targets.shape[1]))
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    for _ in range(steps):
        rows = rng.choice(len(films), min(batch_size, len(films)), replace=False)
        batch = torch.stack([augment(films[i], rng) for i in rows])            # (B, 3, S, S)
        loss = F.binary_cross_entropy_with_logits(network(batch), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    transform = EvalTransform(image_size, config.image_mean, config.image_std)
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in first_images(test_studies, transform, 256)]).numpy()


# ---- what coarse text costs -----------------------------------------------------------------------------------------

MATTERS = ("side", "zone", "severity")


def coarse_text_accuracy(images: ImageEmbeddings, text_embeds: np.ndarray, texts: Sequence[str],
                         truth: Mapping[str, Sequence[Mapping[str, object]]]) -> pd.DataFrame:
    """Does the nearest report put a finding on the right side, in the right zone, at the right severity?

    For each film the nearest of the distinct reports is retrieved (cosine; a report stands for its first study). For
    each finding that both studies have (name, and kind of device or fracture), one row per matter: study_id,
    patient_id, retrieved, finding, matter, right, chance. A matter that the finding has not (the heart's side), or in
    which all candidates with the finding agree (the side of edema), tells nothing and has no row. chance: share of
    the candidates with that finding that agree with the film's study.

    images: N studies; text_embeds (N, D), texts (N): their reports. truth: study id -> findings (oracle.read_truth).
    """
    known = dict(zip(images.study_ids, facts_of(truth, images.study_ids), strict=True))
    first = first_of_each(texts)                                                                # (U,) rows
    nearest = first[(images.embeds @ text_embeds[first].T).argmax(axis=1)]                      # (N,) rows
    counts = defaultdict(Counter)  # (finding, matter) -> how often each value occurs among the candidates
    for study, matter in itertools.product(images.study_ids[first], MATTERS):
        for finding, facts in known[study].items():
            counts[finding, matter][facts[matter]] += 1
    rows = []
    for study, patient, found in zip(images.study_ids, images.patient_ids, images.study_ids[nearest], strict=True):
        shared = [finding for finding in known[study] if finding in known[found]]
        for finding, matter in itertools.product(shared, MATTERS):
            value, all_values = known[study][finding][matter], counts[finding, matter]
            if value is not None and len(all_values) > 1:
                rows.append((study, patient, found, " ".join(filter(None, finding)), matter,
                             known[found][finding][matter] == value, all_values[value] / all_values.total()))
    return pd.DataFrame(rows, columns=["study_id", "patient_id", "retrieved", "finding", "matter", "right", "chance"])
