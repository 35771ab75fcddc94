"""`cxrclip reproduce` on a tiny mix with two tiny notebooks: found, changed, killed, resumed, interrupted, failing."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from cxrclip.book import notebooks
from cxrclip.book import reproduce as book
from cxrclip.data.workers import WorkFailed
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, Workbench, comparisons, finished_run, run_all

PARAMETERS = 'profile, mix, seed, build, data, device = "quick", "phantom", 0, "build", "", "auto"'
DRAW = """
from pathlib import Path
out = Path(build) / "tiny-quick"
(out / "tables").mkdir(exist_ok=True)
_ = (out / "tables" / "table1.txt").write_text("TABLE OF " + mix.split("/")[-1])
"""
# `cxrclip reproduce` with a plan of two small runs and a notebook folder; arguments: mix, build, pages, steps.
COMMAND = """
    import sys
    from pathlib import Path
    from cxrclip import cli
    from cxrclip.book import reproduce as book
    from cxrclip.experiments import Experiment, Workbench, comparisons

    mix, build, pages, steps, rate = sys.argv[1:]
    small = {"batch_size": 8, "steps": int(steps), "projection_dim": 16, "learning_rate": float(rate)}
    rows = [comparisons.Row("one", str(seed), "steps", Experiment.at("quick", mix=mix, seed=seed, **small))
            for seed in (0, 1)]
    comparisons.plan = lambda *_: {"one": rows}

    @cli.command("tiny")
    def tiny():
        book.reproduce("quick", mix, 0, Workbench(Path(build), jobs=2), Path(pages))

    cli.app(["tiny"])
"""


def write_notebook(path: Path, code: str) -> None:
    cells = [nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}),
             *(nbformat.v4.new_code_cell(part) for part in code.split("# %%\n"))]
    for cell in cells:
        cell.pop("id")
    path.parent.mkdir(exist_ok=True)
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(json.dumps({"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}))


@pytest.fixture
def pages(tmp_path):
    write_notebook(tmp_path / "pages" / "00_draw.ipynb", DRAW)
    write_notebook(tmp_path / "pages" / "01_tell.ipynb", "print(seed)")
    return tmp_path / "pages"


@pytest.fixture
def plan(monkeypatch, tiny_experiment):
    """The book's plan: one small run, which other tests of the session make as well."""
    rows = [comparisons.Row("one", "a", "steps", tiny_experiment)]
    monkeypatch.setattr(comparisons, "plan", lambda *_: {"one": rows})
    return rows


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (out / "notebooks").glob("[0-9]*.ipynb")}


def test_a_second_start_finds_all_and_a_changed_notebook_is_executed_again(plan, pages, tiny_mix, tiny_bench, capfd):
    out = book.reproduce("quick", tiny_mix, 0, tiny_bench, pages)
    assert "[3/3] notebooks: 2\n2 executed, 0 found" in (printed := capfd.readouterr().out)
    assert "TABLE OF tiny.yaml" in printed
    assert finished_run(plan[0].experiment, tiny_bench) is not None
    first = stamps(out)
    assert set(first) == {"00_draw.ipynb", "01_tell.ipynb"}
    cells = nbformat.read(out / "notebooks" / "01_tell.ipynb", 4).cells
    (cell,) = [cell for cell in cells if cell.source == "print(seed)"]
    assert cell.outputs[0].text == "0\n"

    book.reproduce("quick", tiny_mix, 0, tiny_bench, pages)
    assert "runs: 1, of which 1 were found" in (printed := capfd.readouterr().out)
    assert "0 executed, 2 found" in printed
    assert stamps(out) == first

    write_notebook(pages / "01_tell.ipynb", "print(seed + 1)")
    book.reproduce("quick", tiny_mix, 0, tiny_bench, pages)
    assert stamps(out)["00_draw.ipynb"] == first["00_draw.ipynb"]
    assert stamps(out)["01_tell.ipynb"] != first["01_tell.ipynb"]


def test_results_of_a_plan_in_the_making_are_those_of_its_finished_runs(monkeypatch, tiny_experiment, tiny_bench):
    rows = [comparisons.Row("ablation", name, "steps", comparisons.ablation(tiny_experiment)[name])
            for name in ("mvs", "icl")]
    main = comparisons.Row(comparisons.MAIN, "m", "epochs", rows[0].experiment)
    done = [main, *comparisons.with_seeds(rows, (0, 1))]
    never = comparisons.with_seeds(rows, (77,))
    comparisons.finished(done, tiny_bench)
    monkeypatch.setattr(comparisons, "plan", lambda *_: {"one": [*done, *never]})
    monkeypatch.setattr(book, "run_all", None)
    tidy = book.finished_results("quick", tiny_experiment.mix, 0, tiny_bench, n_bootstrap=20)
    assert set(tidy["comparison"]) == {"", "ablation"}
    assert {seed for seeds in tidy["seeds"] for seed in seeds.split()} == {"0", "1"}
    assert not any(finished_run(row.experiment, tiny_bench) for row in never)
    own = comparisons.finished(done, tiny_bench)
    parts = {row: run for row, run in own.items() if row.comparison == "ablation"}
    got = tidy[tidy["comparison"] == "ablation"]
    want = pd.concat([comparisons.measured(parts), comparisons.differences(parts, 20), comparisons.losses(parts)])
    pd.testing.assert_frame_equal(got.reset_index(drop=True), want.reset_index(drop=True))
    assert {"size", "collision", "zero-shot", "image_to_text"} <= set(tidy.loc[tidy["comparison"] == "", "task"])
    assert (tidy["metric"] == "RSUM").any()


