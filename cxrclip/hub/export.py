"""A trained run as a folder that plain transformers reads: model, processor, tokenizer, and a model card.

    cxrclip export --run build/runs/<fingerprint> --out <new folder>

The card (its template is card.md) takes every number from the run's settings, data and results. Nothing is uploaded:
the folder is what `hf upload <name> <folder>` or `huggingface_hub.upload_folder` takes.
"""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cxrclip.book import governance
from cxrclip.data import mixes
from cxrclip.data.files import atomic_folder, write_text
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, Run, Workbench, evaluate, used_studies
from cxrclip.hub.processing import CXRCLIPProcessor
from cxrclip.results.rows import LABELS, write_results

TEMPLATE = Path(__file__).parent / "card.md"
PIPELINE = "zero-shot-image-classification"
METRICS = {"auroc": "roc_auc", "accuracy": "accuracy"}  # the Hub's names
TAGS = ("chest-x-ray", "radiology", "clip", "cxr-clip")


def open_run(folder: str | Path, data: str = "") -> Run:
    """The finished run in a folder <build>/runs/<fingerprint>; `data` as in Workbench.

    Raises:
        InputError: a folder that is missing, elsewhere or unfinished, or whose run.json this version cannot read.
    """
    folder, path = Path(folder), Path(folder) / "run.json"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give the folder of a finished run, <build>/runs/<fingerprint>")
    if folder.resolve().parent.name != "runs":
        raise InputError(f"{folder}: not in a folder 'runs': give <build>/runs/<fingerprint>, where training put it")
    if not path.is_file():
        raise InputError(f"{folder}: not a finished run (no run.json): train it to its end, or give another folder")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["experiment"].items()
        experiment = Experiment(**{key: tuple(value) if isinstance(value, list) else value for key, value in settings})
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(f"{path}: damaged, or of another version ({fault}): train the run again") from fault
    return Run(experiment, folder.resolve(), Workbench(folder.resolve().parents[1], data))


def export(run_folder: str | Path, out: str | Path, data: str = "") -> Path:
    """Write model, processor, tokenizer, results.csv and README.md (the card) into a new folder, whole or not at all.

    Args:
        run_folder: the folder of a finished run (see `open_run`); the run is evaluated first if it was not yet.
        out: the new folder.
        data: the folder of downloads, for a mix that reads some.

    Raises:
        InputError: no finished run; `out` holds files already; the run's data are not those it was trained on; or the
            card would show what governance.py forbids.
    """
    run, folder = open_run(run_folder, data), Path(out)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: there already: choose a new folder, or remove it first")
    trained, given = run.about["data"], run.data.fingerprints(run.experiment.pretraining)
    if trained != given:
        raise InputError(f"{run.folder}: trained on data {trained}, but mix {run.data.mix.name} now gives {given}: "
                         "restore the data, or train again")
    rows = evaluate(run)
    with atomic_folder(folder) as draft:
        run.model.save_pretrained(draft)
        CXRCLIPProcessor.of(run.model.config, run.tokenizer).save_pretrained(draft)
        write_results(rows, draft / "results.csv")
        write_text(draft / "README.md", f"{card(run, rows)}\n")
        if findings := governance.scan(draft, [draft / "README.md"]):
            raise InputError(f"{folder}: not exported: {findings[0]}")
        for path in draft.iterdir():
            path.chmod(0o644)  # transformers writes weights readable by their owner only; this folder is for others
    return folder


