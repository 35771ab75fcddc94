"""CheXpert: 224,316 films of 65,240 patients, labelled by a rule-based reader of their reports.

Release: https://stanfordmlgroup.github.io/competitions/chexpert (v1.0, or v1.0-small), after registration at
Stanford, for research only, not to be passed on. Cite Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with
Uncertainty Labels and Expert Comparison", AAAI 2019. The reports came later, with CheXpert Plus (Chambon et al., 2024).

One study is one row, with all its films. Labels are positive, negative or uncertain; what is blank was not mentioned.
A study where everything is blank (11 of v1.0, 12 films) would say nothing: it is set aside, unless it has a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources import chexpert5x200
from cxrclip.data.sources.chexpert_format import (
    FINDINGS,
    RELEASE,
    Sections,
    label_table,
    labels_of,
    patients_of,
    place_of,
    plus_reports,
    train_table,
    view_of,
)
from cxrclip.data.sources.prepare import Film, Intake, Source, Study
from cxrclip.data.sources.tables import Cells, Rows, Unusable, grouped, to_age, to_sex
from cxrclip.errors import InputError

EXPECTED = {
    "rows of train.csv": 223_414, "patients of train.csv": 64_540, "rows of valid.csv": 234,
    "patients of valid.csv": 200, "images": 223_648,
}
# What is left of train.csv without the patients of a test list; the second was computed from the public label table.
REMAINING = {
    "gloria": {"rows left": 216_478, "patients left": 63_574},
    "mgca": {"rows left": 216_180, "patients left": 63_571},
}
SHARED = ("Sex", "Age", *FINDINGS)  # what the films of one study have in common
Tables = list[tuple[Path, pd.DataFrame]]


def read(intake: Intake, *, test_list: str | None = None, reports: str | None = None) -> None:
    """Read the folder with train.csv and valid.csv, or the one above it: these two tables are the splits.

    Args:
        test_list: whose patients are left out of train, as the paper does: the path of GLoRIA's chexpert_5x200.csv
            (absolute, or relative to `root`), or "mgca", the list drawn by MGCA's rule. None takes
            chexpert_5x200.csv where it lies in `root`, else nothing is left out.
        reports: CheXpert Plus' table (path as above, or "auto" to find it in `root`): its findings and impressions
            are added. None leaves them out: the paper uses CheXpert as label data, and a study with a report is
            trained on its report.
    """
    train = train_table(intake.root)
    tables = [train] + [table for table in (label_table(intake.root, "valid.csv"),) if table]
    if not any((table["film"] != "").any() for _, table in tables):
        raise InputError(f"{intake.root}: none of the {len(train[1]):,} listed films is here; unpack train/ and valid/")
    rule, removed = _test_patients(intake.root, train, test_list)
    keep = ~patients_of(train[1]["Path"]).isin(removed)
    intake.file = train[0].name
    intake.count(EXPECTED | REMAINING.get(rule, {}), counts(tables, keep, bool(rule)))
    intake.facts |= {"test_list": rule, "test_patients_removed": len(removed), "not_downloaded": 0}
    intake.facts["reports"] = "CheXpert Plus" if reports else None
    listed = (study for _, table in tables for study in table["study"])
    texts = plus_reports(intake, reports, listed) if reports else {}
    for path, table in [(train[0], train[1][keep]), *tables[1:]]:
        intake.take(grouped(table, "study"), partial(_study, file=path, intake=intake, texts=texts), path.name)


SOURCE = Source("chexpert", "the CheXpert download, with train.csv", read, RELEASE)


def _test_patients(root: Path, train: tuple[Path, pd.DataFrame], test_list: str | None) -> tuple[str, set[str]]:
    """By which rule patients are left out of train ("gloria", "mgca" or ""), and which."""
    if test_list == "mgca":
        return "mgca", set(patients_of(chexpert5x200.mgca_list(*train)["Path"]))
    path = chexpert5x200.find_list(root, test_list)
    return ("gloria", set(patients_of(chexpert5x200.read_list(path)["Path"]))) if path else ("", set())


def counts(tables: Tables, keep: pd.Series, listed: bool) -> dict[str, int]:
    """The counts of `EXPECTED` and, where patients are `listed` for removal, `REMAINING` in this download."""
    measured = {}
    for path, table in tables:
        patients = patients_of(table["Path"]).nunique()
        measured |= {f"rows of {path.name}": len(table), f"patients of {path.name}": patients}
    measured["images"] = sum(int((table["film"] != "").sum()) for _, table in tables)
    if listed:
        left = tables[0][1][keep]
        measured |= {"rows left": len(left), "patients left": patients_of(left["Path"]).nunique()}
    return measured


def _film(cells: Cells, split: str) -> tuple[str, Film | None]:
    place = place_of("Path", cells["Path"])
    if place.split != split:
        raise Unusable("Path", f"{cells['Path']!r} stands in {split}.csv")
    _labels_sex_age(cells)  # a row that cannot be read is no film of the study
    view = view_of(cells)
    return place.view, Film(Path(cells["film"]), view) if cells["film"] else None


def _labels_sex_age(cells: Cells) -> dict:
    return labels_of(cells) | {"sex": to_sex("Sex", cells["Sex"]), "age": to_age("Age", cells["Age"])}


def _study(number: int, group: Rows, *, file: Path, intake: Intake, texts: Mapping[str, Sections]) -> Study | None:
    parse = partial(_film, split=file.stem)
    films, first = intake.usable_films(group, parse, unique="Path", shared=SHARED, file=file.name)
    if not films:
        return None
    place, shared = place_of("Path", first["Path"]), _labels_sex_age(first)
    findings, impression = texts.get(place.study_id, (None, None))
    if not (findings or impression or shared["positive"] or shared["negative"] or shared["uncertain"]):
        raise Unusable("No Finding to Support Devices", "no label is set and there is no report: it would say nothing")
    return Study(row=number, study_id=place.study_id, patient_id=place.patient, films=films, split=place.split,
                 findings=findings, impression=impression, **shared, file=file.name)
