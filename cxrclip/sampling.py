"""A study becomes two images and two texts: the paper's multi-view sampling, its transforms and its batches.

Every draw comes from one random generator per (seed, epoch, study), never from a global one. So a batch is the
same whatever the number of worker processes, and a run can start again at any step.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import cv2
import datasets
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedTokenizerBase

from cxrclip.errors import InputError
from cxrclip.images import decode_gray, resize_shorter
from cxrclip.prompts import STATES, PromptBank
from cxrclip.rules import INTENDED, Rules

FRONTAL = ("PA", "AP", "FRONTAL")
SECTIONS = ("findings", "impression")
LIST_COLUMNS = ("images", "views", "findings_aug", "impression_aug", *STATES)
COLUMNS = ("study_id", *SECTIONS, *LIST_COLUMNS)
MAX_SET_ASIDE = 0.05
BACK_TRANSLATION = 0.5  # probability that a section is replaced by its back-translation
CLAHE = 0.5             # probability of CLAHE in training

TONES = np.arange(256, dtype=np.float32)  # an 8-bit film has no others

Key = int | tuple[int, int]  # an index, or (epoch, index)
Batches = Iterable[tuple[int, list[int]]]  # (epoch, indices), batch after batch


def generator(seed: int, epoch: int, name: str) -> np.random.Generator:
    """The random generator of (seed, epoch, study id): the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}/{epoch}/{name}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "little"))


# ---- which images, which texts ----------------------------------------------------------------------------


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
        labels = [study[state] for state in STATES]
        if rules.empty_prompts and not any(labels):
            return [""] * count
        return [bank.report(*labels, rng, max_negatives, details) for _ in range(count)]
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


