"""Execute notebooks, several side by side, and leave those alone that are up to date.

This module is read by every process that drives a kernel: it imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

from cxrclip.data.files import write_text
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
    wanted = [path for path, key in notebooks.items() if again or not _up_to_date(path, key, out)]

    def finished(task: Task, made: list[str]) -> None:
        notebook = task.arguments[0]
        write_text(_record(notebook, out), json.dumps({"key": notebooks[notebook], "made": made}))

    _run(wanted, out / "notebooks", (dict(parameters), out), finished)
    return len(wanted)


def execute_in_place(notebooks: list[Path]) -> None:
    """Execute the committed notebooks as they stand, so that their outputs are those of a clean run."""
    _run(notebooks, None, ({}, None), lambda task, made: None)


def _run(notebooks: list[Path], folder: Path | None, more: tuple, finished: Callable[[Task, list[str]], None]) -> None:
    """Execute notebooks into `folder` (None: each in its place), as many side by side as there are cores."""
    targets = [path if folder is None else folder / path.name for path in notebooks]
    tasks = [Task(f"notebook {path.stem}", (path, target, *more), failed_copy(target))
             for path, target in zip(notebooks, targets, strict=True)]
    if tasks:
        if find_spec("papermill") is None:
            raise InputError("notebooks are executed by papermill, which is not installed: pip install 'cxrclip[book]'")
        with progress_bar(total=len(tasks), unit="notebook", desc="notebooks") as bar:
            side_by_side(execute, tasks, os.cpu_count() or 1, bar, KERNEL, finished=finished)


def failed_copy(target: Path) -> Path:
    """Where a notebook with a failed cell is kept, with its outputs up to there."""
    return target.with_name(f"{target.stem}.failed.ipynb")


def execute(notebook: Path, target: Path, parameters: Mapping[str, object], out: Path | None) -> list[str]:
    """Execute one notebook in its folder; `target` appears only when every cell has run. Names what it made in `out`.

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
                                   cwd=str(notebook.parent.absolute()), progress_bar=False,
                                   extra_arguments=["--IPKernelApp.log_level=ERROR"])
    except PapermillExecutionError as error:
        message = " ".join(str(error.evalue).split())
        raise WorkFailed(f"cell [{error.exec_count}]: {error.ename}: {message}") from error
    except DeadKernelError as error:
        raise WorkFailed("its kernel died, perhaps for want of memory") from error
    tidy_notebook(failed)
    failed.replace(target)
    made = [path for path in out.rglob("*") if not path.name.startswith(".") and path.is_file()] if out else []
    return sorted(str(path.relative_to(out)) for path in made if path.stat().st_mtime >= started
                  and path.parent != target.parent)


def tidy_notebook(path: Path) -> None:
    """Drop what changes from run to run: timings, progress bars on stderr, papermill's own metadata."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for name in ("papermill", "widgets"):
        notebook.metadata.pop(name, None)
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if cell.metadata.get("tags") == []:
            del cell.metadata["tags"]
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    nbformat.write(notebook, path)


def _record(notebook: Path, out: Path) -> Path:
    return out / "notebooks" / f".{notebook.stem}.json"


def _up_to_date(notebook: Path, key: str, out: Path) -> bool:
    """Does the executed copy follow from `key`, and is all there that was made with it?"""
    record = _record(notebook, out)
    if not record.is_file() or not (out / "notebooks" / notebook.name).is_file():
        return False
    known = json.loads(record.read_text(encoding="utf-8"))
    return known["key"] == key and all((out / name).is_file() for name in known["made"])
