"""`make reproduce`: run the notebooks in order with papermill and end with the tables.

    python -m cxrclip.book.reproduce --profile quick --mix phantom
    accelerate launch --num_processes 8 -m cxrclip.book.reproduce --profile paper --mix paper --pretrain    (GPUs, first)

An executed notebook is kept with a fingerprint of its text, its parameters, the mix and the library; it is run
again only when one of them changed or a file it made is gone. So a second start takes seconds, and a killed one
goes on where it stopped (finished training runs are found as well). The runs that the notebooks will ask for are
trained ahead of them in a process of its own, for a notebook leaves most of a machine idle.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import reduce
from multiprocessing import get_context
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError

from cxrclip import results, training
from cxrclip.book import costs, dry_run
from cxrclip.data import mixes
from cxrclip.data.files import write_text
from cxrclip.encoders import published_fetched
from cxrclip.errors import InputError
from cxrclip.experiments import IMAGE_ENCODERS, Experiment, Workbench, comparisons, first_process, pretrain, run_all

# The tables that end on the terminal; the others (differences, comparisons) are in the folder.
SHOWN = ("table1", "table2", "other_sets", "table3", "table4")
NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line. Returns 0, or 2 after one line that says what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m cxrclip.book.reproduce", description="run the book")
    for name, default in {"profile": "quick", "mix": "phantom", "build": "build", "data": "", "device": "auto"}.items():
        parser.add_argument(f"--{name}", default=default)
    parser.add_argument("--seed", type=int, default=0)
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--in-place", action="store_true", help="execute the committed notebooks as they stand")
    only.add_argument("--dry-run", action="store_true", help="try the networks with random weights")
    only.add_argument("--pretrain", action="store_true", help="train the book's runs and stop; for accelerate launch")
    options = parser.parse_args(arguments)
    os.environ |= {"PYDEVD_DISABLE_FILE_VALIDATION": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # notebooks share the cores with the runs trained ahead of them
    try:
        if options.in_place:
            return execute_in_place()
        bench = Workbench(Path(options.build), options.data, options.device)
        if options.dry_run:
            dry_run.dry_run(options.profile, options.mix, options.seed, bench)
            return 0
        return (pretrain_all if options.pretrain else reproduce)(options.profile, options.mix, options.seed, bench)
    except (InputError, PapermillExecutionError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error.filename or options.build}: {error.strerror}: free some space or set BUILD to a "
              "folder that can be written", file=sys.stderr)
        return 2


def one_line(error: Exception) -> str:
    """An error as one line; of a failed notebook cell, the cell's own error."""
    if isinstance(error, PapermillExecutionError):
        return f"{error.ename}: {error.evalue}"
    return str(error)


def reproduce(profile: str, mix: str, seed: int, bench: Workbench) -> int:
    """Execute every notebook into build/<mix>-<profile>/ and print the tables."""
    check(profile, mix, seed, bench)
    out = bench.outputs(mix, profile)
    out.mkdir(parents=True, exist_ok=True)
    where = {"build": os.path.relpath(bench.build, NOTEBOOKS), "device": bench.device,
             "mix": mix if mix == mixes.mix_path(mix).stem else str(mixes.mix_path(mix).resolve()),
             "data": os.path.relpath(bench.data, NOTEBOOKS) if bench.data else ""}
    parameters = {"profile": profile, "seed": seed, **where}
    notebooks = in_order(NOTEBOOKS.glob("[0-9]*.ipynb"))
    started = time.monotonic()
    with trained_ahead(profile, mix, seed, replace(bench, progress=False)):
        for number, notebook in enumerate(notebooks, 1):
            print(f"[{number}/{len(notebooks)}] {notebook.stem} ", end="", flush=True)
            seconds = execute(notebook, out, parameters)
            print("found" if seconds is None else f"{seconds:.0f} s", flush=True)
    finish(out, time.monotonic() - started)
    return 0


def check(profile: str, mix: str, seed: int, bench: Workbench) -> None:
    """Fail before any work: parameters, data and device. At the paper's size also fetch the published weights, and say
    what is missing and what it will cost."""
    experiment = Experiment.at(profile, mix=mix, seed=seed)
    content = mixes.load_mix(mix)
    mixes.check_mix(content, profile, bench.data)
    training.start_accelerator(bench.device)
    if profile != "paper":
        return
    here = mixes.with_downloads(content, bench.data)
    for family in IMAGE_ENCODERS.values():
        published_fetched(family[profile], experiment.text_encoder)
    if first_process():
        for role in here.roles.values():
            if role.filling == "missing":
                print(f"role {role.name} has no data: {role.value}")
        print(costs.announced(experiment, here), flush=True)