# ---- transforms -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainTransform:
    """Random crop, CLAHE, brightness and contrast, normalisation; no flip, for the heart is on the left.

    size: pixels a side. mean, std: one value a channel, of images scaled to 0-1.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> Tensor:
        """image (H, W) uint8 -> (3, size, size) float32. Source: official behaviour."""
        image = random_resized_crop(image, self.size, rng)
        if rng.random() < CLAHE:
            image = cv2.createCLAHE(clipLimit=4.0, tileGridSize=(8, 8)).apply(image)
        return to_tensor(image, jitter(image, rng), self.mean, self.std)


@dataclass(frozen=True)
class EvalTransform:
    """Shorter side to `size`, centre crop, normalisation; no CLAHE (official behaviour)."""

    size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: np.ndarray, rng: np.random.Generator | None = None) -> Tensor:
        """image (H, W) uint8 -> (3, size, size) float32; `rng` is not used."""
        image = resize_shorter(image, self.size)
        top, left = ((side - self.size) // 2 for side in image.shape)
        return to_tensor(image[top : top + self.size, left : left + self.size], TONES, self.mean, self.std)


def random_resized_crop(image: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """A random part of `image` (H, W) uint8, resized to (size, size)."""
    top, left, height, width = crop_box(*image.shape, rng)
    method = cv2.INTER_AREA if min(height, width) > size else cv2.INTER_LINEAR
    return cv2.resize(image[top : top + height, left : left + width], (size, size), interpolation=method)


def crop_box(height: int, width: int, rng: np.random.Generator, scale: tuple[float, float] = (0.8, 1.1),
             ratio: float = 4 / 3) -> tuple[int, int, int, int]:
    """A crop (top, left, height, width) of `scale` times the area, with sides 1 : `ratio` to `ratio` : 1, log-uniform.

    The published upper scale is above 1. As in torchvision and albumentations, a crop that does not fit in the
    image is neither padded nor clipped: it is drawn again, up to ten times, then the largest central crop of a
    permitted ratio is taken. For a square image that is all of it, in about 6 % of the draws.
    """
    for u_area, u_aspect, u_top, u_left in rng.random((10, 4)).tolist():
        area = (scale[0] + u_area * (scale[1] - scale[0])) * height * width
        aspect = ratio ** (2 * u_aspect - 1)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(u_top * (height - h + 1)), int(u_left * (width - w + 1)), h, w
    h, w = min(height, round(width * ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


def jitter(image: np.ndarray, rng: np.random.Generator, brightness: float = 0.1,
           contrast: float = 0.2) -> np.ndarray:
    """Brightness times 1 +- `brightness`, then contrast times 1 +- `contrast` about the image's mean.

    image (H, W) uint8 -> (256,) float32: what becomes of each of the 256 tones of gray, within 0-255. Sources:
    official values; torchvision's definitions.
    """
    tones = np.minimum(TONES * np.float32(rng.uniform(1 - brightness, 1 + brightness)), 255)
    factor = np.float32(rng.uniform(1 - contrast, 1 + contrast))
    tones = tones * factor + tones.take(image).mean() * (1 - factor)
    return tones.clip(0, 255)


def to_tensor(image: np.ndarray, tones: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """image (H, W) uint8, drawn in `tones` (256,) -> (3, H, W): (tone / 255 - mean) / std, channel by channel."""
    mean, std = (np.asarray(values, np.float32).reshape(-1, 1) for values in (mean, std))
    channels = (tones / np.float32(255) - mean) / std  # (3, 256): arithmetic on 256 tones, not on every pixel
    return torch.from_numpy(channels.take(image, axis=1)).expand(3, -1, -1)


# ---- data set ---------------------------------------------------------------------------------------------

Transform = Callable[[np.ndarray, np.random.Generator], Tensor]


class PretrainingDataset(Dataset):
    """The studies of one source, each as `views` images and `texts` texts (1 or 2 of either).

    Studies with neither a report nor a label are set aside at construction: their ids are in `set_aside`.

    Args:
        studies: rows of the study table, at random access (studies.open_studies).
        transform: (image (H, W) uint8, generator) -> (3, S, S).
        max_negatives: negative sentences a prompt keeps; None keeps all. Official: 3 for ChestX-ray14.
        draw: with one view (text), "first" or "random". augment: False leaves texts as written; images are the
            transform's business.
        contents: items also say what their text says, as a number (content_of).
        label_weight: items also say how much their rows count: 1 with a report, this without; 1 says nothing.
        rules: behaviours of the released code (rules.py). trivial_validation is for a validation set: a single image
            is seen twice alike, and label data say one prompt twice (ledger B5).
        details: study id -> class -> words that prompts add (oracle.py).

    Raises:
        InputError: a missing column, strings where lists belong, an unknown finding (names the study), a study
            without images, more than 5 % of the studies set aside.
    """

    def __init__(self, studies: datasets.Dataset, bank: PromptBank, transform: Transform, *, seed: int,
                 views: int = 2, texts: int = 2, max_negatives: int | None = None, draw: str = "first",
                 augment: bool = True, contents: bool = False, label_weight: float = 1.0,
                 details: Mapping[str, Mapping[str, str]] | None = None, rules: Rules = INTENDED) -> None:
        for name, value in (("views", views), ("texts", texts)):
            if value not in (1, 2):
                raise InputError(f"{name}={value}: a study gives 1 or 2 {name}; choose one of these")
        if max_negatives is not None and max_negatives < 1:
            raise InputError(f"max_negatives={max_negatives}: a normal study would say nothing; use 1 or more, or None")
        check_columns(studies)
        self.bank, self.transform, self.seed, self.epoch = bank, transform, seed, 0
        self.views, self.texts, self.max_negatives = views, texts, max_negatives
        self.draw, self.augment, self.details = draw, augment, details or {}
        self.contents, self.label_weight, self.rules = contents, label_weight, rules
        studies = studies.select_columns(list(COLUMNS))
        usable, self.set_aside = split_usable(studies, bank, rules)
        self.studies = studies.select(usable) if self.set_aside else studies

    def __len__(self) -> int:
        return len(self.studies)

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study speak by a report? The others speak by their labels."""
        small = self.studies.select_columns(list(SECTIONS)).iter(batch_size=1000)
        rows = itertools.chain.from_iterable(chunk_rows(chunk) for chunk in small)
        return np.array([any(text and text.strip() for text in row.values()) for row in rows], bool)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of plain indices; batches carry their own, as (epoch, index)."""
        self.epoch = epoch

    def __getitem__(self, key: Key) -> dict[str, Any]:
        """{"study_id", "images": (V, 3, S, S), "texts": list of T strings} of index or (epoch, index)."""
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[dict[str, Any]]:
        """Several items with one read of the table; DataLoader calls this by itself."""
        pairs = [key if isinstance(key, tuple) else (self.epoch, key) for key in keys]
        columns = self.studies[[index for _, index in pairs]]
        rows = ({name: values[i] for name, values in columns.items()} for i in range(len(pairs)))
        return [self._sample(row, epoch) for row, (epoch, _) in zip(rows, pairs, strict=True)]

    def _sample(self, study: Mapping[str, Any], epoch: int) -> dict[str, Any]:
        rng = generator(self.seed, epoch, study["study_id"])
        chosen = draw_images(study["views"], self.views, rng, self.draw, self.rules)
        details = self.details.get(study["study_id"])
        texts = draw_texts(study, self.texts, self.bank, rng, self.max_negatives, draw=self.draw,
                           augment=self.augment, details=details, rules=self.rules)
        films = {i: decode_gray(study["images"][i]["bytes"], f"study {study['study_id']}, image {i}")
                 for i in sorted(set(chosen))}
        seen = [self.transform(films[i], rng) for i in chosen]
        if self.rules.trivial_validation:
            seen = seen[:1] * len(seen) if len(set(chosen)) == 1 else seen
            texts = texts if sections_of(study) else texts[:1] * len(texts)
        images = torch.stack(seen)
        marks = {"content": content_of(study, self.bank, details)} if self.contents else {}
        if self.label_weight != 1:
            marks["weight"] = 1.0 if sections_of(study) else self.label_weight
        return {"study_id": study["study_id"], "images": images, "texts": texts, **marks}


def check_columns(studies: datasets.Dataset) -> None:
    """InputError when a column is missing, or holds plain strings where lists belong (ledger B4)."""
    for name in COLUMNS:
        if name not in studies.features:
            raise InputError(f"the study table has no column {name!r}; write it with studies.write_studies")
        if name in LIST_COLUMNS and isinstance(studies.features[name], datasets.Value):
            raise InputError(f"column {name!r} holds plain values where lists belong; make each a list")


def split_usable(studies: datasets.Dataset, bank: PromptBank, rules: Rules = INTENDED) -> tuple[list[int], list[str]]:
    """Indices of the studies with a report or a label, and the ids of those without; labels are checked.

    rules.empty_prompts: those without are used, too (ledger B12).
    """
    usable, set_aside = [], []
    small = studies.select_columns([name for name in COLUMNS if name != "images"])
    rows = itertools.chain.from_iterable(chunk_rows(chunk) for chunk in small.iter(batch_size=1000))
    for i, study in enumerate(rows):
        try:
            speaks = (sections_of(study) or bank.labelled(*(study[state] for state in STATES))
                      or rules.empty_prompts)
        except InputError as error:
            raise InputError(f"study {study['study_id']}: {error}") from error
        if not study["views"]:
            raise InputError(f"study {study['study_id']}: no image; remove the row")
        (usable if speaks else set_aside).append(i if speaks else study["study_id"])
    if not len(studies):
        raise InputError("no studies to train on; check the split")
    if len(set_aside) > MAX_SET_ASIDE * len(studies):
        raise InputError(f"{len(set_aside)} of {len(studies)} studies have neither a report nor a label "
                         f"(first: {', '.join(set_aside[:3])}); {MAX_SET_ASIDE:.0%} are tolerated: mend the table")
    return usable, set_aside


def chunk_rows(columns: Mapping[str, Sequence]) -> Iterator[dict[str, Any]]:
    """The rows of a dict of columns, as HF datasets returns several rows at once."""
    for values in zip(*columns.values(), strict=True):
        yield dict(zip(columns, values, strict=True))


class StudyMix(Dataset):
    """Several data sets, one after the other, as one: the roles M, C and C14 with their own `max_negatives`."""

    def __init__(self, parts: Sequence[PretrainingDataset]) -> None:
        self.parts = parts
        self.ends = list(itertools.accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    @property
    def set_aside(self) -> list[str]:
        """The ids of the studies set aside in any part."""
        return [study_id for part in self.parts for study_id in part.set_aside]

    @cached_property
    def has_report(self) -> np.ndarray:
        """(N,) bool: does the study speak by a report?"""
        return np.concatenate([part.has_report for part in self.parts])

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """The items of (epoch, index) pairs, in their order, each part read once."""
        places = defaultdict(list)
        for place, (_, index) in enumerate(keys):
            places[bisect_right(self.ends, index)].append(place)
        items = {}
        for part, where in places.items():
            start = self.ends[part] - len(self.parts[part])
            local = [(keys[place][0], keys[place][1] - start) for place in where]
            items |= zip(where, self.parts[part].__getitems__(local), strict=True)
        return [items[place] for place in range(len(keys))]

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """The item of one (epoch, index) pair."""
        return self.__getitems__([key])[0]


# ---- batches ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EpochBatches:
    """Full batches of study indices for ever: each epoch a new order by seed, the incomplete last batch dropped.

    Iterating yields (epoch, indices) from `start_step` on (steps count batches over all epochs), so a resumed run
    sees what the killed run would have seen. `batch_size` counts the studies of all processes together; the
    process `rank` of `world_size` gets its slice. `order` names the order: two of them are independent.
    """

    n_studies: int
    batch_size: int
    seed: int
    start_step: int = 0
    rank: int = 0
    world_size: int = 1
    order: str = "order of the studies"

    def __post_init__(self) -> None:
        if not 1 <= self.batch_size <= self.n_studies:
            raise InputError(f"a batch of {self.batch_size} out of {self.n_studies} studies: lower the batch size")
        if self.batch_size % self.world_size:
            raise InputError(f"a batch of {self.batch_size} cannot be shared by {self.world_size} processes evenly: "
                             "choose a multiple")

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of one epoch."""
        return self.n_studies // self.batch_size

    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        epoch, done = divmod(self.start_step, self.steps_per_epoch)
        while True:
            yield from itertools.islice(self.epoch(epoch), done, None)
            epoch, done = epoch + 1, 0

    def epoch(self, epoch: int) -> Iterator[tuple[int, list[int]]]:
        """The batches of one epoch, whatever `start_step` says."""
        order = generator(self.seed, epoch, self.order).permutation(self.n_studies)
        share = self.batch_size // self.world_size
        for step in range(self.steps_per_epoch):
            first = step * self.batch_size + self.rank * share
            yield epoch, order[first : first + share].tolist()

    def first_epoch(self) -> Iterator[tuple[int, list[int]]]:
        """The batches of epoch 0: a fixed set, as validation needs it."""
        return self.epoch(0)


