"""Switches for what the released code does otherwise than it was meant to (PAPER against code: ledger.py tells each).

`Rules.of("official")` is the released code's behaviour, `Rules.of("B3")` one row of the ledger's. All off, the
default, is the intended behaviour.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from cxrclip.errors import InputError


def _switch(row: str, *, official: bool = True) -> bool:
    """A field of Rules: off, for a row of the ledger; is it part of "official"?"""
    return field(default=False, metadata={"row": row, "official": official})


@dataclass(frozen=True)
class Rules:
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
    def of(cls, text: str) -> Rules:
        """Rules by one word, "intended" or "official", or by rows of the ledger joined by commas, such as "B2,B3".

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


INTENDED = Rules()
