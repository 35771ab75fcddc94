"""Paper against code: where the released code does not do what it was meant to, row by row.

B rows are behaviour of the released code, D rows disagree about the data. Most have a switch in
behaviours.py; for the others it is a source of data, or an option of one. effects.py and comparisons.ledger measure
what each costs.
"""

from __future__ import annotations

from dataclasses import dataclass

from cxrclip.errors import InputError


@dataclass(frozen=True)
class Entry:
    """A row of the ledger. B: behaviour of the released code; D: sources that disagree about the data.

    switch: a field of Behaviours, or how else the two behaviours are chosen.
    """

    id: str
    switch: str
    where: str
    intended: str
    official: str


LEDGER: tuple[Entry, ...] = (
    Entry("B1", "overwritten_views", "data rule", "Two images of a study come from two distinct views.",
          "With more than two views a loop overwrites the list of paths: both images are of the last view."),
    Entry("B1*", "one_view_only", "data rule", "Two images of a study come from two distinct views.",
          "As B1, as if every study had more than two views: an upper bound for data that have two at most."),
    Entry("B2", "idle_shuffle", "data rule", "A single section varies by the order of its sentences.",
          "The shuffled text is assigned to a loop variable and lost: the section stays as it is."),
    Entry("B3", "repeated_sections", "data rule", "Two sections of a report give the two texts.",
          "The sections are drawn with replacement: half of the draws take one section twice."),
    Entry("B4", "indexed_strings", "data rule", "A plain string where a list belongs is refused.",
          "A plain string is indexed by character: the text is a single letter."),
    Entry("B5", "trivial_validation", "data rule", "Validation draws two views and two prompts, as training does.",
          "Label data give one prompt twice and single images one view twice, so ICL and TCL are trivial in the loss "
          "that picks the checkpoint."),
    Entry("B6", "validation_on_training", "protocol", "VinDr-CXR's probe picks its epoch on studies it was not "
          "trained on.", "The validation file is the training file."),
    Entry("B7", "alphabetical_text", "protocol", "The retrieval text is the longer of findings and impression.",
          "max() of two strings is the later one in the alphabet."),
    Entry("B8", "corner_token", "pooling", "Swin's feature is the mean over all places.",
          "It is the first token: the top-left patch."),
    Entry("B9", "decay_on_all", "training", "Biases, norms and the logit scale are not decayed.",
          "The groups without decay are ignored: weight decay acts on everything."),
    Entry("B10", "lenient_loading", "protocol", "Weights that do not fit the model are refused.",
          "strict=False: what does not fit stays at its random start, silently."),
    Entry("B11", "no_plain_clip", "training", "Plain CLIP: one image and one text, one pair.",
          "With ICL and TCL at 0 the second view and the mean over four pairs stay on."),
    Entry("B12", "empty_prompts", "data rule", "A study without report and label is set aside and counted.",
          "It is trained with an empty text."),
    Entry("B13", "relative_warmup", "protocol", "The probe's warm-up takes 3 epochs, as configured.",
          "It takes 10 % of the steps."),
    Entry("B14", "source chexpert5x200 or chexpert5x200-mgca", "test set", "A seeded draw, which anyone can repeat.",
          "GLoRIA's list was drawn without a seed, MGCA's with one: two different test sets."),
    Entry("B15", "adamw_probe", "protocol", "The optimum of the probe's convex problem, on five stratified draws.",
          "A linear layer trained by AdamW, on one unstratified 10 % draw (random_state 1)."),
    Entry("D1", "option `official_lists` of source chestxray14", "data",
          "The official training list, 80 / 20 by patient: 69,718 / 16,806 films (README).",
          "80 / 20 of all films, the official test list included: 89,696 / 22,423 (Table 1)."),
    Entry("D2", "seen_films", "data", "Test films were never trained on.",
          "RSNA and SIIM are films of ChestX-ray14: 58.6 % of RSNA's are in the README's pretraining split."),
    Entry("D3", "option `frontal_only` of source openi", "test set", "3,955 pairs (README): the number of all reports, "
          "of which 104 have no film.", "3,788 pairs (Table 1)."),
    Entry("D4", "row_split", "data", "SIIM is split by film.",
          "It is split by row (mask): 32.4 % of the positive test films are also in train."),
)


def entry(name: str) -> Entry:
    """The ledger's row of an id."""
    found = {item.id: item for item in LEDGER}
    if name not in found:
        raise InputError(f"the ledger has no row {name!r}: its rows are {', '.join(found)}")
    return found[name]
