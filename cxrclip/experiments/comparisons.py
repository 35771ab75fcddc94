"""Which runs answer which question: the rows of the ablation, of the loss grids, of growing label data, of remedies.

Each function takes a base experiment (the paper's recipe at some size) and returns rows; the same experiment may stand
in several rows and is trained once. Runs that differ in data or loss are compared at several *budgets*:

    steps     every row makes as many optimiser updates as the base
    epochs    every row passes as often over its training studies. Batches are drawn from all studies alike, so M's
              studies are then also seen as often in every row: M's exposure is held
    compute   every row encodes as many images and texts as the base

A budget that is the same as "steps" for all rows of a comparison is not listed again.

`measured` trains what is missing and gives the rows' results; `differences` compares rows on the same test items.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import pandas as pd

from cxrclip import evaluation, metrics
from cxrclip.data import mixes
from cxrclip.errors import InputError
from cxrclip.experiments import (
    IMAGE_ENCODERS,
    Experiment,
    Run,
    Workbench,
    evaluate,
    growing_mixtures,
    oracle,
    run_all,
    runnable,
)
from cxrclip.official.behaviours import Behaviours
from cxrclip.results import statistics
from cxrclip.results.rows import (
    CLASSIFICATION_SETS,
    LOSS_WEIGHTS,
    RETRIEVAL_SETS,
    row_label,
    tidy_frame,
    together,
)

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
C14_OF_THE_README = 69_718 / 89_696  # ledger D1: the README's training films of Table 1's
MAIN = "tables 2 and 3"  # the comparison whose rows are the paper's main tables: they carry no stamp in the results
# What a row is compared with, unless it is the row above it (the ablation) or in the main tables (pairs).
REFERENCES: Mapping[str, str] = {"loss combinations": "mvs_icl_tcl", "loss weights": "icl_1", "label growth": "m",
                                 "remedies": "m_c_c14"}
# What differences are taken in: scores -> the paper's sets that have them. Retrieval is image to text.
MEASURES: Mapping[str, tuple[str, ...]] = {"zero-shot": CLASSIFICATION_SETS, "linear-probe-100": CLASSIFICATION_SETS,
                                           "retrieval": RETRIEVAL_SETS}
SEEDS: Mapping[str, int] = {"quick": 1, "standard": 3, "paper": 1}
# Some thirty runs in two minutes: enough to show how a comparison is made, too little to tell its rows apart.
QUICK: Mapping[str, object] = {"steps": 40, "batch_size": 24, "validations": 1}


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


def plan(profile: str, mix: str, seed: int, data: mixes.Prepared) -> dict[str, list[Row]]:
    """Every comparison of the book at a profile's size, seed by seed: what the notebooks train, in their order.

    At "quick" the comparisons after the first make few steps (QUICK), at the budget "steps" alone. The eight loss
    combinations belong to "quick": with seeds, the ablation's rows answer the same question.
    """
    recipe = Experiment.at(profile, mix=mix, seed=seed)
    base = replace(recipe, **QUICK) if profile == "quick" else recipe
    studies = {role: len(data.studies(role, "train")) for role in data.mix.pretraining if role in data.folders}
    found = {MAIN: tables_2_and_3(recipe, growing_mixtures(data.mix)), "ablation": ablation(base)}
    if profile == "quick":
        found["loss combinations"] = loss_combinations(base)
    found["loss weights"] = loss_weights(base)
    if base.steps and set(MIXTURES[-1]) <= set(studies):
        found |= {"label growth": label_growth(base, studies), "remedies": remedies(base)}
        found["ledger"] = ledger(base)
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
        "clip": clip,
        "second_view": drawn,
        "augmentation": replace(drawn, augment=True),
        "mvs": replace(alone, icl_weight=0.0, tcl_weight=0.0),
        "icl": replace(alone, tcl_weight=0.0),
        "tcl": alone,
    }
    compute = {name: longer(item, encoded(alone) / encoded(item)) for name, item in steps.items()}
    return _rows("ablation", {"steps": steps, "compute": compute})


def loss_combinations(base: Experiment) -> list[Row]:
    """MVS, ICL and TCL on or off, all eight ways, on M. Without MVS the one pair (x1, t1) is contrasted.

    Budget: steps. Every row encodes two images and two texts a study, so epochs and compute are the same.
    """
    rows = {}
    for mvs, icl, tcl in product((False, True), repeat=3):
        name = "_".join(["mvs" if mvs else "pair", *(["icl"] * icl), *(["tcl"] * tcl)])
        rows[name] = replace(base, pretraining=("M",), mvs=mvs, icl_weight=base.icl_weight * icl,
                             tcl_weight=base.tcl_weight * tcl)
    return _rows("loss combinations", {"steps": rows})


def loss_weights(base: Experiment) -> list[Row]:
    """The weight of ICL, then that of TCL, while the other stays the base's, on M. Budget: steps, as all are alike."""
    alone = replace(base, pretraining=("M",))
    rows = {name: replace(alone, **{f"{loss.lower()}_weight": weight})
            for name, (loss, weight) in LOSS_WEIGHTS.items()}
    return _rows("loss weights", {"steps": rows})


