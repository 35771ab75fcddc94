"""sampling.py: every rule against a slow, obvious re-statement, and batches that never depend on the workers."""

import itertools
import math
import re
from collections import Counter

import cv2
import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.functional import adjust_brightness, adjust_contrast
from transformers import PreTrainedTokenizerFast

from cxrclip import views
from cxrclip.data.batches import EpochBatches, arranged, share_of
from cxrclip.data.dataset import PretrainingDataset, StudyMix, collate, load_batches
from cxrclip.data.images import encode_gray, read_gray
from cxrclip.errors import InputError
from cxrclip.prompts import PromptBank
from cxrclip.studies import SCHEMA
from cxrclip.transforms import EvalTransform, TrainTransform, crop_box, jitter
from cxrclip.views import content_of, draw_images, draw_texts, generator, shuffle_sentences

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


@pytest.fixture(scope="module")
def bank():
    return PromptBank.load()


@pytest.fixture(scope="module")
def tokenizer():
    """Words are tokens, between [CLS] and [SEP]."""
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")


def film(seed, side=40):
    """Smooth noise, so that a crop of it resembles no other film."""
    noise = np.random.default_rng(seed).normal(size=(side, side)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 4), None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def study(number, views=("PA",), **columns):
    row = {"study_id": f"s{number}", "patient_id": f"p{number}", "source": "test", "split": "train",
           "images": [{"bytes": encode_gray(film(100 * number + i)), "path": None} for i in range(len(views))],
           "views": list(views), "findings": None, "impression": None, "findings_aug": [], "impression_aug": [],
           "positive": [], "negative": [], "uncertain": [], "sex": None, "age": None}
    return row | columns


def table(rows):
    return Dataset(pa.Table.from_pylist(rows, schema=SCHEMA))


def dataset(rows, bank, **options):
    options = {"seed": 0, "transform": EvalTransform(16, *HALF)} | options
    return PretrainingDataset(table(rows), bank, options.pop("transform"), **options)


@pytest.fixture(scope="module")
def mixed_rows():
    """Twenty studies of every kind: two sections, one section, labels; one to three views."""
    views = itertools.cycle([("PA",), ("PA", "LATERAL"), ("AP", "LATERAL", "PA"), ("AP", "AP")])
    texts = itertools.cycle([
        {"findings": "The heart is large. Lungs are clear. No effusion.", "impression": "Cardiomegaly."},
        {"impression": "Edema. Small effusion.", "impression_aug": ["Oedema, small effusion."]},
        {"positive": ["Edema"], "negative": ["Mass", "Nodule", "Hernia", "Fibrosis"], "uncertain": ["Fracture"]},
        {"findings": "One. Two. Three.", "positive": ["Edema"]},
        {"negative": ["Pneumothorax", "Edema"]},
    ])
    return [study(i, next(views), **next(texts)) for i in range(20)]


def assert_even(counts, expected, sigmas=4.5):
    """Every outcome of `expected` (outcome -> probability) came about as often as it should, and no other."""
    n = sum(counts.values())
    assert set(counts) == set(expected)
    for outcome, p in expected.items():
        assert abs(counts[outcome] - n * p) <= sigmas * math.sqrt(n * p * (1 - p)), (outcome, counts[outcome], n * p)


# ---- images -----------------------------------------------------------------------------------------------


def image_pairs(views):
    """Slow statement: first a view, then another one, then any image of each; with one view, one image twice."""
    names = sorted(set(views))
    if len(names) == 1:
        return {(i, i): 1 / len(views) for i in range(len(views))}
    probabilities = {}
    for i, j in itertools.product(range(len(views)), repeat=2):
        if views[i] != views[j]:
            pairs = len(names) * (len(names) - 1)
            probabilities[i, j] = 1 / pairs / views.count(views[i]) / views.count(views[j])
    return probabilities


