"""data/stream.py: every study once an epoch, whatever the number of processes; resumed at any step."""

import itertools

import pytest
import torch
from builders import prompt_bank, small_row, take

from cxrclip.data.dataset import PretrainingDataset, StudyItems
from cxrclip.data.shards import write_studies
from cxrclip.data.stream import StreamedBatches, StreamedItems
from cxrclip.errors import InputError
from cxrclip.studies import open_studies
from cxrclip.transforms import EvalTransform


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """47 training studies in shards of unequal size, among others; each folder's last shard is shorter."""
    place = tmp_path_factory.mktemp("stream")
    splits = itertools.cycle(["train", "train", "train", "test"])
    rows = [small_row(i, split=next(splits), findings=f"Finding {i}.") for i in range(62)]
    return [write_studies(rows[:40], place / "a", shard_rows=7), write_studies(rows[40:], place / "b", shard_rows=9)]


def ids(batches):
    return [[row["study_id"] for _, row in rows] for _, rows in batches]


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_no_study_comes_twice_in_an_epoch_and_few_are_left_out(folders, world):
    kinds = {f"s{i}" for i in range(62) if i % 4 != 3}
    for epoch in (0, 1):
        found = []
        for rank in range(world):
            stream = StreamedBatches(folders, 12, seed=1, rank=rank, world_size=world, buffer=5)
            batches = ids(stream.epoch(epoch))
            assert len(batches) == stream.steps_per_epoch
            assert {len(batch) for batch in batches} == {12 // world}
            found += itertools.chain.from_iterable(batches)
        assert len(found) == len(set(found)) == 12 * (len(kinds) // world // (12 // world))
        assert set(found) <= kinds


def test_epochs_differ_and_a_stream_goes_on_at_any_step(folders):
    whole = take(StreamedBatches(folders, 6, seed=1, rank=1, world_size=2, buffer=8), 20)
    assert {epoch for epoch, _ in whole} == {0, 1, 2}
    assert ids(whole)[:3] != ids(whole)[7:10]
    for start in (1, 5, 7, 12):
        rest = StreamedBatches(folders, 6, seed=1, start_step=start, rank=1, world_size=2, buffer=8)
        assert ids(take(rest, 20 - start)) == ids(whole)[start:]
    assert ids(take(StreamedBatches(folders, 6, seed=2, rank=1, world_size=2), 3)) != ids(whole)[:3]


def test_what_cannot_be_shared_is_refused(folders, tmp_path):
    for size, world in ((100, 1), (5, 2)):
        with pytest.raises(InputError, match="choose a smaller batch, a multiple"):
            next(iter(StreamedBatches(folders, size, seed=0, world_size=world)))
    with pytest.raises(InputError, match="not a study folder"):
        next(iter(StreamedBatches([tmp_path], 2, seed=0)))


def test_a_silent_study_in_a_stream_is_refused_by_name(tmp_path):
    rows = [small_row(i, split="train", findings="Clear.") for i in range(4)]
    rows[2] |= {"findings": None}
    stream = StreamedBatches([write_studies(rows, tmp_path / "a")], 4, seed=0)
    items = StreamedItems([StudyItems(prompt_bank(), EvalTransform(16, (0.5,) * 3, (0.5,) * 3), seed=0)])
    epoch, keys = next(iter(stream))
    with pytest.raises(InputError, match=f"study {rows[2]['study_id']}: neither a report nor a label"):
        items.__getitems__([(epoch, key) for key in keys])


def test_streamed_items_are_those_of_the_table(folders):
    """The same draws: every draw follows from (seed, epoch, study id), wherever the study came from."""
    options = {"bank": prompt_bank(), "transform": EvalTransform(16, (0.5,) * 3, (0.5,) * 3), "seed": 3}
    epoch, keys = next(iter(StreamedBatches(folders, 12, seed=1)))
    streamed = StreamedItems([StudyItems(**options)] * 2).__getitems__([(epoch, key) for key in keys])
    table = PretrainingDataset(open_studies(folders, "train"), **options)
    place = {study: i for i, study in enumerate(table.studies["study_id"])}
    assert {part for part, _ in keys} == {0, 1}
    for item in streamed:
        same = table[epoch, place[item["study_id"]]]
        assert item["texts"] == same["texts"]
        assert torch.equal(item["images"], same["images"])
