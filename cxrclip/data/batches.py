"""The order of the studies: endless batches of indices by seed, and other arrangements of them (remedies).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cxrclip.errors import InputError
from cxrclip.views import generator

if TYPE_CHECKING:
    from cxrclip.data.dataset import StudyMix

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

    def first_epoch(self) -> Iterator[tuple[int, list[int]]]:
        """The batches of epoch 0: a fixed set, as validation needs it."""
        return self.epoch(0)


def arranged(batches: EpochBatches, mix: StudyMix, steps: int, *, kind: str = "mixed",
             report_share: float | None = None, reports_last: float = 0.0) -> Batches:
    """`batches` themselves, or with a switch on what it makes of them; each resumes at any step as they do.

    kind "one-source", report_share, reports_last: see `one_source`, `with_report_share`, `reports_at_the_end`, whose
    share of `steps` is rounded. One-source batches cannot have a share of reports.
    """
    found: Batches = batches
    if kind == "one-source":
        found = one_source(batches, [len(part) for part in mix.parts])
    elif report_share is not None:
        labels = np.flatnonzero(~mix.has_report).tolist()
        found = with_report_share(batches, np.flatnonzero(mix.has_report).tolist(), labels, report_share)
    if reports_last:
        reports = np.flatnonzero(mix.has_report).tolist()
        found = reports_at_the_end(found, batches, reports, steps - round(reports_last * steps))
    return found


def one_source(batches: EpochBatches, sizes: Sequence[int]) -> Batches:
    """Each batch from one source only; an epoch is every source's full batches, sources taking turns at random.

    sizes: studies of each source, which stand one after the other. A source has turns in proportion to its studies.
    """
    starts = [0, *itertools.accumulate(sizes)]
    sources = [replace(batches, n_studies=n, order=f"order of source {i}") for i, n in enumerate(sizes)]
    first_epoch, done = divmod(batches.start_step, sum(source.steps_per_epoch for source in sources))
    for epoch in itertools.count(first_epoch):
        whole = [(epoch, [start + i for i in indices]) for start, source in zip(starts, sources, strict=False)
                 for _, indices in source.epoch(epoch)]
        turns = generator(batches.seed, epoch, "order of the turns").permutation(len(whole))
        yield from (whole[turn] for turn in turns[done:])
        done = 0


def with_report_share(batches: EpochBatches, reports: Sequence[int], labels: Sequence[int], share: float) -> Batches:
    """Each batch with the same share of report studies; either side goes through epochs of its own.

    reports, labels: indices of the studies. The share is rounded to whole studies. As there are two epochs, a study's
    draws are settled by the step in their place: (step, indices).
    """
    n = round(share * batches.batch_size)
    if not (reports and labels and 0 < n < batches.batch_size):
        raise InputError(f"report_share={share} of a batch of {batches.batch_size}, from {len(reports)} report and "
                         f"{len(labels)} label studies: each batch needs some of both")
    of_reports = replace(batches, n_studies=len(reports), batch_size=n, order="order of the reports")
    of_labels = replace(batches, n_studies=len(labels), batch_size=batches.batch_size - n, order="order of the labels")
    for step, (_, some), (_, others) in zip(itertools.count(batches.start_step), of_reports, of_labels, strict=False):
        yield step, [reports[i] for i in some] + [labels[i] for i in others]


def reports_at_the_end(found: Batches, batches: EpochBatches, reports: Sequence[int], switch: int) -> Batches:
    """`found` up to step `switch`, then report studies only, in epochs that no step before has used."""
    yield from itertools.islice(found, max(0, switch - batches.start_step))
    if not reports:
        raise InputError("reports_last: no training study has a report: leave it at 0")
    last = replace(batches, n_studies=len(reports), start_step=max(0, batches.start_step - switch),
                   order="order of the last reports")
    for epoch, indices in last:
        yield switch + epoch, [reports[i] for i in indices]


def share_of(n: int, share: float, seed: int, name: str) -> list[int]:
    """Sorted indices of a share of n studies, drawn by seed and name; a smaller share lies within a larger one."""
    drawn = generator(seed, 0, f"share of {name}").permutation(n)[:round(share * n)]
    return np.sort(drawn).tolist()
