"""How time and memory of training grow with studies, batch, text length, chunk and processes; and the cost model.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_growth.py
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator
from datasets import Dataset, Features
from datasets.arrow_writer import ArrowWriter
from timing import table, write_section

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from builders import HALF, film, prompt_bank, study, word_tokenizer

from cxrclip import training
from cxrclip.book import costs
from cxrclip.data.batches import EpochBatches
from cxrclip.data.dataset import PretrainingDataset, StudyMix, load_batches
from cxrclip.data.images import encode_gray
from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel
from cxrclip.experiments import Experiment
from cxrclip.losses import CXRCLIPLoss
from cxrclip.studies import SCHEMA
from cxrclip.transforms import TrainTransform

SMALL = Experiment.at("quick", image_encoder="resnet")
REPEATS = 5


# ---- a step ---------------------------------------------------------------------------------------------------------


def batch_of(studies, tokens, size=64):
    mask = torch.ones(2, studies, tokens, dtype=torch.long)
    ids = torch.randint(5, 2000, mask.shape)
    return dict(zip(training.INPUTS, (torch.randn(2, studies, 3, size, size), ids, mask), strict=True))


def stepper(studies, tokens, chunk=None):
    """A function that makes one training step."""
    torch.manual_seed(0)
    model = CXRCLIPModel(CXRCLIPConfig(SMALL.image_encoder, SMALL.text_encoder, SMALL.projection_dim, image_size=64,
                                       max_tokens=512))
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters()))
    recipe = training.Recipe(100, precision="no", chunk=chunk)
    batch = batch_of(studies, tokens)
    return lambda: training.train_step(accelerator, model, optimizer, CXRCLIPLoss(), batch, 0, recipe)


def milliseconds(works):
    """Median CPU milliseconds of each work; all take turns."""
    times = [[] for _ in works]
    for repeat in range(REPEATS + 1):
        for work, taken in zip(works, times, strict=True):
            start = time.process_time()
            work()
            if repeat:
                taken.append(1000 * (time.process_time() - start))
    return [(statistics.median(taken), min(taken), max(taken)) for taken in times]


def shown(time_of):
    return f"{time_of[0]:.0f} ({time_of[1]:.0f} to {time_of[2]:.0f})"


# ---- memory: each measured in a process of its own ------------------------------------------------------------------


def in_a_process(function, *arguments):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=_send, args=(results, function, *arguments))
    process.start()
    result = results.get()
    process.join()
    return result


def _send(results, function, *arguments):
    results.put(function(*arguments))


def peak_of_a_step(studies, tokens, chunk):
    """Bytes that a second step takes at its highest, above what stands before it: sampled by a thread."""
    step = stepper(studies, tokens, chunk)
    stepper(2, 8)()  # what a first step leaves behind: threads, code
    before, highest, ended = psutil.Process().memory_info().rss, [0], threading.Event()

    def watch():
        while not ended.wait(0.002):
            highest[0] = max(highest[0], psutil.Process().memory_info().rss)
    thread = threading.Thread(target=watch)
    thread.start()
    step()
    ended.set()
    thread.join()
    return highest[0] - before


def of_studies(number, file):
    """What a data set of so many studies takes: CPU seconds to look at all, bytes of its own, milliseconds a batch."""
    films = [encode_gray(film(i, 64)) for i in range(50)]
    with ArrowWriter(path=file, features=Features.from_arrow_schema(SCHEMA)) as writer:
        for i in range(number):
            text = {"findings": "The heart is large. Lungs are clear. No effusion."} if i % 2 else {}
            writer.write(study(i, (), **text, positive=[] if i % 2 else ["Edema"])
                         | {"images": [{"bytes": films[i % 50], "path": None}], "views": ["PA"]})
        writer.finalize()
    studies = Dataset.from_file(file)
    before, start = psutil.Process().memory_info(), time.process_time()
    mix = StudyMix([PretrainingDataset(studies, prompt_bank(), TrainTransform(64, *HALF), seed=0)])
    mix.has_report.sum()
    opened = time.process_time() - start
    batches, times = load_batches(mix, EpochBatches(len(mix), 48, 0), word_tokenizer(), 80), []
    for _ in range(2 * REPEATS + 1):
        start = time.process_time()
        next(batches)
        times.append(1000 * (time.process_time() - start))
    after = psutil.Process().memory_info()
    private = (after.rss - getattr(after, "shared", 0)) - (before.rss - getattr(before, "shared", 0))
    return opened, private, (statistics.median(times[1:]), min(times[1:]), max(times[1:]))


def in_processes(world, studies):
    """CPU milliseconds of a step in the first of `world` gloo processes that share a batch, and the wall's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    started = [context.Process(target=_one_of, args=(rank, world, port, studies, results)) for rank in range(world)]
    for process in started:
        process.start()
    found = results.get()
    for process in started:
        process.join()
    return found


