"""What the differences of a comparison say, in sentences made from the numbers: for the pages and RESULTS.md.

The rule is the same for every comparison: a row *raises* a measure against its
reference if the 95 % interval of the paired difference lies above 0, *lowers* it if the interval lies below 0, and
otherwise the runs *cannot tell*. A difference that stays below 5 % after adjusting for all cells of its comparison
(Holm) is printed in bold. With one seed the interval tells these runs apart, not the recipes.
"""

from __future__ import annotations

import pandas as pd

from cxrclip.results.rows import in_percent, row_label
from cxrclip.results.tables import column_label

LEVEL = 0.05
RULE = ("*How to read it.* Points of percent, with the 95 % interval of the paired difference. A row *raises* or "
        "*lowers* a measure if that interval leaves out 0. **Bold**: still below 5 % after adjusting for every cell "
        "of the comparison (Holm).")


def reading(low: float, high: float) -> str:
    """raises, lowers or cannot tell: of the interval of a difference."""
    return "raises" if low > 0 else "lowers" if high < 0 else "cannot tell"


def readings(results: pd.DataFrame, comparison: str) -> pd.DataFrame:
    """The differences of a comparison, with a column `reading`.

    results: tidy rows; comparison: "" for the main tables. Columns budget, row, reference (as printed), measure, value,
    low, high (shares of 1), p_holm, seeds, reading.
    """
    part = results[(results["comparison"] == comparison) & (results["reference"] != "")].copy()
    part["measure"] = [_measure(*row) for row in zip(part["dataset"], part["task"], part["metric"], strict=True)]
    part["reading"] = [reading(*row) for row in zip(part["low"], part["high"], strict=True)]
    part["row"] = part["row"].where(part["row"] != "", part["run"])
    for side in ("row", "reference"):
        part[side] = [row_label(comparison, row) for row in part[side]]
    return part[["budget", "row", "reference", "measure", "value", "low", "high", "p_holm", "seeds", "reading"]]


def markdown(results: pd.DataFrame, comparison: str) -> str:
    """A line for each row and budget: what it changes against its reference, by the rule."""
    table = readings(results, comparison)
    if table.empty:
        return ""
    lines = [f"- *{_budget(budget)}{_plain(row)}* against {_plain(reference)}: "
             + "; ".join(_said(cell) for cell in cells.to_dict("records")) + "."
             for (budget, row, reference), cells in table.groupby(["budget", "row", "reference"], sort=False)]
    seeds = sorted({len(text.split()) for text in table["seeds"]})
    counted = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return "\n".join([*lines, "", f"{RULE} Seeds a row: {counted}."])


def _budget(budget: str) -> str:
    """What was held equal; a rule of evaluation scores one run twice."""
    return "" if budget in ("", "evaluation") else f"equal {budget}: "


def _plain(name: str) -> str:
    """A row's name that Markdown prints as it stands (B1*)."""
    return name.replace("*", r"\*")


def _measure(dataset: str, task: str, metric: str) -> str:
    """How a measure is printed; RSUM and a mean AUROC over the paper's three sets need no data set."""
    group, measure = column_label(dataset, task, metric)
    return measure if dataset == "all" else f"{group} {measure}"


def _said(cell: dict) -> str:
    """One difference: 'raises RSUM by 12.3 [4.5, 20.1]'."""
    if cell["reading"] == "cannot tell":
        return f"{cell['measure']} {in_percent(cell, '+')}, cannot tell"
    said = f"{cell['reading']} {cell['measure']} by {in_percent(cell, '+')[1:]}"
    return f"**{said}**" if cell["p_holm"] < LEVEL else said
