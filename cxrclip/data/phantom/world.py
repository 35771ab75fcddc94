"""The institutions of the phantom world: who comes, what they have, how it is filmed, reported and labelled.

The numbers in this file are the world: prevalences, tendencies, severities and the table of institutions. Their
directions follow clinical experience, their sizes do not: rare findings are more common here, so that a small world
holds enough of them.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from joblib.externals.loky import get_reusable_executor
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from cxrclip.data import files, images
from cxrclip.data.phantom import reports
from cxrclip.data.phantom.anatomy import SIDES, ZONES, Body, Case, Finding, sample_body
from cxrclip.data.phantom.render import Scanner, render_study
from cxrclip.data.progress import progress_bar
from cxrclip.errors import InputError

VERSION = 1  # of the phantom world: raised by hand when it draws other films or reports (experiments/cache.py)

# What the sick have -----------------------------------------------------------------------------------------

POPULATIONS = ("hospital", "archive", "clinic", "screening")
# Percent of sick patients with a finding, before the tendencies below; causes come before what they cause.
PREVALENCE: Mapping[str, tuple[float, ...]] = {
    #                               hospital archive clinic screening
    "Aortic Enlargement":           (    5,      3,     8,    18),
    "Cardiomegaly":                 (   15,      7,    18,    18),
    "Enlarged Cardiomediastinum":   (    5,      2,     3,     4),
    "Emphysema":                    (    6,      6,     7,     4),
    "Tuberculosis":                 (    3,      3,     2,     8),
    "Fibrosis":                     (    5,      5,     5,     9),
    "Mass":                         (    4,      8,     3,     7),
    "Nodule":                       (    7,     10,     9,    10),
    "Calcification":                (    8,      6,    13,     9),
    "Pneumonia":                    (   10,      5,     5,     9),
    "Consolidation":                (    9,      8,     3,     7),
    "Infiltration":                 (    6,     20,     5,     9),
    "Edema":                        (    9,      5,     3,     3),
    "Fracture":                     (    9,      6,     8,     7),
    "Pneumothorax":                 (    6,      8,     3,     5),
    "Pleural Effusion":             (   14,     14,     7,     9),
    "Atelectasis":                  (   14,     14,    12,     6),
    "Pleural Thickening":           (    4,      6,     4,    10),
    "Hernia":                       (    4,      3,     6,     2),
    "Support Devices":              (   10,      6,     5,     3),
}  # fmt: skip
# Finding -> later finding: factor on the odds of the later one where the first is present.
TENDENCIES: Mapping[str, Mapping[str, float]] = {
    "Aortic Enlargement": {"Cardiomegaly": 1.8, "Enlarged Cardiomediastinum": 2.5},
    "Cardiomegaly": {"Edema": 3.5, "Pleural Effusion": 1.8, "Emphysema": 0.6, "Support Devices": 2.0},
    "Emphysema": {"Mass": 1.6, "Nodule": 1.6, "Pneumothorax": 2.0, "Edema": 0.5},
    "Tuberculosis": {"Fibrosis": 2.0, "Calcification": 2.5, "Pneumonia": 0.4, "Pleural Thickening": 2.5},
    "Fibrosis": {"Pleural Thickening": 1.6},
    "Mass": {"Nodule": 2.0, "Pleural Effusion": 1.8},
    "Pneumonia": {"Consolidation": 2.0, "Infiltration": 0.5, "Pleural Effusion": 1.6},
    "Consolidation": {"Infiltration": 0.5, "Pleural Effusion": 1.5},
    "Edema": {"Pleural Effusion": 3.5, "Support Devices": 2.0},
    "Fracture": {"Pneumothorax": 3.0},
    "Pneumothorax": {"Support Devices": 2.0},
    "Pleural Effusion": {"Atelectasis": 2.5},
}  # fmt: skip
# The same for patients filmed in bed, and for those above 65.
BEDSIDE: Mapping[str, float] = {
    "Support Devices": 7.0, "Edema": 2.5, "Pleural Effusion": 2.0, "Atelectasis": 1.5, "Pneumothorax": 1.3,
    "Nodule": 0.5, "Mass": 0.6, "Calcification": 0.5, "Hernia": 0.5, "Tuberculosis": 0.5,
}  # fmt: skip
OLD: Mapping[str, float] = {
    "Aortic Enlargement": 2.0, "Cardiomegaly": 1.5, "Hernia": 2.0, "Calcification": 1.5, "Emphysema": 1.5, "Mass": 1.4,
    "Fracture": 1.3,
}  # fmt: skip
# Shares of mild, moderate and severe: the difficulty of the world.
SEVERITY_UP: tuple[float, float, float] = (0.38, 0.40, 0.22)  # patients who stand
SEVERITY_BED: tuple[float, float, float] = (0.25, 0.40, 0.35)  # patients in bed
# Shares of (left, right, both) and of (upper, mid, lower); None where a finding has no side or no zone.
Shares = tuple[float, float, float]
PLACES: Mapping[str, tuple[Shares | None, Shares | None]] = {
    "Aortic Enlargement": (None, None),
    "Cardiomegaly": (None, None),
    "Enlarged Cardiomediastinum": (None, None),
    "Emphysema": ((0, 0, 1), None),
    "Tuberculosis": ((0.35, 0.40, 0.25), (0.85, 0.15, 0)),
    "Fibrosis": ((0.20, 0.20, 0.60), (0.25, 0.10, 0.65)),
    "Mass": ((0.46, 0.54, 0), (0.40, 0.30, 0.30)),
    "Nodule": ((0.42, 0.46, 0.12), (0.40, 0.30, 0.30)),
    "Calcification": ((0.45, 0.50, 0.05), (0.40, 0.30, 0.30)),
    "Pneumonia": ((0.40, 0.48, 0.12), (0.20, 0.25, 0.55)),
    "Consolidation": ((0.42, 0.46, 0.12), (0.22, 0.23, 0.55)),
    "Infiltration": ((0.33, 0.37, 0.30), (0.20, 0.30, 0.50)),
    "Edema": ((0, 0, 1), None),
    "Fracture": ((0.5, 0.5, 0), (0.20, 0.40, 0.40)),
    "Pneumothorax": ((0.46, 0.54, 0), None),
    "Pleural Effusion": ((0.36, 0.36, 0.28), None),
    "Atelectasis": ((0.40, 0.35, 0.25), (0.15, 0.10, 0.75)),
    "Pleural Thickening": ((0.42, 0.42, 0.16), (0.45, 0.20, 0.35)),
    "Hernia": (None, None),
}
# Chance of each device in bed and standing (of those with any), and of (left, right).
DEVICES: Mapping[str, tuple[float, float, tuple[float, float] | None]] = {
    "endotracheal tube": (0.45, 0.00, None),
    "nasogastric tube": (0.35, 0.03, None),
    "central line": (0.55, 0.20, (0.2, 0.8)),
    "pacemaker": (0.15, 0.45, (0.8, 0.2)),
    "sternal wires": (0.20, 0.35, None),
}
CLAVICLE = 0.2  # share of fractures
# What is still there when a patient comes back.
CHRONIC = frozenset(
    ("Aortic Enlargement", "Cardiomegaly", "Enlarged Cardiomediastinum", "Emphysema", "Fibrosis", "Mass", "Nodule",
     "Calcification", "Pleural Thickening", "Hernia", "pacemaker", "sternal wires")
)  # fmt: skip
RETURNS = 0.23  # share of studies that are a return visit: about 1.3 studies a patient

# Names ------------------------------------------------------------------------------------------------------

Rule = Callable[[Finding], bool]


def _named(*names: str) -> Rule:
    return lambda finding: finding.name in names


def _vocabulary(*names: str, **rules: Rule) -> Mapping[str, Rule]:
    """Names -> rules; a name without a rule of its own covers the finding of that name."""
    return {name: rules.get(name, _named(name)) for name in names}


VOCABULARIES: Mapping[str, Mapping[str, Rule]] = {
    "chexpert": _vocabulary(*(name for name in reports.CHEXPERT if name != "No Finding"), **reports.DERIVED),
    "chestxray14": _vocabulary(
        "Atelectasis", "Cardiomegaly", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax",
        "Consolidation", "Edema", "Emphysema", "Fibrosis", "Pleural_Thickening", "Hernia",
        **{"Effusion": _named("Pleural Effusion"), "Pleural_Thickening": _named("Pleural Thickening")},
    ),
    "vindr": _vocabulary(
        "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Consolidation", "ILD", "Infiltration",
        "Lung Opacity", "Mediastinal shift", "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax",
        "Pulmonary fibrosis", "Rib fracture", "Lung tumor", "Pneumonia", "Tuberculosis",
        **reports.DERIVED | {
            "Aortic enlargement": _named("Aortic Enlargement"),
            "Nodule/Mass": _named("Nodule", "Mass"),
            "Pleural effusion": _named("Pleural Effusion"),
            "Pleural thickening": _named("Pleural Thickening"),
            "Pulmonary fibrosis": _named("Fibrosis"),
            "Rib fracture": lambda f: f.name == "Fracture" and f.kind == "rib",
        },
    ),
    # RSNA's readers boxed every opacity that might be pneumonia.
    "rsna": {"Pneumonia": _named("Pneumonia", "Consolidation", "Infiltration")},
    "siim": _vocabulary("Pneumothorax"),
    "5x200": _vocabulary("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion"),
}  # fmt: skip
"""Vocabulary -> its names -> which findings they cover. `true_labels` adds "No Finding" and "Normal"."""


def true_labels(case: Case, vocabulary: str) -> tuple[str, ...]:
    """What a case has, in the names of a vocabulary (a key of VOCABULARIES) and in their order.

    chexpert: "No Finding" where there are at most support devices.  chestxray14: "No Finding" where it has none of
    the 14.  rsna: "Normal" where there is nothing at all.  The others may be empty.
    """
    names = tuple(n for n, rule in VOCABULARIES[vocabulary].items() if any(map(rule, case.findings)))
    if vocabulary == "chexpert" and all(f.name == "Support Devices" for f in case.findings):
        return ("No Finding", *names)
    if vocabulary == "chestxray14" and not names:
        return ("No Finding",)
    if vocabulary == "rsna" and not case.findings:
        return ("Normal",)
    return names


# Labels as an institution gives them: (positive, negative, uncertain) ---------------------------------------

Labels = tuple[list[str], list[str], list[str]]
UNLABELLED = 0.01  # share of C's reports in which the labeller finds nothing
MISSED, INVENTED = 0.10, 0.02  # C14's text mining: share of true labels lost, of studies with a false one
# What text mining takes it for instead.
CONFUSED: Mapping[str, str] = {
    "Consolidation": "Infiltration", "Pneumonia": "Infiltration", "Infiltration": "Pneumonia", "Mass": "Nodule",
    "Nodule": "Mass", "Edema": "Infiltration", "Effusion": "Pleural_Thickening", "Fibrosis": "Pleural_Thickening",
}  # fmt: skip


def no_labels(case: Case, rng: np.random.Generator) -> Labels:
    """Reports only."""
    return [], [], []


def labeller(case: Case, rng: np.random.Generator) -> Labels:
    """What CheXpert's labeller reads in the hidden report; now and then nothing at all."""
    return ([], [], []) if rng.random() < UNLABELLED else reports.report_labels(case, rng)


