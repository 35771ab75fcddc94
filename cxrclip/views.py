"""A study becomes two images and two texts: the paper's multi-view sampling (paper, section 2).

Every draw comes from one random generator per (seed, epoch, study), never from a global one. So a batch is the
same whatever the number of worker processes, and a run can start again at any step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cxrclip.prompts import STATES

FRONTAL = ("PA", "AP", "FRONTAL")
SECTIONS = ("findings", "impression")
BACK_TRANSLATION = 0.5  # probability that a section is replaced by its back-translation

Study = Mapping[str, Any]                                       # a row of the study table (studies.py)
Report = Callable[..., str]                                     # (positive, negative, uncertain, rng) -> prompts
DrawImages = Callable[[Sequence[str], np.random.Generator], list[int]]    # views, rng -> indices of V images
DrawTexts = Callable[[Study, Report, np.random.Generator], list[str]]     # study, report, rng -> T texts


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """The random generator of (seed, epoch, study id): the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


# ---- images ---------------------------------------------------------------------------------------------------------


def draw_images(views: Sequence[str], rng: np.random.Generator, count: int = 2) -> list[int]:
    """Indices of the `count` (1 or 2) images of a study that are used this time (paper, section 2).

    Two come from two distinct views if the study has them. With three views, two of the three are drawn; where a view
    has several images, one of them. A study of a single view gives one image twice, to be augmented twice.
    """
    names = list(dict.fromkeys(views))
    if len(names) == 1:
        return [int(rng.integers(len(views)))] * count
    drawn = [names[i] for i in rng.permutation(len(names))[:count]]
    choices = [[i for i, view in enumerate(views) if view == name] for name in drawn]
    return [indices[rng.integers(len(indices))] for indices in choices]


def first_image(views: Sequence[str], rng: np.random.Generator) -> list[int]:
    """The one image that plain CLIP uses: the first frontal image, or the first of all. `rng` is not used."""
    return [next((i for i, view in enumerate(views) if view in FRONTAL), 0)]


# ---- texts ----------------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """One section of a report, and its back-translations (any number)."""

    text: str
    translations: list[str]


def sections_of(study: Study) -> list[Section]:
    """The sections that are not empty: findings first, then impression. Blank text counts as missing."""
    present = [name for name in SECTIONS if study[name] and study[name].strip()]
    return [Section(study[name], [t for t in study[f"{name}_aug"] if t.strip()]) for name in present]


def draw_texts(study: Study, report: Report, rng: np.random.Generator) -> list[str]:
    """The two texts of a study that are used this time (paper, section 2).

    Two sections: both, each perhaps back-translated. One section: itself and a variant of it. No report: two prompts,
    drawn independently from the labels by `report` (PromptBank.report).
    """
    sections = sections_of(study)
    if not sections:
        return prompts_of(study, report, rng, count=2)
    if len(sections) == 1:
        return [sections[0].text, variant(sections[0], rng)]
    return [maybe_back_translated(section, rng) for section in sections]


def first_text(study: Study, report: Report, rng: np.random.Generator) -> list[str]:
    """The one text that plain CLIP uses: findings as they are written, else the impression, else one prompt."""
    sections = sections_of(study)
    return [sections[0].text] if sections else prompts_of(study, report, rng, count=1)


def prompts_of(study: Study, report: Report, rng: np.random.Generator, count: int) -> list[str]:
    """`count` prompts, each drawn anew from the labels of a study without a report."""
    return [report(*(study[state] for state in STATES), rng) for _ in range(count)]


def maybe_back_translated(section: Section, rng: np.random.Generator) -> str:
    """The section, or with probability 0.5 one of its back-translations if it has any (paper, section 2)."""
    if section.translations and rng.random() < BACK_TRANSLATION:
        return section.translations[rng.integers(len(section.translations))]
    return section.text


def variant(section: Section, rng: np.random.Generator) -> str:
    """Another wording of the section: a back-translation that differs, else its sentences in another order."""
    return other_translation(section, rng) or shuffle_sentences(section.text, rng)


def other_translation(section: Section, rng: np.random.Generator) -> str | None:
    """One of the back-translations that differ from the section; None if there is none."""
    others = [text for text in section.translations if text != section.text]
    return others[rng.integers(len(others))] if others else None


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