def test_the_key_of_a_notebook_follows_from_all_that_it_reads(plan, pages, tiny_mix, tiny_bench, monkeypatch, tmp_path):
    (run,) = [finished_run(row.experiment, tiny_bench) or book.run_all([row.experiment], tiny_bench)[0] for row in plan]
    page, parameters = pages / "00_draw.ipynb", {"mix": tiny_mix, "seed": 0}

    def key(**changes):
        return book.notebook_keys([page], parameters | changes, [run])[page]
    first = key()
    assert key() == first
    assert key(seed=1) != first
    assert book.notebook_keys([page], parameters, [])[page] != first, "other runs"
    monkeypatch.setattr(book, "VERSIONS", book.VERSIONS | {"training": 99})
    assert key() != first
    monkeypatch.undo()
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(book, "ROOT", tmp_path)
    without = key()
    (tmp_path / "results" / "standard.csv").write_text("run\n")
    assert key() != without, "committed results"
    other = tmp_path / "other.yaml"
    other.write_text(Path(tiny_mix).read_text() + "\n")
    assert key() != key(mix=str(other))


def test_a_notebook_is_executed_again_when_a_file_it_made_is_gone_or_when_told(pages, tmp_path, monkeypatch):
    out, keys = tmp_path / "tiny-quick", {pages / "00_draw.ipynb": "key"}
    parameters = {"build": str(tmp_path), "mix": "m"}
    assert notebooks.execute_all(keys, out, parameters) == 1
    assert nbformat.read(out / "notebooks" / "00_draw.ipynb", 4).metadata["cxrclip"] == {
        "key": "key", "made": ["tables/table1.txt"]}
    monkeypatch.setattr(notebooks, "_run", lambda *_: None)
    assert notebooks.execute_all(keys, out, parameters) == 0
    assert notebooks.execute_all(dict.fromkeys(keys, "another"), out, parameters) == 1
    assert notebooks.execute_all(keys, out, parameters, again=True) == 1
    (out / "tables" / "table1.txt").unlink()
    assert notebooks.execute_all(keys, out, parameters) == 1


def test_a_failing_cell_names_notebook_and_cell_and_keeps_the_copy(pages, tmp_path):
    write_notebook(pages / "00_draw.ipynb", 'print("so far")\n# %%\nraise ValueError("two\\nlines")')
    keys = dict.fromkeys(sorted(pages.glob("*.ipynb")), "key")
    with pytest.raises(WorkFailed) as failed:
        notebooks.execute_all(keys, tmp_path / "out", {"seed": 0})
    copy = tmp_path / "out" / "notebooks" / "00_draw.failed.ipynb"
    assert str(failed.value) == f"notebook 00_draw: cell [4]: ValueError: two lines (see {copy})"
    assert "so far" in copy.read_text()
    assert not (tmp_path / "out" / "notebooks" / "00_draw.ipynb").exists()


def test_notebooks_in_place_are_tidy(pages):
    halves = "print(seed, flush=True)\ntime.sleep(0.5)\nprint('more')"      # reach the notebook as two outputs
    write_notebook(pages / "01_tell.ipynb", f"import sys, time\n{halves}\nprint('noise', file=sys.stderr)")
    notebooks.execute_in_place([pages / "01_tell.ipynb"])
    notebook = nbformat.read(pages / "01_tell.ipynb", 4)
    assert [output["text"] for cell in notebook.cells for output in cell.outputs] == ["0\nmore\n"]
    assert "papermill" not in notebook.metadata
    assert sorted(path.name for path in pages.iterdir()) == ["00_draw.ipynb", "01_tell.ipynb"]


def test_without_notebooks_the_library_writes_results_and_tables(plan, tiny_mix, tiny_bench, tmp_path, capfd):
    bench = replace(tiny_bench)
    plan[0] = replace(plan[0], comparison=comparisons.MAIN)
    out = book.reproduce("quick", tiny_mix, 0, bench, tmp_path / "none")
    assert f"[3/3] notebooks: {book.NO_NOTEBOOKS}\n" in capfd.readouterr().out
    assert (out / "results.csv").is_file()
    assert {"table2.txt", "table3.txt", "table4.md"} <= {path.name for path in (out / "tables").iterdir()}