def arranged(batches: EpochBatches, mix: StudyMix, steps: int, *, kind: str = "mixed",
             report_share: float | None = None, reports_last: float = 0.0) -> Batches:
    """`batches` themselves, or with a switch on what it makes of them; each resumes at any step as they do.

    kind "one-source", report_share, reports_last: see `one_source`, `with_report_share`, `reports_at_the_end`, whose
    share of `steps` is rounded. One-source batches cannot have a share of reports.
    """
    found: Batches = batches
    if kind == "one-source":
        found = one_source(batches, [len(part) for part in mix.parts])
    elif report_share is not None:
        labels = np.flatnonzero(~mix.has_report).tolist()
        found = with_report_share(batches, np.flatnonzero(mix.has_report).tolist(), labels, report_share)
    if reports_last:
        reports = np.flatnonzero(mix.has_report).tolist()
        found = reports_at_the_end(found, batches, reports, steps - round(reports_last * steps))
    return found


def one_source(batches: EpochBatches, sizes: Sequence[int]) -> Batches:
    """Each batch from one source only; an epoch is every source's full batches, sources taking turns at random.

    sizes: studies of each source, which stand one after the other. A source has turns in proportion to its studies.
    """
    starts = [0, *itertools.accumulate(sizes)]
    sources = [replace(batches, n_studies=n, order=f"order of source {i}") for i, n in enumerate(sizes)]
    first_epoch, done = divmod(batches.start_step, sum(source.steps_per_epoch for source in sources))
    for epoch in itertools.count(first_epoch):
        whole = [(epoch, [start + i for i in indices]) for start, source in zip(starts, sources, strict=False)
                 for _, indices in source.epoch(epoch)]
        turns = generator(batches.seed, epoch, "order of the turns").permutation(len(whole))
        yield from (whole[turn] for turn in turns[done:])
        done = 0


