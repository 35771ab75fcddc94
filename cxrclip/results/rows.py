"""Result rows: the columns of the tidy table, its files, the published numbers, and how ids are printed.

A row is one number with its interval and its origin; rows.yaml says what each column means. Values are fractions (an
AUROC of 0.788). statistics.py makes rows of per-sample scores; tables, verdicts and figures show nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cxrclip import metrics
from cxrclip.data.files import write_text
from cxrclip.data.settings import read_settings
from cxrclip.errors import InputError

_SETTINGS = read_settings(Path(__file__).with_name("rows.yaml"))
COLUMNS: Mapping[str, str] = _SETTINGS["columns"]                           # column -> what it means
STATUS: Mapping[str, tuple[str, str]] = {name: tuple(mark) for name, mark in _SETTINGS["status"].items()}
LABELS: Mapping[str, str] = _SETTINGS["labels"]                             # data set or task -> how it is printed
FAMILY: Mapping[str, str] = _SETTINGS["family"]                             # image encoder -> the published one
ROW_LABELS: Mapping[str, Mapping[str, str]] = _SETTINGS["rows"]             # comparison -> row id -> how it is printed
STAMPS = ("comparison", "row", "budget")
OPTIONAL = (*STAMPS, "reference", "p", "p_holm", "commit")  # a file that lacks one is read as if it were empty
KEY = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", *STAMPS, "dataset", "task",
       "metric", "class", "reference")
NUMBERS = ("value", "low", "high", "chance", "p", "p_holm", "n")
ABOUT = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", "seeds", "key", "data",
         "versions", "commit")
PUBLISHED = Path(__file__).with_name("published.csv")
THIRD_PARTY = Path(__file__).with_name("third_party.csv")  # re-runs on real data by others: never the paper's numbers
KS = (1, 5, 10)
CEILING = "attainable ceiling"
SPLITS = ("train", "valid", "test")
DIRECTIONS = ("image_to_text", "text_to_image")

CLASSIFICATION_SETS = ("vindr-cxr", "rsna", "siim")
RETRIEVAL_SETS = ("chexpert5x200", "mimic-cxr", "openi")

# The loss that a row of "loss weights" weighs, and its weight; the other loss keeps the paper's.
LOSS_WEIGHTS: Mapping[str, tuple[str, float]] = {
    f"{loss.lower()}_{weight:g}": (loss, weight)
    for loss, weights in (("ICL", (0.0, 0.1, 0.3, 1.0)), ("TCL", (0.0, 0.5, 1.0))) for weight in weights}


def row_label(comparison: str, row: str) -> str:
    """How a row of a comparison is printed; a main row's run is, without the settings behind its data ("steps=405")."""
    return ROW_LABELS.get(comparison, {}).get(row, re.sub(r" \w+=\S+", "", row))


def as_printed(value: float, metric: str, sign: str = "") -> str:
    """A number of a row: in percent, but a rank as it is. sign: "+" shows it always."""
    return f"{value * (1 if metric.endswith('rank') else 100):{sign}.1f}"


def in_percent(row: Mapping[str, Any], sign: str = "") -> str:
    """'value [low, high]' of a row, in percent; without an interval the value alone. Arguments as for as_printed."""
    value, low, high = (as_printed(row[name], row.get("metric", ""), sign) for name in ("value", "low", "high"))
    return value if np.isnan(row["low"]) else f"{value} [{low}, {high}]"


def tidy_frame(rows: Sequence[Mapping] | pd.DataFrame) -> pd.DataFrame:
    """A frame with exactly COLUMNS: numbers as floats, all else as text; what a row lacks is empty."""
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    text = [name for name in COLUMNS if name not in NUMBERS]
    frame[text] = frame[text].fillna("").astype(str)
    return frame.astype(dict.fromkeys(NUMBERS, "float64"))


