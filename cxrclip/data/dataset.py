"""Studies as training items: tables of several sources, read at random, drawn as views and texts, and collated."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from cxrclip.data.memory import FilmMemory, TokenMemory
from cxrclip.errors import InputError
from cxrclip.prompts import STATES, PromptBank
from cxrclip.studies import SCHEMA
from cxrclip.transforms import Transform
from cxrclip.views import SECTIONS, DrawImages, DrawTexts, Study, draw_images, draw_texts, generator

LIST_COLUMNS = ("images", "views", "findings_aug", "impression_aug", *STATES)
COLUMNS = ("study_id", *SECTIONS, *LIST_COLUMNS)
MAX_SET_ASIDE = 0.05
CHUNK = 20_000  # rows that are looked at together
SPACES = "".join(filter(str.isspace, map(chr, range(0x3001))))  # all that str.strip takes off

Key = int | tuple[int, int]  # an index, or (epoch, index)
Marks = Callable[[Study], Mapping[str, float]]  # a study -> numbers that go into the batch beside images and texts


class StudyItems:
    """How the studies of one source become training items: V images and T texts each.

    Args:
        transform: (image (H, W) uint8, generator) -> (C, S, S); C is 3, or 1 for a film that the model will normalise.
        max_negatives: negative sentences a prompt keeps; None keeps all. Official: 3 for ChestX-ray14.
        images, texts: which V images and T texts a study gives (views.py); the defaults are the paper's, 2 and 2.
        marks: numbers of each study that go into the batch, for losses that need them.
    """

    def __init__(self, bank: PromptBank, transform: Transform, *, seed: int, max_negatives: int | None = None,
                 images: DrawImages = draw_images, texts: DrawTexts = draw_texts, marks: Marks | None = None) -> None:
        if max_negatives is not None and max_negatives < 1:
            raise InputError(f"max_negatives={max_negatives}: a normal study would say nothing; use 1 or more, or None")
        self.transform, self.seed, self.bank = transform, seed, bank
        self.images, self.texts, self.marks = images, texts, marks
        self.report = partial(bank.report, max_negatives=max_negatives)
        self.films = FilmMemory(most=0)  # a stream has no place to find a film by

    def item(self, study: Study, epoch: int, index: int = 0) -> dict[str, Any]:
        """{"study_id", "images": (V, C, S, S), "texts": list of T strings} of a study as it is drawn in an epoch.

        Every draw follows from (seed, epoch, study id). index: its place in a table that keeps films.
        """
        rng = generator(self.seed, epoch, study["study_id"])
        chosen = self.images(study["views"], rng)
        texts = self.texts(study, self.report, rng)
        films = {i: self.films((index, i), study["images"][i]["bytes"], f"study {study['study_id']}, image {i}")
                 for i in sorted(set(chosen))}
        images = torch.stack([self.transform(films[i], rng) for i in chosen])       # (V, C, S, S)
        marks = self.marks(study) if self.marks else {}
        return {"study_id": study["study_id"], "images": images, "texts": texts, **marks}


class PretrainingDataset(StudyItems, Dataset):
    """The studies of one source at random access, each as V images and T texts.

    Studies with neither a report nor a label are set aside at construction: their ids are in `set_aside`.

    Args:
        studies: rows of the study table (studies.open_studies).
        keep_silent: also use studies that have neither a report nor a label.
        options: of StudyItems.

    Raises:
        InputError: a missing column, strings where lists belong, an unknown finding (names the study), a study
            without images, more than 5 % of the studies set aside.
    """

    def __init__(self, studies: datasets.Dataset, bank: PromptBank, transform: Transform, *, seed: int,
                 keep_silent: bool = False, **options: Any) -> None:
        super().__init__(bank, transform, seed=seed, **options)
        check_columns(studies)
        self.epoch = 0
        studies = studies.select_columns(list(COLUMNS))
        usable, silent = split_usable(studies, bank)
        self.set_aside: list[str] = []
        if silent and not keep_silent:
            refuse_many_silent(silent, len(studies))
            self.set_aside, studies = silent, studies.select(usable)
        self.studies, self.films = studies, FilmMemory()

    def __len__(self) -> int:
        return len(self.studies)

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study have a report? The others have labels only."""
        return of_columns(self.studies, SECTIONS, has_text)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of plain indices; batches carry their own, as (epoch, index)."""
        self.epoch = epoch

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """{"study_id", "images": (V, C, S, S), "texts": list of T strings} of index or (epoch, index)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Several items with one read of the table; DataLoader calls this by itself."""
        pairs = [key if isinstance(key, tuple) else (self.epoch, key) for key in keys]
        columns = self.studies[[index for _, index in pairs]]
        return [self.item(row, *pair) for row, pair in zip(chunk_rows(columns), pairs, strict=True)]

def check_columns(studies: datasets.Dataset) -> None:
    """InputError when a column is missing, or holds plain strings where lists belong (ledger B4)."""
    for name in COLUMNS:
        if name not in studies.features:
            raise InputError(f"the study table has no column {name!r}; write it with data.shards.write_studies")
        if name in LIST_COLUMNS and isinstance(studies.features[name], datasets.Value):
            raise InputError(f"column {name!r} holds plain values where lists belong; make each a list")


def split_usable(studies: datasets.Dataset, bank: PromptBank) -> tuple[np.ndarray, list[str]]:
    """Indices of the studies with a report or a label, and the ids of those without; labels are checked."""
    if not len(studies):
        raise InputError("no studies to train on; check the split")
    faults: list[str] = []  # each kind once; number 0 stands for none

    def look(chunk: pa.Table) -> np.ndarray:
        """(N, 2): has the row a text or a label, and the number of its fault."""
        speaks = has_text(chunk)
        labelled, fault = has_label(chunk, np.flatnonzero(~speaks), bank, faults)
        fault[(_lengths(chunk["views"]) == 0) & (fault == 0)] = -1
        return np.stack([speaks | labelled, fault], axis=1)

    speaks, fault = of_columns(studies, [name for name in COLUMNS if name != "images"], look).T
    if fault.any():
        row = int(np.flatnonzero(fault)[0])
        message = faults[fault[row] - 1] if fault[row] > 0 else "no image; remove the row"
        raise InputError(f"study {studies[row]['study_id']}: {message}")
    silent = studies.select_columns(["study_id"])[np.flatnonzero(speaks == 0)]["study_id"]
    return np.flatnonzero(speaks), list(silent)


def of_columns(studies: datasets.Dataset, names: Sequence[str],
               values_of: Callable[[pa.Table], np.ndarray]) -> np.ndarray:
    """What `values_of` says of each study, from some columns as Arrow keeps them, CHUNK rows at a time.

    No Python object is made of a row, and a selection is read as the whole table: datasets gathers row by row.
    """
    table, chosen = studies.data.table.select(list(names)), studies._indices  # datasets has no public name for it
    schema = pa.schema([SCHEMA.field(name) for name in names])  # a table made in memory may have columns of no type
    values = np.concatenate([values_of(table.slice(first, CHUNK).cast(schema))
                             for first in range(0, len(table), CHUNK)])
    return values if chosen is None else values[chosen.column(0).to_numpy()]


def has_text(chunk: pa.Table) -> np.ndarray:
    """(N,) bool: has the row a section that is not blank?"""
    said = [pc.fill_null(pc.utf8_length(pc.utf8_trim(chunk[name], SPACES)), 0).to_numpy() > 0 for name in SECTIONS]
    return said[0] | said[1]


def has_label(chunk: pa.Table, rows: np.ndarray, bank: PromptBank,
              faults: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool: is it one of `rows`, and labelled? (N,) the number of its fault from 1 on, 0 for none.

    Each set of labels is checked once. Appends to `faults`.
    """
    labelled, fault = np.zeros(len(chunk), bool), np.zeros(len(chunk), int)
    labels = chunk.select(STATES).take(rows)
    texts = [pc.fill_null(pc.binary_join(labels[state], "\x1e"), "") for state in STATES]
    sets = pc.binary_join_element_wise(*texts, "\x1f").to_numpy().astype(str)
    _, firsts, numbers = np.unique(sets, return_index=True, return_inverse=True)
    for number, first in enumerate(firsts):
        same = rows[numbers == number]
        try:
            labelled[same] = bool(bank.labelled(*(labels[state][first].as_py() for state in STATES)))
        except InputError as error:
            faults.append(str(error))
            fault[same] = len(faults)
    return labelled, fault


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy()


