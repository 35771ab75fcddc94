"""Claims: a verdict on each claim of the paper, computed by a written rule from tidy results alone.

results/claims.yaml says what is compared; no verdict is written by hand. A verdict is one of
- reproduced: every comparison goes the claimed way, its 95 % interval leaves out 0, over two seeds or more;
- direction only: every comparison goes the claimed way, but some interval holds 0, or there is one seed only, or the
  change exceeds a bound that the claim sets ("marginal"), or the claim's own conditions cannot be met here (`limit`);
- not reproduced: some comparison goes the other way;
- not run: some row is not there.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, model_validator

from cxrclip.data.settings import checked, read_settings
from cxrclip.errors import InputError
from cxrclip.results.rows import FAMILY, KEY, in_percent, row_label, tidy_frame
from cxrclip.results.statistics import over_seeds, with_sums
from cxrclip.results.tables import column_label, one_mix

CLAIMS = Path(__file__).with_name("claims.yaml")
ABOVE = "the row above"
VERDICTS = ("reproduced", "direction only", "not reproduced", "not run")


class Outcome(NamedTuple):
    """One comparison: its verdict, the values compared as text, and the keys of the runs behind them."""

    verdict: str
    why: str
    rows: str


class Comparison(BaseModel, extra="forbid"):
    """Two rows, by columns of the tidy table: `row` should be higher (or lower) than `against` in the measure."""

    measure: str
    row: dict[str, str]
    against: dict[str, str]
    expect: Literal["higher", "lower"] = "higher"
    at_most: float = np.inf     # the largest change, as a share of `against`, that the claim allows


class Claim(BaseModel, extra="forbid"):
    """A claim of the paper, how it is read here, and what is compared.

    also: further readings, told beside the verdict without deciding it. limit: why it cannot be tested as it stands.
    """

    claim: int
    text: str
    reading: str
    compare: list[Comparison]
    also: list[Comparison] = []
    limit: str = ""


class Claims(BaseModel, extra="forbid"):
    """claims.yaml. measures: name -> what is compared, by columns of the tidy table."""

    measures: dict[str, Annotated[dict[Literal["dataset", "task", "metric"], str], Field(min_length=3)]]
    claims: list[Claim]

    @model_validator(mode="after")
    def _measures_are_known(self) -> Claims:
        for claim in self.claims:
            if unknown := {item.measure for item in (*claim.compare, *claim.also)} - set(self.measures):
                raise ValueError(f"claim {claim.claim}: measure {min(unknown)!r} is none of {', '.join(self.measures)}")
        return self


def load_claims(path: str | Path = CLAIMS) -> Claims:
    """claims.yaml. Raises InputError naming the file and the place that is lacking, unknown or wrong."""
    return checked(Claims, read_settings(path), path)


def verdicts(results: pd.DataFrame, path: str | Path = CLAIMS) -> pd.DataFrame:
    """One line a claim: claim, text, rule, rows (values and keys of the runs compared), verdict, why, also, otherwise.

    also: all further readings; otherwise: those that say less than the verdict.

    results: tidy rows of one mix and profile, one row a seed. A paired difference in the results is used
    where there is one; else the interval is made of the two rows' own (`unpaired`). Raises InputError if the
    results mix mixes or profiles, or if a selector fits several runs.
    """
    one_mix(results, "claims")
    content = load_claims(path)
    table = _over_seeds_of(results, content.measures.values())
    lines = []
    for claim in content.claims:
        outcomes, also = ([_compare(table, item, content.measures[item.measure], f"claim {claim.claim}")
                           for item in items] for items in (claim.compare, claim.also))
        best = VERDICTS[1] if claim.limit else VERDICTS[0]
        verdict = max(best, *(outcome.verdict for outcome in outcomes), key=VERDICTS.index)
        why = "; ".join(outcome.why for outcome in outcomes)
        lines.append({"claim": claim.claim, "text": claim.text, "rule": claim.reading,
                      "rows": "; ".join(outcome.rows for outcome in outcomes), "verdict": verdict,
                      "why": ". ".join(filter(None, [why, claim.limit.rstrip(".")])) + ".",
                      "also": "; ".join(f"{outcome.why}: {outcome.verdict}" for outcome in also),
                      "otherwise": "; ".join(outcome.why for outcome in also if _says_less(outcome.verdict, verdict))})
    return pd.DataFrame(lines)


def unpaired(a: Mapping[str, float], b: Mapping[str, float]) -> tuple[float, float, float]:
    """Difference a - b of two rows with its interval: each side's half-widths in quadrature (MOVER; Newcombe, 1998).

    Wider than a paired interval on the same films, whose common luck it does not take out.
    """
    value = a["value"] - b["value"]
    return (value, value - np.hypot(a["value"] - a["low"], b["high"] - b["value"]),
            value + np.hypot(a["high"] - a["value"], b["value"] - b["low"]))


def differences_to(results: pd.DataFrame, reference: str, measure: Mapping[str, str]) -> pd.DataFrame:
    """Difference of every row of a comparison to its row `reference`, budget by budget, for figures.ablation_forest.

    results: tidy rows of one comparison, one row a seed; measure: dataset, task, metric. reference: a row id, or ABOVE:
    each row is then compared with the one above it, and the first has no line. Tidy rows with value, low, high,
    reference, note (paired or unpaired), and the key, data, versions and commit of both rows. Rows whose budget lacks
    the reference are left out.
    """
    table = _over_seeds_of(results, [measure])
    part = table[(table[list(measure)] == list(measure.values())).all(axis=1) & (table["reference"] == "")]
    lines, done = [], set()
    for _, rows in part.groupby("budget", sort=False):
        rows = [row for _, row in rows.iterrows()]
        named = {row["row"]: row for row in rows}
        bases = [None, *rows[:-1]] if reference == ABOVE else [named.get(reference)] * len(rows)
        for row, base in zip(rows, bases, strict=True):
            if base is None or row["row"] == base["row"] or (row["key"], base["key"]) in done:
                continue
            done.add((row["key"], base["key"]))
            origin = {name: " ".join(dict.fromkeys(f"{row[name]} {base[name]}".split()))
                      for name in ("key", "data", "versions", "commit")}
            lines.append({**row, "reference": base["row"], **_difference(table, row, base), **origin})
    return tidy_frame(lines)


def markdown(table: pd.DataFrame, results: pd.DataFrame, rows: bool = False) -> str:
    """The verdicts for the first page; `rows` adds further readings, and the values and keys of the rows compared."""
    columns = ["claim", "text", "rule", "verdict", "why", *(["also", "rows"] if rows else [])]
    heads = ["#", "the claim, in our words", "our rule", "verdict", "why"]
    heads += ["further readings, which do not decide", "rows compared"] if rows else []
    mix, profile = one_mix(results, "claims")
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for line in table[columns].astype(str).to_numpy():
        cells = [cell.replace("|", "\\|").replace("\n", " ").strip() for cell in line]
        cells[3] = f"**{cells[3]}**"
        lines.append("| " + " | ".join(cells) + " |")
    source = f"Measured on the mix '{mix}' (profile {profile})" if mix else "Nothing measured yet"
    return "\n".join([f"{source}; verdicts by rule (`cxrclip/results/claims.yaml`).", "", *lines])


def _says_less(reading: str, verdict: str) -> bool:
    """Is a further reading, if it was run, worse for the claim than its verdict?"""
    return VERDICTS.index(verdict) < VERDICTS.index(reading) < VERDICTS.index("not run")


def _over_seeds_of(results: pd.DataFrame, measures: Collection[Mapping[str, str]]) -> pd.DataFrame:
    """One row a run, for these measures and differences in them only: most rows are single findings, not needed."""
    metrics, tasks = ({measure[name] for measure in measures} for name in ("metric", "task"))
    return over_seeds(with_sums(results[(results["class"] == "all") & results["metric"].isin(metrics)
                                        & results["task"].isin(tasks)]))


def _compare(table: pd.DataFrame, item: Comparison, measure: Mapping[str, str], where: str) -> Outcome:
    """One comparison by its rule. table: one row a run and measure."""
    a, b = (_pick(table, {**measure, **side}, where) for side in (item.row, item.against))
    label = " ".join(part for part in column_label(*measure.values()) if part != "all three")
    names = [_name(side) for side in (item.row, item.against)]
    budget = f" at equal {item.row['budget']}" if item.row.get("budget") else ""
    if a is None or b is None:
        lacking = " and ".join(name for name, row in zip(names, (a, b), strict=True) if row is None)
        return Outcome("not run", f"{label}{budget}: no row for {lacking}", f"{label}{budget}: none")
    difference = _difference(table, a, b)
    value, low, high, paired = difference.values()
    toward, clear = (value > 0, low > 0) if item.expect == "higher" else (value < 0, high < 0)
    doubts = []
    if not clear:
        doubts.append("the interval holds 0" if not low > 0 and not high < 0 else "clearly the other way")
    if (fewest := min(len(row["seeds"].split()) for row in (a, b))) < 2:
        doubts.append(f"{fewest} seed")
    if toward and abs(value) > item.at_most * b["value"]:
        doubts.append(f"a change of {abs(value) / b['value']:.0%}, more than {item.at_most:.0%}")
    verdict = "not reproduced" if not toward else "direction only" if doubts else "reproduced"
    notes = [f"{paired}, ± {50 * (high - low):.1f}", *doubts]
    why = f"{label}{budget}: {names[0]} against {names[1]} {in_percent(difference, '+')} ({', '.join(notes)})"
    rows = "; ".join(f"{label}{budget}, {name}: {in_percent(row)}, seeds {row['seeds']}, runs {row['key']}"
                     for name, row in zip(names, (a, b), strict=True))
    return Outcome(verdict, why, rows)


def _pick(table: pd.DataFrame, selector: Mapping[str, str], where: str) -> pd.Series | None:
    """The one row that a selector fits, None if there is none. Raises InputError for several or an unknown column."""
    keep = pd.Series(True, table.index)
    for name, value in {"class": "all", "reference": "", **selector}.items():
        if name not in table:
            raise InputError(f"{where}: no column {name!r} in the results: choose from {', '.join(table.columns)}")
        column = table[name].map(lambda text: FAMILY.get(text, text)) if name == "image_encoder" else table[name]
        keep &= column == value
    found = table[keep]
    if len(found) > 1:
        runs = ", ".join(f"{row['run']} {row['row']}".strip() for _, row in found.iterrows())
        raise InputError(f"{where}: {len(found)} rows fit {dict(selector)} ({runs}): say more in claims.yaml")
    return found.iloc[0] if len(found) else None


def _difference(table: pd.DataFrame, a: pd.Series, b: pd.Series) -> dict[str, float | str]:
    """a - b as value, low, high, note: the paired one if the results hold it, else from the two rows' own intervals."""
    same = [name for name in KEY if name not in ("reference", "class", "profile", "mix", "origin")]
    paired = table[(table[same] == a[same]).all(axis=1) & (table["reference"] == (b["row"] or b["run"]))]
    values = paired.iloc[0][["value", "low", "high"]] if len(paired) else unpaired(a, b)
    return dict(zip(("value", "low", "high"), values, strict=True)) | {"note": "paired" if len(paired) else "unpaired"}


def _name(selector: Mapping[str, str]) -> str:
    """How a side of a comparison is printed."""
    if selector.get("row"):
        return row_label(selector["comparison"], selector["row"])
    return " on ".join(selector[name] for name in ("model", "pretraining_data") if name in selector)
