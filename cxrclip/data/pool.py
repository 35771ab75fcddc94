"""Calls that may crash, in worker processes, with their results in order: a call that fails costs no other call.

A decoder written in C can abort or hang on a damaged file, and one written in Rust can panic. pebble's pool starts a
new process in the place of one that died or took too long, and says which call it was. joblib's process context lets
a script without `if __name__ == "__main__"`, a notebook or standard input start these processes.

Workers import this module: it stays free of slow imports.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import cv2
from joblib.externals.loky.backend.context import LokyContext
from joblib.externals.loky.backend.process import LokyProcess
from pebble import ProcessExpired, ProcessFuture, ProcessPool

from cxrclip.errors import InputError

AHEAD = 16  # calls a worker is given before their results are read, so that it need not wait for the reader


class Failure(NamedTuple):
    """A call without a result; `reason` says why in a few words."""

    reason: str


class _SingleThreaded(LokyContext):
    Process = staticmethod(partial(LokyProcess, env={"OMP_NUM_THREADS": "1"}))


@contextmanager
def in_order(
    function: Callable[..., Any], calls: Iterable[tuple], workers: int, seconds: float
) -> Iterator[Iterator[Any]]:
    """Yield an iterator over `function(*arguments)` for each of the calls, in their order.

    Args:
        function: importable by name (it is pickled), and best from a module that is quick to import.
        calls: arguments of each call; at most `AHEAD` a worker are taken before their results are read.
        workers: processes; also with one, no call is made in this process.
        seconds: a call that takes longer is ended.

    Returns:
        A context manager; its iterator gives a `Failure` for a call that aborted its process, raised anything, or
        took too long. When the context is left, all processes end.

    Raises:
        InputError: the processes cannot be started.
    """
    pool = ProcessPool(workers, initializer=cv2.setNumThreads, initargs=(1,), context=_SingleThreaded())
    try:
        yield _results(pool, partial(_guarded, function), calls, AHEAD * workers, seconds)
    finally:
        pool.stop()
        pool.join()


def _results(
    pool: ProcessPool, function: Callable[..., Any], calls: Iterable[tuple], ahead: int, seconds: float
) -> Iterator[Any]:
    waiting: deque[ProcessFuture] = deque()
    try:
        for arguments in calls:
            waiting.append(pool.schedule(function, arguments, timeout=seconds))
            if len(waiting) >= ahead:
                yield _result(waiting.popleft(), seconds)
        while waiting:
            yield _result(waiting.popleft(), seconds)
    except BrokenProcessPool as error:
        raise InputError(f"worker processes cannot be started ({error}): free memory and run it again") from error


def _result(future: ProcessFuture, seconds: float) -> Any:
    try:
        return future.result()
    except TimeoutError:
        return Failure(f"took longer than {seconds:g} s")
    except ProcessExpired as death:
        return Failure(f"crashed (exit code {death.exitcode})")


def _guarded(function: Callable[..., Any], *arguments: Any) -> Any:
    """In a worker, which gets no KeyboardInterrupt: also what is no Exception, such as a panic in Rust, ends here."""
    try:
        return function(*arguments)
    except BaseException as error:
        return Failure(f"failed ({type(error).__name__})")
