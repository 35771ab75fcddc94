"""What only the phantom's truth knows: side, zone and severity of every finding.

It answers two questions. Is coarse text the reason why label data cost retrieval? (Prompts can tell the truth; no real
label file could.) And which recall can be reached at all? The truth stands in `truth.parquet` beside the phantom's
study table (phantom/world.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from cxrclip.data.phantom.anatomy import Finding
from cxrclip.data.phantom.world import VOCABULARIES
from cxrclip.errors import InputError
from cxrclip.prompts import PromptBank

SEVERITIES: Mapping[int, str] = {1: "mild", 2: "moderate", 3: "severe"}
Truth = Mapping[str, Sequence[Mapping[str, Any]]]  # study id -> its findings: name, side, zone, severity, kind


def read_truth(folder: str | Path) -> Truth:
    """The true findings of every study of a phantom study folder. InputError where the folder has no truth."""
    path = Path(folder) / "truth.parquet"
    if not path.is_file():
        raise InputError(f"{folder}: no truth.parquet beside the study table: only phantom data know the truth")
    table = pq.read_table(path, columns=["study_id", "findings"])
    return dict(zip(table["study_id"].to_pylist(), table["findings"].to_pylist(), strict=True))


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
    """Study id -> class -> the words a prompt adds, such as "severe left lower zone" (dataset.PretrainingDataset).

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
