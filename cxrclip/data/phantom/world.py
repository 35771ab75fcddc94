"""The institutions of the phantom world: who comes, what they have, how it is filmed, reported and labelled.

Its numbers are in `world.yaml`: prevalences, tendencies, places, and the table of institutions.
"""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from cxrclip.data import files, images
from cxrclip.data.phantom import reports
from cxrclip.data.phantom.anatomy import SIDES, VOCABULARIES, WORLD, ZONES, Body, Case, Finding, sample_body
from cxrclip.data.phantom.render import Scanner, render_study
from cxrclip.data.progress import progress_bar
from cxrclip.data.settings import checked
from cxrclip.data.workers import Failure, in_order
from cxrclip.errors import InputError

VERSION = 2  # of the phantom world: raised by hand when it draws other films or reports (experiments/cache.py)

POPULATIONS = ("hospital", "archive", "clinic", "screening")
Shares = tuple[float, float, float]
SEVERITY_UP: Shares = (0.38, 0.40, 0.22)  # of mild, moderate and severe in patients who stand: the world's difficulty
SEVERITY_BED: Shares = (0.25, 0.40, 0.35)  # patients in bed
CLAVICLE = 0.2  # share of fractures
RETURNS = 0.23  # share of studies that are a return visit: about 1.3 studies a patient


@dataclass(frozen=True)
class Illness:
    """How often a finding comes, with which others, and where; see `world.yaml`."""

    percent: tuple[float, float, float, float]
    bedside: float = 1
    old: float = 1
    chronic: bool = False
    sides: Shares | None = None
    zones: Shares | None = None
    effects: dict[str, float] = field(default_factory=dict)


ILLNESSES: Mapping[str, Illness] = checked(dict[str, Illness], WORLD["findings"], "world.yaml, findings")
DEVICES: Mapping[str, Mapping[str, Any]] = WORLD["devices"]

# Labels: (positive, negative, uncertain) --------------------------------------------------------------------

Labels = tuple[list[str], list[str], list[str]]
UNLABELLED = 0.01  # share of C's reports in which the labeller finds nothing
MISSED, INVENTED = 0.10, 0.02  # C14's text mining: share of true labels lost, of studies with a false one


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


def labeller(case: Case, rng: np.random.Generator) -> Labels:
    """What CheXpert's labeller reads in the hidden report; now and then nothing at all."""
    return ([], [], []) if rng.random() < UNLABELLED else reports.report_labels(case, rng)


def text_mined(case: Case, rng: np.random.Generator) -> Labels:
    """As ChestX-ray14: positives with misses and false ones, all other names negative."""
    true = [n for n in true_labels(case, "chestxray14") if n != "No Finding"]
    mined = [n for n in true if rng.random() >= MISSED]
    names = list(VOCABULARIES["chestxray14"])
    if rng.random() < INVENTED:
        mistaken = [WORLD["confused"][n] for n in true if n in WORLD["confused"]] or names
        mined.append(reports.pick(rng, [n for n in mistaken if n not in true] or names))
    positive = [n for n in names if n in mined] or ["No Finding"]
    return positive, [n for n in names if n not in mined], []


def given_labels(institution: Institution, case: Case, rng: np.random.Generator) -> Labels:
    """The labels an institution gives a case: none, a labeller's, mined ones, or the truth in a vocabulary."""
    if institution.labels == "none":
        return [], [], []
    if institution.labels in ("labeller", "text mined"):
        return (labeller if institution.labels == "labeller" else text_mined)(case, rng)
    positive = list(true_labels(case, institution.labels))
    return positive, [n for n in VOCABULARIES[institution.labels] if n not in positive], []


@dataclass(frozen=True)
class Institution:
    """One source of studies.

    population: whose percentages of the findings hold.  healthy: share of first visits without a finding.  bedside:
    share of the sick filmed AP in bed (a third of it for the healthy).  lateral: share of standing patients who also
    get a lateral film.  age: mean and standard deviation in years.  labels: how they are given (`given_labels`).
    habits: shares of its ways to write a report.  sections: shares of (both, findings only, impression only)
    that reached the archive; None: no reports.  emphasis: factors on the odds of findings.  one_of: every
    study has exactly one of these findings, in turn, and no other that CheXpert names.
    """

    about: str
    population: Literal[POPULATIONS]
    healthy: float
    bedside: float
    lateral: float
    age: tuple[float, float]
    scanner: str
    labels: Literal["none", "labeller", "text mined", "vindr", "rsna", "siim", "5x200"]
    habits: dict[str, float] = field(default_factory=dict)
    sections: Shares | None = None
    emphasis: dict[str, float] = field(default_factory=dict)
    one_of: tuple[str, ...] = ()


