"""What the released code does otherwise than it was meant to, as wrappers around the paper's functions.

`Behaviours.of("official")` is the released code, `Behaviours.of("B3")` one row of the ledger (ledger.py). All off, the
default, is the intended behaviour. The functions below take what the paper's files take as an argument (which images,
which texts, which parameters decay, ...) and return what the released code would have done in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from torch import nn

from cxrclip.data.dataset import PretrainingDataset
from cxrclip.errors import InputError
from cxrclip.prompts import STATES
from cxrclip.training import ParameterGroups, parameter_groups
from cxrclip.views import (
    DrawImages,
    DrawTexts,
    Report,
    Study,
    generator,
    maybe_back_translated,
    other_translation,
    sections_of,
)


def _switch(row: str, *, official: bool = True) -> bool:
    """A field of Behaviours: off, for a row of the ledger; is it part of "official"?"""
    return field(default=False, metadata={"row": row, "official": official})


@dataclass(frozen=True)
class Behaviours:
    """Which behaviours of the released code are on. All off: the intended behaviour.

    Those that need data which our checks refuse, or which are no behaviour of the code but a fault of data (D rows),
    are no part of "official".
    """

    overwritten_views: bool = _switch("B1")      # of more than two views only the last is used
    one_view_only: bool = _switch("B1*", official=False)  # the same, as if every study had more than two
    idle_shuffle: bool = _switch("B2")           # the shuffled sentences are lost
    repeated_sections: bool = _switch("B3")      # two sections are drawn with replacement
    indexed_strings: bool = _switch("B4", official=False)  # a text is a letter of a plain string
    trivial_validation: bool = _switch("B5")     # two equal prompts, two equal images in validation
    validation_on_training: bool = _switch("B6")  # the probe picks its epoch on its training studies
    alphabetical_text: bool = _switch("B7")      # the retrieval text is the later section in the alphabet
    corner_token: bool = _switch("B8")           # Swin's feature is its top-left patch
    decay_on_all: bool = _switch("B9")           # biases, norms and the logit scale decay, too
    lenient_loading: bool = _switch("B10")       # weights that do not fit are left out silently
    no_plain_clip: bool = _switch("B11")         # two views and two texts, whatever was asked
    empty_prompts: bool = _switch("B12")         # a study that says nothing is trained with an empty text
    relative_warmup: bool = _switch("B13")       # the probe warms up for 10 % of its steps, not for 3 epochs
    adamw_probe: bool = _switch("B15")           # a probe by AdamW on one draw, not the optimum on five
    seen_films: bool = _switch("D2", official=False)  # test films are in pretraining
    row_split: bool = _switch("D4", official=False)   # positive test films are in the probe's training set

    @classmethod
    def of(cls, text: str) -> Behaviours:
        """Behaviours by one word, "intended" or "official", or by rows of the ledger joined by commas, such as "B2,B3".

        InputError for an unknown word, or for a row that no switch stands for.
        """
        known = {item.metadata["row"]: item for item in fields(cls)}
        if text == "intended":
            return cls()
        rows = [row for row, item in known.items() if item.metadata["official"]]
        if text != "official":
            rows = [row.strip() for row in text.split(",")]
        if unknown := [row for row in rows if row not in known]:
            raise InputError(f"rules={text!r}: {unknown[0]!r} is unknown: write intended, official, or rows of the "
                             f"ledger joined by commas: {', '.join(known)}")
        return cls(**{known[row].name: True for row in rows})


INTENDED = Behaviours()


# ---- pretraining ----------------------------------------------------------------------------------------------------


def released_images(draw: DrawImages, behaviours: Behaviours) -> DrawImages:
    """`draw` as the released code does it: of more than two views only the last is used (B1, B1*)."""
    if not (behaviours.overwritten_views or behaviours.one_view_only):
        return draw

    def drawn(views: Sequence[str], rng: np.random.Generator) -> list[int]:
        names = list(dict.fromkeys(views))
        if not behaviours.one_view_only and len(names) <= 2:
            return draw(views, rng)
        kept = [i for i, view in enumerate(views) if view == names[-1]]
        return [kept[i] for i in draw([names[-1]] * len(kept), rng)]

    return drawn


def released_texts(draw: DrawTexts, behaviours: Behaviours, count: int) -> DrawTexts:
    """`draw`, which gives `count` texts, as the released code does it.

    B2: the shuffled sentences of a single section are lost. B3: two sections are drawn with replacement, so that half
    of the draws take one twice. B4: a plain string where a list belongs is indexed by character. B12: a study without
    report and label gives empty texts.
    """
    def drawn(study: Study, report: Report, rng: np.random.Generator) -> list[str]:
        sections = sections_of(study)
        if behaviours.indexed_strings and sections:
            texts = [sections[rng.integers(len(sections))].text for _ in range(count)]
            return [text[rng.integers(len(text))] for text in texts]
        if behaviours.repeated_sections and len(sections) == count == 2:
            twice = [sections[rng.integers(2)] for _ in range(2)]
            return [maybe_back_translated(section, rng) for section in twice]
        if behaviours.idle_shuffle and len(sections) == 1 and count == 2:
            return [sections[0].text, other_translation(sections[0], rng) or sections[0].text]
        if behaviours.empty_prompts and not sections and not any(study[state] for state in STATES):
            return [""] * count
        return draw(study, report, rng)

    return drawn


class TrivialValidation(PretrainingDataset):
    """Validation studies as the released code sees them: ICL and TCL are trivial for many (B5).

    A single image is seen twice alike, and label data give one prompt twice.
    """

    def item(self, study: Study, epoch: int, index: int = 0) -> dict[str, Any]:
        """The item of the intended behaviour, with its second image and text replaced by the first where B5 does."""
        item = super().item(study, epoch, index)
        chosen = self.images(study["views"], generator(self.seed, epoch, study["study_id"]))
        if len(set(chosen)) == 1:
            item["images"] = item["images"][:1].expand_as(item["images"])
        if not sections_of(study):
            item["texts"] = item["texts"][:1] * len(item["texts"])
        return item


def released_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """AdamW's parameter groups: everything decays, also biases, norms and the logit scale (B9)."""
    return [{"params": list(model.parameters()), "weight_decay": weight_decay}]


def groups_of(behaviours: Behaviours) -> ParameterGroups:
    """Which parameters decay: the intended rule, or the released one (B9)."""
    return released_groups if behaviours.decay_on_all else parameter_groups


# ---- evaluation -----------------------------------------------------------------------------------------------------


def alphabetical_text(study: Study) -> str:
    """max() of findings and impression as strings: the later one in the alphabet (B7)."""
    return max(str(study[name] or "").strip() for name in ("findings", "impression"))


def leaked_rows(test_targets: np.ndarray) -> np.ndarray:
    """Sorted rows of positive test studies that a split by row puts into training as well (D4).

    The share is SIIM's: 154 of 476 positive test films have another of their masks in train. Drawn by a fixed seed.
    """
    positive = np.flatnonzero(test_targets.any(axis=1))
    return np.sort(np.random.default_rng(0).permutation(positive)[:round(154 / 476 * len(positive))])


def load_leniently(model: nn.Module, weights: Mapping[str, Any]) -> nn.Module:
    """Load what fits and stay silent about the rest, which keeps its random start (B10)."""
    model.load_state_dict(weights, strict=False)
    return model
