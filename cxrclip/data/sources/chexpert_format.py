"""What the two CheXpert sources and MIMIC-CXR share: CheXpert's paths, its label values, CheXpert Plus' reports."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from cxrclip.data.sources.prepare import FRONTAL, Film, Intake
from cxrclip.data.sources.tables import Cells, Unusable, film_at, one_of, records, to_age, to_sex, to_text
from cxrclip.errors import InputError

RELEASE = "https://stanfordmlgroup.github.io/competitions/chexpert, Stanford research use agreement"
FINDINGS = (
    "No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema", "Consolidation",
    "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture", "Support Devices",
)
COLUMNS = ("Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *FINDINGS)
PLUS = "df_chexpert_plus*.csv"
STATES = {"1": "positive", "0": "negative", "-1": "uncertain", "": ""}
Sections = tuple[str | None, str | None]
"""Findings and impression of a report."""
_PLACE = re.compile(
    r"(?:^|/)(train|valid)/((patient\d+)/study\d+)/(view\d+_(?:frontal|lateral))\.(?:jpe?g|png|dcm|dicom)$")


class Place(NamedTuple):
    """Where a film stands: train/patient00001/study1/view1_frontal.jpg."""

    split: str
    study_id: str
    patient: str
    view: str


def place_of(column: str, cell: str) -> Place:
    """Read a path of v1.0, v1.0-small or CheXpert Plus, or one rewritten by hand; only its end matters."""
    match = _PLACE.search(cell)
    if not match:
        raise Unusable(column, f"{cell!r} does not end in train/patient00001/study1/view1_frontal.jpg or the like")
    return Place(*match.groups())


def patients_of(paths: pd.Series) -> pd.Series:
    """The patients of a column of paths; None where a path is none of CheXpert's."""
    return paths.str.extract(_PLACE.pattern, expand=True)[2]


def labels_of(cells: Cells) -> dict[str, tuple[str, ...]]:
    """Positive, negative and uncertain names of one row of CheXpert's label columns."""
    labels: dict[str, tuple[str, ...]] = {"positive": (), "negative": (), "uncertain": ()}
    for name in FINDINGS:
        cell = cells[name]
        if cell not in STATES:
            raise Unusable(name, f"{cell!r} is none of 1 (positive), 0 (negative), -1 (uncertain) or empty")
        if cell:
            labels[STATES[cell]] += (name,)
    return labels


def film_row(cells: Cells) -> tuple[Place, Film | None, dict[str, Any]]:
    """Where a film stands, the film (None: not downloaded), and what its study says: labels, sex and age.

    The view is AP or PA of a frontal film where it is known, else FRONTAL or LATERAL.
    """
    place = place_of("Path", cells["Path"])
    view = one_of(("Frontal", "Lateral"), "Frontal or Lateral", cells, "Frontal/Lateral").upper()
    projection = one_of(("AP", "PA", "LL", "RL", ""), "AP, PA, LL, RL or empty", cells, "AP/PA")
    if view == FRONTAL and projection in ("AP", "PA"):  # 17 frontal films of v1.0 are called LL or RL
        view = projection
    study = labels_of(cells) | {"sex": to_sex(cells, "Sex"), "age": to_age(cells, "Age")}
    return place, Film(Path(cells["film"]), view) if cells["film"] else None, study


def homes(root: Path) -> list[Path]:
    """The folders that may hold tables and films: `root`, and what the release unpacks into it."""
    return [root, *sorted(path for path in root.glob("CheXpert-v1.0*") if path.is_dir())]


def label_tables(intake: Intake, *names: str) -> list[tuple[Path, pd.DataFrame]]:
    """Path and rows of train.csv, and of the other tables named that are there.

    The column "film" is added (path, "" where it is not there), and "study" (patient00001/study1).

    Raises:
        InputError: there is no train.csv.
    """
    paths = {name: home / name for name in ("train.csv", *names) for home in reversed(homes(intake.root))
             if (home / name).is_file()}
    if "train.csv" not in paths:
        raise InputError(f"{intake.root}: no train.csv here nor in CheXpert-v1.0*/; give the folder of the download")
    tables = [(path, intake.read_table(path, COLUMNS)) for path in paths.values()]
    for _, table in tables:
        table["film"] = films_of(intake.root, table["Path"])
        table["study"] = ["/".join(path.split("/")[-3:-1]) for path in table["Path"]]
    return tables


def films_of(root: Path, paths: pd.Series) -> list[str]:
    """The file of each path, "" where it is not there.

    The release comes as one folder, or in batches ("CheXpert-v1.0 batch 2 (train 1)"), some without train/.
    """
    bases = [str(home) for home in homes(root)]
    films = []
    for cell in paths:
        match = _PLACE.search(cell)
        end = cell[match.start(1) :] if match else ""
        names = (f"{base}/{part}" for base in bases for part in (end, end.partition("/")[2]) if match)
        films.append(next(filter(None, map(film_at, names)), ""))
    return films


def plus_reports(intake: Intake, reports: str, known: Iterable[str]) -> dict[str, Sections]:
    """Study -> sections by CheXpert Plus (Chambon et al., 2024), of the first row of each study.

    Args:
        intake: rows that cannot be used, or that name none of the `known` studies, are set aside there.
        reports: path of df_chexpert_plus_240401.csv, absolute or relative to the root, or "auto" to look for it there.
        known: the column "study" of the tables of labels.
    """
    paths = [intake.root / reports]
    if reports == "auto":
        paths = sorted(path for home in homes(intake.root) for path in home.glob(PLUS))
    if not paths:
        raise InputError(f"{intake.root}: no {PLUS}; download CheXpert Plus, or leave the reports out")
    columns = ("section_findings", "section_impression")
    table, known = intake.read_table(paths[-1], ("path_to_image", *columns)), set(known)

    def sections(cells: Cells) -> tuple[str, Sections]:
        study = place_of("path_to_image", cells["path_to_image"]).study_id
        if study not in known:
            raise Unusable("path_to_image", f"{cells['path_to_image']!r} is in neither train.csv nor valid.csv")
        return study, tuple(to_text(name, cells[name]) for name in columns)

    texts: dict[str, Sections] = {}
    for _, (study, text) in intake.usable(records(table), sections, paths[-1].name):
        texts.setdefault(study, text)
    return texts
