"""The one data structure: a table of studies in a folder of Parquet shards. One row is one study.

Nothing else in the library knows a data set's name. A folder holds

    studies-00000.parquet ...   the rows (`SCHEMA`)
    dataset.json                number of studies, SHA-256 of their content, where they came from
    rejected.csv                rows of the source that could not be used, if any

Parquet, because pandas, DuckDB, Spark, Ray and Hugging Face `datasets` all read it. Such folders are written by
data/shards.py.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from cxrclip.errors import InputError, one_line

SPLITS = ("train", "valid", "test")
SEXES = ("F", "M")
MAX_AGE = 120.0  # years
MAX_TEXT = 20_000  # characters; the longest of the 3,955 Open-I reports has fewer than 3,000
SHOWN = 3  # faults spelled out in a message; the others are counted

_STRINGS = pa.list_(pa.string())
SCHEMA = pa.schema([
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
])
"""Images are encoded JPEG or PNG, 8-bit gray; `views` is aligned with them. `findings`, `impression`, `sex` ("F", "M")
and `age` (years) may be null; lists are empty, never null. Finding names are those of the source's vocabulary."""

REQUIRED = ("study_id", "patient_id", "source", "split")
_TEXTS = ("findings", "impression")
_LABELS = ("positive", "negative", "uncertain")
_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


class _Facts(BaseModel, strict=True):
    """dataset.json of a study folder."""

    studies: int
    shards: int
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")  # also the name of a folder
    files: dict[str, str] = {}  # shard -> SHA-256 of the file; folders that older code wrote have none
    rejected: int
    about: dict[str, Any]


def open_studies(folders: str | Path | Sequence[str | Path], split: str | None = None) -> datasets.Dataset:
    """Open one study folder, or several one after the other, through Hugging Face `datasets`.

    `ds[i]` is a dict of plain Python values, memory-mapped from an Arrow copy kept in `<folder>/.cache` (or in the
    default cache of `datasets` where the folder is read-only). The copy is keyed by the fingerprint of the content, so
    a folder that is made again is never read from an old copy. data/stream.py reads training sets without a copy.

    Raises:
        InputError: a folder is no study table or not whole, the split is unknown or empty.
    """
    paths = [Path(folders)] if isinstance(folders, str | Path) else [Path(folder) for folder in folders]
    if not paths:
        raise InputError("open_studies: no folder given; name at least one study folder")
    if split is not None and split not in SPLITS:
        raise InputError(f"open_studies: unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    whole = datasets.concatenate_datasets([_open_folder(path, split) for path in paths])
    if not len(whole):
        raise InputError(f"{', '.join(map(str, paths))}: no study in split {split!r}; see cxrclip.studies.summary")
    return whole


def _open_folder(folder: Path, split: str | None) -> datasets.Dataset:
    root = folder / ".cache" if os.access(folder, os.W_OK) else Path(datasets.config.HF_DATASETS_CACHE) / "cxrclip"
    shards, place = shard_files(folder), root / fingerprint(folder)[:16]
    if not place.exists():  # from then on the copy is read
        _check_files(folder, shards)
    files = [str(shard) for shard in shards]
    bars = not datasets.are_progress_bars_disabled()
    try:  # not datasets.load_dataset: it reports its use over the network
        datasets.disable_progress_bars()
        whole = datasets.Dataset.from_parquet(files, cache_dir=str(place))
    except (OSError, pa.ArrowException, datasets.exceptions.DatasetGenerationError) as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"{folder}: cannot be opened ({cause}); free disk space or prepare it again") from error
    finally:
        if bars:
            datasets.enable_progress_bars()
    if split is None:
        return whole
    return whole.select(np.flatnonzero(np.asarray(whole.data.column("split")) == split), keep_in_memory=True)


def _check_files(folder: Path, shards: Sequence[Path]) -> None:
    """Compare the shards with what was written. Folders made before `files` was kept have nothing to compare."""
    written = facts_of(folder)["files"]
    for shard in shards:
        if written.get(shard.name) not in (None, sha256_of(shard)):
            raise InputError(f"{shard}: its content has changed since it was written; prepare the folder again")


