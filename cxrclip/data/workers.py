"""Calls in worker processes: one that crashes, hangs or fails is one clear line, and none outlives its parent.

`in_order` serves many short calls, any of which may fail: a decoder written in C aborts or hangs on a damaged file,
one written in Rust panics. `side_by_side` serves a few long ones, which all must end well. pebble's pool replaces a
process that died or took too long, and says which call it was. joblib's process context lets a script without
`if __name__ == "__main__"`, a notebook or standard input start the processes.

Workers import this module: it stays free of slow imports.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from joblib.externals.loky.backend import resource_tracker as loky_tracker
from joblib.externals.loky.backend.context import LokyContext
from joblib.externals.loky.backend.process import LokyProcess
from pebble import ProcessExpired, ProcessFuture, ProcessPool
from tqdm import tqdm

from cxrclip.errors import InputError

AHEAD = 16  # calls a worker is given before their results are read, so that it need not wait for the reader
POLL = 0.5  # seconds between two looks at how far the tasks are
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENCV_FOR_THREADS_NUM": "1"}


class Failure(NamedTuple):
    """A call without a result; `reason` says why in a few words."""

    reason: str


class WorkFailed(RuntimeError):
    """A task did not end well. The message is one line: which task, what happened and where to look."""


@dataclass(frozen=True)
class Task:
    """One call of the function: its name for messages, its arguments, and the file that tells how far it came."""

    name: str
    arguments: tuple
    log: Path


@contextmanager
def in_order(function: Callable[..., Any], calls: Iterable[tuple], workers: int,
             seconds: float) -> Iterator[Iterator[Any]]:
    """Yield an iterator over `function(*arguments)` for each of the calls, in their order.

    It gives a `Failure` for a call that aborted its process, raised anything, or took longer than `seconds`. When the
    context is left, all processes end.

    Args:
        function: importable by name (it is pickled), and best from a module that is quick to import.
        calls: arguments of each call; at most `AHEAD` a worker are taken before their results are read.
        workers: processes; also with one, no call is made in this process.

    Raises:
        InputError: the processes cannot be started.
    """
    with _started(workers, ONE_THREAD) as pool:
        yield _results(pool, partial(_guarded, function), iter(calls), AHEAD * workers, seconds)


def _results(pool: ProcessPool, function: Callable[..., Any], calls: Iterator[tuple], ahead: int,
             seconds: float) -> Iterator[Any]:
    waiting: deque[ProcessFuture] = deque()
    while True:
        for arguments in itertools.islice(calls, ahead - len(waiting)):
            waiting.append(pool.schedule(function, arguments, timeout=seconds))
        if not waiting:
            return
        try:
            yield waiting.popleft().result()
        except TimeoutError:
            yield Failure(f"took longer than {seconds:g} s")
        except ProcessExpired as death:
            yield Failure(f"crashed (exit code {death.exitcode})")


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a worker, which gets no KeyboardInterrupt: also what is no Exception, such as a panic in Rust, ends here."""
    try:
        return function(*arguments)
    except BaseException as error:
        return Failure(f"failed ({type(error).__name__})")


def side_by_side(function: Callable, tasks: Sequence[Task], workers: int, bar: tqdm, environment: Mapping[str, str],
                 progress: Callable[[], int] | None = None) -> list[Any]:
    """Call `function` for every task in at most `workers` processes, each of which serves many tasks; what it returned.

    After a failure no further task is started; those under way end first. However this function is left, by Ctrl-C
    too, no process of it is left behind; killed itself, its processes end as well.

    Args:
        function: found by its name in a module (it is pickled).
        bar: shows `progress()`, by default the number of finished tasks; the caller closes it.
        environment: variables that the processes start with, beside those of this one.

    Raises:
        WorkFailed: a task raised an exception or its process died; names task and file, traceback beside the file.
        InputError: the processes cannot be started.
    """
    waiting, running, failures, results = deque(tasks), {}, [], {}
    with _started(min(workers, len(tasks)) or 1, environment) as pool:
        while running or (waiting and not failures):
            while waiting and not failures and len(running) < workers:
                task = waiting.popleft()
                running[pool.schedule(function, task.arguments)] = task
            for future in wait(running, timeout=POLL, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                if error := future.exception():
                    failures.append(_line(task, error))
                    bar.set_postfix_str(f"failed: {task.name}; {len(running)} under way end first")
                else:
                    results[task.name] = future.result()
            bar.update((progress() if progress else len(results)) - bar.n)
    if failures:
        raise WorkFailed(failures[0] + (f" (and {len(failures) - 1} more failed)" if failures[1:] else ""))
    return [results[task.name] for task in tasks]


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


@contextmanager
def _started(workers: int, environment: Mapping[str, str]) -> Iterator[ProcessPool]:
    """A pool whose processes run; they end when the block is left, and when this process is killed."""
    context = LokyContext()
    context.Process = partial(LokyProcess, env=dict(environment))
    alive, held = context.Pipe(duplex=False)  # nothing is ever sent: `alive` ends when this process does
    pool = ProcessPool(workers, initializer=_begin, initargs=(alive,), context=context)
    try:
        with ThreadPoolExecutor(1) as thread:  # there, Ctrl-C cannot leave a process half begun
            thread.submit(_start, pool).result()
        yield pool
    except RuntimeError as error:
        if not isinstance(error, BrokenProcessPool) and pool.active:
            raise
        raise InputError(f"worker processes cannot be started ({error}): free memory and run it again") from error
    finally:
        pool.stop()
        pool.join()
        alive.close()
        held.close()


def _start(pool: ProcessPool) -> None:
    """A terminal sends Ctrl-C to all processes. Those that start here inherit that it is blocked: their parent answers.

    (Windows knows no such mask: there they hear it until the pool has them ignore it.)
    """
    if hasattr(signal, "pthread_sigmask"):
        for tracker in (resource_tracker, loky_tracker):  # or the first process starts it, and that lifts the mask
            tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    _ = pool.active  # starts them


def _begin(alive: Connection) -> None:
    """In each process: end when told to, without waiting for a long step, and when the parent was killed.

    Nothing is lost, for only what is whole counts as made.
    """
    def watch() -> None:
        with suppress(EOFError, OSError):
            alive.recv_bytes()
        os._exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    tqdm.set_lock(threading.RLock())  # its own lock is a semaphore of the system, which such an end would leave behind
    threading.Thread(target=watch, daemon=True).start()