def label_growth(base: Experiment, studies: Mapping[str, int]) -> list[Row]:
    """M alone, then 25, 50 and 100 % of C with it, then of C14 on top of both.

    studies: training studies of each role. Budgets: steps, epochs (steps in proportion to the studies used). The
    budget "epochs" is also the one that holds M's exposure: M is n_M of n studies, so of each batch, and n / n_M times
    the steps show every study of M as often as the run on M alone.
    """
    steps = {"m": replace(in_steps(base), pretraining=("M",))}
    for roles, growth in GROWTH.items():
        for share, name in growth.items():
            shares = None if share == 1 else (*(1.0 for _ in roles[1:]), share)
            steps[name] = replace(base, pretraining=roles, shares=shares)
    epochs = {name: longer(item, studies_used(item, studies) / studies["M"]) for name, item in steps.items()}
    return _rows("label growth", {"steps": steps, "epochs": epochs})


def remedies(base: Experiment) -> list[Row]:
    """M alone and the paper's recipe on M,C,C14 for reference, and each remedy alone. Budget: steps.

    With the small ResNet also batches of one source where no layer knows its batch, and that network by itself.
    """
    recipe = replace(in_steps(base), pretraining=MIXTURES[-1])
    rows = {"m": replace(base, pretraining=("M",)), "m_c_c14": recipe}
    changes = REMEDIES | (GROUPNORM if base.image_encoder == "resnet-small" else {})
    rows |= {name: replace(recipe, **change) for name, change in changes.items()}
    return _rows("remedies", {"steps": rows})


def ledger(base: Experiment) -> list[Row]:
    """Paper against code: for each recipe the intended behaviour, and each rule of the released code alone.

    "official" is all of them together. D1 is no rule but a share: Table 1's films of C14, which are all here, against
    the README's. Budget: steps.
    """
    recipe = replace(in_steps(base), pretraining=MIXTURES[-1])
    alone = replace(base, pretraining=("M",))
    starts = dict(zip(LEDGER_ROWS, (alone, replace(alone, **CLIP, augment=False),
                                    replace(alone, image_encoder=IMAGE_ENCODERS["swin"][base.profile]), recipe,
                                    replace(recipe, shares=(1.0, 1.0, C14_OF_THE_README))), strict=True))
    rows = {}
    for name, start in starts.items():
        rows[name] = start
        rows |= {row: replace(start, rules=row) for row in LEDGER_ROWS[name] if row != "D1"}
    rows["D1"] = recipe
    return _rows("ledger", {"steps": rows})


def tables_2_and_3(base: Experiment, mixtures: Sequence[tuple[str, ...]] = MIXTURES) -> list[Row]:
    """Both image encoders on each mixture, and as a baseline plain CLIP on M (the ablation's first row)."""
    rows = {}
    for family in IMAGE_ENCODERS.values():
        here = replace(base, image_encoder=family[base.profile])
        rows |= {f"CXR-CLIP {here.image_encoder} {','.join(roles)}": replace(here, pretraining=roles)
                 for roles in mixtures}
    rows[f"CLIP {base.image_encoder} M"] = ablation(base)[0].experiment
    return _rows(MAIN, {"steps" if base.steps else "epochs": rows})


# ---- results ------------------------------------------------------------------------------------------------


def finished(rows: Iterable[Row], bench: Workbench) -> dict[Row, Run]:
    """The finished and evaluated run of every row; what is missing is trained, several side by side."""
    rows = list(rows)
    experiments = distinct_experiments(rows)
    runs = dict(zip(experiments, run_all(experiments, bench), strict=True)) if experiments else {}
    return {row: runs[row.experiment] for row in rows}


