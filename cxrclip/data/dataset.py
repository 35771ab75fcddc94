"""Studies as training items: tables of several sources, read at random, drawn as views and texts, and collated."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache, cached_property, partial
from typing import Any

import cv2
import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset
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

Key = tuple[int, int]  # (epoch, index)
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
        studies = studies.select_columns(list(COLUMNS))
        usable, silent = split_usable(studies, bank)
        self.set_aside: list[str] = []
        if silent and not keep_silent:
            if len(silent) > MAX_SET_ASIDE * len(studies):
                raise InputError(f"{len(silent)} of {len(studies)} studies have neither a report nor a label "
                                 f"(first: {', '.join(silent[:3])}); {MAX_SET_ASIDE:.0%} are tolerated: mend the table")
            self.set_aside, studies = silent, studies.select(usable)
        self.studies, self.films = studies, FilmMemory()

    def __len__(self) -> int:
        return len(self.studies)

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study have a report? The others have labels only."""
        return of_columns(self.studies, SECTIONS, has_text)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """{"study_id", "images": (V, C, S, S), "texts": list of T strings} of (epoch, index)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Several items with one read of the table; DataLoader calls this by itself."""
        rows = self.studies.__getitems__([index for _, index in keys])
        return [self.item(row, *key) for row, key in zip(rows, keys, strict=True)]


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

    @cache
    def labelled(*labels: tuple[str, ...]) -> bool | str:
        """Do these labels say something, or what is wrong with them? Each set of labels is looked at once."""
        try:
            return bool(bank.labelled(*labels))
        except InputError as error:
            return str(error)

    def look(chunk: pa.Table) -> np.ndarray:
        """(N,) has the row a text or a label, or what is wrong with it?"""
        verdicts = has_text(chunk).astype(object)
        silent = np.flatnonzero(~verdicts.astype(bool))
        for row, labels in zip(silent, chunk.select(STATES).take(silent).to_pylist(), strict=True):
            verdicts[row] = labelled(*(tuple(labels[state] or ()) for state in STATES))
        images = pc.fill_null(pc.list_value_length(chunk["views"]), 0).to_numpy()
        verdicts[images == 0] = "no image; remove the row"
        return verdicts

    verdicts = of_columns(studies, [name for name in COLUMNS if name != "images"], look)
    for row, verdict in enumerate(verdicts):
        if isinstance(verdict, str):
            raise InputError(f"study {studies[row]['study_id']}: {verdict}")
    speaks = verdicts.astype(bool)
    silent = studies.select_columns(["study_id"])[np.flatnonzero(~speaks)]["study_id"]
    return np.flatnonzero(speaks), list(silent)


def of_columns(studies: datasets.Dataset, names: Sequence[str],
               values_of: Callable[[pa.Table], np.ndarray]) -> np.ndarray:
    """What `values_of` says of each study, from some columns as Arrow keeps them, CHUNK rows at a time.

    Texts stay in Arrow, and a selection is read as the whole table: datasets gathers row by row.
    """
    table, chosen = studies.data.table.select(list(names)), studies._indices  # datasets has no public name for it
    schema = pa.schema([SCHEMA.field(name) for name in names])  # a table made in memory may have columns of no type
    values = np.concatenate([values_of(table.slice(first, CHUNK).cast(schema))
                             for first in range(0, len(table), CHUNK)])
    return values if chosen is None else values[chosen.column(0).to_numpy()]


def has_text(chunk: pa.Table) -> np.ndarray:
    """(N,) bool: has the row a section that is not blank?"""
    said = [pc.fill_null(pc.utf8_length(pc.utf8_trim_whitespace(chunk[name])), 0).to_numpy() > 0
            for name in SECTIONS]
    return said[0] | said[1]


class StudyMix(ConcatDataset):
    """Several data sets, one after the other, as one: the roles M, C and C14 with their own `max_negatives`."""

    datasets: list[PretrainingDataset]

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study have a report?"""
        return np.concatenate([part.has_report for part in self.datasets])

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """The items of (epoch, index) pairs, in their order, each part read once."""
        places = defaultdict(list)
        for place, (_, index) in enumerate(keys):
            places[bisect_right(self.cumulative_sizes, index)].append(place)
        items = {}
        for number, where in places.items():
            part = self.datasets[number]
            start = self.cumulative_sizes[number] - len(part)
            local = [(keys[place][0], keys[place][1] - start) for place in where]
            items |= zip(where, part.__getitems__(local), strict=True)
        return [items[place] for place in range(len(keys))]


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
