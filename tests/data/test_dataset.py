"""data/dataset.py: items follow from (seed, epoch, study) alone, faults name the study, workers change no batch."""

import itertools
import re
from collections import Counter

import builders
import pytest
import torch
from builders import HALF, assert_even, dataset, image_pairs, prompt_bank, same, study, table, take, word_tokenizer

from cxrclip.data.batches import EpochBatches
from cxrclip.data.dataset import PretrainingDataset, StudyMix, collate, load_batches, split_usable
from cxrclip.data.images import read_gray
from cxrclip.data.memory import TokenMemory
from cxrclip.errors import InputError
from cxrclip.transforms import EvalTransform, TrainTransform
from cxrclip.views import first_image, first_text, sections_of


@pytest.fixture(scope="module")
def mixed_rows():
    return builders.mixed_rows()


def test_single_image_is_augmented_twice_and_differently():
    data = dataset([study(0, findings="A.")], transform=TrainTransform(16, *HALF))
    first, second = data[0, 0]["images"]
    assert not torch.equal(first, second)


def test_two_views_come_from_their_own_files():
    """With the evaluation transform a sample must be exactly two different stored films."""
    transform = EvalTransform(16, *HALF)
    row = study(3, ("PA", "AP", "LATERAL"), findings="A.")
    films = [transform(read_gray(image["bytes"], "here")) for image in row["images"]]
    data, counts = dataset([row], transform=transform), Counter()
    for epoch in range(300):
        x1, x2 = data[epoch, 0]["images"]
        counts[tuple(next(i for i in range(3) if torch.equal(x, films[i])) for x in (x1, x2))] += 1
    assert_even(counts, image_pairs(["PA", "AP", "LATERAL"]))




def test_item_layout(mixed_rows):
    item = dataset(mixed_rows, transform=TrainTransform(16, *HALF))[0, 2]
    assert item["study_id"] == "s2"
    assert item["images"].shape == (2, 3, 16, 16)
    assert len(item["texts"]) == 2
    plain = dataset(mixed_rows, images=first_image, texts=first_text)[0, 2]
    assert plain["images"].shape == (1, 3, 16, 16)
    assert len(plain["texts"]) == 1


def test_draws_depend_on_seed_epoch_and_study_only(mixed_rows):
    transform = TrainTransform(16, *HALF)
    data, reverse = (dataset(rows, transform=transform) for rows in (mixed_rows, mixed_rows[::-1]))
    for index in (2, 7, 11):
        assert same(data[3, index], reverse[3, 19 - index])  # the row's place does not matter
        assert same(data[3, index], data.__getitems__([(0, 1), (3, index)])[1])
        assert not same(data[3, index], data[4, index])
        assert not same(data[3, index], dataset(mixed_rows, transform=transform, seed=1)[3, index])





def test_b12_studies_without_report_and_label_are_set_aside():
    rows = [study(i, findings="F.") for i in range(40)]
    rows[7] = study(7, findings=" ", impression="")
    rows[9] = study(9, findings_aug=["ghost"])
    data = dataset(rows)
    assert data.set_aside == ["s7", "s9"]
    assert len(data) == 38
    assert [data[0, i]["study_id"] for i in range(38)] == [f"s{i}" for i in range(40) if i not in (7, 9)]


def test_more_than_five_percent_set_aside_stops():
    rows = [study(i, findings="F.") for i in range(40)]
    for i in (3, 5, 8):
        rows[i] = study(i)
    with pytest.raises(InputError, match=r"3 of 40 studies have neither a report nor a label \(first: s3, s5, s8\)"):
        dataset(rows)
    with pytest.raises(InputError, match="no studies"):
        dataset([])


def test_faults_name_the_study():
    rows = [study(0, findings="F."), study(1, positive=["Oedem"])]
    with pytest.raises(InputError, match=r"study s1: unknown finding 'Oedem' \(nearest known: .*Edema"):
        dataset(rows)
    with pytest.raises(InputError, match="study s1: 'Edema' is labelled both"):
        dataset([rows[0], study(1, positive=["Edema"], uncertain=["Edema"])])
    with pytest.raises(InputError, match="study s4: no image"):
        dataset([study(4, (), findings="F.")])
    broken = study(5, findings="F.", images=[{"bytes": b"not a film", "path": "x.jpg"}])
    with pytest.raises(InputError, match="study s5, image 0"):
        dataset([broken])[0, 0]


def test_labels_of_a_study_with_a_report_need_no_prompts():
    """Test sets carry names of their own; only studies that speak by their labels need sentences."""
    assert dataset([study(0, findings="F.", positive=["Lung cavity"])])[0, 0]["texts"] == ["F.", "F."]


def test_b4_strings_where_lists_belong():
    rows = table([study(0, findings="F.")])
    flat = rows.remove_columns("positive").add_column("positive", ["Edema"])
    with pytest.raises(InputError, match="column 'positive' holds plain values"):
        PretrainingDataset(flat, prompt_bank(), EvalTransform(16, *HALF), seed=0)
    with pytest.raises(InputError, match="no column 'views'"):
        PretrainingDataset(rows.remove_columns("views"), prompt_bank(), EvalTransform(16, *HALF), seed=0)


def test_parameters_out_of_range():
    with pytest.raises(InputError, match="max_negatives"):
        dataset([study(0, findings="F.")], max_negatives=0)


