"""views.py: every rule against a slow, obvious re-statement."""

import itertools
from collections import Counter
from functools import partial

import numpy as np
import pytest
from builders import assert_even, image_pairs, prompt_bank, study

from cxrclip import views
from cxrclip.views import draw_images, draw_texts, first_image, first_text, generator, shuffle_sentences

# ---- images ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("views", [
    ["PA"], ["AP", "AP"], ["PA", "LATERAL"], ["PA", "PA", "LATERAL"], ["PA", "AP", "LATERAL"],
    ["PA", "AP", "LATERAL", "LATERAL", "LL"],
])
def test_two_images_are_of_two_views_where_there_are_two(views):
    """B1: three and more views give two distinct ones as well."""
    rng = np.random.default_rng(0)
    assert_even(Counter(tuple(draw_images(views, rng)) for _ in range(4000)), image_pairs(views))


@pytest.mark.parametrize(("views", "index"), [
    (["LATERAL", "PA", "AP"], 1), (["AP", "LATERAL"], 0), (["LATERAL"], 0), (["LL", "LATERAL", "AP"], 2),
    (["UNKNOWN", "FRONTAL"], 1)])
def test_one_image_is_the_first_frontal(views, index):
    assert first_image(views, np.random.default_rng(0)) == [index]


@pytest.mark.parametrize(("views", "expected"), [
    (["PA"], {0: 1}), (["AP", "AP"], {0: 1 / 2, 1: 1 / 2}), (["PA", "PA", "LATERAL"], {0: 1 / 4, 1: 1 / 4, 2: 1 / 2})])
def test_one_random_image_is_of_a_random_view(views, expected):
    rng = np.random.default_rng(0)
    drawn = [draw_images(views, rng, count=1) for _ in range(3000)]
    assert {len(indices) for indices in drawn} == {1}
    assert_even(Counter(indices[0] for indices in drawn), expected)


# ---- texts ----------------------------------------------------------------------------------------------------------


def text_counts(row, n=2000, draw=draw_texts, **options):
    rng, report = np.random.default_rng(0), partial(prompt_bank().report, **options)
    return Counter(tuple(draw(row, report, rng)) for _ in range(n))


def test_b3_two_sections_are_never_one_section_twice():
    row = study(0, findings="F.", impression="I.")
    assert text_counts(row) == {("F.", "I."): 2000}


def test_sections_are_back_translated_half_of_the_time():
    row = study(0, findings="F.", findings_aug=["f1.", "f2."], impression="I.", impression_aug=["i."])
    first, second = {"F.": 1 / 2, "f1.": 1 / 4, "f2.": 1 / 4}, {"I.": 1 / 2, "i.": 1 / 2}
    expected = {(a, b): first[a] * second[b] for a in first for b in second}
    assert_even(text_counts(row, 4000), expected)


@pytest.mark.parametrize("empty", [None, "", "  \n\t "])
def test_one_section_with_its_back_translation(empty):
    row = study(0, findings=empty, findings_aug=["ghost"], impression="I. J.", impression_aug=["i1.", " ", "i2."])
    assert_even(text_counts(row), {("I. J.", "i1."): 1 / 2, ("I. J.", "i2."): 1 / 2})


def test_one_section_without_back_translation_is_shuffled():
    row = study(0, findings="One is. Two is. Three is.")
    orders = [" ".join(order) for order in itertools.permutations(["One is.", "Two is.", "Three is."])]
    assert_even(text_counts(row), {(orders[0], other): 1 / 5 for other in orders[1:]})


def test_one_section_of_one_sentence_is_itself_twice():
    assert text_counts(study(0, impression="No change"), 20) == {("No change", "No change"): 20}


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


def test_label_study_draws_two_independent_prompts():
    """The pair's frequencies are the products of the single ones."""
    row = study(0, negative=["Mass"])
    sentences = prompt_bank().prompts["Mass"]["negative"]
    expected = {(a, b): 1 / len(sentences) ** 2 for a in sentences for b in sentences}
    assert_even(text_counts(row, 4000), expected)


def test_max_negatives_reaches_the_prompts():
    row = study(0, positive=["Edema"], negative=["Mass", "Nodule", "Hernia", "Fibrosis"])
    for pair in text_counts(row, 50, max_negatives=2):
        assert [text.count(".") for text in pair] == [3, 3]


@pytest.mark.parametrize(("columns", "expected"), [
    ({"findings": "F. G.", "impression": "I.", "findings_aug": ["f"]}, "F. G."),
    ({"findings": " ", "impression": "I. J."}, "I. J."),
    ({"findings": "F.", "positive": ["Edema"]}, "F."),
])
def test_one_text_is_the_plain_section(columns, expected):
    rng = np.random.default_rng(0)
    assert {tuple(first_text(study(0, **columns), prompt_bank().report, rng)) for _ in range(50)} == {(expected,)}


def test_one_text_of_a_label_study_is_one_prompt():
    (text,) = first_text(study(0, positive=["Edema"]), prompt_bank().report, np.random.default_rng(0))
    assert text in prompt_bank().prompts["Edema"]["positive"]


def test_a_translation_equal_to_the_section_is_no_second_wording():
    section = views.Section("One line. Two lines.", ["One line. Two lines."])
    rng = np.random.default_rng(0)
    assert {views.variant(section, rng) for _ in range(20)} == {"Two lines. One line."}


def test_generator_is_stable_across_machines():
    """Written down once: a changed hash would silently change every published batch."""
    assert generator(0, 1, "s2").integers(0, 10**6, 3).tolist() == [880569, 985195, 125667]
