"""CheXpert: 224,316 films of 65,240 patients, labelled by a rule-based reader of their reports.

Release: https://stanfordmlgroup.github.io/competitions/chexpert (v1.0, or v1.0-small), after registration at
Stanford, for research only, not to be passed on. Cite Irvin et al., "CheXpert: A Large Chest Radiograph Dataset with
Uncertainty Labels and Expert Comparison", AAAI 2019. The reports came later, with CheXpert Plus (Chambon et al., 2024).

One study is one row, with all its films. Labels are positive, negative or uncertain; what is blank was not mentioned.
A study where everything is blank (11 of v1.0, 12 films) would say nothing: it is set aside, unless it has a report.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path

import pandas as pd

from cxrclip.data.sources import chexpert5x200
from cxrclip.data.sources import chexpert_format as chex
from cxrclip.data.sources.prepare import Film, Intake, Source, Study
from cxrclip.data.sources.tables import Cells, Rows, Unusable, grouped

EXPECTED = {
    "rows of train.csv": 223_414, "patients of train.csv": 64_540, "rows of valid.csv": 234,
    "patients of valid.csv": 200, "images": 223_648,
}
# What is left of train.csv without the patients of a test list; the second was computed from the public label table.
REMAINING = {
    "gloria": {"rows left": 216_478, "patients left": 63_574},
    "mgca": {"rows left": 216_180, "patients left": 63_571},
}
SHARED = ("Sex", "Age", *chex.FINDINGS)  # what the films of one study have in common
Tables = list[tuple[Path, pd.DataFrame]]


def read(intake: Intake, *, test_list: str | None = None, reports: str | None = None) -> None:
    """Read the folder with train.csv and valid.csv, or the one above it: these two tables are the splits.

    Args:
        test_list: whose patients are left out of train, as the paper does: the path of GLoRIA's chexpert_5x200.csv
            (absolute, or relative to `root`), or "mgca", the list drawn by MGCA's rule. None takes
            chexpert_5x200.csv where it lies in `root`, else nothing is left out.
        reports: CheXpert Plus' table (path as above, or "auto" to find it in `root`): its findings and impressions
            are added. None leaves them out: the paper uses CheXpert as label data, and a study with a report is
            trained on its report.
    """
    tables = chex.label_tables(intake, "valid.csv")
    path, train = tables[0]
    present = any((table["film"] != "").any() for _, table in tables)
    intake.need(present, f"none of the {len(train):,} listed films is here; unpack train/ and valid/")
    rule, listed = "", train[:0]
    if test_list == "mgca":
        rule, listed = "mgca", chexpert5x200.mgca_list(path, train)
    elif gloria := chexpert5x200.gloria_list(intake.root, test_list):
        rule, (_, listed) = "gloria", gloria
    removed = set(chex.patients_of(listed["Path"]))
    keep = ~chex.patients_of(train["Path"]).isin(removed)
    intake.file = path.name
    intake.count(EXPECTED | REMAINING.get(rule, {}), counts(tables, keep, bool(rule)))
    intake.facts |= {"test_list": rule, "test_patients_removed": len(removed), "not_downloaded": 0}
    intake.facts["reports"] = "CheXpert Plus" if reports else None
    texts = chex.plus_reports(intake, reports, chain(*(table["study"] for _, table in tables))) if reports else {}
    tables[0] = path, train[keep]
    for path, table in tables:
        intake.take(grouped(table, "study"), partial(_study, split=path.stem, intake=intake, texts=texts), path.name)


SOURCE = Source("chexpert", "the CheXpert download, with train.csv", read, chex.RELEASE)


def counts(tables: Tables, keep: pd.Series, listed: bool) -> dict[str, int]:
    """The counts of `EXPECTED` and, where patients are `listed` for removal, `REMAINING` in this download."""
    measured = {}
    for path, table in tables:
        patients = chex.patients_of(table["Path"]).nunique()
        measured |= {f"rows of {path.name}": len(table), f"patients of {path.name}": patients}
    measured["images"] = sum(int((table["film"] != "").sum()) for _, table in tables)
    left = tables[0][1][keep]
    rest = {"rows left": len(left), "patients left": chex.patients_of(left["Path"]).nunique()}
    return measured | (rest if listed else {})


def _study(group: Rows, split: str, intake: Intake, texts: Mapping[str, chex.Sections]) -> Study | None:
    def film(cells: Cells) -> tuple[str, Film | None]:
        place, film, _ = chex.film_row(cells)
        if place.split != split:
            raise Unusable("Path", f"{cells['Path']!r} stands in {split}.csv")
        return place.view, film

    films, first = intake.usable_films(group, film, unique="Path", shared=SHARED)
    if not films:
        return None
    place, _, study = chex.film_row(first)
    text = texts.get(place.study_id, (None, None))
    if not any((*text, study["positive"], study["negative"], study["uncertain"])):
        raise Unusable("No Finding to Support Devices", "no label is set and there is no report: it would say nothing")
    return Study(place.study_id, place.patient, films, split, *text, **study)
