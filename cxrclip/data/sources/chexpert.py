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
from typing import Any, NamedTuple, Unpack

import pandas as pd

from cxrclip.data.sources import chexpert5x200
from cxrclip.data.sources.chexpert_format import (
    FINDINGS,
    Place,
    label_table,
    labels_of,
    patients_of,
    place_of,
    plus_reports,
    reports_path,
    view_of,
)
from cxrclip.data.sources.counts import check_counts
from cxrclip.data.sources.intake import (
    Cells,
    Film,
    Intake,
    Rows,
    Study,
    Unusable,
    Writing,
    existing,
    grouped,
    to_age,
    to_sex,
)
from cxrclip.errors import InputError

RELEASE = "https://stanfordmlgroup.github.io/competitions/chexpert, Stanford research use agreement"
EXPECTED = {
    "rows of train.csv": 223_414,
    "patients of train.csv": 64_540,
    "rows of valid.csv": 234,
    "patients of valid.csv": 200,
    "images": 223_648,
}
# What is left of train.csv without the patients of a test list; the second was computed from the public label table.
REMAINING = {
    "gloria": {"rows left": 216_478, "patients left": 63_574},
    "mgca": {"rows left": 216_180, "patients left": 63_571},
}
SHARED = ("Sex", "Age", *FINDINGS)  # what the films of one study have in common
Sections = tuple[str | None, str | None]


class _Row(NamedTuple):
    """One film of train.csv or valid.csv."""

    place: Place
    film: Film | None
    shared: dict[str, Any]


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    test_list: str | None = None,
    reports: str | None = None,
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Turn a CheXpert download into a study table: train.csv is the split train, valid.csv the split valid.

    Args:
        root: the folder with train.csv and valid.csv, or the one above it.
        out: study folder to write.
        test_list: whose patients are left out of train, as the paper does: the path of GLoRIA's chexpert_5x200.csv
            (absolute, or relative to `root`), or "mgca", the list drawn by MGCA's rule. None takes
            chexpert_5x200.csv where it lies in `root`, else nothing is left out.
        reports: CheXpert Plus' table (path as above, or "auto" to find it in `root`): its findings and impressions
            are added. None leaves them out: the paper uses CheXpert as label data, and a study with a report is
            trained on its report.
        allow_partial: go on where the counts are not those of the full release (`EXPECTED`, `REMAINING`). Films
            which are not there then count as not downloaded.
        progress: show the counts and a bar.
        **writing: image_size, max_rejected, workers: see `Intake.write`.

    Returns:
        `cxrclip.studies.summary` of the folder.

    Raises:
        InputError: as `Intake.write`; also a missing table or column, a list that is not 5x200, or a partial download.
    """
    root = existing(root, "the CheXpert download, with train.csv")
    intake = _gather(root, test_list, reports, allow_partial, progress)  # the tables it read are free again
    return intake.write(out, {}, progress=progress, **writing)


def _gather(root: Path, test_list: str | None, reports: str | None, allow_partial: bool, progress: bool) -> Intake:
    """Read the tables and reports: every study of the download, without its films."""
    if (train := label_table(root, "train.csv")) is None:
        raise InputError(f"{root}: no train.csv here nor in CheXpert-v1.0*/; give the folder of the download")
    tables = [train] + [table for table in (label_table(root, "valid.csv"),) if table]
    if not any((table["film"] != "").any() for _, table in tables):
        raise InputError(f"{root}: none of the {len(train[1]):,} listed films is here; unpack train/ and valid/")
    rule, removed = _test_patients(root, train, test_list)
    keep = ~patients_of(train[1]["Path"]).isin(removed)
    expected = EXPECTED | REMAINING.get(rule, {})
    counts = check_counts("chexpert", root, expected, _found(tables, keep, bool(rule)), allow_partial=allow_partial,
                          progress=progress)
    facts = {"release": RELEASE, "counts": counts, "test_list": rule, "test_patients_removed": len(removed)}
    facts |= {"not_downloaded": 0, "reports": "CheXpert Plus" if reports else None}
    intake = Intake("chexpert", root, train[0].name, facts)
    texts: dict[str, Sections] = {}
    if reports:
        known = {"/".join(study.split("/")[-2:]) for _, table in tables for study in table["study"]}
        texts = plus_reports(reports_path(root, None if reports == "auto" else reports), intake, known)
    for path, table in [(train[0], train[1][keep]), *tables[1:]]:
        parse = partial(_study, file=path, intake=intake, texts=texts)
        intake.take_groups(grouped(table, "study"), parse, path.name)
    return intake


def _test_patients(root: Path, train: tuple[Path, pd.DataFrame], test_list: str | None) -> tuple[str, set[str]]:
    """By which rule patients are left out of train ("gloria", "mgca" or ""), and which."""
    if test_list == "mgca":
        return "mgca", set(patients_of(chexpert5x200.mgca_list(*train)["Path"]))
    path = chexpert5x200.find_list(root, test_list)
    return ("gloria", set(patients_of(chexpert5x200.read_list(path)["Path"]))) if path else ("", set())


def _found(tables: list[tuple[Path, pd.DataFrame]], keep: pd.Series, listed: bool) -> dict[str, int]:
    """The counts of `EXPECTED` and `REMAINING` in this download."""
    found = {}
    for path, table in tables:
        found |= {f"rows of {path.name}": len(table), f"patients of {path.name}": patients_of(table["Path"]).nunique()}
    found["images"] = sum(int((table["film"] != "").sum()) for _, table in tables)
    if listed:
        left = tables[0][1][keep]
        found |= {"rows left": len(left), "patients left": patients_of(left["Path"]).nunique()}
    return found


def _row(cells: Cells, split: str) -> _Row:
    place = place_of("Path", cells["Path"])
    if place.split != split:
        raise Unusable("Path", f"{cells['Path']!r} stands in {split}.csv")
    shared = labels_of(cells) | {"sex": to_sex("Sex", cells["Sex"]), "age": to_age("Age", cells["Age"])}
    view = view_of(cells)
    return _Row(place, Film(Path(cells["film"]), view) if cells["film"] else None, shared)


def _study(number: int, group: Rows, *, file: Path, intake: Intake, texts: Mapping[str, Sections]) -> Study | None:
    rows = intake.usable(group, partial(_row, split=file.stem), file.name)
    films, seen, cells = [], {}, dict(group)
    for row, read in rows:
        first = rows[0][0]
        if seen.setdefault(read.place.view, row) != row:
            reason = f"{read.place.view} stands already in row {seen[read.place.view]}; the first is kept"
            intake.set_aside(row, "Path", reason, file.name)
        elif column := next((name for name in SHARED if cells[row][name] != cells[first][name]), ""):
            intake.set_aside(row, column, f"differs from row {first}, a film of the same study", file.name)
        elif read.film is None:
            intake.facts["not_downloaded"] += 1
        else:
            films.append(read.film)
    if not films:
        return None
    place, shared = rows[0][1].place, rows[0][1].shared
    findings, impression = texts.get(place.study_id, (None, None))
    if not (findings or impression or shared["positive"] or shared["negative"] or shared["uncertain"]):
        raise Unusable("No Finding to Support Devices", "no label is set and there is no report: it would say nothing")
    return Study(
        row=number,
        study_id=place.study_id,
        patient_id=place.patient,
        films=films,
        split=place.split,
        findings=findings,
        impression=impression,
        **shared,
        file=file.name,
    )
