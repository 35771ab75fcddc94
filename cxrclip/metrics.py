"""Metrics and their intervals: pure functions on arrays (paper, section 3: AUROC, accuracy, R@k).

N samples, K classes, D embedding dimensions. Tensors are accepted wherever arrays are; results are NumPy or float.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from cxrclip.errors import InputError

if TYPE_CHECKING:  # tables and verdicts need no torch, whose import takes seconds
    from torch import Tensor

Statistic = Callable[..., float]


class Retrieval(NamedTuple):
    """ranks (Q,) float, 1 is best; rows (Q,) int, the input row that each query came from; recall k -> share of
    queries with rank <= k; mean_rank their mean."""

    ranks: np.ndarray
    recall: Mapping[int, float]
    mean_rank: float
    rows: np.ndarray


class Interval(NamedTuple):
    """A value and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


# ---- retrieval ------------------------------------------------------------------------------------------------------


def recall_at_k(image_embeds: ArrayLike | Tensor, text_embeds: ArrayLike | Tensor, texts: Sequence[str],
                ks: Sequence[int] = (1, 5, 10), direction: str = "image_to_text",
                chunk_size: int = 256) -> Retrieval:
    """R@k and mean rank of N image-text pairs; row i of both embeddings and texts[i] are one study.

    Identical texts are one text, embedded as its first row (official protocol: identical texts merged).
    image_to_text: N queries; the candidates are the U distinct texts, one of them right.
    text_to_image: U queries; the candidates are the N images; every image with that text is right and the best
    placed counts, as usual where a query has several right answers (Karpathy and Fei-Fei, 2015).
    Ties share the mean rank: the right answer's expected place if tied candidates were shuffled. Scores are cosines
    rounded to float32 after a float64 product, so that equal candidates tie in any chunk.

    image_embeds, text_embeds: (N, D) unit rows. chunk_size: queries scored at a time; beside the embeddings in float64,
    memory is 8 bytes * chunk_size * candidates. Raises InputError for unequal lengths, no rows, values that are not
    finite, or an unknown direction.
    """
    images, distinct = _embeddings(image_embeds, "image"), _embeddings(text_embeds, "text")
    if images.shape != distinct.shape or len(texts) != len(images):
        raise InputError(f"recall_at_k: {images.shape} image and {distinct.shape} text embeddings, {len(texts)} "
                         "texts: give one of each per study")
    number = {text: u for u, text in enumerate(dict.fromkeys(texts))}     # distinct text -> u
    text_of_row = np.array([number[text] for text in texts])              # (N,)
    first_row = np.unique(text_of_row, return_index=True)[1]              # (U,)
    text_of_distinct = np.arange(len(first_row))
    if len(first_row) < len(distinct):
        distinct = distinct[first_row]                                    # (U, D)
    if direction == "image_to_text":
        rows = np.arange(len(images))
        ranks = _ranks(images, distinct, text_of_row, text_of_distinct, chunk_size)
    elif direction == "text_to_image":
        rows = first_row
        ranks = _ranks(distinct, images, text_of_distinct, text_of_row, chunk_size)
    else:
        raise InputError(f"recall_at_k: unknown direction {direction!r}: choose image_to_text or text_to_image")
    return Retrieval(ranks, {k: float(np.mean(ranks <= k)) for k in ks}, float(ranks.mean()), rows)


def recall_ceiling(texts: Sequence[str], contents: Sequence[Hashable], ks: Sequence[int] = (1, 5, 10),
                   direction: str = "image_to_text") -> dict[int, float]:
    """The highest R@k (identical texts merged) of any model that sees only `contents` in an image; no exact ties.

    contents[i]: what the image of study i shows as far as a model could know it, such as its findings with side and
    zone. Images of equal content are alike to the model, so normal studies cannot be told apart even by a perfect
    reader.
    image_to_text: they get the same ranking; best is to put the texts most frequent among them first, so
    R@k <= 1/N sum over contents of the counts of their k most frequent texts.
    text_to_image: they come in random order; best is to begin with the content whose first k images most likely hold
    one with the query's text. Raises InputError for unequal lengths, no rows or an unknown direction.
    """
    if not len(texts) or len(texts) != len(contents):
        raise InputError(f"recall_ceiling: {len(texts)} texts, {len(contents)} contents: give one of each per study")
    pairs, sizes = Counter(zip(texts, contents, strict=True)), Counter(contents)
    if direction == "image_to_text":
        counts: dict[Hashable, list[int]] = defaultdict(list)
        for (_, content), n in pairs.items():
            counts[content].append(n)
        return {k: sum(sum(sorted(count)[-k:]) for count in counts.values()) / len(texts) for k in ks}
    if direction != "text_to_image":
        raise InputError(f"recall_ceiling: unknown direction {direction!r}: choose image_to_text or text_to_image")
    best: dict[tuple[str, int], float] = defaultdict(float)
    for (text, content), right in pairs.items():
        for k in ks:
            best[text, k] = max(best[text, k], float(chance_of_hit(right, sizes[content], k)))
    distinct = set(texts)
    return {k: sum(best[text, k] for text in distinct) / len(distinct) for k in ks}