@pytest.mark.parametrize("views", [
    ["PA"], ["AP", "AP"], ["PA", "LATERAL"], ["PA", "PA", "LATERAL"], ["PA", "AP", "LATERAL"],
    ["PA", "AP", "LATERAL", "LATERAL", "LL"],
])
def test_two_images_are_of_two_views_where_there_are_two(views):
    """B1: three and more views give two distinct ones as well."""
    rng = np.random.default_rng(0)
    assert_even(Counter(tuple(draw_images(views, 2, rng)) for _ in range(4000)), image_pairs(views))


@pytest.mark.parametrize(("views", "index"), [
    (["LATERAL", "PA", "AP"], 1), (["AP", "LATERAL"], 0), (["LATERAL"], 0), (["LL", "LATERAL", "AP"], 2),
    (["UNKNOWN", "FRONTAL"], 1)])
def test_one_image_is_the_first_frontal(views, index):
    assert draw_images(views, 1, np.random.default_rng(0)) == [index]


def test_single_image_is_augmented_twice_and_differently(bank):
    data = dataset([study(0, findings="A.")], bank, transform=TrainTransform(16, *HALF))
    first, second = data[0]["images"]
    assert not torch.equal(first, second)


def test_two_views_come_from_their_own_files(bank):
    """With the evaluation transform a sample must be exactly two different stored films."""
    transform = EvalTransform(16, *HALF)
    row = study(3, ("PA", "AP", "LATERAL"), findings="A.")
    films = [transform(read_gray(image["bytes"], "here")) for image in row["images"]]
    data, counts = dataset([row], bank, transform=transform), Counter()
    for epoch in range(300):
        data.set_epoch(epoch)
        x1, x2 = data[0]["images"]
        counts[tuple(next(i for i in range(3) if torch.equal(x, films[i])) for x in (x1, x2))] += 1
    assert_even(counts, image_pairs(["PA", "AP", "LATERAL"]))


# ---- texts ------------------------------------------------------------------------------------------------


def text_counts(row, bank, n=2000, **options):
    rng = np.random.default_rng(0)
    return Counter(tuple(draw_texts(row, 2, bank, rng, **options)) for _ in range(n))


def test_b3_two_sections_are_never_one_section_twice(bank):
    row = study(0, findings="F.", impression="I.")
    assert text_counts(row, bank) == {("F.", "I."): 2000}


def test_sections_are_back_translated_half_of_the_time(bank):
    row = study(0, findings="F.", findings_aug=["f1.", "f2."], impression="I.", impression_aug=["i."])
    first, second = {"F.": 1 / 2, "f1.": 1 / 4, "f2.": 1 / 4}, {"I.": 1 / 2, "i.": 1 / 2}
    expected = {(a, b): first[a] * second[b] for a in first for b in second}
    assert_even(text_counts(row, bank, 4000), expected)


@pytest.mark.parametrize("empty", [None, "", "  \n\t "])
def test_one_section_with_its_back_translation(bank, empty):
    row = study(0, findings=empty, findings_aug=["ghost"], impression="I. J.", impression_aug=["i1.", " ", "i2."])
    assert_even(text_counts(row, bank), {("I. J.", "i1."): 1 / 2, ("I. J.", "i2."): 1 / 2})


def test_one_section_without_back_translation_is_shuffled(bank):
    row = study(0, findings="One is. Two is. Three is.")
    orders = [" ".join(order) for order in itertools.permutations(["One is.", "Two is.", "Three is."])]
    assert_even(text_counts(row, bank), {(orders[0], other): 1 / 5 for other in orders[1:]})


def test_one_section_of_one_sentence_is_itself_twice(bank):
    assert text_counts(study(0, impression="No change"), bank, 20) == {("No change", "No change"): 20}


@pytest.mark.parametrize(("text", "parts"), [
    ("No effusion. Heart is large! Is it new?", ["No effusion.", "Heart is large!", "Is it new?"]),
    ("1. Edema. 2. A 2.5 cm nodule.", ["1. Edema.", "2. A 2.5 cm nodule."]),
    ("Clear lungs.\n Normal heart", ["Clear lungs.", "Normal heart"]),
    ("Same. Same.", ["Same.", "Same."]),
])
def test_b2_shuffle_really_shuffles(text, parts):
    """Every order but the given one, none lost, none changed."""
    rng = np.random.default_rng(0)
    counts = Counter(shuffle_sentences(text, rng) for _ in range(600))
    orders = [" ".join(order) for order in itertools.permutations(parts)]
    others = orders[1:]
    assert_even(counts, {order: others.count(order) / len(others) for order in others})