def with_report_share(batches: EpochBatches, reports: Sequence[int], labels: Sequence[int], share: float) -> Batches:
    """Each batch with the same share of report studies; either side goes through epochs of its own.

    reports, labels: indices of the studies. The share is rounded to whole studies. As there are two epochs, a study's
    draws are settled by the step in their place: (step, indices).
    """
    n = round(share * batches.batch_size)
    if not (reports and labels and 0 < n < batches.batch_size):
        raise InputError(f"report_share={share} of a batch of {batches.batch_size}, from {len(reports)} report and "
                         f"{len(labels)} label studies: each batch needs some of both")
    of_reports = replace(batches, n_studies=len(reports), batch_size=n, order="order of the reports")
    of_labels = replace(batches, n_studies=len(labels), batch_size=batches.batch_size - n, order="order of the labels")
    for step, (_, some), (_, others) in zip(itertools.count(batches.start_step), of_reports, of_labels, strict=False):
        yield step, [reports[i] for i in some] + [labels[i] for i in others]


def reports_at_the_end(found: Batches, batches: EpochBatches, reports: Sequence[int], switch: int) -> Batches:
    """`found` up to step `switch`, then report studies only, in epochs that no step before has used."""
    yield from itertools.islice(found, max(0, switch - batches.start_step))
    if not reports:
        raise InputError("reports_last: no training study has a report: leave it at 0")
    last = replace(batches, n_studies=len(reports), start_step=max(0, batches.start_step - switch),
                   order="order of the last reports")
    for epoch, indices in last:
        yield switch + epoch, [reports[i] for i in indices]


