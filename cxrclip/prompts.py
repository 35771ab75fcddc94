"""Labels -> sentences, and the texts of zero-shot classification (paper, sections 2 and 3).

A study that has labels but no report is given one: a sentence for each labelled class, drawn from the class's
positive, negative or uncertain sentences, in random order. The sentences are in `prompts.yaml`, which explains
how to edit them.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from cxrclip.data.settings import checked, read_settings
from cxrclip.errors import InputError

DEFAULT_FILE = Path(__file__).with_name("prompts.yaml")
STATES = ("positive", "negative", "uncertain")
MAX_TEXTS = 10_000  # of one class in a zero-shot task; the official ones have at most 1,000

Texts = tuple[str, ...]
Task = dict[str, tuple[Texts, Texts]]


@dataclass(frozen=True)
class PromptBank:
    """The sentences of every class, other names for the classes, and the zero-shot tasks.

    prompts: class -> state ("positive", "negative", "uncertain") -> sentences
    aliases: another name -> class
    tasks: zero-shot task -> class -> (negative texts, positive texts)
    """

    prompts: dict[str, dict[str, Texts]]
    aliases: dict[str, str]
    tasks: dict[str, Task]

    @classmethod
    def load(cls, path: str | Path | None = None) -> PromptBank:
        """Read prompts from a YAML file laid out as `prompts.yaml`, or from the official JSON layout.

        The official layout is `{class: {"pos": [...], "neg": [...], "unc": [...]}}`; a name that ends in
        .json selects it. Sections the file does not have (always `aliases` and `zero_shot` of a JSON file)
        are those of `prompts.yaml`. Raises InputError that names the file and the key.
        """
        path = DEFAULT_FILE if path is None else Path(path)
        content = read_settings(path)
        if path.suffix.lower() == ".json":
            official = {name: checked(_Official, states, f"{path}: {name}") for name, states in content.items()}
            content = {"prompts": {name: states.states() for name, states in official.items()}}
        file = checked(_File, read_settings(DEFAULT_FILE) | content, path)
        prompts = {name: checked(_Class, states, f"{path}: prompts: {name}").texts()
                   for name, states in file.prompts.items()}
        aliases = {alias: name for alias, name in file.aliases.items() if name in prompts}
        if "aliases" in content and (wrong := sorted(file.aliases.items() - aliases.items())):
            alias, name = wrong[0]
            raise InputError(f"{path}: aliases: {alias}: {name!r} is not a class of the section prompts")
        return cls(prompts, aliases, {name: _task(spec, f"{path}: zero_shot: {name}")
                                      for name, spec in file.zero_shot.items()})

    @property
    def classes(self) -> list[str]:
        """The classes that have sentences: 21 in `prompts.yaml`."""
        return list(self.prompts)

    def class_of(self, finding: str) -> str:
        """The class of a finding name: itself, in any case, or by an alias (Effusion -> Pleural Effusion).

        Raises InputError with the nearest known names where there is none.
        """
        if finding in self.prompts:
            return finding
        if (plain := _plain(finding)) in self._known:
            return self._known[plain]
        near = dict.fromkeys(self._known[name] for name in difflib.get_close_matches(plain, self._known))
        hint = f"nearest known: {', '.join(near or self.prompts)}"
        raise InputError(f"unknown finding {finding!r} ({hint}): rename it or add it to the prompts file")

    @cached_property
    def _known(self) -> dict[str, str]:
        names = {name: name for name in self.prompts} | self.aliases
        return {_plain(name): class_name for name, class_name in names.items()}

    def labelled(self, positive: Sequence[str], negative: Sequence[str], uncertain: Sequence[str]) -> dict[str, str]:
        """Class -> state for the labels of one study; empty when the study has no label.

        Raises InputError for an unknown finding, a class in two states, a state the class has no sentences
        for, and a plain string in place of a list (the official code indexes it by character: ledger B4).
        """
        labels: dict[str, str] = {}
        for state, findings in zip(STATES, (positive, negative, uncertain), strict=True):
            if isinstance(findings, str):
                raise InputError(f"{state} labels: {findings!r} is a plain string; a list is needed: [{findings!r}]")
            for finding in findings:
                name = self.class_of(finding)
                if labels.setdefault(name, state) != state:
                    raise InputError(f"{name!r} is labelled both {labels[name]} and {state}; keep one label")
                if state not in self.prompts[name]:
                    raise InputError(f"{name!r} has no {state} sentences: add some to the prompts file")
        return labels

    def report(self, positive: Sequence[str], negative: Sequence[str], uncertain: Sequence[str],
               rng: np.random.Generator, max_negatives: int | None = None,
               sentence: Callable[[str, str, str], str] | None = None) -> str:
        """One sentence for each labelled class, in random order, joined by spaces (paper, section 2).

        max_negatives: keep at most this many negative labels, at least 1, drawn at random (3 for ChestX-ray14 in
        the paper; None keeps all, as for CheXpert). A study without any label has no report: InputError, where the
        official code returns an empty text (ledger B12). Callers set such studies aside beforehand.
        sentence: (class, state, drawn sentence) -> the sentence to use; by default the drawn one.
        """
        labels = self.labelled(positive, negative, uncertain)
        if not labels:
            raise InputError("a study without any label gives no report; set it aside")
        negatives = [name for name, state in labels.items() if state == "negative"]
        if max_negatives is not None and len(negatives) > max_negatives:
            dropped = {negatives[i] for i in rng.permutation(len(negatives))[max_negatives:]}
            labels = {name: state for name, state in labels.items() if name not in dropped}
        choices = [self.prompts[name][state] for name, state in labels.items()]
        sentences = [texts[rng.integers(len(texts))] for texts in choices]
        if sentence:
            sentences = [sentence(name, state, text)
                         for text, (name, state) in zip(sentences, labels.items(), strict=True)]
        return " ".join(sentences[i] for i in rng.permutation(len(sentences)))

    def zero_shot(self, task: str) -> Task:
        """Class -> (negative texts, positive texts) of a task; chexpert5x200 has no negative texts.

        Tasks of `prompts.yaml`: vindr-cxr, rsna, siim, chestxray14, chexpert5x200, and the first four with
        "-ensemble" appended (several wordings of each side).
        """
        if task not in self.tasks:
            raise InputError(f"unknown zero-shot task {task!r}; known: {', '.join(self.tasks)}")
        return self.tasks[task]

    def sentences(self) -> list[str]:
        """Every pretraining sentence once, in file order: what label studies can say."""
        lists = (texts for states in self.prompts.values() for texts in states.values())
        return list(dict.fromkeys(itertools.chain.from_iterable(lists)))


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


# ---- a prompts file --------------------------------------------------------------------------------------

V = TypeVar("V", list, dict)


def _written(text: str) -> str:
    if not text.strip():
        raise ValueError("empty sentence; write one or remove the line")
    return text


def _once(texts: V) -> V:
    values = list(texts.values()) if isinstance(texts, dict) else texts
    if repeated := [value for value in values if values.count(value) > 1]:
        raise ValueError(f"{repeated[0]!r} is given twice; keep one")
    return texts


def _named(classes: object) -> object:
    """Classes with their wordings; in a list, the name of each class is its wording."""
    return {str(name): name for name in _once(classes)} if isinstance(classes, list) else classes


Sentence = Annotated[str, AfterValidator(_written)]
Sentences = Annotated[list[Sentence], Field(min_length=1), AfterValidator(_once)]
Word = Annotated[str, AfterValidator(lambda text: text and _written(text))]  # "" is left out of the text
Words = Annotated[list[Word], Field(min_length=1), AfterValidator(_once)]
Wordings = Annotated[dict[str, Sentence], BeforeValidator(_named), Field(min_length=1), AfterValidator(_once)]
Section = Annotated[dict[str, Any], Field(min_length=1)]


class _File(BaseModel, extra="forbid"):
    """The sections of a prompts file; classes and tasks are checked one by one."""

    prompts: Section
    aliases: dict[str, str]
    zero_shot: Section


class _Class(BaseModel, extra="forbid"):
    """The sentences of one class."""

    positive: Sentences
    negative: Sentences
    uncertain: Sentences | None = None

    def texts(self) -> dict[str, Texts]:
        """State -> its sentences; a state without any is left out."""
        return {state: tuple(texts) for state in STATES if (texts := getattr(self, state))}

    @model_validator(mode="after")
    def _no_sentence_in_two_states(self) -> _Class:
        _once(list(itertools.chain.from_iterable(self.texts().values())))
        return self


class _Official(BaseModel, extra="forbid"):
    """One class in the official layout; an empty `unc` means that the class is never uncertain."""

    pos: list[str]
    neg: list[str]
    unc: list[str] = []

    def states(self) -> dict[str, list[str]]:
        """State -> its sentences, as in our own layout."""
        return {"positive": self.pos, "negative": self.neg} | ({"uncertain": self.unc} if self.unc else {})


class _Templates(BaseModel, extra="forbid"):
    """A zero-shot task: texts with {finding} for both sides, and its classes."""

    negative: Sentences
    positive: Sentences
    classes: Wordings


class _Combined(BaseModel, extra="forbid"):
    """One class of a zero-shot task (CheXpert 5x200): its texts are all "severity subtype location"."""

    severity: Words
    subtype: Sentences
    location: Words

    @model_validator(mode="after")
    def _not_too_many(self) -> _Combined:
        if (number := len(self.severity) * len(self.subtype) * len(self.location)) > MAX_TEXTS:
            raise ValueError(f"{number:,} combinations, more than {MAX_TEXTS:,}; shorten the lists")
        return self

    def texts(self) -> Texts:
        """Every combination of the three lists, joined by spaces; an empty word leaves no gap."""
        products = itertools.product(self.severity, self.subtype, self.location)
        return tuple(" ".join(filter(None, product)) for product in products)


def _task(spec: dict[str, object], where: str) -> Task:
    """{finding} templates for both sides, or products of word lists for one (CheXpert 5x200)."""
    if "classes" not in checked(Section, spec, where):
        return {name: ((), checked(_Combined, words, f"{where}: {name}").texts()) for name, words in spec.items()}
    task = checked(_Templates, spec, where)
    return {name: (_fill(task.negative, wording), _fill(task.positive, wording))
            for name, wording in task.classes.items()}


def _fill(templates: Sequence[str], wording: str) -> Texts:
    return tuple(template.replace("{finding}", wording) for template in templates)
