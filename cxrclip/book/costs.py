"""What a pretraining run costs, before anyone pays for it: parameters, FLOPs, memory, steps, hours.

Everything is counted on torch's fake tensors: the real networks run through their shapes, without numbers, in seconds.

    FLOPs        of matrix products and convolutions, a multiply-add as two (torch's FlopCounterMode); one study is
                 `views` images and `texts` texts. The loss and AdamW are left out: a thousandth of the whole.
    activations  bytes that autograd keeps for the backward pass, each storage once, in float32. Mixed precision keeps
                 about half; attention that is not a fused kernel is counted as it stands.
    hours        training FLOPs / (GPUs * peak * UTILISATION), a share that was measured on one H100 and is assumed for
                 the others. Reading and augmenting films is not in it: a machine whose CPU cores cannot feed its GPUs
                 takes longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from tabulate import tabulate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from cxrclip.data import mixes
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import IMAGE_ENCODERS, Experiment
from cxrclip.experiments.memory import GIB, kept_bytes
from cxrclip.results.rows import published

# Peak dense FLOP/s in fp16 or bf16 with float32 accumulation, from the makers' data sheets.
PEAKS: Mapping[str, float] = {"V100": 125e12, "A100": 312e12, "H100": 989e12}
# The share of that peak a run sustains: the middle of what one H100 did (benchmarks/bench_gpu.py). Long texts raise it.
UTILISATION = 0.12
SHORT = 64  # tokens: a report section of some fifty words
BYTES = 4  # of a float32: weights, gradients and moments are kept so under mixed precision too
NOTES = "\n".join([
    "FLOPs: a multiply-add counts as two. Activations: float32; bf16 or fp16 keeps about half.",
    f"Hours: {UTILISATION:.0%} of the peak in fp16 or bf16, as one H100 sustained; of others it is assumed.",
    f"Peaks in TFLOP/s: {', '.join(f'{name} {peak / 1e12:.0f}' for name, peak in PEAKS.items())}.",
    "Reading films is not in it: give each GPU enough CPU cores. Validation and evaluation come on top."])


@dataclass(frozen=True)
class Costs:
    """What one experiment costs. FLOPs and activations are those of one study: `views` images, `texts` texts of
    `tokens` tokens. parameters: by part, as CXRCLIPModel.parameter_counts. studies: of the pretraining data."""

    experiment: Experiment
    tokens: int
    parameters: Mapping[str, int]
    forward_flops: int
    training_flops: int
    activation_bytes: int
    studies: int
    steps: int

    @property
    def total_parameters(self) -> int:
        """Parameters of the whole model."""
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> float:
        """Training FLOPs of the whole run, without validation and evaluation."""
        return float(self.training_flops) * self.experiment.batch_size * self.steps

    def memory(self, gpus: int) -> dict[str, int]:
        """Bytes on one of `gpus` GPUs: weights, gradients, AdamW's two moments, activations of its share of a batch."""
        weights = BYTES * self.total_parameters
        share = -(-self.experiment.batch_size // gpus)
        return {"weights": weights, "gradients": weights, "AdamW moments": 2 * weights,
                "activations": share * self.activation_bytes}

    def hours(self, device: str, gpus: int) -> float:
        """Hours of training on `gpus` GPUs of a kind in PEAKS, at UTILISATION of their peak."""
        if device not in PEAKS:
            raise InputError(f"unknown GPU {device!r}: peaks are known of {', '.join(PEAKS)}")
        return self.total_flops / (gpus * PEAKS[device] * UTILISATION) / 3600


def costs(experiment: Experiment, studies: Mapping[str, int], tokens: int | None = None) -> Costs:
    """Count what `experiment` costs on so many training studies of each pretraining role.

    tokens: length of every text; None takes max_tokens, the most that a text can have, so that costs are an upper
    bound. Raises InputError for a role without a number, for a length out of range, or for encoders of unknown name.
    """
    tokens = tokens or experiment.max_tokens
    if not 0 < tokens <= experiment.max_tokens:
        raise InputError(f"costs: tokens={tokens}: give a length from 1 to max_tokens={experiment.max_tokens}")
    if absent := [role for role in experiment.pretraining if role not in studies]:
        raise InputError(f"costs: no number of studies for role {absent[0]!r}: known are {', '.join(studies)}")
    with FakeTensorMode() as no_data:
        model = CXRCLIPModel(CXRCLIPConfig(experiment.image_encoder, experiment.text_encoder, experiment.projection_dim,
                                           image_size=experiment.image_size, max_tokens=experiment.max_tokens))
        images = torch.empty(experiment.views, 3, experiment.image_size, experiment.image_size)
        texts = torch.zeros(experiment.texts, tokens, dtype=torch.long)
    model.train()
    shares = experiment.shares or [1.0] * len(experiment.pretraining)
    used = [round(share * studies[role]) for role, share in zip(experiment.pretraining, shares, strict=True)]
    steps = experiment.steps or round(experiment.epochs * (sum(used) // experiment.batch_size))
    with no_data:
        forward, training, kept = _counted(model, images, texts)
    return Costs(experiment, tokens, model.parameter_counts(), forward, training, kept, sum(used), steps)


def _counted(model: CXRCLIPModel, images: Tensor, texts: Tensor) -> tuple[int, int, int]:
    """FLOPs of the forward pass and of both passes, and the bytes kept between them."""
    with FlopCounterMode(display=False) as both:
        with FlopCounterMode(display=False) as forward, kept_bytes(model) as kept:
            image_embeds = model.embed_images(images)
            # TextEncoder.forward sorts texts by length, which needs numbers; all lengths are equal here.
            features = model.text_encoder.pooled(texts, torch.ones_like(texts))
            total = image_embeds.sum() + model.text_projection(features).sum()
        size = kept()
        total.backward()
    return forward.get_total_flops(), both.get_total_flops(), size


def table(counted: Sequence[Costs], gpus: Sequence[int] = (1, 4, 8)) -> str:
    """A plain table for a terminal, one column for each of `counted`, and the assumptions below it."""
    columns = [column(cost, gpus) for cost in counted]
    rows = [[name, *(cells[name] for cells in columns)] for name in columns[0]]
    heads = ["", *(f"{cost.experiment.image_encoder}\n{','.join(cost.experiment.pretraining)}\n{cost.tokens} tokens"
                   for cost in counted)]
    text = tabulate(rows, heads, tablefmt="simple", disable_numparse=True, colalign=["left", *["right"] * len(counted)])
    return f"{text}\n{NOTES}"


def column(cost: Costs, gpus: Sequence[int] = (1, 4, 8)) -> dict[str, str]:
    """Name of each line of the table -> its cell."""
    return {
        "training studies": f"{cost.studies:,}",
        "steps of a batch": f"{cost.steps:,} of {cost.experiment.batch_size}",
        **{f"parameters, {part.replace('_', ' ')}": f"{number:,}" for part, number in cost.parameters.items()},
        "parameters in all": f"{cost.total_parameters:,}",
        "GFLOPs a study, forward": f"{cost.forward_flops / 1e9:.1f}",
        "GFLOPs a study, training": f"{cost.training_flops / 1e9:.1f}",
        **{f"GiB a GPU, {name}": f"{cost.memory(1)[name] / GIB:.1f}"
           for name in ("weights", "gradients", "AdamW moments")},
        **{f"GiB a GPU, activations, {_gpus(n)}": f"{cost.memory(n)['activations'] / GIB:.0f}" for n in gpus},
        **{f"hours, {n} x {device}": f"{hours:,.{int(hours < 100)}f}" for device in PEAKS for n in gpus
           for hours in [cost.hours(device, n)]},
    }


def announced(experiment: Experiment, mix: mixes.Mix) -> str:
    """What a start at the paper's size prints first: both image encoders on all pretraining roles that have data.

    Data sets that are not read yet count with the paper's own sizes (Table 1).
    """
    if not (counted := of_recipe(experiment, mix)):
        return "Costs are not counted: no pretraining role has a known number of studies before it is prepared."
    roles, gpus = ",".join(counted[0].experiment.pretraining), torch.cuda.device_count()
    machine = f"This machine has {_gpus(gpus)}." if gpus else "This machine has no GPU that torch can use."
    return "\n".join([f"One run on {roles} (data sets that are not read yet: sizes of the paper's Table 1).",
                      machine, "", table(counted, tuple(sorted({1, 4, 8} | {gpus or 1})))])


def of_recipe(experiment: Experiment, mix: mixes.Mix) -> list[Costs]:
    """The costs of both image encoders on all pretraining roles of which a number of studies is known.

    Each once with texts of the longest length, an upper bound, and once with SHORT tokens. No role: an empty list.
    """
    sizes = published().query("task == 'size' and metric == 'train'")
    studies = mixes.training_studies(mix, experiment.profile, dict(zip(sizes["dataset"], sizes["value"].astype(int),
                                                                       strict=True)))
    roles = tuple(studies)
    return [costs(replace(experiment, image_encoder=family[experiment.profile], pretraining=roles), studies, tokens)
            for family in IMAGE_ENCODERS.values() for tokens in (experiment.max_tokens, SHORT) if roles]


def _gpus(n: int) -> str:
    return f"{n} GPU" + "s" * (n > 1)
