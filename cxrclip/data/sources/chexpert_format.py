"""What the two CheXpert sources and MIMIC-CXR share: CheXpert's paths, its label values, CheXpert Plus' reports."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cxrclip.data.sources.prepare import Intake
from cxrclip.data.sources.tables import Cells, Unusable, read_table, records, to_text
from cxrclip.errors import InputError

RELEASE = "https://stanfordmlgroup.github.io/competitions/chexpert, Stanford research use agreement"
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
PLUS = "df_chexpert_plus*.csv"
STATES = {"1": "positive", "0": "negative", "-1": "uncertain", "": ""}
LATERAL, FRONTAL = "LATERAL", "FRONTAL"
Sections = tuple[str | None, str | None]
"""Findings and impression of a report."""
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
    match = _PLACE.search(cell)
    if not match:
        raise Unusable(column, f"{cell!r} does not end in train/patient00001/study1/view1_frontal.jpg or the like")
    return Place(*match.groups())


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


def labels_of(cells: Cells) -> dict[str, tuple[str, ...]]:
    """Positive, negative and uncertain names of one row of CheXpert's label columns."""
    labels: dict[str, list[str]] = {"positive": [], "negative": [], "uncertain": []}
    for name in FINDINGS:
        cell = cells[name].removesuffix(".0")
        if cell not in STATES:
            raise Unusable(name, f"{cells[name]!r} is none of 1 (positive), 0 (negative), -1 (uncertain) or empty")
        if cell:
            labels[STATES[cell]].append(name)
    return {state: tuple(names) for state, names in labels.items()}


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


def train_table(root: Path) -> tuple[Path, pd.DataFrame]:
    """As `label_table` of train.csv; raises InputError without it."""
    if (train := label_table(root, "train.csv")) is None:
        raise InputError(f"{root}: no train.csv here nor in CheXpert-v1.0*/; give the folder of the download")
    return train


def films_of(root: Path, paths: pd.Series) -> list[str]:
    """The file of each path, "" where it is not there.

    The release comes as one folder, or in batches ("CheXpert-v1.0 batch 2 (train 1)"), some without train/.
    """
    bases = [str(home) for home in homes(root)]

    def film(cell: str) -> str:
        match = _PLACE.search(cell)
        if not match:
            return ""
        end = cell[match.start(1) :]
        names = (f"{base}/{part}" for base in bases for part in (end, end.partition("/")[2]))
        return next((name for name in names if os.path.isfile(name)), "")

    return [film(cell) for cell in paths]


def plus_reports(intake: Intake, reports: str, studies: Iterable[str]) -> dict[str, Sections]:
    """Study -> sections by CheXpert Plus (Chambon et al., 2024), of the first row of each study.

    Args:
        intake: rows that cannot be used, or that name none of the `studies`, are set aside there.
        reports: path of df_chexpert_plus_240401.csv, absolute or relative to the root, or "auto" to look for it there.
        studies: the column "study" of the tables of labels.
    """
    known = {"/".join(study.split("/")[-2:]) for study in studies}
    path = _plus_path(intake.root) if reports == "auto" else intake.root / reports
    table = read_table(path, ("path_to_image", "section_findings", "section_impression"), only=True)

    def sections(cells: Cells) -> tuple[str, Sections]:
        study = place_of("path_to_image", cells["path_to_image"]).study_id
        if study not in known:
            raise Unusable("path_to_image", f"{cells['path_to_image']!r} is in neither train.csv nor valid.csv")
        return study, tuple(to_text(name, cells[name]) for name in ("section_findings", "section_impression"))

    texts: dict[str, Sections] = {}
    for _, (study, text) in intake.usable(records(table), sections, path.name):
        texts.setdefault(study, text)
    return texts


def _plus_path(root: Path) -> Path:
    paths = sorted(path for home in homes(root) for path in home.glob(PLUS))
    if not paths:
        raise InputError(f"{root}: no {PLUS}; download CheXpert Plus, or leave the reports out")
    return paths[-1]