def text_mined(case: Case, rng: np.random.Generator) -> Labels:
    """As ChestX-ray14: positives with misses and false ones, all other names negative."""
    true = [n for n in true_labels(case, "chestxray14") if n != "No Finding"]
    mined = [n for n in true if rng.random() >= MISSED]
    names = list(VOCABULARIES["chestxray14"])
    if rng.random() < INVENTED:
        mistaken = [CONFUSED[n] for n in true if n in CONFUSED] or names
        mined.append(reports.pick(rng, [n for n in mistaken if n not in true] or names))
    positive = [n for n in names if n in mined] or ["No Finding"]
    return positive, [n for n in names if n not in mined], []


def consensus(case: Case, rng: np.random.Generator, vocabulary: str) -> Labels:
    """The truth in a vocabulary: present names positive, all other names negative."""
    positive = list(true_labels(case, vocabulary))
    return positive, [n for n in VOCABULARIES[vocabulary] if n not in positive], []


# Institutions -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Institution:
    """One source of studies.

    population: column of PREVALENCE.  healthy: share of first visits without a finding.  bedside: share of
    the sick filmed AP in bed (a third of it for the healthy).  lateral: share of standing patients who also
    get a lateral film.  age: mean and standard deviation in years.  labels: one of the functions above.
    habits: shares of its ways to write a report.  sections: shares of (both, findings only, impression only)
    that reached the archive; None: no reports.  emphasis: factors on the odds of findings.  one_of: every
    study has exactly one of these findings, in turn, and no other that CheXpert names.
    """

    about: str
    population: str
    healthy: float
    bedside: float
    lateral: float
    age: tuple[float, float]
    scanner: Scanner
    labels: Callable[[Case, np.random.Generator], Labels]
    habits: Mapping[str, float] = field(default_factory=dict)
    sections: tuple[float, float, float] | None = None
    emphasis: Mapping[str, float] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()


