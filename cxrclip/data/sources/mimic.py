"""MIMIC-CXR: 377,110 films and 227,835 reports of 65,379 patients of one emergency department.

Release: https://physionet.org/content/mimic-cxr-jpg/ (films as JPEG, tables) and https://physionet.org/content/mimic-cxr/
(reports), after training and with a data use agreement: nothing of it may be passed on, nor sent to a service. Cite
Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest radiographs", 2019.

One study is one row, with all its films, its report and, where the table is there, CheXpert's labels of the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources.chexpert_format import FINDINGS, labels_of
from cxrclip.data.sources.prepare import LATERAL, UNKNOWN, Film, Intake, Source, Study
from cxrclip.data.sources.reports import Reports, open_reports
from cxrclip.data.sources.tables import Cells, Rows, Unusable, film_at, find_one, grouped, one_of, records
from cxrclip.errors import InputError

EXPECTED = {
    "rows": 377_110, "images": 377_110, "studies": 227_835, "patients": 65_379, "reports": 227_835,
    "train images": 368_960, "valid images": 2_991, "test images": 5_159, "train studies": 222_758,
    "valid studies": 1_808, "test studies": 3_269,
}
SPLIT_NAMES = {"train": "train", "validate": "valid", "test": "test"}
VIEWS = {"LL": LATERAL, "": UNKNOWN}  # the rest as written: AP, PA, LATERAL, and rare ones
COLUMNS = ("dicom_id", "subject_id", "study_id", "ViewPosition")  # the first three name the file
_IDS = {
    "dicom_id": re.compile(r"[0-9a-f]{8}(-[0-9a-f]{8}){4}"),
    "subject_id": re.compile(r"1\d{7}"),
    "study_id": re.compile(r"5\d{7}"),
}
Labels = Mapping[str, tuple[str, ...]]


def read(intake: Intake, *, reports: str | None = None, labels: str | None = "chexpert") -> None:
    """Read the folder with mimic-cxr-2.0.0-metadata.csv.gz, -split.csv.gz and files/, or one above it.

    Splits are the official ones. Studies without a report are skipped, and counted.

    Args:
        reports: table of sections, zip file or folder of texts (absolute, or relative to `root`). None looks in `root`
            and beside the tables for mimic_cxr_sectioned.csv, mimic-cxr-reports.zip, mimic-cxr-reports/, and at last
            for the texts among the films (files/p10/.../s*.txt).
        labels: "chexpert" or "negbio", whose table of labels is added where it is there; None leaves them out.
    """
    meta, split = (find_one(intake.root, f"mimic-cxr-*-{kind}.csv*") for kind in ("metadata", "split"))
    for kind, path in (("metadata", meta), ("split", split)):
        intake.need(path, f"no mimic-cxr-2.0.0-{kind}.csv.gz; give the folder of the MIMIC-CXR-JPG download")
    table = intake.read_table(meta, COLUMNS)
    texts = open_reports((intake.root, meta.parent), reports, intake)
    intake.file = meta.name
    intake.facts |= {"reports": texts.where, "labels": labels}
    intake.facts |= dict.fromkeys(("not_downloaded", "without_report", "last_paragraphs", "addenda"), 0)
    table["split"] = _splits(table["dicom_id"], split, intake)
    films = [f"{meta.parent}/{film_name(*ids)}" for ids in zip(*(table[name] for name in COLUMNS[:3]), strict=True)]
    table["film"] = list(map(film_at, films))
    measured = _counts(table, texts)
    intake.need(measured["images"], f"none of the {len(table):,} listed films is here; download them into files/")
    intake.need(measured["reports"], f"no report of the {measured['studies']:,} listed studies is here; download them, "
                                     "or say where they are (reports=...)")
    intake.count(EXPECTED, measured)
    by_study = _labels(labels, set(table["study_id"]), intake)
    intake.take(grouped(table, "study_id"), partial(_study, intake=intake, texts=texts, labels=by_study))


SOURCE = Source("mimic-cxr", "the MIMIC-CXR-JPG download", read,
                "https://physionet.org/content/mimic-cxr-jpg/, PhysioNet Credentialed Health Data License")


def film_name(dicom: str, subject: str, study: str) -> str:
    """files/p10/p10000032/s50414267/02aa804e-bde0afdd-112c0b34-7bc16630-4e384014.jpg"""
    return f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"


def _counts(table: pd.DataFrame, texts: Reports) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    studies = table.drop_duplicates("study_id")
    measured = {"rows": len(table), "images": int((table["film"] != "").sum()), "studies": len(studies)}
    measured["patients"] = table["subject_id"].nunique()
    measured["reports"] = sum(map(texts.has, studies["subject_id"], studies["study_id"]))
    for what, rows in (("images", table), ("studies", studies)):
        measured |= {f"{split} {what}": int((rows["split"] == name).sum()) for name, split in SPLIT_NAMES.items()}
    return measured


def _splits(films: pd.Series, path: Path, intake: Intake) -> list[str]:
    """The official split of each film, "" where it has none; rows that name no film, or one again, are set aside."""
    table, listed, split_of = intake.read_table(path, ("dicom_id", "split")), set(films), {}

    def parse(cells: Cells) -> tuple[str, str]:
        return one_of(listed, f"in {intake.file}", cells, "dicom_id"), cells["split"]

    for row, (dicom, split) in intake.usable(records(table), parse, path.name):
        if split_of.setdefault(dicom, split) != split:
            intake.set_aside(row, "split", f"{dicom} is in {split_of[dicom]} and in {split}", path.name)
    return [split_of.get(dicom, "") for dicom in films]


def _labels(labels: str | None, known: set[str], intake: Intake) -> dict[str, Labels]:
    """Study -> labels; rows with other values than CheXpert's, or that name no study, are set aside."""
    if labels not in ("chexpert", "negbio", None):
        raise InputError(f"mimic-cxr: unknown labels {labels!r}; use chexpert, negbio or none")
    if labels is None or (path := find_one(intake.root, f"mimic-cxr-*-{labels}.csv*")) is None:
        return {}

    def parse(cells: Cells) -> tuple[str, Labels]:
        return one_of(known, f"in {intake.file}", cells, "study_id"), labels_of(cells)

    table = intake.read_table(path, ("study_id", *FINDINGS))
    return intake.first_of(intake.usable(records(table), parse, path.name), "study_id", path.name)


def _film(cells: Cells) -> tuple[str, Film | None]:
    for column, pattern in _IDS.items():
        if not pattern.fullmatch(cells[column]):
            raise Unusable(column, f"{cells[column]!r} is not written as in MIMIC-CXR")
    if cells["split"] not in SPLIT_NAMES:
        raise Unusable("split", f"{cells['split']!r} is not train, validate or test" if cells["split"] else "has none")
    view = VIEWS.get(cells["ViewPosition"], cells["ViewPosition"])
    return cells["dicom_id"], Film(Path(cells["film"]), view) if cells["film"] else None


def _study(group: Rows, intake: Intake, texts: Reports, labels: Mapping[str, Labels]) -> Study | None:
    films, first = intake.usable_films(group, _film, unique="dicom_id", shared=("subject_id", "split"))
    if not films:
        return None
    study, subject = first["study_id"], first["subject_id"]
    if not texts.has(subject, study):
        intake.tally("without_report")
        return None
    text = intake.tallied(texts.read(subject, study))
    if not (text.findings or text.impression):
        raise Unusable("report", "has no FINDINGS, no IMPRESSION and no last paragraph that says something")
    return Study(f"s{study}", f"p{subject}", films, SPLIT_NAMES[first["split"]], text.findings, text.impression,
                 **labels.get(study, {}))
