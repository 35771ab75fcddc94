"""SIIM-ACR Pneumothorax 2019: 12,047 frontal films of NIH ChestX-ray14, with masks of every pneumothorax.

Release: https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation, under the rules of the competition: train-rle.csv
or stage_2_train.csv, and the DICOM films. Cite the SIIM-ACR challenge and Wang et al., CVPR 2017. The films come from
ChestX-ray14: a model that was trained on it has seen many of them.

Split by image, not by row, because a film with several masks has several rows. GLoRIA and MGCA split the rows, so a
film can stand in train with one mask and in test with another: 154 of their 476 positive test films (32.4 %) do. Only
positive films have several rows, so this leak raises the score, and such films count twice in their test set.
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

RELEASE = "https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation, competition rules"
TABLES = ("train-rle.csv", "stage_2_train.csv")
PNEUMOTHORAX = "Pneumothorax"
NO_MASK = "-1"
EXPECTED = {
    "rows": 12_954,
    "images listed": 12_047,
    "images": 12_047,
    "rows without mask": 9_378,
    "split train": 8_432,
    "split valid": 1_808,
    "split test": 1_807,
}


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    file: str | None = None,
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Turn a SIIM download into a study table: one film is one study, and one patient.

    A film with a mask is positive for Pneumothorax, one with "-1" negative. Splits are drawn with GLoRIA's shares and
    seed, but over films (`splits.gloria_split`), by all films listed, whether here or not. View, sex and age come from
    the DICOM header, no other field of it is read.

    Args:
        root: the folder with the table; films are looked for by name anywhere below it.
        out: study folder to write.
        file: the table, relative to `root`; None takes train-rle.csv, else stage_2_train.csv.
        allow_partial: go on where the counts are not those of the full release (`EXPECTED`). Films which are not
            there then count as not downloaded. (The first stage's table lists fewer films: it is partial, too.)
        progress: show the counts and a bar.
        **writing: image_size, max_rejected, workers: see `Intake.write`.

    Returns:
        `cxrclip.studies.summary` of the folder. `dataset.json` also counts header values that make no sense.

    Raises:
        InputError: as `Intake.write`; also a missing table or column, no film at all, or a partial download.
    """
    root = existing(root, "the SIIM download, with train-rle.csv or stage_2_train.csv")
    path = root / file if file else next(filter(None, (find_one(root, name) for name in TABLES)), None)
    if path is None:
        raise InputError(f"{root}: neither {TABLES[0]} nor {TABLES[1]}; give the folder of the SIIM download")
    # The header of train-rle.csv is "ImageId, EncodedPixels", with a space.
    table = read_table(path, ("ImageId",)).rename(columns=str.strip)
    if "EncodedPixels" not in table.columns:
        raise InputError(f"{path}: no column 'EncodedPixels'; its columns are {', '.join(map(repr, table.columns))}")
    films = find_films(root)
    if not films.keys() & set(table["ImageId"]):
        raise InputError(f"{root}: none of the {table['ImageId'].nunique():,} listed films is here; download them")
    splits = gloria_split(table["ImageId"])
    counts = check_counts("siim", root, EXPECTED, _found(table, films, splits), allow_partial=allow_partial,
                          progress=progress)
    facts = {"release": RELEASE, "counts": counts, "not_downloaded": 0, "odd_headers": 0}
    intake = Intake("siim", root, path.name, facts)
    parse = partial(_study, intake=intake, films=films, splits=splits, facts=facts)
    intake.take_groups(grouped(table[["ImageId", "EncodedPixels"]], "ImageId"), parse)
    return intake.write(out, splits, progress=progress, **writing)


def _found(table: pd.DataFrame, films: Mapping[str, Path], splits: Mapping[str, str]) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    listed = set(table["ImageId"])
    found = {"rows": len(table), "images listed": len(listed), "images": len(listed & films.keys())}
    found["rows without mask"] = int((table["EncodedPixels"] == NO_MASK).sum())
    return found | {f"split {name}": list(splits.values()).count(name) for name in ("train", "valid", "test")}


def _study(
    row: int,
    group: Rows,
    *,
    intake: Intake,
    films: Mapping[str, Path],
    splits: Mapping[str, str],
    facts: dict[str, Any],
) -> Study | None:
    """One film: a row with -1, or a row for each of its masks."""
    image = group[0][1]["ImageId"]
    if not image:
        raise Unusable("ImageId", "is empty")
    first: dict[str, int] = {}
    for number, cells in group:
        mask = cells["EncodedPixels"]
        if not _is_mask(mask):
            raise Unusable("EncodedPixels", f"{mask[:40]!r} is neither -1 nor pairs of numbers", row=number)
        if first.setdefault(mask, number) != number:
            intake.set_aside(number, "EncodedPixels", f"the same as in row {first[mask]}; the first is kept")
    if NO_MASK in first and len(first) > 1:
        raise Unusable("EncodedPixels", f"{image} has a mask and -1", row=first[NO_MASK])
    if image not in films:
        facts["not_downloaded"] += 1
        return None
    labels = {"negative" if NO_MASK in first else "positive": [PNEUMOTHORAX]}
    described_film = described(films[image], facts)
    return Study(row=row, study_id=image, patient_id=image, split=splits[image], **labels, **described_film)


def _is_mask(cell: str) -> bool:
    """-1, or pairs "start length" in run-length encoding."""
    numbers = cell.split()
    return cell == NO_MASK or (len(numbers) > 0 and len(numbers) % 2 == 0 and all(map(str.isdecimal, numbers)))
