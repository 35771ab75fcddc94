"""One experiment, its three sizes, and the memo of finished runs.

An `Experiment` says what is trained on what; its defaults are the published settings and a profile only shrinks
them. `pretrain` finds a finished run by fingerprint (settings, data, code) and trains only what is not there yet.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from cxrclip import evaluation, results, studies, training
from cxrclip.data import mixes
from cxrclip.data.batches import EpochBatches, arranged, share_of
from cxrclip.data.dataset import PretrainingDataset, StudyMix, load_batches
from cxrclip.encoders import (
    PUBLISHED_WEIGHTS,
    SWINS,
    CXRCLIPConfig,
    CXRCLIPModel,
    published_tokenizer,
    train_tokenizer,
)
from cxrclip.errors import InputError
from cxrclip.experiments import oracle
from cxrclip.losses import FALSE_NEGATIVES, CXRCLIPLoss
from cxrclip.official.probe import adamw_probe
from cxrclip.official.rules import Rules
from cxrclip.prompts import PromptBank
from cxrclip.transforms import EvalTransform, TrainTransform

TRAINING_CODE = ("official/rules.py", "views.py", "transforms.py", "data/dataset.py", "data/batches.py", "prompts.py",
                 "prompts.yaml", "encoders.py", "losses.py", "training.py", "experiments/oracle.py")
EVALUATION_CODE = ("official/rules.py", "evaluation.py", "official/probe.py", "metrics.py", "prompts.py",
                   "prompts.yaml", "results/rows.py", "experiments/experiment.py")

# What a profile changes of the published settings. Small encoders and images keep the method and cost minutes.
_SMALL = {"text_encoder": "bert-small", "image_size": 64, "projection_dim": 128, "batch_size": 48,
          "learning_rate": 3e-3, "max_tokens": 80}
PROFILES: Mapping[str, Mapping] = {
    "quick": _SMALL | {"image_encoder": "resnet-small", "steps": 300},
    "standard": _SMALL | {"image_encoder": "resnet-small", "steps": 400},
    "paper": {},
}
IMAGE_ENCODERS = {"resnet": {"quick": "resnet-small", "standard": "resnet-small", "paper": "resnet50"},
                  "swin": {"quick": "swin-small", "standard": "swin-small", "paper": "swin-tiny"}}
SWITCHES: Mapping[str, tuple[str, ...]] = {
    "draw": ("first", "random"), "false_negatives": FALSE_NEGATIVES, "batches": ("mixed", "one-source")}


@dataclass(frozen=True)
class Experiment:
    """One pretraining run. Defaults are the published settings; `at` shrinks them to a profile.

    `pretraining` names roles of the mix. `steps` counts optimiser updates; when it is None, `epochs` passes over
    the pretraining studies are made. `published_weights`: the published encoders start from the published weights and
    tokenizer; False starts them at random, with a vocabulary of the mix, to try them without a download (dry_run.py).

    The fields after `seed` are departures from the paper, for comparisons (comparisons.py); all are off by default.
        shares: of each role's training studies, aligned with `pretraining`; smaller shares lie within larger ones.
        draw: with one view (text), the "first" frontal (section) or a "random" one. augment: images and texts.
        mvs: False contrasts the pair (x1, t1) alone. false_negatives: "keep", "mask" or "soft" (losses.py).
        batches: "mixed" or "one-source". report_share: of each batch. reports_last: share of the last steps that
        draw from reports only (sampling.py). label_weight: of label-only studies' rows in every term.
        rich_prompts: label prompts that tell side, zone and severity, from the phantom's truth (oracle.py).
        rules: "intended", "official" for what the released code does, or rows of the ledger, "B2,B3" (rules.py).
            Under B11 plain CLIP cannot be had: asking for one view and one text gives two, with ICL and TCL at 0.
    """

    mix: str = "phantom"
    profile: str = "paper"
    pretraining: tuple[str, ...] = ("M",)
    image_encoder: str = "resnet50"
    text_encoder: str = "bio-clinical-bert"
    image_size: int = 224
    projection_dim: int = 512
    max_tokens: int = 256
    published_weights: bool = True
    views: int = 2
    texts: int = 2
    icl_weight: float = 1.0
    tcl_weight: float = 0.5
    steps: int | None = None
    epochs: float = 15
    batch_size: int = 128
    learning_rate: float = 5e-5
    weight_decay: float = 1e-4
    warmup: float = 1 / 15
    validations: int = 5
    seed: int = 0
    shares: tuple[float, ...] | None = None
    draw: str = "first"
    augment: bool = True
    mvs: bool = True
    false_negatives: str = "keep"
    batches: str = "mixed"
    report_share: float | None = None
    reports_last: float = 0.0
    label_weight: float = 1.0
    rich_prompts: bool = False
    rules: str = "intended"

    def __post_init__(self) -> None:
        if Rules.of(self.rules).no_plain_clip and self.views == self.texts == 1:
            for name, value in {"views": 2, "texts": 2, "icl_weight": 0.0, "tcl_weight": 0.0}.items():
                object.__setattr__(self, name, value)
        for name, choices in SWITCHES.items():
            if getattr(self, name) not in choices:
                raise InputError(f"{name}={getattr(self, name)!r}: choose one of {', '.join(choices)}")
        if self.shares is not None and len(self.shares) != len(self.pretraining):
            raise InputError(f"shares={self.shares} of {','.join(self.pretraining)}: give one share for each role")
        ranges = {"shares": all(0 < share <= 1 for share in self.shares or ()),
                  "report_share": self.report_share is None or 0 < self.report_share < 1,
                  "reports_last": 0 <= self.reports_last < 1, "label_weight": self.label_weight > 0}
        if wrong := [name for name, right in ranges.items() if not right]:
            raise InputError(f"{wrong[0]}={getattr(self, wrong[0])}: out of range: give a share between 0 and 1, "
                             "or a positive weight")
        if self.batches == "one-source" and self.report_share is not None:
            raise InputError("report_share and one-source batches exclude each other: choose one of them")

    @classmethod
    def at(cls, profile: str, **changes: object) -> Experiment:
        """The experiment at a profile's size, with `changes`; image_encoder may be 'resnet' or 'swin'.

        Raises InputError for an unknown profile or field, naming the known ones.
        """
        if profile not in PROFILES:
            raise InputError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(changes) - set(known)):
            raise InputError(f"unknown parameter {unknown[0]!r} of an experiment: known are {', '.join(known)}")
        if (encoder := changes.get("image_encoder")) in IMAGE_ENCODERS:
            changes["image_encoder"] = IMAGE_ENCODERS[encoder][profile]
        return cls(profile=profile, **{**PROFILES[profile], **changes})

    @property
    def name(self) -> str:
        """Short name for bars and tables, such as 'resnet-small M,C seed 0'."""
        return f"{self.image_encoder} {','.join(self.pretraining)} seed {self.seed}"

    @property
    def run_name(self) -> str:
        """Name of the run in results, the same for all its seeds: method, encoder, data, and what departs from the
        profile's recipe, such as 'CXR-CLIP resnet-small M icl_weight=0.3'."""
        clip = self.views == self.texts == 1
        recipe, told = Experiment.at(self.profile), {"mix", "profile", "pretraining", "image_encoder", "seed"}
        told |= {"views", "texts", "icl_weight", "tcl_weight"} if clip else set()
        other = [f"{item.name}={getattr(self, item.name)}" for item in fields(self)
                 if item.name not in told and getattr(self, item.name) != getattr(recipe, item.name)]
        return " ".join(["CLIP" if clip else "CXR-CLIP", self.image_encoder, ",".join(self.pretraining), *other])


