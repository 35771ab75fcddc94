"""Evaluation: embed once, then zero-shot classification, linear probe and retrieval (paper, section 3.2).

Everything here returns scores per sample. The tidy frames hold study_id, patient_id, class, score, target
(classification) or study_id, patient_id, rank, n_right, n_candidates, direction (retrieval); results/statistics.py
makes numbers and intervals from them.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from cxrclip import metrics
from cxrclip.data.images import decode_gray
from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.transforms import EvalTransform
from cxrclip.views import SECTIONS, Study

# Inverse L2 strength of the linear probe: the best of PROBE_GRID on a validation half of the phantom VinDr training
# studies, for features of an untrained encoder (choose_probe_c). Never chosen on a test set.
PROBE_C = 0.01
PROBE_GRID = (0.0001, 0.001, 0.01, 0.1, 1.0)
DIRECTIONS = ("image_to_text", "text_to_image")
Prompts = Mapping[str, tuple[np.ndarray, np.ndarray]]
RetrievalText = Callable[[Study], str]  # a study -> the text that retrieval looks for


@dataclass(frozen=True)
class ImageEmbeddings:
    """One image per study: study_ids and patient_ids (N,), features (N, F) before and embeds (N, D) after projection
    and L2 norm, both float32."""

    study_ids: np.ndarray
    patient_ids: np.ndarray
    features: np.ndarray
    embeds: np.ndarray

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitem__(self, rows: np.ndarray) -> ImageEmbeddings:
        """The embeddings of some rows (indices or a boolean mask), in that order."""
        return ImageEmbeddings(*(column[rows] for column in asdict(self).values()))


@contextmanager
def evaluating(model: CXRCLIPModel, device: str | torch.device) -> Iterator[None]:
    """The model on `device` and in evaluation mode; afterwards where and as it was."""
    before, training = model.device, model.training
    model.to(device).eval()  # type: ignore[arg-type]  # transformers wraps `to` and loses its types
    try:
        yield
    finally:
        model.to(before).train(training)  # type: ignore[arg-type]


@torch.inference_mode()
def embed_studies(model: CXRCLIPModel, studies: Dataset, transform: EvalTransform, batch_size: int = 128,
                  device: str | torch.device = "cpu") -> ImageEmbeddings:
    """Embed the first image of every study (the protocol of the official evaluation).

    Raises InputError naming the study for an image that cannot be read, and for a table without studies.
    """
    features, embeds = [], []
    with evaluating(model, device):
        for batch in first_images(studies, transform, batch_size):
            feature = model.encode_images(batch.to(device))                                         # (B, F)
            features.append(feature.float().cpu())
            embeds.append(F.normalize(model.image_projection(feature), dim=-1).float().cpu())       # (B, D)
    if not features:
        raise InputError("embed_studies: the table holds no studies: choose another split")
    return ImageEmbeddings(np.asarray(studies["study_id"], str), np.asarray(studies["patient_id"], str),
                           torch.cat(features).numpy(), torch.cat(embeds).numpy())


def films_of(studies: Dataset) -> Iterator[np.ndarray]:
    """The first image of every study, decoded: (H, W) uint8."""
    for study in studies.select_columns(["study_id", "images"]):
        yield decode_gray(study["images"][0]["bytes"], f"study {study['study_id']}, image 0")


def first_images(studies: Dataset, transform: EvalTransform, batch_size: int) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) of the first image of every study."""
    films = films_of(studies)
    while batch := list(itertools.islice(films, batch_size)):
        yield torch.stack([transform(film) for film in batch])


@torch.inference_mode()
def embed_texts(model: CXRCLIPModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], batch_size: int = 128,
                max_tokens: int = 256, device: str | torch.device = "cpu") -> np.ndarray:
    """Embed texts: (N, D) float32 unit rows, in the order given.

    Each distinct text is embedded once, and texts of like length share a batch, so little is spent on padding. Longer
    texts are cut at max_tokens. Raises InputError for an empty list or an empty text.
    """
    if not texts or not all(text.strip() for text in texts):
        raise InputError("embed_texts: no text, or an empty one: leave out studies without a report")
    distinct = sorted(set(texts), key=lambda text: (len(text), text))
    parts = []
    with evaluating(model, device):
        for start in range(0, len(distinct), batch_size):
            tokens = tokenizer(distinct[start:start + batch_size], padding=True, truncation=True,
                               max_length=max_tokens, return_tensors="pt").to(device)
            feature = model.encode_texts(tokens["input_ids"], tokens["attention_mask"])             # (B, F)
            parts.append(F.normalize(model.text_projection(feature), dim=-1).float().cpu())         # (B, D)
    position = {text: i for i, text in enumerate(distinct)}
    return torch.cat(parts).numpy()[[position[text] for text in texts]]


