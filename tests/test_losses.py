"""Each loss against a slow loop written from the formula, gradients included; and two processes against one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch.nn import functional as F

from cxrclip.errors import InputError
from cxrclip.experiments.remedies import MarkedLoss, marked_info_nce
from cxrclip.losses import (
    CXRCLIPLoss,
    LossTerms,
    image_contrastive,
    info_nce,
    multi_view_supervision,
    symmetric_info_nce,
    text_contrastive,
)


def unit_rows(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=dtype), dim=-1).requires_grad_()


def loop_info_nce(a, b, s):
    """-1/B sum_i log( exp(s a_i.b_i) / sum_j exp(s a_i.b_j) ), number by number."""
    total = 0
    for i in range(len(a)):
        own = torch.exp(s * (a[i] * b[i]).sum())
        every = sum(torch.exp(s * (a[i] * b[j]).sum()) for j in range(len(b)))
        total = total - torch.log(own / every)
    return total / len(a)


def loop_symmetric(a, b, s):
    return (loop_info_nce(a, b, s) + loop_info_nce(b, a, s)) / 2


def loop_total(x, t, s, icl_weight, tcl_weight):
    pairs = [(v, w) for v in range(len(x)) for w in range(len(t))]
    mvs = sum(loop_symmetric(x[v], t[w], s) for v, w in pairs) / len(pairs)
    icl = loop_symmetric(x[0], x[1], s) if len(x) == 2 else torch.zeros(())
    tcl = loop_symmetric(t[0], t[1], s) if len(t) == 2 else torch.zeros(())
    return mvs + icl_weight * icl + tcl_weight * tcl, mvs, icl, tcl


def assert_same_value_and_gradient(fast, slow, *inputs):
    torch.testing.assert_close(fast, slow)
    for one, other in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("fast", "slow"), [(info_nce, loop_info_nce), (symmetric_info_nce, loop_symmetric)])
def test_info_nce_is_the_formula(fast, slow):
    a, b = unit_rows(5, 7), unit_rows(5, 7, seed=1)
    s = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    assert_same_value_and_gradient(fast(a, b, s), slow(a, b, s), a, b, s)


def test_info_nce_by_hand():
    # Cosines [[1, 0], [0.6, 0.8]], s = 2: rows give log(1 + e^-2) and log(1 + e^-0.4).
    a = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    b = torch.eye(2)
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-0.4))) / 2
    assert info_nce(a, b, 2.0).item() == pytest.approx(expected, abs=1e-6)
    assert info_nce(b, a, 2.0).item() != pytest.approx(expected, abs=1e-3), "the direction must matter"


def test_chance_is_log_b():
    same = unit_rows(1, 4).expand(6, 4)
    assert symmetric_info_nce(same, same, 14.0).item() == pytest.approx(math.log(6))


@pytest.mark.parametrize(("views", "texts"), [(1, 1), (1, 2), (2, 1), (2, 2)])
@pytest.mark.parametrize(("icl_weight", "tcl_weight"), [(1.0, 0.5), (0.3, 0.0)])
def test_total_is_the_weighted_sum_of_the_loops(views, texts, icl_weight, tcl_weight):
    x = unit_rows(views, 4, 6, dtype=torch.float32)
    t = unit_rows(texts, 4, 6, seed=1, dtype=torch.float32)
    s = torch.tensor(5.0, requires_grad=True)
    terms = CXRCLIPLoss(icl_weight, tcl_weight)(x, t, s)
    slow = loop_total(x, t, s, icl_weight, tcl_weight)
    torch.testing.assert_close(torch.stack(list(terms)), torch.stack(slow))
    assert_same_value_and_gradient(terms.total, slow[0], x, t, s)


def test_terms_are_the_papers():
    x, t = unit_rows(2, 3, 5), unit_rows(2, 3, 5, seed=1)
    four = [loop_symmetric(x[0], t[0], 3.0), loop_symmetric(x[1], t[0], 3.0),
            loop_symmetric(x[0], t[1], 3.0), loop_symmetric(x[1], t[1], 3.0)]
    torch.testing.assert_close(multi_view_supervision(x, t, 3.0), sum(four) / 4)
    torch.testing.assert_close(image_contrastive(x, 3.0), loop_symmetric(x[0], x[1], 3.0))
    torch.testing.assert_close(text_contrastive(t, 3.0), loop_symmetric(t[0], t[1], 3.0))


def test_one_view_and_one_text_is_plain_clip():
    x, t = unit_rows(1, 4, 6, dtype=torch.float32), unit_rows(1, 4, 6, seed=1, dtype=torch.float32)
    terms = CXRCLIPLoss()(x, t, 10.0)
    assert isinstance(terms, LossTerms)
    assert terms.icl == terms.tcl == 0
    torch.testing.assert_close(terms.total, loop_symmetric(x[0], t[0], 10.0))


def test_float32_whatever_the_autocast():
    x, t = unit_rows(2, 8, 16, dtype=torch.float32), unit_rows(2, 8, 16, seed=1, dtype=torch.float32)
    plain = CXRCLIPLoss()(x, t, torch.tensor(20.0))
    with torch.autocast("cpu", torch.bfloat16):
        inside = CXRCLIPLoss()(x, t, torch.tensor(20.0))
        half = CXRCLIPLoss()(x.bfloat16(), t.bfloat16(), torch.tensor(20.0, dtype=torch.bfloat16))
    assert torch.equal(torch.stack(list(plain)), torch.stack(list(inside)))
    assert half.total.dtype == torch.float32


@pytest.mark.parametrize(("image_shape", "text_shape"), [
    ((3, 4, 5), (2, 4, 5)), ((4, 5), (4, 5)), ((2, 4, 5), (2, 3, 5)), ((2, 4, 5), (2, 4, 6)), ((0, 4, 5), (1, 4, 5))])
def test_other_shapes_are_refused(image_shape, text_shape):
    with pytest.raises(InputError, match="give \\(V, B, D\\)"):
        CXRCLIPLoss()(torch.zeros(image_shape), torch.zeros(text_shape), 1.0)


# ---- switches: false negatives, weights, one pair --------------------------------------------------------------------

CONTENT = torch.tensor([7, -3, 7, 7, 2**62])  # studies 0, 2 and 3 say the same
WEIGHT = torch.tensor([1.0, 0.25, 1.0, 0.5, 0.25])


def loop_marked(a, b, s, rule="keep", content=CONTENT, weight=None):
    """Row by row: who is in the denominator, who shares the target, and what the row counts."""
    weight = torch.ones(len(a)) if weight is None else weight
    total = 0
    for i in range(len(a)):
        alike = [j for j in range(len(b)) if content[j] == content[i]]
        rivals = [j for j in range(len(b)) if rule != "mask" or j == i or j not in alike]
        targets = alike if rule == "soft" else [i]
        every = sum(torch.exp(s * (a[i] * b[j]).sum()) for j in rivals)
        row = sum(-torch.log(torch.exp(s * (a[i] * b[j]).sum()) / every) for j in targets) / len(targets)
        total = total + weight[i] * row
    return total / weight.sum()


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("rule", ["keep", "mask", "soft"])
def test_marked_info_nce_is_the_loop(rule, weight):
    a, b = unit_rows(5, 7), unit_rows(5, 7, seed=1)
    s = torch.tensor(4.0, dtype=torch.float64, requires_grad=True)
    same = None if rule == "keep" else CONTENT[:, None] == CONTENT
    fast = marked_info_nce(a, b, s, same=same, soft=rule == "soft", weight=weight)
    assert_same_value_and_gradient(fast, loop_marked(a, b, s, rule, weight=weight), a, b, s)


def test_masked_by_hand():
    # Cosines [[1, 0], [0.6, 0.8]]; both say the same, so neither has a negative left: the loss is 0. With half of
    # the target each, s = 2: rows log(1 + e^-2) + 1 and log(1 + e^-0.4) + 0.2.
    a, b, same = torch.tensor([[1.0, 0.0], [0.6, 0.8]]), torch.eye(2), torch.ones(2, 2, dtype=torch.bool)
    assert marked_info_nce(a, b, 2.0, same=same).item() == pytest.approx(0, abs=1e-7)
    soft = (math.log1p(math.exp(-2)) + 1 + math.log1p(math.exp(-0.4)) + 0.2) / 2
    assert marked_info_nce(a, b, 2.0, same=same, soft=True).item() == pytest.approx(soft, abs=1e-6)


@pytest.mark.parametrize("rule", ["keep", "mask", "soft"])
def test_switches_reach_every_term(rule):
    x, t = unit_rows(2, 5, 6, dtype=torch.float32), unit_rows(2, 5, 6, seed=1, dtype=torch.float32)
    s = torch.tensor(5.0, requires_grad=True)

    def loop(a, b):
        return (loop_marked(a, b, s, rule, weight=WEIGHT) + loop_marked(b, a, s, rule, weight=WEIGHT)) / 2
    mvs = sum(loop(v, w) for v in x for w in t) / 4
    slow = (mvs + 0.3 * loop(*x) + 0.7 * loop(*t), mvs, loop(*x), loop(*t))
    terms = MarkedLoss(0.3, 0.7, false_negatives=rule)(x, t, s, content=CONTENT, weight=WEIGHT)
    torch.testing.assert_close(torch.stack(list(terms)), torch.stack(slow))
    assert_same_value_and_gradient(terms.total, slow[0], x, t, s)


def test_without_mvs_one_pair_is_contrasted():
    x, t = unit_rows(2, 4, 6, dtype=torch.float32), unit_rows(2, 4, 6, seed=1, dtype=torch.float32)
    terms = CXRCLIPLoss(0.3, 0.7, mvs=False)(x, t, 5.0)
    one_pair, icl, tcl = loop_symmetric(x[0], t[0], 5.0), loop_symmetric(*x, 5.0), loop_symmetric(*t, 5.0)
    torch.testing.assert_close(terms.mvs, one_pair)
    torch.testing.assert_close(terms.total, one_pair + 0.3 * icl + 0.7 * tcl)
    assert torch.autograd.grad(CXRCLIPLoss(0, 0, mvs=False)(x, t, 5.0).total, x)[0][1].abs().sum() == 0


def test_marks_that_say_nothing_change_nothing():
    """Contents are ignored when false negatives are kept; distinct contents and equal weights are the paper's loss."""
    x, t = unit_rows(2, 5, 6, dtype=torch.float32), unit_rows(2, 5, 6, seed=1, dtype=torch.float32)
    plain = torch.stack(list(CXRCLIPLoss()(x, t, 5.0)))
    assert torch.equal(plain, torch.stack(list(CXRCLIPLoss()(x, t, 5.0, content=CONTENT))))
    for rule in ("mask", "soft"):
        terms = MarkedLoss(false_negatives=rule)(x, t, 5.0, content=torch.arange(5), weight=torch.full((5,), 0.3))
        torch.testing.assert_close(torch.stack(list(terms)), plain)


