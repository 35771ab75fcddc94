"""Metrics on hand-written cases, against slow references and scikit-learn; intervals on cases with a known answer."""

from __future__ import annotations

import itertools
import tracemalloc
from fractions import Fraction

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from cxrclip import metrics
from cxrclip.errors import InputError
from cxrclip.metrics import auroc, bootstrap, paired_bootstrap, recall_at_k, recall_ceiling


def embeds_with_scores(scores):
    """Images and texts whose products are `scores` (N, N): texts are the unit axes."""
    scores = np.asarray(scores, float)
    return scores, np.eye(scores.shape[1])


def slow_ranks(images, embeds, texts, direction):
    """Place of the best right candidate, averaged over all orders of the tied ones: candidate by candidate."""
    distinct = list(dict.fromkeys(texts))
    first = [texts.index(text) for text in distinct]
    ranks = []
    queries = range(len(images)) if direction == "image_to_text" else range(len(distinct))
    for q in queries:
        if direction == "image_to_text":
            scored = [(float(np.float32(images[q] @ embeds[row])), text == texts[q])
                      for row, text in zip(first, distinct, strict=True)]
        else:
            scored = [(float(np.float32(images[i] @ embeds[first[q]])), text == distinct[q])
                      for i, text in enumerate(texts)]
        best = max(score for score, right in scored if right)
        better = sum(score > best for score, _ in scored)
        tied = [right for score, right in scored if score == best]
        places = [Fraction(order.index(True) + 1) for order in set(itertools.permutations(tied))]
        ranks.append(float(better + sum(places) / len(places)))
    return np.array(ranks)


# ---- retrieval ------------------------------------------------------------------------------------------------------


def test_hand_written_matrix():
    images, texts = embeds_with_scores([[0.9, 0.1, 0.3, 0.2],    # first
                                        [0.8, 0.5, 0.1, 0.0],    # second
                                        [0.4, 0.3, 0.1, 0.2],    # fourth
                                        [0.1, 0.7, 0.2, 0.6]])   # second
    found = recall_at_k(images, texts, ["a", "b", "c", "d"], ks=(1, 2, 3, 4))
    assert found.ranks.tolist() == [1, 2, 4, 2]
    assert found.recall == {1: 0.25, 2: 0.75, 3: 0.75, 4: 1.0}
    assert found.mean_rank == 2.25
    back = recall_at_k(images, texts, ["a", "b", "c", "d"], ks=(1, 2), direction="text_to_image")
    assert back.ranks.tolist() == [1, 2, 3.5, 1]  # columns of the matrix; 0.1 is tied in the third
    assert back.recall == {1: 0.5, 2: 0.75}


def test_identical_texts_are_one_candidate():
    # Texts 0 and 2 are the same: image 2 finds its text at the first place, and image 1's text moves up by one.
    images, texts = embeds_with_scores([[0.9, 0.1, 0.9], [0.8, 0.5, 0.8], [0.7, 0.2, 0.7]])
    found = recall_at_k(images, texts, ["same", "other", "same"], ks=(1, 2))
    assert found.ranks.tolist() == [1, 2, 1]
    assert found.rows.tolist() == [0, 1, 2]


def test_identical_texts_are_one_query_and_its_best_image_counts():
    images, texts = embeds_with_scores([[0.1, 0.2, 0.1], [0.5, 0.1, 0.5], [0.9, 0.0, 0.9]])
    found = recall_at_k(images, texts, ["same", "other", "same"], direction="text_to_image")
    assert found.rows.tolist() == [0, 1]
    assert found.ranks.tolist() == [1, 2]  # image 2 before the others; image 1 after image 0


def test_ties_share_the_mean_rank():
    images, texts = embeds_with_scores([[0.5, 0.5, 0.5, 0.1], [0.5, 0.2, 0.9, 0.2],
                                        [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.9]])
    found = recall_at_k(images, texts, list("abcd"), ks=(1, 2))
    assert found.ranks.tolist() == [2, 3.5, 2.5, 1]
    assert found.recall == {1: 0.25, 2: 0.5}


def test_collapsed_model_is_at_chance():
    embeds = np.full((7, 33), 33 ** -0.5, np.float32)
    for direction in ("image_to_text", "text_to_image"):
        assert recall_at_k(embeds, embeds, list("abcdefg"), direction=direction).ranks.tolist() == [4.0] * 7