SCANNERS: Mapping[str, Scanner] = {
    "M": Scanner(),
    "C": Scanner(contrast=1.08, gamma=0.9, noise=0.015, window=(0.5, 99.5), border=6, marker="R"),
    "C14": Scanner(contrast=1.12, gamma=1.1, noise=0.018, scatter=0.12, zoom=0.97, wander=8, tilt=2.0),
    "vindr": Scanner(contrast=0.95, gamma=1.15, noise=0.009, scatter=0.08, blur=0.6, zoom=1.03),
    "rsna": Scanner(contrast=1.1, gamma=1.05, noise=0.02, blur=1.0, zoom=0.97, wander=8, tilt=2.0),
    "siim": Scanner(contrast=1.15, gamma=0.95, noise=0.016, zoom=0.98, wander=7, marker="R"),
    "openi": Scanner(contrast=0.92, gamma=0.85, noise=0.02, blur=1.1, border=10, marker=""),
}
# Sections that reached the archive: both, findings only, impression only.
_ARCHIVE_M, _ARCHIVE_OPENI, _IMPRESSION = (0.75, 0.12, 0.13), (0.85, 0.02, 0.13), (0.0, 0.0, 1.0)
_STAFF_M = {"narrative": 0.45, "systematic": 0.30, "verbose": 0.25}
_STAFF_C = {"numbered": 0.65, "verbose": 0.35}
_STAFF_OPENI = {"telegraphic": 0.70, "narrative": 0.30}
_VINDR, _RSNA, _SIIM, _5X200 = (partial(consensus, vocabulary=v) for v in ("vindr", "rsna", "siim", "5x200"))

