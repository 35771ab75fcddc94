"""Decoders for tests, importable by worker processes: they abort, panic, hang, or log what they read."""

import os
import time

from cxrclip.data.images import store_film


class Panic(BaseException):
    """What pyo3 raises for a panic in Rust: no Exception."""


def aborting(path, where, size):
    return os.abort() if path.name == "2.png" else store_film(path, where, size)


def panicking(path, where, size):
    if path.name == "2.png":
        raise Panic("a report may be quoted here")
    return store_film(path, where, size)


def hanging(path, where, size):
    if path.name == "2.png":
        time.sleep(600)
    return store_film(path, where, size)


def logged(log, path, where, size):
    with open(log, "a") as file:
        file.write(f"{path.name}\n")
    return store_film(path, where, size)


def doubled(item):
    """Twice the item, by a process whose number is kept."""
    if item == 13:
        os._exit(1)
    return 2 * item, os.getpid()