def chance_of_hit(right: ArrayLike, candidates: ArrayLike, k: int) -> np.ndarray:
    """(Q,) probability that k of the `candidates`, drawn without replacement, hold one of the `right` ones.

    right, candidates: (Q,) counts of each query, or one count each.
    """
    right, candidates = np.asarray(right, float), np.asarray(candidates, float)
    missed = np.ones(np.broadcast(right, candidates).shape)
    for j in range(k):
        missed = missed * np.clip((candidates - right - j) / np.maximum(candidates - j, 1), 0, 1)
    return 1 - missed


def in_batch_accuracy(a: Tensor, b: Tensor, first: int = 0) -> Tensor:
    """Share of rows of `a` (R, D) whose most similar row of `b` (B, D) is their own, R@1 within the batch: a scalar.

    `a` are the rows from `first` on of the batch.
    """
    import torch
    return (a @ b.T).argmax(dim=1).eq(torch.arange(first, first + len(a), device=a.device)).float().mean()


def _ranks(queries: np.ndarray, candidates: np.ndarray, text_of_query: np.ndarray, text_of_candidate: np.ndarray,
           chunk_size: int) -> np.ndarray:
    """(Q,) rank of the best right candidate: 1 + better + tied / (right + 1), the expected place among the tied."""
    ranks = np.empty(len(queries))
    by_text = np.argsort(text_of_candidate, kind="stable")
    ends = np.cumsum(np.bincount(text_of_candidate))
    products = np.empty((min(chunk_size, len(queries)), len(candidates)))     # (C, M), used again: new pages cost time
    for start in range(0, len(queries), chunk_size):
        part = queries[start:start + chunk_size]
        np.matmul(part, candidates.T, out=products[:len(part)])
        for query, (text, scores) in enumerate(zip(text_of_query[start:], products[:len(part)], strict=False), start):
            row = scores.astype(np.float32)
            right = row[by_text[ends[text - 1] if text else 0:ends[text]]]
            best = right.max()
            n_right = np.count_nonzero(right == best)
            others = np.count_nonzero(row == best) - n_right
            ranks[query] = 1 + np.count_nonzero(row > best) + others / (n_right + 1)
    return ranks


def _embeddings(embeds: ArrayLike | Tensor, name: str) -> np.ndarray:
    array = _array(embeds).astype(np.float64)
    if array.ndim != 2 or not len(array):
        raise InputError(f"{name} embeddings of shape {array.shape}: give (N, D) with at least one row")
    if not np.isfinite(array).all():
        row = np.flatnonzero(~np.isfinite(array).all(axis=1))[0]
        raise InputError(f"{name} embeddings: row {row} is not finite: look at what made it")
    return array


# ---- classification -------------------------------------------------------------------------------------------------


