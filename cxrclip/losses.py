"""The contrastive losses of CXR-CLIP (paper, section 2.3): InfoNCE, MVS, ICL, TCL and their weighted sum.

Symbols: x1, x2 the image embeddings and t1, t2 the text embeddings of a batch of B studies, unit rows (B, D); s the
logit scale, a multiplier (exp of the model's parameter) shared by all terms.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

from cxrclip.errors import InputError

Contrast = Callable[..., Tensor]  # info_nce, or a variant of it: (a, b, logit_scale, rows) -> scalar
EVERY = slice(None)


class LossTerms(NamedTuple):
    """The loss and its three unweighted terms, float32 scalars: total = mvs + icl_weight * icl + tcl_weight * tcl."""

    total: Tensor
    mvs: Tensor
    icl: Tensor
    tcl: Tensor


def info_nce(a: Tensor, b: Tensor, logit_scale: Tensor | float, rows: slice = EVERY) -> Tensor:
    """Row i of `a` asks which row of `b` is its own; the other B - 1 rows are negatives.

        l(a -> b) = -1/B sum_i log [ exp(s a_i.b_i) / sum_j exp(s a_i.b_j) ]

    a, b: (B, D) unit rows. `rows`: the mean over these i alone, R of them; one of several processes asks for its own.
    Returns a scalar; log B for chance. Source: paper, section 2.3.
    """
    logits = logit_scale * a[rows] @ b.T                            # (R, B)
    targets = torch.arange(len(b), device=logits.device)[rows]      # (R,)
    return F.cross_entropy(logits, targets)


def symmetric_info_nce(a: Tensor, b: Tensor, logit_scale: Tensor | float, contrast: Contrast = info_nce) -> Tensor:
    """L(a, b) = 1/2 [ l(a -> b) + l(b -> a) ], a, b (B, D) -> scalar. With one image and one text this is CLIP."""
    return (contrast(a, b, logit_scale) + contrast(b, a, logit_scale)) / 2


def multi_view_supervision(image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float,
                           contrast: Contrast = info_nce) -> Tensor:
    """Every view and every text of a study supervise each other (MVS).

        L_MVS = 1/4 [ L(x1, t1) + L(x2, t1) + L(x1, t2) + L(x2, t2) ],   in general the mean over V x T pairs

    image_embeds (V, B, D), text_embeds (T, B, D) -> scalar. Source: paper, section 2.3.
    """
    pairs = product(image_embeds, text_embeds)
    return torch.stack([symmetric_info_nce(x, t, logit_scale, contrast) for x, t in pairs]).mean()


def image_contrastive(image_embeds: Tensor, logit_scale: Tensor | float, contrast: Contrast = info_nce) -> Tensor:
    """L_ICL = L(x1, x2): two images of one study against the other studies'. (V, B, D) -> scalar, 0 if V is 1."""
    return _first_with_second(image_embeds, logit_scale, contrast)


def text_contrastive(text_embeds: Tensor, logit_scale: Tensor | float, contrast: Contrast = info_nce) -> Tensor:
    """L_TCL = L(t1, t2): two texts of one study against the other studies'. (T, B, D) -> scalar, 0 if T is 1."""
    return _first_with_second(text_embeds, logit_scale, contrast)