@pytest.mark.parametrize("n", [7, 13, 101])
def test_equal_candidates_tie_wherever_they_stand(n):
    """A matrix product may differ in its last bit from column to column; equal texts must tie all the same."""
    rng = np.random.default_rng(0)
    images, text = rng.normal(size=(n, 5 * n)), rng.normal(size=5 * n)
    for chunk_size in (1, 2, 5, n):
        found = recall_at_k(images, np.tile(text, (n, 1)), [str(i) for i in range(n)], chunk_size=chunk_size)
        assert found.ranks.tolist() == [(n + 1) / 2] * n


@pytest.mark.parametrize("direction", ["image_to_text", "text_to_image"])
@pytest.mark.parametrize("seed", range(4))
def test_slow_reference_with_ties_and_duplicates_for_all_chunk_sizes(direction, seed):
    rng = np.random.default_rng(seed)
    texts = [f"text {i}" for i in rng.integers(5, size=9)]
    table = {text: rng.integers(-1, 2, size=3) for text in texts}
    images, embeds = rng.integers(-1, 2, size=(9, 3)), np.array([table[text] for text in texts])
    slow = slow_ranks(images, embeds, texts, direction)
    for chunk_size in (1, 2, 4, 9, 100):
        found = recall_at_k(images, embeds, texts, direction=direction, chunk_size=chunk_size)
        assert found.ranks == pytest.approx(slow)
        assert found.mean_rank == pytest.approx(slow.mean())
        assert found.recall[5] == np.mean(slow <= 5)


def test_tensors_and_arrays_agree():
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(20, 6)).astype(np.float32) for _ in range(2))
    names = [str(i) for i in range(20)]
    from_arrays = recall_at_k(images, texts, names)
    from_tensors = recall_at_k(torch.tensor(images, requires_grad=True), torch.tensor(texts), names)
    assert from_arrays.ranks.tolist() == from_tensors.ranks.tolist()


def test_memory_is_bounded_by_the_chunk():
    n = 3000
    embeds = np.random.default_rng(0).normal(size=(n, 8))
    tracemalloc.start()
    recall_at_k(embeds, embeds, [str(i) for i in range(n)], chunk_size=50)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.2 * n * n * 8, "the whole score matrix must never be there"


@pytest.mark.parametrize(("images", "texts", "names", "message"), [
    (np.eye(3), np.eye(3)[:2], list("abc"), "one of each per study"),
    (np.eye(3), np.eye(3), list("ab"), "one of each per study"),
    (np.eye(0), np.eye(0), [], "at least one row"),
    (np.full((2, 2), np.nan), np.eye(2), list("ab"), "row 0 is not finite")])
def test_faulty_embeddings_are_named(images, texts, names, message):
    with pytest.raises(InputError, match=message):
        recall_at_k(images, texts, names)


def test_unknown_direction():
    with pytest.raises(InputError, match="choose image_to_text or text_to_image"):
        recall_at_k(np.eye(2), np.eye(2), ["a", "b"], direction="both")


def test_recall_ceiling_by_hand():
    # Normal: texts a, a, b, c; one effusion: d. One guess gets a, a and d; two get a, a, b (or c) and d.
    texts, contents = list("aabcd"), ["normal"] * 4 + ["effusion"]
    assert recall_ceiling(texts, contents, ks=(1, 2, 3)) == {1: 0.6, 2: 0.8, 3: 1.0}


def test_recall_ceiling_is_reached_by_the_oracle_and_by_no_other():
    rng = np.random.default_rng(0)
    contents = rng.integers(6, size=60)
    texts = [f"{c} {rng.integers(4)}" for c in contents]
    distinct = list(dict.fromkeys(texts))
    count = {text: texts.count(text) for text in distinct}
    text_embeds = np.eye(len(distinct))[[distinct.index(text) for text in texts]]
    oracle = np.array([[text.startswith(str(c)) * (1 + count[text] + 0.001 * u) for u, text in enumerate(distinct)]
                       for c in contents])
    ceiling = recall_ceiling(texts, contents.tolist(), ks=(1, 2, 3))
    assert recall_at_k(oracle, text_embeds, texts, ks=(1, 2, 3)).recall == pytest.approx(ceiling)
    for seed in range(20):
        blind = np.random.default_rng(seed).normal(size=(6, len(distinct)))[contents]
        found = recall_at_k(blind, text_embeds, texts, ks=(1, 2, 3)).recall
        assert all(found[k] <= ceiling[k] for k in ceiling)


