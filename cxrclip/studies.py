"""The one data structure: a table of studies in a folder of Parquet shards. One row is one study.

Nothing else in the library knows a data set's name. A folder holds

    studies-00000.parquet ...   the rows (`SCHEMA`)
    dataset.json                number of studies, SHA-256 of their content, where they came from
    rejected.csv                rows of the source that could not be used, if any

Parquet, because pandas, DuckDB, Spark, Ray and Hugging Face `datasets` all read it.
"""

from __future__ import annotations

import csv
import fcntl
import hashlib
import itertools
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxrclip.errors import InputError

SPLITS = ("train", "valid", "test")
SEXES = ("F", "M")
MAX_AGE = 120.0
MAX_TEXT = 20_000  # characters; the longest of the 3,955 Open-I reports has fewer than 3,000
SHOWN = 3  # faults spelled out in a message; the others are counted

_STRINGS = pa.list_(pa.string())
SCHEMA = pa.schema(
    [
        pa.field("study_id", pa.string(), nullable=False),
        pa.field("patient_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("images", pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())])), nullable=False),
        pa.field("views", _STRINGS, nullable=False),
        pa.field("findings", pa.string()),
        pa.field("impression", pa.string()),
        pa.field("findings_aug", _STRINGS, nullable=False),
        pa.field("impression_aug", _STRINGS, nullable=False),
        pa.field("positive", _STRINGS, nullable=False),
        pa.field("negative", _STRINGS, nullable=False),
        pa.field("uncertain", _STRINGS, nullable=False),
        pa.field("sex", pa.string()),
        pa.field("age", pa.float32()),
    ]
)
"""Images are encoded JPEG or PNG, 8-bit gray; `views` is aligned with them. `findings`, `impression`, `sex` ("F", "M")
and `age` (years) may be null; lists are empty, never null. Finding names are those of the source's vocabulary."""

_REQUIRED = ("study_id", "patient_id", "source", "split")
_TEXTS = ("findings", "impression")
_LABELS = ("positive", "negative", "uncertain")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class Rejected(NamedTuple):
    """A row of a source that was set aside: which file, which row (counted from 1 below the header), why."""

    file: str
    row: int | None
    column: str
    reason: str

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}, row {self.row}"
        return f"{place}, column {self.column}: {self.reason}" if self.column else f"{place}: {self.reason}"


# ---------------------------------------------------------------------------------------------------------- writing


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
        with _writing(self.folder):
            if content:
                pq.write_table(table, path.with_suffix(".part"), row_group_size=256)
                _onto_disk(path.with_suffix(".part"))
                path.with_suffix(".part").rename(path)
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
            if fault := next(_faults(row, self.seen), None):
                raise InputError(f"{self.folder}, row {self.count} ({row['study_id']}), {fault}")
        table, shard = _as_table(content, self.folder), hashlib.sha256()
        for row in content:
            line = _canonical(row)
            self.digest.update(line)
            shard.update(line)
        return table, shard.hexdigest()

    def close(self, about: Mapping[str, Any] | None, rejected: Sequence[Rejected]) -> None:
        """Write what stands beside the shards."""
        if not self.count:
            raise InputError(f"{self.folder}: no study to write; check the source and its filters")
        with _writing(self.folder):
            _write_rejected(rejected, self.partial)
            facts = {"studies": self.count, "shards": self.shards, "sha256": self.digest.hexdigest()}
            facts |= {"rejected": len(rejected), "about": dict(about or {})}
            (self.partial / "dataset.json").write_text(json.dumps(facts, indent=1) + "\n")

    def path(self, number: int) -> Path:
        return self.partial / f"studies-{number:05d}.parquet"


