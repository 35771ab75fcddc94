"""Studies as they come from their shards, for training sets that are larger than a disk.

Nothing is copied or indexed: each process reads its own part of the shards through Hugging Face `datasets` and shuffles
within a buffer. The order follows from (seed, epoch, number of processes) alone, so a run resumes at any step: the
studies of the steps before, within the epoch, are read once more and left out. On another number of processes it
resumes as well, but the rest of that epoch then holds other studies.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import datasets
import numpy as np
import pyarrow.parquet as pq
from torch.utils.data import Dataset

from cxrclip.data.dataset import StudyItems
from cxrclip.errors import InputError
from cxrclip.prompts import STATES
from cxrclip.studies import SPLITS, read_shard, shard_files
from cxrclip.views import Study, generator, sections_of

ROWS = 64  # of a shard that are read together
Shard = tuple[int, str, int]  # the number of its folder, its path, its studies of the split


@dataclass(frozen=True)
class StreamedBatches:
    """Full batches for ever, (epoch, studies), from `start_step` on, for one of several processes.

    A study comes with the number of its folder: (part, row of the table).

    In an epoch the shards stand one after the other in a new order, and each of `world_size` processes reads an equal
    run of their N studies, so that none comes twice. Left out of an epoch are the last batch where it is incomplete, as
    everywhere, and at most world_size - 1 studies.

    batch_size: studies of all processes together. buffer: studies in memory that the next one is drawn from.
    Raises InputError for a folder that is no study table, and for a batch that does not fit.
    """

    folders: Sequence[Path]
    batch_size: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    split: str = SPLITS[0]
    buffer: int = 1000

    @cached_property
    def shards(self) -> list[Shard]:
        """Each file: the number of its folder, its path, its studies of the split; only that column is read."""
        files = [(part, str(file)) for part, folder in enumerate(self.folders) for file in shard_files(Path(folder))]
        return [(*file, pq.read_table(file[1], columns=["split"])["split"].to_pylist().count(self.split))
                for file in files]

    @property
    def studies_each(self) -> int:
        """Studies of an epoch that one process reads."""
        return sum(count for *_, count in self.shards) // self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one epoch. InputError where there is none, or where processes cannot share a batch."""
        share, rest = divmod(self.batch_size, self.world_size)
        if rest or not 0 < share <= self.studies_each:
            raise InputError(f"a batch of {self.batch_size} out of {self.studies_each} studies in each of "
                             f"{self.world_size} processes: choose a smaller batch, a multiple of their number")
        return self.studies_each // share

    def __iter__(self) -> Iterator[tuple[int, list[tuple[int, Study]]]]:
        epoch, done = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from self.epoch(epoch, done)
            epoch, done = epoch + 1, 0

    def epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[int, list[tuple[int, Study]]]]:
        """The batches of one epoch that this process makes, after the first `done`."""
        rng, share = generator(self.seed, epoch, "order of the shards"), self.batch_size // self.world_size
        shards = [self.shards[i] for i in rng.permutation(len(self.shards))]
        ends = np.cumsum([count for *_, count in shards])
        first, end = self.rank * self.studies_each, (self.rank + 1) * self.studies_each
        begins, stops = np.searchsorted(ends, first, side="right"), np.searchsorted(ends, end, side="left")
        stream = datasets.IterableDataset.from_generator(
            studies_of, gen_kwargs={"shards": shards[begins:stops + 1], "split": self.split})
        stream = stream.skip(int(first - (ends[begins] - shards[begins][2]))).take(self.studies_each)
        stream = stream.shuffle(seed=int(rng.integers(2**31)) + self.rank, buffer_size=self.buffer)
        rows = iter(stream.skip(done * share))
        for _ in range(self.steps_per_epoch - done):
            yield epoch, [(row["part"], row["study"]) for row in itertools.islice(rows, share)]


def studies_of(shards: Sequence[Shard], split: str) -> Iterator[dict[str, int | Study]]:
    """The studies of a split, {"part", "study"}, shard after shard, a few rows in memory."""
    for part, path, _ in shards:
        for rows in read_shard(path, ROWS):
            yield from ({"part": part, "study": row} for row in rows if row["split"] == split)


class StreamedItems(Dataset):
    """Training items of streamed studies: `parts` say for each folder how its studies become items."""

    def __init__(self, parts: Sequence[StudyItems]) -> None:
        self.parts = parts

    def __getitems__(self, keys: Sequence[tuple[int, tuple[int, Study]]]) -> list[dict]:
        """The items of (epoch, (part, study)).

        Raises InputError for a study with neither a report nor a label: a stream cannot count those before it starts.
        """
        for _, (part, study) in keys:
            if not (sections_of(study) or self.parts[part].bank.labelled(*(study[state] for state in STATES))):
                raise InputError(f"study {study['study_id']}: neither a report nor a label: leave such studies out of "
                                 "a table that is streamed")
        return [self.parts[part].item(study, epoch) for epoch, (part, study) in keys]