def test_label_study_draws_two_independent_prompts(bank):
    """The pair's frequencies are the products of the single ones."""
    row = study(0, negative=["Mass"])
    own = bank.prompts["Mass"]["negative"]
    expected = {(a, b): 1 / len(own) ** 2 for a in own for b in own}
    assert_even(text_counts(row, bank, 4000), expected)


def test_max_negatives_reaches_the_prompts(bank):
    row = study(0, positive=["Edema"], negative=["Mass", "Nodule", "Hernia", "Fibrosis"])
    for pair in text_counts(row, bank, 50, max_negatives=2):
        assert [text.count(".") for text in pair] == [3, 3]


@pytest.mark.parametrize(("columns", "expected"), [
    ({"findings": "F. G.", "impression": "I.", "findings_aug": ["f"]}, "F. G."),
    ({"findings": " ", "impression": "I. J."}, "I. J."),
    ({"findings": "F.", "positive": ["Edema"]}, "F."),
])
def test_one_text_is_the_plain_section(bank, columns, expected):
    rng = np.random.default_rng(0)
    assert {tuple(draw_texts(study(0, **columns), 1, bank, rng)) for _ in range(50)} == {(expected,)}


def test_one_text_of_a_label_study_is_one_prompt(bank):
    (text,) = draw_texts(study(0, positive=["Edema"]), 1, bank, np.random.default_rng(0))
    assert text in bank.prompts["Edema"]["positive"]


# ---- transforms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(128, 128), (100, 140), (90, 300), (300, 90)])
def test_crop_boxes_are_distributed_as_torchvisions(shape):
    """Means and deviations of top, left, height and width; torchvision is the slow statement."""
    torch.manual_seed(0)
    rng, image = np.random.default_rng(0), torch.zeros(1, *shape)
    ours = np.array([crop_box(*shape, rng) for _ in range(3000)], float)
    theirs = np.array([RandomResizedCrop.get_params(image, [0.8, 1.1], [3 / 4, 4 / 3]) for _ in range(3000)], float)
    error = np.sqrt((ours.var(0) + theirs.var(0)) / 3000) + 1e-9
    assert (np.abs(ours.mean(0) - theirs.mean(0)) < 4.5 * error).all()
    assert np.allclose(ours.std(0), theirs.std(0), rtol=0.12)
    assert np.isclose((ours[:, 2:] == shape).all(1).mean(), (theirs[:, 2:] == shape).all(1).mean(), atol=0.02)
    assert (ours[:, :2] >= 0).all()
    assert (ours[:, :2] + ours[:, 2:] <= shape).all()


def test_crop_area_and_aspect_where_every_crop_fits():
    """Area uniform, aspect log-uniform: the sorted draws lie on the straight line of a uniform distribution."""
    rng = np.random.default_rng(0)
    _, _, heights, widths = np.array([crop_box(1000, 1000, rng, scale=(0.2, 0.5)) for _ in range(4000)]).T
    areas = (heights * widths / 1e6 - 0.2) / 0.3
    aspects = np.log(widths / heights) / np.log(4 / 3) / 2 + 0.5
    for draws in (areas, aspects):
        assert np.abs(np.sort(draws) - (np.arange(4000) + 0.5) / 4000).max() < 1.95 / math.sqrt(4000)  # KS, p 0.001


def test_jitter_is_torchvisions_brightness_then_contrast():
    for seed in range(20):
        rng, image = np.random.default_rng(seed), film(seed)
        brightness, contrast = rng.uniform(0.9, 1.1), rng.uniform(0.8, 1.2)
        plain = torch.from_numpy(image)[None].float() / 255
        expected = adjust_contrast(adjust_brightness(plain, brightness), contrast)[0] * 255
        tones = jitter(image, np.random.default_rng(seed))
        np.testing.assert_allclose(tones[image], expected, atol=1e-3)