_M = Institution(
    about="Teaching hospital: films with two report sections, as MIMIC-CXR.",
    population="hospital", healthy=0.35, bedside=0.35, lateral=0.80, age=(62, 17),
    scanner=SCANNERS["M"], labels=no_labels, habits=_STAFF_M, sections=_ARCHIVE_M,
)  # fmt: skip
INSTITUTIONS: Mapping[str, Institution] = {
    "M": _M,
    "C": Institution(
        about="Hospital whose reports are hidden behind a labeller's labels, as CheXpert.",
        population="hospital", healthy=0.25, bedside=0.45, lateral=0.35, age=(59, 18),
        scanner=SCANNERS["C"], labels=labeller,
    ),
    "C14": Institution(
        about="Frontal films with labels mined from text, as ChestX-ray14.",
        population="archive", healthy=0.62, bedside=0.40, lateral=0.0, age=(47, 16),
        scanner=SCANNERS["C14"], labels=text_mined,
    ),
    "vindr-cxr": Institution(
        about="Screening and referral films read for 18 names, as VinDr-CXR.",
        population="screening", healthy=0.40, bedside=0.0, lateral=0.0, age=(50, 16),
        scanner=SCANNERS["vindr"], labels=_VINDR,
    ),
    "rsna": Institution(
        about="Frontal films with or without pneumonia, as the RSNA challenge.",
        population="archive", healthy=0.36, bedside=0.40, lateral=0.0, age=(47, 17),
        scanner=SCANNERS["rsna"], labels=_RSNA,
    ),
    "siim": Institution(
        about="Frontal films with or without pneumothorax, as the SIIM-ACR challenge.",
        population="archive", healthy=0.45, bedside=0.40, lateral=0.0, age=(47, 17),
        scanner=SCANNERS["siim"], labels=_SIIM, emphasis={"Pneumothorax": 5.0},
    ),
    "chexpert5x200": Institution(
        about="Films of C with one finding each and their impression, as CheXpert 5x200.",
        population="hospital", healthy=0.0, bedside=0.45, lateral=0.0, age=(59, 18),
        scanner=SCANNERS["C"], labels=_5X200, habits=_STAFF_C, sections=_IMPRESSION,
        one_of=tuple(VOCABULARIES["5x200"]),
    ),
    "mimic-cxr": replace(_M, about="Later patients of M, as the test set of MIMIC-CXR."),
    "openi": Institution(
        about="Outpatient clinic: two views, short reports, as Open-I.",
        population="clinic", healthy=0.38, bedside=0.05, lateral=0.95, age=(52, 18),
        scanner=SCANNERS["openi"], labels=no_labels, habits=_STAFF_OPENI, sections=_ARCHIVE_OPENI,
    ),
}  # fmt: skip


