"""What the rows of the ledger cost (ledger.py), where no training is needed to tell.

`protocol_effects` scores one run both ways, by the released code's evaluation and by the intended one, on the same
test studies. `on_public_tables` counts what each rule touches in the real Open-I reports and label tables. The rules of
training are measured by runs (comparisons.ledger).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import torch

from cxrclip import evaluation, metrics
from cxrclip.encoders import CXRCLIPModel
from cxrclip.experiments import Run, prompts_of
from cxrclip.official.behaviours import (
    Behaviours,
    alphabetical_text,
    leaked_rows,
    load_leniently,
    released_texts,
)
from cxrclip.official.probe import adamw_probe
from cxrclip.prompts import PromptBank
from cxrclip.results import statistics
from cxrclip.results.rows import CLASSIFICATION_SETS, RETRIEVAL_SETS, tidy_frame, together
from cxrclip.views import draw_texts, generator

COMPARISON = "ledger"
Measure = Callable[[Sequence[Run], Sequence[str], int], pd.DataFrame]  # runs, test sets, resamples -> differences


# ---- evaluation both ways -------------------------------------------------------------------------------------------


def protocol_effects(runs: Sequence[Run], n_bootstrap: int = 1000) -> pd.DataFrame:
    """Tidy rows of what each evaluation rule costs: the released code's protocol minus the intended one.

    runs: one experiment, a run a seed. Each is scored twice on the same test studies; nothing is trained but probes.
    Rows whose test sets the mix has not are left out. p_holm is adjusted for all rows here.
    """
    parts = []
    for name, (measure, wanted) in PROTOCOLS.items():
        if sets := [test for test in wanted if test in runs[0].data.folders]:
            parts.append(measure(runs, sets, n_bootstrap).assign(row=name))
    if not parts:
        return tidy_frame([])
    found = pd.concat(parts, ignore_index=True)
    found["p_holm"] = metrics.holm(found["p"])
    tests = tuple(test for test in runs[0].data.mix.tests if test in runs[0].data.folders)
    about = runs[0].row_columns(tests[0]) | {"data": " ".join(runs[0].data.fingerprints(tests).values())}
    about |= {"seeds": " ".join(str(run.experiment.seed) for run in runs)}
    about |= {"key": " ".join(run.key for run in runs), "comparison": COMPARISON, "budget": "evaluation"}
    return together([statistics.difference_rows(part.drop(columns="row"), about | {"row": name}, "intended")
                     for name, part in found.groupby("row", sort=False)])


def _probe(official: str, intended: str | None, fraction: float) -> Measure:
    """Effect on the linear probe: AdamW by the rules `official` against AdamW by `intended`, or against the optimum."""
    def measure(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
        theirs = {name: [_adamw_scores(run, name, fraction, Behaviours.of(official)) for run in runs] for name in sets}
        task = f"linear-probe-{100 * fraction:.0f}"
        ours = {name: [run.scores(name, task) if intended is None
                       else _adamw_scores(run, name, fraction, Behaviours.of(intended)) for run in runs]
                for name in sets}
        return _whole(statistics.differences(theirs, ours, n_bootstrap=n_bootstrap), sets, "auroc", task)
    return measure


def _adamw_scores(run: Run, name: str, fraction: float, behaviours: Behaviours) -> pd.DataFrame:
    """Per-sample scores of the AdamW probe on a test role."""
    classes, (train, test), (learn, truth) = _probed(run, name)
    scores = adamw_probe(train.features, learn, test.features, fraction=fraction, behaviours=behaviours)
    return evaluation.score_frame(test, classes, scores, truth)


def _probed(run: Run, name: str) -> tuple[list[str], list[evaluation.ImageEmbeddings], list[np.ndarray]]:
    """What a probe of a test role works on: its classes, embeddings and targets, of its train and its test studies."""
    role = run.data.mix.tests[name]
    classes, splits = list(prompts_of(role)), ("train", role.split)
    return (classes, [run.embeddings(name, split) for split in splits],
            [evaluation.targets(run.data.studies(name, split), classes) for split in splits])


def _row_split(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
    """D4: SIIM's probe with a third of the positive test films in its training set, against without."""
    def leaky(run: Run, name: str = "siim") -> pd.DataFrame:
        classes, (train, test), (learn, truth) = _probed(run, name)
        seen = leaked_rows(truth)
        scores = evaluation.linear_probe(np.concatenate([train.features, test.features[seen]]),
                                         np.concatenate([learn, truth[seen]]), test.features)
        return evaluation.score_frame(test, classes, scores, truth)
    cells = statistics.differences({"siim": [leaky(run) for run in runs]},
                                {"siim": [run.scores("siim", "linear-probe-100") for run in runs]},
                                n_bootstrap=n_bootstrap)
    return _whole(cells, sets, "auroc", "linear-probe-100")


