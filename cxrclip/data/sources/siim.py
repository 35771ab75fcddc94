"""SIIM-ACR Pneumothorax 2019: 12,047 frontal films of NIH ChestX-ray14, with masks of every pneumothorax.

Release: https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation, under the rules of the competition: train-rle.csv
or stage_2_train.csv, and the DICOM films. Cite the SIIM-ACR challenge and Wang et al., CVPR 2017. The films come from
ChestX-ray14: a model that was trained on it has seen many of them.

Split by image, not by row, because a film with several masks has several rows. GLoRIA and MGCA split the rows, so a
film can stand in train with one mask and in test with another: 154 of their 476 positive test films (32.4 %) do. Only
positive films have several rows, so this leak raises the score, and such films count twice in their test set.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources.dicom import Labels, find_films, take_films
from cxrclip.data.sources.prepare import Intake, Source
from cxrclip.data.sources.splits import gloria_split, split_sizes
from cxrclip.data.sources.tables import Rows, Unusable, find_one, read_table

TABLES = ("train-rle.csv", "stage_2_train.csv")
COLUMNS = ("ImageId", "EncodedPixels")
PNEUMOTHORAX = "Pneumothorax"
NO_MASK = "-1"
MASK = re.compile(r"-1|\d+\s+\d+(\s+\d+\s+\d+)*")  # or pairs "start length" in run-length encoding
EXPECTED = {
    "rows": 12_954, "images listed": 12_047, "images": 12_047, "rows without mask": 9_378, "split train": 8_432,
    "split valid": 1_808, "split test": 1_807,
}


def read(intake: Intake, *, file: str | None = None) -> None:
    """Read the table, and films by name anywhere below `root`: one film is one study, and one patient.

    A film with a mask is positive for Pneumothorax, one with "-1" negative. Splits are drawn with GLoRIA's shares and
    seed, but over films (`splits.gloria_split`), by all films listed, whether here or not. View, sex and age come from
    the DICOM header; `dataset.json` counts values that make no sense.

    Args:
        file: the table, relative to `root`; None takes train-rle.csv, else stage_2_train.csv. (The first stage's table
            lists fewer films: it counts as partial.)
    """
    path = intake.root / file if file else find_one(intake.root, *TABLES)
    intake.need(path, f"neither {TABLES[0]} nor {TABLES[1]}; give the folder of the SIIM download")
    table = read_table(path, COLUMNS)
    films, listed = find_films(intake.root), set(table["ImageId"])
    intake.need(films.keys() & listed, f"none of the {len(listed):,} listed films is here; download them")
    splits = gloria_split(table["ImageId"])
    intake.file = path.name
    intake.count(EXPECTED, counts(table, films, splits))
    take_films(intake, table, "ImageId", partial(_labels, intake=intake), films, splits)


SOURCE = Source("siim", f"the SIIM download, with {TABLES[0]} or {TABLES[1]}", read,
                "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation, competition rules")


def counts(table: pd.DataFrame, films: Mapping[str, Path], splits: Mapping[str, str]) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    listed = set(table["ImageId"])
    measured = {"rows": len(table), "images listed": len(listed), "images": len(listed & films.keys())}
    return measured | {"rows without mask": int((table["EncodedPixels"] == NO_MASK).sum())} | split_sizes(splits)


def _labels(group: Rows, intake: Intake) -> Labels:
    """Of the rows of a film: one with -1, or one for each of its masks."""
    first_row: dict[str, int] = {}
    for row, cells in group:
        mask = cells["EncodedPixels"]
        if not MASK.fullmatch(mask):
            raise Unusable("EncodedPixels", f"{mask[:40]!r} is neither -1 nor pairs of numbers", row=row)
        if first_row.setdefault(mask, row) != row:
            intake.set_aside(row, "EncodedPixels", f"the same as in row {first_row[mask]}; the first is kept")
    if NO_MASK in first_row and len(first_row) > 1:
        raise Unusable("EncodedPixels", f"{cells['ImageId']} has a mask and -1", row=first_row[NO_MASK])
    return ([], [PNEUMOTHORAX]) if NO_MASK in first_row else ([PNEUMOTHORAX], [])