def test_switches_survive_local_and_faults_are_named():
    local = MarkedLoss(0.2, 0.1, mvs=False, false_negatives="soft").local()
    assert (local.icl_weight, local.tcl_weight, local.mvs, local.false_negatives) == (0.2, 0.1, False, "soft")
    assert not local.gather
    with pytest.raises(InputError, match="false_negatives='drop': choose one of keep, mask, soft"):
        MarkedLoss(false_negatives="drop")
    with pytest.raises(InputError, match="'mask' needs the content of each study"):
        MarkedLoss(false_negatives="mask")(unit_rows(1, 3, 4), unit_rows(1, 3, 4), 1.0)


# ---- several processes ----------------------------------------------------------------------------------------------

WORLD, STUDIES = 2, 3


def toy_problem():
    """A linear model of 8 inputs, and the inputs of the joined batch: (2, WORLD * STUDIES, 8) images and texts."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 5, generator=generator, requires_grad=True)
    images, texts = (torch.randn(2, WORLD * STUDIES, 8, generator=generator) for _ in range(2))
    return weight, torch.tensor(1.5, requires_grad=True), images, texts


def terms_of(criterion, weight, log_scale, images, texts, marks=None):
    embeds = (F.normalize(inputs @ weight, dim=-1) for inputs in (images, texts))
    return criterion(*embeds, log_scale.exp(), **marks or {})


def marked(mine=slice(None)):
    """A loss with every switch on, and the marks of some of the joined batch: the first and the last say the same."""
    marks = {"content": torch.tensor([5, 1, 2, 3, 4, 5]), "weight": torch.tensor([1.0, 0.2, 1.0, 0.5, 1.0, 0.2])}
    return MarkedLoss(mvs=False, false_negatives="mask"), {name: tensor[mine] for name, tensor in marks.items()}


def one_process(rank, store):
    """What one of WORLD processes finds: terms, gradients as DistributedDataParallel would average them, local loss."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=WORLD)
    try:
        weight, log_scale, images, texts = toy_problem()
        mine = slice(rank * STUDIES, (rank + 1) * STUDIES)
        terms = terms_of(CXRCLIPLoss(), weight, log_scale, images[:, mine], texts[:, mine])
        terms.total.backward()
        for gradient in (weight.grad, log_scale.grad):
            dist.all_reduce(gradient)
            gradient /= WORLD
        local = terms_of(CXRCLIPLoss().local(), weight, log_scale, images[:, mine], texts[:, mine]).total
        criterion, marks = marked(mine)
        switched = terms_of(criterion, weight, log_scale, images[:, mine], texts[:, mine], marks)
        return ([term.item() for term in terms], weight.grad.tolist(), log_scale.grad.item(), local.item(),
                [term.item() for term in switched])
    finally:
        dist.destroy_process_group()


