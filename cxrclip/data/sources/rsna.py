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
from typing import Any, Unpack

import pandas as pd

from cxrclip.data.sources.counts import check_counts
from cxrclip.data.sources.dicom import described, find_films
from cxrclip.data.sources.intake import Intake, Rows, Study, Unusable, Writing, existing, find_one, grouped, read_table
from cxrclip.data.sources.splits import gloria_split
from cxrclip.errors import InputError

RELEASE = "https://www.kaggle.com/c/rsna-pneumonia-detection-challenge, competition rules"
LABELS, CLASSES, FILMS = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv", "stage_2_train_images"
PNEUMONIA, NORMAL = "Pneumonia", "Normal"
# Class -> positive and negative labels. "Normal" is kept apart: a film can be without opacity and not be normal.
MEANING = {
    "Lung Opacity": ([PNEUMONIA], []),
    "No Lung Opacity / Not Normal": ([], [PNEUMONIA]),
    "Normal": ([NORMAL], [PNEUMONIA]),
}
EXPECTED = {
    f"rows of {LABELS}": 30_227,
    f"rows of {CLASSES}": 30_227,
    "patients": 26_684,
    "images": 26_684,
    "Lung Opacity": 6_012,
    "No Lung Opacity / Not Normal": 11_821,
    "Normal": 8_851,
    "split train": 18_678,
    "split valid": 4_003,
    "split test": 4_003,
}


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Turn an RSNA download into a study table: one patient, that is one film, is one study.

    Splits are GLoRIA's (`splits.gloria_split`), by all patients listed, whether their film is here or not. View, sex
    and age come from the DICOM header, no other field of it is read.

    Args:
        root: the folder with both tables and stage_2_train_images/, or one above it.
        out: study folder to write.
        allow_partial: go on where the counts are not those of the full release (`EXPECTED`). Films which are not
            there then count as not downloaded.
        progress: show the counts and a bar.
        **writing: image_size, max_rejected, workers: see `Intake.write`.

    Returns:
        `cxrclip.studies.summary` of the folder. `dataset.json` also counts header values that make no sense.

    Raises:
        InputError: as `Intake.write`; also a missing table or column, no film at all, or a partial download.
    """
    root = existing(root, f"the RSNA download, with {LABELS}")
    paths = {name: find_one(root, name) for name in (CLASSES, LABELS)}
    if absent := [name for name, path in paths.items() if path is None]:
        raise InputError(f"{root}: no {absent[0]}; give the folder of the RSNA download")
    classes = read_table(paths[CLASSES], ("patientId", "class"), only=True)
    boxes = read_table(paths[LABELS], ("patientId", "Target"), only=True)
    films = find_films(paths[LABELS].parent / FILMS)
    if not films:
        raise InputError(f"{paths[LABELS].parent}: no film is in {FILMS}/; unpack the DICOM files there")
    splits = gloria_split(boxes["patientId"])
    counts = check_counts("rsna", root, EXPECTED, _found(classes, boxes, films, splits), allow_partial=allow_partial,
                          progress=progress)
    facts = {"release": RELEASE, "counts": counts, "not_downloaded": 0, "odd_headers": 0}
    intake = Intake("rsna", root, CLASSES, facts)
    targets = _targets(boxes, set(classes["patientId"]), intake)
    parse = partial(_study, targets=targets, films=films, splits=splits, facts=facts)
    intake.take_groups(grouped(classes, "patientId"), parse)
    return intake.write(out, splits, progress=progress, **writing)


def _found(
    classes: pd.DataFrame, boxes: pd.DataFrame, films: Mapping[str, Path], splits: Mapping[str, str]
) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    patients = set(boxes["patientId"])
    found = {f"rows of {LABELS}": len(boxes), f"rows of {CLASSES}": len(classes), "patients": len(patients)}
    found["images"] = len(patients & films.keys())
    kinds = classes.drop_duplicates("patientId")["class"].value_counts()
    found |= {name: int(kinds.get(name, 0)) for name in MEANING}
    return found | {f"split {name}": list(splits.values()).count(name) for name in ("train", "valid", "test")}


def _targets(boxes: pd.DataFrame, known: set[str], intake: Intake) -> dict[str, set[str]]:
    """Patient -> targets of the boxes; rows of patients without a class are set aside."""
    targets: dict[str, set[str]] = {}
    for row, (patient, target) in enumerate(zip(boxes["patientId"], boxes["Target"], strict=True), 1):
        if patient not in known:
            intake.set_aside(row, "patientId", f"{patient!r} is not in {CLASSES}", LABELS)
        elif target not in ("0", "1"):
            intake.set_aside(row, "Target", f"{target!r} is not 0 or 1", LABELS)
        else:
            targets.setdefault(patient, set()).add(target)
    return targets


def _study(
    row: int,
    group: Rows,
    *,
    targets: Mapping[str, set[str]],
    films: Mapping[str, Path],
    splits: Mapping[str, str],
    facts: dict[str, Any],
) -> Study | None:
    """One patient: a row for each box, all of one class."""
    patient, kind = group[0][1]["patientId"], group[0][1]["class"]
    for number, cells in group:
        if cells["class"] not in MEANING:
            raise Unusable("class", f"{cells['class']!r} is not one of {', '.join(MEANING)}", row=number)
        if cells["class"] != kind:
            raise Unusable("class", f"{patient} is {kind!r} in row {row} and {cells['class']!r} here", row=number)
    if patient not in targets:
        raise Unusable("patientId", f"{patient!r} has no usable row in {LABELS}")
    if targets[patient] != {"1" if kind == "Lung Opacity" else "0"}:
        raise Unusable("class", f"{patient} is {kind!r}, which its Target in {LABELS} contradicts")
    if patient not in films:
        facts["not_downloaded"] += 1
        return None
    positive, negative = MEANING[kind]
    return Study(
        row=row,
        study_id=patient,
        patient_id=patient,
        split=splits[patient],
        positive=positive,
        negative=negative,
        **described(films[patient], facts),
    )
