"""The pretraining loop: one readable step, the published schedule, and resume to the very bit.

Every source of chance is a function of (seed, step): the batch order, each study's draws, and dropout. So a
checkpoint needs no random state, and a run killed at any step and started again ends with the same weights.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.optim import AdamW

from cxrclip.data.progress import progress_bar
from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments.checkpoints import load_optimizer_tensors, load_state, optimizer_tensors, save_state
from cxrclip.losses import CXRCLIPLoss, LossTerms
from cxrclip.metrics import in_batch_accuracy

Batch = Mapping[str, Tensor]
MARKS = ("content", "weight")  # what a batch may say of its B studies beside images and texts (dataset.collate)
BatchMaker = Callable[[int, int, int], Iterator[Batch]]  # (first step, rank, number of processes) -> endless batches


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
    decay_on_all: bool = False  # the released code's way: see parameter_groups


def parameter_groups(model: torch.nn.Module, recipe: Recipe) -> list[dict[str, object]]:
    """AdamW's groups: weight matrices and kernels decay; biases, norms and the logit scale, all of one number a
    channel or fewer, do not. recipe.decay_on_all: everything decays, as the released code does (ledger B9)."""
    decayed = [parameter for parameter in model.parameters() if recipe.decay_on_all or parameter.ndim > 1]
    kept = [parameter for parameter in model.parameters() if not (recipe.decay_on_all or parameter.ndim > 1)]
    groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": kept, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Multiplier of the base rate at `step` (0-based): linear warm-up, then cos^2(pi/2 t) (official schedule)."""
    warmup_steps = max(1, round(warmup * steps))
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    t = (step - warmup_steps) / max(1, steps - warmup_steps)
    return math.cos(math.pi / 2 * t) ** 2


def contrast(model: torch.nn.Module, criterion: CXRCLIPLoss, batch: Batch) -> tuple[LossTerms, Tensor, Tensor]:
    """Embed the V views and T texts of B studies and contrast them; embeds come back as (V, B, D) and (T, B, D)."""
    views, texts = batch["pixel_values"].shape[0], batch["input_ids"].shape[0]
    marks = {name: batch[name] for name in MARKS if name in batch}
    output = model(**{name: tensor.flatten(0, 1) for name, tensor in batch.items() if name not in marks})
    image_embeds = output.image_embeds.unflatten(0, (views, -1))  # (V, B, D)
    text_embeds = output.text_embeds.unflatten(0, (texts, -1))    # (T, B, D)
    return criterion(image_embeds, text_embeds, output.logit_scale, **marks), image_embeds, text_embeds


def fit(model: CXRCLIPModel, criterion: CXRCLIPLoss, batches_from: BatchMaker,
        validation: Callable[[], Iterator[Batch]], recipe: Recipe, folder: Path,
        report: Callable[[int], None] | None = None) -> CXRCLIPModel:
    """Train `model` for `recipe.steps` updates and return it with the weights of the best validation loss.

    Args:
        batches_from: endless batches from a given step on, for one of several processes.
        validation: the fixed validation batches, anew at each call.
        folder: holds log.jsonl (a line a step), state/ (to resume) and best/ (the weights returned).
        report: called with the number of finished steps; without it a progress bar is shown.

    Raises:
        InputError: the device is not there, or `folder` holds a damaged checkpoint.
        FloatingPointError: the loss is no longer finite; names the step.
    """
    accelerator = start_accelerator(recipe)
    optimizer = AdamW(parameter_groups(model, recipe), lr=recipe.learning_rate)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    step, best = resume(accelerator, model, optimizer, folder)
    batches = batches_from(step, accelerator.process_index, accelerator.num_processes)
    with StepLog(folder, step, recipe.steps, accelerator.is_main_process, report) as log, torch.random.fork_rng():
        while step < recipe.steps:
            line = train_step(accelerator, wrapped, optimizer, criterion, next(batches), step, recipe)
            step += 1
            if step in validation_steps(recipe):
                line |= validate(accelerator, model, criterion, validation())
                if line["valid_total"] < best:
                    best = line["valid_total"]
                    checkpoint(accelerator, model, optimizer, folder / "best", step, best)
            log.write(step, line)
            if step % recipe.save_every == 0 or step == recipe.steps:
                checkpoint(accelerator, model, optimizer, folder / "state", step, best)
    tensors, _ = load_state(folder / "best")
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    return accelerator.unwrap_model(wrapped)


def train_step(accelerator: Accelerator, model: torch.nn.Module, optimizer: AdamW, criterion: CXRCLIPLoss,
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


def start_accelerator(recipe: Recipe) -> Accelerator:
    """Device and precision by name; 'auto' takes a GPU if there is one, and bf16 only where hardware computes in it."""
    if recipe.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"unknown device {recipe.device!r}: choose auto, cpu or cuda")
    if recipe.device == "cuda" and not torch.cuda.is_available():
        raise InputError("device 'cuda' was asked for but torch finds no GPU here: use DEVICE=cpu or install a driver")
    cpu = recipe.device == "cpu" or not torch.cuda.is_available()
    precision = auto_precision(cpu) if recipe.precision == "auto" else recipe.precision
    return Accelerator(cpu=cpu, mixed_precision=precision)


def auto_precision(cpu: bool) -> str:
    """'bf16' on hardware with bf16 arithmetic, 'fp16' on older GPUs, 'no' on CPUs that would only emulate it."""
    if cpu:
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "no"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


def checkpoint(accelerator: Accelerator, model: CXRCLIPModel, optimizer: AdamW, folder: Path, step: int,
               best: float) -> None:
    """Write weights, AdamW moments and counters (safetensors + JSON), whole or not at all; main process only."""
    if accelerator.is_main_process:
        weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
        save_state(folder, weights | optimizer_tensors(optimizer.optimizer),
                   {"step": step, "best": best if math.isfinite(best) else None, "scaler": scaler})
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, model: CXRCLIPModel, optimizer: AdamW, folder: Path) -> tuple[int, float]:
    """Load the last whole checkpoint below `folder`, if any. Returns (finished steps, best validation loss)."""
    if not (folder / "state").is_dir():
        return 0, math.inf
    tensors, info = load_state(folder / "state")
    model.load_state_dict({name[6:]: tensor for name, tensor in tensors.items() if name.startswith("model.")})
    load_optimizer_tensors(optimizer.optimizer, tensors)
    if info["scaler"]:
        accelerator.scaler.load_state_dict(info["scaler"])
    return info["step"], info["best"] if info["best"] is not None else math.inf


class StepLog:
    """log.jsonl, a line a step, with a progress bar; lines past the checkpoint are dropped, for they are run again."""

    def __init__(self, folder: Path, step: int, steps: int, main: bool, report: Callable[[int], None] | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.main, self.report, self.started = folder / "log.jsonl", main, report, time.monotonic()
        if main:
            kept = self.path.read_text().splitlines()[:step] if self.path.exists() else []
            self.path.write_text("".join(f"{line}\n" for line in kept))
        self.bar = progress_bar(total=steps, initial=step, unit="step", shown=main and report is None)

    def __enter__(self) -> StepLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def write(self, step: int, line: dict[str, float]) -> None:
        """Append the line of a finished step and move the bar."""
        if not self.main:
            return
        now = time.monotonic()
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **line, "seconds": round(now - self.started, 4)}) + "\n")
        self.started = now
        self.bar.set_postfix({name: f"{line[name]:.2f}" for name in ("total", "mvs", "icl", "tcl",
                                                                     "accuracy_image_text")}, refresh=False)
        self.bar.update()
        if self.report:
            self.report(step)