class ResumableStudies(_Shards):
    """A study table in the making whose finished shards outlive the process; made by `resumable_studies`."""

    def has(self, number: int, key: str) -> bool:
        """Whether shard `number` was finished earlier under this key, which names all that its rows depend on."""
        note = self._note(number)
        here = self.path(number).stat().st_size if self.path(number).is_file() else 0
        return note is not None and note["key"] == key and note["bytes"] == here

    def reuse(self, number: int) -> list[Rejected]:
        """Take a shard that `has` found; return the rows that were set aside when it was made."""
        note = self._note(number)
        if note["bytes"] and self.keep(number) != note["sha256"]:
            self._note_path(number).unlink()
            raise InputError(f"{self.path(number)}: damaged; run the same command again, it will be made anew")
        return [Rejected(*line) for line in note["rejected"]]

    def add(self, number: int, key: str, rows: Sequence[Mapping[str, Any]], rejected: Sequence[Rejected]) -> None:
        """Write shard `number`, and then the note that says it is whole."""
        with _writing(self.folder):
            self._note_path(number).unlink(missing_ok=True)
            self.path(number).unlink(missing_ok=True)
        sha256, path = self.write(number, rows), self._note_path(number)
        size = self.path(number).stat().st_size if rows else 0
        with _writing(self.folder):
            note = {"key": key, "sha256": sha256, "bytes": size, "rejected": rejected}
            path.with_suffix(".part").write_text(json.dumps(note))
            _onto_disk(path.with_suffix(".part"))
            path.with_suffix(".part").rename(path)

    def finish(self, about: Mapping[str, Any], rejected: Sequence[Rejected], shards: int) -> None:
        """Write what stands beside the shards and put the folder in its place. `shards` were wanted, no more."""
        self.close(about, rejected)
        wanted = {self.path(number).name for number in range(shards)} | {"dataset.json", "rejected.csv"}
        with _writing(self.folder):
            for path in self.partial.iterdir():
                if path.name not in wanted or (path.name == "rejected.csv" and not rejected):
                    path.unlink()
            _replace(self.partial, self.folder)

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

    Until then its shards stand in `.<name>.partial` beside it. They stay there when the block ends in any other
    way (a killed process, a full disk, too many bad rows), so that the next call can go on from them. A shard
    counts as finished only by a note that is written after it; both are written under another name first.

    Raises:
        InputError: the place cannot be written, something else stands there, or another process is at it.
    """
    folder = Path(folder).absolute()
    place = folder.with_name(f".{folder.name}.partial")
    with _writing(folder):
        _refuse_others(folder)
        lock = _locked(place, folder)
        for name in ("table", "notes"):
            (place / name).mkdir(exist_ok=True)
    try:
        yield ResumableStudies(folder, place / "table")
    except InputError as error:
        if not (kept := len(list((place / "notes").glob("*.json")))):
            raise
        raise InputError(f"{error} ({kept} finished shards wait in {place} for the next run)") from error
    finally:
        if not list((place / "notes").glob("*.json")) or not (place / "table").exists():
            shutil.rmtree(place, ignore_errors=True)
        os.close(lock)


def _locked(place: Path, folder: Path) -> int:
    """Make `place` and lock it, so that no two processes prepare one folder; the lock ends with the process."""
    while True:
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if place.exists() and os.path.samestat(os.fstat(lock), place.stat()):
                return lock
        except BlockingIOError as error:
            os.close(lock)
            raise InputError(f"{folder}: another process is preparing it; wait until it has ended") from error
        os.close(lock)  # the other process ended, and removed its folder, between the two lines above


def _onto_disk(path: Path) -> None:
    """Wait until a file is on the disk: without this a power cut may leave its name with nothing in it."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty temporary sibling which becomes the study folder `folder` if the block ends well.

    If not, it is removed. An older study folder is replaced; any other folder with files in it is left alone.
    A killed process leaves at most a hidden `.<name>.*.partial` beside the folder, never half of `folder`.

    Raises:
        InputError: the place cannot be written (full disk, read-only), or something else stands there.
    """
    folder = Path(folder)
    partial = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(4)}.partial")
    try:
        with _writing(folder):
            _refuse_others(folder)
            partial.mkdir(parents=True)
        yield partial
        with _writing(folder):
            _replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_others(folder: Path) -> None:
    if folder.exists() and not (folder / "dataset.json").is_file() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files than a study table; choose another folder")


def _replace(partial: Path, folder: Path) -> None:
    """Put `partial` in the place of `folder`, whose older content goes only then."""
    old = folder.absolute().with_name(f".{folder.absolute().name}.{secrets.token_hex(4)}.old")
    try:
        if folder.exists():
            folder.rename(old)
        try:
            partial.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0]
        raise InputError(f"{folder}: cannot be written ({reason}); free space or choose another folder") from error


def _complete(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with every column of `SCHEMA`, in its order and in the types that are stored."""
    if unknown := sorted(set(row) - set(SCHEMA.names)):
        raise InputError(f"{where}: unknown column {unknown[0]!r}; the columns are {', '.join(SCHEMA.names)}")
    if absent := [name for name in (*_REQUIRED, "images", "views") if row.get(name) is None]:
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