def together(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """The rows of all parts; without any part, a table with no rows."""
    return pd.concat(parts, ignore_index=True) if len(parts) else tidy_frame([])


def merge_results(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Rows of both; a row of `new` takes the place of the old one with the same KEY and seeds."""
    return pd.concat([old, new]).drop_duplicates([*KEY, "seeds"], keep="last").reset_index(drop=True)


def accumulated(old: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Results measured in several goes, of one version: no run that was measured before is lost.

    Rows of a run replace those of the same KEY and seeds. Of two differences of the same rows the one over more seeds
    stays, the new one where both have as many; p_holm is adjusted anew for the cells of each comparison (those of the
    ledger by kind, training or evaluation).
    """
    rows = merge_results(old, new)
    compared = rows["reference"] != ""
    of_seeds = rows["seeds"].str.split().str.len()
    shorter = compared & (of_seeds < of_seeds.groupby([rows[name] for name in KEY]).transform("max"))
    rows, compared = rows[~shorter].reset_index(drop=True), compared[~shorter].reset_index(drop=True)
    kind = rows["budget"].where(rows["budget"] == "evaluation", "")
    for _, cells in rows[compared].groupby([rows["comparison"], kind]):
        rows.loc[cells.index, "p_holm"] = metrics.holm(cells["p"])
    return rows


# ---- files ----------------------------------------------------------------------------------------------------------


def write_results(results: pd.DataFrame, path: str | Path) -> Path:
    """Tidy results as CSV, sorted by nothing: rows stay in their order. Numbers keep six significant digits."""
    write_text(path, tidy_frame(results).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return Path(path)


def write_by_comparison(results: pd.DataFrame, folder: str | Path) -> list[Path]:
    """Tidy results as a folder of one CSV a comparison; main.csv holds the main rows. Files of old rows go.

    Sizes and collisions, which belong to no run, have a file of their own. Returns the paths written.
    """
    folder = Path(folder)
    names = results["comparison"].str.replace(" ", "_").where(
        results["comparison"] != "", results["task"].map({"size": "sizes", "collision": "collisions"}).fillna("main"))
    written = [write_results(part, folder / f"{name}.csv") for name, part in results.groupby(names, sort=False)]
    for path in set(folder.glob("*.csv")) - set(written):
        path.unlink()
    return written


def read_results(path: str | Path) -> pd.DataFrame:
    """Tidy results from CSV, or from all CSV files of a folder; columns of OPTIONAL that a file lacks are then empty.

    Raises InputError naming the file, and the column or row at fault.
    """
    if Path(path).is_dir():
        if not (files := sorted(Path(path).glob("*.csv"))):
            raise InputError(f"{path}: holds no results (*.csv): run the notebooks first")
        return together([read_results(file) for file in files])
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except FileNotFoundError as fault:
        raise InputError(f"{path}: no such results file: run the notebooks first") from fault
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as fault:
        raise InputError(f"{path}: not a results table ({' '.join(str(fault).split())})") from fault
    frame = frame.assign(**{name: "" for name in OPTIONAL if name not in frame})
    if wrong := sorted(set(frame.columns) ^ set(COLUMNS)):
        raise InputError(f"{path}: column {wrong[0]!r} is {'lacking' if wrong[0] in COLUMNS else 'unknown'}: "
                         f"a results table has {', '.join(COLUMNS)}")
    for name in NUMBERS:
        numbers = pd.to_numeric(frame[name].replace("", np.nan), errors="coerce")
        _refuse(path, frame, name, numbers.isna() & (frame[name] != ""), "is no number")
        if name in ("p", "p_holm"):
            _refuse(path, frame, name, (numbers < 0) | (numbers > 1), "is no probability")
        frame[name] = numbers
    return tidy_frame(frame)


def published(path: str | Path = PUBLISHED) -> pd.DataFrame:
    """The paper's numbers as tidy rows, each with its status. Raises InputError for a status STATUS does not know."""
    frame = read_results(path)
    _refuse(path, frame, "status", ~frame["status"].isin(list(STATUS)), f"is unknown: use one of {', '.join(STATUS)}")
    return frame


def _refuse(path: str | Path, frame: pd.DataFrame, column: str, wrong: pd.Series, fault: str) -> None:
    """Raises InputError for the first row where `wrong` holds."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{path}, row {row + 2}, column {column}: {frame[column].iloc[row]!r} {fault}")
