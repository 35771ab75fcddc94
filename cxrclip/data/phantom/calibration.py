"""How near the phantom world comes to real data: its labels and reports beside public tables.

The public numbers are in `public.yaml`. Its test computes them from the tables that the package torchxrayvision carries
(`cxrclip.data.sources.public`), by the functions that measure the phantom.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from cxrclip.data.phantom.anatomy import VOCABULARIES, settings
from cxrclip.data.phantom.reports import CHEXPERT
from cxrclip.data.phantom.world import record, visit
from cxrclip.metrics import collision_probability
from cxrclip.prompts import STATES
from cxrclip.views import SECTIONS

STUDIES = 3927  # of each institution: as many as Open-I has reports that hold a section
SENTENCE_END = re.compile(r"[A-Za-z)]\.(?!\S)")
USUAL = 5  # a word that occurs so often belongs to the vocabulary
TABLES: Mapping[str, str] = {"chestxray14": "C14", "chexpert": "C", "rsna": "rsna", "siim": "siim", "openi": "openi"}
"""Public table -> the institution made after it."""


def comparison(studies: int = STUDIES, seed: int = 0) -> pd.DataFrame:
    """The phantom's numbers beside the public ones: columns statistic, table, public, phantom, ratio.

    Args:
        studies: how many of each institution are drawn (without their films: about twenty seconds for all).
        seed: of the world.
    """
    published, measured = settings("public.yaml"), phantom_numbers(studies, seed)
    lines = [(statistic, table, value, measured[table][statistic], measured[table][statistic] / value)
             for table, numbers in published.items() for statistic, value in numbers.items()]
    return pd.DataFrame(lines, columns=["statistic", "table", "public", "phantom", "ratio"])


def phantom_numbers(studies: int = STUDIES, seed: int = 0) -> dict[str, dict[str, float]]:
    """Public table -> statistic -> its value in the institution made after it."""
    rows = {name: [record(name, "train", i, seed) for i in range(studies)] for name in TABLES.values()}
    reports = pd.DataFrame(rows["openi"]).reindex(columns=SECTIONS).fillna("")
    reports["normal"] = [not visit("openi", "train", i, seed).case.findings for i in range(studies)]
    return {
        "chestxray14": label_numbers(_states(rows["C14"], ("No Finding", *VOCABULARIES["chestxray14"]))),
        "chexpert": label_numbers(_states(rows["C"], CHEXPERT)),
        "rsna": {"share with pneumonia": _share(rows["rsna"], "Pneumonia")},
        "siim": {"share with pneumothorax": _share(rows["siim"], "Pneumothorax")},
        "openi": report_numbers(reports),
    }


def label_numbers(states: pd.DataFrame) -> dict[str, float]:
    """Statistics of labels: a row a study, a column a name with "positive", "negative", "uncertain" or ""."""
    positive, findings = states == "positive", states.drop(columns="No Finding")
    numbers = {
        "chance of equal positive labels": collision_probability(row.tobytes() for row in positive.to_numpy()),
        "share of normals": float(positive["No Finding"].mean()),
        "findings per study": float((findings == "positive").sum(axis=1).mean()),
    }
    if (findings == "uncertain").any(axis=None):
        numbers |= {
            "chance of equal labels": collision_probability(states.itertuples(index=False, name=None)),
            "uncertain labels per study": float((findings == "uncertain").sum(axis=1).mean()),
            "share with an uncertain label": float((findings == "uncertain").any(axis=1).mean()),
            "denied labels per study": float((findings == "negative").sum(axis=1).mean()),
        }
    return numbers


def report_numbers(reports: pd.DataFrame) -> dict[str, float]:
    """Statistics of reports: a row a study with findings and impression ("" if absent) and whether it is normal.

    Reports without either section are left out. A sentence ends with a full stop after a letter; a word is a run of
    letters, without regard to case.
    """
    reports = reports[(reports["findings"] != "") | (reports["impression"] != "")]
    both = reports[(reports["findings"] != "") & (reports["impression"] != "")]
    words = Counter(word for section in SECTIONS for text in reports[section] for word in _words(text))
    numbers = {
        "chance of equal impressions": collision_probability(both["impression"]),
        "chance of equal longest sections": collision_probability(
            max(pair, key=len) for pair in zip(both["findings"], both["impression"], strict=True)),
        "share of normals": float(reports["normal"].mean()),
        "missing sections per report": float((reports[list(SECTIONS)] == "").sum(axis=1).mean()),
        "usual words": float(sum(count >= USUAL for count in words.values())),
    }  # fmt: skip
    for section in SECTIONS:
        texts = reports.loc[reports[section] != "", section]
        numbers |= {
            f"sentences of {section}": float(texts.map(lambda text: len(SENTENCE_END.findall(text))).mean()),
            f"words of {section}": float(texts.map(lambda text: len(_words(text))).mean()),
        }
    return numbers


def _states(rows: Iterable[Mapping], names: Iterable[str]) -> pd.DataFrame:
    """The labels of records as `label_numbers` wants them."""
    return pd.DataFrame([{name: state for state in STATES for name in row[state]} for row in rows],
                        columns=list(names)).fillna("")  # fmt: skip


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower())


def _share(rows: Sequence[Mapping], name: str) -> float:
    return sum(name in row["positive"] for row in rows) / len(rows)
