"""What a radiologist writes about a case: findings, impression, and the labels one would take from them.

A case is read once (`read`): what is asserted, hedged and denied. A `Plan` chooses what a section says of the reading,
and `word` puts it into sentences of `reports.yaml` in one of five habits (`HABITS`): another habit's wording of the
same plan is a paraphrase. A report never asserts what is not there; only a hedge may name it.
"""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cxrclip.data.phantom.anatomy import DERIVED, VOCABULARIES, Case, Finding, settings

HABITS: tuple[str, ...] = ("telegraphic", "narrative", "systematic", "verbose", "numbered")

# A mild finding is often only suspected, a severe one never.
HEDGED: Mapping[int, float] = {1: 0.5, 2: 0.26, 3: 0.0}
RIVALS = 0.7  # share of the hedges that name what it might be instead
# How often a finding is only named ("Right pneumothorax."): otherwise bare names would occur only after "no".
PLAIN_IN_FINDINGS, PLAIN_IN_IMPRESSION = 0.12, 0.30
OWN_SENTENCE = 0.4  # share of the other sentences that only this finding can have; the rest are frames of the habit
NORMAL_SAID = 0.45  # share of the unaffected organs that are called normal; thorough habits name them all
# Share of normal studies with a stock impression, how many readers a habit has, and how fast the popularity of stock
# sentences falls: fitted to Open-I (calibration.py).
STOCK_IMPRESSION, READERS, ZIPF = 0.95, 6, 1.5
# CheXpert's labels are those of impressions: share of these that deny anything, and share of the denials they keep.
IMPRESSION_DENIES, DENIED_KEPT = 0.53, 0.55
LISTED = 5  # at most so many absent findings are listed in a sentence
MINOR = 3.0  # above this weight (see `plan_impression`) a finding is not worth a line of the impression
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
            hedged.append((finding, pick(rng, rivals) if rivals and rng.random() < RIVALS else None))
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


@dataclass(frozen=True)
class Statement:
    """One thing that a section says, of an organ or ("") of none.

    kind: "sure" or just "named" (about: a finding), "hedged" (a finding and its rival), "denied" (lexicon entries), or
    "stock" (an entry with sentences in two registers).
    """

    kind: str
    about: Any
    organ: str = ""


@dataclass(frozen=True)
class Plan:
    """What a section says, before a habit puts it into words. reader: whose fixed wording it takes, None: no one's."""

    statements: tuple[Statement, ...]
    impression: bool = False
    reader: int | None = None


def plan_findings(case: Case, habit: str, rng: np.random.Generator, views: Sequence[str] = ("PA",),
                  follow_up: bool = False) -> Plan:  # fmt: skip
    """What the findings section says: every finding, normal organs, negatives and remarks, as often as the habit does.

    views: the study's films, for the remark on technique.  follow_up: there is an earlier study to compare with.
    """
    reading, words = read(case), lexicon()
    style = words["habits"][habit]
    if not case.findings and rng.random() < style["stock"]:
        return _stock_findings(habit, 1 + int(rng.choice(READERS, p=_popularity(READERS))))
    said = []
    if rng.random() < style["technique"]:
        film = "ap" if "AP" in views else "pair" if len(views) > 1 else "pa"
        said.append(Statement("stock", words["technique"][film]))
    if follow_up and rng.random() < style["comparison"]:
        said.append(Statement("stock", words["comparison"]))
    remarks, apart = _remarks(case, style, rng, views), style["headings"] or rng.random() < style["apart"]
    for organ, entry in words["organs"].items():
        said += [Statement(_detail(rng, PLAIN_IN_FINDINGS), f, organ) for f in reading.sure
                 if _entry(f)["organ"] == organ]  # fmt: skip
        said += [Statement("hedged", pair, organ) for pair in reading.hedged if _entry(pair[0])["organ"] == organ]
        passing = [remark for remark in remarks if remark["organ"] == organ]
        replaced = organ in ("heart", "mediastinum") and passing
        if organ in reading.normal and not replaced and (style["thorough"] or rng.random() < NORMAL_SAID):
            said.append(Statement("stock", entry, organ))
        if denied := [k for k in reading.denied if (words["findings"][k]["organ"] if apart else "pleura") == organ]:
            said.append(Statement("denied", denied[:LISTED], organ))
        said += [Statement("stock", remark, organ) for remark in passing]
    return Plan(tuple(said) or (Statement("stock", words["normal_impressions"]),))


