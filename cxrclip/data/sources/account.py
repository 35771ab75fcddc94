"""What a preparation says when it ends: what was kept, counted and set aside, on one screen. Never report text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from cxrclip.data.shards import Rejected, read_about
from cxrclip.data.sources.prepare import COUNTED, compared
from cxrclip.studies import shard_files
from cxrclip.views import SECTIONS

ODD = 10            # values listed as the oddest
HEADINGS = 5        # headings listed whose text is not kept
_SHOWN = ("split", "studies", "patients", "images", "two_views", "findings", "impression", "labelled")
_LISTS = {"views": "view", "positive": "positive label", "negative": "negative label", "uncertain": "uncertain label"}


def closing_account(folder: Path, summary: pd.DataFrame) -> str:
    """The account of a study folder that was just prepared; summary: cxrclip.studies.summary of it."""
    (about, rejected), table = read_about(folder), _columns(folder)
    lines = [summary[list(_SHOWN)].to_string(index=False), ""]
    if counts := about.get("counts"):
        whole = "the whole release" if counts["whole"] else "NOT the whole release"
        lines += [f"The download is {whole}:", compared(counts["expected"], counts["found"]).to_string(index=False), ""]
    lines += [f"{about[name]:,} {name.replace('_', ' ')}" for name in COUNTED if about.get(name)]
    lines.append(f"films by view: {_listed(Counter(view for views in table['views'] for view in views))}")
    # A heading that stands once may be a line of a report in capitals, which must not be printed.
    if dropped := Counter({name: count for name, count in about.get("dropped_headings", {}).items() if count > 1}):
        lines.append(f"sections not kept, by heading: {_listed(dropped, HEADINGS)}")
    lines += [f"the {ODD} oddest values (a look at them often finds a wrong column):",
              *(f"  {line}" for line in oddest(table)[:ODD])]
    return "\n".join([*lines, *_set_aside(folder, rejected), f"{len(table):,} studies are in {folder}"])


def oddest(table: pd.DataFrame) -> list[str]:
    """The extremes of ages and of the lengths of texts, then the rarest views, labels and sexes, each with a study."""
    lines = list(_extremes(table))
    rare = []
    for column, what in {**_LISTS, "sex": "sex"}.items():
        values = table[["study_id", column]].explode(column).dropna()
        counts = values.groupby(column, sort=False)["study_id"].agg(["size", "first"])
        rare += [(number, f"{what} {value!r}: {number:,} times, such as in {study}")
                 for value, number, study in counts.itertuples()]
    return [*lines, *(line for _, line in sorted(rare, key=lambda item: item[0]))]


def _extremes(table: pd.DataFrame) -> Iterator[str]:
    sizes = {"age": table["age"].astype(float), **{name: table[name].str.len() for name in SECTIONS}}
    for name, values in sizes.items():
        if values.notna().any():
            for word, row in (("least", values.idxmin()), ("most", values.idxmax())):
                unit = "years" if name == "age" else "characters"
                yield f"{name}, the {word}: {values[row]:g} {unit}, in {table.loc[row, 'study_id']}"


def _columns(folder: Path) -> pd.DataFrame:
    """All of the study table but its films."""
    columns = ["study_id", "sex", "age", *SECTIONS, *_LISTS]
    return pd.concat([pq.read_table(shard, columns=columns).to_pandas() for shard in shard_files(folder)],
                     ignore_index=True)


def _set_aside(folder: Path, rejected: list[Rejected]) -> list[str]:
    """Of each file and column how many rows, with the first reason."""
    if not rejected:
        return ["nothing set aside"]
    aside = pd.DataFrame(rejected)
    return [f"{len(aside):,} set aside, listed in {folder / 'rejected.csv'}:",
            *(f"  {len(reasons):,} in {file}, column {column}, the first: {reasons.iloc[0]}"
              for (file, column), reasons in aside.groupby(["file", "column"], sort=False)["reason"])]


def _listed(counts: Counter, most: int | None = None) -> str:
    """The most frequent, with how often; the others as a number."""
    shown = counts.most_common(most)
    more = f" and {len(counts) - len(shown)} others" if len(counts) > len(shown) else ""
    return ", ".join(f"{name} {number:,}" for name, number in shown) + more
