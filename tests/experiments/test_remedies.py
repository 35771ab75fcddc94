"""experiments/remedies.py and the oracle's prompts: other texts, other orders of the batches, marks for the loss."""

import re
from collections import Counter
from functools import partial

import builders
import numpy as np
import pytest
import torch
from builders import HALF, assert_even, dataset, prompt_bank, study, take, word_tokenizer

from cxrclip.data.batches import EpochBatches
from cxrclip.data.dataset import StudyMix, load_batches
from cxrclip.data.images import read_gray
from cxrclip.errors import InputError
from cxrclip.experiments.experiment import Experiment
from cxrclip.experiments.oracle import with_details
from cxrclip.experiments.remedies import arranged, content_of, one_text, texts_as_written
from cxrclip.experiments.train import marks_of
from cxrclip.transforms import EvalTransform
from cxrclip.views import draw_images, draw_texts, first_image, first_text


@pytest.fixture(scope="module")
def mixed_rows():
    return builders.mixed_rows()


# ---- texts ----------------------------------------------------------------------------------------------------------


def single_texts(row, n=3000, draw=one_text):
    rng = np.random.default_rng(0)
    return Counter(text for _ in range(n) for text in draw(row, prompt_bank().report, rng))


def test_one_random_text_is_of_a_random_section():
    row = study(0, findings="F.", findings_aug=["f1.", "f2."], impression="I.")
    assert_even(single_texts(row), {"F.": 1 / 4, "f1.": 1 / 8, "f2.": 1 / 8, "I.": 1 / 2})
    assert_even(single_texts(row, draw=partial(one_text, augment=False)), {"F.": 1 / 2, "I.": 1 / 2})
    assert single_texts(row, 20, first_text) == {"F.": 20}


def written(row, n, draw=texts_as_written):
    rng = np.random.default_rng(0)
    return Counter(tuple(draw(row, prompt_bank().report, rng)) for _ in range(n))


def test_without_augmentation_sections_are_as_written():
    two = study(0, findings="F. G.", findings_aug=["f."], impression="I. J.", impression_aug=["i."])
    assert written(two, 30) == {("F. G.", "I. J."): 30}
    one = study(0, impression="I. J.", impression_aug=["i."])
    assert written(one, 30) == {("I. J.", "I. J."): 30}
    prompts = study(0, positive=["Edema"])
    assert written(prompts, 200) == written(prompts, 200, draw_texts)


def test_draws_reach_the_items():
    row = study(0, ("PA", "LATERAL"), findings="F.", findings_aug=["f."], impression="I.", impression_aug=["i."])
    films = [EvalTransform(16, *HALF)(read_gray(image["bytes"], "film")) for image in row["images"]]

    def drawn(**options):
        items = [dataset([row], **options)[epoch, 0] for epoch in range(60)]
        return ({next(i for i in (0, 1) if torch.equal(item["images"][0], films[i])) for item in items},
                {text for item in items for text in item["texts"]})
    one_image = partial(draw_images, count=1)
    assert drawn(images=first_image, texts=first_text) == ({0}, {"F."})
    assert drawn(images=one_image, texts=one_text) == ({0, 1}, {"F.", "f.", "I.", "i."})
    assert drawn(images=one_image, texts=partial(one_text, augment=False)) == ({0, 1}, {"F.", "I."})


def test_details_are_told_where_a_finding_is_not_denied():
    row = study(0, positive=["Edema"], negative=["Mass"], uncertain=["Fracture"])
    details = {"s0": {"Edema": "severe", "Mass": "left", "Hernia": "right"}}
    (text, _) = dataset([row], texts=with_details(draw_texts, details))[0, 0]["texts"]
    sentences = re.split(r"(?<=[.])\s+", text)
    assert sum(sentence.endswith(": severe.") for sentence in sentences) == 1
    assert text.count(":") == 1
    plain = dataset([row], texts=with_details(draw_texts, {"s1": {"Edema": "severe"}}))[0, 0]["texts"]
    assert plain == dataset([row])[0, 0]["texts"]


def test_content_is_the_same_text_or_the_same_positive_classes():
    def content(details=None, **columns):
        return content_of(study(0, **columns), prompt_bank(), details)
    assert content(findings="F.") == content(findings=" F. ", positive=["Edema"])
    assert len({content(findings="F."), content(findings="G."), content(findings="F.", impression="I."),
                content(positive=["Edema"]), content(positive=["Edema", "Mass"]), content(negative=["Edema"])}) == 6
    assert content(positive=["Mass", "Effusion"]) == content(positive=["Pleural Effusion", "Mass"], negative=["Edema"])
    assert content({"Mass": "left"}, positive=["Mass"]) != content({"Mass": "right"}, positive=["Mass"])
    assert content({"Mass": "left"}, findings="F.") == content(findings="F.")


def test_content_is_stable_across_machines():
    """Written down once: processes compare these numbers."""
    assert content_of(study(0, findings="F."), prompt_bank()) == -3294802382755830133


def test_marks_go_into_the_batch_only_when_asked(mixed_rows):
    def batch(**changes):
        experiment = Experiment.at("quick", **changes)
        order = EpochBatches(20, 20, seed=0)
        data = dataset(mixed_rows, marks=marks_of(experiment, prompt_bank(), {}))
        return next(load_batches(data, order, word_tokenizer(), 64))
    plain, marked = batch(), batch(false_negatives="mask", label_weight=0.25)
    assert set(plain) == {"pixel_values", "input_ids", "attention_mask"}
    assert set(marked) == {*plain, "content", "weight"}
    assert all(torch.equal(marked[name], plain[name]) for name in plain)
    order = next(iter(EpochBatches(20, 20, seed=0)))[1]
    kinds = torch.tensor([i % 5 for i in order])  # 0, 1 and 3 have reports, 2 and 4 labels (builders.mixed_rows)
    assert marked["content"].dtype == torch.int64
    assert torch.equal(marked["content"][:, None] == marked["content"], kinds[:, None] == kinds)
    assert torch.equal(marked["weight"], torch.where((kinds == 2) | (kinds == 4), 0.25, 1.0))


