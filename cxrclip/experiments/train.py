"""Pretraining one experiment: its data, model and loss put together, trained once, and found again by its key."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import broadcast_object_list
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from cxrclip import training
from cxrclip.data import mixes
from cxrclip.data.batches import EpochBatches, share_of
from cxrclip.data.dataset import Marks, PretrainingDataset, StudyItems, StudyMix, load_batches
from cxrclip.data.files import atomic_folder, locked, making, write_text
from cxrclip.data.progress import progress_bar
from cxrclip.data.stream import StreamedBatches, StreamedItems
from cxrclip.data.workers import WorkFailed
from cxrclip.encoders import SWINS, CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments import oracle, remedies
from cxrclip.experiments.cache import VERSIONS, commit, run_key, tokenizer_key
from cxrclip.experiments.checkpoints import FolderStore
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.memory import fitting_chunk
from cxrclip.experiments.start import start_encoders
from cxrclip.experiments.tokenizer import train_tokenizer
from cxrclip.experiments.workbench import (
    Run,
    Workbench,
    about_of,
    keep_freed_memory,
    one_thread,
    software,
    without_weight_bars,
)
from cxrclip.losses import CXRCLIPLoss, processes
from cxrclip.official import behaviours
from cxrclip.official.behaviours import Behaviours, TrivialValidation
from cxrclip.official.published import PUBLISHED_WEIGHTS, published_tokenizer, start_from_published
from cxrclip.prompts import PromptBank
from cxrclip.transforms import EvalTransform, TrainTransform
from cxrclip.views import DrawImages, DrawTexts, Study, draw_images, draw_texts, first_image, first_text, sections_of


def runnable(experiment: Experiment, data: mixes.Prepared) -> str | None:
    """None when the experiment can train on this mix, else the reason why not (a missing role, too few studies)."""
    for role in experiment.pretraining:
        if role in data.missing:
            return data.missing[role]
        if role not in data.mix.pretraining:
            raise InputError(f"mix {data.mix.name} has no pretraining role {role!r}: "
                             f"choose from {', '.join(data.mix.pretraining)}")
    n = count_studies(experiment, data)
    if n < experiment.batch_size:
        roles = ",".join(experiment.pretraining)
        return f"{roles} has {n} training studies, fewer than a batch of {experiment.batch_size}"
    return None


def growing_mixtures(mix: mixes.Mix) -> list[tuple[str, ...]]:
    """The paper's rows of pretraining data: M; M,C; M,C,C14, over the roles that the mix fills."""
    roles = [role.name for role in mix.pretraining.values() if role.filling != "missing"]
    return [tuple(roles[:n]) for n in range(1, len(roles) + 1)]


def pretrain(experiment: Experiment, bench: Workbench | None = None,
             report: Callable[[int], None] | None = None) -> Run:
    """The finished run of `experiment`: found by its key, else trained (resumed when it was cut off)."""
    bench = bench or Workbench()
    data = bench.prepared(experiment.mix, experiment.profile)
    if reason := runnable(experiment, data):
        raise InputError(f"cannot pretrain {experiment.name}: {reason}: choose other roles or add data to the mix")
    folder = run_folder(experiment, bench)
    with locked(folder) if first_process() and about_of(folder) is None else nullcontext():
        if not is_finished(folder, bench):
            with one_line_if_a_process_ends(experiment):
                _train(experiment, data, folder, bench, report)
    return Run(experiment, folder, bench)


def is_finished(folder: Path, bench: Workbench) -> bool:
    """Whether the run is there, as the first of all processes sees it."""
    finished = [about_of(folder) is not None]
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        training.start_accelerator(bench.device)
        broadcast_object_list(finished)
    return finished[0]


@contextmanager
def one_line_if_a_process_ends(experiment: Experiment) -> Iterator[None]:
    """WorkFailed in place of what torch says in one of several processes when another one has ended."""
    try:
        yield
    except RuntimeError as error:
        if processes() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise WorkFailed(f"{experiment.name}: one of {processes()} training processes has ended: look for its own "
                         "message above; the same command goes on from the last state, on any number") from error


def run_folder(experiment: Experiment, bench: Workbench) -> Path:
    """Where the run of an experiment is kept, whether it is finished or not."""
    return bench.build / "runs" / run_key(experiment, bench.prepared(experiment.mix, experiment.profile))