def test_text_to_image_ceiling_is_that_of_a_perfect_reader_who_shuffles_what_looks_alike():
    """Slow reference: a model that ranks the best content first and shuffles its images, many times over."""
    # Contents: x holds a, a, b; y holds a, c, c, c, d. Text a: better begun in x (2 of 3) than in y (1 of 5).
    texts, contents = list("aabacccd"), list("xxxyyyyy")
    best = {"a": "x", "b": "x", "c": "y", "d": "y"}
    rng, hits, n = np.random.default_rng(0), dict.fromkeys((1, 2, 5), 0.0), 4000
    for text, content in best.items():
        block = [t for t, c in zip(texts, contents, strict=True) if c == content]
        for _ in range(n):
            first = list(rng.permutation(block)).index(text) + 1
            for k in hits:
                hits[k] += (first <= k) / (n * len(best))
    found = recall_ceiling(texts, contents, ks=(1, 2, 5), direction="text_to_image")
    assert found == pytest.approx(hits, abs=0.015)
    assert found[1] == pytest.approx((2 / 3 + 1 / 3 + 3 / 5 + 1 / 5) / 4)
    with pytest.raises(InputError, match="unknown direction"):
        recall_ceiling(texts, contents, direction="both")


def test_in_batch_accuracy():
    a = torch.eye(4)
    assert metrics.in_batch_accuracy(a, a) == 1
    assert metrics.in_batch_accuracy(a, a[[0, 1, 3, 2]]) == 0.5


# ---- classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_equals_scikit_learn(ties):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(200, 6))
    scores = np.round(scores) if ties else scores
    targets = rng.random((200, 6)) < rng.uniform(0.05, 0.6, 6)
    each = [roc_auc_score(targets[:, k], scores[:, k]) for k in range(6)]
    assert metrics.class_aurocs(scores, targets) == pytest.approx(each, abs=1e-12)
    assert auroc(scores, targets.astype(int)) == pytest.approx(np.mean(each), abs=1e-12)
    assert auroc(scores[:, 0], targets[:, 0]) == pytest.approx(each[0], abs=1e-12)
    assert auroc(torch.tensor(scores), torch.tensor(targets)) == pytest.approx(np.mean(each), abs=1e-12)


def test_auroc_by_hand():
    # Pairs of positive and negative: 0.8 > 0.1, 0.8 > 0.4, 0.4 > 0.1, 0.4 = 0.4: 3.5 of 4.
    assert auroc([0.1, 0.4, 0.4, 0.8], [0, 0, 1, 1]) == 0.875


def test_auroc_leaves_out_classes_with_one_outcome():
    scores = np.array([[0.1, 0.5], [0.9, 0.6]])
    targets = np.array([[0, 0], [1, 0]])
    assert np.isnan(metrics.class_aurocs(scores, targets)).tolist() == [False, True]
    assert auroc(scores, targets) == 1.0
    with pytest.raises(InputError, match="no class has both outcomes"):
        auroc([0.1, 0.2], [1, 1])


@pytest.mark.parametrize(("scores", "targets", "message"), [
    ([0.1, 0.2], [0, 1, 1], "give two of"), ([0.1, np.nan], [0, 1], r"score at \[1\] is not finite"),
    ([0.1, 0.2], [0, 2], r"target at \[1\] is not 0 or 1"), ([0.1, 0.2], [0, np.nan], "is not 0 or 1")])
def test_auroc_names_faults(scores, targets, message):
    with pytest.raises(InputError, match=message):
        auroc(scores, targets)


def test_accuracy():
    assert metrics.accuracy([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]], [1, 0, 0]) == pytest.approx(2 / 3)


# ---- intervals ------------------------------------------------------------------------------------------------------


def test_bootstrap_covers_the_mean_about_95_times_in_100():
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        value, low, high = bootstrap(np.mean, rng.normal(3.0, 1.0, size=60), n=200, seed=seed)
        assert low <= value <= high
        inside += low <= 3.0 <= high
    assert 0.90 <= inside / 200 <= 0.98


def test_bootstrap_of_the_mean_has_the_textbook_width():
    x = np.random.default_rng(1).normal(size=400)
    interval = bootstrap(np.mean, x)
    assert interval.value == x.mean()
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