# Patients ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Visit:
    """One study before it is drawn: ids, the case, the views taken, whether there was an earlier study."""

    study_id: str
    patient_id: str
    split: str
    case: Case
    views: tuple[str, ...]
    follow_up: bool


def visit(name: str, split: str, i: int, seed: int = 0) -> Visit:
    """Study number i of an institution's split. It depends on these four values alone.

    A return visit belongs to the patient of study i - 1: the same body, the chronic findings still there.
    """
    institution = INSTITUTIONS[name]
    first = i
    while first and _returns(name, split, first, seed):
        first -= 1
    rng = _rng(seed, name, split, first, 1)
    body = sample_body(rng, age=float(np.clip(rng.normal(*institution.age), 18, 95)))
    findings: tuple[Finding, ...] = ()
    for k in range(first, i + 1):
        rng = _rng(seed, name, split, k, 2)
        kept = tuple(f for f in findings if CHRONIC & {f.name, f.kind})
        target = institution.one_of[k % len(institution.one_of)] if institution.one_of else None
        findings, bedside = _illness(institution, body, kept, target, rng)
    views = ("AP",) if bedside else ("PA", "LATERAL") if rng.random() < institution.lateral else ("PA",)
    case = Case(body, findings, int(rng.integers(2**31)))
    patient = f"{name}-{split}-p{first:06d}"
    return Visit(f"{name}-{split}-{i:06d}", patient, split, case, views, follow_up=i > first)


def _returns(name: str, split: str, i: int, seed: int) -> bool:
    return not INSTITUTIONS[name].one_of and bool(_rng(seed, name, split, i, 0).random() < RETURNS)


def _illness(
    institution: Institution, body: Body, kept: tuple[Finding, ...], target: str | None, rng: np.random.Generator
) -> tuple[tuple[Finding, ...], bool]:
    """(findings, filmed in bed). kept: findings of the last visit.  target: the one finding wanted."""
    healthy = rng.random() < institution.healthy and not kept
    bedside = bool(rng.random() < institution.bedside * (1 / 3 if healthy else 1))
    if healthy:
        return (), bedside
    old = tuple(dict.fromkeys(f.name for f in kept))
    names: list[str] = []
    while not names:
        names = _which(institution, body, bedside, old, target, rng)
    new = [f for name in names if name not in old for f in _place(name, bedside, rng)]
    return (*kept, *new), bedside


def _which(
    institution: Institution, body: Body, bedside: bool, old: Sequence[str], target: str | None,
    rng: np.random.Generator,
) -> list[str]:  # fmt: skip
    """Names of a sick patient's findings, drawn from causes to effects. `old`: those still there."""
    column = POPULATIONS.index(institution.population)
    present: list[str] = []
    for name, shares in PREVALENCE.items():
        odds = shares[column] / (100 - shares[column]) * institution.emphasis.get(name, 1)
        odds *= BEDSIDE.get(name, 1) if bedside else 1
        odds *= OLD.get(name, 1) if body.age > 65 else 1
        for other in present:
            odds *= TENDENCIES.get(other, {}).get(name, 1)
        chance = odds / (1 + odds)
        if target and (name == target or any(rule(Finding(name)) for rule in VOCABULARIES["chexpert"].values())):
            chance = float(name == target)
        if name in old or rng.random() < chance:
            present.append(name)
    return present