def test_train_transform_range_shape_and_channels():
    low, high = ((np.array([0, 1])[:, None] - IMAGENET[0]) / IMAGENET[1])
    transform = TrainTransform(24, *IMAGENET)
    for seed in range(30):
        out = transform(film(seed, side=60), np.random.default_rng(seed))
        assert out.shape == (3, 24, 24)
        assert out.dtype == torch.float32
        assert (out.amin((1, 2)).numpy() >= low - 1e-5).all()
        assert (out.amax((1, 2)).numpy() <= high + 1e-5).all()
        gray = out * torch.tensor(IMAGENET[1])[:, None, None] + torch.tensor(IMAGENET[0])[:, None, None]
        assert torch.allclose(gray[0], gray[1], atol=1e-5)
        assert torch.allclose(gray[0], gray[2], atol=1e-5)


def test_clahe_as_published_in_half_of_the_draws(monkeypatch):
    calls, real = [], cv2.createCLAHE
    monkeypatch.setattr(cv2, "createCLAHE", lambda **options: calls.append(options) or real(**options))
    transform, image = TrainTransform(16, *HALF), film(0)
    for seed in range(600):
        transform(image, np.random.default_rng(seed))
    assert {tuple(call.items()) for call in calls} == {(("clipLimit", 4.0), ("tileGridSize", (8, 8)))}
    assert abs(len(calls) - 300) < 4.5 * math.sqrt(150)
    before = len(calls)
    EvalTransform(16, *HALF)(image)
    assert len(calls) == before


def test_never_flipped():
    image = np.full((50, 50), 40, np.uint8)
    image[:, 25:], image[:25] = 200, image[:25] + 30  # right brighter than left, top brighter than bottom
    for seed in range(200):
        out = TrainTransform(16, *HALF)(image, np.random.default_rng(seed))[0]
        assert out[:, 8:].mean() > out[:, :8].mean()


@pytest.mark.parametrize("shape", [(16, 16), (16, 23), (31, 16)])
def test_eval_transform_is_centre_crop_and_normalisation(shape):
    """Shorter side already 16: only crop and arithmetic remain, written out pixel by pixel."""
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    out = EvalTransform(16, *IMAGENET)(image)
    top, left = (shape[0] - 16) // 2, (shape[1] - 16) // 2
    for c, y, x in itertools.product(range(3), range(16), range(16)):
        expected = (image[top + y, left + x] / 255 - IMAGENET[0][c]) / IMAGENET[1][c]
        assert out[c, y, x] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (50, 33), (8, 10)])
def test_eval_transform_resizes_the_shorter_side(shape):
    """A ramp stays the same ramp: the centre is kept, and every image comes out at the asked size."""
    ramp = np.broadcast_to(np.linspace(0, 250, shape[1]), shape).astype(np.uint8)
    out = EvalTransform(16, *HALF)(ramp)
    assert out.shape == (3, 16, 16)
    assert out.mean() == pytest.approx(ramp.mean() / 127.5 - 1, abs=0.03)
    assert torch.equal(out, EvalTransform(16, *HALF)(ramp, np.random.default_rng(0)))


# ---- data set ---------------------------------------------------------------------------------------------


def test_item_layout(bank, mixed_rows):
    item = dataset(mixed_rows, bank, transform=TrainTransform(16, *HALF))[2]
    assert item["study_id"] == "s2"
    assert item["images"].shape == (2, 3, 16, 16)
    assert len(item["texts"]) == 2
    plain = dataset(mixed_rows, bank, views=1, texts=1)[2]
    assert plain["images"].shape == (1, 3, 16, 16)
    assert len(plain["texts"]) == 1


def test_draws_depend_on_seed_epoch_and_study_only(bank, mixed_rows):
    transform = TrainTransform(16, *HALF)
    data, reverse = (dataset(rows, bank, transform=transform) for rows in (mixed_rows, mixed_rows[::-1]))
    for index in (2, 7, 11):
        assert same(data[3, index], reverse[3, 19 - index])  # the row's place does not matter
        assert same(data[3, index], data.__getitems__([(0, 1), (3, index)])[1])
        assert not same(data[3, index], data[4, index])
        assert not same(data[3, index], dataset(mixed_rows, bank, transform=transform, seed=1)[3, index])
        data.set_epoch(3)
        assert same(data[index], data[3, index])


