"""Work in several processes, in order, with little in memory, and with no trust in the code that is run."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from threading import Thread
from typing import Any

# joblib's pool needs no `if __name__ == "__main__"` in scripts, and starts from notebooks and from standard input.
from joblib.externals.loky.process_executor import ProcessPoolExecutor

_AHEAD = 3  # batches a process: one at work, and two so that it need not wait for the reader

Batch = Sequence[Any]
Function = Callable[[Batch], list]


@contextmanager
def in_order(
    function: Function, batches: Iterable[Batch], workers: int, crashed: Callable[[Batch], list]
) -> Iterator[Iterator[list]]:
    """Yield `function(batch)` of every batch, in order, from `workers` processes (1: from this one).

    At most three batches a process are taken ahead of the reader. Where a process dies (a decoder written in C can
    abort on a damaged file), its batch is tried again alone, one item at a time if need be, and an item that
    kills its process each time becomes `crashed([item])`.
    """
    if workers == 1:
        yield map(function, batches)
        return
    crew = _Crew(function, workers, crashed)
    try:
        yield crew.results(iter(batches))
    finally:
        crew.stop()


class _Crew:
    def __init__(self, function: Function, workers: int, crashed: Callable[[Batch], list]) -> None:
        self.function, self.workers, self.crashed = function, workers, crashed
        self.pool = _start(workers)
        self.ahead: deque[tuple[Batch, Future]] = deque()

    def results(self, batches: Iterator[Batch]) -> Iterator[list]:
        for batch in batches:
            self.ahead.append((batch, self._submit(batch)))
            if len(self.ahead) >= _AHEAD * self.workers:
                yield self._first()
        while self.ahead:
            yield self._first()

    def _first(self) -> list:
        batch, future = self.ahead.popleft()
        try:
            return future.result()
        except BrokenProcessPool:  # which of the batches at work did it is not said: all are done again
            result = self._alone(batch)
            self.pool = _start(self.workers)
            again = [(batch, future if _is_good(future) else self._submit(batch)) for batch, future in self.ahead]
            self.ahead = deque(again)
            return result

    def _submit(self, batch: Batch) -> Future:
        try:
            return self.pool.submit(self.function, batch)
        except BrokenProcessPool as error:  # it broke while earlier batches were at work: found out in their turn
            future: Future = Future()
            future.set_exception(error)
            return future

    def _alone(self, batch: Batch) -> list:
        """Do a batch again in a process of its own, and where that dies, every item; name those that kill it."""
        results, parts = [], deque([batch])
        pool = _start(1)
        while parts:
            part = parts.popleft()
            try:
                results += pool.submit(self.function, part).result()
            except BrokenProcessPool:
                pool = _start(1)
                if len(part) == 1:
                    results += self.crashed(part)
                else:
                    parts.extend([item] for item in part)
        pool.shutdown(wait=False)
        return results

    def stop(self) -> None:
        """Drop what is not begun; the processes end with what they are at."""
        for _, future in self.ahead:
            future.cancel()
        self.pool.shutdown(wait=False)


def _is_good(future: Future) -> bool:
    return future.done() and future.exception() is None


def _start(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_begin, initargs=(os.getpid(),), env={"OMP_NUM_THREADS": "1"})


def _begin(parent: int) -> None:
    """In each process: one thread for OpenCV, and an end when the parent was killed."""
    import cv2

    cv2.setNumThreads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    Thread(target=watch, daemon=True).start()
