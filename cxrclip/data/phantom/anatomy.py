"""Who is on the film: a body drawn from a population, and the findings put into it.

Everything here is a plain value. `organs.py` and `lesions.py` turn a `Case` into a chest, `render.py` the chest into
films, `reports.py` the case into text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import numpy as np
import yaml

from cxrclip.data.settings import checked
from cxrclip.errors import InputError

FINDINGS: tuple[str, ...] = (
    "Cardiomegaly", "Enlarged Cardiomediastinum", "Aortic Enlargement", "Edema", "Consolidation", "Pneumonia",
    "Infiltration", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Thickening", "Fracture",
    "Support Devices", "Emphysema", "Fibrosis", "Hernia", "Mass", "Nodule", "Calcification", "Tuberculosis",
)  # fmt: skip
DEVICE_KINDS = ("endotracheal tube", "central line", "pacemaker", "nasogastric tube", "sternal wires")
FRACTURE_KINDS = ("rib", "clavicle")
SIDES = ("left", "right", "both")
ZONES = ("upper", "mid", "lower")


@dataclass(frozen=True)
class Finding:
    """One abnormality in the body.

    name: one of FINDINGS.  side: the patient's side, or None where the finding has none (the heart).
    zone: third of the lung, or None for the whole side.  severity: 1 mild, 2 moderate, 3 severe.
    kind: one of DEVICE_KINDS for Support Devices, of FRACTURE_KINDS for Fracture, else None.
    Raises InputError for anything else.
    """

    name: str
    side: str | None = None
    zone: str | None = None
    severity: int = 2
    kind: str | None = None

    def __post_init__(self) -> None:
        kinds = {"Support Devices": DEVICE_KINDS, "Fracture": FRACTURE_KINDS}.get(self.name, ())
        valid = (self.name in FINDINGS and self.side in (None, *SIDES) and self.zone in (None, *ZONES)
                 and self.severity in (1, 2, 3) and self.kind in (None, *kinds))  # fmt: skip
        if not valid:
            raise InputError(f"not a finding: {self!r}; see FINDINGS, SIDES, ZONES and the kinds in phantom/anatomy.py")


@dataclass(frozen=True)
class Rule:
    """Which findings a name covers: those named in `of`; severity (at least), sides and kind narrow it."""

    of: tuple[str, ...]
    severity: int = 1
    sides: tuple[str, ...] = ()
    kind: str | None = None

    def __call__(self, finding: Finding) -> bool:
        """Whether the name covers a finding."""
        return (finding.name in self.of and finding.severity >= self.severity
                and (not self.sides or finding.side in self.sides) and self.kind in (None, finding.kind))  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    """The content of a YAML file of this folder."""
    return yaml.safe_load(resources.files("cxrclip.data.phantom").joinpath(name).read_text("utf-8"))


WORLD = settings("world.yaml")
DERIVED = checked(dict[str, Rule], WORLD["derived"], "world.yaml, derived")
"""Umbrella terms of CheXpert and VinDr-CXR, which follow from a finding."""
VOCABULARIES: Mapping[str, Mapping[str, Rule]] = {
    vocabulary: {name: checked(Rule, rule, f"world.yaml, {name}") if rule else DERIVED.get(name) or Rule((name,))
                 for name, rule in names.items()} for vocabulary, names in WORLD["vocabularies"].items()
}  # fmt: skip
"""Vocabulary -> its names -> which findings they cover. `world.true_labels` adds "No Finding" and "Normal"."""


@dataclass(frozen=True)
class Body:
    """One person: what differs between healthy chests. Factors are relative to the average adult (1.0).

    sex: "F" or "M".  age: years.  height, width, depth: of the thoracic cage.  habitus: 0 lean to 1 obese.
    heart, aorta, lung, vessels: size factors.  spine_curve: mm sideways.  dome_gap: mm right dome above left.
    breast: 0 none to 1 large shadow.  gas: 0 none to 1 large stomach bubble.
    """

    sex: str
    age: float
    height: float
    width: float
    depth: float
    habitus: float
    heart: float
    aorta: float
    lung: float
    vessels: float
    spine_curve: float
    dome_gap: float
    breast: float
    gas: float


@dataclass(frozen=True)
class Case:
    """A body with its findings. `seed` decides all that these leave open (vessels, where a lesion lies, noise)."""

    body: Body
    findings: tuple[Finding, ...]
    seed: int


def sample_body(rng: np.random.Generator, sex: str | None = None, age: float | None = None) -> Body:
    """Draw one adult. Women are smaller; age widens the heart and unfolds the aorta."""
    sex = sex or ("M" if rng.random() < 0.55 else "F")
    age = float(np.clip(rng.normal(55, 17), 18, 95)) if age is None else age
    old = (age - 50) / 40
    size = 1.0 if sex == "M" else 0.93
    habitus = float(np.clip(rng.beta(2.2, 3.2), 0.03, 0.97))
    return Body(
        sex=sex,
        age=age,
        height=size * float(np.clip(rng.normal(1.0, 0.055), 0.86, 1.13)),
        width=size * float(np.clip(rng.normal(1.0, 0.05), 0.87, 1.12)),
        depth=size * float(np.clip(rng.normal(1.0 + 0.06 * old, 0.06), 0.84, 1.18)),
        habitus=habitus,
        heart=float(np.clip(rng.normal(1.0 + 0.04 * old + 0.05 * (habitus - 0.4), 0.05), 0.85, 1.13)),
        aorta=float(np.clip(rng.normal(1.0 + 0.12 * old, 0.06), 0.8, 1.25)),
        lung=float(np.clip(rng.normal(1.0 - 0.08 * (habitus - 0.4), 0.06), 0.85, 1.15)),
        vessels=float(np.clip(rng.normal(1.0, 0.1), 0.75, 1.25)),
        spine_curve=float(rng.normal(0, 2 + 2 * max(old, 0))),
        dome_gap=float(rng.normal(14, 5)),
        breast=float(rng.uniform(0.25, 1.0)) if sex == "F" else 0.0,
        gas=float(rng.uniform(0, 1)),
    )
