"""data/batches.py: new orders each epoch, any start, ranks that share a batch, nested shares."""

from collections import Counter

import pytest
from builders import assert_even, take

from cxrclip.data.batches import EpochBatches, share_of
from cxrclip.errors import InputError


def test_epochs_are_new_orders_and_drop_the_rest():
    batches = take(EpochBatches(23, 5, seed=1), 12)
    assert [epoch for epoch, _ in batches] == [0] * 4 + [1] * 4 + [2] * 4
    orders = [[i for e, indices in batches if e == epoch for i in indices] for epoch in range(3)]
    for order in orders:
        assert len(set(order)) == 20
        assert set(order) < set(range(23))
    assert orders[0] != orders[1] != orders[2]
    assert take(EpochBatches(23, 5, seed=1), 12) == batches
    assert take(EpochBatches(23, 5, seed=2), 12) != batches
    assert list(EpochBatches(23, 5, seed=1).epoch(0)) == batches[:4]


def test_every_study_is_dropped_equally_often():
    counts = Counter(i for _, indices in take(EpochBatches(7, 5, seed=0), 3000) for i in indices)
    assert_even(counts, dict.fromkeys(range(7), 1 / 7))


@pytest.mark.parametrize("step", range(10))
def test_start_at_any_step(step):
    assert take(EpochBatches(17, 5, seed=1, start_step=step), 8) == take(EpochBatches(17, 5, seed=1), step + 8)[step:]


def test_ranks_share_the_global_batch():
    whole = take(EpochBatches(30, 12, seed=3, start_step=1), 6)
    shares = [take(EpochBatches(30, 12, seed=3, start_step=1, rank=rank, world_size=3), 6) for rank in range(3)]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert {epoch for epoch, _ in parts} == {batch[0]}
        assert [i for _, indices in parts for i in indices] == batch[1]
        assert {len(indices) for _, indices in parts} == {4}


def test_impossible_batches():
    with pytest.raises(InputError, match="a batch of 5 out of 4 studies"):
        EpochBatches(4, 5, seed=0)
    with pytest.raises(InputError, match="a batch of 4 cannot be shared by 3"):
        EpochBatches(9, 4, seed=0, world_size=3)


def test_shares_are_nested_seeded_and_whole():
    quarter, half, whole = (share_of(40, share, 3, "C") for share in (0.25, 0.5, 1))
    assert (len(quarter), len(half), whole) == (10, 20, list(range(40)))
    assert set(quarter) < set(half)
    assert half == sorted(half)
    assert share_of(40, 0.5, 3, "C") == half != share_of(40, 0.5, 4, "C")
    assert half != share_of(40, 0.5, 3, "C14")
