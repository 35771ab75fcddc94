"""What the two CheXpert sources and MIMIC-CXR share: CheXpert's paths, its label values, CheXpert Plus' reports."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cxrclip.data.sources.intake import Cells, Intake, Unusable, read_table, records, to_text
from cxrclip.errors import InputError

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
PLUS = "df_chexpert_plus*.csv"
STATES = {"1": "positive", "0": "negative", "-1": "uncertain", "": ""}
LATERAL, FRONTAL = "LATERAL", "FRONTAL"
_PLACE = re.compile(r"(?:^|/)(train|valid)/(patient\d+)/(study\d+)/(view\d+_(?:frontal|lateral))\.(?:jpg|png)$")


class Place(NamedTuple):
    """Where a film stands: train/patient00001/study1/view1_frontal.jpg."""

    split: str
    patient: str
    study: str
    view: str

    @property
    def study_id(self) -> str:
        return f"{self.patient}/{self.study}"


def place_of(column: str, cell: str) -> Place:
    """Read a path of v1.0, v1.0-small or CheXpert Plus, or one rewritten by hand; only its end matters."""
    found = _PLACE.search(cell)
    if not found:
        raise Unusable(column, f"{cell!r} does not end in train/patient00001/study1/view1_frontal.jpg or the like")
    return Place(*found.groups())


def patients_of(paths: pd.Series) -> pd.Series:
    """The patients of a column of paths; None where a path is none of CheXpert's."""
    return paths.str.extract(_PLACE.pattern, expand=True)[1]


def view_of(cells: Cells) -> str:
    """AP or PA of a frontal film where it is known, else FRONTAL or LATERAL."""
    side, projection = cells["Frontal/Lateral"], cells["AP/PA"]
    if side not in ("Frontal", "Lateral"):
        raise Unusable("Frontal/Lateral", f"{side!r} is not Frontal or Lateral")
    if projection not in ("AP", "PA", "LL", "RL", ""):
        raise Unusable("AP/PA", f"{projection!r} is not AP, PA, LL, RL or empty")
    if side == "Lateral":
        return LATERAL
    return projection if projection in ("AP", "PA") else FRONTAL  # 17 frontal films of v1.0 are called LL or RL


def labels_of(cells: Cells, names: Sequence[str] = FINDINGS) -> dict[str, tuple[str, ...]]:
    """Positive, negative and uncertain names of one row of CheXpert's label columns."""
    said: dict[str, list[str]] = {"positive": [], "negative": [], "uncertain": []}
    for name in names:
        cell = cells[name].removesuffix(".0")
        if cell not in STATES:
            raise Unusable(name, f"{cells[name]!r} is none of 1 (positive), 0 (negative), -1 (uncertain) or empty")
        if cell:
            said[STATES[cell]].append(name)
    return {state: tuple(listed) for state, listed in said.items()}


def homes(root: Path) -> list[Path]:
    """The folders that may hold tables and films: `root`, and what the release unpacks into it."""
    return [root, *sorted(path for path in root.glob("CheXpert-v1.0*") if path.is_dir())]


def label_table(root: Path, name: str) -> tuple[Path, pd.DataFrame] | None:
    """Path and rows of train.csv or valid.csv, with the columns "film" (path or "") and "study"; None without it."""
    path = next((home / name for home in homes(root) if (home / name).is_file()), None)
    if path is None:
        return None
    table = read_table(path, COLUMNS, only=True)
    table["film"] = films_of(root, table["Path"])
    table["study"] = table["Path"].str.rpartition("/")[0]
    return path, table


def films_of(root: Path, paths: pd.Series) -> list[str]:
    """The file of each path, "" where it is not there.

    The release comes as one folder, or in batches ("CheXpert-v1.0 batch 2 (train 1)"), some without train/.
    """
    bases = [str(home) for home in homes(root)]

    def film(cell: str) -> str:
        found = _PLACE.search(cell)
        if not found:
            return ""
        end = cell[found.start(1) :]
        names = (f"{base}/{part}" for base in bases for part in (end, end.partition("/")[2]))
        return next((name for name in names if os.path.isfile(name)), "")

    return [film(cell) for cell in paths]


def plus_reports(path: Path, intake: Intake, known: set[str]) -> dict[str, tuple[str | None, str | None]]:
    """Study -> (findings, impression) of CheXpert Plus (Chambon et al., 2024), the first row of each study.

    Args:
        path: df_chexpert_plus_240401.csv.
        intake: rows that cannot be used, or that name none of the `known` studies, are set aside there.
    """
    table = read_table(path, ("path_to_image", "section_findings", "section_impression"), only=True)

    def sections(cells: Cells) -> tuple[str, tuple[str | None, str | None]]:
        study = place_of("path_to_image", cells["path_to_image"]).study_id
        if study not in known:
            raise Unusable("path_to_image", f"{cells['path_to_image']!r} is in neither train.csv nor valid.csv")
        return study, tuple(to_text(name, cells[name]) for name in ("section_findings", "section_impression"))

    reports: dict[str, tuple[str | None, str | None]] = {}
    for _, (study, texts) in intake.usable(records(table), sections, path.name):
        reports.setdefault(study, texts)
    return reports


def reports_path(root: Path, reports: str | None) -> Path:
    """The CheXpert Plus table, by name or found."""
    if reports:
        return root / reports
    found = sorted(path for home in homes(root) for path in home.glob(PLUS))
    if not found:
        raise InputError(f"{root}: no {PLUS}; download CheXpert Plus, or leave the reports out")
    return found[-1]
