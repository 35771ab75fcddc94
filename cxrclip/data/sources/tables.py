"""The tables of a release: reading them, going through their rows, and what a cell may say."""

from __future__ import annotations

import csv
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import compress
from operator import itemgetter
from pathlib import Path
from typing import Any, TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxrclip.errors import InputError
from cxrclip.studies import MAX_AGE, MAX_TEXT

Cells = Mapping[str, str]
Rows = list[tuple[int, Cells]]
"""The rows of one study, each with its number in the table."""
SUFFIXES = (".dicom", ".dcm", ".png", ".jpg", ".jpeg")  # of films: a release's own first, then converted by hand
_EMPTY = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT"}  # how pandas, Python and databases write nothing
_YEARS = {"Y": 1.0, "": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}
_AGE = re.compile(r"(\d{1,3})([YMWD]?)")
# What gzip, zipfile and pyarrow raise on damaged files and on kinds that they do not know.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile,
               pa.ArrowException)
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


def film_at(path: str) -> str:
    """The film at a path, else one beside it that differs in its suffix only (converted by hand); "" without."""
    stem, suffix = os.path.splitext(path)
    stem = stem if suffix.lower() in SUFFIXES else path
    return next(filter(os.path.isfile, (path, *(stem + suffix for suffix in SUFFIXES))), "")


def read_table(
    path: Path, columns: Iterable[str], *, only: bool = False, aside: Callable[[int, str, str], None] | None = None
) -> pd.DataFrame:
    """Read a CSV (also .gz, .zip) or Parquet table with every cell as stripped text ("" where empty, see `plain_cell`).

    Bytes that are no UTF-8 are kept as lone surrogates: `check_row` finds them. The index counts the rows from 0.

    Args:
        columns: columns the table must have.
        only: read no other column, to spare memory.
        aside: takes row, column and reason of a CSV row with too many or too few fields, which is then left out.
            None refuses the table: where a film has several rows, the others would say something else of it.

    Raises:
        InputError: no such file, not a table, a column in `columns` is missing, or a row does not fit the header.
    """
    columns = list(columns)
    if not path.is_file():
        raise InputError(f"{path}: no such table; check the folder and the file name")
    try:
        numbers, cells = (_read_parquet if path.suffix == ".parquet" else _read_csv)(path, columns, only, aside)
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{path}: not a readable table ({reason}); export it again as CSV in UTF-8") from error
    for name, column in cells.items():
        plain = {cell: plain_cell(cell) for cell in set(column)}
        cells[name] = list(map(plain.__getitem__, column))
    return pd.DataFrame(cells, index=numbers, dtype=object)


def plain_cell(cell: str) -> str:
    """A stripped cell: "" where a program wrote that it is empty; whole numbers that became floats are whole again."""
    cell = cell.strip()
    if cell in _EMPTY:
        return ""
    return cell[:-2] if cell.endswith(".0") and cell[:-2].removeprefix("-").isdecimal() else cell


def _places(path: Path, header: Sequence[str], columns: Sequence[str], only: bool) -> dict[str, int]:
    """Name -> place of the columns to read; of several with one name the first."""
    places = {name.strip(): i for i, name in reversed(list(enumerate(header)))}  # SIIM's has a space after its comma
    if absent := [name for name in columns if name not in places]:
        # The first line of a table without a header is patient data: it is not shown.
        listed = f"its columns are {', '.join(map(repr, reversed(places)))}" if len(absent) < len(columns) else (
            "nor any other that is needed: its first line must be the header")
        raise InputError(f"{path}: no column {absent[0]!r}; {listed}")
    return {name: i for name, i in sorted(places.items(), key=lambda item: item[1]) if not only or name in columns}