@dataclass(frozen=True)
class Workbench:
    """Where and how to work: nothing here changes a result's meaning.

    build: folder for prepared data and runs. data: folder of downloaded data sets, for mixes that read some.
    device: auto, cpu or cuda. jobs: runs side by side (0: one per CPU core, one in all with a GPU). Each run on a
    CPU uses one thread, so that the same machine gives the same weights however many runs are side by side.
    """

    build: Path = Path("build")
    data: str = ""
    device: str = "auto"
    jobs: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "build", Path(self.build))

    def outputs(self, mix: str, profile: str) -> Path:
        """Where tables, figures and results of a mix and profile go: build/<mix>-<profile>."""
        return self.build / f"{mixes.mix_path(mix).stem}-{profile}"

    def prepared(self, mix: str, profile: str) -> mixes.Prepared:
        """The mix's data on disk, made when they are not there."""
        return _prepared(self, mix, profile)


@lru_cache(maxsize=4)
def _prepared(bench: Workbench, mix: str, profile: str) -> mixes.Prepared:
    if profile not in PROFILES:
        raise InputError(f"unknown profile {profile!r}: choose one of {', '.join(PROFILES)}")
    return mixes.prepare(mixes.load_mix(mix), profile, bench.build, bench.data, bench.progress)


@dataclass(frozen=True)
class Run:
    """A finished pretraining run: its experiment and the folder with model/, tokenizer/, log.jsonl, run.json."""

    experiment: Experiment
    folder: Path
    bench: Workbench = field(repr=False, default=Workbench())

    @property
    def fingerprint(self) -> str:
        """Hash of settings, data and code: the run's name on disk and in every table."""
        return self.folder.name

    @cached_property
    def model(self) -> CXRCLIPModel:
        """The pretrained model, in evaluation mode, on the CPU."""
        with _without_weight_bars():
            return CXRCLIPModel.from_pretrained(self.folder / "model").eval()

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer the run was trained with."""
        return PreTrainedTokenizerFast.from_pretrained(self.folder / "tokenizer")

    @cached_property
    def data(self) -> mixes.Prepared:
        """The prepared mix the run was trained on."""
        return self.bench.prepared(self.experiment.mix, self.experiment.profile)

    @property
    def device(self) -> torch.device:
        """Where the model is evaluated: as the workbench says, 'auto' takes a GPU if there is one."""
        return training.start_accelerator(training.Recipe(1, device=self.bench.device)).device

    @property
    def transform(self) -> EvalTransform:
        """The evaluation transform that fits the model."""
        return EvalTransform(self.experiment.image_size, self.model.config.image_mean, self.model.config.image_std)

    def log(self) -> pd.DataFrame:
        """A row a step: loss terms, in-batch accuracies, learning rate; validation columns where they were read."""
        return pd.read_json(self.folder / "log.jsonl", lines=True)

    @property
    def evaluation_folder(self) -> Path:
        """Where embeddings, per-sample scores and results of the mix's test roles are kept."""
        tests = {role.name: [role.tasks, role.prompts, role.split, self.data.fingerprints((role.name,))]
                 for role in self.data.mix.tests.values() if role.name in self.data.folders}
        return self.folder / f"evaluation-{mixes.digest([tests, mixes.code_digest(*EVALUATION_CODE)])}"

    def scores(self, role: str, task: str) -> pd.DataFrame:
        """Per-sample scores of a test role; tasks: zero-shot, zero-shot-ensemble, linear-probe-10, -100, retrieval."""
        return pd.read_parquet(self.evaluation_folder / "scores" / f"{role}-{task}.parquet")

    def embeddings(self, role: str, split: str = "test") -> evaluation.ImageEmbeddings:
        """The stored image embeddings of a test role."""
        return evaluation.load_embeddings(self.evaluation_folder / "embeddings" / f"{role}-{split}.npz")

    def row_columns(self, role: str) -> dict[str, str]:
        """What every tidy row of this run says about its origin (results.ABOUT)."""
        experiment = self.experiment
        model = "CLIP" if experiment.views == experiment.texts == 1 else "CXR-CLIP"
        data = ",".join(experiment.pretraining)
        return {"run": experiment.run_name, "profile": experiment.profile, "mix": self.data.mix.name,
                "origin": "measured", "model": model,
                "image_encoder": experiment.image_encoder, "pretraining_data": data, "seeds": str(experiment.seed),
                "experiment": self.fingerprint, "data": self.data.fingerprints((role,))[role],
                "versions": " ".join(f"{name}={number}" for name, number in self.about["versions"].items())}

    @property
    def about(self) -> dict:
        """run.json: experiment, data and tokenizer fingerprints, versions, seconds, device, threads."""
        return json.loads((self.folder / "run.json").read_text())


