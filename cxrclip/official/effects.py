"""What the rows of the ledger cost (ledger.py), where no training is needed to tell.

`protocol_effects` scores one run both ways, by the released code's evaluation and by the intended one, on the same
test studies. `on_public_tables` counts what each rule touches in the real Open-I reports and label tables. The rules of
training are measured by runs (comparisons.ledger).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch

from cxrclip import evaluation, metrics
from cxrclip.data import mixes
from cxrclip.encoders import CXRCLIPModel
from cxrclip.experiments.comparisons import about_difference, deciding
from cxrclip.experiments.evaluate import probe_frame, retrieval_frame, zero_shot_frame
from cxrclip.experiments.workbench import Run
from cxrclip.official.behaviours import Behaviours, alphabetical_text, load_leniently, released_texts
from cxrclip.prompts import PromptBank
from cxrclip.results import statistics
from cxrclip.results.rows import CLASSIFICATION_SETS, RETRIEVAL_SETS, together
from cxrclip.views import draw_texts, generator

Measure = Callable[[Sequence[Run], Sequence[str], int], pd.DataFrame]  # runs, test sets, resamples -> differences
Scored = Callable[[Run, mixes.Role], pd.DataFrame]  # per-sample scores or ranks of a run on a test role


# ---- evaluation both ways -------------------------------------------------------------------------------------------


def protocol_effects(runs: Sequence[Run], n_bootstrap: int = 1000) -> pd.DataFrame:
    """Tidy rows of what each evaluation rule costs: the released code's protocol minus the intended one.

    runs: one experiment, a run a seed. Each is scored twice on the same test studies; nothing is trained but probes.
    Rows whose test sets the mix has not are left out. p_holm is adjusted for all rows here.
    """
    parts = {}
    for name, (measure, task, wanted) in PROTOCOLS.items():
        if sets := [test for test in wanted if runs and test in runs[0].data.folders
                    and task in runs[0].data.mix.tests[test].tasks]:
            parts[name] = measure(runs, sets, n_bootstrap)
    if not parts:
        return together([])
    cells = pd.concat(parts)
    cells["p_holm"] = metrics.holm(cells["p"])
    about = about_difference(runs) | {"comparison": "ledger", "budget": "evaluation"}
    return together([statistics.difference_rows(cells.loc[name], about | {"row": name}, "intended") for name in parts])


def _both_ways(official: Scored, intended: Scored, task: str) -> Measure:
    """The difference of two ways to score the same runs on the same test studies."""
    def measure(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
        sides = ({name: [scored(run, run.data.mix.tests[name]) for run in runs] for name in sets}
                 for scored in (official, intended))
        return deciding(*sides, n_bootstrap).assign(task=task)
    return measure


def _stored(run: Run, role: mixes.Role, task: str) -> pd.DataFrame:
    return run.scores(role.name, task)


def _probe(official: str, intended: str, fraction: float) -> Measure:
    """Effect on the linear probe of a fraction of the training studies, by the rules `official` and `intended`."""
    task = f"linear-probe-{100 * fraction:.0f}"
    sides = [partial(_stored, task=task) if rules == "intended" else
             partial(probe_frame, fraction=fraction, behaviours=Behaviours.of(rules)) for rules in (official, intended)]
    return _both_ways(*sides, task)


def _ranks(run: Run, role: mixes.Role, **options: object) -> pd.DataFrame:
    """Image-to-text ranks of a test role; the number of candidates is not told, for it differs."""
    return retrieval_frame(run, role, **options).assign(n_candidates=0)


def _fewer_pairs(n: int) -> np.ndarray:
    """D3: 3,788 of 3,955 pairs, in proportion."""
    return np.sort(generator(0, 0, "Open-I pairs").permutation(n)[:round(n * 3788 / 3955)])


def _same_queries_among_all(run: Run, role: mixes.Role) -> pd.DataFrame:
    """The queries of `_fewer_pairs` among all candidates."""
    rows, _ = evaluation.retrieval_texts(studies := run.data.studies(role.name, role.split))
    ranks, kept = _ranks(run, role), np.asarray(studies["study_id"])[rows[_fewer_pairs(len(rows))]]
    return ranks[ranks["study_id"].isin(kept)]


def _loaded_nothing(run: Run, role: mixes.Role) -> pd.DataFrame:
    """B10: zero-shot by weights saved with the prefix "module.", which load nothing and raise nothing."""
    with torch.random.fork_rng():
        torch.manual_seed(run.experiment.seed)
        model = CXRCLIPModel(run.model.config)
    load_leniently(model, {f"module.{name}": tensor for name, tensor in run.model.state_dict().items()})
    films = run.data.studies(role.name, role.split)
    images = evaluation.embed_studies(model, films, run.transform, device=run.device)
    return zero_shot_frame(run, role, images, model=model)


def _two_draws(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
    """B14: accuracy on one draw of half the pool minus that on another; the interval is that of 0 for two draws.

    Draws are balanced over classes. Two draws of one pool share half of their studies, so two draws of CheXpert,
    which share next to none, differ by more.
    """
    wide = [run.scores("chexpert5x200", "zero-shot").pivot(index="study_id", columns="class") for run in runs]
    hits = np.mean([table["score"].to_numpy().argmax(1) == table["target"].to_numpy().argmax(1) for table in wide], 0)
    classes = wide[0]["target"].to_numpy().argmax(1)

    def accuracy(seed: int) -> float:
        order = np.random.default_rng(seed).permutation(len(hits))
        halves = [order[classes[order] == k][:(classes == k).sum() // 2] for k in np.unique(classes)]
        return float(hits[np.concatenate(halves)].mean())
    values = np.array([accuracy(seed) for seed in range(2 * n_bootstrap)])
    spread, first = values[0::2] - values[1::2], values[0] - values[1]
    low, high = np.percentile(spread, (2.5, 97.5))
    return pd.DataFrame([{"dataset": "chexpert5x200", "task": "zero-shot", "metric": "accuracy", "value": first,
                          "low": low, "high": high, "p": float((np.abs(spread) >= abs(first)).mean()), "n": len(hits),
                          "note": "two draws of half the pool; the interval is where 95 % of such differences lie"}])


# Ledger row -> what measures it, its task, and the test sets that it is read on (if the mix has them, with that task).
PROTOCOLS: Mapping[str, tuple[Measure, str, tuple[str, ...]]] = {
    "B6": (_probe("B6,B15", "B15", 1.0), "linear-probe", ("vindr-cxr",)),
    "B7": (_both_ways(partial(_ranks, text_of=alphabetical_text), _ranks, "image_to_text"), "retrieval",
           RETRIEVAL_SETS),
    "B10": (_both_ways(_loaded_nothing, partial(_stored, task="zero-shot"), "zero-shot"), "zero-shot",
            CLASSIFICATION_SETS),
    "B13": (_probe("B13,B15", "B15", 0.1), "linear-probe", CLASSIFICATION_SETS),
    "B14": (_two_draws, "zero-shot", ("chexpert5x200",)),
    "B15": (_probe("B15", "intended", 0.1), "linear-probe", CLASSIFICATION_SETS),
    "D3": (_both_ways(partial(_ranks, keep=_fewer_pairs), _same_queries_among_all, "image_to_text"), "retrieval",
           ("openi",)),
    "D4": (_probe("D4", "intended", 1.0), "linear-probe", ("siim",)),
}


# ---- what the rules touch in real tables ----------------------------------------------------------------------------


def on_public_tables() -> pd.DataFrame:
    """How much of the real public tables each rule touches: columns row, what, touched, of, share.

    From the packaged Open-I reports and label tables (sources/public.py); nothing is downloaded. Texts are drawn by
    the rules themselves, once a report.
    """
    from cxrclip.data.sources import public  # tables of 200,000 rows: read when asked for

    reports = public.open_i()
    lines = _on_reports(reports[["findings", "impression"]].to_dict("records"))
    lines.insert(0, ("B1", "Open-I reports with more than two films", int((reports["images"] > 2).sum()), len(reports)))
    labels = public.chexpert().filter(items=public.CHEXPERT_LABELS)
    lines.append(("B12", "CheXpert films without any label", int((labels == "").all(axis=1).sum()), len(labels)))
    films, row_leak = len(public.nih()), public.siim_leak()
    lines += [("D1", "ChestX-ray14: four fifths of all films, Table 1's training size", round(0.8 * films), films),
              ("D3", "Open-I reports with a film and a text", int(((reports["images"] > 0) & (
                  (reports["findings"] != "") | (reports["impression"] != ""))).sum()), len(reports)),
              ("D4", "SIIM's positive test films that a split by row also trains on", *row_leak)]
    table = pd.DataFrame(lines, columns=["row", "what", "touched", "of"])
    return table.assign(share=table["touched"] / table["of"])


def _on_reports(studies: Sequence[Mapping[str, str]]) -> list[tuple[str, str, int, int]]:
    """The lines of the text rules B2, B3, B4 and B7."""
    studies = [{**study, "findings_aug": [], "impression_aug": []} for study in studies]
    no_prompts = PromptBank({}, {}, {})  # reports need none
    both = [study for study in studies if study["findings"] and study["impression"]]
    single = [study for study in studies if bool(study["findings"]) != bool(study["impression"])]

    def drawn(study: Mapping, rows: str) -> list[str]:
        rng = generator(0, 0, study["findings"] + study["impression"])
        return released_texts(draw_texts, Behaviours.of(rows), 2)(study, no_prompts.report, rng)
    moved = [study for study in single if len(set(drawn(study, "intended"))) == 2]
    twice = [study for study in both if len(set(drawn(study, "B3"))) == 1]
    letters = [study for study in both if len(drawn(study, "B4")[0]) == 1]
    other = [study for study in both if evaluation.retrieval_text(study) != alphabetical_text(study)]
    return [("B2", "Open-I reports of one section whose two texts are alike because the shuffle is lost", len(moved),
             len(single)),
            ("B3", "two-section Open-I reports that give one section twice (no back-translations here)", len(twice),
             len(both)),
            ("B4", "two-section Open-I reports of which a letter is left", len(letters), len(both)),
            ("B7", "two-section Open-I reports whose retrieval text is another one", len(other), len(both))]
