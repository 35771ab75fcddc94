"""What a radiologist writes about a case: findings, impression, and the labels one would take from them.

A case is read once (`read`): what is asserted, hedged and denied. Both sections and the labels put that one reading
into words. The sentences are in `reports.yaml`; five habits of writing (`HABITS`) choose among them. A report never
asserts what is not in the case; only a hedge may name something that is not there.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrclip.data.phantom.anatomy import DERIVED, VOCABULARIES, Case, Finding, settings

HABITS: tuple[str, ...] = ("telegraphic", "narrative", "systematic", "verbose", "numbered")

# A mild finding is often only suspected, a severe one never.
HEDGED: Mapping[int, float] = {1: 0.35, 2: 0.12, 3: 0.0}
# How often a finding is only named ("Right pneumothorax."): otherwise bare names would occur only after "no".
PLAIN_IN_FINDINGS, PLAIN_IN_IMPRESSION = 0.12, 0.30
NORMAL_SAID = 0.5  # share of the unaffected organs that are called normal; thorough habits name them all
MINOR = 3.2  # above this weight (see `impression_section`) a finding is not worth a line of the impression
# Where one of a group is present, none of the group is denied: they are names for much the same shadow.
AIRSPACE = ("Consolidation", "Pneumonia", "Infiltration", "Tuberculosis")
ROUND = ("Mass", "Nodule", "Calcification")

CHEXPERT: tuple[str, ...] = ("No Finding", *VOCABULARIES["chexpert"])
# What a labeller counts as denied when an organ is called normal.
MEANT: Mapping[str, str] = {
    "heart": "Cardiomegaly", "mediastinum": "Enlarged Cardiomediastinum", "lungs": "Lung Opacity", "bones": "Fracture",
}  # fmt: skip


@dataclass(frozen=True)
class Reading:
    """One radiologist's opinion of a case.

    sure: findings asserted.  hedged: (suspected finding, rival); the rival is an absent finding, a harmless
    look-alike, or None.  denied: lexicon entries said to be absent.  normal: organs called normal.
    """

    sure: tuple[Finding, ...]
    hedged: tuple[tuple[Finding, str | None], ...]
    denied: tuple[str, ...]
    normal: tuple[str, ...]


@functools.cache
def lexicon() -> dict[str, Any]:
    """The words and sentences of `reports.yaml`."""
    return settings("reports.yaml")


def read(case: Case) -> Reading:
    """The reading of a case. It depends on the case alone, so both sections and the labels agree."""
    rng = np.random.default_rng([case.seed, 1])
    words, names = lexicon(), {f.name for f in case.findings}
    sure, hedged = [], []
    for finding in case.findings:
        if finding.name != "Support Devices" and rng.random() < HEDGED[finding.severity]:
            entry = _entry(finding)
            rivals = [r for r in entry["alternatives"] if r not in names] + entry.get("mimics", [])
            hedged.append((finding, pick(rng, rivals) if rivals and rng.random() < 0.6 else None))
        else:
            sure.append(finding)
    spared = names | {rival for _, rival in hedged if rival}
    for group in (AIRSPACE, ROUND):
        if spared & set(group):
            spared |= set(group)
    denied = tuple(key for key, entry in words["findings"].items()
                   if rng.random() < entry["negated"] and key.split("/")[0] not in spared)  # fmt: skip
    troubled = {_entry(f)["organ"] for f in case.findings}
    if any(DERIVED["Mediastinal shift"](f) for f in case.findings):
        troubled.add("mediastinum")
    normal = tuple(o for o, entry in words["organs"].items() if "full" in entry and o not in troubled)
    return Reading(tuple(sure), tuple(hedged), denied, normal)


def findings_section(case: Case, habit: str, rng: np.random.Generator, views: Sequence[str] = ("PA",),
                     follow_up: bool = False) -> str:  # fmt: skip
    """The findings section: organ by organ, in the order of the habit (one of HABITS), with negatives and remarks.

    views: the study's films, for the remark on technique.  follow_up: there is an earlier study to compare with.
    """
    reading, words = read(case), lexicon()
    style = words["habits"][habit]
    register = style["register"]
    remarks = _remarks(case, style, rng, views)
    parts = []
    if rng.random() < style["technique"]:
        film = "ap" if "AP" in views else "pair" if len(views) > 1 else "pa"
        parts.append(pick(rng, words["technique"][film][register]))
    if follow_up and rng.random() < style["comparison"]:
        parts.append(pick(rng, words["comparison"][register]))
    for organ in style["order"]:
        present = [f for f in case.findings if _entry(f)["organ"] == organ]
        sentences = [_assert(f, habit, rng, PLAIN_IN_FINDINGS) for f in reading.sure if f in present]
        sentences += [_hedge(f, rival, rng) for f, rival in reading.hedged if f in present]
        passing = [text for where, text in remarks if where == organ]
        replaced = organ == "heart" and passing
        if organ in reading.normal and not replaced and (style["thorough"] or rng.random() < NORMAL_SAID):
            sentences.append(pick(rng, words["organs"][organ][register]))
        denied = [k for k in reading.denied if words["findings"][k]["organ"] == organ]
        if denied:
            sentences.append(_deny(denied, register, rng))
        sentences += passing
        if sentences and style["headings"]:
            sentences[0] = f"{pick(rng, words['organs'][organ]['heading'])}: {sentences[0]}"
        parts += sentences
    return " ".join(parts) if parts else pick(rng, words["normal_impressions"][register])


def impression_section(case: Case, habit: str, rng: np.random.Generator, views: Sequence[str] = ("PA",),
                       follow_up: bool = False) -> str:  # fmt: skip
    """The impression: what matters, most important first, at most four statements.

    Arguments as for `findings_section`. A finding weighs its importance (1 most) less its severity.
    """
    reading, words = read(case), lexicon()
    style = words["habits"][habit]
    register = style["register"]
    items = [(f, None, True) for f in reading.sure] + [(f, rival, False) for f, rival in reading.hedged]
    weights = [_entry(f)["importance"] - 0.7 * f.severity + rng.random() for f, _, _ in items]
    weighed = sorted(zip(weights, items, strict=True), key=lambda pair: pair[0])
    kept = [item for k, (weight, item) in enumerate(weighed[:4]) if k == 0 or weight < MINOR]
    sentences = [_assert(finding, habit, rng, PLAIN_IN_IMPRESSION) if sure else _hedge(finding, rival, rng)
            for finding, rival, sure in kept]  # fmt: skip
    if style["numbered"] and len(sentences) > 1:
        sentences = [f"{n}. {text}" for n, text in enumerate(sentences, 1)]
    if not sentences:
        sentences.append(pick(rng, words["normal_impressions"][register]))
    elif len(kept) == len(items) and rng.random() < 0.25:
        sentences.append(pick(rng, words["closings"][register]))
    if reading.denied and rng.random() < 0.3:
        sentences.append(_deny(list(rng.permutation(reading.denied)[:2]), register, rng))
    if rng.random() < (0.15 if items else 0.45):
        sentences += [text for _, text in _remarks(case, style, rng, views)[:1]]
    if items and rng.random() < 0.15:
        sentences.append(pick(rng, words["advice"][register]))
    if follow_up and rng.random() < 0.5 * style["comparison"]:
        sentences.insert(0, pick(rng, words["comparison"][register]))
    return " ".join(sentences)


def report_labels(case: Case, rng: np.random.Generator, slips: float = 0.03) -> tuple[list[str], list[str], list[str]]:
    """CheXpert-style (positive, negative, uncertain) from the hidden report of a case, in CheXpert's names.

    What is hedged, and the rival named with it, is uncertain; what the report denies, or means by "normal",
    is negative; the rest is unmentioned. `slips` is the share of mentions the labeller overlooks.
    "No Finding" is positive where nothing but support devices is mentioned.
    """
    reading = read(case)
    positive = {n for f in reading.sure for n in chexpert_names(f)}
    suspected = {n for f, _ in reading.hedged for n in chexpert_names(f)}
    uncertain = suspected.union(rival for _, rival in reading.hedged if rival) - positive
    denied = {key.split("/")[0] for key in reading.denied}
    denied |= {n for organ, n in MEANT.items() if organ in reading.normal and rng.random() < NORMAL_SAID}
    negative = denied - positive - uncertain
    groups = (positive, negative, uncertain)
    mentioned = [[n for n in CHEXPERT if n in group and rng.random() >= slips] for group in groups]
    if all(f.name == "Support Devices" for f in case.findings):
        mentioned[0].insert(0, "No Finding")
    return mentioned[0], mentioned[1], mentioned[2]


def chexpert_names(finding: Finding) -> list[str]:
    """The names CheXpert has for a finding: its own and the umbrella terms; may be empty (emphysema)."""
    return [n for n in CHEXPERT if n == finding.name or (n in DERIVED and DERIVED[n](finding))]


def retranslate(text: str, rng: np.random.Generator) -> str:
    """The text as if translated into another language and back: half of the known words change."""
    for old, new in lexicon()["synonyms"].items():
        if old in text.lower() and rng.random() < 0.5:
            text = re.sub(rf"\b{old}\b", pick(rng, new), text, flags=re.IGNORECASE)
    return " ".join(_sentence(s) for s in re.split(r"(?<=[.:]) ", text))


def _assert(finding: Finding, habit: str, rng: np.random.Generator, plain: float) -> str:
    """A sentence that says the finding is there."""
    words, entry = lexicon(), _entry(finding)
    draw = rng.random()
    if draw < plain:
        umbrella = [t for name, texts in words["derived"].items() if DERIVED[name](finding) for t in texts]
        if umbrella and rng.random() < 0.2:
            return _sentence(f"{pick(rng, umbrella)}.")
        sided = entry["organ"] != "devices" and rng.random() < 0.6
        return _sentence(f"{_slots(finding, rng)['side'] if sided else ''} {pick(rng, entry['names'])}.")
    if draw < plain + 0.3:
        return _sentence(pick(rng, entry["sentences"]).format_map(_slots(finding, rng)))
    return _sentence(pick(rng, words["frames"][habit]).format_map(_phrase(finding, rng)))


def _hedge(finding: Finding, rival: str | None, rng: np.random.Generator) -> str:
    """A sentence that only suspects the finding, with the rival where there is one."""
    hedges = lexicon()["hedges"]
    slots = _slots(finding, rng) | _phrase(finding, rng)
    if rival is None:
        return _sentence(pick(rng, hedges["plain"]).format_map(slots))
    keys = lexicon()["findings"]
    slots["other"] = keys[rival]["names"][0] if rival in keys else rival
    kind = "rival" if rival in keys and _entry(finding)["organ"] == "lungs" else "differential"
    return _sentence(pick(rng, hedges[kind]).format_map(slots))


def _deny(keys: Sequence[str], register: str, rng: np.random.Generator) -> str:
    """One sentence for all that is absent: "No pleural effusion or pneumothorax."."""
    findings = lexicon()["findings"]
    names = [pick(rng, findings[k]["names"]) for k in keys]
    listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return _sentence(pick(rng, lexicon()["negatives"][register]).format(list=listed))


def _remarks(case: Case, style: Mapping[str, Any], rng: np.random.Generator, views: Sequence[str]) -> list[tuple]:
    """Up to two (organ, sentence) about the body itself, all of them true."""
    true = [entry for entry in lexicon()["remarks"].values() if _holds(entry, case, "AP" in views)]
    chosen = sorted((entry for entry in true if rng.random() < style["remarks"]), key=lambda _: rng.random())[:2]
    return [(entry["organ"], pick(rng, entry[style["register"]])) for entry in chosen]


def _holds(remark: Mapping[str, Any], case: Case, bedside: bool) -> bool:
    """Whether a remark is true of a body and no finding explains it."""
    if any(f.name == remark.get("unless") for f in case.findings):
        return False
    if bedside and "bedside" in remark:
        return remark["bedside"]
    return all(low < getattr(case.body, part) < high for part, (low, high) in remark["when"].items())


def _phrase(finding: Finding, rng: np.random.Generator) -> dict[str, str]:
    """The finding as a noun phrase, with what a frame needs around it."""
    entry, slots = _entry(finding), _slots(finding, rng)
    options = entry["phrases"] + entry.get("by_degree", {}).get(finding.severity, []) * 2
    text = pick(rng, options)
    plural = text.startswith("+") or ("{s}" in text and finding.side == "both")
    text = " ".join(text.lstrip("+").format_map(slots).split())
    article = "" if plural or entry.get("mass") else "an " if text[0] in "aeiou" else "a "
    return {
        "phrase": text,
        "a_phrase": article + text,
        "is": "are" if plural else "is",
        "name": entry["names"][0],
        "area": slots["area"],
        "where": slots["at"] or slots["on"],
    }


def _slots(finding: Finding, rng: np.random.Generator) -> dict[str, str]:
    """Words for side, zone and severity (see the head of `reports.yaml`); "" where the finding has none."""
    words, entry = lexicon(), _entry(finding)
    side, zone, both = finding.side, finding.zone, finding.side == "both"
    own_zones, degrees = entry.get("zones"), entry.get("degrees", words["degrees"])
    adjective = pick(rng, words["sides"][side]["adjective"]) if side else ""
    place, noun = "", "lung"
    if zone:
        place = pick(rng, own_zones[zone] if own_zones else words["zones"][zone]["adjective"])
        noun = pick(rng, words["zones"][zone]["noun"])
    elif side and not both and entry["organ"] == "lungs":
        place = "lung"
    on = f"on the {pick(rng, words['sides'][side]['noun'])}" if side else ""
    return {
        "degree": pick(rng, degrees[finding.severity]) if rng.random() < 0.85 else "",
        "adverb": pick(rng, words["adverbs"][finding.severity]),
        "side": adjective,
        "on": "on both sides" if both else on,
        "area": f"{adjective} {place}",
        "at": "" if not side else f"in both {noun}s" if both else f"in the {side} {noun}",
        "s": "s" if both else "",
    }


def _entry(finding: Finding) -> dict[str, Any]:
    """The finding's entry in the lexicon; devices and fractures have one a kind."""
    return lexicon()["findings"][f"{finding.name}/{finding.kind}" if finding.kind else finding.name]


def _sentence(text: str) -> str:
    """Single spaces, no stray comma, "an" before a vowel, a capital first."""
    text = re.sub(r"[\s,]*([.,;:])", r"\1", " ".join(text.split())).lstrip(" ,")
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:]


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]