SCANNERS: Mapping[str, Scanner] = checked(dict[str, Scanner], WORLD["scanners"], "world.yaml, scanners")
INSTITUTIONS: Mapping[str, Institution] = checked(dict[str, Institution], WORLD["institutions"], "world.yaml")


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
    while first and not institution.one_of and _rng(seed, name, split, first, 0).random() < RETURNS:
        first -= 1
    rng = _rng(seed, name, split, first, 1)
    body = sample_body(rng, age=float(np.clip(rng.normal(*institution.age), 18, 95)))
    findings: tuple[Finding, ...] = ()
    for k in range(first, i + 1):
        rng = _rng(seed, name, split, k, 2)
        kept = tuple(f for f in findings if ILLNESSES[f.name].chronic or DEVICES.get(f.kind, {}).get("chronic"))
        target = institution.one_of[k % len(institution.one_of)] if institution.one_of else None
        findings, bedside = _illness(institution, body, kept, target, rng)
    views = ("AP",) if bedside else ("PA", "LATERAL") if rng.random() < institution.lateral else ("PA",)
    case = Case(body, findings, int(rng.integers(2**31)))
    return Visit(f"{name}-{split}-{i:06d}", f"{name}-{split}-p{first:06d}", split, case, views, follow_up=i > first)


def _illness(institution: Institution, body: Body, kept: tuple[Finding, ...], target: str | None,
             rng: np.random.Generator) -> tuple[tuple[Finding, ...], bool]:  # fmt: skip
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


def _which(institution: Institution, body: Body, bedside: bool, old: Sequence[str], target: str | None,
           rng: np.random.Generator) -> list[str]:  # fmt: skip
    """Names of a sick patient's findings, drawn from causes to effects. `old`: those still there."""
    column = POPULATIONS.index(institution.population)
    present: list[str] = []
    for name, illness in ILLNESSES.items():
        percent = illness.percent[column]
        odds = percent / (100 - percent) * institution.emphasis.get(name, 1)
        odds *= illness.bedside if bedside else 1
        odds *= illness.old if body.age > 65 else 1
        for other in present:
            odds *= ILLNESSES[other].effects.get(name, 1)
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
    sides, zones = ILLNESSES[name].sides, ILLNESSES[name].zones
    side = SIDES[int(rng.choice(3, p=sides))] if sides else None
    zone = ZONES[int(rng.choice(3, p=zones))] if zones else None
    if name == "Fracture" and rng.random() < CLAVICLE:
        return [Finding(name, side, None, severity, "clavicle")]
    return [Finding(name, side, zone, severity, "rib" if name == "Fracture" else None)]


def _devices(bedside: bool, rng: np.random.Generator) -> list[Finding]:
    devices: list[Finding] = []
    while not devices:
        for kind, device in DEVICES.items():
            if rng.random() < device["in_bed" if bedside else "standing"]:
                side = SIDES[int(rng.choice(2, p=device["sides"]))] if "sides" in device else None
                devices.append(Finding("Support Devices", side, None, 2, kind))
    return devices


_TEXT = pa.string()
_FINDING = pa.struct({"name": _TEXT, "side": _TEXT, "zone": _TEXT, "severity": pa.int8(), "kind": _TEXT})
_MASK = pa.struct({"finding_index": pa.int16(), "view": pa.string(), "png": pa.binary()})
TRUTH = pa.schema({"study_id": pa.string(), "findings": pa.list_(_FINDING), "masks": pa.list_(_MASK)})
"""truth.parquet, a row per study in the order of the table: what is there and where it shows, view by view.
Masks are kept for every split: drawing and storing them costs about 1 % of a study's time."""
CHUNK = 32  # studies a process draws at once
PATIENCE = 3600  # seconds it may take for them