def finished_run(experiment: Experiment, bench: Workbench) -> Run | None:
    """The run of `experiment` if it is finished, else None."""
    folder = run_folder(experiment, bench)
    return Run(experiment, folder, bench) if about_of(folder) is not None else None


def _train(experiment: Experiment, data: mixes.Prepared, folder: Path, bench: Workbench,
           report: Callable[[int], None] | None) -> None:
    """Train into `folder`; run.json is written last, so a folder without it is never taken as finished."""
    started = time.time()
    keep_freed_memory()
    with one_thread(), torch.random.fork_rng():
        bank = PromptBank.load()
        tokenizer = tokenizer_for(experiment, data, bank, bench)
        torch.manual_seed(experiment.seed)
        model = CXRCLIPModel(model_config(experiment, tokenizer))
        if experiment.published_weights:
            start_from_published(model)
        start_encoders(model, experiment, data, tokenizer, bench)
        make, validation = batches_for(experiment, data, bank, tokenizer, model.config)
        chunk = experiment.chunk
        if chunk == "auto":
            chunk = fitting_chunk(experiment, model, training.start_accelerator(bench.device))
        recipe = training.Recipe(total_steps(experiment, data), experiment.learning_rate, experiment.weight_decay,
                                 experiment.warmup, experiment.seed, experiment.validations, device=bench.device,
                                 chunk=chunk)
        store = FolderStore(folder)
        groups = behaviours.groups_of(Behaviours.of(experiment.rules))
        with step_log(folder, store.finished_steps(), recipe.steps, report) as log:
            model = training.fit(model, criterion_for(experiment), make, validation, recipe, store, log, groups)
    if not first_process():
        return
    with without_weight_bars():
        model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    about = {"experiment": asdict(experiment), "data": data.fingerprints(experiment.pretraining),
             "recipe": asdict(recipe), "seconds": round(time.time() - started, 1), "stages": dict(VERSIONS),
             "commit": commit(), "versions": software(), "machine": platform.machine(),
             "parameters": sum(p.numel() for p in model.parameters())}
    write_text(folder / "run.json", json.dumps(about, indent=1, default=str))


def first_process() -> bool:
    """True outside `accelerate launch` and in its first process: the one that locks and writes."""
    return os.environ.get("RANK", "0") == "0"


