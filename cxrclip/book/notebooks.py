"""Execute notebooks, several side by side, and leave those alone that are up to date.

This module is read by every process that drives a kernel: it imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

from cxrclip.data.progress import progress_bar
from cxrclip.data.workers import Task, WorkFailed, side_by_side
from cxrclip.errors import InputError

# Kernels share the cores, and nothing that changes from run to run may get into the outputs.
KERNEL = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1",
          "PYDEVD_DISABLE_FILE_VALIDATION": "1", "PYTHONWARNINGS": "ignore::DeprecationWarning"}


def execute_all(notebooks: Mapping[Path, str], out: Path, parameters: Mapping[str, object],
                again: bool = False) -> int:
    """Execute notebooks into `out`/notebooks; those that are up to date are left. Returns how many were executed.

    Args:
        notebooks: each with the key of all that its outputs follow from.
        out: the folder in which they make their tables and figures. What is made there while a notebook runs is
            noted as its own: if one of these files is gone, the notebook is executed again.
        parameters: of every notebook's cell of parameters.
        again: execute also those that are up to date.

    Raises:
        WorkFailed: a cell failed; names notebook and cell, and the copy that was executed so far.
    """
    tasks = [_task(path, out / "notebooks" / path.name, dict(parameters), out, key) for path, key in notebooks.items()
             if again or not _up_to_date(out / "notebooks" / path.name, key, out)]
    _run(tasks)
    return len(tasks)


def execute_in_place(notebooks: Iterable[Path]) -> None:
    """Execute the committed notebooks as they stand, so that their outputs are those of a clean run."""
    _run([_task(path, path, {}, None, "") for path in notebooks])


def _task(notebook: Path, target: Path, *more: object) -> Task:
    return Task(f"notebook {notebook.stem}", (notebook, target, *more), failed_copy(target))


def _run(tasks: list[Task]) -> None:
    """Execute notebooks, as many side by side as there are cores."""
    if tasks and find_spec("papermill") is None:
        raise InputError("notebooks are executed by papermill, which is not installed: pip install 'cxrclip[book]'")
    if tasks:
        with progress_bar(total=len(tasks), unit="notebook", desc="notebooks") as bar:
            side_by_side(execute, tasks, os.cpu_count() or 1, bar, KERNEL)


def failed_copy(target: Path) -> Path:
    """Where a notebook with a failed cell is kept, with its outputs up to there."""
    return target.with_name(f"{target.stem}.failed.ipynb")


def execute(notebook: Path, target: Path, parameters: Mapping[str, object], out: Path | None, key: str) -> None:
    """Execute one notebook in its folder; `target` appears only when every cell has run.

    With a folder `out` it holds, in its metadata, `key` and what the notebook made in that folder.

    Raises:
        WorkFailed: a cell failed, or the kernel died.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    failed = failed_copy(target).absolute()
    failed.parent.mkdir(parents=True, exist_ok=True)
    started = time.time()
    try:
        papermill.execute_notebook(str(notebook.absolute()), str(failed), parameters=dict(parameters),
                                   cwd=str(notebook.parent.absolute()), progress_bar=False, coalesce_streams=True,
                                   extra_arguments=["--IPKernelApp.log_level=ERROR"])
    except PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split())
        raise WorkFailed(f"cell [{error.exec_count}]: {error.ename}: {message}") from error
    except DeadKernelError as error:
        raise WorkFailed("its kernel died, perhaps for want of memory") from error
    made = [path for path in out.rglob("*") if not path.name.startswith(".") and path.is_file()] if out else []
    made = sorted(str(path.relative_to(out)) for path in made if path.stat().st_mtime >= started
                  and path.parent != target.parent)
    tidy_notebook(failed, {"cxrclip": {"key": key, "made": made}} if out else {})
    failed.replace(target)


def tidy_notebook(path: Path, metadata: Mapping[str, object]) -> None:
    """Drop what changes from run to run (timings, bars on stderr, papermill's own metadata) and add `metadata`."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    notebook.metadata.update(metadata)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def _up_to_date(copy: Path, key: str, out: Path) -> bool:
    """Does the executed copy follow from `key`, and is all there that was made with it?"""
    if not copy.is_file():
        return False
    record = json.loads(copy.read_text(encoding="utf-8"))["metadata"].get("cxrclip", {"key": None})
    return record["key"] == key and all((out / name).is_file() for name in record["made"])
