"""What every source shares: read its tables, set bad rows aside, decode its films, write the study table.

Films are decoded by several processes and stream through: no more than a shard of studies (1,024) and what the
processes hold is in memory. The finished shards of a preparation that was killed are used again. The folder is
the same, byte by byte, whatever the number of processes and however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, TypeVar

import pandas as pd
from tqdm import tqdm

from cxrclip import studies
from cxrclip.data import images
from cxrclip.data.images import MIN_SIDE, store_films
from cxrclip.data.progress import progress_bar
from cxrclip.data.shards import Rejected, ResumableStudies, refuse_many, resumable_studies
from cxrclip.data.sources import pool
from cxrclip.errors import InputError
from cxrclip.studies import MAX_AGE, MAX_TEXT, SPLITS, summary

UNKNOWN = "UNKNOWN"  # the view of a film of which nothing is said
SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
T = TypeVar("T")
SHARD = 1024  # studies a file, and the step in which an interrupted preparation goes on
BATCH = 16  # films a process decodes at a time
WORTH_IT = 64  # films that repay the start of one more process
# Facts a source may count, besides rejected rows; they are reported.
COUNTED = ("not_downloaded", "in_two_folders", "without_row", "without_film", "missing_films", "guessed_views",
           "without_report", "without_frontal", "last_paragraphs", "addenda", "test_patients_removed", "odd_headers")


class Film(NamedTuple):
    """One image file of a release."""

    path: Path
    view: str


@dataclass(frozen=True, slots=True)
class Study:
    """One study of a release before its films are read; `row` is its place in the table it comes from.

    `file` names that table where it is not the intake's own.
    """

    row: int
    study_id: str
    patient_id: str
    films: Sequence[Film]
    split: str = ""
    findings: str | None = None
    impression: str | None = None
    positive: Sequence[str] = ()
    negative: Sequence[str] = ()
    uncertain: Sequence[str] = ()
    sex: str | None = None
    age: float | None = None
    file: str | None = None


class Unusable(Exception):
    """A cell which makes its row unusable; `row` and `file` where they are not those of the row being parsed."""

    def __init__(self, column: str, reason: str, *, row: int | None = None, file: str | None = None) -> None:
        super().__init__(f"{column}: {reason}")
        self.column, self.reason, self.row, self.file = column, reason, row, file


class Writing(TypedDict, total=False):
    """Parameters of `Intake.write` that every source passes on."""

    image_size: int
    max_rejected: float
    workers: int | None


Cells = Mapping[str, str]
Rows = list[tuple[int, Cells]]
"""The rows of one study, each with its number in the table."""


@dataclass
class Intake:
    """The rows of one release on their way into a study table: the good ones, and those set aside.

    Args:
        name: the `source` column of the study table.
        root: the folder of the release; messages name files relative to it.
        file: the table that row numbers refer to.
        facts: what `dataset.json` keeps in "about".
    """

    name: str
    root: Path
    file: str
    facts: dict[str, Any]
    studies: list[Study] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def take(self, rows: Iterable[Any], parse: Callable[[int, Any], Study | None]) -> None:
        """Parse each row (numbered from 1); keep the study, skip None, set the row aside on `Unusable`."""
        self.take_numbered(enumerate(rows, 1), parse)

    def take_groups(
        self, groups: Iterable[Rows], parse: Callable[[int, Rows], Study | None], file: str | None = None
    ) -> None:
        """As `take`, where several rows of a table make one study: its number is that of its first row."""
        self.take_numbered(((group[0][0], group) for group in groups), parse, file)

    def take_numbered(
        self, rows: Iterable[tuple[int, Any]], parse: Callable[[int, Any], Study | None], file: str | None = None
    ) -> None:
        """As `take`, of rows that come with their numbers; `file` where it is not the intake's own table."""
        seen: dict[str, int] = {study.study_id: study.row for study in self.studies}
        for number, row in rows:
            try:
                _check_encoding(row)
                study = parse(number, row)
                if study is not None:
                    first = seen.setdefault(study.study_id, number)
                    if first != number:
                        raise Unusable("study", f"{study.study_id} stands already in row {first}; the first is kept")
                    self.studies.append(study)
            except Unusable as fault:
                self.set_aside(fault.row or number, fault.column, fault.reason, fault.file or file)

    def usable(
        self, rows: Iterable[tuple[int, Cells]], parse: Callable[[Cells], T], file: str | None = None
    ) -> list[tuple[int, T]]:
        """What `parse` makes of each row, with its number; rows it calls `Unusable` are set aside."""
        good = []
        for number, cells in rows:
            try:
                good.append((number, parse(cells)))
            except Unusable as fault:
                self.set_aside(number, fault.column, fault.reason, fault.file or file)
        return good

    def set_aside(self, row: int | None, column: str, reason: str, file: str | None = None) -> None:
        """List a row as unusable; `file` where it is not the intake's own table."""
        self.rejected.append(Rejected(file or self.file, row, column, reason))

    def write(
        self,
        out: str | Path,
        splits: Mapping[str, str],
        *,
        image_size: int = 512,
        max_rejected: float = 0.05,
        progress: bool = True,
        workers: int | None = None,
    ) -> pd.DataFrame:
        """Decode the films, write the folder `out`, return its summary.

        Args:
            out: study folder to write.
            splits: patient -> split, for the studies that do not have one yet.
            image_size: shorter side of the stored films in pixels; smaller films are not enlarged.
            max_rejected: share of unusable rows above which nothing is written.
            progress: show a bar.
            workers: processes which decode films; None takes a process a core, and fewer for few films.

        Raises:
            InputError: nothing usable, a patient in two splits, more than the share `max_rejected` of all
                rows unusable, a parameter out of range, or `out` cannot be written.
        """
        if image_size < MIN_SIDE or not 0 <= max_rejected <= 1:
            raise InputError(f"image_size={image_size} needs at least {MIN_SIDE}; max_rejected={max_rejected} 0 to 1")
        if workers is not None and workers < 1:
            raise InputError(f"workers={workers}: give at least 1, or None for a process a core")
        if not self.studies:
            first = f" ({self.rejected[0]})" if self.rejected else ""
            raise InputError(f"{self.root}: no usable study in {self.file}{first}; check the download and its columns")
        self._check_patients(splits)
        refuse_many(self.rejected, len(self.studies) + len(self.rejected), max_rejected, out)
        about = {"source": self.name, "image_size": image_size, **self.facts}
        with resumable_studies(out) as table:
            shards = self._fill(table, splits, image_size, max_rejected, workers, progress)
            table.finish(about, self.rejected, shards)
        if progress:
            counts = {"rejected": len(self.rejected)} | {k: n for k, n in self.facts.items() if k in COUNTED}
            said = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
            tqdm.write(f"{self.name}: {len(self.studies):,} studies of {self.file} found; {said}", file=sys.stderr)
        return summary({self.name: out})

    def _check_patients(self, splits: Mapping[str, str]) -> None:
        first: dict[str, Study] = {}
        for study in self.studies:
            before = first.setdefault(study.patient_id, study)
            here, there = (s.split or splits.get(s.patient_id, "") for s in (study, before))
            if here != there:
                raise InputError(
                    f"{self.root / self.file}, rows {before.row} and {study.row}: patient {study.patient_id} is in "
                    f"{there} and in {here}; give every patient one split"
                )

    def _fill(
        self,
        table: ResumableStudies,
        splits: Mapping[str, str],
        size: int,
        max_rejected: float,
        workers: int | None,
        progress: bool,
    ) -> int:
        """Make every shard that is not there yet; return how many there are."""
        total = len(self.studies) + len(self.rejected)
        parts = [self.studies[start : start + SHARD] for start in range(0, len(self.studies), SHARD)]
        keys = [self._key(part, splits, size) for part in parts]
        there = [table.has(number, key) for number, key in enumerate(keys)]
        films = [sum(len(study.films) for study in part) for part in parts]
        done = sum(n for n, is_there in zip(films, there, strict=True) if is_there)
        if done and progress:
            tqdm.write(f"{self.name}: going on after {done:,} of {sum(films):,} films", file=sys.stderr)
        todo = (study for part, is_there in zip(parts, there, strict=True) if not is_there for study in part)
        workers = workers or max(1, min(os.cpu_count() or 1, (sum(films) - done) // WORTH_IT))
        bar = progress_bar(total=sum(films), initial=done, desc=self.name, unit="film", shown=progress, smoothing=0)
        with (
            bar,  # smoothing=0: the time left is by the mean speed of this run, without what earlier runs did
            pool.in_order(partial(store_films, size=size), self._batches(todo), workers, _crashed) as batches,
        ):
            stored = itertools.chain.from_iterable(batches)
            for number, (part, key) in enumerate(zip(parts, keys, strict=True)):
                if there[number]:
                    self.rejected += table.reuse(number)
                    refuse_many(self.rejected, total, max_rejected, table.folder)
                    continue
                before, rows = len(self.rejected), []
                for study in part:
                    rows += self._row(study, list(itertools.islice(stored, len(study.films))), splits)
                    refuse_many(self.rejected, total, max_rejected, table.folder)
                    bar.update(len(study.films))
                table.add(number, key, rows, self.rejected[before:])
        return len(parts)

    def _key(self, part: Sequence[Study], splits: Mapping[str, str], size: int) -> str:
        """A hash of all that a shard depends on: its studies, the times and sizes of its films, and the code."""
        digest = hashlib.sha256(f"{_code()} {self.name} {self.root} {self.file} {size}".encode())
        for study in part:
            stamps = [_stamp(film.path) for film in study.films]
            digest.update(repr((study, splits.get(study.patient_id), stamps)).encode())
        return digest.hexdigest()

    def _batches(self, todo: Iterable[Study]) -> Iterator[list[tuple[Path, str]]]:
        films = ((film.path, self._name(film)) for study in todo for film in study.films)
        while batch := list(itertools.islice(films, BATCH)):
            yield batch

    def _row(
        self, study: Study, films: Sequence[bytes | InputError], splits: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """The study's row, or none where no film of it can be used."""
        for error in films:
            if isinstance(error, InputError):
                self.rejected.append(Rejected(study.file or self.file, study.row, "image", str(error)))
        good = [(film, data) for film, data in zip(study.films, films, strict=True) if isinstance(data, bytes)]
        if not good:
            return []
        return [
            {
                **{name: getattr(study, name) for name in _COPIED},
                "source": self.name,
                "split": study.split or splits[study.patient_id],
                "images": [{"bytes": data, "path": self._name(film)} for film, data in good],
                "views": [film.view for film, _ in good],
            }
        ]

    def _name(self, film: Film) -> str:
        return name_in(self.root, film.path)


_COPIED = ("study_id", "patient_id", "findings", "impression", "positive", "negative", "uncertain", "sex", "age")


def _crashed(batch: Sequence[tuple[Path, str]]) -> list[InputError]:
    return [InputError(f"{where}: a decoder crashed on this file; download or export it again") for _, where in batch]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None where it is not there: a film that changed or came is read again."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@cache
def _code() -> str:
    """Names the code and libraries that turn films into rows."""
    files = [Path(module.__file__).read_bytes() for module in (images, studies)] + [Path(__file__).read_bytes()]
    libraries = {name: version(name) for name in ("numpy", "opencv-python-headless", "pillow", "pyarrow", "pydicom")}
    return f"{hashlib.sha256(b''.join(files)).hexdigest()} {libraries}"


def existing(root: str | Path, what: str) -> Path:
    """The folder of a release, which must exist."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder; give the folder of {what}")
    return root


def find_one(root: Path, pattern: str) -> Path | None:
    """The last (newest version) of the files that match, in `root` or up to two folders below; None without."""
    for prefix in ("", "*/", "*/*/"):
        if found := sorted(root.glob(prefix + pattern)):
            return found[-1]
    return None


def name_in(root: Path, path: Path) -> str:
    """The path relative to the release, or the bare file name where it lies outside."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name


def read_table(path: Path, columns: Iterable[str], *, only: bool = False) -> pd.DataFrame:
    """Read a CSV (also .gz, .zip) or Parquet table with every cell as stripped text ("" where empty).

    Bytes that are no UTF-8 are kept as lone surrogates: `Intake.take` sets their rows aside.

    Args:
        columns: columns the table must have.
        only: read no other column, to spare memory.

    Raises:
        InputError: no such file, not a table, or a column in `columns` is missing.
    """
    columns = list(columns)
    try:
        names, table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path, columns, only)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such table; check the folder and the file name") from error
    except (OSError, ValueError, EOFError, zlib.error) as error:  # pandas, pyarrow, gzip: parser and format errors
        reason = (str(error).splitlines() or ["?"])[0]
        raise InputError(f"{path}: not a readable table ({reason}); export it again as CSV in UTF-8") from error
    if absent := [name for name in columns if name not in names]:
        raise InputError(f"{path}: no column {absent[0]!r}; its columns are {', '.join(map(repr, names))}")
    return table.apply(lambda column: column.fillna("").str.strip())


def _read_parquet(path: Path) -> tuple[list[str], pd.DataFrame]:
    table = pd.read_parquet(path).map(lambda cell: "" if pd.isna(cell) else str(cell))
    return list(table.columns), table


def _read_csv(path: Path, columns: list[str], only: bool) -> tuple[list[str], pd.DataFrame]:
    """The names in the header, and the table (without rows where a column of `columns` is missing)."""
    options = {"dtype": object, "index_col": False, "encoding": "utf-8-sig", "encoding_errors": "surrogateescape"}
    header = pd.read_csv(path, nrows=0, **options)
    ",".join(header.columns).encode()  # the header itself must be UTF-8
    if not set(columns) <= set(header.columns):
        return list(header.columns), header
    table = pd.read_csv(path, keep_default_na=False, usecols=columns if only else None, **options)
    return list(header.columns), table


def grouped(table: pd.DataFrame, key: str) -> Iterator[Rows]:
    """The rows of each value of the column `key`, in the order in which the values come first.

    Rows keep the numbers which they had when the table was read.
    """
    groups: dict[str, list[int]] = {}
    for i, value in enumerate(table[key]):
        groups.setdefault(value, []).append(i)
    columns, numbers = {name: table[name].tolist() for name in table.columns}, (table.index + 1).tolist()
    for places in groups.values():
        yield [(numbers[i], {name: cells[i] for name, cells in columns.items()}) for i in places]


def records(table: pd.DataFrame) -> Iterator[tuple[int, Cells]]:
    """The rows of a table one by one, with the numbers which they had when it was read."""
    columns = [table[name].tolist() for name in table.columns]
    for number, *cells in zip((table.index + 1).tolist(), *columns, strict=True):
        yield number, dict(zip(table.columns, cells, strict=True))


def _check_encoding(row: Any) -> None:
    for number, cells in row if isinstance(row, list) else [(None, row)]:
        for column, cell in cells.items() if isinstance(cells, Mapping) else ():
            if isinstance(cell, str) and is_undecodable(cell):
                raise Unusable(column, "holds bytes that are no UTF-8; export the table in UTF-8", row=number)


def is_undecodable(text: str) -> bool:
    """Whether the text holds bytes that could not be decoded (lone surrogates, see `read_table`)."""
    return not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text)


def split_patients(patients: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give every patient a split. Patients are put in the order of a seeded hash and cut by `shares`.

    So the order of the rows does not matter, and a patient seldom moves when more of a release is downloaded.

    Args:
        shares: split -> share of the patients; they sum to 1.

    Raises:
        InputError: an unknown split, a negative share, or shares that do not sum to 1.
    """
    if not set(shares) <= set(SPLITS) or min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(f"shares {dict(shares)}: give {', '.join(SPLITS)} shares from 0 to 1 that sum to 1")
    ordered = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    cuts = [round(share * len(ordered)) for share in itertools.accumulate(shares.get(split, 0) for split in SPLITS)]
    bounds = zip(SPLITS, [0, *cuts[:-1]], cuts, strict=True)
    return {patient: split for split, start, stop in bounds for patient in ordered[start:stop]}


def to_text(column: str, cell: str) -> str | None:
    """A report section with its white space collapsed; None where empty."""
    text = " ".join(cell.split())
    if is_undecodable(text):
        raise Unusable(column, "holds bytes that are no UTF-8; export it in UTF-8")
    if len(text) > MAX_TEXT:
        raise Unusable(column, f"{len(text):,} characters; at most {MAX_TEXT:,} are taken")
    return text or None


def to_sex(column: str, cell: str) -> str | None:
    """F or M, also when spelled out; None where empty or unknown."""
    known = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M", "": None, "UNKNOWN": None, "U": None}
    if cell.upper() not in known:
        raise Unusable(column, f"{cell!r} is not F or M")
    return known[cell.upper()]


def to_age(column: str, cell: str) -> float | None:
    """Years; None where empty."""
    try:
        age = float(cell) if cell else None
    except ValueError:
        raise Unusable(column, f"{cell!r} is not a number of years") from None
    if age is not None and not 0 <= age <= MAX_AGE:
        raise Unusable(column, f"{cell} is outside 0 to {MAX_AGE:g} years")
    return age
