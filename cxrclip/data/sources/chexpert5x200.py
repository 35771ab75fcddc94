"""CheXpert 5x200: 1,000 frontal films of CheXpert's train.csv, 200 that show one of five findings and no other.

Two test sets have this name. GLoRIA (Huang et al., ICCV 2021) drew its list without a seed, so it exists only as a
file, chexpert_5x200.csv, with the reports' impressions; the paper uses it (`prepare`). MGCA (Wang et al., NeurIPS 2022)
drew by the same rule with seed 0, so its list follows from train.csv (`prepare_mgca`). One rule, other films.
"""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

import pandas as pd

from cxrclip.data.sources.chexpert_format import (
    COLUMNS,
    FINDINGS,
    films_of,
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
    Study,
    Unusable,
    Writing,
    existing,
    read_table,
    records,
    to_age,
    to_sex,
    to_text,
)
from cxrclip.errors import InputError

RELEASE = "https://stanfordmlgroup.github.io/competitions/chexpert, Stanford research use agreement"
LIST = "chexpert_5x200.csv"
CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
EACH = 200
EXPECTED = {"rows": 1_000, "patients": 966, **{f"rows of {name} alone": EACH for name in CLASSES}}
# 969 patients: computed from the public label table of CheXpert v1.0.
EXPECTED_MGCA = EXPECTED | {"patients": 969}


