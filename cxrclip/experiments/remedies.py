"""Departures from the paper's recipe: what might keep retrieval while label data raise classification.

Each takes the place of something that the paper's files take as an argument: the contrast of the loss, the order of the
batches, or the texts of a study. None of them is in the paper.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cxrclip.data.batches import Batches, EpochBatches
from cxrclip.data.dataset import StudyMix
from cxrclip.errors import InputError
from cxrclip.experiments.experiment import CHOICES
from cxrclip.losses import EVERY, Contrast, CXRCLIPLoss, info_nce
from cxrclip.prompts import STATES, PromptBank
from cxrclip.views import Report, Study, generator, maybe_back_translated, prompts_of, sections_of

# ---- the loss -------------------------------------------------------------------------------------------------------


class MarkedLoss(CXRCLIPLoss):
    """The paper's loss with another InfoNCE in all terms: it knows which studies say the same, or weighs them.

    false_negatives: "keep"; "mask" leaves studies of the same content out of each other's negatives; "soft" shares the
    target among them. Batches carry the marks `content` (B,), equal integers for equal content, and `weight` (B,), of
    each study's rows. Raises InputError for an unknown choice or a missing mark.
    """

    def __init__(self, icl_weight: float = 1.0, tcl_weight: float = 0.5, *, false_negatives: str = "keep",
                 **options: bool) -> None:
        super().__init__(icl_weight, tcl_weight, **options)
        if false_negatives not in (known := CHOICES["false_negatives"]):
            raise InputError(f"loss: false_negatives={false_negatives!r}: choose one of {', '.join(known)}")
        self.false_negatives = false_negatives

    def contrast(self, content: Tensor | None = None, weight: Tensor | None = None) -> Contrast:
        """The InfoNCE of this batch: the paper's unless studies share content or weigh differently."""
        if self.false_negatives == "keep":
            return info_nce if weight is None else partial(marked_info_nce, weight=weight)
        if content is None:
            raise InputError(f"loss: false_negatives={self.false_negatives!r} needs the content of each study: "
                             "give the batch a mark `content`")
        same = content[:, None] == content                    # (B, B)
        return partial(marked_info_nce, same=same, soft=self.false_negatives == "soft", weight=weight)


def marked_info_nce(a: Tensor, b: Tensor, logit_scale: Tensor | float, *, same: Tensor | None = None,
                    soft: bool = False, weight: Tensor | None = None, rows: slice = EVERY) -> Tensor:
    """InfoNCE that knows which studies say the same and how much each row counts; not in the paper (a remedy).

        l(a -> b) = -1/W sum_i w_i sum_j y_ij log [ exp(s a_i.b_j) / sum_{k in N_i} exp(s a_i.b_k) ],   W = sum_i w_i

    same: (B, B) bool, do studies i and j say the same? Then j is no negative of i: it is left out of N_i (y is the
    identity), or, if `soft`, stays in N_i = all and shares the target: y_ij = same_ij / sum_k same_ik.
    weight: (B,) positive w. With neither this is `info_nce`. a, b: (B, D) unit rows -> scalar.
    rows: the R rows of `a` that this process asks for; W stays the sum over all, so that the mean over processes, each
    with a share of B / R, is the loss of the joined batch.
    """
    logits = logit_scale * a[rows] @ b.T                            # (R, B)
    targets = torch.arange(len(b), device=logits.device)[rows]      # (R,)
    if same is not None and soft:
        targets = (same.to(logits.dtype) / same.sum(dim=1, keepdim=True))[rows]  # (R, B)
    elif same is not None:
        others = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        logits = logits.masked_fill(others[rows], -torch.inf)
    losses = F.cross_entropy(logits, targets, reduction="none")     # (R,)
    if weight is None:
        return losses.mean()
    return (weight[rows] * losses).sum() / weight.sum() * (len(weight) / len(losses))


def content_of(study: Study, bank: PromptBank, details: Mapping[str, str] | None = None) -> int:
    """What the text of a study says, as a 64-bit number: the same in every process, equal for equal content.

    Reports say the same if all their sections are identical; label-only studies if they have the same set of
    positive classes (with the same `details`, where prompts tell them).
    """
    said = ["report", *(section.text.strip() for section in sections_of(study))]
    if len(said) == 1:
        labels = bank.labelled(*(study[state] for state in STATES))
        positive = sorted(name for name, state in labels.items() if state == "positive")
        said = ["labels", *(f"{name}: {(details or {}).get(name, '')}" for name in positive)]
    digest = hashlib.blake2b("\n".join(said).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


# ---- texts ----------------------------------------------------------------------------------------------------------


def one_text(study: Study, report: Report, rng: np.random.Generator, augment: bool = True) -> list[str]:
    """One text for plain CLIP: either section, perhaps back-translated (`augment`), or one prompt."""
    sections = sections_of(study)
    if not sections:
        return prompts_of(study, report, rng, count=1)
    section = sections[rng.integers(len(sections))]
    return [maybe_back_translated(section, rng) if augment else section.text]


def texts_as_written(study: Study, report: Report, rng: np.random.Generator) -> list[str]:
    """Two texts without augmentation: findings and impression as they are written (one section twice), or prompts."""
    sections = sections_of(study)
    return [sections[0].text, sections[-1].text] if sections else prompts_of(study, report, rng, count=2)


# ---- the order of the batches ---------------------------------------------------------------------------------------


def arranged(batches: EpochBatches, mix: StudyMix, steps: int, *, kind: str = "mixed",
             report_share: float | None = None, reports_last: float = 0.0) -> Batches:
    """`batches` themselves, or with a switch on what it makes of them; each resumes at any step as they do.

    kind "one-source", report_share, reports_last: see `one_source`, `with_report_share`, `reports_at_the_end`, whose
    share of `steps` is rounded. One-source batches cannot have a share of reports.
    """
    found: Batches = batches
    if kind == "one-source":
        found = one_source(batches, [len(part) for part in mix.datasets])
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
