"""Labels -> sentences, and the texts of zero-shot classification (paper, sections 2 and 3).

A study that has labels but no report becomes a report: every labelled class gives one sentence, drawn from
the class's positive, negative or uncertain sentences, in random order. The sentences stand in `prompts.yaml`,
which explains itself to whoever edits it.
"""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import yaml

from cxrclip.errors import InputError

OWN_FILE = Path(__file__).with_name("prompts.yaml")
STATES = ("positive", "negative", "uncertain")
OFFICIAL_STATES = {"pos": "positive", "neg": "negative", "unc": "uncertain"}
COMBINED = ("severity", "subtype", "location")

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
        path = OWN_FILE if path is None else Path(path)
        sections = _read(OWN_FILE)
        given = _read(path)
        if path.suffix.lower() == ".json":
            given = {"prompts": _from_official(given, path)}
        if unknown := sorted(set(given) - set(sections)):
            raise InputError(f"{path}: unknown section {unknown[0]!r}; known: {', '.join(sections)}")
        sections |= given
        prompts = {
            name: _class_prompts(states, f"{path}: prompts: {name}")
            for name, states in _mapping(sections["prompts"], f"{path}: prompts").items()
        }
        aliases = _aliases(sections["aliases"], list(prompts), path, strict="aliases" in given)
        tasks = {
            name: _task(spec, f"{path}: zero_shot: {name}")
            for name, spec in _mapping(sections["zero_shot"], f"{path}: zero_shot").items()
        }
        return cls(prompts, aliases, tasks)

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

    def labelled(
        self, positive: Sequence[str], negative: Sequence[str], uncertain: Sequence[str]
    ) -> dict[str, str]:
        """Class -> state for the labels of one study; empty when the study has no label.

        Raises InputError for an unknown finding, a class in two states, a state the class has no sentences
        for, and a plain string in place of a list (the official code indexes it by character: ledger B4).
        """
        labels: dict[str, str] = {}
        for state, findings in zip(STATES, (positive, negative, uncertain), strict=True):
            for finding in as_list(findings, f"{state} labels"):
                name = self.class_of(finding)
                if labels.setdefault(name, state) != state:
                    raise InputError(f"{name!r} is labelled both {labels[name]} and {state}; keep one label")
                if state not in self.prompts[name]:
                    raise InputError(f"{name!r} has no {state} sentences: add some to the prompts file")
        return labels

    def report(
        self,
        positive: Sequence[str],
        negative: Sequence[str],
        uncertain: Sequence[str],
        rng: np.random.Generator,
        max_negatives: int | None = None,
        sentence: Callable[[str, str, str], str] | None = None,
    ) -> str:
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


def as_list(value: Sequence[str], where: str) -> Sequence[str]:
    """`value`, or InputError when it is a plain string (ledger B4)."""
    if isinstance(value, str):
        raise InputError(f"{where}: {value!r} is a plain string; a list of strings is needed: [{value!r}]")
    return value


def _plain(name: str) -> str:
    return name.replace("_", " ").casefold()


# ---- reading a prompts file -----------------------------------------------------------------------------


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML as usual, except that a key written twice is an error, not a silent loss of the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        mapping = super().construct_mapping(node, deep)  # first: it refuses keys that are lists
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _unique(keys, f"line {node.start_mark.line + 1}")
        return mapping


def _unique_object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    _unique([key for key, _ in pairs], "an object")
    return dict(pairs)


