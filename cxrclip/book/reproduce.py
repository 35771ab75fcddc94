"""`cxrclip reproduce`: the book in three parts - the data, the runs, the notebooks - and what was measured.

Whatever is there already is found, so that a second start takes seconds and a killed one goes on where it stopped.
The second part trains and evaluates every run of the book (comparisons.plan), on all cores; the notebooks only find
runs, draw and tell, and are executed again when what they follow from has changed: their text and parameters, the
mix, the versions of the stages (experiments.cache), or the results that they read.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from functools import reduce
from hashlib import sha256
from pathlib import Path

import pandas as pd

from cxrclip.book import costs, notebooks
from cxrclip.data import mixes
from cxrclip.errors import InputError
from cxrclip.experiments import comparisons
from cxrclip.experiments.cache import VERSIONS
from cxrclip.experiments.evaluate import evaluate
from cxrclip.experiments.experiment import IMAGE_ENCODERS, Experiment
from cxrclip.experiments.schedule import missing_runs, run_all
from cxrclip.experiments.sharper import sharper
from cxrclip.experiments.train import first_process, pretrain
from cxrclip.experiments.workbench import Run, Workbench
from cxrclip.official.effects import protocol_effects
from cxrclip.official.published import published_fetched
from cxrclip.results import tables
from cxrclip.results.rows import merge_results, read_results, together, write_results
from cxrclip.results.statistics import CAUSES, doubtful, rsum_rows, size_rows
from cxrclip.studies import summary
from cxrclip.training import start_accelerator

# The tables that end on the terminal; the others (differences, comparisons) are in the folder.
SHOWN = ("table1", "table2", "other_sets", "table3", "table4")
ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
NO_NOTEBOOKS = ("they come with the repository, not with the package: `make reproduce` in a clone of it executes them; "
                "here the tables are written without them")
CONTENTS = {"notebooks": "executed copies", "results.csv": "every number, tidy", "tables": "text, Markdown, LaTeX",
            "figures": "PNG, SVG and the data behind each"}


def reproduce(profile: str, mix: str, seed: int, bench: Workbench, folder: Path = NOTEBOOKS, *,
              redraw: bool = False) -> Path:
    """Prepare data, make every missing run, execute the notebooks and print the tables; returns the output folder.

    Args:
        folder: of the notebooks. Where there is none (an installed wheel), the library writes the main tables.
        redraw: execute all notebooks again, as after a change of the code that draws.

    Raises:
        InputError: a parameter, the mix or its data cannot be used; said before any work begins.
        WorkFailed: a run or a cell failed; what is finished stays.
    """
    started = time.monotonic()
    check(profile, mix, seed, bench)
    available = mixes.with_downloads(mixes.load_mix(mix), bench.data)
    if all(role.filling == "missing" for role in available.tests.values()):
        raise InputError(f"mix {mix}: no test role has data, so there is nothing to measure: fill one, or take "
                         "`make pretrain`, which only trains")
    out = bench.outputs(mix, profile)
    out.mkdir(parents=True, exist_ok=True)
    print("[1/3] data", flush=True)
    data = bench.prepared(mix, profile)
    rows, experiments = planned(profile, mix, seed, data)
    missing = missing_runs(experiments, bench)
    print(f"[2/3] runs: {len(experiments)}, of which {len(experiments) - len(missing)} were found", flush=True)
    runs = run_all(experiments, bench)
    if pages := pages_of(folder):
        print(f"[3/3] notebooks: {len(pages)}", flush=True)
        parameters = {"profile": profile, "seed": seed, **_places(mix, bench, folder)}
        executed = notebooks.execute_all(notebook_keys(pages, parameters, runs), out, parameters, redraw)
        print(f"{executed} executed, {len(pages) - executed} found", flush=True)
        if parts := [read_results(path) for path in sorted((out / "results").glob("*.csv"))]:
            write_results(reduce(merge_results, parts), out / "results.csv")
    else:
        print(f"[3/3] notebooks: {NO_NOTEBOOKS}", flush=True)
        write_tables(rows, runs, data, out)
    for name in SHOWN:
        if (table := out / "tables" / f"{name}.txt").is_file():
            print(f"\n{table.read_text(encoding='utf-8').rstrip()}")
    if (out / "results.csv").is_file() and (lines := doubtful(read_results(out / "results.csv"))):
        print(f"\nnumbers that no trained model should have; the usual causes: {CAUSES}")
        print("\n".join(f"  {line}" for line in lines))
    print(f"\ndone in {(time.monotonic() - started) / 60:.1f} min. Everything is in {out}:")
    for name, content in CONTENTS.items():
        if (out / name).exists():
            print(f"  {name:12} {content}")
    return out


def pages_of(folder: Path) -> list[Path]:
    """The notebooks of a folder by number, without the copies that a failed execution leaves beside them."""
    return sorted(path for path in folder.glob("[0-9]*.ipynb") if not path.stem.endswith(".failed"))


def check(profile: str, mix: str, seed: int, bench: Workbench) -> None:
    """Fail before any work: parameters, data and device. At the paper's size also fetch the published weights, and say
    what is missing and what it will cost."""
    experiment = Experiment.at(profile, mix=mix, seed=seed)
    content = mixes.load_mix(mix)
    mixes.check_mix(content, profile, bench.data)
    start_accelerator(bench.device)
    if profile != "paper":
        return
    available = mixes.with_downloads(content, bench.data)
    for family in IMAGE_ENCODERS.values():
        published_fetched(family[profile], experiment.text_encoder)
    if first_process():
        for role in available.roles.values():
            if role.filling == "missing":
                print(f"role {role.name} has no data: {role.value}")
        print(costs.announced(experiment, available), flush=True)


def planned(profile: str, mix: str, seed: int,
            data: mixes.Prepared) -> tuple[list[comparisons.Row], list[Experiment]]:
    """The rows of every comparison that this mix can train, and their experiments, each once."""
    rows, _ = comparisons.planned(profile, mix, seed, data)
    return rows, comparisons.distinct_experiments(rows)


def pretrain_all(profile: str, mix: str, seed: int, bench: Workbench) -> None:
    """The first two parts of `reproduce`: data and runs, and no notebooks; `reproduce` then finds them.

    The way to several GPUs: under `accelerate launch` all processes train one run together, one run after the other.
    `batch_size` is that of all processes together, so their number changes no run's meaning (nor its key).
    """
    check(profile, mix, seed, bench)
    _, experiments = planned(profile, mix, seed, bench.prepared(mix, profile))
    if start_accelerator(bench.device).num_processes == 1:
        run_all(experiments, bench)
        return
    for number, experiment in enumerate(experiments, 1):
        if first_process():
            print(f"[{number}/{len(experiments)}] {experiment.run_name}, seed {experiment.seed}", flush=True)
        pretrain(experiment, bench)


def in_place(bench: Workbench) -> None:
    """Execute the committed notebooks where they stand, with the parameters they show, after the runs they ask for."""
    pretrain_all("quick", "phantom", 0, bench)
    notebooks.execute_in_place(pages_of(NOTEBOOKS))


def notebook_keys(pages: Sequence[Path], parameters: dict[str, object], runs: Sequence[Run]) -> dict[Path, str]:
    """Each notebook with a key of all that its outputs follow from; the runs' own keys tell data and settings."""
    committed = sorted((ROOT / "results").rglob("*.csv"))
    common = [parameters, mixes.mix_path(str(parameters["mix"])).read_text(encoding="utf-8"), dict(VERSIONS),
              [run.evaluation_folder.relative_to(run.folder.parent) for run in runs],
              [(path.name, sha256(path.read_bytes()).hexdigest()) for path in committed]]
    return {page: mixes.digest([page.read_text(encoding="utf-8"), *common]) for page in pages}


