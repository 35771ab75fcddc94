"""The one way onto the disk: a file or a folder appears whole or not at all, and one process makes it at a time."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from filelock import FileLock, Timeout
from psutil import pid_exists

from cxrclip.errors import InputError

MARKER = "dataset.json"  # the file that makes a folder one of ours
_MACHINE = hashlib.sha256(platform.node().encode()).hexdigest()[:6]  # of several that share a disk


@contextmanager
def writing(place: str | Path) -> Iterator[None]:
    """Turn an OSError of the block (full disk, read-only folder) into an InputError that names `place`."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).splitlines()[0]
        raise InputError(f"{place}: cannot be written ({reason}): free space or choose another folder") from error


@contextmanager
def atomic_file(path: str | Path, where: str | Path = "") -> Iterator[Path]:
    """Yield a draft's path beside `path`, with the same ending; it becomes `path` if the block ends well.

    If not, the draft is removed and an older `path` stays as it was. Raises InputError, which names `where` (or the
    path), if it cannot be written.
    """
    path = Path(path)
    draft = _beside(path, f".draft{path.suffix}", path.stem)
    try:
        with writing(where or path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield draft
            with open(draft, "rb") as file:
                os.fsync(file.fileno())  # or a power cut may leave a name with nothing in it
            os.replace(draft, path)
    finally:
        with suppress(OSError):  # no draft, or no folder that could hold one
            draft.unlink()


def _beside(path: Path, ending: str, stem: str = "") -> Path:
    """A hidden name beside `path` that no other process uses; what killed processes of this machine left is removed."""
    start = f".{stem or path.name}."
    for other in path.parent.glob(f"{escape(start)}*{ending}"):
        machine, _, process = other.name.removeprefix(start).partition("-")
        process = process.partition("-")[0]
        if machine == _MACHINE and process.isdecimal() and not pid_exists(int(process)):
            with suppress(OSError):  # another process was faster, or the folder is read-only: no harm
                shutil.rmtree(other) if other.is_dir() else other.unlink()
    return path.with_name(f"{start}{_MACHINE}-{os.getpid()}-{secrets.token_hex(4)}{ending}")


def write_text(path: str | Path, text: str) -> None:
    """Write a text file (UTF-8), whole or not at all."""
    with atomic_file(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Yield an empty draft folder beside `folder`, which becomes `folder` if the block ends well.

    If not, it is removed. An older folder that holds `MARKER` is replaced; another with files in it is left alone.
    A killed process leaves at most a hidden draft, never half of `folder`, and the next one removes it. Raises
    InputError if it cannot be written.
    """
    folder = Path(folder).absolute()
    draft = _beside(folder, ".draft")
    try:
        with writing(folder):
            refuse_foreign(folder)
            draft.mkdir(parents=True)
        yield draft
        with writing(folder):
            replace_folder(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def refuse_foreign(folder: Path) -> None:
    """Raise InputError if `folder` holds files, but no `MARKER`: it is somebody else's."""
    if folder.exists() and not (folder / MARKER).is_file() and any(folder.iterdir()):
        raise InputError(f"{folder}: holds other files (no {MARKER}): choose another folder")


def replace_folder(draft: Path, folder: Path) -> None:
    """Put `draft` in the place of `folder`, whose older content goes only then."""
    old = _beside(folder, ".old")
    try:
        if folder.exists():
            folder.rename(old)
        try:
            draft.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def locked(path: str | Path, *, wait: bool = True, where: str | Path = "") -> Iterator[None]:
    """Hold the lock of `path`, a file beside it: two processes never make the same thing at once.

    The second waits, then finds what the first made; with wait=False it raises InputError, which names
    `where` (or the path). A lock ends with its process.
    """
    path = Path(path)
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=-1 if wait else 0)
    with writing(where or path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise InputError(f"{where or path}: another process is preparing it; wait until it has ended") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def making(path: str | Path, made: Callable[[], bool]) -> Iterator[bool]:
    """Hold the lock of `path` and tell whether it is still to be made; what is `made` needs no lock, also on a
    read-only disk."""
    if made():
        yield False
        return
    with locked(path):
        yield not made()


def digest(content: object) -> str:
    """A short stable hash of anything JSON can hold."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:16]