def embed_prompts(model: CXRCLIPModel, tokenizer: PreTrainedTokenizerBase,
                  prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]], **options: Any) -> Prompts:
    """Embed a zero-shot task of PromptBank.zero_shot: class -> (negative (P, D), positive (Q, D)); P may be 0."""
    texts = [text for sides in prompts.values() for side in sides for text in side]
    embeds = iter(embed_texts(model, tokenizer, texts, **options))
    width = model.config.projection_dim

    def take(side: Sequence[str]) -> np.ndarray:
        return np.array([next(embeds) for _ in side], np.float32).reshape(len(side), width)
    return {name: (take(negative), take(positive)) for name, (negative, positive) in prompts.items()}


# ---- classification -------------------------------------------------------------------------------------------------


def targets(studies: Dataset, classes: Sequence[str]) -> np.ndarray:
    """(N, K) bool: does the study's `positive` list name the class? Upper and lower case do not matter.

    A class that no study has is a column of False; results.auroc_rows names it and leaves it out of the mean.
    """
    column = {name.strip().casefold(): k for k, name in enumerate(classes)}
    table = np.zeros((len(studies), len(classes)), bool)
    for i, positive in enumerate(studies["positive"]):
        for name in positive:
            k = column.get(name.strip().casefold())
            if k is not None:
                table[i, k] = True
    return table


def zero_shot_scores(image_embeds: np.ndarray, prompts: Prompts) -> np.ndarray:
    """(N, K) probability of "X" against "no X": softmax over the two cosines of each class (the official protocol).

    image_embeds: (N, D) unit rows. prompts: class -> (negative (P, D), positive (Q, D)) unit rows; with several texts a
    side's cosine is the mean of its cosines. No temperature: it would not change any AUROC of a class.
    Raises InputError for a class that lacks a side.
    """
    lacking = [name for name, (negative, positive) in prompts.items() if not (len(negative) and len(positive))]
    if lacking:
        raise InputError(f"zero-shot: class {lacking[0]!r} lacks negative or positive texts: rank such classes against "
                         f"one another with zero_shot_classes")
    sides = [_mean_cosines(image_embeds, [pair[side] for pair in prompts.values()]) for side in (0, 1)]
    return 1.0 / (1.0 + np.exp(sides[0] - sides[1]))                            # softmax over two, its second entry


def zero_shot_classes(image_embeds: np.ndarray, prompts: Prompts) -> np.ndarray:
    """(N, K) mean cosine to each class's positive texts; the argmax is the class (the official CheXpert 5x200)."""
    return _mean_cosines(image_embeds, [positive for _, positive in prompts.values()])


def linear_probe(train_features: np.ndarray, train_targets: np.ndarray, test_features: np.ndarray, *,
                 fraction: float = 1.0, draws: int = 1, seed: int = 0, c: float = PROBE_C) -> np.ndarray:
    """Scores (draws, N_test, K) of logistic regressions on frozen features (before projection), one per class.

    Features are standardised by the training rows of the draw; c is the inverse L2 strength, fixed beforehand
    (choose_probe_c). fraction < 1 trains on `stratified_draw` of the training rows, one model a draw. Official: a
    linear layer by AdamW on one unstratified draw; the optimum of the convex problem is taken here instead.
    A class with one outcome in the draw has the constant score 0 (results.auroc_rows counts such classes).
    """
    if len(train_features) != len(train_targets):
        raise InputError(f"linear probe: {len(train_features)} rows of features, {len(train_targets)} of targets")
    scores = np.zeros((draws, len(test_features), train_targets.shape[1]))
    for draw in range(draws):
        rows = stratified_draw(train_targets, fraction, np.random.default_rng([seed, draw]))
        scaler = StandardScaler().fit(train_features[rows])
        train, test = scaler.transform(train_features[rows]), scaler.transform(test_features)
        for k, target in enumerate(train_targets[rows].T):
            if target.any() and not target.all():
                probe = LogisticRegression(C=c, max_iter=1000).fit(train, target)
                scores[draw, :, k] = probe.decision_function(test)
    return scores