class CXRCLIPLoss(nn.Module):
    """L = L_MVS + icl_weight * L_ICL + tcl_weight * L_TCL  (paper, section 2.3; published weights 1.0 and 0.5).

    With W processes the embeddings of all are gathered, with gradient, and process r contrasts its own B/W rows with
    all B: L = 1/W sum_r L_r, where L_r depends on the embeddings e_q of every process q. DistributedDataParallel
    averages over q what arrives at process q, so sum_r dL_r/de_q has to arrive there (`_GatherStudies`); the average is
    then dL/d(parameters) of a single process with the joined batch. The terms returned have the values of L, equal on
    all processes, and the gradient of L_r. All processes must hold the same number of studies.

    mvs: False contrasts the one pair (x1, t1) in place of all pairs, to measure what MVS is worth.
    """

    def __init__(self, icl_weight: float = 1.0, tcl_weight: float = 0.5, *, mvs: bool = True,
                 gather: bool = True) -> None:
        super().__init__()
        self.icl_weight, self.tcl_weight, self.mvs, self.gather = icl_weight, tcl_weight, mvs, gather

    def local(self) -> CXRCLIPLoss:
        """The same loss on this process's studies alone, for validation that every process does by itself."""
        alone = copy.copy(self)
        alone.gather = False
        return alone

    def contrast(self, **marks: Tensor) -> Contrast:
        """The InfoNCE of a batch. A subclass may use what the batch says of its studies: each mark is (B,)."""
        return info_nce

    def forward(self, image_embeds: Tensor, text_embeds: Tensor, logit_scale: Tensor | float,
                **marks: Tensor) -> LossTerms:
        """image_embeds (V, B, D), text_embeds (T, B, D), unit rows; V, T in {1, 2} -> LossTerms.

        V = T = 1 is plain CLIP. Computes in float32 whatever the autocast. Raises InputError for other shapes.
        """
        _check_shapes(image_embeds, text_embeds)
        with torch.autocast(image_embeds.device.type, enabled=False):
            x, t = image_embeds.float(), text_embeds.float()
            s = logit_scale.float() if isinstance(logit_scale, Tensor) else logit_scale
            rows, several = EVERY, self.gather and processes() > 1
            if several:
                rows = slice(dist.get_rank() * x.shape[1], (dist.get_rank() + 1) * x.shape[1])
                x, t = _GatherStudies.apply(x.contiguous()), _GatherStudies.apply(t.contiguous())
                marks = {name: _gather_mark(mark) for name, mark in marks.items()}
            contrast = partial(self.contrast(**marks), rows=rows)
            images, texts = (x, t) if self.mvs else (x[:1], t[:1])
            mvs = multi_view_supervision(images, texts, s, contrast)
            icl, tcl = image_contrastive(x, s, contrast), text_contrastive(t, s, contrast)
            terms = LossTerms(mvs + self.icl_weight * icl + self.tcl_weight * tcl, mvs, icl, tcl)
            return _with_values_of_all(terms) if several else terms


def processes() -> int:
    """Number of processes that train together; 1 outside torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _first_with_second(embeds: Tensor, logit_scale: Tensor | float, contrast: Contrast) -> Tensor:
    if len(embeds) == 1:
        return embeds.new_zeros(())
    return symmetric_info_nce(embeds[0], embeds[1], logit_scale, contrast)


def _gather_mark(mark: Tensor) -> Tensor:
    """(B,) of each of W processes -> (W * B,) on all of them, rank after rank; marks carry no gradient."""
    parts = [torch.empty_like(mark) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, mark.contiguous())
    return torch.cat(parts)


def _with_values_of_all(terms: LossTerms) -> LossTerms:
    """The terms with the mean over processes as their value; their gradient stays that of this process."""
    mine = torch.stack(list(terms))
    mean = mine.detach().clone()
    dist.all_reduce(mean)
    return LossTerms(*(mine + (mean / dist.get_world_size() - mine.detach())))


class _GatherStudies(torch.autograd.Function):
    """(V, B, D) of each of W processes -> (V, W * B, D) on all of them, rank after rank.

    An embedding enters the loss of every process, so its gradient is the sum over processes.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, embeds: Tensor) -> Tensor:
        """(V, B, D) here -> (V, W * B, D)."""
        parts = [torch.empty_like(embeds) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, embeds)
        return torch.cat(parts, dim=1)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        """(V, W * B, D), a part of the gradient on each process -> (V, B, D), this process's share of the whole."""
        gradient = gradient.contiguous().clone()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size(), dim=1)[dist.get_rank()]


def _check_shapes(image_embeds: Tensor, text_embeds: Tensor) -> None:
    shapes = [tuple(image_embeds.shape), tuple(text_embeds.shape)]
    if any(len(shape) != 3 or shape[0] not in (1, 2) for shape in shapes) or shapes[0][1:] != shapes[1][1:]:
        raise InputError(f"loss: image embeddings {shapes[0]} and text embeddings {shapes[1]}: give (V, B, D) and "
                         "(T, B, D) with V and T 1 or 2")
