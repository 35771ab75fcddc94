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
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cxrclip.errors import InputError
from cxrclip.studies import SPLITS, shard_files
from cxrclip.views import Study, generator


@dataclass(frozen=True)
class StreamedBatches:
    """Full batches of studies for ever, (epoch, rows of the table), from `start_step` on, for one of several processes.

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
    def shards(self) -> list[tuple[str, int]]:
        """Each file with its number of studies of the split; only that column is read."""
        files = [str(file) for folder in self.folders for file in shard_files(Path(folder))]
        splits = (pq.read_table(file, columns=["split"])["split"] for file in files)
        return [(file, pc.sum(pc.equal(names, self.split)).as_py() or 0) for file, names in zip(files, splits,
                                                                                               strict=True)]

    @property
    def studies_each(self) -> int:
        """Studies of an epoch that one process reads."""
        return sum(count for _, count in self.shards) // self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one epoch. InputError where there is none, or where processes cannot share a batch."""
        share, rest = divmod(self.batch_size, self.world_size)
        if rest or not 0 < share <= self.studies_each:
            raise InputError(f"a batch of {self.batch_size} out of {self.studies_each} studies in each of "
                             f"{self.world_size} processes: choose a smaller batch, a multiple of their number")
        return self.studies_each // share

    def __iter__(self) -> Iterator[tuple[int, list[Study]]]:
        epoch, done = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from self.epoch(epoch, done)
            epoch, done = epoch + 1, 0

    def epoch(self, epoch: int, done: int = 0) -> Iterator[tuple[int, list[Study]]]:
        """The batches of one epoch that this process makes, after the first `done`."""
        rng, share = generator(self.seed, epoch, "order of the shards"), self.batch_size // self.world_size
        files, counts = zip(*(self.shards[i] for i in rng.permutation(len(self.shards))), strict=True)
        ends = np.cumsum(counts)
        first, end = self.rank * self.studies_each, (self.rank + 1) * self.studies_each
        begins, stops = np.searchsorted(ends, first, side="right"), np.searchsorted(ends, end, side="left")
        stream = datasets.IterableDataset.from_parquet(list(files[begins:stops + 1]),
                                                       filters=[("split", "==", self.split)])
        stream = stream.skip(int(first - (ends[begins] - counts[begins]))).take(self.studies_each)
        stream = stream.shuffle(seed=int(rng.integers(2**31)) + self.rank, buffer_size=self.buffer)
        rows = iter(stream.skip(done * share))
        for _ in range(self.steps_per_epoch - done):
            yield epoch, list(itertools.islice(rows, share))