def _places(mix: str, bench: Workbench, folder: Path) -> dict[str, str]:
    """Where a notebook finds things, seen from its folder: it prints no path of this machine."""
    return {"build": os.path.relpath(bench.build, folder), "device": bench.device,
            "mix": mix if mix == mixes.mix_path(mix).stem else str(mixes.mix_path(mix).resolve()),
            "data": os.path.relpath(bench.data, folder) if bench.data else ""}


def finished_results(profile: str, mix: str, seed: int, bench: Workbench, n_bootstrap: int = 2000) -> pd.DataFrame:
    """Every number that the notebooks write, tidy, of the runs that are finished: a plan of days in the making.

    A row of which no seed is finished is left out; a difference is taken over the seeds that both its rows have.
    """
    data = bench.prepared(mix, profile)
    rows, experiments = planned(profile, mix, seed, data)
    missing = set(missing_runs(experiments, bench))
    runs = comparisons.finished([row for row in rows if row.experiment not in missing], bench)
    parts = [size_rows(summary(data.folders), {"mix": mix, "profile": profile}), comparisons.collisions(data, profile),
             comparisons.ceilings(data, profile)]
    for name in comparisons.COMPARISONS:
        those = {row: run for row, run in runs.items() if row.comparison == name}
        measured = main_rows(list(those.values())) if name == comparisons.MAIN else comparisons.measured(those)
        parts += [measured, comparisons.differences(those, n_bootstrap), comparisons.losses(those)]
        parts += [sharper(list(those.values()))] if name == comparisons.MAIN else []
    growth = {row: run for row, run in runs.items() if row.comparison == "label growth" and row.budget == "epochs"}
    largest = [run for row, run in runs.items() if row.comparison == comparisons.MAIN
               and (run.experiment.image_encoder, run.experiment.pretraining)
               == (IMAGE_ENCODERS["resnet"][profile], comparisons.MIXTURES[-1])]
    remedies = {row: run for row, run in runs.items() if row.comparison == "remedies"}
    return together([*parts, comparisons.coarse_text(growth), comparisons.text_kinds(remedies),
                     protocol_effects(largest, n_bootstrap)])


def main_rows(runs: Sequence[Run]) -> pd.DataFrame:
    """Every number of the main rows, single findings and RSUM included."""
    rows = together([evaluate(run) for run in runs])
    return merge_results(rows, rsum_rows(rows)) if runs else rows


def write_tables(rows: Sequence[comparisons.Row], runs: Sequence[Run], data: mixes.Prepared, out: Path) -> None:
    """results.csv and the main tables from the runs alone, as the notebooks write them."""
    by_experiment = {run.experiment: run for run in runs}
    main = [evaluate(by_experiment[row.experiment]) for row in rows if row.comparison == comparisons.MAIN]
    others = {row: by_experiment[row.experiment] for row in rows if row.comparison != comparisons.MAIN}
    tidy = pd.concat([*main, comparisons.measured(others)], ignore_index=True)
    write_results(tidy, out / "results.csv")
    for make in (tables.table2, tables.table3, tables.table3_text_to_image, tables.table4):
        tables.write_table(make(tidy, data.missing), out / "tables" / make.__name__)
