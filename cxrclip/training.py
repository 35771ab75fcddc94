"""The pretraining loop: one readable step, the published schedule, and resume to the very bit (paper, section 3).

Every source of chance is a function of (seed, step): the batch order, each study's draws, and dropout. So a
checkpoint needs no random state, and a run killed at any step and started again ends with the same weights.

Under `accelerate launch` each process makes its share of every batch, and DistributedDataParallel averages gradients.
On GPUs BatchNorm then takes the statistics of all processes' images (SyncBatchNorm), so that their number changes no
result; torch has none for CPUs, where each process normalises by its own. Cached gradients: see `cached_backward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim import AdamW

from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.losses import CXRCLIPLoss, LossTerms
from cxrclip.metrics import in_batch_accuracy

ACCURACIES = ("accuracy_image_text", "accuracy_text_image")
INPUTS = ("pixel_values", "input_ids", "attention_mask")
Batch = Mapping[str, Tensor]  # INPUTS, and marks (B,) that a loss may need
BatchMaker = Callable[[int, int, int], Iterator[Batch]]  # (first step, rank, number of processes) -> endless batches
ParameterGroups = Callable[[nn.Module, float], list[dict[str, object]]]  # model, weight decay -> AdamW's groups
Line = dict[str, float | Tensor]  # what a step measured
Log = Callable[[int, list[dict[str, float]]], None]  # number of finished steps, what the last ones measured
READ_EVERY = 20  # steps between two looks of the CPU at what a GPU measured: each look waits for the GPU


class Store(Protocol):
    """Where checkpoints are kept, by name (experiments/checkpoints.py)."""

    def save(self, name: str, model: nn.Module, optimizer: AdamW, info: Mapping[str, object]) -> None:
        """Keep weights, the optimiser's moments and `info`, whole or not at all."""

    def load(self, name: str, model: nn.Module, optimizer: AdamW | None = None) -> dict | None:
        """Put the kept weights (and moments) back and return `info`; None where nothing is kept."""


@dataclass(frozen=True)
class Recipe:
    """How to optimise. Steps count optimiser updates; the warm-up is a share of them (published: 1 of 15 epochs).

    chunk: studies that a process embeds at once, with cached gradients; None embeds its whole share of the batch.
    """

    steps: int
    learning_rate: float = 5e-5
    weight_decay: float = 1e-4
    warmup: float = 1 / 15
    seed: int = 0
    validations: int = 5
    precision: str = "auto"
    device: str = "auto"
    save_every: int = 100
    chunk: int | None = None


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's groups: weight matrices and kernels decay; biases, norms and the logit scale, all of one number a
    channel or fewer, do not."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Multiplier of the base rate at `step` (0-based): linear warm-up, then cos^2(pi/2 t) (official schedule)."""
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, steps - warmup_steps)
    return math.cos(math.pi / 2 * t) ** 2


