"""Which runs answer which question: the rows of the ablation, of the loss grids, of growing label data, of remedies.

Each function takes a base experiment (the paper's recipe at some size) and returns rows; the same experiment may stand
in several rows and is trained once. Runs that differ in data or loss are compared at several *budgets*:

    steps     every row makes as many optimiser updates as the base
    epochs    every row passes as often over its training studies. Batches are drawn from all studies alike, so M's
              studies are then also seen as often in every row: M's exposure is held
    compute   every row encodes as many images and texts as the base

A budget that is the same as "steps" for all rows of a comparison is not listed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from cxrclip import mixes
from cxrclip.errors import InputError
from cxrclip.experiments import IMAGE_ENCODERS, Experiment, growing_mixtures, runnable

MIXTURES = (("M",), ("M", "C"), ("M", "C", "C14"))
ICL_WEIGHTS = (0.0, 0.1, 0.3, 1.0)
TCL_WEIGHTS = (0.0, 0.5, 1.0)
GROWTH = (0.25, 0.5, 1.0)
CLIP: Mapping[str, object] = {"views": 1, "texts": 1, "icl_weight": 0.0, "tcl_weight": 0.0}
REMEDIES: Mapping[str, Mapping[str, object]] = {
    "false negatives masked": {"false_negatives": "mask"},
    "false negatives share the target": {"false_negatives": "soft"},
    "batches of one source": {"batches": "one-source"},
    "75 % reports in each batch": {"report_share": 0.75},
    "label rows weigh 1/4": {"label_weight": 0.25},
    "last third on reports": {"reports_last": 1 / 3},
    "prompts with side, zone, severity (oracle)": {"rich_prompts": True},
}
# Batches of one source have batch statistics of one source. Is that what harms? The same without batch statistics:
GROUPNORM: Mapping[str, Mapping[str, object]] = {
    "GroupNorm": {"image_encoder": "resnet-small-groupnorm"},
    "GroupNorm, batches of one source": {"image_encoder": "resnet-small-groupnorm", "batches": "one-source"},
}
SEEDS: Mapping[str, int] = {"quick": 1, "standard": 3, "paper": 1}
# Some thirty runs in two minutes: enough to show how a comparison is made, too little to tell its rows apart.
QUICK: Mapping[str, object] = {"steps": 40, "batch_size": 24, "validations": 1}


@dataclass(frozen=True)
class Row:
    """One row of a comparison at one budget, and the experiment that measures it."""

    comparison: str
    row: str
    budget: str
    experiment: Experiment


def plan(profile: str, mix: str, seed: int, data: mixes.Prepared) -> dict[str, list[Row]]:
    """Every comparison of the book at a profile's size, seed by seed: what the notebooks train, in their order.

    At "quick" the comparisons after the first make few steps (QUICK), at the budget "steps" alone. The eight loss
    combinations belong to "quick": with seeds, the ablation's rows answer the same question.
    """
    recipe = Experiment.at(profile, mix=mix, seed=seed)
    base = replace(recipe, **QUICK) if profile == "quick" else recipe
    studies = {role: len(data.studies(role, "train")) for role in data.mix.pretraining if role in data.folders}
    found = {"tables 2 and 3": tables_2_and_3(recipe, growing_mixtures(data.mix)), "ablation": ablation(base)}
    if profile == "quick":
        found["loss combinations"] = loss_combinations(base)
    found["loss weights"] = loss_weights(base)
    if base.steps and set(MIXTURES[-1]) <= set(studies):
        found |= {"label growth": label_growth(base, studies), "remedies": remedies(base)}
    seeds = range(seed, seed + SEEDS[profile])
    return {name: with_seeds([row for row in rows if profile != "quick" or row.budget == "steps"], seeds)
            for name, rows in found.items()}


def trainable(rows: Iterable[Row], data: mixes.Prepared) -> tuple[list[Row], dict[str, str]]:
    """The rows that this mix can train, and why not the others: the roles that they pretrain on -> the reason."""
    reasons = {row: runnable(row.experiment, data) for row in rows}
    return ([row for row, reason in reasons.items() if reason is None],
            {",".join(row.experiment.pretraining): reason for row, reason in reasons.items() if reason})


def ablation(base: Experiment) -> list[Row]:
    """Table 4's six rows, each with all that stands above it; the last is the base.

    Budgets: steps, compute. Epochs are the same as steps, for all rows read the same studies.
    """
    alone = replace(base, pretraining=("M",))
    clip = replace(alone, **CLIP, draw="first", augment=False)
    drawn = replace(clip, draw="random")
    steps = {
        "CLIP": clip,
        "+ second image and section": drawn,
        "+ augmentation": replace(drawn, augment=True),
        "+ MVS": replace(alone, icl_weight=0.0, tcl_weight=0.0),
        "+ ICL": replace(alone, tcl_weight=0.0),
        "+ TCL": alone,
    }
    compute = {name: longer(item, encoded(alone) / encoded(item)) for name, item in steps.items()}
    return _rows("ablation", {"steps": steps, "compute": compute})


def loss_combinations(base: Experiment) -> list[Row]:
    """MVS, ICL and TCL on or off, all eight ways, on M. Without MVS the one pair (x1, t1) is contrasted.

    Budget: steps. Every row encodes two images and two texts a study, so epochs and compute are the same.
    """
    rows = {}
    for mvs, icl, tcl in product((False, True), repeat=3):
        name = " + ".join([("MVS" if mvs else "one pair"), *(["ICL"] * icl), *(["TCL"] * tcl)])
        rows[name] = replace(base, pretraining=("M",), mvs=mvs, icl_weight=base.icl_weight * icl,
                             tcl_weight=base.tcl_weight * tcl)
    return _rows("loss combinations", {"steps": rows})


def loss_weights(base: Experiment) -> list[Row]:
    """The weight of ICL, then that of TCL, while the other stays the base's, on M. Budget: steps, as all are alike."""
    alone = replace(base, pretraining=("M",))
    rows = {f"ICL {weight:g}": replace(alone, icl_weight=weight) for weight in ICL_WEIGHTS}
    rows |= {f"TCL {weight:g}": replace(alone, tcl_weight=weight) for weight in TCL_WEIGHTS}
    return _rows("loss weights", {"steps": rows})


