"""The one driver behind every source: check the download, count it, decode its films, write the study folder.

A source module holds what is known of its release, its layout and a function that reads its tables into an `Intake`;
the rest is done here. Films are decoded by worker processes and stream through: no more than a shard of studies
(1,024) and what the processes hold is in memory. The finished shards of a preparation that was killed are used again.
The folder is the same, byte by byte, whatever the number of processes and however often it was interrupted.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import pandas as pd
from tqdm import tqdm

from cxrclip.data.files import digest
from cxrclip.data.images import MIN_SIDE, store_film
from cxrclip.data.progress import progress_bar
from cxrclip.data.shards import Rejected, ResumableStudies, refuse_many, resumable_studies
from cxrclip.data.sources.reports import Sections
from cxrclip.data.sources.tables import Cells, Rows, Unusable, check_row, name_in, read_table
from cxrclip.data.workers import Failure, in_order
from cxrclip.errors import InputError
from cxrclip.studies import SCHEMA, summary

VERSION = 2  # of stored rows: raise it when films or studies are stored otherwise, and finished shards are made again
FRONTAL, LATERAL, UNKNOWN = "FRONTAL", "LATERAL", "UNKNOWN"  # views of films of which no more, or nothing, is said
SHARD = 1024  # studies a file, and the step in which an interrupted preparation goes on
WORTH_IT = 64  # films that repay the start of one more process
DECODING_SECONDS = 120  # the largest films take two; a decoder that is still at it hangs
# Facts a source may count, besides rejected rows; they are reported.
COUNTED = ("not_downloaded", "in_two_folders", "without_row", "without_film", "missing_films", "guessed_views",
           "without_report", "without_frontal", "last_paragraphs", "addenda", "test_patients_removed", "odd_headers")
T = TypeVar("T")
_POSITIONAL = ("root", "out", "intake", "options", "columns", "return")


class Film(NamedTuple):
    """One image file of a release."""

    path: Path
    view: str


@dataclass(frozen=True, slots=True)
class Study:
    """One study of a release before its films are read; `Intake.take` adds the table and the row it comes from."""

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
    row: int | None = None
    file: str | None = None


@dataclass(frozen=True)
class Source:
    """A public release. Calling it prepares a download of it as a study folder.

    Args:
        name: the `source` column of the study table.
        contents: what `root` should be, for the message where there is no such folder.
        read: reads the tables of a download into an `Intake`; its keywords are the options of this source.
        release: where it comes from, and under which terms.
        columns: a dataclass whose fields are options, too.
    """

    name: str
    contents: str
    read: Callable[..., None]
    release: str = ""
    columns: type | None = None

    def __call__(
        self, root: str | Path, out: str | Path, *, allow_partial: bool = False, image_size: int = 512,
        max_rejected: float = 0.05, progress: bool = True, workers: int | None = None, **options: Any,
    ) -> pd.DataFrame:
        """Turn the download in `root` into the study folder `out`.

        Args:
            root: folder of the download.
            out: study folder to write.
            allow_partial: go on where the counts are not those of the full release.
            image_size: shorter side of the stored films in pixels; smaller films are not enlarged.
            max_rejected: share of unusable rows above which nothing is written.
            progress: show the counts and a bar.
            workers: processes that decode films; None takes one a core, and fewer for few films.
            **options: the keywords of `read`, described there.

        Returns:
            `cxrclip.studies.summary` of the folder. `dataset.json` also keeps the release, the published and the
            measured counts, and how many rows were skipped for which reason (`COUNTED`).

        Raises:
            InputError: an unknown option or one out of range, a missing folder, table or column, no film at all, a
                partial download, nothing usable or too little, a patient in two splits, or `out` cannot be written.
        """
        self._check(options)
        facts = {"release": self.release} if self.release else {}
        intake = Intake(self.name, Path(root), allow_partial=allow_partial, progress=progress, facts=facts)
        intake.need(intake.root.is_dir(), f"no such folder; give the folder of {self.contents}")
        self.read(intake, **options)  # the tables it read are free again when it returns
        return intake.write(out, image_size=image_size, max_rejected=max_rejected, workers=workers)

    def options(self) -> dict[str, Any]:
        """Every keyword of a call, and its type."""
        callees = (type(self).__call__, self.read, self.columns)
        known = {name: kind for callee in callees if callee for name, kind in get_type_hints(callee).items()}
        return {name: kind for name, kind in known.items() if name not in _POSITIONAL}

    def _check(self, options: Mapping[str, Any]) -> None:
        known = self.options()
        for name in options:
            if name not in known:
                raise InputError(f"option {name!r}: {self.name} has no such option; it has {', '.join(sorted(known))}")
        for callee in filter(None, (self.read, self.columns)):
            for name, parameter in inspect.signature(callee).parameters.items():
                if name in known and parameter.default is parameter.empty and not options.get(name):
                    raise InputError(f"{self.name}: option {name!r} is needed: {name}=...")


@dataclass
class Intake:
    """The rows of one release on their way into a study table: the good ones, and those set aside.

    Args:
        name: the `source` column of the study table.
        root: the folder of the release; messages name files relative to it.
        file: the table that row numbers refer to.
        taking: the table that is being taken, where there are several.
        facts: what `dataset.json` keeps in "about".
        splits: patient -> split, for the studies that do not have one of their own.
    """

    name: str
    root: Path
    file: str = ""
    taking: str = ""
    allow_partial: bool = False
    progress: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    studies: list[Study] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def need(self, present: Any, message: str) -> None:
        """Raise InputError, which names the root, where a part of the download is not `present`."""
        if not present:
            raise InputError(f"{self.root}: {message}")

    def read_table(self, path: Path, columns: Iterable[str], file: str = "") -> pd.DataFrame:
        """These columns of a table; rows that do not fit its header are set aside. file: how the table is named."""
        return read_table(path, columns, only=True, aside=partial(self.set_aside, file=file or path.name))

    def count(self, published: Mapping[str, int], measured: Mapping[str, int]) -> None:
        """Compare what this download holds with the published counts of its release, before any film is read.

        Raises:
            InputError: they differ and `allow_partial` is off: less is a partial download, more another release.
        """
        self._say(f"{self.name}:\n{compared(published, measured).to_string(index=False)}")
        differing = {what: (measured.get(what, 0), n) for what, n in published.items() if measured.get(what, 0) != n}
        listed = ", ".join(f"{what} {count:,} of {n:,}" for what, (count, n) in differing.items())
        kind, remedy = f"a partial download of {self.name}", "fetch the rest"
        if any(count > n for count, n in differing.values()):
            kind, remedy = f"not the {self.name} release known here", "check its version"
        whole = self.allow_partial or not differing
        self.need(whole, f"{kind}: {listed}; {remedy}, or set --allow-partial (allow_partial=True) to go on")
        self.facts["counts"] = {"whole": not differing, "expected": dict(published), "found": dict(measured)}

    def tally(self, fact: str, number: int = 1) -> None:
        """Count one more of what `COUNTED` names."""
        self.facts[fact] = self.facts.get(fact, 0) + number

    def tallied(self, report: Sections) -> Sections:
        """The report itself; whether it has addenda, or its last paragraph as impression, is counted, and so are the
        headings whose text is not kept."""
        self.tally("last_paragraphs", report.last_paragraph)
        self.tally("addenda", report.addenda > 0)
        self.facts.setdefault("dropped_headings", Counter()).update(report.dropped)
        return report

    def usable(
        self, rows: Iterable[tuple[int, Any]], parse: Callable[[Any], T], file: str = ""
    ) -> Iterator[tuple[int, T]]:
        """What `parse` makes of each row or group of rows, with its number; what is `Unusable` is set aside.

        Rows of studies and of labels come through here in all sources, and are checked by `check_row`. `file` names a
        table other than the one that is being taken.
        """
        for number, row in rows:
            try:
                check_row(row)
                yield number, parse(row)
            except Unusable as fault:
                self.set_aside(fault.row or number, fault.column, fault.reason, fault.file or file)

    def first_of(self, rows: Iterable[tuple[int, tuple[str, T]]], column: str, file: str) -> dict[str, T]:
        """Key -> value of the first row of each key; rows that name it again are set aside."""
        first: dict[str, tuple[int, T]] = {}
        for number, (key, value) in rows:
            if first.setdefault(key, (number, value))[0] != number:
                self.set_aside(number, column, f"{key} stands already in row {first[key][0]}; the first is kept", file)
        return {key: value for key, (_, value) in first.items()}

    def take(self, rows: Iterable[tuple[int, Any]], parse: Callable[[Any], Study | None], file: str = "") -> None:
        """Keep the study that `parse` makes of each row or group of rows; skip None, set doubles aside.

        `file` names a table other than the intake's own.
        """
        self.taking = file or self.file
        first_row = {study.study_id: study.row for study in self.studies}
        for number, study in self.usable(rows, parse):
            if study is None:
                continue
            outside = [film.path for film in study.films if ".." in film.path.parts[len(self.root.parts):]]
            if outside:
                self.set_aside(number, "", "names a film by a path with '..'; give it from the root, or absolute")
            elif (first := first_row.setdefault(study.study_id, number)) != number:
                self.set_aside(number, "study", f"{study.study_id} stands already in row {first}; the first is kept")
            else:
                self.studies.append(replace(study, row=number, file=self.taking))

    def usable_films(
        self, group: Rows, parse: Callable[[Cells], tuple[str, Film | None]], *, unique: str, shared: Sequence[str]
    ) -> tuple[list[Film], Cells]:
        """The films of a study, a row each, and its first usable row; rows that repeat or contradict one are set aside.

        Args:
            parse: a row -> what no two films of the study have in common, and the film (None: not downloaded).
            unique: the column of the former.
            shared: columns in which all rows of a study are equal.
        """
        rows, cells = list(self.usable(group, parse)), dict(group)
        films: list[Film] = []
        first_row: dict[str, int] = {}
        first = rows[0][0] if rows else None
        for row, (name, film) in rows:
            if first_row.setdefault(name, row) != row:
                self.set_aside(row, unique, f"{name} stands already in row {first_row[name]}; the first is kept")
            elif column := next((key for key in shared if cells[row][key] != cells[first][key]), ""):
                self.set_aside(row, column, f"differs from row {first}, a film of the same study")
            elif film is None:
                self.tally("not_downloaded")
            else:
                films.append(film)
        return films, cells.get(first, {})

    def set_aside(self, row: int | None, column: str, reason: str, file: str | None = None) -> None:
        """List a row as unusable; `file` where it is not of the table that is being taken."""
        self.rejected.append(Rejected(file or self.taking or self.file, row, column, reason))

    def write(
        self, out: str | Path, *, image_size: int = 512, max_rejected: float = 0.05, workers: int | None = None
    ) -> pd.DataFrame:
        """Decode the films, write the folder `out`, return its summary; arguments and errors as of `Source`."""
        if image_size < MIN_SIDE or not 0 <= max_rejected <= 1:
            raise InputError(f"image_size={image_size} needs at least {MIN_SIDE}; max_rejected={max_rejected} 0 to 1")
        if workers is not None and workers < 1:
            raise InputError(f"workers={workers}: give at least 1, or None for a process a core")
        first = f" ({self.rejected[0]})" if self.rejected else ""
        self.need(self.studies, f"no usable study in {self.file}{first}; check the download and its columns")
        self._set_splits()
        check = partial(refuse_many, self.rejected, len(self.studies) + len(self.rejected), max_rejected, out)
        check()
        with resumable_studies(out) as table:
            self._fill(table, image_size, workers, check)
            table.finish({"source": self.name, "image_size": image_size, **self.facts}, self.rejected)
        counts = {"rejected": len(self.rejected)} | {k: n for k, n in self.facts.items() if k in COUNTED}
        listed = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
        self._say(f"{self.name}: {len(self.studies):,} studies of {self.file} found; {listed}")
        return summary({self.name: out})

    def _say(self, text: str) -> None:
        if self.progress:
            tqdm.write(text, file=sys.stderr)

    def _set_splits(self) -> None:
        """Give each study without a split the one of its patient, who must have one only."""
        first: dict[str, Study] = {}
        for i, study in enumerate(self.studies):
            if not study.split:
                study = self.studies[i] = replace(study, split=self.splits.get(study.patient_id, ""))
            before = first.setdefault(study.patient_id, study)
            if study.split != before.split:
                rows = f"{self.root / self.file}, rows {before.row} and {study.row}"
                raise InputError(f"{rows}: patient {study.patient_id} is in {before.split} and in {study.split}; give "
                                 "every patient one split")

    def _fill(self, table: ResumableStudies, size: int, workers: int | None, check: Callable[[], None]) -> None:
        """Make every shard that is not there yet. `check` stops at too many bad films."""
        parts = [self.studies[start : start + SHARD] for start in range(0, len(self.studies), SHARD)]
        keys = [self._key(part, size) for part in parts]
        finished = [table.has(number, key) for number, key in enumerate(keys)]
        todo = [film for part, whole in zip(parts, finished, strict=True) if not whole
                for study in part for film in study.films]
        total = sum(len(study.films) for study in self.studies)
        if done := total - len(todo):
            self._say(f"{self.name}: going on after {done:,} of {total:,} films")
        calls = ((film.path, name_in(self.root, film.path), size) for film in todo)
        workers = workers or max(1, min(os.cpu_count() or 1, len(todo) // WORTH_IT))
        bar = progress_bar(total=total, initial=done, desc=self.name, unit="film", shown=self.progress,
                           smoothing=0)  # the time left is by the mean speed of this run, without what earlier runs did
        with bar, in_order(store_film, calls, workers, DECODING_SECONDS) as decoded:
            for number, (part, key) in enumerate(zip(parts, keys, strict=True)):
                if finished[number]:
                    self.rejected += table.reuse(number)
                    check()
                    continue
                before, rows = len(self.rejected), []
                for study in part:
                    rows += self._row(study, itertools.islice(decoded, len(study.films)))
                    check()
                    bar.update(len(study.films))
                table.add(number, key, rows, self.rejected[before:])

    def _key(self, part: Sequence[Study], size: int) -> str:
        """A hash of all that a shard depends on: settings, its studies, and its films, which may be mended or come."""
        films = [[_stamp(film.path) for film in study.films] for study in part]
        return digest([VERSION, self.name, str(self.root), size, repr(part), films])

    def _row(self, study: Study, decoded: Iterator[bytes | InputError | Failure]) -> list[dict[str, Any]]:
        """The study's row, or none where no film of it can be used."""
        good: list[tuple[Film, bytes]] = []
        for film, data in zip(study.films, decoded, strict=True):
            if isinstance(data, Failure):
                name = name_in(self.root, film.path)
                data = InputError(f"{name}: a decoder {data.reason} on this file; download or export it again")
            if isinstance(data, InputError):
                self.set_aside(study.row, "image", str(data), study.file)
            else:
                good.append((film, data))
        row = {field.name: getattr(study, field.name) for field in fields(study) if field.name in SCHEMA.names}
        row["images"] = [{"bytes": data, "path": name_in(self.root, film.path)} for film, data in good]
        return [row | {"source": self.name, "views": [film.view for film, _ in good]}] if good else []


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None where it is not there."""
    try:
        return path.stat().st_size, path.stat().st_mtime_ns
    except (OSError, ValueError):  # a name with a NUL
        return None


def compared(published: Mapping[str, int], measured: Mapping[str, int]) -> pd.DataFrame:
    """Columns count, expected, found, and a remark where they differ; counts without a published number last."""
    lines = []
    for what in dict.fromkeys([*published, *measured]):
        expected, count = published.get(what), measured.get(what, 0)
        remark = "" if expected in (None, count) else f"{count - expected:+,}"
        lines.append((what, "-" if expected is None else f"{expected:,}", f"{count:,}", remark))
    return pd.DataFrame(lines, columns=["count", "expected", "found", ""])
