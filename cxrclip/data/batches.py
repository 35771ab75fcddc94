"""The order of the studies: endless batches of indices by seed, and shares of a data set."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from cxrclip.errors import InputError
from cxrclip.views import generator

Batches = Iterable[tuple[int, list[int]]]  # (epoch, indices), batch after batch


@dataclass(frozen=True)
class EpochBatches:
    """Full batches of study indices for ever: each epoch a new order by seed, the incomplete last batch dropped.

    Iterating yields (epoch, indices) from `start_step` on (steps count batches over all epochs), so a resumed run
    sees what the killed run would have seen. `batch_size` counts the studies of all processes together; the
    process `rank` of `world_size` gets its slice. `order` names the order: two of them are independent.
    """

    n_studies: int
    batch_size: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    order: str = "order of the studies"

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.n_studies:
            raise InputError(f"a batch of {self.batch_size} out of {self.n_studies} studies: lower the batch size")
        if self.batch_size % self.world_size:
            raise InputError(f"a batch of {self.batch_size} cannot be shared by {self.world_size} processes evenly: "
                             "choose a multiple")

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one epoch."""
        return self.n_studies // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch, done = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from itertools.islice(self.epoch(epoch), done, None)
            epoch, done = epoch + 1, 0

    def epoch(self, epoch: int) -> Iterator[tuple[int, list[int]]]:
        """The batches of one epoch, whatever `start_step` says."""
        order = generator(self.seed, epoch, self.order).permutation(self.n_studies)
        share = self.batch_size // self.world_size
        for step in range(self.steps_per_epoch):
            first = step * self.batch_size + self.rank * share
            yield epoch, order[first : first + share].tolist()


def share_of(n: int, share: float, seed: int, name: str) -> list[int]:
    """Sorted indices of a share of n studies, drawn by seed and name; a smaller share lies within a larger one."""
    drawn = generator(seed, 0, f"share of {name}").permutation(n)[:round(share * n)]
    return np.sort(drawn).tolist()