def prepare(
    root: str | Path,
    out: str | Path,
    *,
    test_list: str | None = None,
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Turn GLoRIA's list and the CheXpert download it names into a study table; every row is a study, all are test.

    The class is the one positive label. Nothing is negative: the list writes 0 for "negative" and for "not mentioned".

    Args:
        root: the folder with CheXpert's train/, or the one above it.
        out: study folder to write.
        test_list: path of the list, absolute or relative to `root`; None looks for chexpert_5x200.csv there.
        allow_partial: go on where films are not there; they count as not downloaded. The list itself must be whole.
        progress: show the counts and a bar.
        **writing: image_size, max_rejected, workers: see `Intake.write`.

    Returns:
        `cxrclip.studies.summary` of the folder.

    Raises:
        InputError: as `Intake.write`; also no list, a list whose four counts are not those of 5x200 (1,000 rows, 200 a
            class, 966 patients, each row exactly one of the five), or a partial download.
    """
    root = existing(root, "the CheXpert download, with chexpert_5x200.csv")
    if (path := find_list(root, test_list)) is None:
        raise InputError(f"{root}: no {LIST} here; take the list that GLoRIA gives out, or use chexpert5x200-mgca")
    table = read_list(path)
    table["film"] = films_of(root, table["Path"])
    return _write(Intake("chexpert5x200", root, path.name, {}), table, out, allow_partial, progress, writing)


def prepare_mgca(
    root: str | Path,
    out: str | Path,
    *,
    reports: str | None = None,
    allow_partial: bool = False,
    progress: bool = True,
    **writing: Unpack[Writing],
) -> pd.DataFrame:
    """Draw MGCA's 5x200 from CheXpert's train.csv and write it as a study table, as `prepare` does with GLoRIA's.

    Args:
        root, out, allow_partial, progress, **writing: as for `prepare`.
        reports: CheXpert Plus' table (absolute, relative to `root`, or "auto"): its sections become the texts. Without
            it there are no texts, and so no retrieval.

    Raises:
        InputError: as `prepare`; also no train.csv, or one from which the list cannot be drawn.
    """
    root = existing(root, "the CheXpert download, with train.csv")
    if (train := label_table(root, "train.csv")) is None:
        raise InputError(f"{root}: no train.csv here nor in CheXpert-v1.0*/; give the folder of the download")
    table = mgca_list(*train)
    intake = Intake("chexpert5x200-mgca", root, train[0].name, {})
    if reports:
        known = {"/".join(study.split("/")[-2:]) for study in train[1]["study"]}
        texts = plus_reports(reports_path(root, None if reports == "auto" else reports), intake, known)
        here = [texts.get("/".join(study.split("/")[-2:]), (None, None)) for study in table["study"]]
        table["Report Findings"] = [findings or "" for findings, _ in here]
        table["Report Impression"] = [impression or "" for _, impression in here]
    return _write(intake, table, out, allow_partial, progress, writing)


def find_list(root: Path, test_list: str | None) -> Path | None:
    """The path of GLoRIA's list: as named, else in `root`, else None."""
    if test_list is None:
        return root / LIST if (root / LIST).is_file() else None
    return root / test_list


def read_list(path: Path) -> pd.DataFrame:
    """GLoRIA's list, checked by its four known counts: `COLUMNS` and "Report Impression", every cell as text.

    Raises:
        InputError: a column is missing, or the counts are not those of 5x200.
    """
    table = read_table(path, (*COLUMNS, "Report Impression"), only=True)
    return _checked(table, path, EXPECTED, f"it is not the list that GLoRIA gives out as {LIST}")


def mgca_list(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """The rows of train.csv in MGCA's list: per class 200 of the frontal films which have that label alone, seed 0.

    "Alone" looks at 13 labels; No Finding may be anything. Rows keep their numbers.

    Args:
        path: of train.csv, for the message.
        train: its rows, all of them, in their order: the draw depends on it.

    Raises:
        InputError: too few rows to draw from, or other counts than the rule gives on CheXpert v1.0.
    """
    positive = pd.DataFrame({name: train[name].isin(["1", "1.0"]) for name in FINDINGS[1:]})
    nothing = pd.DataFrame({name: train[name].isin(["0", "0.0", ""]) for name in FINDINGS[1:]})
    drawn = []
    for name in CLASSES:
        alone = positive[name] & nothing.drop(columns=name).all(axis=1) & (train["Frontal/Lateral"] == "Frontal")
        if alone.sum() < EACH:
            raise InputError(f"{path}: {alone.sum()} films have {name} alone, fewer than {EACH}; take the whole table")
        drawn.append(train[alone].sample(n=EACH, random_state=0))
    return _checked(pd.concat(drawn), path, EXPECTED_MGCA, "it is not the train.csv of CheXpert v1.0, or out of order")


def _checked(table: pd.DataFrame, path: Path, expected: dict[str, int], otherwise: str) -> pd.DataFrame:
    classes = pd.DataFrame({name: table[name].isin(["1", "1.0"]) for name in CLASSES})
    alone = classes.sum(axis=1) == 1
    found = {"rows": len(table), "patients": patients_of(table["Path"]).nunique()}
    found |= {f"rows of {name} alone": int((classes[name] & alone).sum()) for name in CLASSES}
    if wrong := [f"{found[what]:,} {what}, not {count:,}" for what, count in expected.items() if found[what] != count]:
        raise InputError(f"{path}: {'; '.join(wrong)}: {otherwise}")
    return table


def _write(
    intake: Intake, table: pd.DataFrame, out: str | Path, allow_partial: bool, progress: bool, writing: Writing
) -> pd.DataFrame:
    here = int((table["film"] != "").sum())
    if not here:
        raise InputError(f"{intake.root}: none of the {len(table):,} films of the list is here; unpack train/")
    counts = check_counts(intake.name, intake.root, {"images": len(table)}, {"images": here},
                          allow_partial=allow_partial, progress=progress)
    intake.facts |= {"release": RELEASE, "counts": counts, "not_downloaded": len(table) - here}
    intake.take_numbered(records(table), _study)
    return intake.write(out, {}, progress=progress, **writing)


def _study(row: int, cells: Cells) -> Study | None:
    place, labels = place_of("Path", cells["Path"]), labels_of(cells)
    if labels["uncertain"]:
        raise Unusable(labels["uncertain"][0], "is uncertain; 5x200 has none")
    view = view_of(cells)
    if not cells["film"]:
        return None
    return Study(
        row=row,
        study_id=f"{place.study_id}/{place.view}",
        patient_id=place.patient,
        films=[Film(Path(cells["film"]), view)],
        split="test",
        findings=to_text("Report Findings", cells.get("Report Findings", "")),
        impression=to_text("Report Impression", cells.get("Report Impression", "")),
        positive=labels["positive"],
        sex=to_sex("Sex", cells["Sex"]),
        age=to_age("Age", cells["Age"]),
    )
