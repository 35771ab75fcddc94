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

from cxrclip.data.files import atomic_file, atomic_folder, locked, refuse_foreign, replace_folder, write_text, writing
from cxrclip.errors import InputError
from cxrclip.studies import REQUIRED, SCHEMA, canonical, facts_of, faults_of, first_faults

MARKER = "dataset.json"  # the file that makes a folder a study folder


class Rejected(NamedTuple):
    """A row of a source that was set aside: which file, which row (counted from 1 below the header), why."""

    file: str
    row: int | None
    column: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}, column {self.column}: {self.reason}" if self.column else f"{place}: {self.reason}"


def write_studies(
    rows: Iterable[Mapping[str, Any]],
    folder: str | Path,
    *,
    about: Mapping[str, Any] | None = None,
    rejected: Sequence[Rejected] = (),
    shard_rows: int = 1024,
) -> Path:
    """Write studies as a folder; it appears whole or not at all, and replaces an older one only when whole.

    Args:
        rows: one mapping per study, keys as in `SCHEMA`; absent lists are empty, absent nullable values null.
        folder: where to. `dataset.json` gets a SHA-256 over the content of all rows in order, which depends
            neither on the sharding nor on the Parquet version.
        about: provenance to keep in `dataset.json` (JSON values).
        rejected: what was set aside; read after `rows` is exhausted, so `rows` may still append to it.
        shard_rows: studies per file.

    Raises:
        InputError: a row breaks a rule of `validate`; no rows; the disk is full or the folder read-only.
    """
    folder = Path(folder)
    with atomic_folder(folder) as partial:
        table, rows = _Shards(folder, partial), iter(rows)
        while shard := list(itertools.islice(rows, shard_rows)):
            table.write(table.shards, shard)
        table.close(about, rejected)
    return folder


class _Shards:
    """The shards of one study table in the making: rows are checked, hashed, counted and written."""

    def __init__(self, folder: Path, partial: Path) -> None:
        self.folder, self.partial = folder, partial
        self.digest, self.seen = hashlib.sha256(), set()
        self.count, self.shards = 0, 0

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> str:
        """Write `rows` as shard `number` (no file where there are none); return the SHA-256 of their content."""
        content = [_complete(row, f"{self.folder}, row {self.count + i}") for i, row in enumerate(rows, 1)]
        table, sha256 = self._add(content)
        path = self.path(number)
        with writing(self.folder):
            if content:
                with atomic_file(path, self.folder) as draft:
                    pq.write_table(table, draft, row_group_size=256)
                self.shards += 1
        return sha256

    def keep(self, number: int) -> str | None:
        """Count shard `number`, which is written already; return the SHA-256 of its content, None where damaged."""
        try:
            content = pq.read_table(self.path(number)).to_pylist()
        except (OSError, pa.ArrowException):
            return None
        self.shards += 1
        return self._add(content)[1]

    def _add(self, content: list[dict[str, Any]]) -> tuple[pa.Table, str]:
        for row in content:
            self.count += 1
            if fault := next(faults_of(row, self.seen), None):
                raise InputError(f"{self.folder}, row {self.count} ({row['study_id']}), {fault}")
        table, shard = _as_table(content, self.folder), hashlib.sha256()
        for row in content:
            line = canonical(row)
            self.digest.update(line)
            shard.update(line)
        return table, shard.hexdigest()

    def close(self, about: Mapping[str, Any] | None, rejected: Sequence[Rejected]) -> None:
        """Write the files beside the shards."""
        if not self.count:
            raise InputError(f"{self.folder}: no study to write; check the source and its filters")
        with writing(self.folder):
            _write_rejected(rejected, self.partial)
            facts = {"studies": self.count, "shards": self.shards, "sha256": self.digest.hexdigest()}
            facts |= {"rejected": len(rejected), "about": dict(about or {})}
            (self.partial / MARKER).write_text(json.dumps(facts, indent=1) + "\n")

    def path(self, number: int) -> Path:
        return self.partial / f"studies-{number:05d}.parquet"