def _canonical(row: Mapping[str, Any]) -> bytes:
    """One study as bytes for the content hash: JSON with each image replaced by its SHA-256."""
    images = [[hashlib.sha256(image["bytes"]).hexdigest(), image["path"]] for image in row["images"]]
    return json.dumps({**row, "images": images}, sort_keys=True).encode() + b"\n"


def _write_rejected(rejected: Sequence[Rejected], folder: Path) -> None:
    if rejected:
        with open(folder / "rejected.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Rejected._fields)
            writer.writerows(rejected)


# ---------------------------------------------------------------------------------------------------------- reading


def open_studies(
    folders: str | Path | Sequence[str | Path], split: str | None = None, *, streaming: bool = False
) -> datasets.Dataset | datasets.IterableDataset:
    """Open one study folder, or several one after the other, through Hugging Face `datasets`.

    At random (default): `ds[i]` is a dict of plain Python values, memory-mapped from an Arrow copy kept in
    `<folder>/.cache` (or in the default cache of `datasets` where the folder is read-only). The copy is keyed
    by the fingerprint of the content, so a folder that is made again is never read from an old copy.
    A batch of rows costs about a fifth of the same rows one by one (40 against 200 microseconds a row):
    training reads `ds.__getitems__(list of i)`, a list of dicts.

    Streaming: nothing is copied; shards are read as they come. For training sets which outgrow a disk, give
    each process its own shards and shuffle within a buffer:

        from datasets.distributed import split_dataset_by_node
        stream = open_studies(folders, "train", streaming=True).shuffle(seed, buffer_size=1000)
        stream = split_dataset_by_node(stream, rank=rank, world_size=world_size)

    Raises:
        InputError: a folder is no study table or not whole, the split is unknown, or (at random) empty.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not paths:
        raise InputError("open_studies: no folder given; name at least one study folder")
    if split is not None and split not in SPLITS:
        raise InputError(f"open_studies: unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    if streaming:
        files = [str(shard) for path in paths for shard in _shards(path)]
        where = None if split is None else [("split", "==", split)]
        return datasets.IterableDataset.from_parquet(files, filters=where)
    parts = [_open_folder(path, split) for path in paths]
    whole = datasets.concatenate_datasets(parts)
    if not len(whole):
        raise InputError(f"{', '.join(map(str, paths))}: no study in split {split!r}; see cxrclip.studies.summary")
    return whole


def _open_folder(folder: Path, split: str | None) -> datasets.Dataset:
    root = folder / ".cache" if os.access(folder, os.W_OK) else Path(datasets.config.HF_DATASETS_CACHE) / "cxrclip"
    files = [str(shard) for shard in _shards(folder)]
    try:
        with _without_progress_bars():  # not datasets.load_dataset: it reports its use over the network
            whole = datasets.Dataset.from_parquet(files, cache_dir=str(root / fingerprint(folder)[:16]))
    except (OSError, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{folder}: cannot be opened ({cause}); free disk space or prepare it again") from error
    if split is None:
        return whole
    rows = np.flatnonzero(np.asarray(whole.data.column("split")) == split)
    return whole.select(rows, keep_in_memory=True)


@contextmanager
def _without_progress_bars() -> Iterator[None]:
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def fingerprint(folder: str | Path) -> str:
    """SHA-256 (hex) of the folder's content, as `write_studies` stored it."""
    return _facts(Path(folder))["sha256"]


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "dataset.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not {"studies", "shards", "sha256", "rejected", "about"} <= facts.keys():
            raise ValueError("keys are missing")
        return facts
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a study folder (no dataset.json); prepare it first") from error
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); prepare the folder again") from error


def _shards(folder: Path) -> list[Path]:
    shards = sorted(folder.glob("studies-*.parquet"))
    if len(shards) != (expected := _facts(folder)["shards"]):
        raise InputError(f"{folder}: {len(shards)} of {expected} Parquet shards are here; prepare the folder again")
    return shards


def read_shards(folder: str | Path) -> Iterator[list[dict[str, Any]]]:
    """Every study in order, as plain Python values, a shard (a file) at a time in memory.

    Raises:
        InputError: the folder is no study table or not whole, or a shard is damaged.
    """
    for shard in _shards(Path(folder)):
        try:
            yield pq.read_table(shard, schema=SCHEMA).to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shard}: damaged ({str(error).splitlines()[0]}); prepare the folder again") from error


