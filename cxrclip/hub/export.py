"""A trained run as a folder that plain transformers reads: model, processor, tokenizer, and a model card.

    python -m cxrclip.hub.export --run build/runs/<fingerprint> --out <new folder>

The card (card.md is its text) takes every number from the run's settings, data and tidy results. The folder is what
`hf upload <name> <folder>` would upload, or `huggingface_hub.upload_folder`; nothing here does so by itself.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from cxrclip import results, studies
from cxrclip.book import governance
from cxrclip.data import mixes
from cxrclip.data.files import write_text
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, Run, Workbench, evaluate, used_studies
from cxrclip.hub.processing import CXRCLIPProcessor

TEMPLATE = Path(__file__).parent / "card.md"
PIPELINE = "zero-shot-image-classification"
METRICS = {"auroc": "roc_auc", "accuracy": "accuracy"}  # the Hub's names
TAGS = ("chest-x-ray", "radiology", "clip", "cxr-clip")


def open_run(folder: str | Path, data: str = "") -> Run:
    """The finished run in a folder <build>/runs/<fingerprint>; `data` as in Workbench.

    Raises InputError for a folder that is missing, elsewhere or unfinished, or whose run.json this version cannot read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder: give the folder of a finished run, <build>/runs/<fingerprint>")
    if folder.resolve().parent.name != "runs":
        raise InputError(f"{folder}: not in a folder 'runs': give <build>/runs/<fingerprint>, where training put it")
    path = folder / "run.json"
    if not path.is_file():
        raise InputError(f"{folder}: not a finished run (no run.json): train it to its end, or give another folder")
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))["experiment"]
        experiment = Experiment(**{name: tuple(value) if isinstance(value, list) else value
                                   for name, value in settings.items()})
    except (ValueError, KeyError, TypeError, AttributeError) as fault:
        raise InputError(f"{path}: damaged, or of another version ({fault}): train the run again") from fault
    return Run(experiment, folder.resolve(), Workbench(folder.resolve().parents[1], data))


def export(run: Run, folder: str | Path) -> Path:
    """Write model, processor, tokenizer, results.csv and README.md (the card) into a new folder, whole or not at all.

    The run is evaluated first if it was not yet. Raises InputError if the folder holds files already, the run's data
    are not those it was trained on, or the card would tell what governance.py keeps back.
    """
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise InputError(f"{folder}: there already: choose a new folder, or remove it first")
    trained, given = run.about["data"], run.data.fingerprints(run.experiment.pretraining)
    if trained != given:
        raise InputError(f"{run.folder}: trained on data {trained}, but mix {run.data.mix.name} now gives {given}: "
                         "restore the data, or train again")
    rows = evaluate(run)
    with studies.atomic_folder(folder) as partial:
        run.model.save_pretrained(partial)
        CXRCLIPProcessor.of(run.model.config, run.tokenizer).save_pretrained(partial)
        results.write_results(rows, partial / "results.csv")
        write_text(partial / "README.md", f"{card(run, rows)}\n")
        if found := governance.scan(partial, [partial / "README.md"]):
            raise InputError(f"{folder}: not exported: {found[0]}")
        for path in partial.iterdir():
            path.chmod(0o644)  # weights are written for their owner alone; this folder is for others
    return folder


def card(run: Run, rows: pd.DataFrame) -> ModelCard:
    """The model card of a run, from its tidy rows (experiments.evaluate)."""
    experiment, mix = run.experiment, run.data.mix
    simulated = all(_filled(mix, role).filling == "phantom" for role in experiment.pretraining)
    whole = rows[rows["class"] == "all"]
    head = ModelCardData(
        language="en", library_name="transformers", pipeline_tag=PIPELINE, model_name=experiment.run_name,
        license="apache-2.0" if simulated else "other",
        license_name=None if simulated else "as-the-training-data-allow",
        tags=[*TAGS, *(["simulated-data"] if simulated else [])],
        datasets=list(dict.fromkeys(_data_id(mix, role) for role in experiment.pretraining)),
        eval_results=[_eval_result(mix, row) for row in whole.to_dict("records") if row["task"] == "zero-shot"],
    )
    notes = [f"{_label(mix, row['dataset'])}, {row['task']}: {row['note']}" for row in whole.to_dict("records")
             if row["note"]]
    return ModelCard.from_template(
        head, template_path=str(TEMPLATE), name=experiment.run_name, simulated=simulated, experiment=run.fingerprint,
        seed=experiment.seed, mix=mix.name, about_mix=" ".join(mix.about.split()).rstrip("."),
        max_tokens=experiment.max_tokens, image_size=experiment.image_size,
        data=_table(_data_rows(run)), training=_table(_training_rows(run)),
        versions=", ".join(f"{name} {number}" for name, number in run.about["versions"].items()),
        results=_table([_result_row(mix, row) for row in whole.to_dict("records")]), notes=notes)


def _filled(mix: mixes.Mix, name: str) -> mixes.Role:
    """The role whose own data a role uses."""
    role = mix.roles[name]
    return _filled(mix, role.value) if role.filling == "role" else role


def _data_id(mix: mixes.Mix, name: str) -> str:
    """One word for a role's data, such as phantom-M; of a path only its last part."""
    role = _filled(mix, name)
    return f"phantom-{role.value}" if role.filling == "phantom" else Path(role.value).name


def _label(mix: mixes.Mix, name: str) -> str:
    """The role as tables name it; never a phantom under the bare name of real data."""
    simulated = _filled(mix, name).filling == "phantom"
    return f"{results.LABELS.get(name, name)}{' (simulated)' if simulated else ''}"


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
    """A line a pretraining role: what fills it, its studies, its fingerprint."""
    return [{"role": _label(run.data.mix, role), "filled by": f"`{_data_id(run.data.mix, role)}`",
             **{f"{split} studies": f"{len(used_studies(run.experiment, run.data, role, split)):,}"
                for split in ("train", "valid")},
             "data": f"`{fingerprint}`"} for role, fingerprint in run.about["data"].items()]


def _training_rows(run: Run) -> list[dict[str, str]]:
    """A line a setting: all those of the experiment, and what the run itself wrote down."""
    about = run.about
    shown = about["experiment"] | {"steps": about["recipe"]["steps"], "parameters": f"{about['parameters']:,}",
                                   "seconds": about["seconds"]}
    left_out = {"mix", *(["epochs"] if run.experiment.steps else [])}  # a mix may be a path; steps overrule epochs
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 after one line that says what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m cxrclip.hub.export", description=__doc__.split("\n")[0])
    parser.add_argument("--run", required=True, help="folder of a finished run: <build>/runs/<fingerprint>")
    parser.add_argument("--out", required=True, help="new folder for the model")
    parser.add_argument("--data", default="", help="folder of downloads, for a mix that reads some")
    options = parser.parse_args(arguments)
    try:
        print(f"wrote {export(open_run(options.run, options.data), options.out)}: its README.md tells how to use it")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
