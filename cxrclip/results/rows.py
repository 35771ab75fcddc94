"""Result rows: the columns of the tidy table, its files, the published numbers, and how ids are printed.

A row is one number with its interval and its origin; COLUMNS says what each column means. Values are fractions (an
AUROC of 0.788). statistics.py makes rows of per-sample scores; tables, verdicts and figures show nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cxrclip.data.files import write_text
from cxrclip.errors import InputError

COLUMNS: Mapping[str, str] = {
    "run": "name of the run, the same for all its seeds",
    "profile": "quick, standard or paper; empty for published numbers",
    "mix": "which data fill the paper's roles; 'paper' are the paper's own data sets",
    "origin": "measured, official weights or published",
    "model": "method, such as CXR-CLIP",
    "image_encoder": "name of the image encoder",
    "pretraining_data": "roles pretrained on, joined by commas: M; M,C; M,C,C14",
    "comparison": "what the run is compared in (ROW_LABELS); empty for the main rows, of the paper's Tables 1 to 3",
    "row": "id of the row inside the comparison, such as mvs (ROW_LABELS); empty for the main rows",
    "budget": "what the comparison holds equal: steps, epochs, compute or M exposure; empty for the main rows",
    "dataset": "role of the test set in the mix, such as vindr-cxr; 'all' for a sum or mean over the paper's three",
    "task": "zero-shot, linear-probe-10, linear-probe-100, image_to_text, text_to_image, coarse-text, collision, size",
    "metric": "auroc, accuracy, R@1, R@5, R@10, RSUM (their sum), mean rank; train, valid, test for task size; "
              "'ceiling R@1' is the most any model can reach",
    "class": "finding (task coarse-text: attribute) the number is for; 'all' for the mean over findings",
    "reference": "id of the other row of a paired difference (of a main row: its `run`): value is then this row minus "
                 "that one; empty for all other rows",
    "value": "the number; fractions, except mean rank and sizes (counts)",
    "low": "lower end of the 95 % interval; empty where unknown",
    "high": "upper end of the 95 % interval; empty where unknown",
    "chance": "what guessing would reach; empty where unknown",
    "p": "of a difference: two-sided bootstrap p-value",
    "p_holm": "of a difference: p adjusted (Holm) for all cells that were looked at together",
    "n": "test studies (queries in retrieval) behind the number",
    "seeds": "training seeds behind the number, joined by spaces",
    "status": "published numbers: how far the number is checked (STATUS); empty otherwise",
    "note": "what the reader must know, such as classes left out of a mean",
    "key": "key of the run or runs (experiments.cache)",
    "data": "fingerprint of the test data",
    "versions": "versions of the stages behind the number (experiments.cache.VERSIONS)",
    "commit": "git commit of the code that made the number; empty outside of a git checkout",
}
STAMPS = ("comparison", "row", "budget")
OPTIONAL = (*STAMPS, "reference", "p", "p_holm", "commit")  # a file that lacks one is read as if it were empty
KEY = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", *STAMPS, "dataset", "task",
       "metric", "class", "reference")
NUMBERS = ("value", "low", "high", "chance", "p", "p_holm", "n")
ABOUT = ("run", "profile", "mix", "origin", "model", "image_encoder", "pretraining_data", "seeds", "key", "data",
         "versions", "commit")
STATUS: Mapping[str, tuple[str, str]] = {
    "recalled": ("r", "recalled from memory, not checked against a copy of the paper"),
    "quoted": ("q", "a third party quotes the paper"),
    "quoted (best value per dataset, row inferred)": ("q*", "a third party quotes the best value of the data set; "
                                                            "which row it belongs to is inferred"),
    "code": ("c", "read in the official code"),
    "computed": ("k", "recomputed from public tables"),
}
PUBLISHED = Path(__file__).with_name("published.csv")
KS = (1, 5, 10)
CEILING = "attainable ceiling"
SPLITS = ("train", "valid", "test")
DIRECTIONS = ("image_to_text", "text_to_image")

CLASSIFICATION_SETS = ("vindr-cxr", "rsna", "siim")
RETRIEVAL_SETS = ("chexpert5x200", "mimic-cxr", "openi")

# How ids are printed, and which published encoder stands beside a small one of its family.
LABELS: Mapping[str, str] = {
    "M": "MIMIC-CXR (M)", "C": "CheXpert (C)", "C14": "ChestX-ray14 (C14)", "vindr-cxr": "VinDr-CXR", "rsna": "RSNA",
    "siim": "SIIM", "chexpert5x200": "CheXpert5x200", "mimic-cxr": "MIMIC-CXR", "openi": "Open-I", "all": "all three",
    "zero-shot": "zero-shot", "linear-probe-10": "10 %", "linear-probe-100": "100 %",
}
FAMILY: Mapping[str, str] = {"resnet-small": "ResNet-50", "resnet50": "ResNet-50", "swin-small": "Swin-T",
                             "swin-tiny": "Swin-T"}


# The loss that a row of "loss weights" weighs, and its weight; the other loss keeps the paper's.
LOSS_WEIGHTS: Mapping[str, tuple[str, float]] = {
    f"{loss.lower()}_{weight:g}": (loss, weight)
    for loss, weights in (("ICL", (0.0, 0.1, 0.3, 1.0)), ("TCL", (0.0, 0.5, 1.0))) for weight in weights}
# Comparison -> row id -> how the row is printed. Ids that are not here (rows of the ledger) are printed as they are.
ROW_LABELS: Mapping[str, Mapping[str, str]] = {
    "ablation": {"clip": "CLIP", "second_view": "+ second image and section", "augmentation": "+ augmentation",
                 "mvs": "+ MVS", "icl": "+ ICL", "tcl": "+ TCL"},
    "loss combinations": {"pair": "one pair", "pair_tcl": "one pair + TCL", "pair_icl": "one pair + ICL",
                          "pair_icl_tcl": "one pair + ICL + TCL", "mvs": "MVS", "mvs_tcl": "MVS + TCL",
                          "mvs_icl": "MVS + ICL", "mvs_icl_tcl": "MVS + ICL + TCL"},
    "loss weights": {name: f"{loss} {weight:g}" for name, (loss, weight) in LOSS_WEIGHTS.items()},
    "label growth": {"m": "M", "m_c25": "M + 25% C", "m_c50": "M + 50% C", "m_c": "M,C", "m_c_c14_25": "M,C + 25% C14",
                     "m_c_c14_50": "M,C + 50% C14", "m_c_c14": "M,C,C14"},
    "remedies": {"m": "M alone", "m_c_c14": "M,C,C14", "mask": "false negatives masked",
                 "share_target": "false negatives share the target", "one_source": "batches of one source",
                 "reports_75": "75 % reports in each batch", "label_weight_25": "label rows weigh 1/4",
                 "reports_last": "last third on reports",
                 "rich_prompts": "prompts with side, zone, severity (oracle)", "groupnorm": "GroupNorm",
                 "groupnorm_one_source": "GroupNorm, batches of one source"},
    "ledger": {"intended_m": "intended, M", "intended_clip": "intended, CLIP on M",
               "intended_swin": "intended, Swin on M", "intended_m_c_c14": "intended, M,C,C14",
               "intended_c14_readme": "intended, C14 of the README"},
}


def row_label(comparison: str, row: str) -> str:
    """How a row of a comparison is printed."""
    return ROW_LABELS.get(comparison, {}).get(row, row)


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