def sha256_of(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(folder: str | Path) -> str:
    """SHA-256 (hex) of the folder's content, as `write_studies` stored it."""
    return facts_of(folder)["sha256"]


def facts_of(folder: str | Path) -> dict[str, Any]:
    """What `dataset.json` says of a study folder: studies, shards, sha256, files, rejected (counts) and about.

    Raises InputError where the file is missing or damaged.
    """
    path = Path(folder) / "dataset.json"
    try:
        return _Facts.model_validate_json(path.read_bytes()).model_dump()
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a study folder (no dataset.json); prepare it first") from error
    except ValidationError as error:
        raise InputError(f"{one_line(error, path)}; prepare the folder again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); prepare the folder again") from error


def shard_files(folder: Path) -> list[Path]:
    """The Parquet files of a study folder, in order. Raises InputError where it is none, or not whole."""
    shards = sorted(folder.glob("studies-*.parquet"))
    if len(shards) != (expected := facts_of(folder)["shards"]):
        raise InputError(f"{folder}: {len(shards)} of {expected} Parquet shards are here; prepare the folder again")
    return shards


def read_shards(folder: str | Path, rows: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """Every study in order, as plain Python values: a shard (a file) at a time in memory, or that many `rows`.

    Raises:
        InputError: the folder is no study table or not whole, or a shard is damaged.
    """
    for shard in shard_files(Path(folder)):
        yield from read_shard(shard, rows)


def read_shard(shard: str | Path, rows: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """The studies of one shard (a file), all at once or that many `rows` at a time; raises as `read_shards`."""
    try:
        with pq.ParquetFile(shard) as file:
            if not file.schema_arrow.equals(SCHEMA):
                raise InputError(f"{shard}: other columns than a study table; {_difference(file.schema_arrow)}")
            for batch in file.iter_batches(rows) if rows else [file.read()]:
                yield batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{shard}: damaged ({str(error).splitlines()[0]}); prepare the folder again") from error


def _difference(schema: pa.Schema) -> str:
    for field in SCHEMA:
        if field.name not in schema.names:
            return f"column {field.name} is missing"
        if not schema.field(field.name).equals(field):
            return f"column {field.name} has type {schema.field(field.name).type}, not {field.type}"
    return f"column {next(name for name in schema.names if name not in SCHEMA.names)} is unknown"


def validate(folder: str | Path, vocabulary: Iterable[str] | None = None) -> None:
    """Check every study of a folder, and the folder against its fingerprint.

    vocabulary: the finding names allowed in positive, negative and uncertain; None allows any.

    Raises:
        InputError: names the first faults by row (counted from 1), column and value, and counts the others.
    """
    folder, names = Path(folder), None if vocabulary is None else set(vocabulary)
    digest, count = hashlib.sha256(), 0
    seen: set[str] = set()
    faults: list[str] = []
    for count, row in enumerate(itertools.chain.from_iterable(read_shards(folder, 64)), 1):
        faults += [f"row {count} ({row['study_id']}), {fault}" for fault in faults_of(row, seen, names)]
        if not faults:
            digest.update(canonical(row))
    if faults:
        raise InputError(f"{folder}: {first_faults(faults)}; correct the source and prepare the folder again")
    if digest.hexdigest() != fingerprint(folder):
        raise InputError(f"{folder}: {count} studies differ from their fingerprint; prepare the folder again")


def canonical(row: Mapping[str, Any]) -> bytes:
    """One study as bytes for the content hash: JSON with each image replaced by its SHA-256."""
    images = [[hashlib.sha256(image["bytes"]).hexdigest(), image["path"]] for image in row["images"]]
    return json.dumps({**row, "images": images}, sort_keys=True).encode() + b"\n"


def faults_of(row: Mapping[str, Any], seen: set[str], vocabulary: set[str] | None = None) -> Iterator[str]:
    """Every fault of one study as "column: what"; `seen` collects the study ids."""
    for name in REQUIRED:
        if not isinstance(row[name], str) or not row[name].strip():
            yield f"column {name}: {row[name]!r} is not a text"
    if row["split"] not in SPLITS:
        yield f"column split: {row['split']!r} is not one of {', '.join(SPLITS)}"
    if row["study_id"] in seen:
        yield "column study_id: is in the table twice"
    seen.add(row["study_id"])
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
    for name in _TEXTS:
        text = row[name]
        if text is not None and not (isinstance(text, str) and text.strip() and len(text) <= MAX_TEXT):
            size = f"{len(text):,} characters" if isinstance(text, str) else type(text).__name__
            yield f"column {name}: {size}; 1 to {MAX_TEXT:,} characters or null are allowed"
    named: set[str] = set()
    for name in _LABELS:
        for finding in row[name]:
            if not isinstance(finding, str) or not finding:
                yield f"column {name}: {finding!r} is not a finding name"
            elif finding in named:
                yield f"column {name}: {finding!r} is named twice among positive, negative and uncertain"
            elif vocabulary is not None and finding not in vocabulary:
                yield f"column {name}: unknown finding {finding!r}"
            named.add(finding)
    if row["sex"] is not None and row["sex"] not in SEXES:
        yield f"column sex: {row['sex']!r} is not one of {', '.join(SEXES)} or null"
    if row["age"] is not None and not 0 <= row["age"] <= MAX_AGE:
        yield f"column age: {row['age']:g} is outside 0 to {MAX_AGE:g} years"


def first_faults(faults: Sequence[object]) -> str:
    """The first faults in full, the others as a number."""
    more = f" (and {len(faults) - SHOWN:,} more)" if len(faults) > SHOWN else ""
    return "; ".join(str(fault) for fault in faults[:SHOWN]) + more


def check_leakage(folders: Mapping[str, str | Path]) -> None:
    """Check that no patient is in two splits and no film in two sources.

    Patients are told apart by (source, patient_id), films by the SHA-256 of their encoded bytes. `folders` (name ->
    study folder) are all compared with each other.

    Raises:
        InputError: names the first patients or films, with the folders, and counts the others.
    """
    patients: dict[tuple[str, str], tuple[str, str]] = {}
    films: dict[bytes, tuple[str, str]] = {}
    faults: dict[object, str] = {}
    for name, folder in folders.items():
        for row in itertools.chain.from_iterable(read_shards(folder, 64)):
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
        raise InputError(f"leakage: {first_faults(list(faults.values()))}; split by patient and drop repeated films")


def summary(folders: Mapping[str, str | Path]) -> pd.DataFrame:
    """Count studies, images and labels: one row per name and split, in the layout of the paper's Table 1.

    Returns:
        Columns name, split, studies, patients, images, two_views (studies with two distinct views), findings,
        impression, both_sections, labelled (studies with any label), positive, negative, uncertain (labels),
        rejected (rows set aside when the folder was made, on its first line only).
    """
    tables = []
    for name, folder in folders.items():
        by_split = pd.concat([_shape(shard) for shard in shard_files(Path(folder))]).groupby("split")
        table = by_split.sum(numeric_only=True).astype(int)
        table.insert(1, "patients", by_split["patient"].nunique())
        table["rejected"] = 0
        table = table.loc[[split for split in SPLITS if split in table.index]].reset_index()
        table.loc[0, "rejected"] = facts_of(folder)["rejected"]
        tables.append(table.assign(name=name)[["name", *table]])
    return pd.concat(tables, ignore_index=True)


def _shape(shard: Path) -> pd.DataFrame:
    """What `summary` counts, a line per study: whether a text is there, how many items a list has. No text is kept."""
    columns = ["split", "source", "patient_id", "views", *_TEXTS, *_LABELS]
    table = pq.read_table(shard, columns=columns).to_pandas()
    views, texts, labels = table["views"], table[list(_TEXTS)].notna(), table[list(_LABELS)].map(len)
    return pd.DataFrame({
        "split": table["split"], "patient": table["source"] + "\n" + table["patient_id"], "studies": 1,
        "images": views.map(len), "two_views": views.map(lambda names: len(set(names)) > 1), **texts,
        "both_sections": texts.all(axis=1), "labelled": labels.any(axis=1), **labels})
