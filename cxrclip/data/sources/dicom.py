"""What the sources with DICOM films share: finding the films, and the three header fields that the study table has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cxrclip.data.images import DICOM_DAMAGE
from cxrclip.data.sources.prepare import UNKNOWN, Film, Intake, Study
from cxrclip.data.sources.tables import SUFFIXES, Rows, filled, grouped, years_of
from cxrclip.studies import MAX_AGE, SEXES

Labels = tuple[Sequence[str], Sequence[str]]
"""Positive and negative findings."""
_FIELDS = ("ViewPosition", "PatientSex", "PatientAge")


class Header(NamedTuple):
    """The view, sex and age (years) that a DICOM file names; `odd` counts values that make no sense."""

    view: str = ""
    sex: str | None = None
    age: float | None = None
    odd: int = 0


def find_films(folder: Path) -> dict[str, Path]:
    """File name without suffix -> path, for every film below `folder`; empty where there is no such folder."""
    films = sorted((SUFFIXES.index(path.suffix.lower()), path) for place, _, names in os.walk(folder)
                   for path in map(Path(place).joinpath, names) if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for _, path in reversed(films)}


def read_header(path: Path) -> Header:
    """Read view, sex and age from a DICOM file, and nothing else of its header.

    Other formats, and files that cannot be read, have none: the latter are set aside when their pixels are read.
    """
    if path.suffix.lower() not in (".dicom", ".dcm"):
        return Header()
    from pydicom import config, dcmread  # slow to import, and most sources have no DICOM
    from pydicom.errors import InvalidDicomError

    try:
        with config.disable_value_validation():  # RSNA's ages ("43") are not as the standard wants them
            data = dcmread(path, stop_before_pixels=True, specific_tags=list(_FIELDS))
            view, sex, age = (str(data.get(name) or "").strip().upper() for name in _FIELDS)
    except (InvalidDicomError, *DICOM_DAMAGE):
        return Header()
    years = years_of(age)
    years = years if years is not None and years <= MAX_AGE else None
    odd = (age != "" and years is None) + (sex not in (*SEXES, "O", ""))
    return Header(view, sex if sex in SEXES else None, years, odd)


def take_films(
    intake: Intake, table: pd.DataFrame, key: str, labels_of: Callable[[Rows], Labels], paths: Mapping[str, Path],
    splits: Mapping[str, str], *, view: str = UNKNOWN, file: str = "",
) -> None:
    """Take each film as a study and a patient, with view, sex and age of its header.

    Films that are not downloaded, and headers with values that make no sense, are counted.

    Args:
        table: one row or several for each film; `file` is its name, where it is not the intake's own.
        key: the column with the name of the film.
        labels_of: the rows of a film -> its positive and its negative findings.
        paths: name -> file, for the films that are here.
        splits: name -> split, for all films.
        view: of a film whose header names none.
    """

    def study(group: Rows) -> Study | None:
        name = filled(group[0][1], key)
        positive, negative = labels_of(group)
        if name not in paths:
            intake.tally("not_downloaded")
            return None
        header = read_header(paths[name])
        intake.tally("odd_headers", header.odd)
        return Study(name, name, [Film(paths[name], header.view or view)], splits[name], positive=positive,
                     negative=negative, sex=header.sex, age=header.age)

    intake.tally("not_downloaded", 0)
    intake.tally("odd_headers", 0)
    intake.take(grouped(table, key), study, file)
