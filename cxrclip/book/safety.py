"""What an institution measures before it uses a model (notebook 14): calibration, thresholds, abstention, shortcuts.

Probabilities and labels are (N,) arrays of one finding.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from cxrclip.data.phantom import world
from cxrclip.data.phantom.anatomy import Case, Finding, sample_body
from cxrclip.data.phantom.render import render_study

Z = 1.96  # of a 95 % interval


def reliability(probabilities: ArrayLike, labels: ArrayLike, bins: int = 8) -> pd.DataFrame:
    """Predicted against observed: films in `bins` groups of equal size by their probability, the lowest first.

    Columns predicted (mean probability), observed (share with the finding), low and high (Wilson's 95 % interval), n.
    """
    p, y = np.asarray(probabilities, float), np.asarray(labels, bool)
    rows = []
    for part in np.array_split(np.argsort(p, kind="stable"), bins):
        rows.append((p[part].mean(), share := y[part].mean(), *wilson(share, len(part)), len(part)))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "n"])


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share among n."""
    centre, half = share + Z**2 / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = np.clip(np.array([centre - half, centre + half]) / (1 + Z**2 / n), 0, 1)
    return low, high


def calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 8) -> float:
    """Expected calibration error: the mean distance of predicted and observed over the groups of `reliability`."""
    table = reliability(probabilities, labels, bins)
    return float(np.average((table["predicted"] - table["observed"]).abs(), weights=table["n"]))


def threshold_for(probabilities: ArrayLike, labels: ArrayLike, sensitivity: float) -> float:
    """The highest threshold at which at least this share of the films with the finding lies at or above it."""
    positive = np.sort(np.asarray(probabilities, float)[np.asarray(labels, bool)])
    return float(positive[len(positive) - int(np.ceil(round(sensitivity * len(positive), 9)))])


def working_point(probabilities: ArrayLike, labels: ArrayLike, threshold: float) -> dict[str, float]:
    """At a threshold: sensitivity, specificity, and the share of all films at or above it, which a human reads."""
    above, y = np.asarray(probabilities, float) >= threshold, np.asarray(labels, bool)
    return {"sensitivity": above[y].mean(), "specificity": (~above[~y]).mean(), "read": above.mean()}


def risk_coverage(confidence: ArrayLike, wrong: ArrayLike) -> pd.DataFrame:
    """Abstention: columns coverage, risk. The answers with the highest confidence are given first.

    confidence, wrong: (N,) of each answer, how sure it is and whether it is wrong. coverage: share of the answers that
    are given. risk: share of these that are wrong.
    """
    order = np.argsort(-np.asarray(confidence, float), kind="stable")
    faults, given = np.cumsum(np.asarray(wrong, bool)[order]), np.arange(1, len(order) + 1)
    return pd.DataFrame({"coverage": given / len(order), "risk": faults / given})


def films_with_tubes(n: int, ill: float, healthy: float, seed: int = 0,
                     size: int = 128) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """n simulated AP films, half with a pneumothorax; a share of the ill and of the healthy has an endotracheal tube.

    Returns the films (H, W) uint8, (n,) bool pneumothorax, (n,) bool tube. Film i has the same body and the same
    disease whatever the shares.
    """
    films, sick, tubes = [], np.arange(n) % 2 == 0, np.zeros(n, bool)
    for i in range(n):
        rng = np.random.default_rng([seed, i])
        body, side = sample_body(rng), ("left", "right")[int(rng.integers(2))]
        severity, tubes[i] = int(rng.integers(1, 4)), rng.random() < (ill if sick[i] else healthy)
        findings = (Finding("Pneumothorax", side, None, severity),) if sick[i] else ()
        findings += (Finding("Support Devices", None, None, 2, "endotracheal tube"),) if tubes[i] else ()
        case = Case(body, findings, int(rng.integers(2**31)))
        films.append(render_study(case, ["AP"], world.SCANNERS["M"], size)[0].pixels)
    return films, sick, tubes
