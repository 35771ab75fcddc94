"""Any CSV or Parquet table of films with labels or report sections: name its columns, get a study table.

For a hospital's own export, and for public sets without a module here. One row is one study. The paediatric
films of Kermany et al. ("Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep Learning",
Cell 172(5), 2018; Mendeley data rscbjbr9sj, published as CC BY 4.0) come in so:

    SOURCES["table"](root, out, name="kermany", file="labels.csv", image="file", patient="patient", labels="label",
                     mapping={"NORMAL": ["No Finding"], "BACTERIA": ["Pneumonia"], "VIRUS": ["Pneumonia"]})
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cxrclip.data.sources.prepare import UNKNOWN, Film, Intake, Source, Study
from cxrclip.data.sources.reports import parse_report, with_lines
from cxrclip.data.sources.splits import SHARES, split_patients
from cxrclip.data.sources.tables import (
    Cells,
    Unusable,
    filled,
    film_at,
    name_in,
    plain_cell,
    records,
    to_age,
    to_sex,
    to_text,
)
from cxrclip.errors import InputError

SPLIT_NAMES = {"train": "train", "valid": "valid", "test": "test", "training": "train", "val": "valid"}
SPLIT_NAMES |= {"validate": "valid", "validation": "valid", "dev": "valid", "testing": "test"}


@dataclass(frozen=True)
class Columns:
    """Which column of the table means what.

    Args:
        image: column or columns with the path of a film, relative to the folder or absolute; empty cells are skipped.
        patient: patient number. Splits are made by patient.
        study: study number; without it the path of the first film, without its suffix, is the study.
        view: column with the view of the film.
        views: the views of the `image` columns, in their order, where they are always the same.
        findings, impression: report sections.
        report: whole reports instead, in which the headings FINDINGS and IMPRESSION are looked for; where there are
            none, the last paragraph is the impression (counted as "last paragraphs").
        labels: column with finding names (all positive), several joined by `separator`.
        mapping: label as written in `labels` -> finding names. Without it the labels are taken as they stand.
        label_columns: columns with one finding each, named by it; or column -> finding name.
        values: what a cell of these says for positive, negative and uncertain; empty is "not mentioned".
        vocabulary: the finding names allowed; without it any is.
        split: column with train, valid (also val, validate, ...) or test; without it splits are made.
        sex, age: F or M (also spelled out), and years.
    """

    image: str | Sequence[str]
    patient: str
    study: str | None = None
    view: str | None = None
    views: Sequence[str] = ()
    findings: str | None = None
    impression: str | None = None
    report: str | None = None
    labels: str | None = None
    separator: str = "|"
    mapping: Mapping[str, Sequence[str]] | None = None
    label_columns: Sequence[str] | Mapping[str, str] = ()
    values: Mapping[str, Any] = field(default_factory=lambda: {"positive": 1, "negative": 0, "uncertain": -1})
    vocabulary: Sequence[str] | None = None
    split: str | None = None
    sex: str | None = None
    age: str | None = None

    def __post_init__(self) -> None:
        if self.mapping is not None:  # cells are read by the same rule
            plain = {plain_cell(str(label)): names for label, names in self.mapping.items()}
            object.__setattr__(self, "mapping", plain)
        if self.view and len(self.images) > 1:
            raise InputError("table: one `view` column cannot describe several `image` columns; give `views`")
        if self.report and (self.findings or self.impression):
            raise InputError("table: give `report`, or `findings` and `impression`, not both")
        if self.views and len(self.views) != len(self.images):
            raise InputError(f"table: {len(self.views)} `views` for {len(self.images)} `image` columns; give one each")
        if unknown := sorted(set(self.values) - {"positive", "negative", "uncertain"}):
            raise InputError(f"table: unknown key {unknown[0]!r} in `values`; use positive, negative, uncertain")

    @property
    def images(self) -> list[str]:
        """The columns with films."""
        return [self.image] if isinstance(self.image, str) else list(self.image)

    @property
    def findings_by_column(self) -> dict[str, str]:
        """Column -> finding, of the columns with one finding each."""
        columns = self.label_columns
        return dict(columns if isinstance(columns, Mapping) else zip(columns, columns, strict=True))

    @property
    def supervision(self) -> list[str]:
        """The columns with texts or labels."""
        return [*filter(None, (self.findings, self.impression, self.report, self.labels)), *self.findings_by_column]

    @property
    def named(self) -> list[str]:
        """Every column the table must have."""
        single = (self.patient, self.study, self.view, self.split, self.sex, self.age)
        return [*self.images, *filter(None, single), *self.supervision]


def read(
    intake: Intake, *, file: str, name: str = "table", shares: Mapping[str, float] = SHARES, seed: int = 0,
    expected: Mapping[str, int] | None = None, **columns: Any,
) -> None:
    """Read a table; a row whose film is not there is unusable, also with `allow_partial`.

    Args:
        file: the table, relative to `root`: CSV (UTF-8) or Parquet.
        name: the `source` of the studies; patients of two tables with one name are the same patients.
        shares: split -> share of the patients, where the table has no `split` column.
        seed: of the split.
        expected: what the whole data set holds, where that is known: "rows", "images", "patients", "studies".
        **columns: the fields of `Columns`.
    """
    chosen = Columns(**columns)
    table = intake.read_table(intake.root / file, chosen.named, file)
    intake.name, intake.file = name, file
    intake.facts |= {"splits": "as given"} if chosen.split else {"seed": seed, "shares": dict(shares)}
    if expected:
        _count(intake, table, chosen, expected)
    if chosen.report:
        intake.facts |= {"last_paragraphs": 0, "addenda": 0}
    intake.take(records(table), partial(_study, columns=chosen, intake=intake))
    if not chosen.split:
        intake.splits = split_patients((study.patient_id for study in intake.studies), shares, seed)


SOURCE = Source("table", "the table and its films", read, columns=Columns)


def _count(intake: Intake, table: pd.DataFrame, columns: Columns, expected: Mapping[str, int]) -> None:
    """Compare what `expected` names with this download."""
    films = [film_at(str(intake.root / cell)) for name in columns.images for cell in set(table[name]) - {""}]
    measured = {"rows": len(table), "images": sum(map(bool, films))}
    measured["patients"] = table[columns.patient].nunique()
    measured["studies"] = table[columns.study].nunique() if columns.study else len(table)
    if unknown := sorted(set(expected) - set(measured)):
        raise InputError(f"table: unknown count {unknown[0]!r} in `expected`; known are {', '.join(measured)}")
    intake.count(expected, {what: measured[what] for what in expected})


def _study(cells: Cells, columns: Columns, intake: Intake) -> Study:
    view = (cells[columns.view] if columns.view else "") or UNKNOWN
    views = columns.views or [view] * len(columns.images)
    named = zip(map(cells.__getitem__, columns.images), views, strict=True)
    films = [Film(Path(film_at(str(intake.root / name)) or intake.root / name), view) for name, view in named if name]
    if not films:
        raise Unusable(", ".join(columns.images), "names no film")
    patient = filled(cells, columns.patient)
    study = filled(cells, columns.study) if columns.study else name_in(intake.root, films[0].path.with_suffix(""))
    split = SPLIT_NAMES.get(cells[columns.split].lower(), "") if columns.split else ""
    if columns.split and not split:
        raise Unusable(columns.split, f"{cells[columns.split]!r} is not train, valid or test")
    labels, sections = _labels(cells, columns), _sections(cells, columns, intake)
    if columns.supervision and not any((*sections, *labels.values())):
        raise Unusable(", ".join(columns.supervision), "neither a text nor a label")
    return Study(study, patient, films, split, *sections, **labels,
                 sex=to_sex(cells, columns.sex), age=to_age(cells, columns.age))


def _sections(cells: Cells, columns: Columns, intake: Intake) -> list[str | None]:
    """Findings and impression of one row, from their columns or out of its report."""
    if not columns.report:
        return [to_text(name, cells[name]) if name else None for name in (columns.findings, columns.impression)]
    report = intake.tallied(parse_report(with_lines(cells[columns.report])))
    return [report.findings, report.impression]


def _labels(cells: Cells, columns: Columns) -> dict[str, list[str]]:
    """Positive, negative and uncertain finding names of one row."""
    labels: dict[str, list[str]] = {"positive": [], "negative": [], "uncertain": []}
    for label in map(str.strip, cells[columns.labels].split(columns.separator) if columns.labels else ()):
        if label and columns.mapping is not None and label not in columns.mapping:
            raise Unusable(columns.labels, f"label {label!r} is not in the mapping ({', '.join(columns.mapping)})")
        if label:
            labels["positive"] += [label] if columns.mapping is None else columns.mapping[label]
    for column, finding in columns.findings_by_column.items():
        if cells[column]:
            kinds = [kind for kind, value in columns.values.items() if _plain(cells[column]) == _plain(value)]
            if not kinds:
                allowed = ", ".join(f"{value} ({kind})" for kind, value in columns.values.items())
                raise Unusable(column, f"{cells[column]!r} is none of {allowed} or empty")
            labels[kinds[0]].append(finding)
    names = [name for kind in labels.values() for name in kind]
    for name in names:
        if names.count(name) > 1:
            raise Unusable(columns.labels or "labels", f"finding {name!r} is named twice")
        if columns.vocabulary is not None and name not in columns.vocabulary:
            raise Unusable(columns.labels or "labels", f"finding {name!r} is not in the vocabulary")
    return labels


def _plain(value: object) -> float | str:
    """Numbers compare as numbers (1 and 1.0 are the same), anything else as lower-case text."""
    try:
        return float(str(value))
    except ValueError:
        return str(value).strip().lower()
