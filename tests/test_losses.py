"""Each loss against a slow loop written from the formula, gradients included; and two processes against one."""

from __future__ import annotations

import math

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch.nn import functional as F

from cxrclip.errors import InputError
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


# ---- several processes ----------------------------------------------------------------------------------------------

WORLD, STUDIES = 2, 3


def toy_problem():
    """A linear model of 8 inputs, and the inputs of the joined batch: (2, WORLD * STUDIES, 8) images and texts."""
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(8, 5, generator=generator, requires_grad=True)
    images, texts = (torch.randn(2, WORLD * STUDIES, 8, generator=generator) for _ in range(2))
    return weight, torch.tensor(1.5, requires_grad=True), images, texts


def terms_of(criterion, weight, log_scale, images, texts):
    return criterion(F.normalize(images @ weight, dim=-1), F.normalize(texts @ weight, dim=-1), log_scale.exp())


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
        return [term.item() for term in terms], weight.grad.tolist(), log_scale.grad.item(), local.item()
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
    for rank, (terms, weight_gradient, scale_gradient, local) in enumerate(found):
        torch.testing.assert_close(torch.tensor(terms), torch.stack(list(joined)).detach())
        torch.testing.assert_close(torch.tensor(weight_gradient), weight.grad, atol=1e-5, rtol=1e-4)
        assert scale_gradient == pytest.approx(log_scale.grad.item(), rel=1e-4)
        mine = slice(rank * STUDIES, (rank + 1) * STUDIES)
        alone = terms_of(CXRCLIPLoss(), weight, log_scale, images[:, mine], texts[:, mine]).total.item()
        assert local == pytest.approx(alone, rel=1e-5)
