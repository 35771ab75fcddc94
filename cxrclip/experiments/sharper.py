"""Sharper readings of a finished run: what the paper's measures cannot tell apart. No new training, no new labels.

    graded retrieval   how good are the first ten reports, if one that says nearly the same counts nearly as much?
    pairs              of two findings, one on the film and one not: which text is nearer?
    negation           is "X" nearer than "No X" where X is there, and "No X" nearer where it is not?
    zero-shot-unseen   zero-shot AUROC by a wording (UNSEEN) that stands in no training text
    zero-shot-unnamed  zero-shot AUROC of findings (UNNAMED) that no sentence of a training label speaks of
    F1                 yes or no, by thresholds that were chosen on other films
    median rank        of the right report among all: says more than R@10 where few are found
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from sklearn.metrics import ndcg_score, precision_recall_curve

from cxrclip import evaluation
from cxrclip.data import mixes
from cxrclip.experiments import oracle
from cxrclip.experiments.evaluate import paired, prompts_of, zero_shot_frame
from cxrclip.experiments.workbench import Run
from cxrclip.results import statistics
from cxrclip.results.rows import SPLITS, together

GRADED = "mimic-cxr"        # M's own test set: its reports are the longest
FIRST = 10                  # reports that graded retrieval looks at
UNSEEN = ("Not a sign of {} is visible on this study.", "A sign of {} is visible on this study.")   # absent, present
# Of VinDr-CXR's findings those that no label of CheXpert or ChestX-ray14 is and no sentence of a label speaks of.
UNNAMED = ("Aortic enlargement", "Calcification", "Mediastinal shift", "Tuberculosis")


def sharper(runs: Sequence[Run]) -> pd.DataFrame:
    """Tidy rows of all readings, one a run and test set; a reading whose test set or truth is missing has no row."""
    parts = []
    for run in runs:
        for role in run.data.mix.tests.values():
            if role.name in run.data.folders and "zero-shot" in role.tasks and paired(prompts_of(role)):
                parts += _classified(run, role)
            elif role.name in run.data.folders and "retrieval" in role.tasks:
                parts.append(statistics.median_rank_rows(run.scores(role.name, "retrieval"),
                                                         run.row_columns(role.name), role.name))
    return together([*parts, *graded_retrieval(runs)])


def _classified(run: Run, role: mixes.Role) -> list[pd.DataFrame]:
    """Pairs, negation, F1, the unseen wording and the unnamed findings on one classification set."""
    about, images = run.row_columns(role.name), run.embeddings(role.name, role.split)
    prompts = prompts_of(role)
    truth = evaluation.targets(run.data.studies(role.name, role.split), list(prompts))
    frame = zero_shot_frame(run, role, images, unseen_wording(list(prompts)))
    embeds = evaluation.embed_prompts(run.model, run.tokenizer, prompts, device=run.device,
                                      max_tokens=run.experiment.max_tokens)
    cosines = np.stack([(images.embeds @ positive.T).mean(axis=1) for _, positive in embeds.values()], axis=1)
    official = run.scores(role.name, "zero-shot")
    unnamed = official[official["class"].isin(UNNAMED)]
    negated = negation_hits(official)
    return [statistics.auroc_rows(frame, about, role.name, "zero-shot-unseen"),
            *([statistics.auroc_rows(unnamed, about, role.name, "zero-shot-unnamed")] if len(unnamed) else []),
            statistics.f1_rows(official, thresholds(run, role, embeds), about, role.name),
            statistics.share_rows(pair_hits(images.patient_ids, cosines, truth), about, role.name, "pairs"),
            *(statistics.share_rows(part, about, role.name, "negation", f"right if {state}")
              for state, part in negated.groupby("state"))]


def thresholds(run: Run, role: mixes.Role, embeds: Mapping) -> dict[str, float]:
    """Class -> the zero-shot score with the highest F1 on the role's training films, which no zero-shot model has seen.

    embeds: of the official texts. A class that these films never have is called absent (threshold infinity).
    """
    films = run.embeddings(role.name, SPLITS[0])
    truth = evaluation.targets(run.data.studies(role.name, SPLITS[0]), list(embeds))
    scores = evaluation.zero_shot_scores(films.embeds, embeds)
    return {name: best_threshold(scores[:, k], truth[:, k]) for k, name in enumerate(embeds)}


def best_threshold(scores: np.ndarray, truth: np.ndarray) -> float:
    """The score from which on "present" gives the highest F1; scores, truth: (N,)."""
    if not truth.any():
        return np.inf
    precision, recall, candidates = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return candidates[f1[:-1].argmax()]


def unseen_wording(classes: Sequence[str]) -> dict[str, tuple[list[str], list[str]]]:
    """Class -> (texts that deny it, texts that assert it), in the wording UNSEEN."""
    return {name: tuple([form.format(name.lower())] for form in UNSEEN) for name in classes}


def pair_hits(patients: np.ndarray, cosines: np.ndarray, truth: np.ndarray) -> pd.DataFrame:
    """A line a film: the share of its (present, absent) pairs of findings whose present one has the nearer text.

    cosines, truth: (N, K). A tie counts half. Films with no finding, or with all of them, have no pair and no line.
    """
    rows = []
    for patient, row, present in zip(patients, cosines, truth, strict=True):
        if present.any() and not present.all():
            nearer = row[present][:, None] - row[~present][None]
            rows.append((patient, "all", ((nearer > 0) + 0.5 * (nearer == 0)).mean(), 0.5))
    return pd.DataFrame(rows, columns=["patient_id", "class", "hit", "chance"])


def negation_hits(scores: pd.DataFrame) -> pd.DataFrame:
    """A line a film and finding: is the right one of "X" and "No X" nearer? state: present or absent, is X there?

    scores: the official pair's frame (evaluation.score_frame); above one half "X" is nearer. A tie counts half.
    """
    nearer = np.sign(scores["score"] - 0.5) / 2 + 0.5
    hit = np.where(scores["target"], nearer, 1 - nearer)
    return pd.DataFrame({"patient_id": scores["patient_id"], "class": "all", "hit": hit, "chance": 0.5,
                         "state": np.where(scores["target"], "present", "absent")})


def graded_retrieval(runs: Sequence[Run], role: str = GRADED) -> list[pd.DataFrame]:
    """nDCG of the first ten reports of each film, by how far a report's study agrees with the film's (agreement).

    Reports that say the same are one candidate, as in the paper's retrieval. Chance: reports in random order.
    """
    parts, known = [], {}
    for run in runs:
        if role not in run.data.folders or not (run.data.folders[role] / "truth.parquet").is_file():
            continue
        position, texts = evaluation.retrieval_texts(run.data.studies(role, run.data.mix.tests[role].split))
        images, first = run.embeddings(role)[position], oracle.first_of_each(texts)
        if run.data.folders[role] not in known:     # all runs of a mix are tested on the same studies
            facts = oracle.facts_of(oracle.read_truth(run.data.folders[role]), images.study_ids)
            known[run.data.folders[role]] = np.array([[agreement(a, facts[j]) for j in first] for a in facts])
        gains = known[run.data.folders[role]]                                                   # (N, U)
        cosines = images.embeds @ run.embed_texts([texts[i] for i in first]).T                  # (N, U)
        hits = pd.DataFrame({"patient_id": images.patient_ids, "class": "all", "hit": ndcg(gains, cosines),
                             "chance": ndcg(gains, np.zeros_like(gains))})
        parts.append(statistics.share_rows(hits, run.row_columns(role), role, "graded retrieval", f"nDCG@{FIRST}"))
    return parts


def agreement(film: oracle.Facts, report: oracle.Facts) -> float:
    """How far two studies agree, 0 to 1: each shared finding earns a quarter for itself and for side, zone, severity.

    Divided by the number of findings of the study that has more, so that a wrong finding costs as much as a missing
    one. Two normal studies agree.
    """
    if not (film or report):
        return 1.0
    shared = film.keys() & report.keys()
    earned = sum(1 + sum(film[name][matter] == report[name][matter] for matter in oracle.MATTERS) for name in shared)
    return earned / (1 + len(oracle.MATTERS)) / max(len(film), len(report))


def ndcg(gains: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """(N,) nDCG of the first ten candidates of each query; gains, scores: (N, U). Ties share their mean gain."""
    return np.array([ndcg_score(gain[None], score[None], k=FIRST) for gain, score in zip(gains, scores, strict=True)])