def model_config(experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> CXRCLIPConfig:
    """The model's configuration: encoders by name, sizes, and the tokenizer's vocabulary.

    A published text encoder keeps the size of its own vocabulary, also where it starts at random and uses fewer.
    """
    corner = Behaviours.of(experiment.rules).corner_token and experiment.image_encoder in SWINS  # ledger B8
    vocab_size = None if experiment.text_encoder in PUBLISHED_WEIGHTS else len(tokenizer)
    return CXRCLIPConfig(image_encoder=experiment.image_encoder, text_encoder=experiment.text_encoder,
                         projection_dim=experiment.projection_dim, image_size=experiment.image_size,
                         max_tokens=experiment.max_tokens, vocab_size=vocab_size,
                         image_pooling="first_token" if corner else "mean",
                         pad_token_id=tokenizer.pad_token_id)


def tokenizer_for(experiment: Experiment, data: mixes.Prepared, bank: PromptBank,
                  bench: Workbench) -> PreTrainedTokenizerBase:
    """The published text encoder's own tokenizer; for a small one, or for random weights, a vocabulary trained on the
    mix's texts, kept."""
    if experiment.text_encoder in PUBLISHED_WEIGHTS and experiment.published_weights:
        return published_tokenizer(experiment.text_encoder)
    folder = bench.build / "data" / f"tokenizer-{tokenizer_key(data)}"
    with making(folder, folder.is_dir) as missing:
        if missing:
            with atomic_folder(folder) as draft:
                train_tokenizer(mixes.training_texts(data, bank)).save_pretrained(draft)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def total_steps(experiment: Experiment, data: mixes.Prepared) -> int:
    """Optimiser updates of the experiment: `steps`, or `epochs` passes over the pretraining studies."""
    return experiment.steps or round(experiment.epochs * (count_studies(experiment, data) // experiment.batch_size))


def count_studies(experiment: Experiment, data: mixes.Prepared) -> int:
    """Training studies of the experiment, over its roles."""
    if experiment.batches == "streamed":
        return streamed(experiment, data).studies_each
    return sum(len(used_studies(experiment, data, role, "train")) for role in experiment.pretraining)


def criterion_for(experiment: Experiment) -> CXRCLIPLoss:
    """The paper's loss, or a remedy's where the experiment asks for one."""
    options = {"icl_weight": experiment.icl_weight, "tcl_weight": experiment.tcl_weight, "mvs": experiment.mvs}
    if experiment.false_negatives == "keep" and experiment.label_weight == 1:
        return CXRCLIPLoss(**options)
    return remedies.MarkedLoss(**options, false_negatives=experiment.false_negatives)


def batches_for(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, tokenizer: PreTrainedTokenizerBase,
                config: CXRCLIPConfig) -> tuple[training.BatchMaker, Callable[[], Iterator]]:
    """Two makers of batches: training batches from a step on, and the fixed validation batches.

    Validation draws as training does, but always those of epoch 0: so two views and two prompts differ and no term
    is trivial in the loss that picks the checkpoint (ledger B5). Its batches are mixed whatever those of training.
    """
    streams = experiment.batches == "streamed"
    studies = streamed_studies if streams else pretraining_studies
    train, valid = (studies(experiment, data, bank, split, config) for split in ("train", "valid"))

    def make(step: int, rank: int, world_size: int) -> Iterator:
        if streams:
            order = streamed(experiment, data, start_step=step, rank=rank, world_size=world_size)
        else:
            order = EpochBatches(len(train), experiment.batch_size, experiment.seed, step, rank, world_size)
            order = remedies.arranged(order, train, total_steps(experiment, data), kind=experiment.batches,
                                      report_share=experiment.report_share, reports_last=experiment.reports_last)
        return load_batches(train, order, tokenizer, experiment.max_tokens, loading_processes(world_size))

    def validation() -> Iterator:
        if streams:
            order = streamed(experiment, data, split="valid", seed=0)
            order = replace(order, batch_size=min(experiment.batch_size, order.studies_each))
        else:
            order = EpochBatches(len(valid), min(experiment.batch_size, len(valid)), seed=0)
        return load_batches(valid, order.epoch(0), tokenizer, experiment.max_tokens)

    return make, validation


def streamed(experiment: Experiment, data: mixes.Prepared, **options: Any) -> StreamedBatches:
    """The streamed batches of an experiment's roles."""
    folders = [data.folders[role] for role in experiment.pretraining]
    return StreamedBatches(folders, experiment.batch_size, **{"seed": experiment.seed, **options})


def loading_processes(world_size: int) -> int:
    """Processes that read films for one of `world_size` training processes; the batches are the same for any number.

    With a GPU the cores are shared out, at most 16 to each: it would wait for films. On a CPU reading takes its turn.
    """
    return min(16, (os.cpu_count() or 1) // world_size) if torch.cuda.is_available() else 0


def pretraining_studies(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, split: str,
                        config: CXRCLIPConfig) -> StudyMix:
    """The pretraining roles' studies of one split, one after the other, each with its role's prompt rule."""
    released = Behaviours.of(experiment.rules)
    dataset = TrivialValidation if released.trivial_validation and split == "valid" else PretrainingDataset
    return StudyMix([dataset(used_studies(experiment, data, role, split), keep_silent=released.empty_prompts,
                             **item_options(experiment, data, bank, role, split, config))
                     for role in experiment.pretraining])


def streamed_studies(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, split: str,
                     config: CXRCLIPConfig) -> StreamedItems:
    """As pretraining_studies, of shards as they come: no copy on disk, and no look at the texts before the start."""
    return StreamedItems([StudyItems(**item_options(experiment, data, bank, role, split, config))
                          for role in experiment.pretraining])


def item_options(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, role: str, split: str,
                 config: CXRCLIPConfig) -> dict[str, Any]:
    """How the studies of a role become items (dataset.StudyItems): prompts, transform, draws and marks."""
    kind = TrainTransform if experiment.augment else EvalTransform
    truth = oracle.read_truth(data.folders[role]) if experiment.rich_prompts else None
    details = oracle.rich_details(truth, bank) if truth else {}
    images, texts = draws_of(experiment, details)
    transform = kind(config.image_size, config.image_mean, config.image_std).gray  # one channel; the model normalises
    return {"bank": bank, "seed": experiment.seed if split == "train" else 0, "transform": transform,
            "max_negatives": data.mix.pretraining[role].max_negatives, "images": images, "texts": texts,
            "marks": marks_of(experiment, bank, details)}


def draws_of(experiment: Experiment, details: oracle.Details) -> tuple[DrawImages, DrawTexts]:
    """Which images and texts of a study the experiment uses: the paper's draws, a remedy's, or the released code's."""
    released = Behaviours.of(experiment.rules)
    one_image, one_text = experiment.views == 1, experiment.texts == 1
    if one_image and experiment.draw == "first":
        images = first_image
    else:
        images = behaviours.released_images(partial(draw_images, count=experiment.views), released)
    if one_text:
        texts = first_text if experiment.draw == "first" else partial(remedies.one_text, augment=experiment.augment)
    elif experiment.augment:
        texts = draw_texts
    else:
        texts = remedies.texts_as_written
        released = replace(released, idle_shuffle=False, repeated_sections=False)  # nothing is shuffled or drawn
    if details:
        texts = oracle.with_details(texts, details)
    return images, behaviours.released_texts(texts, released, experiment.texts)


def marks_of(experiment: Experiment, bank: PromptBank, details: oracle.Details) -> Marks | None:
    """What the batch says of each study for the remedies' loss; None for the paper's."""
    contents = experiment.false_negatives != "keep"
    if not contents and experiment.label_weight == 1:
        return None

    def marks(study: Study) -> dict[str, float]:
        content = {"content": remedies.content_of(study, bank, details.get(study["study_id"]))} if contents else {}
        weight = 1.0 if sections_of(study) else experiment.label_weight
        return content | ({"weight": weight} if experiment.label_weight != 1 else {})

    return marks


def used_studies(experiment: Experiment, data: mixes.Prepared, role: str, split: str) -> Dataset:
    """The studies of a pretraining role and split that the experiment uses: of the training studies, its share.

    Under ledger D2 the training studies also hold the share of test studies that the mix says were seen.
    """
    found = data.studies(role, split)
    if split == "train" and Behaviours.of(experiment.rules).seen_films:
        seen = [seen_studies(data, test) for test in data.mix.pretraining[role].seen]
        found = concatenate_datasets([found, *seen])
    if split != "train" or experiment.shares is None:
        return found
    share = experiment.shares[experiment.pretraining.index(role)]
    return found.select(share_of(len(found), share, experiment.seed, role), keep_in_memory=True)


def seen_studies(data: mixes.Prepared, role: str) -> Dataset:
    """The test studies of `role` whose films are also in pretraining under ledger D2: a share drawn by a fixed seed.

    They carry ChestX-ray14's labels, without its miner's mistakes: RSNA's own names are no labels to pretrain on.
    """
    tested = data.studies(role, data.mix.tests[role].split)
    shares = [item.seen[role] for item in data.mix.pretraining.values() if role in item.seen]
    drawn = tested.select(share_of(len(tested), shares[0], 0, f"seen films of {role}"), keep_in_memory=True)
    columns = drawn.with_format("arrow")[:].to_pydict()  # as stored: a film stays its file's bytes
    truth = oracle.read_truth(data.folders[role])
    labels = (oracle.chestxray14_labels(truth[study]) for study in columns["study_id"])
    columns["positive"], columns["negative"] = map(list, zip(*labels, strict=True))
    return Dataset.from_dict(columns, features=tested.features)


@contextmanager
def step_log(folder: Path, step: int, steps: int, report: Callable[[int], None] | None) -> Iterator[training.Log]:
    """log.jsonl, a line a step, with a progress bar; lines past the checkpoint are dropped, for they are run again.

    Yields what appends the lines of the steps that have been finished since its last call, and moves the bar.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.jsonl"
    if not first_process():
        yield lambda step, lines: None
        return
    kept = path.read_text(errors="replace").splitlines()[:step] if path.exists() else []
    write_text(path, "".join(f"{line}\n" for line in kept))
    started = time.monotonic()

    def write(step: int, lines: Sequence[dict[str, float]]) -> None:
        nonlocal started
        now = time.monotonic()
        seconds = round((now - started) / len(lines), 4)
        with path.open("a") as file:
            for number, line in enumerate(lines, step - len(lines) + 1):
                file.write(json.dumps({"step": number, **line, "seconds": seconds}) + "\n")
        started = now
        bar.set_postfix({name: f"{lines[-1][name]:.2f}" for name in ("total", "mvs", "icl", "tcl",
                                                                     "accuracy_image_text")}, refresh=False)
        bar.update(len(lines))
        if report:
            report(step)

    with progress_bar(total=steps, initial=step, unit="step", shown=report is None) as bar:
        yield write