def auroc(scores: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Probability that a positive scores above a negative, ties counting half; the mean over classes.

    scores: (N,) or (N, K); targets: the same shape, 0/1 or bool. Classes with one outcome only are left out of the
    mean (class_aurocs has them as NaN). Raises InputError if no class has both outcomes.
    """
    values = class_aurocs(scores, targets)
    if np.isnan(values).all():
        raise InputError("auroc: no class has both outcomes: look at the targets")
    return float(np.nanmean(values))


def class_aurocs(scores: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> np.ndarray:
    """(K,) AUROC of each class, NaN where a class has one outcome only. Shapes as for auroc, K = 1 for (N,).

    From the ranks: (R+ - P (P + 1) / 2) / (P (N - P)), where R+ is the sum of the P positives' ranks (Mann-Whitney).
    """
    scores, positive = _array(scores), _array(targets)
    if scores.shape != positive.shape or scores.ndim not in (1, 2):
        raise InputError(f"auroc: scores {scores.shape}, targets {positive.shape}: give two of (N,) or of (N, K)")
    if not np.isfinite(scores).all():
        raise InputError(f"auroc: the score at {np.argwhere(~np.isfinite(scores))[0].tolist()} is not finite")
    if positive.dtype != bool and not np.isin(positive, (0, 1)).all():
        raise InputError(f"auroc: the target at {np.argwhere(~np.isin(positive, (0, 1)))[0].tolist()} is not 0 or 1")
    n = len(scores)
    ranks = rankdata(scores.reshape(n, -1), axis=0)                       # (N, K), ties share their mean rank
    positive = positive.reshape(n, -1).astype(bool)                       # (N, K)
    p = positive.sum(axis=0)                                              # (K,)
    with np.errstate(invalid="ignore"):
        return (ranks.sum(axis=0, where=positive) - p * (p + 1) / 2) / (p * (n - p))


def accuracy(scores: ArrayLike | Tensor, targets: ArrayLike | Tensor) -> float:
    """Share of rows of scores (N, K) whose highest score is at the class number targets (N,)."""
    return float(np.mean(_array(scores).argmax(axis=1) == _array(targets)))


# ---- texts that say the same ----------------------------------------------------------------------------------------


def collision_probability(contents: Iterable[Hashable]) -> float:
    """Probability that two random studies carry the same content: sum_k n_k (n_k - 1) / (N (N - 1))."""
    counts = Counter(contents)
    if (n := counts.total()) < 2:
        raise InputError(f"collision_probability: {n} contents: give at least two")
    return sum(count * (count - 1) for count in counts.values()) / (n * (n - 1))


# ---- intervals ------------------------------------------------------------------------------------------------------


def bootstrap(statistic: Statistic, *arrays: ArrayLike | Tensor, n: int = 1000, seed: int = 0,
              groups: Sequence[Hashable] | np.ndarray | None = None) -> Interval:
    """statistic(*arrays) with its percentile interval over n resamples of the rows, or of whole groups.

    arrays: N rows each, resampled together. groups: (N,) ids such as patient ids; rows of one patient are not
    independent, so patients are drawn, with all their rows. A resample is drawn again if the statistic raises
    InputError or is NaN on it, as AUROC is without positives. Raises InputError for arrays of different length, and
    when more than n resamples had to be drawn again.
    """
    columns = [_array(array) for array in arrays]
    sizes = [len(column) for column in columns] + ([] if groups is None else [len(groups)])
    if not columns or len(set(sizes)) != 1 or not sizes[0]:
        raise InputError(f"bootstrap: arrays and groups of {sizes} rows: give the same number of rows, at least one")
    number = np.arange(sizes[0]) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    members = np.split(np.argsort(number, kind="stable"), np.cumsum(np.bincount(number))[:-1])    # rows of each group
    values: list[float] = []
    for drawn, chosen in enumerate(resamples(len(members), seed)):
        if len(values) == n:
            break
        if drawn - len(values) > n:
            raise InputError(f"bootstrap: only {len(values)} of {drawn} resamples have a value: too few samples")
        rows = np.concatenate([members[group] for group in chosen])
        value = _value_or_nan(statistic, [column[rows] for column in columns])
        values += [] if np.isnan(value) else [value]
    low, high = np.percentile(values, (2.5, 97.5))
    return Interval(float(statistic(*columns)), float(low), float(high))


def resamples(groups: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap resamples without end: (G,) numbers of the groups (patients), drawn with replacement from all G.

    Every interval of this project is drawn here: `bootstrap` repeats rows, results.statistics weighs them.
    """
    rng = np.random.default_rng(seed)
    while True:
        yield rng.integers(groups, size=groups)


def paired_bootstrap(statistic: Statistic, scores_a: ArrayLike | Tensor, scores_b: ArrayLike | Tensor,
                     *arrays: ArrayLike | Tensor, n: int = 1000, seed: int = 0,
                     groups: Sequence[Hashable] | np.ndarray | None = None) -> Interval:
    """statistic(scores_a, *arrays) - statistic(scores_b, *arrays), both on the same resamples.

    scores_a, scores_b: N rows each, two models on the same samples. An interval that leaves out 0 says that one is
    better on such samples; two overlapping intervals of single models do not say the contrary.
    """
    def difference(a: np.ndarray, b: np.ndarray, *rest: np.ndarray) -> float:
        return statistic(a, *rest) - statistic(b, *rest)
    return bootstrap(difference, scores_a, scores_b, *arrays, n=n, seed=seed, groups=groups)


def holm(p_values: ArrayLike) -> np.ndarray:
    """(M,) p-values adjusted for M tests looked at together (Holm, 1979): reject those at or below the level.

    The i-th smallest p becomes the largest of (M - j + 1) p_(j) over j <= i, at most 1. The chance of any false
    rejection then stays below the level, whatever the tests have in common. Raises InputError for values outside 0..1.
    """
    p = _array(p_values).astype(float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"holm: p-values {p.tolist()}: give a list of numbers from 0 to 1")
    order = np.argsort(p, kind="stable")
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def _value_or_nan(statistic: Statistic, resample: list[np.ndarray]) -> float:
    try:
        return float(statistic(*resample))
    except InputError:
        return np.nan


def _array(values: ArrayLike | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