def _alphabetical(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
    """B7: retrieval of the section that is later in the alphabet, against that of the longer one."""
    theirs, ours = ({name: [_ranks(run, name, text_of) for run in runs] for name in sets}
                    for text_of in (alphabetical_text, evaluation.retrieval_text))
    return _whole(statistics.differences(theirs, ours, n_bootstrap=n_bootstrap), sets, "RSUM", "image_to_text")


def _ranks(run: Run, name: str, text_of: evaluation.RetrievalText = evaluation.retrieval_text,
           keep: np.ndarray | None = None) -> pd.DataFrame:
    """Image-to-text ranks of a test role, over all its reports or some; candidates are not told, for they differ."""
    rows, texts = evaluation.retrieval_texts(run.data.studies(name, run.data.mix.tests[name].split), text_of)
    chosen = np.arange(len(rows)) if keep is None else keep
    texts = [texts[i] for i in chosen]
    embeds = evaluation.embed_texts(run.model, run.tokenizer, texts, max_tokens=run.experiment.max_tokens)
    return evaluation.retrieve(run.embeddings(name)[rows[chosen]], embeds, texts).assign(n_candidates=0)


def _fewer_pairs(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
    """D3: the same Open-I queries among 3,788 of 3,955 candidates, in proportion, against among all."""
    theirs, ours = [], []
    for run in runs:
        rows, _ = evaluation.retrieval_texts(run.data.studies("openi", run.data.mix.tests["openi"].split))
        keep = np.sort(generator(0, 0, "Open-I pairs").permutation(len(rows))[:round(len(rows) * 3788 / 3955)])
        some, every = _ranks(run, "openi", keep=keep), _ranks(run, "openi")
        theirs.append(some)
        ours.append(every[every["study_id"].isin(some["study_id"])])
    cells = statistics.differences({"openi": theirs}, {"openi": ours}, n_bootstrap=n_bootstrap)
    return _whole(cells, sets, "RSUM", "image_to_text")


def _lenient(runs: Sequence[Run], sets: Sequence[str], n_bootstrap: int) -> pd.DataFrame:
    """B10: weights saved with the prefix "module." load nothing and raise nothing, against the weights themselves."""
    theirs = {name: [_zero_shot(_loaded_nothing(run), run, name) for run in runs] for name in sets}
    ours = {name: [run.scores(name, "zero-shot") for run in runs] for name in sets}
    return _whole(statistics.differences(theirs, ours, n_bootstrap=n_bootstrap), sets, "auroc", "zero-shot")


def _loaded_nothing(run: Run) -> CXRCLIPModel:
    with torch.random.fork_rng():
        torch.manual_seed(run.experiment.seed)
        model = CXRCLIPModel(run.model.config)
    wrapped = {f"module.{name}": tensor for name, tensor in run.model.state_dict().items()}
    return load_leniently(model, wrapped).eval()


def _zero_shot(model: CXRCLIPModel, run: Run, name: str) -> pd.DataFrame:
    """Per-sample zero-shot scores of a model on a test role of the run's mix."""
    role, prompts = run.data.mix.tests[name], prompts_of(run.data.mix.tests[name])
    films = run.data.studies(name, role.split)
    images = evaluation.embed_studies(model, films, run.transform)
    embeds = evaluation.embed_prompts(model, run.tokenizer, prompts, max_tokens=run.experiment.max_tokens)
    return evaluation.score_frame(images, list(prompts), evaluation.zero_shot_scores(images.embeds, embeds),
                                  evaluation.targets(films, list(prompts)))


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


def _whole(cells: pd.DataFrame, sets: Sequence[str], metric: str, task: str) -> pd.DataFrame:
    """Of statistics.differences the line over all sets (of one set, that one), for one metric."""
    here = cells[(cells["metric"] == metric) & cells["task"].isin(["", "image_to_text"])]
    return here[here["dataset"] == ("all" if len(sets) > 1 else sets[0])].assign(task=task)


# Ledger row -> what measures it, and the test sets that it is read on (those of them that the mix has).
PROTOCOLS: Mapping[str, tuple[Measure, tuple[str, ...]]] = {
    "B6": (_probe("B6", "intended", 1.0), ("vindr-cxr",)), "B7": (_alphabetical, RETRIEVAL_SETS),
    "B10": (_lenient, CLASSIFICATION_SETS), "B13": (_probe("B13", "intended", 0.1), CLASSIFICATION_SETS),
    "B14": (_two_draws, ("chexpert5x200",)), "B15": (_probe("B15", None, 0.1), CLASSIFICATION_SETS),
    "D3": (_fewer_pairs, ("openi",)), "D4": (_row_split, ("siim",)),
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
    both = [study for study in studies if study["findings"] and study["impression"]]
    single = [study for study in studies if bool(study["findings"]) != bool(study["impression"])]

    def drawn(study: Mapping, rows: str) -> list[str]:
        rng = generator(0, 0, study["findings"] + study["impression"])
        return released_texts(draw_texts, Behaviours.of(rows), 2)(study, _BANK.report, rng)
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


_BANK = PromptBank({}, {}, {})  # reports need no prompts