def _place(name: str, bedside: bool, rng: np.random.Generator) -> list[Finding]:
    """Side, zone and severity for a finding; several for the devices of one patient."""
    if name == "Support Devices":
        return _devices(bedside, rng)
    severity = 1 + int(rng.choice(3, p=SEVERITY_BED if bedside else SEVERITY_UP))
    sides, zones = PLACES[name]
    side = SIDES[int(rng.choice(3, p=sides))] if sides else None
    zone = ZONES[int(rng.choice(3, p=zones))] if zones else None
    if name == "Fracture" and rng.random() < CLAVICLE:
        return [Finding(name, side, None, severity, "clavicle")]
    return [Finding(name, side, zone, severity, "rib" if name == "Fracture" else None)]


def _devices(bedside: bool, rng: np.random.Generator) -> list[Finding]:
    devices: list[Finding] = []
    while not devices:
        for kind, (in_bed, standing, sides) in DEVICES.items():
            if rng.random() < (in_bed if bedside else standing):
                side = ("left", "right")[int(rng.choice(2, p=sides))] if sides else None
                devices.append(Finding("Support Devices", side, None, 2, kind))
    return devices


# Studies ----------------------------------------------------------------------------------------------------

_TEXT = pa.string()
_FINDING = pa.struct({"name": _TEXT, "side": _TEXT, "zone": _TEXT, "severity": pa.int8(), "kind": _TEXT})
_MASK = pa.struct({"finding_index": pa.int16(), "view": pa.string(), "png": pa.binary()})
TRUTH = pa.schema({"study_id": pa.string(), "findings": pa.list_(_FINDING), "masks": pa.list_(_MASK)})
"""truth.parquet, a row per study in the order of the table: what is there and where it shows, view by view.
Masks are kept for every split: drawing and storing them costs about 1 % of a study's time."""
CHUNK = 32