def test_mix_is_its_parts_one_after_the_other(mixed_rows):
    parts = [dataset(mixed_rows[:7]), dataset(mixed_rows[7:10], max_negatives=1),
             dataset([*mixed_rows[10:], *(study(i, findings="F.") for i in range(50, 60)), study(99)])]
    mix = StudyMix(parts)
    assert len(mix) == 7 + 3 + 20
    assert [part.set_aside for part in mix.datasets] == [[], [], ["s99"]]
    keys = [(1, 29), (0, 8), (2, 0), (0, 7), (0, 6), (5, 10), (0, 8)]
    slow = [parts[2][1, 19], parts[1][0, 1], parts[0][2, 0], parts[1][0, 0], parts[0][0, 6], parts[2][5, 0]]
    assert all(same(a, b) for a, b in zip(mix.__getitems__(keys), [*slow, slow[1]], strict=True))
    assert same(mix.__getitems__([(2, 0)])[0], slow[2])


def test_who_has_a_report(mixed_rows):
    expected = [i % 5 in (0, 1, 3) for i in range(20)]
    assert dataset(mixed_rows).has_report.tolist() == expected
    mix = StudyMix([dataset(mixed_rows[:9]), dataset(mixed_rows[9:])])
    assert mix.has_report.tolist() == expected


# ---- batches --------------------------------------------------------------------------------------------------------


def test_collate_layout_and_padding_to_the_longest_of_the_batch():
    items = [{"study_id": str(b), "images": torch.full((2, 3, 4, 4), 10.0 * b) + torch.arange(2.0)[:, None, None, None],
              "texts": texts} for b, texts in enumerate([["a", "a b c"], ["a b", ""], ["a b c d", "a"]])]
    batch = collate(items, TokenMemory(word_tokenizer(), max_tokens=100))
    assert batch["pixel_values"].shape == (2, 3, 3, 4, 4)
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[0, 10, 20], [1, 11, 21]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 6)  # [CLS] a b c d [SEP]
    assert batch["attention_mask"].sum(2).tolist() == [[3, 4, 6], [5, 2, 3]]
    assert batch["input_ids"][1, 1].tolist() == [2, 3, 0, 0, 0, 0]


def test_absurdly_long_text_is_cut_and_keeps_its_end_token():
    item = {"study_id": "s", "images": torch.zeros(1, 3, 4, 4), "texts": ["word " * 50_000]}
    ids = collate([item], TokenMemory(word_tokenizer(), max_tokens=12))["input_ids"]
    assert ids.shape == (1, 1, 12)
    assert ids[0, 0, -1] == 3


def test_workers_never_change_a_batch_and_any_step_can_resume(mixed_rows):
    """The same six batches (across two epochs) from 0, 1 and 2 workers, and from every later start."""
    mix = StudyMix([dataset(mixed_rows[:11], transform=TrainTransform(16, *HALF), max_negatives=2),
                    dataset(mixed_rows[11:], transform=TrainTransform(16, *HALF), seed=0)])

    def batches(start, n, workers):
        order = EpochBatches(len(mix), 6, seed=0, start_step=start)
        return take(load_batches(mix, order, word_tokenizer(), 64, workers), n)

    state = torch.get_rng_state()
    reference = batches(0, 6, workers=0)
    assert torch.equal(torch.get_rng_state(), state)  # training's own randomness is left alone
    assert not torch.equal(reference[0]["pixel_values"], reference[3]["pixel_values"])
    for start, workers in [(0, 1), (0, 2), (2, 0), (3, 0), (4, 2), (5, 0)]:
        for expected, batch in zip(reference[start:], batches(start, 6 - start, workers), strict=True):
            assert set(batch) == set(expected)
            assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_plain_clip_batch(mixed_rows):
    data = dataset(mixed_rows, images=first_image, texts=first_text)
    batch = next(load_batches(data, EpochBatches(20, 20, seed=0), word_tokenizer(), 64))
    assert batch["pixel_values"].shape == (1, 20, 3, 16, 16)
    assert batch["input_ids"].shape[:2] == (1, 20)
    words = max(len(re.findall(r"\S+", text)) for i in range(20) for text in data[0, i]["texts"])
    assert batch["input_ids"].shape[2] == words + 2


def test_what_a_study_says_is_read_from_columns_as_row_by_row():
    spaces = itertools.cycle([None, "", " \x1c\u2003\n", "Edema.", "\u200b", " No edema. "])
    labels = itertools.cycle([[], ["Edema"], [], ["Mass", "Edema"], []])
    rows = [study(i, findings=next(spaces), impression=next(spaces) if i % 3 else None, positive=next(labels))
            for i in range(60)]
    chosen = [*range(40, 60), *range(7, 31, 3)]  # a selection, in another order
    studies = table(rows).select(chosen)
    usable, silent = split_usable(studies, prompt_bank())
    expected = [bool(sections_of(rows[i]) or rows[i]["positive"]) for i in chosen]
    assert usable.tolist() == [place for place, speaks in enumerate(expected) if speaks]
    assert silent == [f"s{i}" for i, speaks in zip(chosen, expected, strict=True) if not speaks]
    assert 0 < len(silent) < len(chosen)


def test_only_the_chosen_rows_are_checked_and_the_first_fault_is_named():
    rows = [study(i, positive=["Oedem"] if i in (1, 4) else ["Edema"]) for i in range(6)]
    assert split_usable(table(rows).select([0, 2, 3]), prompt_bank())[1] == []
    with pytest.raises(InputError, match="study s4: unknown finding 'Oedem'"):
        split_usable(table(rows).select([5, 4, 1]), prompt_bank())