def _one_of(rank, world, port, studies, results):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port)}
    step = stepper(studies // world, 30)
    step()
    cpu, wall = [], []
    for _ in range(REPEATS):
        start = time.process_time(), time.perf_counter()
        step()
        cpu.append(1000 * (time.process_time() - start[0]))
        wall.append(1000 * (time.perf_counter() - start[1]))
    if rank == 0:
        results.put([(statistics.median(taken), min(taken), max(taken)) for taken in (cpu, wall)])
    if world > 1:
        torch.distributed.destroy_process_group()


# ---- the sections ---------------------------------------------------------------------------------------------------


def growth_of_steps():
    batches, lengths, chunks = (12, 24, 48, 96, 192), (10, 20, 40, 80), (48, 24, 12, 6)
    lines = []
    for name, values, works in (
            ("batch, 30 tokens", batches, [stepper(n, 30) for n in batches]),
            ("tokens a text, batch 48", lengths, [stepper(48, n) for n in lengths]),
            ("chunk of cached gradients, batch 96 of 30 tokens", (None, *chunks),
             [stepper(96, 30, n) for n in (None, *chunks)])):
        times = milliseconds(works)
        peaks = [in_a_process(peak_of_a_step, *_settings(name, value)) for value in values]
        lines += ["", *table([name, "CPU ms a step", "MiB at its highest"],
                             [[value or "whole batch", shown(t), f"{peak / 2 ** 20:.0f}"]
                              for value, t, peak in zip(values, times, peaks, strict=True)])]
    found = {world: in_processes(world, 96) for world in (1, 2, 4)}
    lines += ["", *table(["processes, batch 96 in all", "CPU ms a step of each", "wall ms"],
                         [[world, shown(cpu), shown(wall)] for world, (cpu, wall) in found.items()])]
    write_section("Growth of a training step", ["Small ResNet, 64 pixels, small BERT, one thread a process.", *lines])


def _settings(name, value):
    if name.startswith("batch"):
        return value, 30, None
    return (48, value, None) if name.startswith("tokens") else (96, 30, value)


def growth_of_studies():
    rows = []
    for number in (2_000, 20_000, 200_000):
        with tempfile.TemporaryDirectory() as folder:
            opened, private, batch = in_a_process(of_studies, number, f"{folder}/studies.arrow")
        rows.append([f"{number:,}", f"{opened:.2f}", f"{private / 2 ** 20:.0f}", shown(batch)])
    write_section("Growth with studies", table(
        ["studies", "CPU s to look at all rows", "MiB of its own memory", "CPU ms a batch of 48"], rows))


def cost_model():
    """FLOPs and bytes as costs.py counts them, against measured seconds and memory: one constant fits all points?"""
    points = [(studies, tokens) for tokens in (20, 40, 80) for studies in (24, 48, 96)]
    counted = {tokens: costs.costs(SMALL, {"M": 48}, tokens) for tokens in (20, 40, 80)}
    times = milliseconds([stepper(*point) for point in points])
    flops = np.array([studies * counted[tokens].training_flops for studies, tokens in points])
    kept = np.array([studies * counted[tokens].activation_bytes for studies, tokens in points])
    peaks = np.array([in_a_process(peak_of_a_step, *point, None) for point in points])
    medians = np.array([time_of[0] for time_of in times])
    speed = np.exp(np.mean(np.log(flops / medians)))  # FLOPs a millisecond, the one constant
    of_time, of_memory = flops / speed / medians - 1, kept / peaks - 1
    rows = [[*point, shown(t), f"{a:+.0%}", f"{peak / 2 ** 20:.0f}", f"{b:+.0%}"]
            for point, t, a, peak, b in zip(points, times, of_time, peaks, of_memory, strict=True)]
    lines = table(["batch", "tokens", "CPU ms a step", "model's error", "MiB at its highest", "model's error"], rows)
    write_section("The cost model against measured steps", [
        *lines, "", f"Time: training FLOPs over one speed for all points, {speed * 1e3 / 1e9:.1f} GFLOP/s; largest "
        f"error {np.abs(of_time).max():.0%}, mean {np.abs(of_time).mean():.0%}. Memory: activations as counted without "
        f"the working space of the backward pass; largest error {np.abs(of_memory).max():.0%}."])


if __name__ == "__main__":
    growth_of_studies()
    growth_of_steps()
    cost_model()