def share_of(n: int, share: float, seed: int, name: str) -> list[int]:
    """Sorted indices of a share of n studies, drawn by seed and name; a smaller share lies within a larger one."""
    drawn = generator(seed, 0, f"share of {name}").permutation(n)[:round(share * n)]
    return np.sort(drawn).tolist()


def collate(items: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase,
            max_tokens: int) -> dict[str, Tensor]:
    """Batch B items of V images and T texts; texts are padded to the longest of the batch, cut at `max_tokens`.

    Returns {"pixel_values": (V, B, 3, S, S) float32, "input_ids": (T, B, L), "attention_mask": (T, B, L)}, and of
    items that say so "content" (B,) int64 and "weight" (B,) float32.
    """
    texts = [text for same_place in zip(*(item["texts"] for item in items), strict=True) for text in same_place]
    tokens = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_token_type_ids=False,
                       return_tensors="pt")
    shape = (-1, len(items), tokens["input_ids"].shape[1])  # (T, B, L)
    marks = {name: torch.tensor([item[name] for item in items]) for name in ("content", "weight") if name in items[0]}
    return {
        "pixel_values": torch.stack([item["images"] for item in items], dim=1),
        "input_ids": tokens["input_ids"].reshape(shape),
        "attention_mask": tokens["attention_mask"].reshape(shape),
        **marks,
    }


def load_batches(dataset: PretrainingDataset | StudyMix, batches: Iterable[tuple[int, Sequence[int]]],
                 tokenizer: PreTrainedTokenizerBase, max_tokens: int, workers: int = 0) -> Iterator[dict[str, Tensor]]:
    """The collated batches of (epoch, indices), in that order; the same for any number of worker processes."""
    keys = ([(epoch, index) for index in indices] for epoch, indices in batches)
    loader = DataLoader(
        dataset, batch_sampler=keys, num_workers=workers, worker_init_fn=_one_thread,
        collate_fn=partial(collate, tokenizer=tokenizer, max_tokens=max_tokens),
        generator=torch.Generator(),  # else the loader draws its (unused) seed from torch's global generator
    )
    return iter(loader)


def _one_thread(_: int) -> None:
    cv2.setNumThreads(0)  # the threads of OpenCV do not survive the fork of a worker
