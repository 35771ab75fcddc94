"""CheXpert 5x200: 1,000 frontal films of CheXpert's train.csv, 200 that show one of five findings and no other.

Two test sets have this name. GLoRIA (Huang et al., ICCV 2021) drew its list without a seed, so it exists only as a
file, chexpert_5x200.csv, with the reports' impressions; the paper uses it (`SOURCE`). MGCA (Wang et al., NeurIPS 2022)
drew by the same rule with seed 0, so its list follows from train.csv (`MGCA`). One rule, other films.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from cxrclip.data.sources import chexpert_format as chex
from cxrclip.data.sources.prepare import Intake, Source, Study
from cxrclip.data.sources.tables import Cells, Unusable, read_table, records, to_text
from cxrclip.errors import InputError

LIST = "chexpert_5x200.csv"
CLASSES = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
EACH = 200
TEXTS = ("Report Findings", "Report Impression")
EXPECTED = {"rows": 1_000, "patients": 966, **{f"rows of {name} alone": EACH for name in CLASSES}}
# 969 patients: computed from the public label table of CheXpert v1.0.
EXPECTED_MGCA = EXPECTED | {"patients": 969}


def read(intake: Intake, *, test_list: str | None = None) -> None:
    """Read GLoRIA's list and the CheXpert download it names: every row is a study, all are test.

    The class is the one positive label. Nothing is negative: the list writes 0 for "negative" and for "not mentioned".
    The list must be whole (1,000 rows, 200 a class, 966 patients); with `allow_partial` films may be missing.

    Args:
        test_list: path of the list, absolute or relative to `root`; None looks for chexpert_5x200.csv there.
    """
    listed = gloria_list(intake.root, test_list)
    intake.need(listed, f"no {LIST} here; take the list that GLoRIA gives out, or use chexpert5x200-mgca")
    path, table = listed
    table["film"] = chex.films_of(intake.root, table["Path"])
    _take(intake, path, table)


def read_mgca(intake: Intake, *, reports: str | None = None) -> None:
    """Draw MGCA's 5x200 from CheXpert's train.csv; else as `read`.

    Args:
        reports: CheXpert Plus' table (absolute, relative to `root`, or "auto"): its sections become the texts. None
            gives no texts, and so no retrieval.
    """
    ((path, train),) = chex.label_tables(intake)
    table = mgca_list(path, train)
    intake.file = path.name
    if reports:
        texts = chex.plus_reports(intake, reports, train["study"])
        for i, name in enumerate(TEXTS):
            table[name] = [texts[study][i] or "" if study in texts else "" for study in table["study"]]
    _take(intake, path, table)


SOURCE = Source("chexpert5x200", f"the CheXpert download, with {LIST}", read, chex.RELEASE)
MGCA = Source("chexpert5x200-mgca", "the CheXpert download, with train.csv", read_mgca, chex.RELEASE)


def gloria_list(root: Path, test_list: str | None) -> tuple[Path, pd.DataFrame] | None:
    """Path and rows of GLoRIA's list, as named or in `root`; None where it is not named and not there.

    Raises:
        InputError: no such file, a column is missing, or its four known counts are not those of 5x200.
    """
    if test_list is None and not (root / LIST).is_file():
        return None
    path = root / (test_list or LIST)
    table = read_table(path, (*chex.COLUMNS, "Report Impression"), only=True)
    return path, _checked(table, path, EXPECTED, f"it is not the list that GLoRIA gives out as {LIST}")


def mgca_list(path: Path, train: pd.DataFrame) -> pd.DataFrame:
    """The rows of train.csv in MGCA's list: per class 200 of the frontal films which have that label alone, seed 0.

    "Alone" looks at 13 labels; No Finding may be anything. Rows keep their numbers.

    Args:
        path: of train.csv, for the message.
        train: its rows, all of them, in their order: the draw depends on it.

    Raises:
        InputError: too few rows to draw from, or other counts than the rule gives on CheXpert v1.0.
    """
    labels = train[list(chex.FINDINGS[1:])]
    positive, nothing = labels.isin(["1", "1.0"]), labels.isin(["0", "0.0", ""])
    drawn = []
    for name in CLASSES:
        alone = positive[name] & nothing.drop(columns=name).all(axis=1) & (train["Frontal/Lateral"] == "Frontal")
        if alone.sum() < EACH:
            raise InputError(f"{path}: {alone.sum()} films have {name} alone, fewer than {EACH}; take the whole table")
        drawn.append(train[alone].sample(n=EACH, random_state=0))
    return _checked(pd.concat(drawn), path, EXPECTED_MGCA, "it is not the train.csv of CheXpert v1.0, or out of order")


def _checked(table: pd.DataFrame, path: Path, expected: dict[str, int], otherwise: str) -> pd.DataFrame:
    positive = table[list(CLASSES)].isin(["1", "1.0"])
    alone = positive[positive.sum(axis=1) == 1].sum()
    measured = {"rows": len(table), "patients": chex.patients_of(table["Path"]).nunique()}
    measured |= {f"rows of {name} alone": alone[name] for name in CLASSES}
    wrong = [f"{measured[what]:,} {what}, not {n:,}" for what, n in expected.items() if measured[what] != n]
    if wrong:
        raise InputError(f"{path}: {'; '.join(wrong)}: {otherwise}")
    return table


def _take(intake: Intake, path: Path, table: pd.DataFrame) -> None:
    present = int((table["film"] != "").sum())
    intake.need(present, f"none of the {len(table):,} films of the list is here; unpack train/")
    intake.file = path.name
    intake.count({"images": len(table)}, {"images": present})
    intake.facts["not_downloaded"] = len(table) - present
    intake.take(records(table), _study)


def _study(cells: Cells) -> Study | None:
    place, film, study = chex.film_row(cells)
    if study["uncertain"]:
        raise Unusable(study["uncertain"][0], "is uncertain; 5x200 has none")
    if film is None:
        return None
    text = [to_text(name, cells.get(name, "")) for name in TEXTS]
    return Study(f"{place.study_id}/{place.view}", place.patient, [film], "test", *text, positive=study["positive"],
                 sex=study["sex"], age=study["age"])