def card(run: Run, rows: pd.DataFrame) -> ModelCard:
    """The model card of a run, from its tidy rows (experiments.evaluate)."""
    experiment, mix = run.experiment, run.data.mix
    simulated = all(mix.origin(mix.roles[role]).filling == "phantom" for role in experiment.pretraining)
    results = rows[rows["class"] == "all"].to_dict("records")
    head = ModelCardData(
        language="en", library_name="transformers", pipeline_tag=PIPELINE, model_name=experiment.run_name,
        license="apache-2.0" if simulated else "other",
        license_name=None if simulated else "as-the-training-data-allow",
        tags=[*TAGS, *(["simulated-data"] if simulated else [])],
        datasets=list(dict.fromkeys(_data_id(mix, role) for role in experiment.pretraining)),
        eval_results=[_eval_result(mix, row) for row in results if row["task"] == "zero-shot"],
    )
    notes = [f"{_label(mix, row['dataset'])}, {row['task']}: {row['note']}" for row in results if row["note"]]
    return ModelCard.from_template(
        head, template_path=str(TEMPLATE), experiment=experiment, simulated=simulated, key=run.key, mix=mix.name,
        about_mix=" ".join(mix.about.split()).rstrip("."), data=_table(_data_rows(run)),
        training=_table(_training_rows(run)),
        versions=", ".join(f"{name} {number}" for name, number in run.about["versions"].items()),
        results=_table([_result_row(mix, row) for row in results]), notes=notes)


def _data_id(mix: mixes.Mix, name: str) -> str:
    """One word for a role's data, such as phantom-M; the last part of a path."""
    role = mix.origin(mix.roles[name])
    return f"phantom-{role.value}" if role.filling == "phantom" else Path(role.value).name


def _label(mix: mixes.Mix, name: str) -> str:
    """The role as tables name it; simulated data are marked, as they bear the names of real data sets."""
    simulated = mix.origin(mix.roles[name]).filling == "phantom"
    return f"{LABELS.get(name, name)}{' (simulated)' if simulated else ''}"


def _eval_result(mix: mixes.Mix, row: dict) -> EvalResult:
    """A zero-shot row as the Hub's model-index wants it; data and experiment by fingerprint."""
    return EvalResult(
        task_type=PIPELINE, task_name="zero-shot classification", dataset_type=_data_id(mix, row["dataset"]),
        dataset_name=_label(mix, row["dataset"]), dataset_split=mix.roles[row["dataset"]].split,
        dataset_revision=row["data"],
        metric_type=METRICS[row["metric"]], metric_name=f"zero-shot {row['metric']}", metric_value=row["value"],
        metric_args={**{name: row[name] for name in ("low", "high", "chance")}, "n": int(row["n"]),
                     "experiment": row["key"]})


def _data_rows(run: Run) -> list[dict[str, str]]:
    """One row per pretraining role: its data, how many studies, their fingerprint."""
    return [{"role": _label(run.data.mix, role), "filled by": f"`{_data_id(run.data.mix, role)}`",
             **{f"{split} studies": f"{len(used_studies(run.experiment, run.data, role, split)):,}"
                for split in ("train", "valid")},
             "data": f"`{fingerprint}`"} for role, fingerprint in run.about["data"].items()]


def _training_rows(run: Run) -> list[dict[str, str]]:
    """One row per setting: those of the experiment, and what the run recorded."""
    about = run.about
    shown = about["experiment"] | {"steps": about["recipe"]["steps"], "parameters": f"{about['parameters']:,}",
                                   "seconds": about["seconds"]}
    left_out = {"mix", *(["epochs"] if run.experiment.steps else [])}  # a mix may be a path; steps override epochs
    return [{"setting": name, "value": ", ".join(map(str, value)) if isinstance(value, list) else str(value)}
            for name, value in shown.items() if name not in left_out and value is not None]


def _result_row(mix: mixes.Mix, row: dict) -> dict[str, str]:
    """A tidy row as the card prints it: fractions with three digits, ranks with one."""
    digits = 1 if row["metric"] == "mean rank" else 3
    value, low, high, chance = (f"{row[name]:.{digits}f}" for name in ("value", "low", "high", "chance"))
    return {"data set": _label(mix, row["dataset"]), "task": row["task"], "metric": row["metric"],
            "value": f"{value} [{low}, {high}]", "chance": chance, "n": f"{row['n']:,.0f}", "data": f"`{row['data']}`"}


def _table(rows: list[dict[str, str]]) -> str:
    return pd.DataFrame(rows).to_markdown(index=False, disable_numparse=True)
