"""A training step at the paper's size on a GPU: milliseconds, the share of the peak that it sustains, memory, hours.

Whole batches of 128 studies, two views and two texts each, go through `training.train_step` from the memory of the CPU,
as one gray channel; reading films is not in it. Without a GPU it stops and leaves results.md as it is.
Run: python benchmarks/bench_gpu.py
"""

from __future__ import annotations

import statistics
import time

import torch
from timing import table, write_section

from cxrclip import training
from cxrclip.book.costs import PEAKS, Costs, of_recipe
from cxrclip.data.mixes import load_mix
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.experiments import Experiment
from cxrclip.experiments.memory import GIB
from cxrclip.losses import CXRCLIPLoss

BATCH, WARM, STEPS = 128, 5, 15
PEAK = PEAKS["H100"]  # an H200 has the same


def measured(cost: Costs, precision: str, chunk: int | None = None) -> list[str]:
    """A row of the table: the median step of a fresh model, with its highest memory, beside what is counted of it."""
    encoder, tokens = cost.experiment.image_encoder, cost.tokens
    torch.manual_seed(0)
    torch.cuda.empty_cache()
    model = CXRCLIPModel(CXRCLIPConfig(encoder, "bio-clinical-bert")).to(memory_format=torch.channels_last)
    accelerator = training.start_accelerator("cuda", precision)
    optimizer = torch.optim.AdamW(training.parameter_groups(model, 1e-4), lr=1e-5, fused=True)
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    ids = torch.randint(5, 20_000, (2, BATCH, tokens))
    batch = {"pixel_values": torch.rand(2, BATCH, 1, 224, 224), "input_ids": ids,
             "attention_mask": torch.ones_like(ids)}
    recipe = training.Recipe(steps=10**6, learning_rate=1e-5, chunk=chunk)

    def step(number: int) -> float:
        start = time.perf_counter()
        line = training.train_step(accelerator, wrapped, optimizer, CXRCLIPLoss(), batch, number, recipe)
        training.read_lines([line], number + 1)  # waits for the GPU
        return time.perf_counter() - start

    step(0)
    torch.cuda.reset_peak_memory_stats()
    seconds = [step(number) for number in range(1, WARM + STEPS)][WARM - 1:]
    median = statistics.median(seconds)
    share = None if chunk or precision == "no" else BATCH * cost.training_flops / median / PEAK
    return [encoder, tokens, {"no": "float32"}.get(precision, precision), chunk or "whole batch",
            f"{1000 * median:.0f} ({1000 * min(seconds):.0f} to {1000 * max(seconds):.0f})",
            f"{share:.0%}" if share else "–", f"{torch.cuda.max_memory_allocated() / GIB:.1f}",
            f"{cost.steps * median / 3600:.1f}"]


def main() -> None:
    if not torch.cuda.is_available():
        print("torch finds no GPU: the section in results.md stays as it is")
        return
    counted = of_recipe(Experiment.at("paper", mix="paper"), load_mix("paper"))  # two encoders, long and short texts
    long, short = counted[:2]
    settings = [*((cost, "bf16", None) for cost in counted), (short, "fp16", None), (short, "no", None),
                (long, "bf16", 32)]
    rows = []
    for setting in settings:
        rows.append(measured(*setting))
        print(*rows[-1], flush=True)
    write_section(f"A training step at the paper's size on a GPU, batch {BATCH}", [
        *table(["image encoder", "tokens", "precision", "chunk", "ms a step", "share of the peak", "GiB at its highest",
                "hours of a run on M,C,C14"], rows), "",
        f"{torch.cuda.get_device_name()}, 224 pixels, all texts of that length, {long.steps:,} steps a run. The peak "
        f"is {PEAK / 1e12:.0f} TFLOP/s in bf16 or fp16. Reading films, validation and evaluation come on top."])


if __name__ == "__main__":
    main()