def runnable(experiment: Experiment, data: mixes.Prepared) -> str | None:
    """None when the experiment can train on this mix, else the reason why not (a missing role, too few studies)."""
    for role in experiment.pretraining:
        if role in data.missing:
            return data.missing[role]
        if role not in data.mix.pretraining:
            raise InputError(f"mix {data.mix.name} has no pretraining role {role!r}: "
                             f"choose from {', '.join(data.mix.pretraining)}")
    n = sum(len(used_studies(experiment, data, role, "train")) for role in experiment.pretraining)
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
    """The finished run of `experiment`: found by fingerprint, else trained (resumed when it was cut off)."""
    bench = bench or Workbench()
    data = bench.prepared(experiment.mix, experiment.profile)
    if reason := runnable(experiment, data):
        raise InputError(f"cannot pretrain {experiment.name}: {reason}: choose other roles or add data to the mix")
    folder = bench.build / "runs" / fingerprint(experiment, data)
    with mixes.exclusive(folder) if first_process() else nullcontext():
        if not (folder / "run.json").is_file():
            _train(experiment, data, folder, bench, report)
    return Run(experiment, folder, bench)


def fingerprint(experiment: Experiment, data: mixes.Prepared) -> str:
    """Hash of the settings that reach the weights, of the pretraining data's content and of the training code."""
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("mix", "profile")}
    vocabulary = data.fingerprints(tuple(role for role in data.mix.pretraining if role in data.folders))
    return mixes.digest([settings, data.fingerprints(experiment.pretraining), vocabulary,
                         [data.mix.pretraining[role].max_negatives for role in experiment.pretraining],
                         mixes.code_digest(*TRAINING_CODE)])


