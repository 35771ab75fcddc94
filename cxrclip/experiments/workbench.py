"""Where runs are made and kept: the workbench (folders, device), a finished run, and where its numbers come from."""

from __future__ import annotations

import ctypes
import json
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import logging

from cxrclip import evaluation, training
from cxrclip.data import mixes
from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.evaluation import ImageEmbeddings
from cxrclip.experiments import cache
from cxrclip.experiments.checkpoints import load_embeddings
from cxrclip.experiments.experiment import PROFILES, Experiment
from cxrclip.transforms import EvalTransform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc, malloc.h


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
    def key(self) -> str:
        """Hash of settings, data and stage versions: the run's name on disk and in every table."""
        return self.folder.name

    @cached_property
    def model(self) -> CXRCLIPModel:
        """The pretrained model, in evaluation mode, on the CPU."""
        with without_weight_bars():
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
        return training.start_accelerator(self.bench.device).device

    @property
    def transform(self) -> EvalTransform:
        """The evaluation transform that fits the model."""
        return EvalTransform(self.experiment.image_size, self.model.config.image_mean, self.model.config.image_std)

    def log(self) -> pd.DataFrame:
        """A row a step: loss terms, in-batch accuracies, learning rate; validation columns where they were read."""
        path = self.folder / "log.jsonl"
        try:
            return pd.read_json(path, lines=True)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: missing or damaged: delete the folder, and the run is trained again") from error

    @property
    def evaluation_folder(self) -> Path:
        """Where embeddings, per-sample scores and results of the mix's test roles are kept."""
        tests = {role.name: [role.tasks, role.prompts, role.split, self.data.fingerprints((role.name,))]
                 for role in self.data.mix.tests.values() if role.name in self.data.folders}
        return self.folder / f"evaluation-{cache.evaluation_key(tests)}"

    def scores(self, role: str, task: str) -> pd.DataFrame:
        """Per-sample scores of a test role; tasks: zero-shot, zero-shot-ensemble, linear-probe-10, -100, retrieval."""
        return pd.read_parquet(self.evaluation_folder / "scores" / f"{role}-{task}.parquet")

    def embeddings(self, role: str, split: str = "test") -> ImageEmbeddings:
        """The stored image embeddings of a test role."""
        return load_embeddings(self.evaluation_folder / "embeddings" / f"{role}-{split}.npz")

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) unit rows of N texts, by the run's model and tokenizer, on its device."""
        return evaluation.embed_texts(self.model, self.tokenizer, texts, max_tokens=self.experiment.max_tokens,
                                      device=self.device)

    def row_columns(self, role: str) -> dict[str, str]:
        """What every tidy row of this run says about its origin (results.ABOUT).

        Versions and commit are those of the code that trained it, and of the code that evaluates it here.
        """
        experiment, trained = self.experiment, self.about
        commits = [trained.get("commit", ""), cache.commit()]  # runs of before have none
        return {"run": experiment.run_name, "profile": experiment.profile, "mix": self.data.mix.name,
                "origin": "measured", "model": experiment.method, "image_encoder": experiment.image_encoder,
                "pretraining_data": ",".join(experiment.pretraining), "seeds": str(experiment.seed),
                "key": self.key, "data": self.data.fingerprints((role,))[role],
                "versions": cache.versions_text({**trained["stages"], **cache.stages("evaluation")}),
                "commit": " ".join(dict.fromkeys(filter(None, commits)))}

    @property
    def about(self) -> dict:
        """run.json: experiment, data, recipe, seconds, parameters, and what made it: stages, commit, software."""
        about = about_of(self.folder)
        if about is None:
            raise InputError(f"{self.folder}: run.json is missing or damaged: start again to finish the run anew")
        return about


def about_of(folder: Path) -> dict | None:
    """What run.json of a run's folder says; None where it is missing or damaged, for the run is not finished then."""
    try:
        about = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        return about if {"experiment", "data", "stages"} <= about.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def origin(runs: Sequence[Run], command: str, data: object = None) -> dict[str, object]:
    """Where a figure comes from, as figures.save_figure wants it.

    data: what the figure shows, if not the data of the runs; there need be no run then.
    """
    used = {role: mark for run in runs for role, mark in run.about["data"].items()}
    return {"data": data or used, "key": [run.key for run in runs], "versions": cache.versions_text(),
            "commit": cache.commit(), "software": software(), "command": command}


def software() -> dict[str, str]:
    """Versions of the software that a number depends on."""
    names = ("cxrclip", "torch", "torchvision", "transformers", "numpy", "scikit-learn", "opencv-python-headless")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch and OpenCV on one CPU thread: the same sums in the same order, whatever else the machine does; and
    on films of few pixels a second thread costs OpenCV more than it brings."""
    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step: otherwise each step's tensors are given back to the system and
    taken anew, page by page. Other allocators are left alone. The process then holds as much as its largest step."""
    if platform.libc_ver()[0] == "glibc":
        limit = 2**30  # bytes: tensors below come from the heap, and the heap shrinks only when so much lies idle
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, limit)
        ctypes.CDLL(None).mallopt(M_TRIM_THRESHOLD, limit)


@contextmanager
def without_weight_bars() -> Iterator[None]:
    """Keep transformers from drawing a bar for each file of weights: these are small and there are many."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