def generate(name: str, sizes: Mapping[str, int], folder: str | Path, *, seed: int = 0, image_size: int = 128,
             workers: int | None = None, progress: bool = True) -> Path:  # fmt: skip
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
    calls = [(name, places[k:k + CHUNK], seed, image_size) for k in range(0, len(places), CHUNK)]
    about = {"institution": name, "seed": seed, "sizes": dict(sizes), "image_size": image_size,
             "description": f"Phantom. {INSTITUTIONS[name].about}"}  # fmt: skip
    with files.atomic_folder(folder) as whole, files.writing(folder):
        with (
            progress_bar(total=len(places), desc=name, unit="study", shown=progress) as bar,
            pq.ParquetWriter(whole / "truth.parquet", TRUTH) as truth,
            _drawn(calls, min(workers or os.cpu_count() or 1, len(calls))) as drawn,
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
        if isinstance(chunk, Failure):
            raise InputError(f"a phantom could not be drawn: its process {chunk.reason}; workers=1 tells more")
        truth.write_table(pa.Table.from_pylist([known for _, known in chunk], schema=TRUTH))
        bar.update(len(chunk))
        yield from (row for row, _ in chunk)


@contextmanager
def _drawn(calls: Sequence[tuple], workers: int) -> Iterator[Iterator[list]]:
    """The drawn chunks in order; one worker is this process."""
    if workers <= 1:
        yield itertools.starmap(_draw, calls)
        return
    with in_order(_draw, calls, workers, PATIENCE) as drawn:
        yield drawn


def _draw(name: str, places: Sequence[tuple[str, int]], seed: int, size: int) -> list[tuple[dict, dict]]:
    """(row, truth) of some studies."""
    return [study(name, split, i, seed=seed, image_size=size) for split, i in places]


def study(name: str, split: str, i: int, *, seed: int = 0, image_size: int = 128) -> tuple[dict, dict]:
    """One study: its row of the study table and its row of `truth.parquet`."""
    seen = visit(name, split, i, seed)
    films = render_study(seen.case, seen.views, SCANNERS[INSTITUTIONS[name].scanner], image_size, masks=True)
    pixels = [{"bytes": images.encode_gray(film.pixels), "path": None} for film in films]
    masks = [{"finding_index": k, "view": film.view, "png": images.encode_gray(mask.astype(np.uint8) * 255, "png")}
             for film in films for k, mask in film.masks.items()]  # fmt: skip
    truth = {"study_id": seen.study_id, "findings": [asdict(f) for f in seen.case.findings], "masks": masks}
    return record(name, split, i, seed) | {"images": pixels}, truth


def record(name: str, split: str, i: int, seed: int = 0) -> dict[str, Any]:
    """A study's row of the study table without its films, which take nearly all of the time."""
    institution, seen, rng = INSTITUTIONS[name], visit(name, split, i, seed), _rng(seed, name, split, i, 3)
    positive, negative, uncertain = given_labels(institution, seen.case, rng)
    return {
        "study_id": seen.study_id, "patient_id": seen.patient_id, "source": name, "split": split,
        "views": list(seen.views), **_texts(institution, seen, rng),
        "positive": positive, "negative": negative, "uncertain": uncertain,
        "sex": seen.case.body.sex, "age": round(seen.case.body.age),
    }  # fmt: skip


def _texts(institution: Institution, seen: Visit, rng: np.random.Generator) -> dict[str, Any]:
    """The report sections that reached the archive, each with a paraphrase."""
    if institution.sections is None:
        return {}
    habits, parts = zip(*institution.habits.items(), strict=True)
    habit = habits[int(rng.choice(len(habits), p=parts))]
    lost = int(rng.choice(3, p=institution.sections))
    texts = {}
    for section, plan, missing in (("findings", reports.plan_findings, 2), ("impression", reports.plan_impression, 1)):
        content = plan(seen.case, habit, rng, seen.views, seen.follow_up)
        text, other = reports.word(content, habit, rng), reports.paraphrase(content, habit, rng)
        texts |= {section: text, f"{section}_aug": [other]} if lost != missing else {}
    return texts


def _rng(seed: int, name: str, split: str, i: int, purpose: int) -> np.random.Generator:
    """A stream of its own for each institution, split, study and purpose."""
    return np.random.default_rng([seed, zlib.crc32(name.encode()), zlib.crc32(split.encode()), i, purpose])
