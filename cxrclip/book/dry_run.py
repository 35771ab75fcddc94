"""`cxrclip dry-run`: the paper's networks through training, evaluation and tables, before anyone spends GPU hours.

The real architectures at their real size, with random weights, make two steps on ten studies a role. Nothing is
downloaded. A study folder that the mix names gives its own first studies; phantoms stand in for what is not prepared.
Every measured number is marked: it says that the way is open, and nothing about the method.
"""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from cxrclip import studies
from cxrclip.book import costs
from cxrclip.data import mixes, shards
from cxrclip.data.files import write_text
from cxrclip.data.phantom import world
from cxrclip.errors import InputError
from cxrclip.experiments import IMAGE_ENCODERS, Experiment, Run, Workbench, evaluate, growing_mixtures, pretrain
from cxrclip.experiments.checkpoints import FolderStore
from cxrclip.results import tables
from cxrclip.results.rows import write_results
from cxrclip.training import start_accelerator

STUDIES = 10  # a multiple of five: CheXpert 5x200 has five classes
SETTINGS: Mapping[str, object] = {"batch_size": 4, "steps": 2, "validations": 1, "published_weights": False,
                                  "text_start": 0, "image_start": 0}
MARK = "dry run:"
WARNING = (f"DRY RUN: random weights, two steps, {STUDIES} studies a role. The numbers marked '{MARK}' say that "
           "everything runs. They say nothing about the method, and must not be quoted.")


def dry_run(profile: str, mix: str, seed: int, bench: Workbench, settings: Mapping[str, object] = SETTINGS,
            families: Sequence[str] = tuple(IMAGE_ENCODERS)) -> Path:
    """Print what a real run costs, train and evaluate the image encoders, print Tables 2 and 3; returns their folder.

    Everything goes to build/<mix>-<profile>-dry-run/, which is made anew and in the end holds results.csv and tables
    alone: the runs (up to 4 GB while one is made) are deleted. `settings` are what differs from the profile, `families`
    the image encoders (keys of IMAGE_ENCODERS).

    Raises:
        InputError: an unknown profile or mix, a study folder that is not there, no pretraining role with data.
    """
    content = mixes.load_mix(mix)
    real = Experiment.at(profile, mix=mix, seed=seed)
    start_accelerator(bench.device)
    # A role that a phantom plays counts with the size of the paper's data set.
    published = {name: replace(role, filling="source") if role.filling == "phantom" else role
                 for name, role in content.pretraining.items()}
    print(costs.announced(real, replace(content, pretraining=published)), flush=True)
    out = bench.build / f"{content.name}-{profile}-dry-run"
    shutil.rmtree(out, ignore_errors=True)
    small = replace(bench, build=out / "work")
    try:
        path = str(_small_mix(content, profile, small.build))
        if not (mixtures := growing_mixtures(mixes.load_mix(path))):
            raise InputError(f"mix {content.name}: no pretraining role has data: fill one")
        changes = {"mix": path, "pretraining": mixtures[-1], **settings}
        parts = [_one(replace(real, image_encoder=IMAGE_ENCODERS[family][profile], **changes), small)
                 for family in families]
        return _written(pd.concat(parts), small.prepared(path, profile).missing, out)
    finally:
        shutil.rmtree(small.build, ignore_errors=True)


def _one(experiment: Experiment, bench: Workbench) -> pd.DataFrame:
    """The marked results of one run; its files are gone before the next one starts."""
    print(f"\n{experiment.run_name}", flush=True)
    run = pretrain(experiment, bench)
    for name in ("state", "best"):
        FolderStore(run.folder).path(name).unlink()
    _print_run(run)
    with warnings.catch_warnings(action="ignore"):  # of numbers at chance, which these must be
        tidy = evaluate(run)
    shutil.rmtree(run.folder)
    return tidy.assign(note=[f"dry run of random weights; {note}".rstrip("; ") for note in tidy["note"]])


def _print_run(run: Run) -> None:
    log, experiment = run.log(), run.experiment
    seconds = ", ".join(f"{value:.1f}" for value in log["seconds"])
    print(f"trained: {run.about['parameters']:,} parameters, losses {', '.join(f'{x:.2f}' for x in log['total'])}; "
          f"seconds a step of {experiment.batch_size} studies here: {seconds}", flush=True)


def _small_mix(mix: mixes.Mix, profile: str, build: Path) -> Path:
    """Write a mix of the same roles with few studies each; returns its path."""
    sections = {use: {role.name: _small_role(role, profile, build) for role in roles.values()}
                for use, roles in (("pretraining", mix.pretraining), ("tests", mix.tests))}
    path = build / "dry-run.yaml"
    write_text(path, yaml.safe_dump({"about": WARNING, **sections}, sort_keys=False))
    return path


def _small_role(role: mixes.Role, profile: str, build: Path) -> dict:
    """The settings of one role: as in the mix, but with its first studies, or phantoms in place of a download."""
    spec = {"tasks": list(role.tasks), "prompts": role.prompts, "split": role.split,
            "max_negatives": role.max_negatives}
    if role.filling in ("role", "missing"):
        return spec | {role.filling: role.value}
    if role.filling == "folder":
        folder = build / "first" / role.name
        shards.write_studies(_first_studies(Path(role.value)), folder)
        return spec | {"folder": str(folder)}
    institution = role.value if role.filling == "phantom" else role.name
    if institution not in world.INSTITUTIONS:
        return spec | {"missing": "no phantom stands in for it in a dry run"}
    return spec | {"phantom": institution, "sizes": {profile: dict.fromkeys(studies.SPLITS, STUDIES)}}


def _first_studies(folder: Path) -> Iterator[dict]:
    """The first studies of every split that the folder has."""
    if not (folder / "dataset.json").is_file():
        raise InputError(f"{folder} is no study folder (no dataset.json): prepare it or mend the path")
    table = studies.open_studies(folder)
    for split in studies.SPLITS:
        rows = [i for i, name in enumerate(table["split"]) if name == split][:STUDIES]
        yield from table.select(rows).to_list()


def _written(tidy: pd.DataFrame, missing: Mapping[str, str], out: Path) -> Path:
    """Write results and marked tables, and print the tables."""
    write_results(tidy, out / "results.csv")
    for make in (tables.table2, tables.table3):
        table = marked(make(tidy, missing))
        tables.write_table(table, out / "tables" / make.__name__)
        print(f"\n{table.text().rstrip()}")
    print(f"\nThe dry run went through. Its tables are in {out}.")
    return out


def marked(table: tables.Table) -> tables.Table:
    """The table with MARK before every measured number and the warning above all; other lines were not tried."""
    cells = table.cells.apply(lambda column: column if column.name[1].startswith(tables.PUBLISHED)
                              else column.str.replace(r"^(?=\d)", f"{MARK} ", regex=True))
    return replace(table, title=f"DRY RUN. {table.title}", header=f"{WARNING} {table.header}", cells=cells,
                   footnotes=tuple(re.sub(r"not measured; run \S+", "not in the dry run", line)
                                   for line in table.footnotes))