# ---- the order of the batches ---------------------------------------------------------------------------------------



@pytest.fixture(scope="module")
def three_sources():
    """9 studies with reports, then 14 and 6 with labels."""
    rows = [study(i, findings="F.") if i < 9 else study(i, positive=["Edema"]) for i in range(29)]
    return StudyMix([dataset(part) for part in (rows[:9], rows[9:23], rows[23:])])


def source_of(index):
    return 0 if index < 9 else 1 if index < 23 else 2


SWITCHED = [{"kind": "one-source"}, {"report_share": 0.75}, {"reports_last": 0.3},
            {"kind": "one-source", "reports_last": 0.5}, {"report_share": 0.25, "reports_last": 0.5}]


def switched(mix, start=0, rank=0, world_size=1, seed=1, batch_size=4, steps=20, **options):
    order = EpochBatches(len(mix), batch_size, seed, start, rank, world_size)
    return arranged(order, mix, steps, **options)


def test_without_a_switch_the_order_is_the_papers(three_sources):
    order = EpochBatches(29, 4, seed=1, start_step=3)
    assert arranged(order, three_sources, 20) is order


@pytest.mark.parametrize("options", SWITCHED, ids=str)
def test_switched_orders_resume_at_any_step_and_follow_the_seed(three_sources, options):
    whole = take(switched(three_sources, **options), 20)
    assert {len(indices) for _, indices in whole} == {4}
    assert all(len(set(indices)) == 4 for _, indices in whole)
    for start in range(20):
        assert take(switched(three_sources, start, **options), 20 - start) == whole[start:]
    assert take(switched(three_sources, seed=2, **options), 20) != whole


@pytest.mark.parametrize("options", SWITCHED, ids=str)
def test_switched_ranks_share_the_global_batch(three_sources, options):
    options |= {"batch_size": 8} if "report_share" in options else {}
    whole = take(switched(three_sources, 3, **options), 17)
    shares = [take(switched(three_sources, 3, rank, 2, **options), 17) for rank in (0, 1)]
    for (epoch, indices), *parts in zip(whole, *shares, strict=True):
        assert {number for number, _ in parts} == {epoch}
        assert sorted(i for _, some in parts for i in some) == sorted(indices)
        assert len(parts[0][1]) == len(parts[1][1])


@pytest.mark.parametrize("options", SWITCHED, ids=str)
def test_no_study_is_drawn_twice_in_one_way(three_sources, options):
    """A study's draws are settled by (seed, number, study): the pairs must never repeat."""
    keys = [(number, i) for number, indices in take(switched(three_sources, **options), 20) for i in indices]
    assert len(set(keys)) == len(keys)


def test_one_source_batches_take_turns_in_proportion(three_sources):
    batches = take(switched(three_sources, kind="one-source"), 60)  # an epoch: 2 + 3 + 1 full batches
    sources = [{source_of(i) for i in indices} for _, indices in batches]
    assert all(len(source) == 1 for source in sources)
    for epoch in range(10):
        some = [(source, indices) for source, (e, indices) in zip(sources, batches, strict=True) if e == epoch]
        assert Counter(next(iter(source)) for source, _ in some) == {0: 2, 1: 3, 2: 1}
        drawn = [i for _, indices in some for i in indices]
        assert len(set(drawn)) == len(drawn)
    assert len({tuple(map(tuple, sources[6 * e : 6 * e + 6])) for e in range(10)}) > 1, "turns must be drawn anew"


def test_report_share_holds_in_each_batch_and_each_side_has_its_epochs(three_sources):
    batches = take(switched(three_sources, report_share=0.75), 30)
    assert [sum(i < 9 for i in indices) for _, indices in batches] == [3] * 30
    for reports in (True, False):  # 9 reports by 3: epochs of 3 batches; 20 labels by 1: one of 20
        drawn = [i for _, indices in batches for i in indices if (i < 9) == reports]
        size = 9 if reports else 20
        assert all(len(set(drawn[k : k + size])) == size for k in range(0, len(drawn) - size + 1, size))


def test_the_last_steps_are_reports_only(three_sources):
    plain = take(EpochBatches(29, 4, seed=1), 20)
    batches = take(switched(three_sources, reports_last=0.3), 20)
    assert batches[:14] == plain[:14]
    assert all(i < 9 for _, indices in batches[14:] for i in indices)


def test_impossible_switches(three_sources):
    for options in ({"report_share": 0.01}, {"report_share": 0.99}):
        with pytest.raises(InputError, match="each batch needs some of both"):
            next(iter(switched(three_sources, **options)))
    labels_only = StudyMix(three_sources.datasets[1:])
    with pytest.raises(InputError, match="from 0 report and 20 label studies"):
        next(iter(switched(labels_only, report_share=0.5)))
    with pytest.raises(InputError, match="no training study has a report"):
        take(switched(labels_only, reports_last=0.5), 20)
    with pytest.raises(InputError, match="a batch of 8 out of 6 studies"):
        next(iter(switched(three_sources, batch_size=8, kind="one-source")))
