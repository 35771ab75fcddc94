"""Evaluating one run on every test role of its mix: embed once, score, and make tidy rows with intervals."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from cxrclip import evaluation
from cxrclip.data import mixes
from cxrclip.data.files import digest, making
from cxrclip.encoders import CXRCLIPModel
from cxrclip.experiments.checkpoints import save_embeddings
from cxrclip.experiments.workbench import Run, one_thread
from cxrclip.official.behaviours import Behaviours, alphabetical_text, leaked_rows
from cxrclip.official.probe import adamw_probe
from cxrclip.prompts import PromptBank
from cxrclip.results.rows import read_results, together, write_results
from cxrclip.results.statistics import CAUSES, accuracy_rows, auroc_rows, doubtful, retrieval_rows

_bank = cache(PromptBank.load)  # the library's own prompts, read once a process: every task asks for them


def evaluate(run: Run, *, prompts: str | Path | None = None,
             probe_strength: float = evaluation.PROBE_C) -> pd.DataFrame:
    """Tidy rows (results.COLUMNS) of a run on every test role of its mix; found again by its key.

    Embeddings and per-sample scores are stored beside them (Run.scores). Test roles with no data have no rows:
    their reasons are in `run.data.missing`.

    prompts: another prompts file for the zero-shot texts. probe_strength: the inverse L2 strength of the linear
    probes. What is measured with another file or strength stands in a folder of its own, and `Run.scores` does not
    read it. Raises InputError for a file that holds no prompts.
    """
    folder, bank = run.evaluation_folder, PromptBank.load(prompts) if prompts else _bank()
    if prompts or probe_strength != evaluation.PROBE_C:
        text = Path(prompts).read_text(encoding="utf-8") if prompts else None
        folder = folder / digest({"prompts": text, "strength": probe_strength})
    with making(folder, (folder / "results.csv").is_file) as missing:
        if missing:
            with one_thread():
                roles = [role for role in run.data.mix.tests.values() if role.name in run.data.folders]
                parts = [_evaluate_role(run, role, folder, bank, probe_strength) for role in roles]
            write_results(rows := together(parts), folder / "results.csv")
            if lines := doubtful(rows):
                warnings.warn(f"{'; '.join(lines)}. The usual causes: {CAUSES}", stacklevel=2)
    return read_results(folder / "results.csv")


def _evaluate_role(run: Run, role: mixes.Role, folder: Path, bank: PromptBank, strength: float) -> pd.DataFrame:
    """All tasks of one test role: embeddings and per-sample scores to disk, tidy rows back."""
    about, frames, rows = run.row_columns(role.name), {}, []
    behaviours = Behaviours.of(run.experiment.rules)
    for split in (role.split, *(["train"] if "linear-probe" in role.tasks else [])):
        path = run.evaluation_folder / "embeddings" / f"{role.name}-{split}.npz"
        if not path.is_file():
            films = run.data.studies(role.name, split)
            save_embeddings(evaluation.embed_studies(run.model, films, run.transform, device=run.device), path)
    images = run.embeddings(role.name, role.split)
    if "zero-shot" in role.tasks:
        frames["zero-shot"] = zero_shot_frame(run, role, images, prompts_of(role, bank=bank))
        if f"{role.prompts}-ensemble" in bank.tasks:
            frames["zero-shot-ensemble"] = zero_shot_frame(run, role, images, prompts_of(role, True, bank))
    if "linear-probe" in role.tasks:
        frames |= {f"linear-probe-{100 * part:.0f}": probe_frame(run, role, part, behaviours, strength)
                   for part in (0.1, 1.0)}
    for task, frame in frames.items():
        to_rows = accuracy_rows if task == "zero-shot" and not paired(prompts_of(role, bank=bank)) else auroc_rows
        rows.append(to_rows(frame, about, role.name, task))
    if "retrieval" in role.tasks:
        text_of = alphabetical_text if behaviours.alphabetical_text else evaluation.retrieval_text
        frames["retrieval"] = retrieval_frame(run, role, evaluation.DIRECTIONS, text_of)
        rows.append(retrieval_rows(frames["retrieval"], about, role.name))
    (folder / "scores").mkdir(parents=True, exist_ok=True)
    for task, frame in frames.items():
        frame.to_parquet(folder / "scores" / f"{role.name}-{task}.parquet")
    return pd.concat(rows)


def prompts_of(role: mixes.Role, ensemble: bool = False, bank: PromptBank | None = None) -> Mapping:
    """The zero-shot texts of a test role, by class: the official ones, or several wordings of each."""
    return (bank or _bank()).zero_shot(role.prompts + ("-ensemble" if ensemble else ""))


def paired(prompts: Mapping) -> bool:
    """Has every class texts that deny it? Else classes are ranked against one another (CheXpert 5x200)."""
    return all(len(negative) for negative, _ in prompts.values())


def zero_shot_frame(run: Run, role: mixes.Role, images: evaluation.ImageEmbeddings, prompts: Mapping | None = None,
                    model: CXRCLIPModel | None = None) -> pd.DataFrame:
    """Per-sample zero-shot scores of a test role by `prompts`, its official texts if none are given.

    images: its test films. model: another model than the run's, which also embedded the films.
    """
    prompts = prompts or prompts_of(role)
    embeds = evaluation.embed_prompts(model or run.model, run.tokenizer, prompts, device=run.device,
                                      max_tokens=run.experiment.max_tokens)
    score = evaluation.zero_shot_scores if paired(prompts) else evaluation.zero_shot_classes
    truth = evaluation.targets(run.data.studies(role.name, role.split), list(prompts))
    return evaluation.score_frame(images, list(prompts), score(images.embeds, embeds), truth)


def probe_frame(run: Run, role: mixes.Role, fraction: float, behaviours: Behaviours,
                strength: float = evaluation.PROBE_C) -> pd.DataFrame:
    """Per-sample scores of linear probes on the stored features of a test role.

    The optimum, of five stratified draws of `fraction` of its training studies, or of all of them. With the
    released code's adamw_probe one draw, trained by AdamW (official/probe.py); with row_split some test studies are
    trained on, too.
    """
    classes = list(prompts_of(role))
    train, test = (run.embeddings(role.name, split) for split in ("train", role.split))
    learn, truth = (evaluation.targets(run.data.studies(role.name, split), classes) for split in ("train", role.split))
    features = train.features
    if behaviours.row_split:
        leaked = leaked_rows(truth)
        features, learn = np.concatenate([features, test.features[leaked]]), np.concatenate([learn, truth[leaked]])
    if behaviours.adamw_probe:
        scores = adamw_probe(features, learn, test.features, fraction=fraction, behaviours=behaviours)
    else:
        scores = evaluation.linear_probe(features, learn, test.features, fraction=fraction,
                                         draws=1 if fraction == 1 else 5, c=strength)
    return evaluation.score_frame(test, classes, scores, truth)


def retrieval_frame(run: Run, role: mixes.Role, directions: Sequence[str] = ("image_to_text",),
                    text_of: evaluation.RetrievalText = evaluation.retrieval_text,
                    keep: Callable[[int], np.ndarray] = np.arange) -> pd.DataFrame:
    """Per-sample ranks of a test role, over its studies that have a report.

    text_of: which text of a study is searched for. keep: n studies -> the positions of those that take part.
    """
    rows, texts = evaluation.retrieval_texts(run.data.studies(role.name, role.split), text_of)
    chosen = keep(len(rows))
    texts = [texts[i] for i in chosen]
    images, embeds = run.embeddings(role.name, role.split)[rows[chosen]], run.embed_texts(texts)
    return pd.concat([evaluation.retrieve(images, embeds, texts, direction) for direction in directions])
