"""The tables of a release: reading them, going through their rows, and what a cell may say."""

from __future__ import annotations

import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cxrclip.errors import InputError
from cxrclip.studies import MAX_AGE, MAX_TEXT

Cells = Mapping[str, str]
Rows = list[tuple[int, Cells]]
"""The rows of one study, each with its number in the table."""
_SEXES = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "": None, "UNKNOWN": None, "U": None}


class Unusable(Exception):
    """A cell which makes its row unusable; `row` and `file` where they are not those of the row being parsed."""

    def __init__(self, column: str, reason: str, *, row: int | None = None, file: str | None = None) -> None:
        super().__init__(f"{column}: {reason}")
        self.column, self.reason, self.row, self.file = column, reason, row, file


def find_one(root: Path, *patterns: str) -> Path | None:
    """The last (newest version) of the files that match, in `root` or up to two folders below; None without.

    A pattern is only looked for where nothing matches those before it.
    """
    for pattern in patterns:
        for prefix in ("", "*/", "*/*/"):
            if matches := sorted(root.glob(prefix + pattern)):
                return matches[-1]
    return None


def name_in(root: Path, path: Path) -> str:
    """The path relative to the release, or the bare file name where it lies outside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def read_table(path: Path, columns: Iterable[str], *, only: bool = False) -> pd.DataFrame:
    """Read a CSV (also .gz, .zip) or Parquet table with every cell as stripped text ("" where empty).

    Bytes that are no UTF-8 are kept as lone surrogates: `check_row` finds them.

    Args:
        columns: columns the table must have.
        only: read no other column, to spare memory.

    Raises:
        InputError: no such file, not a table, or a column in `columns` is missing.
    """
    options = {"dtype": object, "index_col": False, "encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}
    columns = list(columns)
    try:
        if path.suffix == ".parquet":
            table = pd.read_parquet(path).map(lambda cell: "" if pd.isna(cell) else str(cell))
        else:
            table = pd.read_csv(path, nrows=0, **options)
            ",".join(table.columns).encode()  # the header itself must be UTF-8
            wanted = [name for name in table.columns if not only or name.strip() in columns]
            if set(columns) <= set(map(str.strip, wanted)):
                table = pd.read_csv(path, keep_default_na=False, usecols=wanted if only else None, **options)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; check the folder and the file name") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas, pyarrow, gzip: parser and format errors
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{path}: not a readable table ({reason}); export it again as CSV in UTF-8") from error
    table.columns = [str(name).strip() for name in table.columns]  # SIIM's header has a space after its comma
    table = table.loc[:, ~table.columns.duplicated()]
    if absent := [name for name in columns if name not in table.columns]:
        raise InputError(f"{path}: no column {absent[0]!r}; its columns are {', '.join(map(repr, table.columns))}")
    return table.apply(lambda column: column.fillna("").str.strip())


def grouped(table: pd.DataFrame, key: str) -> Iterator[tuple[int, Rows]]:
    """The rows of each value of the column `key`, in the order in which the values come first.

    Rows keep the numbers which they had when the table was read; the number of a group is that of its first row.
    """
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(table[key]):
        groups.setdefault(value, []).append(i)
    columns, numbers = {name: table[name].tolist() for name in table.columns}, (table.index + 1).tolist()
    for places in groups.values():
        rows = [(numbers[i], {name: cells[i] for name, cells in columns.items()}) for i in places]
        yield rows[0][0], rows


def records(table: pd.DataFrame) -> Iterator[tuple[int, Cells]]:
    """The rows of a table one by one, with the numbers which they had when it was read."""
    columns = [table[name].tolist() for name in table.columns]
    for number, *cells in zip((table.index + 1).tolist(), *columns, strict=True):
        yield number, dict(zip(table.columns, cells, strict=True))


def check_row(row: Any) -> None:
    """Raise what is wrong with a row, or one of a group, before it is parsed: checks that all sources share go here.

    Raises:
        Unusable: it could not be read (`row` is the fault itself), or a cell holds bytes that could not be decoded.
    """
    if isinstance(row, Unusable):
        raise row
    for number, cells in row if isinstance(row, list) else [(None, row)]:
        for column, cell in cells.items() if isinstance(cells, Mapping) else ():
            if isinstance(cell, str) and _is_undecodable(cell):
                raise Unusable(column, "holds bytes that are no UTF-8; export the table in UTF-8", row=number)


def _is_undecodable(text: str) -> bool:
    """Whether the text holds bytes that could not be decoded (lone surrogates, see `read_table`)."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def filled(cells: Cells, column: str) -> str:
    """The cell of a column, which must not be empty."""
    if not cells[column]:
        raise Unusable(column, "is empty")
    return cells[column]


def one_of(choices: Container[str], named: str, cells: Cells, column: str, row: int | None = None) -> str:
    """The cell of a column, which must be one of the choices; `named` says in the message which they are."""
    if cells[column] not in choices:
        raise Unusable(column, f"{cells[column]!r} is not {named}", row=row)
    return cells[column]


def to_text(column: str, cell: str) -> str | None:
    """A report section with its white space collapsed; None where empty."""
    text = " ".join(cell.split())
    if _is_undecodable(text):
        raise Unusable(column, "holds bytes that are no UTF-8; export it in UTF-8")
    if len(text) > MAX_TEXT:
        raise Unusable(column, f"{len(text):,} characters; at most {MAX_TEXT:,} are taken")
    return text or None


def to_sex(cells: Cells, column: str | None) -> str | None:
    """F or M, also when spelled out; None where empty or unknown, or without a column."""
    cell = cells[column] if column else ""
    if cell.upper() not in _SEXES:
        raise Unusable(column, f"{cell!r} is not F or M")
    return _SEXES[cell.upper()]


def to_age(cells: Cells, column: str | None) -> float | None:
    """Years; None where empty, or without a column."""
    cell = cells[column] if column else ""
    try:
        age = float(cell) if cell else None
    except ValueError:
        raise Unusable(column, f"{cell!r} is not a number of years") from None
    if age is not None and not 0 <= age <= MAX_AGE:
        raise Unusable(column, f"{cell} is outside 0 to {MAX_AGE:g} years")
    return age
