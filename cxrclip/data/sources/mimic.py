"""MIMIC-CXR: 377,110 films and 227,835 reports of 65,379 patients of one emergency department.

Release: https://physionet.org/content/mimic-cxr-jpg/ (films as JPEG, tables) and https://physionet.org/content/mimic-cxr/
(reports), after training and with a data use agreement: nothing of it may be passed on, nor sent to a service. Cite
Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs", 2019.

One study is one row, with all its films, its report and, where the table is there, CheXpert's labels of the report.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import pandas as pd

from cxrclip.data.sources.chexpert_format import FINDINGS, labels_of
from cxrclip.data.sources.counts import check_counts
from cxrclip.data.sources.intake import (
    UNKNOWN,
    Cells,
    Film,
    Intake,
    Rows,
    Study,
    Unusable,
    Writing,
    existing,
    find_one,
    grouped,
    read_table,
    records,
)
from cxrclip.data.sources.mimic_reports import Reports, open_reports
from cxrclip.data.sources.report_text import Sections
from cxrclip.errors import InputError

RELEASE = "https://physionet.org/content/mimic-cxr-jpg/, PhysioNet Credentialed Health Data License"
EXPECTED = {
    "rows": 377_110,
    "images": 377_110,
    "studies": 227_835,
    "patients": 65_379,
    "reports": 227_835,
    "train images": 368_960,
    "valid images": 2_991,
    "test images": 5_159,
    "train studies": 222_758,
    "valid studies": 1_808,
    "test studies": 3_269,
}
SPLIT_NAMES = {"train": "train", "validate": "valid", "test": "test"}
VIEWS = {"LL": "LATERAL", "": UNKNOWN}  # the rest as written: AP, PA, LATERAL, and rare ones
COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")
_IDS = {
    "dicom_id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"),
    "subject_id": re.compile(r"1\d{7}"),
    "study_id": re.compile(r"5\d{7}"),
}


class _Row(NamedTuple):
    """One film of the metadata table."""

    dicom: str
    subject: str
    split: str
    film: Film | None


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    reports: str | None = None,
    labels: str | None = "chexpert",
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Turn a MIMIC-CXR-JPG download and its reports into a study table, with the official splits.

    Args:
        root: the folder with mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz and files/, or one above it.
        out: study folder to write.
        reports: table of sections, zip file or folder of texts (absolute, or relative to `root`). None looks in `root`
            and beside the tables for mimic_cxr_sectioned.csv, mimic-cxr-reports.zip, mimic-cxr-reports/, and at last
            for the texts among the films (files/p10/.../s*.txt).
        labels: "chexpert" or "negbio", whose table of labels is added where it is there; None leaves them out.
        allow_partial: go on where the counts are not those of the full release (`EXPECTED`). Films and reports which
            are not there then count as not downloaded.
        progress: show the counts and a bar.
        **writing: image_size, max_rejected, workers: see `Intake.write`.

    Returns:
        `cxrclip.studies.summary` of the folder. `dataset.json` also counts studies without a report (skipped), and
        those whose last paragraph serves as impression.

    Raises:
        InputError: as `Intake.write`; also a missing table or column, no film or report at all, or a partial download.
    """
    root = existing(root, "the MIMIC-CXR-JPG download")
    intake = _gather(root, reports, labels, allow_partial, progress)  # the tables it read are free again
    return intake.write(out, {}, progress=progress, **writing)


def _gather(root: Path, reports: str | None, labels: str | None, allow_partial: bool, progress: bool) -> Intake:
    """Read the tables and reports: every study of the download, without its films."""
    meta = _needed(root, "metadata")
    table, texts = read_table(meta, COLUMNS, only=True), open_reports((root, meta.parent), reports)
    facts = {"release": RELEASE, "reports": texts.where, "labels": labels}
    facts |= dict.fromkeys(("not_downloaded", "without_report", "last_paragraphs", "addenda"), 0)
    intake = Intake("mimic-cxr", root, meta.name, facts)
    table["split"] = _splits(table, _needed(root, "split"), intake)
    table["here"] = [os.path.isfile(meta.parent / film_name(*ids)) for ids in _ids(table)]
    found = _found(table, texts)
    if not found["images"]:
        raise InputError(f"{root}: none of the {len(table):,} listed films is here; download them into files/")
    if not found["reports"]:
        raise InputError(f"{root}: no report of the {found['studies']:,} listed studies is here; download them, or say "
                         "where they are (reports=...)")
    facts["counts"] = check_counts("mimic-cxr", root, EXPECTED, found, allow_partial=allow_partial, progress=progress)
    named = _labels(root, labels, set(table["study_id"]), intake)
    parse = partial(_study, folder=meta.parent, intake=intake, texts=texts, labels=named)
    intake.take_groups(grouped(table, "study_id"), parse)
    return intake


def film_name(dicom: str, subject: str, study: str) -> str:
    """files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"""
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"