def embed(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The V views (V, B, D) and the T texts (T, B, D) of B studies, and the logit scale, a scalar."""
    output = model(**{name: batch[name].flatten(0, 1) for name in INPUTS})
    return (output.image_embeds.unflatten(0, (len(batch["pixel_values"]), -1)),
            output.text_embeds.unflatten(0, (len(batch["input_ids"]), -1)), output.logit_scale)


def contrast(model: nn.Module, criterion: CXRCLIPLoss, batch: Batch) -> tuple[LossTerms, Tensor, Tensor]:
    """Embed the V views and T texts of B studies and contrast them; embeds come back as (V, B, D) and (T, B, D)."""
    image_embeds, text_embeds, logit_scale = embed(model, batch)
    return criterion(image_embeds, text_embeds, logit_scale, **marks_of(batch)), image_embeds, text_embeds


def marks_of(batch: Batch) -> dict[str, Tensor]:
    """What the batch holds beside images and texts."""
    return {name: tensor for name, tensor in batch.items() if name not in INPUTS}


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device. A GPU fetches it from pinned memory by itself, while the CPU goes on."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def fit(model: CXRCLIPModel, criterion: CXRCLIPLoss, batches_from: BatchMaker,
        validation: Callable[[], Iterator[Batch]], recipe: Recipe, store: Store, log: Log,
        groups: ParameterGroups = parameter_groups) -> CXRCLIPModel:
    """Train `model` for `recipe.steps` updates and return it with the weights of the best validation loss.

    Args:
        batches_from: endless batches from a given step on, for one of several processes.
        validation: the fixed validation batches, anew at each call.
        store: keeps "state" (to resume) and "best" (the weights returned).
        log: called with the number of finished steps and what those since the last call measured, on a GPU every
            READ_EVERY steps; first process only.
        groups: which parameters decay.

    Raises:
        InputError: the device is not there, or `store` holds a damaged checkpoint.
        FloatingPointError: the loss is no longer finite; names the step.
    """
    accelerator = start_accelerator(recipe.device, recipe.precision)
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    optimizer = AdamW(groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    step, best = resume(accelerator, model, optimizer, store)
    batches = batches_from(step, accelerator.process_index, accelerator.num_processes)
    lines: list[Line] = []  # of steps that have not been logged yet
    with torch.random.fork_rng():
        while step < recipe.steps:
            lines.append(train_step(accelerator, wrapped, optimizer, criterion, next(batches), step, recipe))
            step += 1
            saves = step % recipe.save_every == 0 or step == recipe.steps
            if step in validation_steps(recipe):
                lines[-1] |= validate(accelerator, model, criterion, validation())
            if accelerator.device.type == "cpu" or saves or "valid_total" in lines[-1] or len(lines) == READ_EVERY:
                read, lines = read_lines(lines, step), []
                if read[-1].get("valid_total", math.inf) < best:
                    best = read[-1]["valid_total"]
                    checkpoint(accelerator, model, optimizer, store, "best", step, best)
                if accelerator.is_main_process:
                    log(step, read)
            if saves:
                checkpoint(accelerator, model, optimizer, store, "state", step, best)
    store.load("best", model)
    return accelerator.unwrap_model(wrapped)


def train_step(accelerator: Accelerator, model: nn.Module, optimizer: AdamW, criterion: CXRCLIPLoss,
               batch: Batch, step: int, recipe: Recipe) -> Line:
    """One update: forward, loss, backward, AdamW. Returns the line for the log; its tensors are still on the device."""
    rate = recipe.learning_rate * learning_rate_factor(step, recipe.steps, recipe.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    optimizer.zero_grad()
    batch = on_device(batch, accelerator.device)
    seed = (recipe.seed * 1_000_003 + step) * 1_009 + accelerator.process_index  # of dropout: see the module
    if recipe.chunk is None:
        torch.manual_seed(seed)
        with accelerator.autocast():
            terms, image_embeds, text_embeds = contrast(model, criterion, batch)
        accelerator.backward(terms.total)
    else:
        terms, image_embeds, text_embeds = cached_backward(accelerator, model, criterion, batch, recipe.chunk, seed)
    optimizer.step()
    x, t = image_embeds[0].detach().contiguous(), text_embeds[0].detach().contiguous()        # (B, D)
    first = accelerator.process_index * len(x)
    accuracies = torch.stack([in_batch_accuracy(x, accelerator.gather(t), first),
                              in_batch_accuracy(t, accelerator.gather(x), first)])
    return {"learning_rate": rate, **{name: value.detach() for name, value in terms._asdict().items()},
            **dict(zip(ACCURACIES, accelerator.reduce(accuracies, "mean"), strict=True)),
            "logit_scale": accelerator.unwrap_model(model).logit_scale.detach().exp()}


def cached_backward(accelerator: Accelerator, model: nn.Module, criterion: CXRCLIPLoss, batch: Batch, chunk: int,
                    seed: int) -> tuple[LossTerms, Tensor, Tensor]:
    """Gradients of the whole batch in the memory of `chunk` studies (GradCache, Gao et al. 2021, arXiv 2101.06983).

    The loss sees a study through its embeddings e alone: dL/d(parameters) = sum over studies of dL/de de/d(parameters).
    Dropout of a chunk follows from (seed, chunk), so step 3 repeats step 1. BatchNorm normalises a chunk by the chunk's
    own statistics, as in a batch of that size; each chunk moves the running ones once a step, in step 3 alone.
    """
    parts = [dict(zip(INPUTS, part, strict=True))
             for part in zip(*(batch[name].split(chunk, dim=1) for name in INPUTS), strict=True)]

    def embed_chunk(number: int) -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(seed + (number << 48))
        with accelerator.autocast():
            return embed(model, parts[number])

    running = [buffer.clone() for buffer in model.buffers()]
    with torch.no_grad():                                            # 1. embed every chunk, keep no graph
        embeds = [embed_chunk(number) for number in range(len(parts))]
        for buffer, before in zip(model.buffers(), running, strict=True):
            buffer.copy_(before)
    x, t = (torch.cat([part[kind] for part in embeds], dim=1).float().requires_grad_() for kind in (0, 1))
    scale = embeds[0][2].float().requires_grad_()
    terms = criterion(x, t, scale, **marks_of(batch))                # 2. the loss of the batch, and dL/de
    by_x, by_t, by_scale = torch.autograd.grad(terms.total, (x, t, scale))
    gradients = zip(by_x.split(chunk, dim=1), by_t.split(chunk, dim=1), strict=True)
    for number, (dx, dt) in enumerate(gradients):                    # 3. embed again, and back to the parameters
        last = number == len(parts) - 1
        with nullcontext() if last else accelerator.no_sync(model):
            x_part, t_part, s = embed_chunk(number)
            product = (x_part.float() * dx).sum() + (t_part.float() * dt).sum()
            accelerator.backward(product + s * by_scale if last else product)
    return terms, x, t


def read_lines(lines: list[Line], step: int) -> list[dict[str, float]]:
    """The lines of the steps before `step` as numbers. FloatingPointError names the first step of no finite loss."""
    measured = [{name: value for name, value in line.items() if isinstance(value, Tensor)} for line in lines]
    numbers = torch.stack([torch.stack(list(tensors.values())) for tensors in measured]).tolist()
    read = [line | dict(zip(measured[0], row, strict=True)) for line, row in zip(lines, numbers, strict=True)]
    for number, line in enumerate(read, step - len(lines)):
        if not math.isfinite(line["total"]):
            raise FloatingPointError(f"the loss is {line['total']} at step {number}: lower the learning rate")
    return read


def validation_steps(recipe: Recipe) -> set[int]:
    """The finished-step counts after which the validation loss is read: evenly spread, the last step among them."""
    return {round(recipe.steps * (i + 1) / recipe.validations) for i in range(recipe.validations)}


@torch.no_grad()
def validate(accelerator: Accelerator, model: CXRCLIPModel, criterion: CXRCLIPLoss,
             batches: Iterator[Batch]) -> dict[str, float]:
    """Mean of each loss term over the validation batches, and over the processes: each reads all of them by itself."""
    model.eval()
    rows = []
    for batch in batches:
        batch = on_device(batch, accelerator.device)
        with accelerator.autocast():
            rows.append(torch.stack(list(contrast(model, criterion.local(), batch)[0])))
    means = accelerator.reduce(torch.stack(rows).mean(0), "mean").tolist()
    return dict(zip([f"valid_{name}" for name in LossTerms._fields], means, strict=True))


def checkpoint(accelerator: Accelerator, model: CXRCLIPModel, optimizer: AdamW, store: Store, name: str, step: int,
               best: float) -> None:
    """Store weights, AdamW's moments and the counters, whole or not at all; first process only."""
    if accelerator.is_main_process:
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        info = {"step": step, "best": best if math.isfinite(best) else None, "scaler": scaler}
        store.save(name, model, unwrapped(optimizer), info)
    accelerator.wait_for_everyone()


def unwrapped(optimizer: AdamW) -> AdamW:
    """The optimiser inside the one that accelerate prepared."""
    return getattr(optimizer, "optimizer", optimizer)


def resume(accelerator: Accelerator, model: CXRCLIPModel, optimizer: AdamW, store: Store) -> tuple[int, float]:
    """Load the last whole checkpoint, if any. Returns (finished steps, best validation loss)."""
    info = store.load("state", model, unwrapped(optimizer))
    if info is None:
        return 0, math.inf
    if info["scaler"]:
        accelerator.scaler.load_state_dict(info["scaler"])
    return info["step"], info["best"] if info["best"] is not None else math.inf


# ---- device and precision -------------------------------------------------------------------------------------------


def start_accelerator(device: str = "auto", precision: str = "auto") -> Accelerator:
    """Device and precision by name; 'auto' takes a GPU if there is one. See auto_precision."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for but torch finds no GPU: use DEVICE=cpu or install a driver")
    cpu = device == "cpu" or not torch.cuda.is_available()
    precision = auto_precision(cpu) if precision == "auto" else precision
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # accelerate knows one precision a process, and refuses a second
    return Accelerator(cpu=cpu, mixed_precision=precision)


def auto_precision(cpu: bool) -> str:
    """'no' (float32) on every CPU, for the same numbers on all; on GPUs 'bf16', or 'fp16' on older ones."""
    if cpu:
        return "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