def test_a_mix_without_a_test_role_is_refused_before_any_training(tmp_path, tiny_bench):
    path = tmp_path / "own.yaml"
    path.write_text("pretraining: {M: {phantom: M, sizes: {quick: {train: 8, valid: 8}}}}\n")
    with pytest.raises(InputError, match="no test role has data, so there is nothing to measure"):
        book.reproduce("quick", str(path), 0, tiny_bench, tmp_path)


# ---- in a process of its own ----------------------------------------------------------------------------------------


def start(mix, build, pages, steps=40, rate=3e-3):
    """Start the command, as a terminal would; returns it."""
    arguments = [str(part) for part in (mix, build, pages, steps, rate)]
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(COMMAND), *arguments], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, start_new_session=True)


def children_once(call, ready):
    """Wait until the command is so far; returns all processes below it."""
    deadline = time.monotonic() + 300
    while call.poll() is None and time.monotonic() < deadline:
        if ready():
            return psutil.Process(call.pid).children(recursive=True)
        time.sleep(0.05)
    call.kill()
    raise AssertionError(call.communicate())


def interrupted(call, children):
    """Press Ctrl-C; it ends at once, with one line and nothing left behind. Returns what it printed."""
    begun = time.monotonic()
    os.killpg(call.pid, signal.SIGINT)
    assert call.wait(timeout=60) == 130
    assert time.monotonic() - begun < 30, "it waits for nothing: cells sleep 300 s here"
    printed, complaint = call.communicate(timeout=60)  # it ends when no process is left that could write
    assert complaint.endswith("\ninterrupted: the same command goes on where it stopped\n")
    assert "Traceback" not in complaint
    assert psutil.wait_procs(children, timeout=5)[1] == []
    return printed


@pytest.mark.skipif(os.name == "nt", reason="sends signals as a POSIX terminal does")
def test_killed_then_interrupted_in_training_it_goes_on_where_it_stopped(tiny_mix, tmp_path, pages):
    steps, logs = 120, lambda: sorted(tmp_path.glob("build/runs/*/log.jsonl"))  # a run is kept every 100 steps
    call = start(tiny_mix, tmp_path / "build", pages, steps)
    children = children_once(call, lambda: any(tmp_path.glob("build/runs/*/state.safetensors")))
    call.kill()
    call.communicate()
    assert psutil.wait_procs(children, timeout=10)[1] == [], "the workers end with their parent"
    first = {log.parent.name: log.read_text().splitlines()[:100] for log in logs()
             if (log.parent / "state.safetensors").exists()}
    assert first
    assert len(list(tmp_path.glob("build/runs/*/run.json"))) < 2

    call = start(tiny_mix, tmp_path / "build", pages, steps)
    ended = {log: log.stat().st_mtime_ns for log in logs()}
    children = children_once(call, lambda: any(log.stat().st_mtime_ns != ended.get(log) for log in logs()))
    assert "[2/3] runs: 2, of which" in interrupted(call, children)

    settings = {"batch_size": 8, "steps": steps, "projection_dim": 16}
    runs = run_all([Experiment.at("quick", mix=tiny_mix, seed=seed, **settings) for seed in (0, 1)],
                   Workbench(tmp_path / "build", jobs=2, progress=False))
    assert {run.folder for run in runs} == {log.parent for log in logs()}
    assert [len(run.log()) for run in runs] == [steps, steps]
    for name, lines in first.items():
        again = (tmp_path / "build" / "runs" / name / "log.jsonl").read_text().splitlines()
        assert again[:100] == lines, "the seconds of these steps too: they were made once"


@pytest.mark.skipif(os.name == "nt", reason="sends signals as a POSIX terminal does")
def test_ctrl_c_among_the_notebooks_ends_their_kernels(tiny_mix, tmp_path, pages):
    write_notebook(pages / "01_tell.ipynb", "from pathlib import Path\nimport time\n"
                   "(Path(build) / 'here').touch()\ntime.sleep(300)")
    call = start(tiny_mix, tmp_path / "build", pages, steps=2)
    children = children_once(call, (tmp_path / "build" / "here").exists)
    assert len(children) >= 3, "a worker and its kernel among them"
    assert "[3/3] notebooks: 2" in interrupted(call, children)
    assert not (tmp_path / "build" / "tiny-quick" / "notebooks" / "01_tell.ipynb").exists()


def test_a_failing_run_is_one_line_and_exit_code_two(tiny_mix, tmp_path, pages):
    call = start(tiny_mix, tmp_path / "build", pages, steps=30, rate=1e30)
    _, complaint = call.communicate(timeout=120)
    assert call.returncode == 2
    line = complaint.rstrip().splitlines()[-1]
    assert line.startswith("error: run CXR-CLIP resnet-small M")
    assert "FloatingPointError: the loss is" in line
    (look,) = re.findall(r"\(see (\S+)\)", line)
    assert "FloatingPointError" in Path(look).read_text()
    assert "Traceback" not in complaint
    assert not (tmp_path / "build" / "tiny-quick" / "notebooks").exists()