def read_about(folder: str | Path) -> tuple[dict[str, Any], list[Rejected]]:
    """What `dataset.json` keeps under "about", and the rows that were set aside when the folder was made."""
    path = Path(folder) / "rejected.csv"
    rejected = []
    if path.is_file():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                row = int(line["row"]) if line["row"] else None
                rejected.append(Rejected(line["file"], row, line["column"], line["reason"]))
    return _facts(Path(folder))["about"], rejected


def _rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every study in order, a few at a time in memory."""
    for shard in _shards(folder):
        try:
            with pq.ParquetFile(shard) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    raise InputError(f"{shard}: other columns than a study table; {_difference(file.schema_arrow)}")
                for batch in file.iter_batches(batch_size=64):
                    yield from batch.to_pylist()
        except (OSError, pa.ArrowException) as error:
            raise InputError(f"{shard}: damaged ({str(error).splitlines()[0]}); prepare the folder again") from error


def _difference(schema: pa.Schema) -> str:
    for field in SCHEMA:
        if field.name not in schema.names:
            return f"column {field.name} is missing"
        if not schema.field(field.name).equals(field):
            return f"column {field.name} has type {schema.field(field.name).type}, not {field.type}"
    return f"column {next(name for name in schema.names if name not in SCHEMA.names)} is unknown"


# ----------------------------------------------------------------------------------------------------------- checks


def validate(folder: str | Path, vocabulary: Iterable[str] | None = None) -> None:
    """Check every study of a folder, and the folder against its fingerprint.

    Args:
        folder: a study folder.
        vocabulary: the finding names allowed in positive, negative and uncertain; None allows any.

    Raises:
        InputError: names the first faults by row (counted from 1), column and value, and counts the others.
    """
    folder, names = Path(folder), None if vocabulary is None else set(vocabulary)
    digest, seen, faults, count = hashlib.sha256(), set(), [], 0
    for count, row in enumerate(_rows(folder), 1):
        found = list(_faults(row, seen, names))
        faults += [f"row {count} ({row['study_id']}), {fault}" for fault in found]
        if not found:
            digest.update(_canonical(row))
    if faults:
        raise InputError(f"{folder}: {_first(faults)}; correct the source and prepare the folder again")
    if digest.hexdigest() != fingerprint(folder):
        raise InputError(f"{folder}: {count} studies differ from their fingerprint; prepare the folder again")


def _faults(row: Mapping[str, Any], seen: set[str], vocabulary: set[str] | None = None) -> Iterator[str]:
    """Every fault of one study as "column: what"; `seen` collects the study ids."""
    for name in _REQUIRED:
        if not isinstance(row[name], str) or not row[name].strip():
            yield f"column {name}: {row[name]!r} is no text"
    if row["split"] not in SPLITS:
        yield f"column split: {row['split']!r} is not one of {', '.join(SPLITS)}"
    if row["study_id"] in seen:
        yield "column study_id: stands in the table twice"
    seen.add(row["study_id"])
    yield from _image_faults(row)
    for name in _TEXTS:
        text = row[name]
        if text is not None and not (isinstance(text, str) and text.strip() and len(text) <= MAX_TEXT):
            size = f"{len(text):,} characters" if isinstance(text, str) else f"{text!r}"
            yield f"column {name}: {size}; 1 to {MAX_TEXT:,} characters or null are allowed"
    yield from _label_faults(row, vocabulary)
    if row["sex"] is not None and row["sex"] not in SEXES:
        yield f"column sex: {row['sex']!r} is not one of {', '.join(SEXES)} or null"
    if row["age"] is not None and not 0 <= row["age"] <= MAX_AGE:
        yield f"column age: {row['age']:g} is outside 0 to {MAX_AGE:g} years"


def _image_faults(row: Mapping[str, Any]) -> Iterator[str]:
    images, views = row["images"], row["views"]
    if not images:
        yield "column images: none; a study needs at least one"
    if len(images) != len(views):
        yield f"column views: {len(views)} views for {len(images)} images"
    if not all(isinstance(view, str) and view for view in views):
        yield f"column views: {views!r} has an empty name"
    for i, image in enumerate(images):
        if not ((image or {}).get("bytes") or b"").startswith(_MAGIC):
            yield f"column images: image {i} is neither JPEG nor PNG"


def _label_faults(row: Mapping[str, Any], vocabulary: set[str] | None) -> Iterator[str]:
    said: set[str] = set()
    for name in _LABELS:
        for finding in row[name]:
            if not isinstance(finding, str) or not finding:
                yield f"column {name}: {finding!r} is no finding name"
            elif finding in said:
                yield f"column {name}: {finding!r} is named twice among positive, negative and uncertain"
            elif vocabulary is not None and finding not in vocabulary:
                yield f"column {name}: unknown finding {finding!r}"
            said.add(finding)


def _first(faults: Sequence[object]) -> str:
    """The first faults in full, the others as a number."""
    more = f" (and {len(faults) - SHOWN:,} more)" if len(faults) > SHOWN else ""
    return "; ".join(str(fault) for fault in faults[:SHOWN]) + more


def refuse_many(rejected: Sequence[Rejected], total: int, max_rejected: float, folder: str | Path) -> None:
    """Stop when more than the share `max_rejected` of `total` rows was set aside.

    Raises:
        InputError: with the counts and the first reasons.
    """
    if len(rejected) > max_rejected * total:
        raise InputError(
            f"{folder}: nothing written, {len(rejected):,} of {total:,} rows are unusable, more than "
            f"max_rejected={max_rejected:g} allows: {_first(rejected)}"
        )


def check_leakage(folders: Mapping[str, str | Path]) -> None:
    """Check that no patient stands in two splits and no film in two sources.

    Patients are told apart by (source, patient_id), films by the SHA-256 of their encoded bytes.

    Args:
        folders: name -> study folder; all of them are compared with each other.

    Raises:
        InputError: names the first patients or films, with the folders, and counts the others.
    """
    patients: dict[tuple[str, str], tuple[str, str]] = {}
    films: dict[bytes, tuple[str, str]] = {}
    faults: dict[object, str] = {}
    for name, folder in folders.items():
        for row in _rows(Path(folder)):
            who, place = (row["source"], row["patient_id"]), f"{name} ({row['study_id']})"
            split, first = patients.setdefault(who, (row["split"], place))
            if split != row["split"]:
                faults[who] = f"patient {who[1]} of {who[0]} is in {split} of {first} and in {row['split']} of {place}"
            for image in row["images"]:
                content = hashlib.sha256(image["bytes"]).digest()
                source, first = films.setdefault(content, (row["source"], place))
                if source != row["source"]:
                    faults[content] = f"one film is in {source}, {first}, and in {row['source']}, {place}"
    if faults:
        raise InputError(f"leakage: {_first(list(faults.values()))}; split by patient and drop repeated films")


def summary(folders: Mapping[str, str | Path]) -> pd.DataFrame:
    """Count what is there: one row per name and split, in the layout of the paper's Table 1.

    Returns:
        Columns name, split, studies, patients, images, two_views (studies with two distinct views), findings,
        impression, both_sections, labelled (studies with any label), positive, negative, uncertain (labels),
        rejected (rows set aside when the folder was made, on its first line only).
    """
    lines = []
    for name, folder in folders.items():
        table = pd.concat([_shape(shard) for shard in _shards(Path(folder))])
        rejected = _facts(Path(folder))["rejected"]
        for split in SPLITS:
            if (table["split"] == split).any():
                lines.append({"name": name, "split": split, **_counts(table[table["split"] == split])})
                lines[-1]["rejected"], rejected = rejected, 0
    return pd.DataFrame(lines)


def _shape(shard: Path) -> pd.DataFrame:
    """What `summary` counts, a line a study: whether a text is there, how many a list holds. A shard's texts go."""
    table = pq.read_table(shard, columns=["source", "patient_id", "split", "views", *_TEXTS, *_LABELS])
    columns = {name: table[name].to_pylist() for name in ("source", "patient_id", "split")}
    views = table["views"].to_pylist()
    columns |= {"images": [len(names) for names in views], "two_views": [len(set(names)) > 1 for names in views]}
    columns |= {name: table[name].is_valid().to_numpy() for name in _TEXTS}
    return pd.DataFrame(columns | {name: pc.list_value_length(table[name]).to_numpy() for name in _LABELS})


def _counts(table: pd.DataFrame) -> dict[str, int]:
    counts = {
        "studies": len(table),
        "patients": len(set(zip(table["source"], table["patient_id"], strict=True))),
        "images": table["images"].sum(),
        "two_views": table["two_views"].sum(),
        "findings": table["findings"].sum(),
        "impression": table["impression"].sum(),
        "both_sections": (table["findings"] & table["impression"]).sum(),
        "labelled": (table[list(_LABELS)].sum(axis=1) > 0).sum(),
        **{name: table[name].sum() for name in _LABELS},
    }
    return {name: int(count) for name, count in counts.items()}