class ResumableStudies(_Shards):
    """A study table in the making whose finished shards outlive the process; made by `resumable_studies`."""

    def has(self, number: int, key: str) -> bool:
        """Whether shard `number` was finished earlier under this key, which names all that its rows depend on."""
        note = self._note(number)
        size = self.path(number).stat().st_size if self.path(number).is_file() else 0
        return note is not None and note["key"] == key and note["bytes"] == size

    def reuse(self, number: int) -> list[Rejected]:
        """Take a shard that `has` found; return the rows that were set aside when it was made."""
        note = self._note(number)
        if note["bytes"] and self.keep(number) != note["sha256"]:
            self._note_path(number).unlink()
            raise InputError(f"{self.path(number)}: damaged; run the same command again, it will be made anew")
        return [Rejected(*line) for line in note["rejected"]]

    def add(self, number: int, key: str, rows: Sequence[Mapping[str, Any]], rejected: Sequence[Rejected]) -> None:
        """Write shard `number`, and then the note that says it is whole."""
        with writing(self.folder):
            self._note_path(number).unlink(missing_ok=True)
            self.path(number).unlink(missing_ok=True)
        sha256, path = self.write(number, rows), self._note_path(number)
        size = self.path(number).stat().st_size if rows else 0
        with writing(self.folder):
            note = {"key": key, "sha256": sha256, "bytes": size, "rejected": rejected}
            write_text(path, json.dumps(note))

    def finish(self, about: Mapping[str, Any], rejected: Sequence[Rejected], shards: int) -> None:
        """Write the files beside the shards and put the folder in its place, with its first `shards` shards alone."""
        self.close(about, rejected)
        wanted = {self.path(number).name for number in range(shards)} | {MARKER, "rejected.csv"}
        with writing(self.folder):
            for path in self.partial.iterdir():
                if path.name not in wanted or (path.name == "rejected.csv" and not rejected):
                    path.unlink()
            replace_folder(self.partial, self.folder)

    def _note_path(self, number: int) -> Path:
        return self.partial.parent / "notes" / f"{number:05d}.json"

    def _note(self, number: int) -> dict[str, Any] | None:
        try:
            return json.loads(self._note_path(number).read_text())
        except (FileNotFoundError, ValueError):
            return None


@contextmanager
def resumable_studies(folder: str | Path) -> Iterator[ResumableStudies]:
    """Yield a study table that becomes `folder` when its `finish` is called, whole or not at all.

    Until then its shards are in `.<name>.partial` beside it. They stay there when the block ends in any other way (a
    killed process, a full disk, too many bad rows), so that the next call can go on from them. A shard counts as
    finished only by a note that is written after it; both appear whole or not at all.

    Raises:
        InputError: the place cannot be written, holds something else, or another process is preparing it.
    """
    folder = Path(folder).absolute()
    place = folder.with_name(f".{folder.name}.partial")
    with locked(place / "shards", wait=False, where=folder):
        with writing(folder):
            refuse_foreign(folder, MARKER)
            for name in ("table", "notes"):
                (place / name).mkdir(parents=True, exist_ok=True)
        try:
            yield ResumableStudies(folder, place / "table")
        except InputError as error:
            if not (kept := len(list((place / "notes").glob("*.json")))):
                raise
            raise InputError(f"{error} ({kept} finished shards wait in {place} for the next run)") from error
        finally:
            if not list((place / "notes").glob("*.json")) or not (place / "table").exists():
                shutil.rmtree(place, ignore_errors=True)


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
            raise InputError(f"{where}: column {field.name} holds {value!r:.40}; give a list")
        whole[field.name] = list(value or []) if pa.types.is_list(field.type) else value
    try:
        whole["images"] = [{"bytes": image.get("bytes") or b"", "path": image.get("path")} for image in whole["images"]]
        whole["age"] = None if whole["age"] is None else float(np.float32(whole["age"]))
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(f"{where}: images or age have the wrong type ({error}); see cxrclip.studies.SCHEMA") from error
    return whole


def _as_table(rows: list[dict[str, Any]], folder: Path) -> pa.Table:
    try:
        return pa.Table.from_pylist(rows, schema=SCHEMA)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"{folder}: a value has the wrong type ({error}); see cxrclip.studies.SCHEMA") from error


def _write_rejected(rejected: Sequence[Rejected], folder: Path) -> None:
    if rejected:
        with open(folder / "rejected.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Rejected._fields)
            writer.writerows(rejected)


def read_about(folder: str | Path) -> tuple[dict[str, Any], list[Rejected]]:
    """What `dataset.json` keeps under "about", and the rows that were set aside when the folder was made."""
    path = Path(folder) / "rejected.csv"
    rejected = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                row = int(line["row"]) if line["row"] else None
                rejected.append(Rejected(line["file"], row, line["column"], line["reason"]))
    return facts_of(folder)["about"], rejected


def refuse_many(rejected: Sequence[Rejected], total: int, max_rejected: float, folder: str | Path) -> None:
    """Stop when more than the share `max_rejected` of `total` rows was set aside.

    Raises:
        InputError: with the counts and the first reasons.
    """
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"{folder}: nothing written, {len(rejected):,} of {total:,} rows are unusable, more than "
            f"max_rejected={max_rejected:g} allows: {first_faults(rejected)}"
        )
