"""Writing study tables: shards that are checked, hashed and counted, in a folder that appears whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import itertools
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cxrclip.data.files import MARKER, atomic_file, locked, refuse_foreign, replace_folder, writing
from cxrclip.errors import InputError
from cxrclip.studies import REQUIRED, SCHEMA, canonical, facts_of, faults_of, first_faults, sha256_of


class Rejected(NamedTuple):
    """A row of a source that was set aside: which file, which row (counted from 1 below the header), why."""

    file: str
    row: int | None
    column: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}, column {self.column}: {self.reason}" if self.column else f"{place}: {self.reason}"


def write_studies(rows: Iterable[Mapping[str, Any]], folder: str | Path, *, about: Mapping[str, Any] | None = None,
                  rejected: Sequence[Rejected] = (), shard_rows: int = 1024) -> Path:
    """Write studies as a folder; it appears whole or not at all, and replaces an older one only when whole.

    Args:
        rows: one mapping per study, keys as in `SCHEMA`; absent lists are empty, absent nullable values null.
        folder: where to. `dataset.json` gets a SHA-256 over the content of all rows in order, which depends
            neither on the sharding nor on the Parquet version.
        about: provenance to keep in `dataset.json` (JSON values).
        rejected: what was set aside; read after `rows` is exhausted, so `rows` may still append to it.
        shard_rows: studies per file.

    Raises:
        InputError: a row breaks a rule of `validate`; no rows; the disk is full or the folder read-only; another
            process is writing it.
    """
    rows = iter(rows)
    with resumable_studies(folder, keep=False) as table:
        for number in itertools.count():
            if not (shard := list(itertools.islice(rows, shard_rows))):
                break
            table.add(number, "", shard, ())
        table.finish(about or {}, rejected)
    return Path(folder)


@contextmanager
def resumable_studies(folder: str | Path, *, keep: bool = True) -> Iterator[ResumableStudies]:
    """Yield a study table that becomes `folder` when its `finish` is called, whole or not at all.

    Until then its shards are in `.<name>.partial` beside it. They stay there when the block ends in any other way (a
    killed process, a full disk, too many bad rows), so that the next call can go on from them. A shard counts as
    finished only by a note that is written after it; both appear whole or not at all.

    keep: without it, they stay there only when the process is killed.

    Raises:
        InputError: the place cannot be written, holds something else, or another process is preparing it.
    """
    folder = Path(folder).absolute()
    place = folder.with_name(f".{folder.name}.partial")
    with locked(place / "shards", wait=False, where=folder):
        try:
            with writing(folder):
                refuse_foreign(folder)
                for name in ("table", "notes"):
                    (place / name).mkdir(parents=True, exist_ok=True)
            yield ResumableStudies(folder, place)
        except InputError as error:
            if not keep or not (kept := len(list((place / "notes").glob("*.json")))):
                raise
            raise InputError(f"{error} ({kept} finished shards wait in {place} for the next run)") from error
        finally:
            if not keep or not any((place / "notes").glob("*.json")) or not (place / "table").exists():
                shutil.rmtree(place, ignore_errors=True)


class ResumableStudies:
    """A study table in the making, whose finished shards outlive the process; made by `resumable_studies`."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.folder, self.table, self.notes = folder, place / "table", place / "notes"
        self.digest, self.seen, self.count = hashlib.sha256(), set(), 0
        self.shards: list[Path] = []

    def has(self, number: int, key: str) -> bool:
        """Whether shard `number` was finished earlier under this key, which names all that its rows depend on."""
        note, path = self._note(number), self.path(number)
        return note.get("key") == key and note["bytes"] == (path.stat().st_size if path.is_file() else 0)

    def reuse(self, number: int) -> list[Rejected]:
        """Take a shard that `has` found; return the rows that were set aside when it was made.

        Raises InputError if it is damaged; the next run makes it anew.
        """
        note, path = self._note(number), self.path(number)
        if note["bytes"]:
            try:
                content = pq.read_table(path).to_pylist()
            except (OSError, pa.ArrowException):
                content = []
            if self._take(content)[1] != note["sha256"]:
                self.note_path(number).unlink()
                raise InputError(f"{path}: damaged; run the same command again, it will be made anew")
            self.shards.append(path)
        return [Rejected(*line) for line in note["rejected"]]

    def add(self, number: int, key: str, rows: Sequence[Mapping[str, Any]], rejected: Sequence[Rejected]) -> None:
        """Write shard `number` (no file where there are no rows), and then the note that says it is whole.

        Raises InputError, naming the row, if it breaks a rule of `validate` or the disk is full.
        """
        note_path, path = self.note_path(number), self.path(number)
        with writing(self.folder):
            note_path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)
        content = [_complete(row, f"{self.folder}, row {self.count + i}") for i, row in enumerate(rows, 1)]
        table, sha256 = self._take(content)
        if content:
            with atomic_file(path, self.folder) as draft:
                pq.write_table(table, draft, row_group_size=256)
            self.shards.append(path)
        with atomic_file(note_path, self.folder) as draft:
            size = path.stat().st_size if content else 0
            draft.write_text(json.dumps({"key": key, "sha256": sha256, "bytes": size, "rejected": rejected}))

    def finish(self, about: Mapping[str, Any], rejected: Sequence[Rejected]) -> None:
        """Write the files beside the shards and put the folder in its place, with the shards added or reused alone.

        Raises InputError if there is no study, or the folder cannot be written.
        """
        if not self.count:
            raise InputError(f"{self.folder}: no study to write; check the source and its filters")
        with writing(self.folder):
            for path in set(self.table.iterdir()) - set(self.shards):
                path.unlink()
            if rejected:
                with open(self.table / "rejected.csv", "w", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerows([Rejected._fields, *rejected])
            facts = {"studies": self.count, "shards": len(self.shards), "sha256": self.digest.hexdigest(),
                     "files": {path.name: sha256_of(path) for path in self.shards},
                     "rejected": len(rejected), "about": dict(about)}
            (self.table / MARKER).write_text(json.dumps(facts, indent=1) + "\n")
            replace_folder(self.table, self.folder)

    def path(self, number: int) -> Path:
        """Where shard `number` is made."""
        return self.table / f"studies-{number:05d}.parquet"

    def note_path(self, number: int) -> Path:
        """The note that says that shard `number` is whole."""
        return self.notes / f"{number:05d}.json"

    def _note(self, number: int) -> dict[str, Any]:
        try:
            return json.loads(self.note_path(number).read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def _take(self, content: list[dict[str, Any]]) -> tuple[pa.Table, str]:
        """Check, count and hash rows; return them as a table, and the SHA-256 of their content."""
        for row in content:
            self.count += 1
            if fault := next(faults_of(row, self.seen), None):
                raise InputError(f"{self.folder}, row {self.count} ({row['study_id']}), {fault}")
        try:
            table = pa.Table.from_pylist(content, schema=SCHEMA)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise InputError(
                f"{self.folder}: a value has the wrong type ({error}); see cxrclip.studies.SCHEMA") from error
        lines = [canonical(row) for row in content]
        for line in lines:
            self.digest.update(line)
        return table, hashlib.sha256(b"".join(lines)).hexdigest()


def _complete(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with every column of `SCHEMA`, in its order and in the types that are stored."""
    if unknown := sorted(set(row) - set(SCHEMA.names)):
        raise InputError(f"{where}: unknown column {unknown[0]!r}; the columns are {', '.join(SCHEMA.names)}")
    if absent := [name for name in (*REQUIRED, "images", "views") if row.get(name) is None]:
        raise InputError(f"{where}: column {absent[0]} has no value; every study needs one")
    whole = {}
    for field in SCHEMA:
        value = row.get(field.name)
        if pa.types.is_list(field.type) and isinstance(value, str | bytes):  # would become its characters
            shown = "a text" if field.name.endswith("_aug") else f"{value!r:.40}"  # no message quotes a report
            raise InputError(f"{where}: column {field.name} holds {shown}; give a list")
        whole[field.name] = list(value or []) if pa.types.is_list(field.type) else value
    try:
        whole["images"] = [{"bytes": image.get("bytes") or b"", "path": image.get("path")} for image in whole["images"]]
        whole["age"] = None if whole["age"] is None else float(np.float32(whole["age"]))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: images or age have the wrong type ({error}); see cxrclip.studies.SCHEMA") from error
    return whole


def read_about(folder: str | Path) -> tuple[dict[str, Any], list[Rejected]]:
    """What `dataset.json` keeps under "about", and the rows that were set aside when the folder was made."""
    path, rejected = Path(folder) / "rejected.csv", []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            rejected = [Rejected(**{**line, "row": int(line["row"]) if line["row"] else None})
                        for line in csv.DictReader(file)]
    return facts_of(folder)["about"], rejected


def refuse_many(rejected: Sequence[Rejected], total: int, max_rejected: float, folder: str | Path) -> None:
    """Stop when more than the share `max_rejected` of `total` rows was set aside.

    Raises:
        InputError: with the counts and the first reasons.
    """
    if len(rejected) > max_rejected * total:
        raise InputError(f"{folder}: nothing written, {len(rejected):,} of {total:,} rows are unusable, more than "
                         f"max_rejected={max_rejected:g} allows: {first_faults(rejected)}")