def _train(experiment: Experiment, data: mixes.Prepared, folder: Path, bench: Workbench,
           report: Callable[[int], None] | None) -> None:
    """Train into `folder`; run.json is written last, so a folder without it is never taken as finished."""
    started = time.time()
    with _one_thread(), torch.random.fork_rng():
        bank = PromptBank.load()
        tokenizer = tokenizer_for(experiment, data, bank, bench)
        torch.manual_seed(experiment.seed)
        model = CXRCLIPModel(model_config(experiment, tokenizer))
        if experiment.published_weights:
            model.load_published_encoders()
        make, validation = batches_for(experiment, data, bank, tokenizer, model.config)
        recipe = training.Recipe(total_steps(experiment, data), experiment.learning_rate, experiment.weight_decay,
                                 experiment.warmup, experiment.seed, experiment.validations, device=bench.device,
                                 decay_on_all=Rules.of(experiment.rules).decay_on_all)
        criterion = CXRCLIPLoss(experiment.icl_weight, experiment.tcl_weight, mvs=experiment.mvs,
                                false_negatives=experiment.false_negatives)
        model = training.fit(model, criterion, make, validation, recipe, folder, report)
    if not first_process():
        return
    with _without_weight_bars():
        model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "tokenizer")
    about = {"experiment": asdict(experiment), "data": data.fingerprints(experiment.pretraining),
             "recipe": asdict(recipe), "seconds": round(time.time() - started, 1), "versions": versions(),
             "machine": platform.machine(), "parameters": sum(p.numel() for p in model.parameters())}
    results.write_atomically(folder / "run.json", json.dumps(about, indent=1, default=str))


def first_process() -> bool:
    """True outside `accelerate launch` and in its first process: the one that locks and writes."""
    return os.environ.get("RANK", "0") == "0"


def model_config(experiment: Experiment, tokenizer: PreTrainedTokenizerBase) -> CXRCLIPConfig:
    """The model's configuration: encoders by name, sizes, and the tokenizer's vocabulary.

    A published text encoder keeps the size of its own vocabulary, also where it starts at random and uses fewer.
    """
    corner = Rules.of(experiment.rules).corner_token and experiment.image_encoder in SWINS  # ledger B8
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
    roles = tuple(role for role in data.mix.pretraining if role in data.folders)
    key = mixes.digest([data.fingerprints(roles), mixes.code_digest("prompts.yaml", "encoders.py")])
    folder = bench.build / "data" / f"tokenizer-{key}"
    with mixes.exclusive(folder):
        if not folder.is_dir():
            with studies.atomic_folder(folder) as partial:
                train_tokenizer(mixes.training_texts(data, bank)).save_pretrained(partial)
    return PreTrainedTokenizerFast.from_pretrained(folder)