def test_generator_is_stable_across_machines():
    """Written down once: a changed hash would silently change every published batch."""
    assert generator(0, 1, "s2").integers(0, 10**6, 3).tolist() == [880569, 985195, 125667]


def same(item, other):
    return (item["study_id"], item["texts"]) == (other["study_id"], other["texts"]) and torch.equal(
        item["images"], other["images"])


def test_b12_studies_without_report_and_label_are_set_aside(bank):
    rows = [study(i, findings="F.") for i in range(40)]
    rows[7] = study(7, findings=" ", impression="")
    rows[9] = study(9, findings_aug=["ghost"])
    data = dataset(rows, bank)
    assert data.set_aside == ["s7", "s9"]
    assert len(data) == 38
    assert [data[i]["study_id"] for i in range(38)] == [f"s{i}" for i in range(40) if i not in (7, 9)]


def test_more_than_five_percent_set_aside_stops(bank):
    rows = [study(i, findings="F.") for i in range(40)]
    for i in (3, 5, 8):
        rows[i] = study(i)
    with pytest.raises(InputError, match=r"3 of 40 studies have neither a report nor a label \(first: s3, s5, s8\)"):
        dataset(rows, bank)
    with pytest.raises(InputError, match="no studies"):
        dataset([], bank)


def test_faults_name_the_study(bank):
    rows = [study(0, findings="F."), study(1, positive=["Oedem"])]
    with pytest.raises(InputError, match=r"study s1: unknown finding 'Oedem' \(nearest known: .*Edema"):
        dataset(rows, bank)
    with pytest.raises(InputError, match="study s1: 'Edema' is labelled both"):
        dataset([rows[0], study(1, positive=["Edema"], uncertain=["Edema"])], bank)
    with pytest.raises(InputError, match="study s4: no image"):
        dataset([study(4, (), findings="F.")], bank)
    broken = study(5, findings="F.", images=[{"bytes": b"not a film", "path": "x.jpg"}])
    with pytest.raises(InputError, match="study s5, image 0"):
        dataset([broken], bank)[0]


def test_labels_of_a_study_with_a_report_need_no_prompts(bank):
    """Test sets carry names of their own; only studies that speak by their labels need sentences."""
    assert dataset([study(0, findings="F.", positive=["Lung cavity"])], bank)[0]["texts"] == ["F.", "F."]


def test_b4_strings_where_lists_belong(bank):
    rows = table([study(0, findings="F.")])
    flat = rows.remove_columns("positive").add_column("positive", ["Edema"])
    with pytest.raises(InputError, match="column 'positive' holds plain values"):
        PretrainingDataset(flat, bank, EvalTransform(16, *HALF), seed=0)
    with pytest.raises(InputError, match="no column 'views'"):
        PretrainingDataset(rows.remove_columns("views"), bank, EvalTransform(16, *HALF), seed=0)


@pytest.mark.parametrize("options", [{"views": 3}, {"texts": 0}, {"max_negatives": 0}])
def test_parameters_out_of_range(bank, options):
    with pytest.raises(InputError, match=next(iter(options))):
        dataset([study(0, findings="F.")], bank, **options)


def test_mix_is_its_parts_one_after_the_other(bank, mixed_rows):
    parts = [dataset(mixed_rows[:7], bank), dataset(mixed_rows[7:10], bank, max_negatives=1),
             dataset([*mixed_rows[10:], *(study(i, findings="F.") for i in range(50, 60)), study(99)], bank)]
    mix = StudyMix(parts)
    assert len(mix) == 7 + 3 + 20
    assert mix.set_aside == ["s99"]
    keys = [(1, 29), (0, 8), (2, 0), (0, 7), (0, 6), (5, 10), (0, 8)]
    slow = [parts[2][1, 19], parts[1][0, 1], parts[0][2, 0], parts[1][0, 0], parts[0][0, 6], parts[2][5, 0]]
    assert all(same(a, b) for a, b in zip(mix.__getitems__(keys), [*slow, slow[1]], strict=True))
    assert same(mix[2, 0], slow[2])