def _stock_findings(habit: str, reader: int) -> Plan:
    """The findings that a reader dictates for every normal study."""
    words, rng = lexicon(), np.random.default_rng([zlib.crc32(habit.encode()), reader, 1])
    routine = pick(rng, words["routine"])
    said = []
    for organ, entry in words["organs"].items():
        if "full" in entry and rng.random() < 0.8:
            said.append(Statement("stock", entry, organ))
        if organ == words["findings"][routine[0]]["organ"]:
            said.append(Statement("denied", routine, organ))
    return Plan(tuple(said), reader=reader)


def plan_impression(case: Case, habit: str, rng: np.random.Generator, views: Sequence[str] = ("PA",),
                    follow_up: bool = False) -> Plan:  # fmt: skip
    """What the impression says: what matters, most important first, at most four findings.

    Arguments as for `plan_findings`. A finding weighs its importance (1 most) less its severity.
    """
    reading, words = read(case), lexicon()
    style = words["habits"][habit]
    items = [Statement(_detail(rng, PLAIN_IN_IMPRESSION), f) for f in reading.sure]
    items += [Statement("hedged", pair) for pair in reading.hedged]
    if not items and rng.random() < STOCK_IMPRESSION:
        return Plan((Statement("stock", words["normal_impressions"]),), impression=True)
    findings = [*reading.sure, *(f for f, _ in reading.hedged)]
    weights = [_entry(f)["importance"] - 0.7 * f.severity + rng.random() for f in findings]
    weighed = sorted(zip(weights, items, strict=True), key=lambda pair: pair[0])
    said = [item for k, (weight, item) in enumerate(weighed[:4]) if k == 0 or weight < MINOR]
    if not said:
        said.append(Statement("stock", words["normal_impressions"]))
    elif len(said) == len(items) and rng.random() < 0.15:
        said.append(Statement("stock", words["closings"]))
    if reading.denied and rng.random() < 0.08:
        said.append(Statement("denied", list(rng.permutation(reading.denied)[:2])))
    if rng.random() < (0.1 if items else 0.22):
        said += [Statement("stock", remark) for remark in _remarks(case, style, rng, views)[:1]]
    if items and rng.random() < 0.1:
        said.append(Statement("stock", favourite(rng, words["advice"])))
    if follow_up and rng.random() < 0.5 * style["comparison"]:
        said.insert(0, Statement("stock", words["comparison"]))
    return Plan(tuple(said), impression=True)


def word(plan: Plan, habit: str, rng: np.random.Generator) -> str:
    """The text of a section in the words of a habit; organ by organ in its order, or numbered, as the habit does."""
    style = lexicon()["habits"][habit]
    if plan.reader is not None:
        rng = np.random.default_rng([zlib.crc32(habit.encode()), plan.reader, 2])
    parts, statements = [], plan.statements
    if style["headings"]:
        statements = tuple(part for s in statements for part in (_apart(s) if s.organ and s.kind == "denied" else (s,)))
    for organ in ("", *style["order"]):
        said = [s for s in statements if s.organ == organ]
        sentences = [_say(s, habit, rng) for s in said]
        if said and organ and style["headings"]:
            heading = favourite(rng, lexicon()["organs"][organ]["heading"])
            if said[0].kind == "stock":  # "Lungs: Clear.", not "Lungs: Lungs clear."
                sentences[0] = _sentence(sentences[0].removeprefix(f"{heading} "), {}, rng)
            sentences[0] = f"{heading}: {sentences[0]}"
        parts += sentences
    if plan.impression and style["numbered"] and len(parts) > 1:
        parts = [f"{n}. {text}" for n, text in enumerate(parts, 1)]
    return " ".join(parts)


def paraphrase(plan: Plan, habit: str, rng: np.random.Generator) -> str:
    """The same content as another habit would word it, one that writes in the other register."""
    habits = lexicon()["habits"]
    others = [other for other, style in habits.items() if style["register"] != habits[habit]["register"]]
    return word(plan, pick(rng, others), rng)


def findings_section(case: Case, habit: str, rng: np.random.Generator, *context: Any) -> str:
    """The findings section of a case in a habit (one of HABITS); context as for `plan_findings`."""
    return word(plan_findings(case, habit, rng, *context), habit, rng)