def measured(runs: Mapping[Row, Run]) -> pd.DataFrame:
    """Tidy results of the rows, one a seed, stamped. Single findings stay with the run: only means (class 'all')."""
    return together([stamp(row, part[part["class"] == "all"]) for row, run in runs.items() for part in [evaluate(run)]])


def pairs(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Which row is compared with which, for the rows of one comparison: (row, reference).

    Ablation: each with the one above it, and the whole method with MVS, for ICL and TCL together. Tables 2 and 3:
    each mixture with M alone, and CXR-CLIP with plain CLIP. Ledger: each rule with the intended behaviour of its
    recipe. All others: each with one reference (REFERENCES).
    """
    rows = list(rows)
    names = list(dict.fromkeys(row.row for row in rows))
    comparison = rows[0].comparison if rows else ""
    if comparison == "ablation":
        return [*zip(names[1:], names[:-1], strict=True), ("tcl", "mvs")]
    if comparison == "ledger":
        return [(name, start) for start, rules in LEDGER_ROWS.items() for name in rules if {name, start} <= {*names}]
    if comparison == MAIN:
        ours = {row.row: row.experiment for row in rows if row.experiment.views == 2}
        alone = {item.image_encoder: name for name, item in ours.items() if item.pretraining == ("M",)}
        clip = {row.row: row.experiment for row in rows if row.experiment.views == 1}
        found = [(name, alone.get(item.image_encoder)) for name, item in ours.items()]
        found += [(alone.get(item.image_encoder), name) for name, item in clip.items()]
        return [pair for pair in found if None not in pair and pair[0] != pair[1]]
    return [(name, REFERENCES[comparison]) for name in names if name != REFERENCES[comparison]]


def differences(runs: Mapping[Row, Run], n_bootstrap: int = 1000) -> pd.DataFrame:
    """Paired differences of the rows of one comparison, as tidy rows with a `reference`.

    Every row against its reference (pairs) at the same budget, on the same test items, over all seeds of both: mean
    AUROC (zero-shot, and the linear probe on all labels) and summed RSUM over the paper's three sets, or those of them
    that the mix has. A pair of the same runs is compared once, at the first budget that has it. p is at least
    2 / (n_bootstrap + 1); p_holm is adjusted for all cells of this comparison.
    """
    parts, done = [], set()
    for budget, (row, reference) in product(dict.fromkeys(item.budget for item in runs), pairs(runs)):
        ours, others = ({item: run for item, run in runs.items() if (item.row, item.budget) == (name, budget)}
                        for name in (row, reference))
        pair = tuple(tuple(run.key for run in side.values()) for side in (ours, others))
        if not (ours and others) or pair[0] == pair[1] or pair in done:
            continue
        done.add(pair)
        if len(cells := _compared(list(ours.values()), list(others.values()), n_bootstrap)):
            parts.append(statistics.difference_rows(cells, *_origin(ours, others)))
    found = together(parts)
    return found.assign(p_holm=metrics.holm(found["p"]))


def _compared(ours: Sequence[Run], others: Sequence[Run], n_bootstrap: int) -> pd.DataFrame:
    """statistics.differences of two rows' runs, seed for seed on the same items: a line a measure, over its sets."""
    found, roles = [], {name: role for name, role in ours[0].data.mix.tests.items() if name in ours[0].data.folders}
    one_protocol = ours[0].experiment.rules == others[0].experiment.rules
    if Behaviours.of(ours[0].experiment.rules).seen_films:  # ledger D2 is about the sets whose films were seen
        roles = {name: roles[name] for role in ours[0].data.mix.pretraining.values() for name in role.seen}
    for task, wanted in MEASURES.items():
        sets = [name for name in wanted if name in roles and task.removesuffix("-100") in roles[name].tasks]
        if not sets:
            continue
        scores = ({name: [_scores(run, name, task, one_protocol) for run in side] for name in sets}
                  for side in (ours, others))
        cells = statistics.differences(*scores, n_bootstrap=n_bootstrap)
        cells = cells[cells["metric"].isin(["auroc", "RSUM"]) & cells["task"].isin(["", "image_to_text"])]
        found.append((cells[cells["dataset"] == "all"] if len(sets) > 1 else cells).replace({"task": {"": task}}))
    return pd.concat(found, ignore_index=True) if found else pd.DataFrame()


def _scores(run: Run, name: str, task: str, one_protocol: bool) -> pd.DataFrame:
    """Per-sample scores. Where two sides retrieve by other rules their texts differ: only films are queries then, and
    the number of candidates is not told."""
    scores = run.scores(name, task)
    if one_protocol or "n_candidates" not in scores:
        return scores
    return scores[scores["direction"] == "image_to_text"].assign(n_candidates=0)


def _origin(ours: Mapping[Row, Run], others: Mapping[Row, Run]) -> tuple[dict[str, str], str]:
    """What tidy rows say about a difference: run, seeds and fingerprints of both sides; and the reference's id."""
    row, run = next(iter(ours.items()))
    sets = [name for name in run.data.mix.tests if name in run.data.folders]
    words = {"seeds": [str(run.experiment.seed) for run in ours.values()],
             "key": [run.key for side in (ours, others) for run in side.values()],
             "data": list(run.data.fingerprints(tuple(sets)).values())}
    about = run.row_columns(sets[0]) | {name: " ".join(dict.fromkeys(values)) for name, values in words.items()}
    if row.comparison == MAIN:
        return about, next(iter(others)).experiment.run_name
    return about | {"comparison": row.comparison, "row": row.row, "budget": row.budget}, next(iter(others)).row


def coarse_text(runs: Mapping[Row, Run], role: str = "mimic-cxr") -> pd.DataFrame:
    """Tidy rows, task coarse-text: does the nearest report of a film get side, zone and severity right? Phantom only.

    One row a run and matter (oracle.coarse_text_accuracy), on the test films of `role` that have a report.
    """
    parts = []
    for row, run in runs.items():
        studies = run.data.studies(role, run.data.mix.tests[role].split)
        position, texts = evaluation.retrieval_texts(studies)
        embeds = evaluation.embed_texts(run.model, run.tokenizer, texts, max_tokens=run.experiment.max_tokens)
        hits = oracle.coarse_text_accuracy(run.embeddings(role)[position], embeds, texts,
                                               oracle.read_truth(run.data.folders[role]))
        hits = hits.rename(columns={"matter": "class", "right": "hit"})
        parts.append(stamp(row, statistics.share_rows(hits, run.row_columns(role), role, "coarse-text")))
    return together(parts)


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


def collisions(data: mixes.Prepared, profile: str) -> pd.DataFrame:
    """Tidy rows, task collision: the probability that two random studies of a source carry the same text content.

    Counted over all pairs of training studies (of test studies where a role is a test set), so without an interval.
    """
    rows = []
    for role, kinds in CONTENTS.items():
        if role not in data.folders:
            continue
        split = "train" if role in data.mix.pretraining else data.mix.tests[role].split
        table = data.studies(role, split).remove_columns("images").to_list()
        for what in kinds:
            contents = [content for study in table if (content := said(study, what)) is not None]
            if len(contents) > 1:
                rows.append({"run": "collisions", "profile": profile, "mix": data.mix.name, "origin": "measured",
                             "dataset": role, "task": "collision", "metric": "collision probability", "class": what,
                             "value": metrics.collision_probability(contents), "n": len(contents),
                             "data": data.fingerprints((role,))[role]})
    return tidy_frame(rows)


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
    """Training studies of an experiment: of each role its share, rounded as batches.share_of does."""
    shares = experiment.shares or [1.0] * len(experiment.pretraining)
    return sum(round(share * studies[role]) for role, share in zip(experiment.pretraining, shares, strict=True))


# ---- rows ---------------------------------------------------------------------------------------------------


def with_seeds(rows: Iterable[Row], seeds: Sequence[int]) -> list[Row]:
    """Every row once for each seed."""
    return [replace(row, experiment=replace(row.experiment, seed=seed)) for row in rows for seed in seeds]


def distinct_experiments(rows: Iterable[Row]) -> list[Experiment]:
    """What has to be trained, each once, in the order of the rows (experiments.run_all)."""
    return list(dict.fromkeys(row.experiment for row in rows))


def stamp(row: Row, results: pd.DataFrame) -> pd.DataFrame:
    """The tidy results of the row's run, marked with comparison, row and budget."""
    return results.assign(comparison=row.comparison, row=row.row, budget=row.budget)


def _rows(comparison: str, budgets: Mapping[str, Mapping[str, Experiment]]) -> list[Row]:
    return [Row(comparison, name, budget, item) for budget, items in budgets.items() for name, item in items.items()]