# ---- batches ----------------------------------------------------------------------------------------------


def take(batches, n):
    return list(itertools.islice(batches, n))


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
    assert list(EpochBatches(23, 5, seed=1).first_epoch()) == batches[:4]


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


def test_collate_layout_and_padding_to_the_longest_of_the_batch(tokenizer):
    items = [{"study_id": str(b), "images": torch.full((2, 3, 4, 4), 10.0 * b) + torch.arange(2.0)[:, None, None, None],
              "texts": texts} for b, texts in enumerate([["a", "a b c"], ["a b", ""], ["a b c d", "a"]])]
    batch = collate(items, tokenizer, max_tokens=100)
    assert batch["pixel_values"].shape == (2, 3, 3, 4, 4)
    assert batch["pixel_values"][:, :, 0, 0, 0].tolist() == [[0, 10, 20], [1, 11, 21]]
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 3, 6)  # [CLS] a b c d [SEP]
    assert batch["attention_mask"].sum(2).tolist() == [[3, 4, 6], [5, 2, 3]]
    assert batch["input_ids"][1, 1].tolist() == [2, 3, 0, 0, 0, 0]


def test_absurdly_long_text_is_cut_and_keeps_its_end_token(tokenizer):
    item = {"study_id": "s", "images": torch.zeros(1, 3, 4, 4), "texts": ["word " * 50_000]}
    ids = collate([item], tokenizer, max_tokens=12)["input_ids"]
    assert ids.shape == (1, 1, 12)
    assert ids[0, 0, -1] == 3


def test_workers_never_change_a_batch_and_any_step_can_resume(bank, mixed_rows, tokenizer):
    """The same six batches (across two epochs) from 0, 1 and 2 workers, and from every later start."""
    mix = StudyMix([dataset(mixed_rows[:11], bank, transform=TrainTransform(16, *HALF), max_negatives=2),
                    dataset(mixed_rows[11:], bank, transform=TrainTransform(16, *HALF), seed=0)])

    def batches(start, n, workers):
        order = EpochBatches(len(mix), 6, seed=0, start_step=start)
        return take(load_batches(mix, order, tokenizer, 64, workers), n)

    state = torch.get_rng_state()
    reference = batches(0, 6, workers=0)
    assert torch.equal(torch.get_rng_state(), state)  # training's own randomness is left alone
    assert not torch.equal(reference[0]["pixel_values"], reference[3]["pixel_values"])
    for start, workers in [(0, 1), (0, 2), (2, 0), (3, 0), (4, 2), (5, 0)]:
        for expected, batch in zip(reference[start:], batches(start, 6 - start, workers), strict=True):
            assert set(batch) == set(expected)
            assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_plain_clip_batch(bank, mixed_rows, tokenizer):
    data = dataset(mixed_rows, bank, views=1, texts=1)
    batch = next(load_batches(data, EpochBatches(20, 20, seed=0), tokenizer, 64))
    assert batch["pixel_values"].shape == (1, 20, 3, 16, 16)
    assert batch["input_ids"].shape[:2] == (1, 20)
    words = max(len(re.findall(r"\S+", text)) for i in range(20) for text in data[0, i]["texts"])
    assert batch["input_ids"].shape[2] == words + 2


def test_a_translation_equal_to_the_section_is_no_second_wording():
    section = views.Section("One line. Two lines.", ["One line. Two lines."])
    rng = np.random.default_rng(0)
    assert {views.variant(section, rng) for _ in range(20)} == {"Two lines. One line."}


# ---- switches: draws --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("views", "expected"), [
    (["PA"], {0: 1}), (["AP", "AP"], {0: 1 / 2, 1: 1 / 2}), (["PA", "PA", "LATERAL"], {0: 1 / 4, 1: 1 / 4, 2: 1 / 2})])
