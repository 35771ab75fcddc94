"""RSNA Pneumonia Detection 2018: 26,684 frontal films of NIH ChestX-ray14, read anew by radiologists.

Release: https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, under the rules of the competition. Cite Shih et
al., "Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of Possible
Pneumonia", Radiology: Artificial Intelligence 1(1), 2019. Only the training films have labels; only they are read.

A film is a patient here. The films come from ChestX-ray14: a model that was trained on it has seen many of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources.dicom import Labels, find_films, take_films
from cxrclip.data.sources.prepare import Intake, Source
from cxrclip.data.sources.splits import gloria_split, split_sizes
from cxrclip.data.sources.tables import Cells, Rows, Unusable, find_one, one_of, read_table, records
from cxrclip.errors import InputError

LABELS, CLASSES, FILMS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
PNEUMONIA, NORMAL = "Pneumonia", "Normal"
# Class -> positive and negative labels. "Normal" is kept apart: a film can be without opacity and not be normal.
MEANING = {
    "Lung Opacity": ([PNEUMONIA], []),
    "No Lung Opacity / Not Normal": ([], [PNEUMONIA]),
    "Normal": ([NORMAL], [PNEUMONIA]),
}
EXPECTED = {
    f"rows of {LABELS}": 30_227, f"rows of {CLASSES}": 30_227, "patients": 26_684, "images": 26_684,
    "Lung Opacity": 6_012, "No Lung Opacity / Not Normal": 11_821, "Normal": 8_851, "split train": 18_678,
    "split valid": 4_003, "split test": 4_003,
}


def read(intake: Intake) -> None:
    """Read the folder with both tables and stage_2_train_images/, or one above it: a patient (a film) is a study.

    Splits are GLoRIA's (`splits.gloria_split`), by all patients listed, whether their film is here or not. View, sex
    and age come from the DICOM header; `dataset.json` counts values that make no sense.
    """
    paths = {name: find_one(intake.root, name) for name in (CLASSES, LABELS)}
    for name, path in paths.items():
        intake.need(path, f"no {name}; give the folder of the RSNA download")
    classes = read_table(paths[CLASSES], ("patientId", "class"), only=True)
    boxes = read_table(paths[LABELS], ("patientId", "Target"), only=True)
    films = find_films(paths[LABELS].parent / FILMS)
    if not films:
        raise InputError(f"{paths[LABELS].parent}: no film is in {FILMS}/; unpack the DICOM files there")
    splits = gloria_split(boxes["patientId"])
    intake.file = CLASSES
    intake.count(EXPECTED, counts(classes, boxes, films, splits))
    targets = _targets(boxes, set(classes["patientId"]), intake)
    take_films(intake, classes, "patientId", partial(_labels, targets=targets), films, splits)


SOURCE = Source("rsna", f"the RSNA download, with {LABELS}", read,
                "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, competition rules")


def counts(
    classes: pd.DataFrame, boxes: pd.DataFrame, films: Mapping[str, Path], splits: Mapping[str, str]
) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    patients = set(boxes["patientId"])
    measured = {f"rows of {LABELS}": len(boxes), f"rows of {CLASSES}": len(classes), "patients": len(patients)}
    measured["images"] = len(patients & films.keys())
    kinds = classes.drop_duplicates("patientId")["class"].value_counts()
    return measured | {name: int(kinds.get(name, 0)) for name in MEANING} | split_sizes(splits)


def _targets(boxes: pd.DataFrame, known: set[str], intake: Intake) -> dict[str, set[str]]:
    """Patient -> targets of the boxes; rows of patients without a class are set aside."""

    def parse(cells: Cells) -> tuple[str, str]:
        return one_of(known, f"in {CLASSES}", cells, "patientId"), one_of(("0", "1"), "0 or 1", cells, "Target")

    targets: dict[str, set[str]] = {}
    for _, (patient, target) in intake.usable(records(boxes), parse, LABELS):
        targets.setdefault(patient, set()).add(target)
    return targets


def _labels(group: Rows, targets: Mapping[str, set[str]]) -> Labels:
    """Of the rows of a patient, one for each box, all of one class."""
    first, cells = group[0]
    patient, kind = cells["patientId"], cells["class"]
    for row, cells in group:
        other = one_of(MEANING, f"one of {', '.join(MEANING)}", cells, "class", row)
        if other != kind:
            raise Unusable("class", f"{patient} is {kind!r} in row {first} and {other!r} here", row=row)
    if patient not in targets:
        raise Unusable("patientId", f"{patient!r} has no usable row in {LABELS}")
    if targets[patient] != {"1" if kind == "Lung Opacity" else "0"}:
        raise Unusable("class", f"{patient} is {kind!r}, which its Target in {LABELS} contradicts")
    return MEANING[kind]