def child(rank, store, results):
    torch.set_num_threads(1)
    results.put(one_process(rank, store))


def test_two_processes_equal_one_with_the_joined_batch(tmp_path):
    context = mp.get_context("spawn")
    results = context.SimpleQueue()
    other = context.Process(target=child, args=(1, tmp_path / "store", results), daemon=True)
    other.start()
    found = [one_process(0, tmp_path / "store"), results.get()]
    other.join()
    weight, log_scale, images, texts = toy_problem()
    joined = terms_of(CXRCLIPLoss(), weight, log_scale, images, texts)
    joined.total.backward()
    criterion, marks = marked()
    switched = torch.stack(list(terms_of(criterion, weight, log_scale, images, texts, marks))).detach()
    for rank, (terms, weight_gradient, scale_gradient, local, with_marks) in enumerate(found):
        torch.testing.assert_close(torch.tensor(with_marks), switched)
        torch.testing.assert_close(torch.tensor(terms), torch.stack(list(joined)).detach())
        torch.testing.assert_close(torch.tensor(weight_gradient), weight.grad, atol=1e-5, rtol=1e-4)
        assert scale_gradient == pytest.approx(log_scale.grad.item(), rel=1e-4)
        mine = slice(rank * STUDIES, (rank + 1) * STUDIES)
        alone = terms_of(CXRCLIPLoss(), weight, log_scale, images[:, mine], texts[:, mine]).total.item()
        assert local == pytest.approx(alone, rel=1e-5)