def refuse_many_silent(silent: Sequence[str], total: int) -> None:
    """InputError if more than 5 % of the studies have neither a report nor a label."""
    if len(silent) > MAX_SET_ASIDE * total:
        raise InputError(f"{len(silent)} of {total} studies have neither a report nor a label "
                         f"(first: {', '.join(silent[:3])}); {MAX_SET_ASIDE:.0%} are tolerated: mend the table")


def chunk_rows(columns: Mapping[str, Sequence]) -> Iterator[dict[str, Any]]:
    """The rows of a dict of columns, as HF datasets returns several rows at once."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


class StudyMix(Dataset):
    """Several data sets, one after the other, as one: the roles M, C and C14 with their own `max_negatives`."""

    def __init__(self, parts: Sequence[PretrainingDataset]) -> None:
        self.parts = parts
        self.ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def set_aside(self) -> list[str]:
        """The ids of the studies set aside in any part."""
        return [study_id for part in self.parts for study_id in part.set_aside]

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study have a report?"""
        return np.concatenate([part.has_report for part in self.parts])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The items of (epoch, index) pairs, in their order, each part read once."""
        places = defaultdict(list)
        for place, (_, index) in enumerate(keys):
            places[bisect_right(self.ends, index)].append(place)
        items = {}
        for part, where in places.items():
            start = self.ends[part] - len(self.parts[part])
            local = [(keys[place][0], keys[place][1] - start) for place in where]
            items |= zip(where, self.parts[part].__getitems__(local), strict=True)
        return [items[place] for place in range(len(keys))]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The item of one (epoch, index) pair."""
        return self.__getitems__([key])[0]