def _read(path: Path) -> dict[str, object]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".json":
            content = json.loads(text, object_pairs_hook=_unique_object)
        else:
            content = yaml.load(text, Loader=_UniqueKeyLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except (ValueError, yaml.YAMLError) as error:  # not UTF-8, not JSON, not YAML
        raise InputError(f"{path}: malformed: {' '.join(str(error).split())}") from error
    return _mapping(content, str(path))


def _from_official(content: Mapping[str, object], path: Path) -> dict[str, object]:
    prompts: dict[str, object] = {}
    for name, entry in content.items():
        where = f"{path}: {name}"
        states = _mapping(entry, where)
        if unknown := sorted(set(states) - set(OFFICIAL_STATES)):
            raise InputError(f"{where}: unknown key {unknown[0]!r}; the keys are pos, neg, unc")
        # An empty "unc" means that the class is never uncertain.
        given = {key: texts for key, texts in states.items() if key != "unc" or texts}
        prompts[name] = {OFFICIAL_STATES[key]: texts for key, texts in given.items()}
    return prompts


def _class_prompts(states: object, where: str) -> dict[str, Texts]:
    states = _mapping(states, where)
    if unknown := sorted(set(states) - set(STATES)):
        raise InputError(f"{where}: unknown key {unknown[0]!r}; the keys are {', '.join(STATES)}")
    if missing := [state for state in STATES[:2] if state not in states]:
        raise InputError(f"{where}: no {missing[0]} sentences; add a list of at least one")
    result = {state: _sentences(states[state], f"{where}: {state}") for state in STATES if state in states}
    _unique([sentence for texts in result.values() for sentence in texts], where)
    return result


def _aliases(section: object, classes: list[str], path: Path, *, strict: bool) -> dict[str, str]:
    """The aliases of known classes; `strict` (the file's own aliases) makes any other an error."""
    aliases = _mapping(section, f"{path}: aliases")
    for alias, name in aliases.items():
        if strict and name not in classes:
            raise InputError(f"{path}: aliases: {alias}: {name!r} is not a class of the section prompts")
    return {alias: name for alias, name in aliases.items() if name in classes}


def _task(spec: object, where: str) -> Task:
    """{finding} templates for both sides, or products of word lists for one (CheXpert 5x200)."""
    spec = _mapping(spec, where)
    if "classes" not in spec:
        return {name: ((), _combinations(words, f"{where}: {name}")) for name, words in spec.items()}
    if set(spec) != {"negative", "positive", "classes"}:
        raise InputError(f"{where}: keys {', '.join(spec)}; needed: negative, positive, classes")
    negative, positive = (_sentences(spec[side], f"{where}: {side}") for side in ("negative", "positive"))
    classes = spec["classes"]
    if isinstance(classes, list):
        classes = {name: name for name in _sentences(classes, f"{where}: classes")}
    wordings = _mapping(classes, f"{where}: classes")
    texts = _sentences(list(wordings.values()), f"{where}: classes")
    return {name: (_fill(negative, text), _fill(positive, text)) for name, text in zip(wordings, texts, strict=True)}


def _fill(templates: Texts, wording: str) -> Texts:
    return tuple(template.replace("{finding}", wording) for template in templates)


def _combinations(words: object, where: str) -> Texts:
    """All texts "severity subtype location", empty words left out."""
    words = _mapping(words, where)
    if set(words) != set(COMBINED):
        raise InputError(f"{where}: keys {', '.join(words)}; needed: {', '.join(COMBINED)}")
    lists = [_sentences(words[key], f"{where}: {key}", empty_word=key != "subtype") for key in COMBINED]
    return tuple(" ".join(filter(None, combination)) for combination in itertools.product(*lists))


def _sentences(value: object, where: str, *, empty_word: bool = False) -> Texts:
    """A checked list of texts: at least one, each a non-empty string, none twice."""
    if not isinstance(value, list):
        raise InputError(f"{where}: {value!r} is not a list; write one sentence a line, each after a dash")
    if not value:
        raise InputError(f"{where}: empty list; add at least one sentence")
    for text in value:
        if not isinstance(text, str):
            raise InputError(f"{where}: {text!r} is not text; put the sentence in double quotes")
        if not text.strip() and not (empty_word and text == ""):
            raise InputError(f"{where}: empty sentence; write one or remove the line")
    _unique(value, where)
    return tuple(value)


def _mapping(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict) or not value:
        raise InputError(f"{where}: `name: value` lines are needed here, found {value!r}")
    if wrong := [key for key in value if not isinstance(key, str)]:
        raise InputError(f"{where}: the name {wrong[0]!r} is not text; put it in double quotes")
    return value


def _unique(values: Sequence[Hashable], where: str) -> None:
    if repeated := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
        raise InputError(f"{where}: {repeated[0]!r} stands there twice; keep one")