def pretrain_all(profile: str, mix: str, seed: int, bench: Workbench) -> int:
    """Train every run that the notebooks will ask for, one after the other, and stop: `reproduce` then finds them.

    The way to several GPUs: under `accelerate launch` all processes train one run together. `batch_size` is that of
    all processes together, so their number changes no run's meaning (nor its fingerprint).
    """
    check(profile, mix, seed, bench)
    data = bench.prepared(mix, profile)
    rows = [row for part in comparisons.plan(profile, mix, seed, data).values() for row in part]
    wanted = comparisons.distinct_experiments(comparisons.trainable(rows, data)[0])
    for number, experiment in enumerate(wanted, 1):
        if first_process():
            print(f"[{number}/{len(wanted)}] {experiment.run_name}, seed {experiment.seed}", flush=True)
        pretrain(experiment, bench)
    return 0


def in_order(notebooks: Iterable[Path]) -> list[Path]:
    """By number; but those that ask for no trained run go first, for runs are being trained meanwhile."""
    asks = ("run_all(", "pretrain(", "comparisons.finished(")
    return sorted(notebooks, key=lambda path: (any(word in path.read_text(encoding="utf-8") for word in asks), path))


@contextmanager
def trained_ahead(profile: str, mix: str, seed: int, bench: Workbench) -> Iterator[None]:
    """Train in the background what the notebooks will ask for; they find a finished run, or wait for one under way."""
    process = get_context("spawn").Process(target=train_ahead, args=(profile, mix, seed, bench, os.getpid()))
    process.start()
    try:
        yield
    finally:
        # Nothing is lost: a run resumes, and half-written is never finished. The group holds the process's workers; a
        # process that has just been started has none yet, nor a group.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.kill()
        process.join()


def train_ahead(profile: str, mix: str, seed: int, bench: Workbench, parent: int) -> None:
    """Train and evaluate the runs of every comparison, in the notebooks' order; end when `parent` is gone.

    A fault ends it silently: the notebook that asks for the run meets the same fault and tells of it.
    """
    os.setsid()  # a process group of its own, so that its workers end with it
    os.nice(5)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  (open to the end of the process)
    data = bench.prepared(mix, profile)
    rows = [row for part in comparisons.plan(profile, mix, seed, data).values() for row in part]
    run_all(comparisons.distinct_experiments(comparisons.trainable(rows, data)[0]), bench)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)


def execute(notebook: Path, out: Path, parameters: Mapping[str, object]) -> float | None:
    """Run one notebook into `out`/notebooks; None when an up-to-date copy and all it made are there already."""
    target, record = out / "notebooks" / notebook.name, out / "notebooks" / f".{notebook.stem}.json"
    key = mixes.digest([notebook.read_text(encoding="utf-8"), parameters, mixes.code_digest("."),
                        mixes.mix_path(str(parameters["mix"])).read_text(encoding="utf-8")])
    if record.is_file():
        known = json.loads(record.read_text())
        if known["key"] == key and target.is_file() and all((out / name).is_file() for name in known["made"]):
            return None
    target.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    run_notebook(notebook, target, parameters=dict(parameters), stderr_file=sys.stderr)
    made = [str(path.relative_to(out)) for path in out.rglob("*")
            if path.is_file() and path.stat().st_mtime >= started and path != record]
    write_text(record, json.dumps({"key": key, "made": sorted(made)}))
    return time.time() - started


def run_notebook(notebook: Path, target: Path, **options: object) -> None:
    """Execute `notebook` in its folder; `target` appears only when every cell has run."""
    partial = target.with_name(f".{target.stem}.partial.ipynb")
    papermill.execute_notebook(str(notebook), str(partial), cwd=str(NOTEBOOKS), progress_bar=False,
                               extra_arguments=["--IPKernelApp.log_level=ERROR"], **options)
    tidy_notebook(partial)
    partial.replace(target)


def tidy_notebook(path: Path) -> None:
    """Drop what changes from run to run: timings, progress bars on stderr, papermill's own metadata."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("papermill", None)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def finish(out: Path, seconds: float) -> None:
    """Join the notebooks' rows into results.csv, print the main tables and say where everything is."""
    parts = [results.read_results(path) for path in sorted((out / "results").glob("*.csv"))]
    if parts:
        results.write_results(reduce(results.merge_results, parts), out / "results.csv")
    for table in sorted((out / "tables").glob("*.txt")):
        if table.stem in SHOWN:
            print(f"\n{table.read_text(encoding='utf-8').rstrip()}")
    print(f"\ndone in {seconds / 60:.1f} min. Everything is in {out}:")
    for name, what in {"notebooks": "executed copies", "results.csv": "every number, tidy", "tables": "text, Markdown, "
                       "LaTeX", "figures": "PNG, SVG and the data behind each"}.items():
        print(f"  {name:12} {what}")


def execute_in_place() -> int:
    """Execute the committed notebooks as they stand, so that their outputs are those of a clean run."""
    os.environ["TQDM_DISABLE"] = "1"
    for notebook in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        started = time.monotonic()
        run_notebook(notebook, notebook)
        print(f"{notebook.stem} {time.monotonic() - started:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