def label_growth(base: Experiment, studies: Mapping[str, int]) -> list[Row]:
    """M alone, then 25, 50 and 100 % of C with it, then of C14 on top of both.

    studies: training studies of each role. Budgets: steps, epochs (steps in proportion to the studies used). The
    budget "epochs" is also the one that holds M's exposure: M is n_M of n studies, so of each batch, and n / n_M times
    the steps show every study of M as often as the run on M alone.
    """
    steps = {"M": replace(in_steps(base), pretraining=("M",))}
    for roles in MIXTURES[1:]:
        for share in GROWTH:
            name = ",".join(roles) if share == 1 else f"{','.join(roles[:-1])} + {share:.0%} {roles[-1]}"
            shares = None if share == 1 else (*(1.0 for _ in roles[1:]), share)
            steps[name] = replace(base, pretraining=roles, shares=shares)
    epochs = {name: longer(item, studies_used(item, studies) / studies["M"]) for name, item in steps.items()}
    return _rows("label growth", {"steps": steps, "epochs": epochs})


def remedies(base: Experiment) -> list[Row]:
    """M alone and the paper's recipe on M,C,C14 for reference, and each remedy alone. Budget: steps.

    With the small ResNet also batches of one source where no layer knows its batch, and that network by itself.
    """
    recipe = replace(in_steps(base), pretraining=MIXTURES[-1])
    rows = {"M alone": replace(base, pretraining=("M",)), "M,C,C14": recipe}
    changes = REMEDIES | (GROUPNORM if base.image_encoder == "resnet-small" else {})
    rows |= {name: replace(recipe, **change) for name, change in changes.items()}
    return _rows("remedies", {"steps": rows})


def tables_2_and_3(base: Experiment, mixtures: Sequence[tuple[str, ...]] = MIXTURES) -> list[Row]:
    """Both image encoders on each mixture, and as a baseline plain CLIP on M (the ablation's first row)."""
    rows = {}
    for family in IMAGE_ENCODERS.values():
        here = replace(base, image_encoder=family[base.profile])
        rows |= {f"CXR-CLIP {here.image_encoder} {','.join(roles)}": replace(here, pretraining=roles)
                 for roles in mixtures}
    rows[f"CLIP {base.image_encoder} M"] = ablation(base)[0].experiment
    return _rows("tables 2 and 3", {"steps" if base.steps else "epochs": rows})


# ---- budgets ------------------------------------------------------------------------------------------------


def longer(experiment: Experiment, factor: float) -> Experiment:
    """The experiment with `factor` times the steps, or where these follow from its epochs, times the epochs."""
    if experiment.steps is None:
        return replace(experiment, epochs=factor * experiment.epochs)
    return replace(experiment, steps=round(factor * experiment.steps))


def in_steps(experiment: Experiment) -> Experiment:
    """The experiment itself, if its length is given in steps; else InputError, for data sets could not be compared."""
    if experiment.steps is None:
        raise InputError("comparisons: rows with other data are compared at equal steps: give the base its `steps`")
    return experiment


def encoded(experiment: Experiment) -> int:
    """Images and texts that a study costs in one step: 4 for two of each, 2 for plain CLIP."""
    return experiment.views + experiment.texts


def studies_used(experiment: Experiment, studies: Mapping[str, int]) -> int:
    """Training studies of an experiment: of each role its share, rounded as sampling.share_of does."""
    shares = experiment.shares or [1.0] * len(experiment.pretraining)
    return sum(round(share * studies[role]) for role, share in zip(experiment.pretraining, shares, strict=True))


# ---- rows ---------------------------------------------------------------------------------------------------


def with_seeds(rows: Iterable[Row], seeds: Sequence[int]) -> list[Row]:
    """Every row once for each seed."""
    return [replace(row, experiment=replace(row.experiment, seed=seed)) for row in rows for seed in seeds]


def distinct_experiments(rows: Iterable[Row]) -> list[Experiment]:
    """What has to be trained, each once, in the order of the rows (experiments.run_all)."""
    return list(dict.fromkeys(row.experiment for row in rows))


def stamp(row: Row, tidy: pd.DataFrame) -> pd.DataFrame:
    """The tidy results of the row's run, marked with comparison, row and budget."""
    return tidy.assign(comparison=row.comparison, row=row.row, budget=row.budget)


def _rows(comparison: str, budgets: Mapping[str, Mapping[str, Experiment]]) -> list[Row]:
    return [Row(comparison, name, budget, item) for budget, items in budgets.items() for name, item in items.items()]
