"""What tests build again and again: films, studies, study tables, data sets, a tokenizer, exact frequencies."""

from __future__ import annotations

import itertools
import math
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModel, AutoProcessor, PreTrainedTokenizerFast

import cxrclip.hub.processing  # noqa: F401  # tells transformers of this kind of model
from cxrclip.data.dataset import PretrainingDataset
from cxrclip.data.images import encode_gray
from cxrclip.data.phantom import world
from cxrclip.prompts import PromptBank
from cxrclip.studies import SCHEMA, open_studies
from cxrclip.transforms import EvalTransform

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5,) * 3, (0.5,) * 3)


@cache
def prompt_bank():
    """The library's own prompts."""
    return PromptBank.load()


@cache
def book_model():
    """The book's model and its processor, as plain transformers loads them."""
    folder = Path(__file__).parents[1] / "models" / "phantom"
    return AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)


def drawn_tests(name, n, folder):
    """The first n test studies of a phantom institution, drawn into a new folder."""
    world.generate(name, {"test": n}, folder, progress=False)
    return open_studies(folder, "test")


@cache
def word_tokenizer():
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


def small_film(seed):
    """A noisy film of 16 x 16 pixels as PNG."""
    return encode_gray(np.random.default_rng(seed).integers(0, 256, (16, 16), dtype=np.uint8), "png")


def small_row(i, **changes):
    """A study of one small film with the required columns alone; half of the studies are for training."""
    row = {"study_id": f"s{i}", "patient_id": f"p{i}", "source": "here",
           "split": ("train", "train", "valid", "test")[i % 4],
           "images": [{"bytes": small_film(i), "path": f"{i}.png"}], "views": ["PA"]}
    return row | changes


def table(rows):
    return Dataset(pa.Table.from_pylist(rows, schema=SCHEMA))


def dataset(rows, **options):
    """The rows as a PretrainingDataset, with the evaluation transform unless another is given."""
    options = {"seed": 0, "transform": EvalTransform(16, *HALF)} | options
    return PretrainingDataset(table(rows), prompt_bank(), options.pop("transform"), **options)


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


def take(batches, n):
    """The first n."""
    return list(itertools.islice(batches, n))


def same(item, other):
    """Are two items of a data set equal?"""
    return (item["study_id"], item["texts"]) == (other["study_id"], other["texts"]) and bool(
        (item["images"] == other["images"]).all())


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
