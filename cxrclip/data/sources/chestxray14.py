"""NIH ChestX-ray14: 112,120 frontal films of 30,805 patients, 14 findings mined from their reports.

Release: https://nihcc.app.box.com/v/ChestXray-NIHCC (images_001 ... images_012, Data_Entry_2017_v2020.csv,
train_val_list.txt, test_list.txt). Use is without restriction; the release asks to cite the paper and to
name the NIH Clinical Center as the provider: Wang et al., "ChestX-ray8: Hospital-scale Chest X-ray Database
and Benchmarks on Weakly-Supervised Classification and Localization of Common Thorax Diseases", CVPR 2017.

The labels are mined from text: a part of them is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pandas as pd

from cxrclip.data.sources.prepare import Film, Intake, Source, Study
from cxrclip.data.sources.splits import SHARES, split_patients
from cxrclip.data.sources.tables import SUFFIXES, Cells, Unusable, filled, one_of, records, to_age, to_sex
from cxrclip.errors import InputError

FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Emphysema", "Fibrosis", "Hernia", "Infiltration", "Mass",
    "Nodule", "Pleural Effusion", "Pleural Thickening", "Pneumonia", "Pneumothorax",
)
NO_FINDING = "No Finding"
RENAMED = {"Effusion": "Pleural Effusion", "Pleural_Thickening": "Pleural Thickening"}
EXPECTED = {
    "rows": 112_120, "patients": 30_805, "images": 112_120, "in train_val_list.txt": 86_524, "in test_list.txt": 25_596,
}
# The header's "OriginalImage[Width,Height]" holds commas, so a reader sees 11 columns; these need no bracket.
COLUMNS = ("Image Index", "Finding Labels", "Patient ID", "Patient Age", "Patient Gender", "View Position")


def read(
    intake: Intake, *, images: Sequence[str] | None = None, shares: Mapping[str, float] = SHARES, seed: int = 0,
    official_lists: bool = True,
) -> None:
    """Read the folder with Data_Entry_2017*.csv and the image folders: a film is a study.

    Positive are the film's Finding Labels. Negative are the rest of the 14: the miner looked for all of them in every
    report, so a name that is absent means "not found", and the paper draws its negative prompts from these.

    Splits: by the official lists where both are present (test_list.txt is test; train_val_list.txt is cut by patient in
    the ratio of the train and valid `shares`), else by patient in the given shares.

    Args:
        images: image folders to take (a name relative to `root`); None takes every folder "images*". A film
            that lies in two folders is taken from the first.
        shares: split -> share of the patients.
        seed: of the split.
        official_lists: False splits by `shares` alone. Table 1 of the paper has 89,696 training films, four fifths of
            all 112,120: so its training set holds most of the official test list (ledger D1).
    """
    tables = sorted(intake.root.glob("Data_Entry_2017*.csv"))
    intake.need(tables, "no Data_Entry_2017_v2020.csv; download it from the NIH release")
    table = intake.read_table(tables[-1], COLUMNS)
    films, repeated = _find_films(intake.root, images)
    names = table["Image Index"].str.removesuffix(".png")
    present = names.isin(films.keys())
    intake.need(present.any(), f"none of the {len(table):,} listed films is in its image folders; download some")
    lists = _official_lists(intake.root)
    intake.file = tables[-1].name
    intake.count(EXPECTED, counts(table, present, lists))
    by_list = official_lists and bool(lists)
    intake.facts |= {"seed": seed, "shares": dict(shares)}
    intake.facts |= {"splits": "official lists" if by_list else "seeded by patient", "folders": list(images or ["all"])}
    intake.facts |= {"not_downloaded": int((~present).sum()), "in_two_folders": repeated}
    intake.facts["without_row"] = len(films.keys() - set(names))
    intake.take(records(table), partial(_study, films=films))
    intake.splits = _official_splits(intake.studies, lists) if by_list else {}
    rest = {study.patient_id for study in intake.studies if intake.splits.get(study.patient_id) != "test"}
    if by_list:  # what is not test is cut into train and valid
        total = shares.get("train", 0) + shares.get("valid", 0)
        shares = {name: shares.get(name, 0) / total for name in ("train", "valid")} if total else {"train": 1}
    intake.splits |= split_patients(rest, shares, seed)


SOURCE = Source("chestxray14", "the NIH download, with Data_Entry_2017_v2020.csv", read,
                "https://nihcc.app.box.com/v/ChestXray-NIHCC, provided by the NIH Clinical Center, unrestricted use")


def counts(table: pd.DataFrame, present: pd.Series, lists: Mapping[str, str]) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    listed = list(lists.values())
    return {"rows": len(table), "patients": table["Patient ID"].nunique(), "images": int(present.sum()),
            "in train_val_list.txt": listed.count("train"), "in test_list.txt": listed.count("test")}


def _find_films(root: Path, folders: Sequence[str] | None) -> tuple[dict[str, Path], int]:
    """File name without suffix -> path over the image folders, and how many files stand in a second folder."""
    places = sorted(filter(Path.is_dir, root.glob("images*"))) if folders is None else [root / name for name in folders]
    if folders is not None and (absent := [place for place in places if not place.is_dir()]):
        raise InputError(f"{absent[0]}: no such folder; give folders of images in images={list(folders)}")
    files = [path for place in places
             for path in sorted(place.rglob("*"), key=lambda path: (path.suffix != ".png", path))
             if path.suffix.lower() in SUFFIXES]
    films = {path.stem: path for path in reversed(files)}
    return films, len(files) - len(films)


def _study(cells: Cells, films: Mapping[str, Path]) -> Study | None:
    image = cells["Image Index"].removesuffix(".png")
    if image not in films:
        return None
    names = [RENAMED.get(name, name) for name in cells["Finding Labels"].split("|")]
    unknown = [name for name in names if name not in (*FINDINGS, NO_FINDING)]
    if unknown or len(set(names)) < len(names) or (NO_FINDING in names and len(names) > 1):
        raise Unusable("Finding Labels", f"{cells['Finding Labels']!r} is not a list of the 14 findings")
    patient, view = filled(cells, "Patient ID"), one_of(("PA", "AP"), "PA or AP", cells, "View Position")
    return Study(image, patient, [Film(films[image], view)], positive=names,
                 negative=[name for name in FINDINGS if name not in names], sex=to_sex(cells, "Patient Gender"),
                 age=to_age(cells, "Patient Age"))


def _official_lists(root: Path) -> dict[str, str]:
    """Film -> "test" or "train" by the official lists; empty unless both are there."""
    paths = {"train": root / "train_val_list.txt", "test": root / "test_list.txt"}
    if not all(path.is_file() for path in paths.values()):
        return {}
    return {film: split for split, path in paths.items() for film in path.read_text(encoding="utf-8").split()}


def _official_splits(studies: Sequence[Study], lists: Mapping[str, str]) -> dict[str, str]:
    """Patient -> test or train by the official lists."""
    splits: dict[str, str] = {}
    for study in studies:
        split = lists.get(f"{study.study_id}.png")
        if split is None:
            raise InputError(f"{study.study_id}.png is in neither train_val_list.txt nor test_list.txt; check them")
        if splits.setdefault(study.patient_id, split) != split:
            raise InputError(f"patient {study.patient_id} is in train_val_list.txt and in test_list.txt; check them")
    return splits
