"""The pretraining loop: one readable step, the published schedule, and resume to the very bit (paper, section 3).

Every source of chance is a function of (seed, step): the batch order, each study's draws, and dropout. So a
checkpoint needs no random state, and a run killed at any step and started again ends with the same weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import AdamW

from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.losses import CXRCLIPLoss, LossTerms
from cxrclip.metrics import in_batch_accuracy

INPUTS = ("pixel_values", "input_ids", "attention_mask")
Batch = Mapping[str, Tensor]  # INPUTS, and marks (B,) that a loss may need
BatchMaker = Callable[[int, int, int], Iterator[Batch]]  # (first step, rank, number of processes) -> endless batches
ParameterGroups = Callable[[nn.Module, float], list[dict[str, object]]]  # model, weight decay -> AdamW's groups
Log = Callable[[int, dict[str, float]], None]  # number of finished steps, what the last one measured


class Store(Protocol):
    """Where checkpoints are kept, by name (experiments/checkpoints.py)."""

    def save(self, name: str, model: nn.Module, optimizer: AdamW, info: Mapping[str, object]) -> None:
        """Keep weights, the optimiser's moments and `info`, whole or not at all."""

    def load(self, name: str, model: nn.Module, optimizer: AdamW | None = None) -> dict | None:
        """Put the kept weights (and moments) back and return `info`; None where nothing is kept."""


@dataclass(frozen=True)
class Recipe:
    """How to optimise. Steps count optimiser updates; the warm-up is a share of them (published: 1 of 15 epochs)."""

    steps: int
    learning_rate: float = 5e-5
    weight_decay: float = 1e-4
    warmup: float = 1 / 15
    seed: int = 0
    validations: int = 5
    precision: str = "auto"
    device: str = "auto"
    save_every: int = 100


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


def contrast(model: nn.Module, criterion: CXRCLIPLoss, batch: Batch) -> tuple[LossTerms, Tensor, Tensor]:
    """Embed the V views and T texts of B studies and contrast them; embeds come back as (V, B, D) and (T, B, D)."""
    views, texts = batch["pixel_values"].shape[0], batch["input_ids"].shape[0]
    output = model(**{name: batch[name].flatten(0, 1) for name in INPUTS})
    image_embeds = output.image_embeds.unflatten(0, (views, -1))  # (V, B, D)
    text_embeds = output.text_embeds.unflatten(0, (texts, -1))    # (T, B, D)
    marks = {name: tensor for name, tensor in batch.items() if name not in INPUTS}
    return criterion(image_embeds, text_embeds, output.logit_scale, **marks), image_embeds, text_embeds


def fit(model: CXRCLIPModel, criterion: CXRCLIPLoss, batches_from: BatchMaker,
        validation: Callable[[], Iterator[Batch]], recipe: Recipe, store: Store, log: Log,
        groups: ParameterGroups = parameter_groups) -> CXRCLIPModel:
    """Train `model` for `recipe.steps` updates and return it with the weights of the best validation loss.

    Args:
        batches_from: endless batches from a given step on, for one of several processes.
        validation: the fixed validation batches, anew at each call.
        store: keeps "state" (to resume) and "best" (the weights returned).
        log: called after each step with the number of finished steps and what was measured; first process only.
        groups: which parameters decay.

    Raises:
        InputError: the device is not there, or `store` holds a damaged checkpoint.
        FloatingPointError: the loss is no longer finite; names the step.
    """
    accelerator = start_accelerator(recipe.device, recipe.precision)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = AdamW(groups(model, recipe.weight_decay), lr=recipe.learning_rate, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    step, best = resume(accelerator, model, optimizer, store)
    batches = batches_from(step, accelerator.process_index, accelerator.num_processes)
    with torch.random.fork_rng():
        while step < recipe.steps:
            line = train_step(accelerator, wrapped, optimizer, criterion, next(batches), step, recipe)
            step += 1
            if step in validation_steps(recipe):
                line |= validate(accelerator, model, criterion, validation())
                if line["valid_total"] < best:
                    best = line["valid_total"]
                    checkpoint(accelerator, model, optimizer, store, "best", step, best)
            if accelerator.is_main_process:
                log(step, line)
            if step % recipe.save_every == 0 or step == recipe.steps:
                checkpoint(accelerator, model, optimizer, store, "state", step, best)
    store.load("best", model)
    return accelerator.unwrap_model(wrapped)


def train_step(accelerator: Accelerator, model: nn.Module, optimizer: AdamW, criterion: CXRCLIPLoss,
               batch: Batch, step: int, recipe: Recipe) -> dict[str, float]:
    """One update: forward, loss, backward, AdamW. Returns the line for the log."""
    torch.manual_seed((recipe.seed * 1_000_003 + step) * 1_009 + accelerator.process_index)  # dropout: see the module
    rate = recipe.learning_rate * learning_rate_factor(step, recipe.steps, recipe.warmup)
    for group in optimizer.param_groups:
        group["lr"] = rate
    model.train()
    batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
    with accelerator.autocast():
        terms, image_embeds, text_embeds = contrast(model, criterion, batch)
    if not torch.isfinite(terms.total):
        raise FloatingPointError(f"the loss is {terms.total.item()} at step {step}: lower the learning rate")
    optimizer.zero_grad()
    accelerator.backward(terms.total)
    optimizer.step()
    scale = accelerator.unwrap_model(model).logit_scale
    return {"learning_rate": rate, **{name: value.item() for name, value in terms._asdict().items()},
            "accuracy_image_text": in_batch_accuracy(image_embeds[0].detach(), text_embeds[0].detach()),
            "accuracy_text_image": in_batch_accuracy(text_embeds[0].detach(), image_embeds[0].detach()),
            "logit_scale": scale.exp().item()}


def validation_steps(recipe: Recipe) -> set[int]:
    """The finished-step counts after which the validation loss is read: evenly spread, the last step among them."""
    return {round(recipe.steps * (i + 1) / recipe.validations) for i in range(recipe.validations)}


@torch.no_grad()
def validate(accelerator: Accelerator, model: CXRCLIPModel, criterion: CXRCLIPLoss,
             batches: Iterator[Batch]) -> dict[str, float]:
    """Mean of each loss term over the validation batches. Every process reads them all, and none gathers."""
    model.eval()
    rows = []
    for batch in batches:
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with accelerator.autocast():
            rows.append(torch.stack(list(contrast(model, criterion.local(), batch)[0])))
    return dict(zip([f"valid_{name}" for name in LossTerms._fields], torch.stack(rows).mean(0).tolist(), strict=True))


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
    """Device and precision by name; 'auto' takes a GPU if there is one, and bf16 only where hardware computes in it."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {device!r}: choose auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for but torch finds no GPU: use DEVICE=cpu or install a driver")
    cpu = device == "cpu" or not torch.cuda.is_available()
    return Accelerator(cpu=cpu, mixed_precision=auto_precision(cpu) if precision == "auto" else precision)


def auto_precision(cpu: bool) -> str:
    """'bf16' on hardware with bf16 arithmetic, 'fp16' on older GPUs, 'no' on CPUs that would only emulate it."""
    if cpu:
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