def test_bootstrap_depends_on_the_seed_alone():
    x = np.random.default_rng(0).normal(size=50)
    assert bootstrap(np.mean, x, n=50) == bootstrap(np.mean, x, n=50) != bootstrap(np.mean, x, n=50, seed=1)


def test_rows_stay_together():
    x = np.arange(30)
    assert bootstrap(lambda a, b: float(np.array_equal(a, -b)), x, -x, n=20) == (1, 1, 1)


def test_groups_are_drawn_whole():
    groups = np.array(["p", "q", "p", "r", "q", "p"])
    x = np.arange(6)
    sets = {"p": {0, 2, 5}, "q": {1, 4}, "r": {3}}
    seen = []

    def keep(rows):
        seen.append(np.bincount(rows, minlength=6))
        return 0.0

    bootstrap(keep, x, n=40, groups=groups)
    assert len(seen) == 40 + 1
    for counts in seen:
        assert all(len({counts[row] for row in rows}) == 1 for rows in sets.values())
        assert sum(counts[min(rows)] for rows in sets.values()) == 3  # three patients are drawn


def test_repeated_rows_of_a_patient_do_not_narrow_the_interval():
    x = np.random.default_rng(0).normal(size=100)
    once = bootstrap(np.mean, x)
    naive = bootstrap(np.mean, np.repeat(x, 4))
    grouped = bootstrap(np.mean, np.repeat(x, 4), groups=np.repeat(np.arange(100), 4))
    width = [interval.high - interval.low for interval in (once, naive, grouped)]
    assert width[2] == pytest.approx(width[0])
    assert width[1] < 0.6 * width[0]


def test_resamples_without_a_value_are_drawn_again():
    scores, targets = np.arange(8.0), np.array([0] * 7 + [1])
    drawn = []

    def keep(a, b):
        drawn.append(b.any())
        return auroc(a, b)

    assert not np.isnan(bootstrap(keep, scores, targets, n=100)).any()
    assert sum(drawn) == 100 + 1
    assert 30 <= len(drawn) - sum(drawn) <= 90  # (7/8)^8 = 0.34 of the resamples lack the positive: 52 expected
    with pytest.raises(InputError, match=r"only 0 of 21 resamples"):
        bootstrap(auroc, scores, np.zeros(8), n=20)


def test_bootstrap_does_not_hide_other_faults():
    def broken(x):
        raise ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        bootstrap(broken, np.arange(3))
    with pytest.raises(InputError, match=r"\[3, 4\] rows"):
        bootstrap(np.mean, np.arange(3), groups=np.arange(4))
    with pytest.raises(InputError, match="at least one"):
        bootstrap(np.mean, np.arange(0))


def test_paired_bootstrap_sees_what_single_intervals_hide():
    rng = np.random.default_rng(0)
    targets = rng.random(300) < 0.4
    common = rng.normal(size=300) + targets
    a, b = common + 0.05 * rng.normal(size=300) + 0.1 * targets, common + 0.05 * rng.normal(size=300)
    difference = paired_bootstrap(auroc, a, b, targets, n=400)
    assert difference.value == pytest.approx(auroc(a, targets) - auroc(b, targets))
    assert difference.low > 0
    assert bootstrap(auroc, a, targets, n=100).low < bootstrap(auroc, b, targets, n=100).high
    assert paired_bootstrap(auroc, a, a, targets, n=20) == (0, 0, 0)
    flipped = paired_bootstrap(auroc, b, a, targets, n=400)
    assert (flipped.low, flipped.high) == pytest.approx((-difference.high, -difference.low))


# ---- many comparisons


def holm_rejections(p_values, level):
    """Slow reference: step down from the smallest p, compare it with level / tests left, stop at the first failure."""
    rejected = set()
    for i in sorted(range(len(p_values)), key=lambda i: p_values[i]):
        if p_values[i] > level / (len(p_values) - len(rejected)):
            break
        rejected.add(i)
    return rejected


def test_holm_rejects_what_stepping_down_rejects_at_every_level():
    rng = np.random.default_rng(0)
    for size in (1, 2, 5, 12):
        p = np.round(rng.random(size) ** 3, 3)
        adjusted = metrics.holm(p)
        for level in np.linspace(0.0005, 0.9995, 200):
            assert set(np.flatnonzero(adjusted <= level)) == holm_rejections(p, level)
    np.testing.assert_allclose(metrics.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    with pytest.raises(InputError, match="from 0 to 1"):
        metrics.holm([0.1, np.nan])