def _read_csv(
    path: Path, columns: Sequence[str], only: bool, aside: Callable[[int, str, str], None] | None
) -> tuple[list[int], dict[str, list[str]]]:
    """Row numbers (from 0) and columns of a CSV table.

    Rows may all end in commas that the header does not have, as NIH's do; one row alone that does has lost its quotes.
    """
    lines, widths, flat, line = [], [], [], 1  # of each row: where it starts, its number of fields, the cells to read
    with _opened(path) as text:
        reader = csv.reader(text, strict=True)
        try:
            header = next(reader, [])
            ",".join(header).encode()  # the header itself must be UTF-8
            while header and not header[-1].strip():
                header.pop()
            if not header:
                raise ValueError("it has no header")
            places, line = _places(path, header, columns, only), reader.line_num + 1
            need, wanted = len(header), list(places.values())
            for row in reader:
                width = len(row)
                if width > 1 or (row and row[0].strip()):  # a blank line is no row
                    if width != need and (width < need or "".join(row[need:]).strip()):
                        width = -width  # it cannot be read
                    lines.append(line)
                    widths.append(width)
                    flat += [row[i] for i in wanted] if width > 0 else [""] * len(wanted)
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path}: line {line}: a quote is not closed or not doubled ({error}); mend that row, or "
                             "export the table again") from error
    width, many = max(Counter(widths).items(), key=itemgetter(1), default=(0, 0))
    width = width if width > 0 and 2 * many > len(widths) else need
    faults = [i for i, n in enumerate(widths) if n != width]
    reasons = [f"line {lines[i]} has {abs(widths[i])} fields, not {width}; quote cells with commas, or export it again"
               for i in faults]
    if faults and (aside is None or len(faults) == len(widths)):
        raise InputError(f"{path}: {reasons[0]}")
    for i, reason in zip(faults, reasons, strict=True):
        aside(i + 1, "", reason)
    good = [n == width for n in widths]
    cells = {name: list(compress(flat[place :: len(places)], good)) for place, name in enumerate(places)}
    return list(compress(range(len(good)), good)), cells


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """The text of a table, unpacked."""
    with ExitStack() as stack:
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            if len(archive.namelist()) != 1:
                raise ValueError(f"{len(archive.namelist())} files in it, not one")
            binary = stack.enter_context(archive.open(archive.namelist()[0]))
        else:
            binary = stack.enter_context((gzip.open if path.suffix == ".gz" else open)(path, "rb"))
        yield io.TextIOWrapper(binary, "utf-8-sig", "surrogateescape", newline="")


def _read_parquet(path: Path, columns: Sequence[str], only: bool, *_: object) -> tuple[range, dict[str, list[str]]]:
    """Row numbers (from 0) and columns of a Parquet table, without those of lists or bytes that nobody needs."""
    with pq.ParquetFile(path) as file:
        cells = {}
        for name, place in _places(path, file.schema_arrow.names, columns, only).items():
            kind = file.schema_arrow.field(place).type
            if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
                if name in columns:
                    raise InputError(f"{path}: column {name!r} holds {kind}, not text or numbers; export it as text")
                continue
            values = file.read(columns=[file.schema_arrow.names[place]]).column(0).to_pylist()
            if len(values) != file.metadata.num_rows:
                raise ValueError(f"column {name!r} has {len(values)} of {file.metadata.num_rows} rows")
            cells[name] = ["" if value is None else str(value) for value in values]
        return range(file.metadata.num_rows), cells


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


def years_of(age: str) -> float | None:
    """"061Y" -> 61.0; also months, weeks, days, and a bare number. None where it makes no sense."""
    parts = _AGE.fullmatch(age.upper())
    return int(parts[1]) * _YEARS[parts[2]] if parts else None


def to_age(cells: Cells, column: str | None) -> float | None:
    """Years, also written as in DICOM ("058Y", "011M"); None where empty, or without a column."""
    cell = cells[column] if column else ""
    try:
        if (age := years_of(cell)) is None and cell:
            age = float(cell)
    except ValueError:
        raise Unusable(column, f"{cell!r} is not a number of years") from None
    if age is not None and not 0 <= age <= MAX_AGE:
        raise Unusable(column, f"{cell} is outside 0 to {MAX_AGE:g} years")
    return age
