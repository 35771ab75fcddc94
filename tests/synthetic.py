"""SYNTHETIC tidy results, for tests only: numbers drawn from a formula, not measured. Never write them to results/.

They have the shape of a full run of the book: main rows with plain CLIP and ceilings, sizes, and every comparison.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from cxrclip import results
from cxrclip.results import rows as results_rows
from cxrclip.results.tables import ABLATION

GROWTH = ("M", "M,C", "M,C,C14")
SHARES = {"m": "M", "m_c50": "M,C", "m_c": "M,C", "m_c_c14_50": "M,C,C14", "m_c_c14": "M,C,C14"}
TASKS = (*((name, task, "auroc", 0.7, 0.5) for name in results.CLASSIFICATION_SETS
           for task in ("zero-shot", "linear-probe-10", "linear-probe-100")),
         ("chexpert5x200", "zero-shot", "accuracy", 0.4, 0.2),
         *((name, task, metric, value, value / 9) for name in results.RETRIEVAL_SETS
           for task in ("image_to_text", "text_to_image")
           for metric, value in (("R@1", 0.05), ("R@5", 0.2), ("R@10", 0.3), ("RSUM", 0.55))))
EMPTY = dict.fromkeys(results.COLUMNS, "") | dict.fromkeys(results_rows.NUMBERS, np.nan)
ABOUT = {"run": "resnet-small M", "profile": "quick", "mix": "phantom", "origin": "measured", "model": "CXR-CLIP",
         "image_encoder": "resnet-small", "pretraining_data": "M", "seeds": "0", "key": "e0", "data": "d0",
         "versions": "training=1", "commit": "c0"}
COMMON = EMPTY | {"profile": "standard", "mix": "phantom", "origin": "measured", "class": "all",
                  "versions": "synthetic=0", "data": "synthetic"}


def row(**changes) -> dict:
    """One SYNTHETIC row of seed 0, with changes."""
    return {**ABOUT, "dataset": "rsna", "task": "zero-shot", "metric": "auroc", "class": "all", "value": 0.7,
            "low": 0.6, "high": 0.75, "chance": 0.5, "n": 100, "status": "", "note": "", **changes}


def tidy(*rows: dict) -> pd.DataFrame:
    """Rows as a tidy frame."""
    return results_rows.tidy_frame(list(rows))


def run_rows(seeds: int, *, classification: float = 0.0, retrieval: float = 0.0, model: str = "CXR-CLIP",
             data: str = "M", encoder: str = "resnet-small", **stamps: str) -> list[dict]:
    """Rows of one run: every task, each seed a little different; the effects are added to the base values."""
    rows = []
    for seed in range(seeds):
        for dataset, task, metric, base, chance in TASKS:
            effect = classification if metric in ("auroc", "accuracy") else retrieval * base / 0.3
            value = base + effect + 0.004 * (seed - (seeds - 1) / 2)
            fingerprint = f"synthetic-{model}-{data}-{'-'.join(stamps.values())}-{seed}".replace(" ", "_")
            rows.append(COMMON | stamps | {
                "run": f"{model} {encoder} {data}", "model": model, "image_encoder": encoder, "pretraining_data": data,
                "dataset": dataset, "task": task, "metric": metric, "value": value, "low": value - 0.01,
                "high": value + 0.01, "chance": chance, "n": 1000, "seeds": str(seed), "key": fingerprint})
    return rows


def main_rows(seeds: int) -> list[dict]:
    """Tables 1 to 3: plain CLIP, the growing mixtures, ceilings and sizes."""
    rows = run_rows(seeds, model="CLIP", classification=-0.03, retrieval=-0.05)
    for i, data in enumerate(GROWTH):
        rows += run_rows(seeds, data=data, classification=0.05 * i, retrieval=-0.02 * i)
    for dataset, task, metric, base, _ in TASKS:
        if dataset in results.RETRIEVAL_SETS and "_to_" in task:
            rows.append(COMMON | {"run": "ceiling", "model": results_rows.CEILING, "dataset": dataset, "task": task,
                                  "metric": f"ceiling {metric}", "value": 2 * base})
    sizes = pd.DataFrame([(name, split, 1000 + i) for name in ("M", "C", "C14", "rsna")
                          for i, split in enumerate(results_rows.SPLITS)], columns=["name", "split", "studies"])
    return rows + results.size_rows(sizes, {"mix": "phantom", "profile": "standard"}).to_dict("records")


def comparison_rows(seeds: int) -> Iterator[dict]:
    """Ablation, label growth, loss weights and remedies."""
    for budget, slope in (("steps", 0.02), ("compute", 0.005)):
        for i, row in enumerate(ABLATION):
            yield from run_rows(seeds, model="CXR-CLIP" if i else "CLIP", comparison="ablation", row=row,
                                budget=budget, classification=0.01 * i, retrieval=slope * i)
    for budget, slope in (("steps", -0.015), ("epochs", 0.01)):
        for i, (row, data) in enumerate(SHARES.items()):
            yield from run_rows(seeds, data=data, comparison="label growth", row=row, budget=budget,
                                classification=0.03 * i, retrieval=slope * i)
    for i, row in enumerate(("pair", "pair_icl", "mvs", "mvs_icl_tcl")):
        yield from run_rows(seeds, comparison="loss combinations", row=row, budget="steps", retrieval=0.01 * i)
    for row, (loss, weight) in results_rows.LOSS_WEIGHTS.items():
        yield from run_rows(seeds, comparison="loss weights", row=row, budget="steps",
                            retrieval=-0.03 * abs(weight - {"ICL": 0.3, "TCL": 1.0}[loss]))
    for row, up, down in (("m", 0.0, 0.0), ("m_c_c14", 0.1, -0.06), ("reports_75", 0.08, -0.02),
                          ("reports_last", 0.09, -0.04), ("mask", 0.08, -0.07)):
        yield from run_rows(seeds, data="M,C,C14", comparison="remedies", row=row, budget="epochs", classification=up,
                            retrieval=down)


def coarse_text_rows(seeds: int) -> list[dict]:
    """Accuracy of side, zone and severity against the share of label studies."""
    return [COMMON | {"run": "CXR-CLIP resnet-small", "model": "CXR-CLIP", "comparison": "label growth",
                      "row": share, "budget": "epochs", "dataset": "mimic-cxr", "task": "coarse-text",
                      "metric": "accuracy", "class": name, "value": base - 0.03 * i, "low": base - 0.05 - 0.03 * i,
                      "high": base + 0.05 - 0.03 * i, "chance": chance, "n": 500, "seeds": str(seed)}
            for i, share in enumerate(SHARES) for seed in range(seeds)
            for name, base, chance in (("side", 0.8, 0.5), ("zone", 0.7, 0.33), ("severity", 0.75, 0.4))]


def text_kind_rows(seeds: int) -> list[dict]:
    """Label sentences among the nearest texts, by remedy and test set."""
    return [COMMON | {"run": "CXR-CLIP resnet-small", "model": "CXR-CLIP", "comparison": "remedies", "row": row,
                      "budget": "epochs", "dataset": dataset, "task": "text-kind", "metric": "label sentences",
                      "class": "all", "value": value, "low": value - 0.02, "high": value + 0.02, "chance": 0.5,
                      "n": 500, "seeds": str(seed)}
            for row, value in (("m", 0.2), ("m_c_c14", 0.9)) for dataset in ("mimic-cxr", "chexpert5x200")
            for seed in range(seeds)]


def collision_rows() -> list[dict]:
    """Measured collisions of the phantom's sources."""
    return [COMMON | {"run": "collisions", "dataset": dataset, "task": "collision", "metric": "collision probability",
                      "class": text, "value": value, "low": 0.9 * value, "high": 1.1 * value, "n": 5000}
            for dataset, text, value in (("C14", "label set", 0.25), ("C", "positive labels", 0.03),
                                         ("C", "labels", 0.004), ("M", "longest section", 0.002),
                                         ("openi", "longest section", 0.003))]


def ledger_rows() -> list[dict]:
    """Effects of two rows of the ledger, as comparisons.differences tells them."""
    return [COMMON | {"run": "CXR-CLIP resnet-small", "model": "CXR-CLIP", "comparison": "ledger", "row": row,
                      "budget": budget, "dataset": "all", "task": task, "metric": metric, "reference": "intended",
                      "class": "all", "value": value, "low": value - 0.02, "high": value + 0.02, "n": 500,
                      "p": 0.2, "p_holm": 0.4, "seeds": "0 1"}
            for row, budget, value in (("B3", "steps", -0.01), ("B7", "evaluation", 0.005))
            for task, metric in (("image_to_text", "RSUM"), ("zero-shot", "auroc"))]


def tidy_results(seeds: int = 3) -> pd.DataFrame:
    """A full set of SYNTHETIC tidy results, one row a seed."""
    return tidy(*main_rows(seeds), *comparison_rows(seeds), *coarse_text_rows(seeds), *text_kind_rows(seeds),
                *collision_rows(), *ledger_rows())
