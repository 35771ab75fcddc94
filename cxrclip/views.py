"""A study becomes two images and two texts: the paper's multi-view sampling (paper, section 2).

Every draw comes from one random generator per (seed, epoch, study), never from a global one. So a batch is the
same whatever the number of worker processes, and a run can start again at any step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxrclip.official.rules import INTENDED, Rules
from cxrclip.prompts import STATES, PromptBank

FRONTAL = ("PA", "AP", "FRONTAL")
SECTIONS = ("findings", "impression")
BACK_TRANSLATION = 0.5  # probability that a section is replaced by its back-translation


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """The random generator of (seed, epoch, study id): the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))



class Section(NamedTuple):
    """One section of a report, and its back-translations (any number)."""

    text: str
    translations: list[str]


def draw_images(views: Sequence[str], count: int, rng: np.random.Generator, draw: str = "first",
                rules: Rules = INTENDED) -> list[int]:
    """Indices of the `count` (1 or 2) images of a study that are used this time.

    Two: from two distinct views where the study has them (three views: two of the three; several images of one
    view: one of them), else the same image twice, to be augmented twice (paper, section 2). One, for plain CLIP: the
    first frontal image, else the first; with draw="random" an image of any view. rules.overwritten_views: of more
    than two views the last alone is used (ledger B1).
    """
    if count == 1 and draw == "first":
        return [next((i for i, view in enumerate(views) if view in FRONTAL), 0)]
    names = list(dict.fromkeys(views))
    if rules.one_view_only or (rules.overwritten_views and len(names) > 2):
        names = names[-1:]
    if len(names) == 1:
        places = [i for i, view in enumerate(views) if view == names[0]]
        return [places[rng.integers(len(places))]] * count
    drawn = [names[i] for i in rng.permutation(len(names))[:count]]
    choices = [[i for i, view in enumerate(views) if view == name] for name in drawn]
    return [indices[rng.integers(len(indices))] for indices in choices]


def sections_of(study: Mapping[str, Any]) -> list[Section]:
    """The sections that say something: findings first, then impression. Blank text counts as missing."""
    present = [name for name in SECTIONS if study[name] and study[name].strip()]
    return [Section(study[name], [t for t in study[f"{name}_aug"] if t.strip()]) for name in present]


def draw_texts(study: Mapping[str, Any], count: int, bank: PromptBank, rng: np.random.Generator,
               max_negatives: int | None = None, *, draw: str = "first", augment: bool = True,
               details: Mapping[str, str] | None = None, rules: Rules = INTENDED) -> list[str]:
    """The `count` (1 or 2) texts of a study that are used this time.

    Two sections: both, each perhaps back-translated. One section: itself and a variant of it. No report: prompts,
    drawn independently from the labels. One text, for plain CLIP: findings as written, else impression, else one
    prompt; with draw="random" either section, perhaps back-translated. augment=False: every section as it is written.
    rules: repeated_sections draws the two sections with replacement (ledger B3), indexed_strings takes a letter for
    the text (B4), empty_prompts gives a study without labels an empty text (B12), idle_shuffle: see `variant`.
    """
    sections = sections_of(study)
    if not sections:
        positive, negative, uncertain = (study[state] for state in STATES)
        if rules.empty_prompts and not (positive or negative or uncertain):
            return [""] * count
        return [bank.report(positive, negative, uncertain, rng, max_negatives, details) for _ in range(count)]
    if rules.indexed_strings:
        drawn = [sections[rng.integers(len(sections))].text for _ in range(count)]
        return [text[rng.integers(len(text))] for text in drawn]
    if count == 1 and draw == "first":
        return [sections[0].text]
    if count == 1:
        section = sections[rng.integers(len(sections))]
        return [maybe_back_translated(section, rng) if augment else section.text]
    if not augment:
        return [sections[0].text, sections[-1].text]
    if len(sections) == 2:
        if rules.repeated_sections:
            sections = [sections[rng.integers(2)] for _ in range(2)]
        return [maybe_back_translated(section, rng) for section in sections]
    return [sections[0].text, variant(sections[0], rng, rules)]


def maybe_back_translated(section: Section, rng: np.random.Generator) -> str:
    """The section, or with probability 0.5 one of its back-translations if it has any (paper, section 2)."""
    if section.translations and rng.random() < BACK_TRANSLATION:
        return section.translations[rng.integers(len(section.translations))]
    return section.text


def variant(section: Section, rng: np.random.Generator, rules: Rules = INTENDED) -> str:
    """Another wording of the section: a back-translation that differs, else its sentences in another order.

    rules.idle_shuffle: the order is lost, and the section comes back as it is (ledger B2).
    """
    if others := [text for text in section.translations if text != section.text]:
        return others[rng.integers(len(others))]
    return section.text if rules.idle_shuffle else shuffle_sentences(section.text, rng)


def shuffle_sentences(text: str, rng: np.random.Generator) -> str:
    """The sentences of `text` in a random other order; a text of one sentence is returned as it is.

    A number and its full stop ("1.") belong to the sentence that follows.
    """
    sentences = re.split(r"(?<=[^\s\d][.!?])\s+", text.strip())
    if len(sentences) == 1:
        return text
    order = rng.permutation(len(sentences))
    while (np.diff(order) == 1).all():
        order = rng.permutation(len(sentences))
    return " ".join(sentences[i] for i in order)


def content_of(study: Mapping[str, Any], bank: PromptBank, details: Mapping[str, str] | None = None) -> int:
    """What the text of a study says, as a 64-bit number: the same in every process, equal for equal content.

    Reports say the same if all their sections are identical; label-only studies if they have the same set of
    positive classes (with the same `details`, where prompts tell them).
    """
    said = ["report", *(section.text.strip() for section in sections_of(study))]
    if len(said) == 1:
        labels = bank.labelled(*(study[state] for state in STATES))
        positive = sorted(name for name, state in labels.items() if state == "positive")
        said = ["labels", *(f"{name}: {(details or {}).get(name, '')}" for name in positive)]
    digest = hashlib.blake2b("\n".join(said).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