def total_steps(experiment: Experiment, data: mixes.Prepared) -> int:
    """Optimiser updates of the experiment: `steps`, or `epochs` passes over the pretraining studies."""
    n = sum(len(used_studies(experiment, data, role, "train")) for role in experiment.pretraining)
    return experiment.steps or round(experiment.epochs * (n // experiment.batch_size))


def batches_for(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, tokenizer: PreTrainedTokenizerBase,
                config: CXRCLIPConfig) -> tuple[training.BatchMaker, Callable[[], Iterator]]:
    """Two makers of batches: training batches from a step on, and the fixed validation batches.

    Validation draws as training does, but always those of epoch 0: so two views and two prompts differ and no term
    is trivial in the loss that picks the checkpoint (ledger B5). Its batches are mixed whatever those of training.
    """
    train, valid = (pretraining_studies(experiment, data, bank, split, config) for split in ("train", "valid"))

    def make(step: int, rank: int, world_size: int) -> Iterator:
        order = EpochBatches(len(train), experiment.batch_size, experiment.seed, step, rank, world_size)
        order = arranged(order, train, total_steps(experiment, data), kind=experiment.batches,
                         report_share=experiment.report_share, reports_last=experiment.reports_last)
        return load_batches(train, order, tokenizer, experiment.max_tokens, loading_processes(world_size))

    def validation() -> Iterator:
        order = EpochBatches(len(valid), min(experiment.batch_size, len(valid)), seed=0)
        return load_batches(valid, order.first_epoch(), tokenizer, experiment.max_tokens)

    return make, validation


def loading_processes(world_size: int) -> int:
    """Processes that read films for one of `world_size` training processes; the batches are the same for any number.

    With a GPU the cores are shared out, at most 16 to each: it would wait for films. On a CPU reading takes its turn.
    """
    return min(16, (os.cpu_count() or 1) // world_size) if torch.cuda.is_available() else 0


def pretraining_studies(experiment: Experiment, data: mixes.Prepared, bank: PromptBank, split: str,
                        config: CXRCLIPConfig) -> StudyMix:
    """The pretraining roles' studies of one split, one after the other, each with its role's prompt rule."""
    kind = TrainTransform if experiment.augment else EvalTransform
    transform = kind(config.image_size, config.image_mean, config.image_std)
    rules = replace(Rules.of(experiment.rules), **({} if split == "valid" else {"trivial_validation": False}))
    rich = {role: oracle.rich_details(oracle.read_truth(data.folders[role]), bank)
            for role in experiment.pretraining if experiment.rich_prompts}
    return StudyMix([PretrainingDataset(used_studies(experiment, data, role, split), bank, transform,
                                        views=experiment.views, texts=experiment.texts,
                                        seed=experiment.seed if split == "train" else 0,
                                        max_negatives=data.mix.pretraining[role].max_negatives,
                                        draw=experiment.draw, augment=experiment.augment,
                                        contents=experiment.false_negatives != "keep",
                                        label_weight=experiment.label_weight, details=rich.get(role), rules=rules)
                     for role in experiment.pretraining])


def used_studies(experiment: Experiment, data: mixes.Prepared, role: str, split: str) -> Dataset:
    """The studies of a pretraining role and split that the experiment uses: of the training studies, its share.

    Under ledger D2 the training studies also hold the share of test studies that the mix says were seen.
    """
    found = data.studies(role, split)
    if split == "train" and Rules.of(experiment.rules).seen_films:
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


def origin(runs: Sequence[Run], command: str) -> dict[str, object]:
    """Where a figure of `runs` comes from, as figures.save_figure wants it: data, experiments, versions, command."""
    data = {role: mark for run in runs for role, mark in run.about["data"].items()}
    return {"data": data, "experiment": [run.fingerprint for run in runs], "versions": versions(), "command": command}


def versions() -> dict[str, str]:
    """Versions of what a number depends on."""
    names = ("cxrclip", "torch", "torchvision", "transformers", "numpy", "scikit-learn", "opencv-python-headless")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def evaluate(run: Run) -> pd.DataFrame:
    """Tidy rows (results.COLUMNS) of a run on every test role of its mix; found again by fingerprint.

    Embeddings and per-sample scores are stored beside them (Run.scores). Test roles with no data have no rows:
    their reasons are in `run.data.missing`.
    """
    folder = run.evaluation_folder
    with mixes.exclusive(folder):
        if not (folder / "results.csv").is_file():
            with _one_thread():
                roles = [role for role in run.data.mix.tests.values() if role.name in run.data.folders]
                parts = [_evaluate_role(run, role, folder) for role in roles]
            run.model.cpu()  # where Run.model is promised to be
            results.write_results(pd.concat(parts), folder / "results.csv")
    return results.read_results(folder / "results.csv")


def _evaluate_role(run: Run, role: mixes.Role, folder: Path) -> pd.DataFrame:
    """All tasks of one test role: per-sample scores to disk, tidy rows back."""
    about = run.row_columns(role.name)
    frames = {}
    images = _embedded(run, role, role.split, folder)
    if "zero-shot" in role.tasks:
        frames |= _zero_shot_frames(run, role, images)
    if "linear-probe" in role.tasks:
        frames |= _probe_frames(run, role, images, _embedded(run, role, "train", folder))
    rows = []
    for task, frame in frames.items():
        one_of_many = task == "zero-shot" and not any(negative for negative, _ in prompts_of(role).values())
        to_rows = results.accuracy_rows if one_of_many else results.auroc_rows
        rows.append(to_rows(frame, about, role.name, task))
    if "retrieval" in role.tasks:
        frames["retrieval"] = _retrieval_frame(run, role, images)
        rows.append(results.retrieval_rows(frames["retrieval"], about, role.name))
    for task, frame in frames.items():
        path = folder / "scores" / f"{role.name}-{task}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        frame.to_parquet(path)
    return pd.concat(rows)


def _embedded(run: Run, role: mixes.Role, split: str, folder: Path) -> evaluation.ImageEmbeddings:
    """Embed the studies of a role's split once, and store them."""
    path = folder / "embeddings" / f"{role.name}-{split}.npz"
    if not path.is_file():
        films = run.data.studies(role.name, split)
        evaluation.save_embeddings(evaluation.embed_studies(run.model, films, run.transform, device=run.device), path)
    return evaluation.load_embeddings(path)


def prompts_of(role: mixes.Role, ensemble: bool = False) -> Mapping:
    """The zero-shot texts of a test role, by class: the official ones, or several wordings of each."""
    return _bank().zero_shot(role.prompts + ("-ensemble" if ensemble else ""))


@lru_cache(maxsize=1)
def _bank() -> PromptBank:
    """The library's own prompts, read once a process: every task of every test role asks for them."""
    return PromptBank.load()


def _zero_shot_frames(run: Run, role: mixes.Role, images: evaluation.ImageEmbeddings) -> dict[str, pd.DataFrame]:
    """Scores of the official texts, and of an ensemble of wordings beside them where the prompts file has one."""
    tested = run.data.studies(role.name, role.split)
    tasks = {"zero-shot": prompts_of(role)}
    if f"{role.prompts}-ensemble" in _bank().tasks:
        tasks["zero-shot-ensemble"] = prompts_of(role, ensemble=True)
    frames = {}
    for task, prompts in tasks.items():
        embeds = evaluation.embed_prompts(run.model, run.tokenizer, prompts, max_tokens=run.experiment.max_tokens,
                                          device=run.device)
        paired = all(len(negative) for negative, _ in prompts.values())
        score = evaluation.zero_shot_scores if paired else evaluation.zero_shot_classes
        classes = list(prompts)
        frames[task] = evaluation.score_frame(images, classes, score(images.embeds, embeds),
                                              evaluation.targets(tested, classes))
    return frames


def _probe_frames(run: Run, role: mixes.Role, images: evaluation.ImageEmbeddings,
                  train: evaluation.ImageEmbeddings) -> dict[str, pd.DataFrame]:
    """Scores of linear probes on frozen features: five stratified draws of 10 % of the training studies, and all.

    By the official rules one draw, trained by AdamW (adamw_probe.py).
    """
    classes = list(prompts_of(role))
    rules = Rules.of(run.experiment.rules)
    learn, truth = (evaluation.targets(run.data.studies(role.name, split), classes) for split in ("train", role.split))
    features = train.features
    if rules.row_split:
        leaked = evaluation.leaked_rows(truth)
        features, learn = np.concatenate([features, images.features[leaked]]), np.concatenate([learn, truth[leaked]])
    frames = {}
    for task, fraction, draws in (("linear-probe-10", 0.1, 5), ("linear-probe-100", 1.0, 1)):
        if rules.adamw_probe:
            scores = adamw_probe(features, learn, images.features, fraction=fraction, rules=rules)
        else:
            scores = evaluation.linear_probe(features, learn, images.features, fraction=fraction, draws=draws)
        frames[task] = evaluation.score_frame(images, classes, scores, truth)
    return frames


def _retrieval_frame(run: Run, role: mixes.Role, images: evaluation.ImageEmbeddings) -> pd.DataFrame:
    """Ranks in both directions, over the studies that have a report."""
    studies = run.data.studies(role.name, role.split)
    rows, texts = evaluation.retrieval_texts(studies, Rules.of(run.experiment.rules))
    embeds = evaluation.embed_texts(run.model, run.tokenizer, texts, max_tokens=run.experiment.max_tokens,
                                    device=run.device)
    return pd.concat([evaluation.retrieve(images[rows], embeds, texts, direction)
                      for direction in evaluation.DIRECTIONS])


@contextmanager
def _one_thread() -> Iterator[None]:
    """Run torch on one CPU thread: the same sums in the same order, whatever else the machine does."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _without_weight_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file of weights: these are small and there are many."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
