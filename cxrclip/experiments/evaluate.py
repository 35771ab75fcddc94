"""Evaluating one run on every test role of its mix: embed once, score, and make tidy rows with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from cxrclip import evaluation
from cxrclip.data import mixes
from cxrclip.data.files import locked
from cxrclip.experiments.checkpoints import load_embeddings, save_embeddings
from cxrclip.experiments.workbench import Run, one_thread
from cxrclip.official.behaviours import Behaviours, leaked_rows, text_rule
from cxrclip.official.probe import adamw_probe
from cxrclip.prompts import PromptBank
from cxrclip.results.rows import read_results, write_results
from cxrclip.results.statistics import accuracy_rows, auroc_rows, retrieval_rows


def evaluate(run: Run) -> pd.DataFrame:
    """Tidy rows (results.COLUMNS) of a run on every test role of its mix; found again by its key.

    Embeddings and per-sample scores are stored beside them (Run.scores). Test roles with no data have no rows:
    their reasons are in `run.data.missing`.
    """
    folder = run.evaluation_folder
    with locked(folder):
        if not (folder / "results.csv").is_file():
            with one_thread():
                roles = [role for role in run.data.mix.tests.values() if role.name in run.data.folders]
                parts = [_evaluate_role(run, role, folder) for role in roles]
            run.model.cpu()  # where Run.model is promised to be
            write_results(pd.concat(parts), folder / "results.csv")
    return read_results(folder / "results.csv")


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
        to_rows = accuracy_rows if one_of_many else auroc_rows
        rows.append(to_rows(frame, about, role.name, task))
    if "retrieval" in role.tasks:
        frames["retrieval"] = _retrieval_frame(run, role, images)
        rows.append(retrieval_rows(frames["retrieval"], about, role.name))
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
        save_embeddings(evaluation.embed_studies(run.model, films, run.transform, device=run.device), path)
    return load_embeddings(path)


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

    By the official rules one draw, trained by AdamW (official/probe.py).
    """
    classes = list(prompts_of(role))
    released = Behaviours.of(run.experiment.rules)
    learn, truth = (evaluation.targets(run.data.studies(role.name, split), classes) for split in ("train", role.split))
    features = train.features
    if released.row_split:
        leaked = leaked_rows(truth)
        features, learn = np.concatenate([features, images.features[leaked]]), np.concatenate([learn, truth[leaked]])
    frames = {}
    for task, fraction, draws in (("linear-probe-10", 0.1, 5), ("linear-probe-100", 1.0, 1)):
        if released.adamw_probe:
            scores = adamw_probe(features, learn, images.features, fraction=fraction, behaviours=released)
        else:
            scores = evaluation.linear_probe(features, learn, images.features, fraction=fraction, draws=draws)
        frames[task] = evaluation.score_frame(images, classes, scores, truth)
    return frames


def _retrieval_frame(run: Run, role: mixes.Role, images: evaluation.ImageEmbeddings) -> pd.DataFrame:
    """Ranks in both directions, over the studies that have a report."""
    studies = run.data.studies(role.name, role.split)
    rows, texts = evaluation.retrieval_texts(studies, text_rule(Behaviours.of(run.experiment.rules)))
    embeds = evaluation.embed_texts(run.model, run.tokenizer, texts, max_tokens=run.experiment.max_tokens,
                                    device=run.device)
    return pd.concat([evaluation.retrieve(images[rows], embeds, texts, direction)
                      for direction in evaluation.DIRECTIONS])