def collate(items: Sequence[Mapping[str, Any]], tokens: TokenMemory) -> dict[str, Tensor]:
    """Batch B items of V images and T texts; texts are padded to the longest of the batch.

    Returns {"pixel_values": (V, B, C, S, S) float32, "input_ids": (T, B, L), "attention_mask": (T, B, L)}, and each
    mark of the items as (B,).
    """
    texts = [text for same_place in zip(*(item["texts"] for item in items), strict=True) for text in same_place]
    ids, mask = tokens(texts)                                                       # (T * B, L)
    marks = [name for name in items[0] if name not in ("study_id", "images", "texts")]
    return {
        "pixel_values": torch.stack([item["images"] for item in items], dim=1),
        "input_ids": torch.from_numpy(ids).unflatten(0, (-1, len(items))),
        "attention_mask": torch.from_numpy(mask).unflatten(0, (-1, len(items))),
        **{name: torch.tensor([item[name] for item in items]) for name in marks},
    }


def load_batches(dataset: Dataset, batches: Iterable[tuple[int, Sequence]], tokenizer: PreTrainedTokenizerBase,
                 max_tokens: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """The collated batches of (epoch, indices), in that order; the same for any number of worker processes.

    dataset: a PretrainingDataset, a StudyMix, or for batches of a stream its StreamedItems (stream.py).
    """
    keys = ([(epoch, index) for index in indices] for epoch, indices in batches)
    loader = DataLoader(
        dataset, batch_sampler=keys, num_workers=workers, worker_init_fn=_one_thread,
        collate_fn=partial(collate, tokens=TokenMemory(tokenizer, max_tokens)),
        generator=torch.Generator(),  # else the loader draws its (unused) seed from torch's global generator
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the threads of OpenCV do not survive the fork of a worker
