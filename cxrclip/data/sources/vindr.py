"""VinDr-CXR: 18,000 frontal films from two Vietnamese hospitals, labelled by radiologists.

Release: https://physionet.org/content/vindr-cxr/1.0.0/, after training and with a data use agreement: nothing of it may
be passed on. Cite Nguyen et al., "VinDr-CXR: An open dataset of chest X-rays with radiologist's annotations", 2022.

Each of the 15,000 training films was read by three of 17 radiologists; a finding is positive where any of them saw it,
as in the paper. The 3,000 test films carry the consensus of five. No patient numbers are given: a film is a patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources.dicom import Labels, find_films, take_films
from cxrclip.data.sources.prepare import Intake, Source
from cxrclip.data.sources.splits import split_sizes, train_valid_split
from cxrclip.data.sources.tables import Rows, Unusable, find_one, one_of, read_table
from cxrclip.errors import InputError

FINDINGS = (
    "Aortic enlargement", "Atelectasis", "Calcification", "Cardiomegaly", "Clavicle fracture", "Consolidation", "Edema",
    "Emphysema", "Enlarged PA", "ILD", "Infiltration", "Lung Opacity", "Lung cavity", "Lung cyst", "Mediastinal shift",
    "Nodule/Mass", "Pleural effusion", "Pleural thickening", "Pneumothorax", "Pulmonary fibrosis", "Rib fracture",
    "Other lesion", "COPD", "Lung tumor", "Pneumonia", "Tuberculosis", "Other diseases",
)
NO_FINDING = "No finding"
RENAMED = {"Other disease": "Other diseases"}  # written so in some copies
READERS = 3
_VALUES = ("0", "1", "0.0", "1.0")
TRAIN, TEST = "image_labels_train.csv", "image_labels_test.csv"
EXPECTED = {
    f"rows of {TRAIN}": 45_000, f"rows of {TEST}": 3_000, "train films listed": 15_000, "images": 18_000,
    "split train": 12_000, "split valid": 3_000, "split test": 3_000,
}


def read(intake: Intake) -> None:
    """Read the folder with annotations/, train/ and test/, or one above it: a film is a study.

    The official test set is test. The training set is cut 80/20 into train and valid as the paper does
    (`splits.train_valid_split`), by all films listed, whether here or not.

    Positive is what any reader saw, negative the rest of the 27 findings; "No finding" is positive where nothing else
    is. View (PA where none is named), sex and age come from the DICOM header; `dataset.json` counts values that make
    no sense.
    """
    root = intake.root
    paths = {name: path for name in (TRAIN, TEST) if (path := find_one(root, f"annotations/{name}"))}
    intake.need(paths, f"no annotations/{TRAIN} nor {TEST}; give the folder of the VinDr-CXR download")
    tables = {name: _read(path, ["rad_id"] if name == TRAIN else []) for name, path in paths.items()}
    films = {name: find_films(path.parents[1] / ("train" if name == TRAIN else "test")) for name, path in paths.items()}
    intake.need(any(films.values()), "no film is in train/ or test/; unpack the DICOM files there")
    splits = train_valid_split(tables[TRAIN]["image_id"]) if TRAIN in tables else {}
    splits |= dict.fromkeys(tables[TEST]["image_id"], "test") if TEST in tables else {}
    intake.file = next(iter(paths))
    intake.count(EXPECTED, _counts(tables, films, splits))
    for name, table in tables.items():
        labels = partial(_labels, readers=READERS if name == TRAIN else 1)
        take_films(intake, table, "image_id", labels, films[name], splits, view="PA", file=name)


SOURCE = Source("vindr-cxr", "the VinDr-CXR download, with annotations/, train/ and test/", read,
                "https://physionet.org/content/vindr-cxr/1.0.0/, PhysioNet Credentialed Health Data License")


def _read(path: Path, extra: list[str]) -> pd.DataFrame:
    """A table of labels, with the columns of FINDINGS whatever the copy calls them."""
    table = read_table(path, ("image_id", *extra)).rename(columns=RENAMED)
    if "class_name" in table.columns:
        raise InputError(f"{path}: a table of boxes, as in VinBigData on Kaggle; {TRAIN} of PhysioNet is needed")
    if absent := [name for name in (*FINDINGS, NO_FINDING) if name not in table.columns]:
        raise InputError(f"{path}: no column {absent[0]!r}; VinDr-CXR 1.0.0 has 28 columns of labels")
    return table[["image_id", *extra, *FINDINGS, NO_FINDING]]


def _counts(
    tables: Mapping[str, pd.DataFrame], films: Mapping[str, Mapping[str, Path]], splits: Mapping[str, str]
) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    measured = {f"rows of {name}": len(table) for name, table in tables.items()}
    measured["train films listed"] = tables[TRAIN]["image_id"].nunique() if TRAIN in tables else 0
    measured["images"] = sum(len(set(table["image_id"]) & films[name].keys()) for name, table in tables.items())
    return measured | split_sizes(splits)


def _labels(group: Rows, readers: int) -> Labels:
    """Positive is what any of the readers saw, a row each."""
    image, names = group[0][1]["image_id"], [cells.get("rad_id") for _, cells in group]
    if readers == 1 and len(group) > 1:
        raise Unusable("image_id", f"{image} stands in {len(group)} rows, not one", row=group[1][0])
    if len(set(names)) != readers or len(names) != readers:
        raise Unusable("rad_id", f"{image} has the readers {', '.join(names)}, not {readers} different ones")
    seen = {name: "1" in {one_of(_VALUES, "0 or 1", cells, name, row)[0] for row, cells in group}
            for name in (*FINDINGS, NO_FINDING)}
    positive = [name for name in FINDINGS if seen[name]]
    return positive or [NO_FINDING] * seen[NO_FINDING], [name for name in FINDINGS if not seen[name]]