def _needed(root: Path, kind: str) -> Path:
    path = find_one(root, f"mimic-cxr-*-{kind}.csv*")
    if path is None:
        raise InputError(f"{root}: no mimic-cxr-2.0.0-{kind}.csv.gz; give the folder of the MIMIC-CXR-JPG download")
    return path


def _ids(table: pd.DataFrame) -> zip:
    return zip(table["dicom_id"], table["subject_id"], table["study_id"], strict=True)


def _found(table: pd.DataFrame, texts: Reports) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    studies = table.drop_duplicates("study_id")
    here = sum(texts.has(*ids) for ids in zip(studies["subject_id"], studies["study_id"], strict=True))
    found = {"rows": len(table), "images": int(table["here"].sum()), "studies": len(studies)}
    found |= {"patients": table["subject_id"].nunique(), "reports": here}
    for what, rows in (("images", table), ("studies", studies)):
        found |= {f"{split} {what}": int((rows["split"] == name).sum()) for name, split in SPLIT_NAMES.items()}
    return found


def _splits(table: pd.DataFrame, path: Path, intake: Intake) -> list[str]:
    """The official split of each film, "" where it has none; rows that name no film, or one again, are set aside."""
    splits, listed = read_table(path, ("dicom_id", "split"), only=True), set(table["dicom_id"])
    split_of: dict[str, str] = {}
    for row, (dicom, split) in enumerate(zip(splits["dicom_id"], splits["split"], strict=True), 1):
        if dicom not in listed:
            intake.set_aside(row, "dicom_id", f"{dicom!r} is not in {intake.file}", path.name)
        elif split_of.setdefault(dicom, split) != split:
            intake.set_aside(row, "split", f"{dicom} is in {split_of[dicom]} and in {split}", path.name)
    return [split_of.get(dicom, "") for dicom in table["dicom_id"]]


def _labels(
    root: Path, labels: str | None, known: set[str], intake: Intake
) -> dict[str, Mapping[str, tuple[str, ...]]]:
    """Study -> labels; rows with other values than CheXpert's, or that name no study, are set aside."""
    if labels not in ("chexpert", "negbio", None):
        raise InputError(f"mimic-cxr: unknown labels {labels!r}; use chexpert, negbio or none")
    if labels is None or (path := find_one(root, f"mimic-cxr-*-{labels}.csv*")) is None:
        return {}
    table = read_table(path, ("study_id", *FINDINGS), only=True)

    def parse(cells: Cells) -> tuple[str, Mapping[str, tuple[str, ...]]]:
        if cells["study_id"] not in known:
            raise Unusable("study_id", f"{cells['study_id']!r} is not in {intake.file}")
        return cells["study_id"], labels_of(cells)

    return dict(named for _, named in intake.usable(records(table), parse, path.name))


def _row(cells: Cells, folder: Path) -> _Row:
    for column, pattern in _IDS.items():
        if not pattern.fullmatch(cells[column]):
            raise Unusable(column, f"{cells[column]!r} is not written as in MIMIC-CXR")
    if cells["split"] not in SPLIT_NAMES:
        raise Unusable("split", f"{cells['split']!r} is not train, validate or test" if cells["split"] else "has none")
    view = VIEWS.get(cells["ViewPosition"], cells["ViewPosition"])
    path = folder / film_name(cells["dicom_id"], cells["subject_id"], cells["study_id"])
    film = Film(path, view) if cells["here"] else None
    return _Row(cells["dicom_id"], cells["subject_id"], SPLIT_NAMES[cells["split"]], film)


def _study(number: int, group: Rows, *, folder: Path, intake: Intake, texts: Reports, labels: Mapping) -> Study | None:
    rows = intake.usable(group, partial(_row, folder=folder))
    films, seen = [], {}
    for row, read in rows:
        first, model = rows[0]
        if seen.setdefault(read.dicom, row) != row:
            reason = f"{read.dicom} stands already in row {seen[read.dicom]}; the first is kept"
            intake.set_aside(row, "dicom_id", reason)
        elif (read.subject, read.split) != (model.subject, model.split):
            column = "split" if read.subject == model.subject else "subject_id"
            intake.set_aside(row, column, f"differs from row {first}, a film of the same study")
        elif read.film is None:
            intake.facts["not_downloaded"] += 1
        else:
            films.append(read.film)
    if not films:
        return None
    study, subject, split = group[0][1]["study_id"], rows[0][1].subject, rows[0][1].split
    if not texts.has(subject, study):
        intake.facts["without_report"] += 1
        return None
    said = _counted(texts.read(subject, study), intake)
    named = labels.get(study, {})
    return Study(number, f"s{study}", f"p{subject}", films, split, said.findings, said.impression, **named)


def _counted(said: Sections, intake: Intake) -> Sections:
    """The sections, which must say something; how they were come by is counted."""
    intake.facts["addenda"] += said.addenda > 0
    intake.facts["last_paragraphs"] += said.last_paragraph
    if not (said.findings or said.impression):
        raise Unusable("report", "has no FINDINGS, no IMPRESSION and no last paragraph that says something")
    return said