def test_one_random_image_is_of_a_random_view(views, expected):
    rng = np.random.default_rng(0)
    drawn = [draw_images(views, 1, rng, "random") for _ in range(3000)]
    assert {len(indices) for indices in drawn} == {1}
    assert_even(Counter(indices[0] for indices in drawn), expected)


def single_texts(row, bank, n=3000, **options):
    rng = np.random.default_rng(0)
    return Counter(text for _ in range(n) for text in draw_texts(row, 1, bank, rng, **options))


def test_one_random_text_is_of_a_random_section(bank):
    row = study(0, findings="F.", findings_aug=["f1.", "f2."], impression="I.")
    assert_even(single_texts(row, bank, draw="random"), {"F.": 1 / 4, "f1.": 1 / 8, "f2.": 1 / 8, "I.": 1 / 2})
    assert_even(single_texts(row, bank, draw="random", augment=False), {"F.": 1 / 2, "I.": 1 / 2})
    assert single_texts(row, bank, 20, augment=False) == {"F.": 20}


def test_without_augmentation_sections_are_as_written(bank):
    two = study(0, findings="F. G.", findings_aug=["f."], impression="I. J.", impression_aug=["i."])
    assert text_counts(two, bank, 30, augment=False) == {("F. G.", "I. J."): 30}
    one = study(0, impression="I. J.", impression_aug=["i."])
    assert text_counts(one, bank, 30, augment=False) == {("I. J.", "I. J."): 30}
    prompts = study(0, positive=["Edema"])
    assert text_counts(prompts, bank, 200, augment=False) == text_counts(prompts, bank, 200)


def test_draw_and_augment_reach_the_items(bank):
    row = study(0, ("PA", "LATERAL"), findings="F.", findings_aug=["f."], impression="I.", impression_aug=["i."])
    films = [EvalTransform(16, *HALF)(read_gray(image["bytes"], "here")) for image in row["images"]]

    def seen(**options):
        items = [dataset([row], bank, views=1, texts=1, **options)[epoch, 0] for epoch in range(60)]
        return ({next(i for i in (0, 1) if torch.equal(item["images"][0], films[i])) for item in items},
                {text for item in items for text in item["texts"]})
    assert seen() == ({0}, {"F."})
    assert seen(draw="random") == ({0, 1}, {"F.", "f.", "I.", "i."})
    assert seen(draw="random", augment=False) == ({0, 1}, {"F.", "I."})


def test_details_are_told_where_a_finding_is_not_denied(bank):
    row = study(0, positive=["Edema"], negative=["Mass"], uncertain=["Fracture"])
    details = {"s0": {"Edema": "severe", "Mass": "left", "Hernia": "right"}}
    (text, _) = dataset([row], bank, details=details)[0]["texts"]
    sentences = re.split(r"(?<=[.])\s+", text)
    assert sum(sentence.endswith(": severe.") for sentence in sentences) == 1
    assert text.count(":") == 1
    plain = dataset([row], bank, details={"s1": {"Edema": "severe"}})[0]["texts"]
    assert plain == dataset([row], bank)[0]["texts"]


# ---- switches: what a batch says of its studies -----------------------------------------------------------


def test_content_is_the_same_text_or_the_same_positive_classes(bank):
    def content(details=None, **columns):
        return content_of(study(0, **columns), bank, details)
    assert content(findings="F.") == content(findings=" F. ", positive=["Edema"])
    assert len({content(findings="F."), content(findings="G."), content(findings="F.", impression="I."),
                content(positive=["Edema"]), content(positive=["Edema", "Mass"]), content(negative=["Edema"])}) == 6
    assert content(positive=["Mass", "Effusion"]) == content(positive=["Pleural Effusion", "Mass"], negative=["Edema"])
    assert content({"Mass": "left"}, positive=["Mass"]) != content({"Mass": "right"}, positive=["Mass"])
    assert content({"Mass": "left"}, findings="F.") == content(findings="F.")


def test_content_is_stable_across_machines(bank):
    """Written down once: processes compare these numbers."""
    assert content_of(study(0, findings="F."), bank) == -3294802382755830133