def impression_section(case: Case, habit: str, rng: np.random.Generator, *context: Any) -> str:
    """The impression of a case in a habit (one of HABITS); context as for `plan_impression`."""
    return word(plan_impression(case, habit, rng, *context), habit, rng)


def report_labels(case: Case, rng: np.random.Generator, slips: float = 0.03) -> tuple[list[str], list[str], list[str]]:
    """CheXpert-style (positive, negative, uncertain) from the hidden report of a case, in CheXpert's names.

    What is hedged, and the rival named with it, is uncertain; some of what the report denies, or means by "normal",
    is negative, for the labeller reads impressions; the rest is unmentioned. `slips` is the share of mentions the
    labeller overlooks. "No Finding" is positive where nothing but support devices is mentioned.
    """
    reading = read(case)
    positive = {n for f in reading.sure for n in chexpert_names(f)}
    suspected = {n for f, _ in reading.hedged for n in chexpert_names(f)}
    uncertain = suspected.union(rival for _, rival in reading.hedged if rival) - positive
    denied = {key.split("/")[0] for key in reading.denied}
    denied |= {n for organ, n in MEANT.items() if organ in reading.normal and rng.random() < NORMAL_SAID}
    kept = DENIED_KEPT if rng.random() < IMPRESSION_DENIES else 0
    denied = {n for n in CHEXPERT if n in denied and rng.random() < kept}
    negative = denied - positive - uncertain
    groups = (positive, negative, uncertain)
    mentioned = [[n for n in CHEXPERT if n in group and rng.random() >= slips] for group in groups]
    if all(f.name == "Support Devices" for f in case.findings):
        mentioned[0].insert(0, "No Finding")
    return mentioned[0], mentioned[1], mentioned[2]


def chexpert_names(finding: Finding) -> list[str]:
    """The names CheXpert has for a finding: its own and the umbrella terms; may be empty (emphysema)."""
    return [n for n in CHEXPERT if n == finding.name or (n in DERIVED and DERIVED[n](finding))]


def _apart(denied: Statement) -> list[Statement]:
    """What is denied of several organs at once, organ by organ."""
    organs = {key: lexicon()["findings"][key]["organ"] for key in denied.about}
    return [Statement("denied", [key for key in denied.about if organs[key] == organ], organ)
            for organ in dict.fromkeys(organs.values())]  # fmt: skip


def _detail(rng: np.random.Generator, plain: float) -> str:
    return "named" if rng.random() < plain else "sure"


def _say(statement: Statement, habit: str, rng: np.random.Generator) -> str:
    """One statement as a sentence."""
    about, register = statement.about, lexicon()["habits"][habit]["register"]
    if statement.kind == "hedged":
        return _hedge(*about, rng)
    if statement.kind == "denied":
        names = [pick(rng, lexicon()["findings"][key]["names"]) for key in about]
        listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
        return _sentence(pick(rng, lexicon()["negatives"][register]), {"list": listed}, rng)
    if statement.kind == "stock":
        return _sentence(favourite(rng, about[register]), {}, rng)
    slots = _slots(about, rng)
    if statement.kind == "named":
        return _sentence(_name(about, slots, rng), slots, rng)
    own = rng.random() < OWN_SENTENCE
    return _sentence(pick(rng, _entry(about)["sentences"] if own else lexicon()["frames"][habit]), slots, rng)


def _name(finding: Finding, slots: Mapping[str, str], rng: np.random.Generator) -> str:
    """The bare name of a finding or of what covers it, perhaps with its side."""
    umbrella = [t for name, texts in lexicon()["derived"].items() if DERIVED[name](finding) for t in texts]
    if umbrella and rng.random() < 0.2:
        return f"{pick(rng, umbrella)}."
    side = slots["side"] if finding.name != "Support Devices" and rng.random() < 0.6 else ""
    return f"{side} {pick(rng, _entry(finding)['names'])}."


def _hedge(finding: Finding, rival: str | None, rng: np.random.Generator) -> str:
    """A sentence that only suspects the finding, with the rival where there is one."""
    hedges, keys, slots = lexicon()["hedges"], lexicon()["findings"], _slots(finding, rng)
    if rival is None:
        return _sentence(pick(rng, hedges["plain"]), slots, rng)
    slots["other"] = _with_article(keys[rival]["names"][0], keys[rival]) if rival in keys else rival
    kind = "rival" if rival in keys and _entry(finding)["organ"] == "lungs" else "differential"
    return _sentence(pick(rng, hedges[kind]), slots, rng)


