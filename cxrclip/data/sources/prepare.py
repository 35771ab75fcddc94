"""The one driver behind every source: check the download, count it, decode its films, write the study folder.

A source module holds what is known of its release, its layout and a function that reads its tables into an `Intake`;
the rest is done here. Films are decoded by worker processes and stream through: no more than a shard of studies
(1,024) and what the processes hold is in memory. The finished shards of a preparation that was killed are used again.
The folder is the same, byte by byte, whatever the number of processes and however often it was interrupted.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

import pandas as pd
from tqdm import tqdm

from cxrclip.data.images import MIN_SIDE, store_film
from cxrclip.data.progress import progress_bar
from cxrclip.data.shards import Rejected, ResumableStudies, refuse_many, resumable_studies
from cxrclip.data.sources.counts import check_counts
from cxrclip.data.sources.tables import Cells, Rows, Unusable, check_encoding, name_in
from cxrclip.data.workers import Failure, in_order
from cxrclip.errors import InputError
from cxrclip.studies import summary

VERSION = 1  # of stored rows: raise it when films or studies are stored otherwise, and finished shards are made again
UNKNOWN = "UNKNOWN"  # the view of a film of which nothing is said
SHARD = 1024  # studies a file, and the step in which an interrupted preparation goes on
WORTH_IT = 64  # films that repay the start of one more process
DECODING_SECONDS = 120  # the largest films take two; a decoder that is still at it hangs
# Facts a source may count, besides rejected rows; they are reported.
COUNTED = ("not_downloaded", "in_two_folders", "without_row", "without_film", "missing_films", "guessed_views",
           "without_report", "without_frontal", "last_paragraphs", "addenda", "test_patients_removed", "odd_headers")
_COPIED = ("study_id", "patient_id", "findings", "impression", "positive", "negative", "uncertain", "sex", "age")
T = TypeVar("T")


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


@dataclass(frozen=True)
class Source:
    """A public release. Calling it prepares a download of it as a study folder.

    Args:
        name: the `source` column of the study table.
        contents: what `root` is expected to be, for the message where there is no such folder.
        read: reads the tables of a download into an `Intake`; its keywords are the options of this source.
        release: where the release comes from, and under which terms.
        columns: a dataclass whose fields are options, too.
    """

    name: str
    contents: str
    read: Callable[..., None]
    release: str = ""
    columns: type | None = None

    def __call__(
        self,
        root: str | Path,
        out: str | Path,
        *,
        allow_partial: bool = False,
        image_size: int = 512,
        max_rejected: float = 0.05,
        progress: bool = True,
        workers: int | None = None,
        **options: Any,
    ) -> pd.DataFrame:
        """Turn the download in `root` into the study folder `out`.

        Args:
            root: folder of the download.
            out: study folder to write.
            allow_partial: go on where the counts are not those of the full release. Films which are not there then
                count as not downloaded.
            image_size: shorter side of the stored films in pixels; smaller films are not enlarged.
            max_rejected: share of unusable rows above which nothing is written.
            progress: show the counts and a bar.
            workers: processes which decode films; None takes a process a core, and fewer for few films.
            **options: the keywords of `read`, described there.

        Returns:
            `cxrclip.studies.summary` of the folder. `dataset.json` also keeps the release, the published and the
            measured counts, and how many rows were skipped for which reason (`COUNTED`).

        Raises:
            InputError: an unknown option or one out of range, a missing folder, table or column, no film at all, a
                partial download, nothing usable, a patient in two splits, more than the share `max_rejected` of all
                rows unusable, or `out` cannot be written.
        """
        self._check(options)
        root = Path(root)
        if not root.is_dir():
            raise InputError(f"{root}: no such folder; give the folder of {self.contents}")
        intake = Intake(self.name, root, allow_partial=allow_partial, progress=progress)
        if self.release:
            intake.facts["release"] = self.release
        self.read(intake, **options)  # the tables it read are free again when it returns
        return intake.write(out, image_size=image_size, max_rejected=max_rejected, workers=workers)

    def options(self) -> dict[str, Any]:
        """Every keyword of a call, and its type."""
        known = get_type_hints(type(self).__call__) | get_type_hints(self.read)
        known |= get_type_hints(self.columns) if self.columns else {}
        for name in ("root", "out", "intake", "options", "columns", "return"):
            known.pop(name, None)
        return known

    def _check(self, options: Mapping[str, Any]) -> None:
        known = self.options()
        if unknown := [name for name in options if name not in known]:
            raise InputError(f"{self.name}: unknown option {unknown[0]!r}; it has {', '.join(sorted(known))}")
        needed = [p.name for p in inspect.signature(self.read).parameters.values()
                  if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        if self.columns:
            needed += [f.name for f in fields(self.columns) if f.default is f.default_factory is MISSING]
        if absent := [name for name in needed if not options.get(name)]:
            raise InputError(f"{self.name}: option {absent[0]!r} is needed: {absent[0]}=...")


@dataclass
class Intake:
    """The rows of one release on their way into a study table: the good ones, and those set aside.

    Args:
        name: the `source` column of the study table.
        root: the folder of the release; messages name files relative to it.
        file: the table that row numbers refer to.
        allow_partial: go on where counts are not those of the release.
        progress: show counts and a bar.
        facts: what `dataset.json` keeps in "about".
        splits: patient -> split, for the studies that do not have one of their own.
    """

    name: str
    root: Path
    file: str = ""
    allow_partial: bool = False
    progress: bool = True
    facts: dict[str, Any] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)
    studies: list[Study] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    def count(self, published: Mapping[str, int], measured: Mapping[str, int]) -> None:
        """Keep the counts of this download, and stop where they are not the published ones (`check_counts`)."""
        self.facts["counts"] = check_counts(
            self.name, self.root, published, measured, allow_partial=self.allow_partial, progress=self.progress
        )

    def tally(self, fact: str, number: int = 1) -> None:
        """Count one more of what `COUNTED` names."""
        self.facts[fact] = self.facts.get(fact, 0) + number

    def take(
        self, rows: Iterable[tuple[int, Any]], parse: Callable[[int, Any], Study | None], file: str | None = None
    ) -> None:
        """Parse each numbered row or group of rows; keep the study, skip None, set the row aside on `Unusable`.

        `file` names the table where it is not the intake's own.
        """
        first_row: dict[str, int] = {study.study_id: study.row for study in self.studies}
        for number, row in rows:
            try:
                check_encoding(row)
                study = parse(number, row)
                if study is not None:
                    first = first_row.setdefault(study.study_id, number)
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

    def usable_films(
        self,
        group: Rows,
        parse: Callable[[Cells], tuple[str, Film | None]],
        *,
        unique: str,
        shared: Sequence[str],
        file: str | None = None,
    ) -> tuple[list[Film], Cells]:
        """The films of a study, a row each, and its first usable row; rows that repeat or contradict one are set aside.

        Args:
            parse: a row -> what no two films of the study have in common, and the film (None: not downloaded).
            unique: the column of the former.
            shared: columns in which all rows of a study are equal.
        """
        rows, cells = self.usable(group, parse, file), dict(group)
        films: list[Film] = []
        first_row: dict[str, int] = {}
        for row, (name, film) in rows:
            first = rows[0][0]
            if first_row.setdefault(name, row) != row:
                self.set_aside(row, unique, f"{name} stands already in row {first_row[name]}; the first is kept", file)
            elif column := next((key for key in shared if cells[row][key] != cells[first][key]), ""):
                self.set_aside(row, column, f"differs from row {first}, a film of the same study", file)
            elif film is None:
                self.tally("not_downloaded")
            else:
                films.append(film)
        return films, cells[rows[0][0]] if rows else {}

    def set_aside(self, row: int | None, column: str, reason: str, file: str | None = None) -> None:
        """List a row as unusable; `file` where it is not the intake's own table."""
        self.rejected.append(Rejected(file or self.file, row, column, reason))

    def write(
        self, out: str | Path, *, image_size: int = 512, max_rejected: float = 0.05, workers: int | None = None
    ) -> pd.DataFrame:
        """Decode the films, write the folder `out`, return its summary; arguments and errors as of `Source`."""
        if image_size < MIN_SIDE or not 0 <= max_rejected <= 1:
            raise InputError(f"image_size={image_size} needs at least {MIN_SIDE}; max_rejected={max_rejected} 0 to 1")
        if workers is not None and workers < 1:
            raise InputError(f"workers={workers}: give at least 1, or None for a process a core")
        if not self.studies:
            first = f" ({self.rejected[0]})" if self.rejected else ""
            raise InputError(f"{self.root}: no usable study in {self.file}{first}; check the download and its columns")
        self._check_patients()
        total = len(self.studies) + len(self.rejected)
        about = {"source": self.name, "image_size": image_size, **self.facts}
        check = partial(refuse_many, self.rejected, total, max_rejected, out)
        check()
        with resumable_studies(out) as table:
            self._fill(table, image_size, workers, check)
            table.finish(about, self.rejected)
        if self.progress:
            counts = {"rejected": len(self.rejected)} | {k: n for k, n in self.facts.items() if k in COUNTED}
            listed = ", ".join(f"{n:,} {name.replace('_', ' ')}" for name, n in counts.items())
            tqdm.write(f"{self.name}: {len(self.studies):,} studies of {self.file} found; {listed}", file=sys.stderr)
        return summary({self.name: out})

    def _split(self, study: Study) -> str:
        return study.split or self.splits.get(study.patient_id, "")

    def _check_patients(self) -> None:
        first: dict[str, Study] = {}
        for study in self.studies:
            before = first.setdefault(study.patient_id, study)
            if (split := self._split(study)) != (other := self._split(before)):
                raise InputError(
                    f"{self.root / self.file}, rows {before.row} and {study.row}: patient {study.patient_id} is in "
                    f"{other} and in {split}; give every patient one split"
                )

    def _fill(self, table: ResumableStudies, size: int, workers: int | None, check: Callable[[], None]) -> None:
        """Make every shard that is not there yet. `check` stops at too many bad films."""
        parts = [self.studies[start : start + SHARD] for start in range(0, len(self.studies), SHARD)]
        keys = [self._key(part, size) for part in parts]
        finished = [table.has(number, key) for number, key in enumerate(keys)]
        films = [sum(len(study.films) for study in part) for part in parts]
        done = sum(n for n, is_finished in zip(films, finished, strict=True) if is_finished)
        if done and self.progress:
            tqdm.write(f"{self.name}: going on after {done:,} of {sum(films):,} films", file=sys.stderr)
        todo = (study for part, is_finished in zip(parts, finished, strict=True) if not is_finished for study in part)
        calls = ((film.path, name_in(self.root, film.path), size) for study in todo for film in study.films)
        workers = workers or max(1, min(os.cpu_count() or 1, (sum(films) - done) // WORTH_IT))
        with (  # smoothing=0: the time left is by the mean speed of this run, without what earlier runs did
            progress_bar(total=sum(films), initial=done, desc=self.name, unit="film", shown=self.progress,
                         smoothing=0) as bar,
            in_order(store_film, calls, workers, DECODING_SECONDS) as decoded,
        ):
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
        """A hash of all that a shard depends on: settings, its studies, the times and sizes of its films."""
        digest = hashlib.sha256(f"{VERSION} {self.name} {self.root} {self.file} {size}".encode())
        for study in part:
            stamps = [_stamp(film.path) for film in study.films]
            digest.update(repr((study, self._split(study), stamps)).encode())
        return digest.hexdigest()

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
        if not good:
            return []
        return [
            {
                **{name: getattr(study, name) for name in _COPIED},
                "source": self.name,
                "split": self._split(study),
                "images": [{"bytes": data, "path": name_in(self.root, film.path)} for film, data in good],
                "views": [film.view for film, _ in good],
            }
        ]


def _stamp(path: Path) -> tuple[int, int] | None:
    """Size and time of a file, None where it is not there: a film that changed or came is read again."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns
