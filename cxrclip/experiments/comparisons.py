"""Which runs answer which question: the rows of the main tables, the ablation, the losses, label growth, remedies.

A comparison (COMPARISONS) makes rows from a base experiment, the paper's recipe at some size; the same experiment may
stand in several rows and is trained once. Runs that differ in data or loss are compared at several *budgets*:

    steps     every row makes as many optimiser updates as the base
    epochs    every row passes as often over its training studies as the base. Batches are drawn from all studies
              alike, so M's studies are then also seen as often in every row: M's exposure is held
    compute   every row encodes as many images and texts as the base

A budget that is the same as "steps" for all rows of a comparison is not listed again.

A page asks for `planned` rows and their `finished` runs, then for what was `measured` and for the `differences` of rows
on the same test items.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from cxrclip import evaluation, metrics
from cxrclip.data import mixes
from cxrclip.encoders import SWINS
from cxrclip.errors import InputError
from cxrclip.experiments import oracle
from cxrclip.experiments.evaluate import evaluate
from cxrclip.experiments.experiment import IMAGE_ENCODERS, Experiment
from cxrclip.experiments.schedule import run_all
from cxrclip.experiments.train import growing_mixtures, runnable
from cxrclip.experiments.workbench import Run, Workbench
from cxrclip.official.behaviours import Behaviours
from cxrclip.prompts import STATES, PromptBank
from cxrclip.results import statistics
from cxrclip.results.rows import (
    ABOUT,
    CLASSIFICATION_SETS,
    LOSS_WEIGHTS,
    RETRIEVAL_SETS,
    row_label,
    tidy_frame,
    together,
)
from cxrclip.views import generator, prompts_of, sections_of

MAIN = "tables 2 and 3"  # the comparison whose rows are the paper's main tables: they carry no stamp in the results
MIXTURES = (("M",), ("M", "C"), ("M", "C", "C14"))
# Label growth: roles -> the share that is used of the last one -> row id.
GROWTH: Mapping[tuple[str, ...], Mapping[float, str]] = {
    ("M", "C"): {0.25: "m_c25", 0.5: "m_c50", 1.0: "m_c"},
    ("M", "C", "C14"): {0.25: "m_c_c14_25", 0.5: "m_c_c14_50", 1.0: "m_c_c14"},
}
CLIP: Mapping[str, object] = {"views": 1, "texts": 1, "icl_weight": 0.0, "tcl_weight": 0.0}
REMEDIES: Mapping[str, Mapping[str, object]] = {
    "mask": {"false_negatives": "mask"},
    "share_target": {"false_negatives": "soft"},
    "one_source": {"batches": "one-source"},
    "reports_75": {"report_share": 0.75},
    "label_weight_25": {"label_weight": 0.25},
    "reports_last": {"reports_last": 1 / 3},
    "rich_prompts": {"rich_prompts": True},
    # A batch of one source holds more studies that say the same than a mixed one, so there is more to leave out:
    "one_source_mask": {"batches": "one-source", "false_negatives": "mask"},
}
# Batches of one source have batch statistics of one source. Is that what harms? The same without batch statistics:
GROUPNORM: Mapping[str, Mapping[str, object]] = {
    "groupnorm": {"image_encoder": "resnet-small-groupnorm"},
    "groupnorm_one_source": {"image_encoder": "resnet-small-groupnorm", "batches": "one-source"},
}
# Paper against code (ledger.py): the intended behaviour of a recipe, and the rows of the ledger that depart from it.
LEDGER_ROWS: Mapping[str, tuple[str, ...]] = {
    "intended_m": ("B1*", "B2", "B3", "B4", "B9"), "intended_clip": ("B11",), "intended_swin": ("B8",),
    "intended_m_c_c14": ("B5", "B12", "D2", "official"), "intended_c14_readme": ("D1",),
}
LEDGER_PAIRS = tuple((name, start) for start, rules in LEDGER_ROWS.items() for name in rules)
# Each row of the ablation with the one above it, and the whole method with MVS, for ICL and TCL together.
ABLATION_PAIRS = (("second_view", "clip"), ("augmentation", "second_view"), ("mvs", "augmentation"), ("icl", "mvs"),
                  ("tcl", "icl"), ("tcl", "mvs"))
C14_OF_THE_README = 69_718 / 89_696  # ledger D1: the README's training films of Table 1's
LONGER = 4  # times the base's length: at "standard" the validation loss is almost flat then (benchmarks/sizes.md)
# What differences are taken in: scores -> the paper's sets that have them. Retrieval is image to text.
MEASURES: Mapping[str, tuple[str, ...]] = {"zero-shot": CLASSIFICATION_SETS, "linear-probe-100": CLASSIFICATION_SETS,
                                           "retrieval": RETRIEVAL_SETS}
SEEDS: Mapping[str, int] = {"quick": 1, "standard": 3, "paper": 1}
DECIDING: Mapping[str, int] = SEEDS | {"standard": 5}  # of the rows that verdicts rest on; a Swin has SEEDS


@dataclass(frozen=True)
class Row:
    """One row of a comparison at one budget, and the experiment that measures it. row: an id (rows.ROW_LABELS)."""

    comparison: str
    row: str
    budget: str
    experiment: Experiment

    @property
    def label(self) -> str:
        """How the row is printed."""
        return row_label(self.comparison, self.row)


# ---- the rows of each comparison, at the length of the base ------------------------------------------------------


def tables_2_and_3(base: Experiment, mixtures: Sequence[tuple[str, ...]] = MIXTURES) -> dict[str, Experiment]:
    """Both image encoders on each mixture, and as a baseline plain CLIP on M (the ablation's first row).

    At "quick" the ResNet alone: a step of the small Swin takes twice as long.
    """
    families = ("resnet",) if base.profile == "quick" else IMAGE_ENCODERS
    encoders = [IMAGE_ENCODERS[family][base.profile] for family in families]
    rows = {f"CXR-CLIP {encoder} {','.join(roles)}": replace(base, image_encoder=encoder, pretraining=roles)
            for encoder, roles in product(encoders, mixtures)}
    return rows | {f"CLIP {base.image_encoder} M": ablation(base)["clip"]}


def ablation(base: Experiment) -> dict[str, Experiment]:
    """Table 4's six rows, each with all that stands above it; the last is the base."""
    alone = replace(base, pretraining=("M",))
    clip = replace(alone, **CLIP, draw="first", augment=False)
    drawn = replace(clip, draw="random")
    return {
        "clip": clip,
        "second_view": drawn,
        "augmentation": replace(drawn, augment=True),
        "mvs": replace(alone, icl_weight=0.0, tcl_weight=0.0),
        "icl": replace(alone, tcl_weight=0.0),
        "tcl": alone,
    }


def loss_combinations(base: Experiment) -> dict[str, Experiment]:
    """MVS, ICL and TCL on or off, all eight ways, on M. Without MVS the one pair (x1, t1) is contrasted."""
    rows = {}
    for mvs, icl, tcl in product((False, True), repeat=3):
        name = "_".join(["mvs" if mvs else "pair", *(["icl"] * icl), *(["tcl"] * tcl)])
        rows[name] = replace(base, pretraining=("M",), mvs=mvs, icl_weight=base.icl_weight * icl,
                             tcl_weight=base.tcl_weight * tcl)
    return rows


def loss_weights(base: Experiment) -> dict[str, Experiment]:
    """The weight of ICL, then that of TCL, while the other stays the base's, on M."""
    alone = replace(base, pretraining=("M",))
    return {name: replace(alone, **{f"{loss.lower()}_weight": weight})
            for name, (loss, weight) in LOSS_WEIGHTS.items()}


def starts(base: Experiment) -> dict[str, Experiment]:
    """What the starts of the small encoders are worth (start.py), on M: the base, and random weights in their place."""
    alone = replace(base, pretraining=("M",))
    return {"reports_and_fractals": alone, "random": replace(alone, text_start=0, image_start=0)}


def longer_training(base: Experiment) -> dict[str, Experiment]:
    """Do the differences last? MVS, with it ICL and TCL, and then label data, all LONGER times as long as the base."""
    rows = ablation(replace(base, steps=LONGER * base.steps))
    return {"mvs": rows["mvs"], "tcl": rows["tcl"], "m_c_c14": replace(rows["tcl"], pretraining=MIXTURES[-1])}


def label_growth(base: Experiment) -> dict[str, Experiment]:
    """M alone, then 25, 50 and 100 % of C with it, then of C14 on top of both."""
    rows = {"m": replace(base, pretraining=("M",))}
    for roles, growth in GROWTH.items():
        for share, name in growth.items():
            shares = None if share == 1 else (*(1.0 for _ in roles[1:]), share)
            rows[name] = replace(base, pretraining=roles, shares=shares)
    return rows


def remedies(base: Experiment) -> dict[str, Experiment]:
    """M alone, labels alone and the paper's recipe on M,C,C14 for reference, each remedy alone, and two together.

    With the small ResNet also batches of one source where no layer knows its batch, and that network by itself.
    """
    recipe = replace(base, pretraining=MIXTURES[-1])
    changes = REMEDIES | (GROUPNORM if base.image_encoder == "resnet-small" else {})
    return {"m": replace(base, pretraining=("M",)), "labels_only": replace(base, pretraining=MIXTURES[-1][1:]),
            "m_c_c14": recipe,
            **{name: replace(recipe, **change) for name, change in changes.items()}}


def ledger(base: Experiment) -> dict[str, Experiment]:
    """Paper against code: for each recipe the intended behaviour, and each rule of the released code alone.

    "official" is all of them together. D1 is no rule but a share: Table 1's films of C14, which are all here, against
    the README's.
    """
    recipe, alone = replace(base, pretraining=MIXTURES[-1]), replace(base, pretraining=("M",))
    starts = (alone, replace(alone, **CLIP, augment=False),
              replace(alone, image_encoder=IMAGE_ENCODERS["swin"][base.profile]), recipe,
              replace(recipe, shares=(1.0, 1.0, C14_OF_THE_README)))
    rows = {}
    for (name, rules), start in zip(LEDGER_ROWS.items(), starts, strict=True):
        rows |= {name: start} | {row: replace(start, rules=row) for row in rules if row != "D1"}
    return rows | {"D1": recipe}


# ---- the plan -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """How a comparison is planned.

    rows: base -> experiments by row. budgets: the first decides, and is the only one at "quick"; others are further
    readings. seeds: by profile; a profile without any leaves the comparison out. pairs: (row, reference), what is
    compared with what; without any, every row with `reference`. all_data: its rows need M, C and C14, and a length in
    steps. quick: the rows that "quick" trains, all if none are named. Few rows, trained as long as the main ones, tell
    more than many rows at chance.
    """

    rows: Callable[[Experiment], dict[str, Experiment]]
    budgets: tuple[str, ...] = ("steps",)
    seeds: Mapping[str, int] = field(default_factory=lambda: SEEDS)
    reference: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    all_data: bool = False
    quick: tuple[str, ...] = ()

    def at(self, profile: str) -> Comparison:
        """What a profile trains of it."""
        return replace(self, budgets=self.budgets[:1]) if profile == "quick" else replace(self, quick=())


# The paper trains 15 epochs on whatever data: where rows differ in data, equal epochs decide.
COMPARISONS: Mapping[str, Comparison] = {
    MAIN: Comparison(tables_2_and_3, budgets=("epochs",), seeds=DECIDING),
    "ablation": Comparison(ablation, budgets=("steps", "compute"), seeds=DECIDING, pairs=ABLATION_PAIRS),
    "loss combinations": Comparison(loss_combinations, seeds={"standard": 3}, reference="mvs_icl_tcl"),
    "loss weights": Comparison(loss_weights, seeds={"standard": 3, "paper": 1}, reference="icl_1"),
    "starts": Comparison(starts, seeds={"standard": 3}, reference="reports_and_fractals"),
    "label growth": Comparison(label_growth, budgets=("epochs", "steps"), reference="m", all_data=True,
                               quick=("m", "m_c", "m_c_c14")),
    "remedies": Comparison(remedies, budgets=("epochs",), reference="m_c_c14", all_data=True,
                           quick=("m", "m_c_c14", "reports_75")),
    "longer training": Comparison(longer_training, budgets=("epochs",), seeds={"standard": 3}, all_data=True,
                                  pairs=(("tcl", "mvs"), ("m_c_c14", "tcl"))),
    "ledger": Comparison(ledger, budgets=("epochs",), all_data=True, quick=("intended_m", "B4"), pairs=LEDGER_PAIRS),
}


def plan(profile: str, mix: str, seed: int, data: mixes.Prepared) -> dict[str, list[Row]]:
    """Every comparison of the book at a profile's size, seed by seed: what the notebooks train, in their order.

    At "quick" a comparison has its `quick` rows, at its first budget alone. A profile's steps are those of the smallest
    mixture that can be trained: with few studies in M, equal epochs would make the other rows long without end.
    """
    mixtures = growing_mixtures(data.mix)
    recipe = Experiment.at(profile, mix=mix, seed=seed)
    recipe = next((one for roles in mixtures if runnable(one := replace(recipe, pretraining=roles), data) is None),
                  recipe)
    studies = {role: len(data.studies(role, "train")) for role in data.mix.pretraining if role in data.folders}
    rows = {}
    for name, comparison in COMPARISONS.items():
        complete = recipe.steps and set(MIXTURES[-1]) <= set(studies)
        if profile not in comparison.seeds or (comparison.all_data and not complete):
            continue
        if name == MAIN:
            comparison = replace(comparison, rows=partial(tables_2_and_3, mixtures=mixtures))
        rows[name] = [one for row in rows_of(name, recipe, studies, comparison.at(profile)) for one in
                      with_seeds([row], range(seed, seed + seeds_of(row.experiment, comparison.seeds)))]
    return rows


def rows_of(name: str, base: Experiment, studies: Mapping[str, int],
            comparison: Comparison | None = None) -> list[Row]:
    """The rows of a comparison at each of its budgets. studies: training studies of each role.

    Raises InputError for rows with other data if the base's length is not given in steps.
    """
    comparison = comparison or replace(COMPARISONS[name], quick=())
    if comparison.all_data and base.steps is None:
        raise InputError("comparisons: rows with other data are compared at equal steps: give the base its `steps`")
    return [Row(name, row, budget, at_budget(item, base, budget, studies))
            for budget in comparison.budgets for row, item in comparison.rows(base).items()
            if not comparison.quick or row in comparison.quick]


def at_budget(item: Experiment, base: Experiment, budget: str, studies: Mapping[str, int]) -> Experiment:
    """`item`, which is as long as `base`, at a budget. A length in epochs holds the epochs by itself."""
    factor = 1.0
    if budget == "compute":
        factor = (base.views + base.texts) / (item.views + item.texts)  # images and texts of a study: 4, or 2 for CLIP
    elif budget == "epochs" and item.steps:
        factor = studies_used(item, studies) / studies_used(base, studies)
    if factor == 1:
        return item
    return replace(item, steps=round(factor * item.steps)) if item.steps else replace(item, epochs=factor * item.epochs)


def studies_used(experiment: Experiment, studies: Mapping[str, int]) -> int:
    """Training studies of an experiment: of each role its share, rounded as batches.share_of does."""
    shares = experiment.shares or [1.0] * len(experiment.pretraining)
    return sum(round(share * studies[role]) for role, share in zip(experiment.pretraining, shares, strict=True))


def with_seeds(rows: Iterable[Row], seeds: Sequence[int]) -> list[Row]:
    """Every row once for each seed."""
    return [replace(row, experiment=replace(row.experiment, seed=seed)) for row in rows for seed in seeds]


def seeds_of(experiment: Experiment, seeds: Mapping[str, int]) -> int:
    """How many seeds a row has: `seeds` by profile, of a Swin at most SEEDS, for it takes twice as long."""
    most = SEEDS if experiment.image_encoder in SWINS else seeds
    return min(seeds[experiment.profile], most[experiment.profile])


def planned(profile: str, mix: str, seed: int, data: mixes.Prepared, *names: str) -> tuple[list[Row], dict[str, str]]:
    """The rows of some comparisons of the plan, of all without a name, that this mix can train.

    And why not the others: the roles that they pretrain on -> the reason.
    """
    rows = plan(profile, mix, seed, data)
    reasons = {row: runnable(row.experiment, data) for name in names or rows for row in rows.get(name, [])}
    return ([row for row, reason in reasons.items() if reason is None],
            {",".join(row.experiment.pretraining): reason for row, reason in reasons.items() if reason})


def growing(rows: Sequence[Row]) -> list[Row]:
    """Of the main rows those of CXR-CLIP with the first image encoder, as label data join: without plain CLIP."""
    return [row for row in rows if row.experiment.method == "CXR-CLIP"
            and row.experiment.image_encoder == rows[0].experiment.image_encoder]


def left_out(rows: Sequence[Row], reasons: Mapping[str, str], data: mixes.Prepared) -> str:
    """What a page says of the rows that `planned` left out."""
    if reasons:
        return f"left out: {reasons}"
    lacking = f"all rows: this mix has no C or no C14 ({'; '.join(data.missing.values())})"
    return f"left out: {'nothing' if rows else lacking}"


def distinct_experiments(rows: Iterable[Row]) -> list[Experiment]:
    """What has to be trained, each once, in the order of the rows (experiments.run_all)."""
    return list(dict.fromkeys(row.experiment for row in rows))


# ---- results ------------------------------------------------------------------------------------------------


def finished(rows: Iterable[Row], bench: Workbench) -> dict[Row, Run]:
    """The finished and evaluated run of every row; what is missing is trained, several side by side."""
    rows = list(rows)
    experiments = distinct_experiments(rows)
    runs = dict(zip(experiments, run_all(experiments, bench), strict=True)) if experiments else {}
    return {row: runs[row.experiment] for row in rows}


def measured(runs: Mapping[Row, Run]) -> pd.DataFrame:
    """Tidy results of the rows, one a seed, stamped. Single findings stay with the run: only means (class 'all')."""
    return together([evaluate(run).query("`class` == 'all'").assign(**stamps(row)) for row, run in runs.items()])


def stamps(row: Row) -> dict[str, str]:
    """What marks tidy rows of a comparison: its name, row and budget (rows.STAMPS)."""
    return {"comparison": row.comparison, "row": row.row, "budget": row.budget}


def pairs(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Which row of one comparison is compared with which: (row, reference).

    Main tables: each mixture with M alone, and CXR-CLIP with CLIP. All others: as their Comparison says.
    """
    rows = list(rows)
    names = list(dict.fromkeys(row.row for row in rows))
    comparison = rows[0].comparison if rows else MAIN
    if comparison == MAIN:
        alone = {row.experiment.image_encoder: row.row for row in rows
                 if row.experiment.method == "CXR-CLIP" and row.experiment.pretraining == ("M",)}
        both = [(row.row, other) if row.experiment.method == "CXR-CLIP" else (other, row.row)
                for row in rows for other in [alone.get(row.experiment.image_encoder)]]
        return [pair for pair in dict.fromkeys(both) if None not in pair and pair[0] != pair[1]]
    reference = COMPARISONS[comparison].reference
    chosen = COMPARISONS[comparison].pairs or [(name, reference) for name in names if name != reference]
    return [pair for pair in chosen if {*pair} <= {*names}]


def differences(runs: Mapping[Row, Run], n_bootstrap: int = 1000) -> pd.DataFrame:
    """Paired differences of the rows of one comparison, as tidy rows with a `reference`.

    Every row against its reference (pairs) at the same budget, on the same test items, over the seeds of both: mean
    AUROC (zero-shot, and the linear probe on all labels) and summed RSUM over the paper's three sets, or those of them
    that the mix has. A pair of the same runs is compared once, at the first budget that has it. p is at least
    2 / (n_bootstrap + 1); p_holm is adjusted for all cells of this comparison.
    """
    cells, labels, done = [], [], set()
    by_seed: dict[tuple[str, str], dict[int, Row]] = defaultdict(dict)
    for row in runs:
        by_seed[row.row, row.budget][row.experiment.seed] = row
    for budget, (name, reference) in product(dict.fromkeys(row.budget for row in runs), pairs(runs)):
        ours, others = by_seed[name, budget], by_seed[reference, budget]
        seeds = [seed for seed in ours if seed in others]
        sides = [[runs[side[seed]] for seed in seeds] for side in (ours, others)]
        pair = tuple(tuple(run.key for run in side) for side in sides)
        if pair[0] == pair[1] or pair in done:      # no seed in common, or the same runs
            continue
        done.add(pair)
        if len(compared := _compared(*sides, n_bootstrap)):
            row, other, about = ours[seeds[0]], others[seeds[0]], about_difference(*sides)
            cells.append(compared)
            labels.append((about, other.experiment.run_name) if row.comparison == MAIN else
                          (about | stamps(row), other.row))
    if not cells:
        return together([])
    table = pd.concat(cells, keys=range(len(cells)))
    table["p_holm"] = metrics.holm(table["p"])
    return together([statistics.difference_rows(table.loc[i], *label) for i, label in enumerate(labels)])


def _compared(ours: Sequence[Run], others: Sequence[Run], n_bootstrap: int) -> pd.DataFrame:
    """The differences of two rows' runs, seed for seed on the same items: a line a measure, over its sets."""
    cells, roles = [], {name: role for name, role in ours[0].data.mix.tests.items() if name in ours[0].data.folders}
    one_protocol = ours[0].experiment.rules == others[0].experiment.rules
    if Behaviours.of(ours[0].experiment.rules).seen_films:  # ledger D2 is about the sets whose films were seen
        roles = {name: roles[name] for role in ours[0].data.mix.pretraining.values() for name in role.seen}
    for task, wanted in MEASURES.items():
        if sets := [name for name in wanted if name in roles and task.removesuffix("-100") in roles[name].tasks]:
            scores = ({name: [_scores(run, name, task, one_protocol) for run in side] for name in sets}
                      for side in (ours, others))
            cells.append(deciding(*scores, n_bootstrap).replace({"task": {"": task}}))
    return pd.concat(cells, ignore_index=True) if cells else pd.DataFrame()


def deciding(ours: statistics.Scores, others: statistics.Scores, n_bootstrap: int) -> pd.DataFrame:
    """statistics.differences of two sides, the lines that decide: mean AUROC and image-to-text RSUM over all sets."""
    cells = statistics.differences(ours, others, n_bootstrap=n_bootstrap)
    cells = cells[cells["metric"].isin(["auroc", "RSUM"]) & cells["task"].isin(["", "image_to_text"])]
    return cells[cells["dataset"] == "all"] if len(ours) > 1 else cells


def _scores(run: Run, name: str, task: str, one_protocol: bool) -> pd.DataFrame:
    """Per-sample scores; by two protocols texts differ, so only films are queries, among untold candidates."""
    scores = run.scores(name, task)
    if one_protocol or "n_candidates" not in scores:
        return scores
    return scores[scores["direction"] == "image_to_text"].assign(n_candidates=0)


def about_difference(ours: Sequence[Run], others: Sequence[Run] = ()) -> dict[str, str]:
    """What tidy rows say of a difference: the first run's columns, with the seeds of `ours`, keys and commits of both
    sides, and the fingerprints of all test data."""
    data = ours[0].data
    tests = tuple(name for name in data.mix.tests if name in data.folders)
    columns = [run.row_columns(tests[0]) for run in (*ours, *others)]
    words = {"seeds": [about["seeds"] for about in columns[:len(ours)]], "data": data.fingerprints(tests).values()}
    words |= {name: [word for about in columns for word in about[name].split()] for name in ("key", "commit")}
    return columns[0] | {name: " ".join(dict.fromkeys(values)) for name, values in words.items()}


def losses(runs: Mapping[Row, Run]) -> pd.DataFrame:
    """Tidy rows, task loss: was a run trained until it was trained?

    In nats, the total loss: of the training steps of the last fifth (mean), and of the validation studies at the end;
    and the share of its validation loss that a run lost in its last fifth, where it was validated then.
    """
    tidy = []
    for row, run in runs.items():
        log = run.log()
        valid = log.set_index("step")["valid_total"].dropna()
        values = {"training loss": log["total"].tail(len(log) // 5 or 1).mean(), "validation loss": valid.iloc[-1]}
        if len(before := valid[valid.index <= round(0.8 * len(log))]):
            values["fall in the last fifth"] = 1 - valid.iloc[-1] / before.iloc[-1]
        about = run.row_columns(next(iter(run.data.mix.tests))) | {"data": " ".join(
            run.data.fingerprints(run.experiment.pretraining).values())}
        marks = {} if row.comparison == MAIN else stamps(row)
        tidy += [about | marks | {"dataset": "all", "task": "loss", "class": "all", "metric": name, "value": value}
                 for name, value in values.items()]
    return tidy_frame(tidy)


def coarse_text(runs: Mapping[Row, Run], role: str = "mimic-cxr") -> pd.DataFrame:
    """Tidy rows, task coarse-text: does the nearest report of a film get side, zone and severity right? Phantom only.

    One row a run and matter (oracle.coarse_text_accuracy), on the test films of `role` that have a report.
    """
    parts = []
    for row, run in runs.items():
        position, texts = evaluation.retrieval_texts(run.data.studies(role, run.data.mix.tests[role].split))
        hits = oracle.coarse_text_accuracy(run.embeddings(role)[position], run.embed_texts(texts), texts,
                                           oracle.read_truth(run.data.folders[role]))
        hits = hits.rename(columns={"matter": "class", "right": "hit"})
        tidy = statistics.share_rows(hits, run.row_columns(role), role, "coarse-text")
        parts.append(tidy.assign(**stamps(row)))
    return together(parts)


def text_kinds(runs: Mapping[Row, Run], top: int = 10) -> pd.DataFrame:
    """Tidy rows, task text-kind: of the `top` texts nearest to a film, which share are sentences made from labels?

    runs: of one mix. For each retrieval set the gallery holds its reports and as many label sentences, those of the
    validation studies without a report. A model that goes by what a film shows has no reason to prefer one kind in the
    films of one set. One that goes by the source of a film looks for the kind of text that it met with that source.
    """
    galleries = galleries_of_two_kinds(next(iter(runs.values())).data) if runs else {}
    parts = []
    for (row, run), (role, (position, texts)) in product(runs.items(), galleries.items()):
        images = run.embeddings(role)[position]
        cosines = images.embeds @ run.embed_texts(texts).T                                                # (N, 2 n)
        share = (np.argsort(-cosines, axis=1)[:, :top] >= len(texts) // 2).mean(axis=1)                   # (N,)
        hits = pd.DataFrame({"patient_id": images.patient_ids, "class": "all", "hit": share, "chance": 0.5})
        tidy = statistics.share_rows(hits, run.row_columns(role), role, "text-kind", "label sentences")
        parts.append(tidy.assign(**stamps(row)))
    return together(parts)


def galleries_of_two_kinds(data: mixes.Prepared) -> dict[str, tuple[np.ndarray, list[str]]]:
    """Retrieval set -> its studies with a report (N), and 2 n texts: n of the reports, then as many label sentences."""
    galleries, sentences = {}, label_sentences(data)
    for role in RETRIEVAL_SETS if sentences else ():
        if role in data.folders:
            position, reports = evaluation.retrieval_texts(data.studies(role, data.mix.tests[role].split))
            n = min(len(reports), len(sentences))
            galleries[role] = position, [*reports[:n], *sentences[:n]]
    return galleries


def label_sentences(data: mixes.Prepared) -> list[str]:
    """A sentence of each validation study that has labels and no report, by its role's rule, but drawn once for all."""
    bank, sentences = PromptBank.load(), []
    for name, role in data.mix.pretraining.items():
        report = partial(bank.report, max_negatives=role.max_negatives)
        studies = data.studies(name, "valid").remove_columns("images").to_list() if name in data.folders else []
        for study in studies:
            if not sections_of(study) and bank.labelled(*(study[state] for state in STATES)):
                sentences += prompts_of(study, report, generator(0, 0, study["study_id"]), 1)
    return sentences


# What the texts of a role say, by name: how two of its studies can say the same, as counted on the real tables.
CONTENTS: Mapping[str, tuple[str, ...]] = {"M": ("impression", "longest section"), "C": ("positive labels", "labels"),
                                           "C14": ("label set",), "openi": ("impression", "longest section")}


def said(study: Mapping, what: str) -> Hashable | None:
    """One kind of text content of a study (CONTENTS); None where it has none. Two studies collide if it is equal."""
    if what == "impression":
        return (study["impression"] or "").strip() or None
    if what == "longest section":
        return evaluation.retrieval_text(study) or None
    lists = ("positive", "negative", "uncertain") if what == "labels" else ("positive",)
    return tuple(tuple(sorted(study[name])) for name in lists)


def ceilings(data: mixes.Prepared, profile: str) -> pd.DataFrame:
    """Tidy rows: what R@k and RSUM can be at best on each retrieval set whose truth is known (the phantom's).

    Reports that say the same of studies with the same findings cannot be told apart (metrics.recall_ceiling).
    """
    parts = []
    for role in data.mix.tests.values():
        folder = data.folders.get(role.name)
        if "retrieval" in role.tasks and folder and (folder / "truth.parquet").is_file():
            studies = data.studies(role.name, role.split)
            rows, texts = evaluation.retrieval_texts(studies)
            ids = [studies[int(i)]["study_id"] for i in rows]
            about = dict.fromkeys(ABOUT, "") | {"profile": profile, "mix": data.mix.name, "origin": "measured",
                                                "data": data.fingerprints((role.name,))[role.name]}
            contents = oracle.contents(oracle.read_truth(folder), ids)
            parts.append(statistics.ceiling_rows(texts, contents, about, role.name))
    return together(parts)


def collisions(data: mixes.Prepared, profile: str) -> pd.DataFrame:
    """Tidy rows, task collision: the probability that two random studies of a source carry the same text content.

    Counted over all pairs of training studies (of test studies where a role is a test set), so without an interval.
    """
    tidy = []
    for role, kinds in CONTENTS.items():
        if role not in data.folders:
            continue
        split = "train" if role in data.mix.pretraining else data.mix.tests[role].split
        table = data.studies(role, split).remove_columns("images").to_list()
        for what in kinds:
            contents = [content for study in table if (content := said(study, what)) is not None]
            if len(contents) > 1:
                tidy.append({"run": "collisions", "profile": profile, "mix": data.mix.name, "origin": "measured",
                             "dataset": role, "task": "collision", "metric": "collision probability", "class": what,
                             "value": metrics.collision_probability(contents), "n": len(contents),
                             "data": data.fingerprints((role,))[role]})
    return tidy_frame(tidy)
