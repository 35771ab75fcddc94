"""Tasks in several processes under one bar: Ctrl-C ends them all, and a fault or a dead process is one clear line."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from pebble import ProcessExpired, ProcessPool
from tqdm import tqdm

from cxrclip.errors import InputError

POLL = 0.5  # seconds between two looks at how far the tasks are


class WorkFailed(RuntimeError):
    """A task did not end well. The message is one line: which task, what happened and where to look."""


@dataclass(frozen=True)
class Task:
    """One call of the function: its name for messages, its arguments, and the file that tells how far it came."""

    name: str
    arguments: tuple
    log: Path


def side_by_side(function: Callable, tasks: Sequence[Task], workers: int, bar: tqdm, *,
                 progress: Callable[[], int] | None = None,
                 finished: Callable[[Task, Any], None] = lambda task, result: None) -> None:
    """Call `function` for every task in at most `workers` processes, each of which serves many tasks.

    After a failure no further task is started; those under way end first. However this function is left, by Ctrl-C
    too, no process of it is left behind; killed itself, its processes end as well.

    Args:
        function: found by its name in a module, as processes are spawned.
        bar: shows `progress()`, by default the number of finished tasks; the caller closes it.
        finished: called here with each task and its result.

    Raises:
        WorkFailed: a task raised an exception or its process died; names task and file, traceback beside the file.
    """
    waiting, running, failures, done = deque(tasks), {}, [], 0
    pool = ProcessPool(min(workers, len(tasks)) or 1, initializer=_end_at_once,
                       context=multiprocessing.get_context("spawn"))
    try:
        while running or (waiting and not failures):
            while waiting and not failures and len(running) < workers:
                task = waiting.popleft()
                with _interrupts_held():  # the first call starts the processes
                    running[pool.schedule(function, args=task.arguments)] = task
            for future in wait(running, timeout=POLL, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if error := future.exception():
                    failures.append(_line(task, error))
                    bar.set_postfix_str(f"failed: {task.name}; {len(running)} under way end first")
                else:
                    done += 1
                    finished(task, future.result())
            bar.update((progress() if progress else done) - bar.n)
    finally:
        pool.stop()
        pool.join()
    if failures:
        raise WorkFailed(failures[0] + (f" (and {len(failures) - 1} more failed)" if failures[1:] else ""))


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for child processes, then put the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Ctrl-C waits until processes have been started, or one would be left half begun.

    A terminal sends it to all of them. Processes that start here inherit that it is blocked: their parent alone answers
    it. (Windows knows no such mask: there they hear it until the pool has them ignore it.)
    """
    if threading.current_thread() is not threading.main_thread():  # where Python allows no handler
        yield
        return
    held: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: held.append(number))
    if hasattr(signal, "pthread_sigmask"):
        resource_tracker.ensure_running()  # or the first process starts it, and that lifts the mask
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if held:
        raise KeyboardInterrupt


def _end_at_once() -> None:
    """In each process: end when told to, without waiting for a long step, and when the parent was killed.

    Nothing is lost, for only what is whole counts as made.
    """
    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which such an end would leave behind
    threading.Thread(target=watch, daemon=True).start()


def _line(task: Task, error: BaseException) -> str:
    """What went wrong as one line. The traceback of a fault that is not the user's is kept in a file."""
    look = f" (see {task.log})" if task.log.is_file() else ""
    if isinstance(error, ProcessExpired):
        return (f"{task.name}: its process died with exit code {error.exitcode}, perhaps for want of memory: start "
                f"again to go on{look}")
    message = " ".join(str(error).split())
    if isinstance(error, InputError | WorkFailed):
        return f"{task.name}: {message}" + (look if str(task.log) not in message else "")
    path = task.log.with_suffix(".error.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{task.name}: {type(error).__name__}: {message} (see {path})"