def test_batches_say_content_and_weight_only_when_asked(bank, mixed_rows, tokenizer):
    def batch(**options):
        order = EpochBatches(20, 20, seed=0)
        return next(load_batches(dataset(mixed_rows, bank, **options), order, tokenizer, 64))
    plain, told = batch(), batch(contents=True, label_weight=0.25)
    assert set(plain) == {"pixel_values", "input_ids", "attention_mask"}
    assert set(told) == {*plain, "content", "weight"}
    assert all(torch.equal(told[name], plain[name]) for name in plain)
    order = next(iter(EpochBatches(20, 20, seed=0)))[1]
    kinds = torch.tensor([i % 5 for i in order])  # 0, 1 and 3 have reports, 2 and 4 labels (see mixed_rows)
    assert told["content"].dtype == torch.int64
    assert torch.equal(told["content"][:, None] == told["content"], kinds[:, None] == kinds)
    assert torch.equal(told["weight"], torch.where((kinds == 2) | (kinds == 4), 0.25, 1.0))


def test_who_has_a_report(bank, mixed_rows):
    expected = [i % 5 in (0, 1, 3) for i in range(20)]
    assert dataset(mixed_rows, bank).has_report.tolist() == expected
    mix = StudyMix([dataset(mixed_rows[:9], bank), dataset(mixed_rows[9:], bank)])
    assert mix.has_report.tolist() == expected


# ---- switches: orders -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three_sources(bank):
    """9 studies with reports, then 14 and 6 with labels."""
    rows = [study(i, findings="F.") if i < 9 else study(i, positive=["Edema"]) for i in range(29)]
    return StudyMix([dataset(part, bank) for part in (rows[:9], rows[9:23], rows[23:])])


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
        seen = [i for _, indices in some for i in indices]
        assert len(set(seen)) == len(seen)
    assert len({tuple(map(tuple, sources[6 * e : 6 * e + 6])) for e in range(10)}) > 1, "turns must be drawn anew"


def test_report_share_holds_in_each_batch_and_each_side_has_its_epochs(three_sources):
    batches = take(switched(three_sources, report_share=0.75), 30)
    assert [sum(i < 9 for i in indices) for _, indices in batches] == [3] * 30
    for reports in (True, False):  # 9 reports by 3: epochs of 3 batches; 20 labels by 1: one of 20
        seen = [i for _, indices in batches for i in indices if (i < 9) == reports]
        size = 9 if reports else 20
        assert all(len(set(seen[k : k + size])) == size for k in range(0, len(seen) - size + 1, size))


def test_the_last_steps_are_reports_only(three_sources):
    plain = take(EpochBatches(29, 4, seed=1), 20)
    batches = take(switched(three_sources, reports_last=0.3), 20)
    assert batches[:14] == plain[:14]
    assert all(i < 9 for _, indices in batches[14:] for i in indices)


def test_impossible_switches(bank, three_sources):
    for options in ({"report_share": 0.01}, {"report_share": 0.99}):
        with pytest.raises(InputError, match="each batch needs some of both"):
            next(iter(switched(three_sources, **options)))
    labels_only = StudyMix(three_sources.parts[1:])
    with pytest.raises(InputError, match="from 0 report and 20 label studies"):
        next(iter(switched(labels_only, report_share=0.5)))
    with pytest.raises(InputError, match="no training study has a report"):
        take(switched(labels_only, reports_last=0.5), 20)
    with pytest.raises(InputError, match="a batch of 8 out of 6 studies"):
        next(iter(switched(three_sources, batch_size=8, kind="one-source")))


def test_shares_are_nested_seeded_and_whole():
    quarter, half, whole = (share_of(40, share, 3, "C") for share in (0.25, 0.5, 1))
    assert (len(quarter), len(half), whole) == (10, 20, list(range(40)))
    assert set(quarter) < set(half)
    assert half == sorted(half)
    assert share_of(40, 0.5, 3, "C") == half != share_of(40, 0.5, 4, "C")
    assert half != share_of(40, 0.5, 3, "C14")