def generate(
    name: str,
    sizes: Mapping[str, int],
    folder: str | Path,
    *,
    seed: int = 0,
    image_size: int = 128,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Draw an institution's studies: the study table, and `truth.parquet` beside its shards.

    Args:
        name: key of INSTITUTIONS.
        sizes: studies per split, e.g. {"train": 2000, "valid": 200}. Study i of a split does not depend on
            the sizes, so a larger world begins with the smaller one.
        folder: where to; appears whole or not at all.
        image_size: pixels of the square films (JPEG, quality 95).
        workers: processes; None: one per core. The result is bitwise the same for any number.

    Raises:
        InputError: unknown institution or split, sizes that do not fit, a folder that cannot be written.
    """
    from cxrclip import studies  # these take seconds to import; the drawing processes do without
    from cxrclip.data import shards

    _check(name, sizes, studies.SPLITS)
    places = [(split, i) for split, n in sizes.items() for i in range(n)]
    chunks = [places[k : k + CHUNK] for k in range(0, len(places), CHUNK)]
    about = {"institution": name, "seed": seed, "sizes": dict(sizes), "image_size": image_size,
             "description": f"Phantom. {INSTITUTIONS[name].about}"}  # fmt: skip
    with files.atomic_folder(folder) as whole, files.writing(folder):
        with (
            progress_bar(total=len(places), desc=name, unit="study", shown=progress) as bar,
            pq.ParquetWriter(whole / "truth.parquet", TRUTH) as truth,
            _drawn(name, chunks, seed, image_size, workers) as drawn,
        ):
            table = shards.write_studies(_rows(drawn, truth, bar), whole / "table", about=about)
        for file in table.iterdir():
            file.rename(whole / file.name)
        table.rmdir()
    return Path(folder)


def _check(name: str, sizes: Mapping[str, int], splits: Sequence[str]) -> None:
    if name not in INSTITUTIONS:
        raise InputError(f"unknown phantom institution {name!r}; use one of {', '.join(INSTITUTIONS)}")
    classes = len(INSTITUTIONS[name].one_of) or 1
    for split, n in sizes.items():
        if split not in splits:
            raise InputError(f"phantom {name}: unknown split {split!r}; use {', '.join(splits)}")
        if n < 0 or n % classes:
            raise InputError(f"phantom {name}, {split}: cannot draw {n}; give a multiple of {classes}")


def _rows(drawn: Iterator[list], truth: pq.ParquetWriter, bar: tqdm) -> Iterator[dict[str, Any]]:
    """The rows of the study table; their truth is written as they pass."""
    for chunk in drawn:
        truth.write_table(pa.Table.from_pylist([known for _, known in chunk], schema=TRUTH))
        bar.update(len(chunk))
        yield from (row for row, _ in chunk)


@contextmanager
def _drawn(
    name: str, chunks: Sequence[Sequence[tuple[str, int]]], seed: int, size: int, workers: int | None
) -> Iterator[Iterator[list]]:
    """The drawn chunks in order. joblib, since its processes also start from notebooks and plain scripts."""
    workers = max(1, min(workers or joblib.cpu_count(), len(chunks)))
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator", batch_size=1, pre_dispatch=4 * workers)
    drawn = parallel(joblib.delayed(_draw)(name, chunk, seed, size) for chunk in chunks)
    try:
        yield drawn
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # joblib's remark on chunks that nobody wants after a failure
            drawn.close()
        if workers > 1:
            get_reusable_executor().shutdown(wait=True)


def _draw(name: str, chunk: Sequence[tuple[str, int]], seed: int, size: int) -> list[tuple[dict, dict]]:
    """(row, truth) of some studies, on one thread."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            return [study(name, split, i, seed=seed, image_size=size) for split, i in chunk]
    finally:
        cv2.setNumThreads(threads)


def study(name: str, split: str, i: int, *, seed: int = 0, image_size: int = 128) -> tuple[dict, dict]:
    """One study: its row of the study table and its row of `truth.parquet`."""
    institution, seen = INSTITUTIONS[name], visit(name, split, i, seed)
    films = render_study(seen.case, seen.views, institution.scanner, image_size, masks=True)
    rng = _rng(seed, name, split, i, 3)
    positive, negative, uncertain = institution.labels(seen.case, rng)
    row = {
        "study_id": seen.study_id,
        "patient_id": seen.patient_id,
        "source": name,
        "split": split,
        "images": [{"bytes": images.encode_gray(film.pixels), "path": None} for film in films],
        "views": list(seen.views),
        **_texts(institution, seen, rng),
        "positive": positive,
        "negative": negative,
        "uncertain": uncertain,
        "sex": seen.case.body.sex,
        "age": round(seen.case.body.age),
    }
    masks = [{"finding_index": k, "view": film.view, "png": images.encode_gray(mask.astype(np.uint8) * 255, "png")}
             for film in films for k, mask in film.masks.items()]  # fmt: skip
    known = [asdict(f) for f in seen.case.findings]
    return row, {"study_id": seen.study_id, "findings": known, "masks": masks}


def _texts(institution: Institution, seen: Visit, rng: np.random.Generator) -> dict[str, Any]:
    """The report sections that reached the archive, each with one text that went through a translation."""
    if institution.sections is None:
        return {}
    habits, parts = zip(*institution.habits.items(), strict=True)
    habit = habits[int(rng.choice(len(habits), p=parts))]
    lost = int(rng.choice(3, p=institution.sections))
    context = (habit, rng, seen.views, seen.follow_up)
    findings = reports.findings_section(seen.case, *context)
    impression = reports.impression_section(seen.case, *context)
    texts: dict[str, Any] = {}
    if lost != 2:
        texts |= {"findings": findings, "findings_aug": [reports.retranslate(findings, rng)]}
    if lost != 1:
        texts |= {"impression": impression, "impression_aug": [reports.retranslate(impression, rng)]}
    return texts


def _rng(seed: int, name: str, split: str, i: int, purpose: int) -> np.random.Generator:
    """A stream of its own for each institution, split, study and purpose."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), zlib.crc32(split.encode()), i, purpose])