def _remarks(case: Case, style: Mapping[str, Any], rng: np.random.Generator, views: Sequence[str]) -> list[Mapping]:
    """Up to two entries of remarks about the body itself, all of them true."""
    true = [entry for entry in lexicon()["remarks"].values() if _holds(entry, case, "AP" in views)]
    return sorted((entry for entry in true if rng.random() < style["remarks"]), key=lambda _: rng.random())[:2]


def _holds(remark: Mapping[str, Any], case: Case, bedside: bool) -> bool:
    """Whether a remark is true of a body and no finding explains it."""
    if any(f.name == remark.get("unless") for f in case.findings):
        return False
    if bedside and "bedside" in remark:
        return remark["bedside"]
    return all(low < getattr(case.body, part) < high for part, (low, high) in remark["when"].items())


def _slots(finding: Finding, rng: np.random.Generator) -> dict[str, str]:
    """Words for a finding's side, zone, severity and noun phrase (see the head of `reports.yaml`)."""
    words, entry = lexicon(), _entry(finding)
    side, zone, both = finding.side, finding.zone, finding.side == "both"
    own_zones, degrees = entry.get("zones"), entry.get("degrees", words["degrees"])
    adjective = pick(rng, words["sides"][side]["adjective"]) if side else ""
    plain = {None: "", "both": "bilateral"}.get(side, side)
    place, noun = "", "lung"
    if zone:
        place = pick(rng, own_zones[zone] if own_zones else words["zones"][zone]["adjective"])
        noun = pick(rng, words["zones"][zone]["noun"])
    elif side and not both and entry["organ"] == "lungs":
        place = "lung"
    area, grade = f"{plain} {place}".strip(), pick(rng, degrees[finding.severity])
    slots = {
        "degree": grade if rng.random() < 0.85 else "", "grade": grade,
        "adverb": pick(rng, words["adverbs"][finding.severity]),
        "side": adjective, "area": words["contracted"].get(area, area),
        "on": "" if not side else "on both sides" if both else f"on the {pick(rng, words['sides'][side]['noun'])}",
        "at": "" if not side else f"in both {noun}s" if both else f"in the {side} {noun}",
        "the_side": "each" if both else f"the {side}",
        "s": "s" if both else "", "a": "" if both else "a",
    }  # fmt: skip
    text = pick(rng, entry["phrases"] + entry.get("by_degree", {}).get(finding.severity, []) * 2)
    plural = text.startswith("+") or ("{s}" in text and both)
    phrase = " ".join(text.lstrip("+").format_map(slots).split())
    return slots | {
        "phrase": phrase, "a_phrase": phrase if plural else _with_article(phrase, entry),
        "is": "are" if plural else "is", "a_name": _with_article(entry["names"][0], entry),
        "where": slots["at"] or slots["on"],
    }  # fmt: skip


def _with_article(noun: str, entry: Mapping[str, Any]) -> str:
    return noun if entry.get("mass") else f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def _entry(finding: Finding) -> dict[str, Any]:
    """The finding's entry in the lexicon; devices and fractures have one a kind."""
    return lexicon()["findings"][f"{finding.name}/{finding.kind}" if finding.kind else finding.name]


def _sentence(text: str, slots: Mapping[str, str], rng: np.random.Generator) -> str:
    """A pattern filled in: one of each [a|b], single spaces, no stray comma, "an" before a vowel, a capital first."""
    text = re.sub(r"\[([^]]*)\]", lambda options: pick(rng, options[1].split("|")), text).format_map(slots)
    text = re.sub(r"[\s,]*([.,;:])", r"\1", " ".join(text.split())).lstrip(" ,")
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    return text[:1].upper() + text[1:]


def pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, each as likely."""
    return options[int(rng.integers(len(options)))]


def favourite(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, of which the first are the most popular."""
    return options[int(rng.choice(len(options), p=_popularity(len(options))))]


@functools.cache
def _popularity(n: int) -> np.ndarray:
    """Shares of n wordings by Zipf's law."""
    weights = 1 / np.arange(1, n + 1) ** ZIPF
    return weights / weights.sum()