def stratified_draw(train_targets: np.ndarray, fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Sorted row indices of a draw of fraction * N rows that keeps the classes' shares (multi-label).

    A plain form of iterative stratification (Sechidis et al., 2011): the rarest class first, as many of its rows as its
    share asks for and at least one; classes settled before count. Rows without any class fill the rest at random, so a
    class that has both outcomes in the whole nearly always has both in the draw.
    """
    n = len(train_targets)
    size = max(1, round(fraction * n))
    if size >= n:
        return np.arange(n)
    chosen, seen = np.zeros(n, bool), np.zeros(n, bool)
    counts = train_targets.sum(axis=0)
    for k in sorted(np.flatnonzero(counts), key=lambda k: counts[k]):
        wanted = max(1, round(fraction * counts[k])) - int(train_targets[chosen, k].sum())
        open_rows = rng.permutation(np.flatnonzero(train_targets[:, k] & ~seen))
        chosen[open_rows[:min(max(0, wanted), size - chosen.sum())]] = True
        seen |= train_targets[:, k]
    for rest in (np.flatnonzero(~seen), np.flatnonzero(seen & ~chosen)):
        open_rows = rng.permutation(rest)
        chosen[open_rows[:size - chosen.sum()]] = True
    return np.flatnonzero(chosen)


def choose_probe_c(train_features: np.ndarray, train_targets: np.ndarray, valid_features: np.ndarray,
                   valid_targets: np.ndarray, grid: Sequence[float] = PROBE_GRID) -> pd.DataFrame:
    """Mean AUROC on a validation split for each strength: columns c, auroc. Never call it with the test set."""
    return pd.DataFrame([(c, metrics.auroc(linear_probe(train_features, train_targets, valid_features, c=c)[0],
                                           valid_targets)) for c in grid], columns=["c", "auroc"])


def score_frame(images: ImageEmbeddings, classes: Sequence[str], scores: np.ndarray,
                test_targets: np.ndarray) -> pd.DataFrame:
    """Per-sample frame: study_id, patient_id, class, score, target, and draw where scores have draws.

    scores: (N, K), or (draws, N, K) of linear_probe; test_targets: (N, K).
    """
    stack = scores if scores.ndim == 3 else scores[None]                        # (draws, N, K)
    draws, n, k = stack.shape
    if (n, k) != test_targets.shape or n != len(images.study_ids) or k != len(classes):
        raise InputError(f"score_frame: scores {scores.shape}, targets {test_targets.shape}, {len(images.study_ids)} "
                         f"studies, {len(classes)} classes do not fit")
    frame = pd.DataFrame({
        "study_id": np.tile(np.repeat(images.study_ids, k), draws),
        "patient_id": np.tile(np.repeat(images.patient_ids, k), draws),
        "class": np.tile(np.asarray(classes, object), draws * n),
        "score": stack.reshape(-1),
        "target": np.tile(test_targets.reshape(-1), draws),
    })
    return frame if scores.ndim == 2 else frame.assign(draw=np.repeat(np.arange(draws), n * k))


def _mean_cosines(image_embeds: np.ndarray, texts: Iterable[np.ndarray]) -> np.ndarray:
    """(N, K): mean cosine of each image (N, D) with the K lists of texts (P_k, D), all unit rows."""
    return np.stack([(image_embeds @ side.T).mean(axis=1) for side in texts], axis=1)


# ---- retrieval ------------------------------------------------------------------------------------------------------


def retrieval_text(study: Study) -> str:
    """The longer of findings and impression, findings if equally long (official authors, issue #10).

    Empty if the study has neither.
    """
    return max((str(study[name] or "").strip() for name in SECTIONS), key=len)


def retrieval_texts(studies: Dataset, text_of: RetrievalText = retrieval_text) -> tuple[np.ndarray, list[str]]:
    """Rows of the studies that have a report, and their texts; the others cannot take part: count and report them."""
    columns = studies.select_columns(list(SECTIONS))
    texts = [text_of(study) for study in columns]
    rows = np.array([i for i, text in enumerate(texts) if text], int)
    return rows, [texts[i] for i in rows]


def retrieve(images: ImageEmbeddings, text_embeds: np.ndarray, texts: Sequence[str],
             direction: str = "image_to_text") -> pd.DataFrame:
    """Rank of the best right answer for every query: study_id, patient_id, rank, n_right, n_candidates, direction.

    images: N studies; text_embeds (N, D) and texts (N): their reports, row by row. Identical texts are one candidate,
    or one query that stands for its first study and has n_right right answers; ties share the mean rank
    (metrics.recall_at_k).
    """
    if not len(images) == len(text_embeds) == len(texts):
        raise InputError(f"retrieve: {len(images)} images, {len(text_embeds)} text embeddings, {len(texts)} texts: "
                         f"give one report for each image")
    found = metrics.recall_at_k(images.embeds, text_embeds, texts, direction=direction)
    studies_of = Counter(texts)
    to_text = direction == "image_to_text"
    return pd.DataFrame({"study_id": images.study_ids[found.rows], "patient_id": images.patient_ids[found.rows],
                         "rank": found.ranks, "n_right": [1 if to_text else studies_of[texts[i]] for i in found.rows],
                         "n_candidates": len(studies_of) if to_text else len(images), "direction": direction})


def ranked_reports(cosines: np.ndarray, texts: Sequence[str], own: int, top: int = 5) -> pd.DataFrame:
    """The best `top` reports for one film, and its own wherever it stands: rank, score, text, own.

    cosines: (N,) of the film with each text; own: its own row. Identical texts are one, as their first row.
    """
    first = {text: i for i, text in reversed(list(enumerate(texts)))}  # text -> its first row
    order = sorted(first.values(), key=lambda i: -cosines[i])
    rows = [(rank, float(cosines[i]), texts[i], texts[i] == texts[own]) for rank, i in enumerate(order, 1)]
    return pd.DataFrame([row for row in rows if row[0] <= top or row[3]], columns=["rank", "score", "text", "own"])
