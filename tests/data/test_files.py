"""data/files.py: a file or a folder appears whole or not at all, and one process makes it at a time."""

import errno
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from cxrclip.data.files import atomic_file, atomic_folder, digest, locked, write_text
from cxrclip.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]


def process(code, *arguments):
    """A process that runs the code, which imports from data/files.py what it needs."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                            env=os.environ | {"PYTHONPATH": str(PROJECT)})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def fill(path, text, fault=None):
    """Make `path`, a file (its name has an ending) or a folder with a marker, up to a fault."""
    with atomic_file(path) if path.suffix else atomic_folder(path) as draft:
        (draft if path.suffix else draft / "dataset.json").write_text(text)
        if fault:
            raise fault


def content(path):
    return (path if path.suffix else path / "dataset.json").read_text()


@pytest.fixture(params=["a.txt", "folder"])
def place(request, tmp_path):
    """The path of a file, then of a folder, in a folder of its own."""
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / request.param


# ---- whole or not at all


def test_a_draft_becomes_the_file_or_folder_and_replaces_an_older_one(place):
    fill(place, "one")
    fill(place, "two")
    assert content(place) == "two"
    assert names(place.parent) == [place.name]


def test_the_folders_above_are_made(tmp_path):
    write_text(tmp_path / "a" / "b" / "c.txt", "ü")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "ü".encode()
    fill(tmp_path / "d" / "e", "x")
    assert names(tmp_path / "d") == ["e"]


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_block_leaves_the_older_one(place, fault):
    fill(place, "old")
    with pytest.raises(fault):
        fill(place, "half of the ne", fault)
    assert content(place) == "old"
    assert names(place.parent) == [place.name]


KILLED = """
import sys
from pathlib import Path
from cxrclip.data.files import atomic_file, atomic_folder
path = Path(sys.argv[1])
with atomic_file(path) if path.suffix else atomic_folder(path) as draft:
    (draft if path.suffix else draft / "dataset.json").write_text("half of the ne")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_leaves_the_older_one_and_at_most_a_hidden_draft(place):
    fill(place, "old")
    with process(KILLED, place) as child:
        assert child.stdout.readline() == "ready\n"
        assert content(place) == "old"
        child.kill()
    assert content(place) == "old"
    assert all(name.startswith(".") and "draft" in name for name in names(place.parent) if name != place.name)
    with process(KILLED, place) as living:
        assert living.stdout.readline() == "ready\n"
        fill(place, "new")
        assert len(names(place.parent)) == 2, "the draft of the killed process is gone, that of the living one stays"
        living.kill()
    assert content(place) == "new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "rename", "flush"])
def test_a_full_disk_or_a_read_only_place_is_one_clear_line(place, monkeypatch, call, code):
    def fail(*_args, **_options):
        raise OSError(code, os.strerror(code))

    fill(place, "old")
    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(Path, "write_text", fail)
        elif call == "flush":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(os, "replace", fail)
            patch.setattr(Path, "rename", fail)
        raised = (call == "rename") or place.suffix  # what the caller writes into a draft folder is the caller's
        with pytest.raises(InputError if raised else OSError) if raised or call == "write" else nullcontext() as caught:
            fill(place, "new")
    if raised:
        assert str(caught.value) == (f"{place}: cannot be written ({os.strerror(code)}): "
                                     "free space or choose another folder")
        assert content(place) == "old"
    assert names(place.parent) == [place.name]


def test_a_place_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file" / "a.txt", tmp_path / "file" / "folder"):
        with pytest.raises(InputError, match="cannot be written"):
            fill(path, "x")
    with pytest.raises(InputError, match=r"^the results: cannot be written"), \
            atomic_file(tmp_path / "file" / "a.txt", "the results") as draft:
        draft.write_text("x")
    assert names(tmp_path) == ["file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write into read-only folders")
def test_a_read_only_folder_is_one_clear_line(place):
    place.parent.chmod(0o555)
    with pytest.raises(InputError, match="Permission denied"):
        fill(place, "x")


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"precious: holds other files \(no dataset\.json\)"):
        fill(tmp_path / "precious", "x")
    assert names(tmp_path / "precious") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", "x")
    assert names(tmp_path) == ["empty", "precious"]


def test_the_older_folder_comes_back_when_the_swap_fails(tmp_path, monkeypatch):
    fill(tmp_path / "t", "old")
    rename, calls = Path.rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", second_fails)
        with pytest.raises(InputError, match="Input/output error"):
            fill(tmp_path / "t", "new")
    assert content(tmp_path / "t") == "old"
    assert names(tmp_path) == ["t"]


def test_a_file_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda _: synced.append((tmp_path / "a.txt").exists()))
    fill(tmp_path / "a.txt", "whole")
    assert synced == [False]


# ---- one process at a time

HOLD = """
import sys
from cxrclip.data.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""
LOCK_LATER = """
import sys
from cxrclip.data.files import locked
print("started", flush=True)
with locked(sys.argv[1]):
    print(open(sys.argv[1]).read(), flush=True)
"""


def test_a_second_process_waits_and_finds_what_the_first_made(tmp_path):
    path = tmp_path / "below" / "made"
    with locked(path):
        child = process(LOCK_LATER, path)
        assert child.stdout.readline() == "started\n"
        time.sleep(0.3)
        path.write_text("by the first")
    assert child.communicate(timeout=30)[0] == "by the first\n"


def test_without_waiting_a_second_process_gets_one_line_at_once(tmp_path):
    with process(HOLD, tmp_path / "made") as child:
        assert child.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=r"made: another process is preparing it"), \
                locked(tmp_path / "made", wait=False):
            pass
        with pytest.raises(InputError, match=r"^the run: another process"), \
                locked(tmp_path / "made", wait=False, where="the run"):
            pass
        child.kill()  # a lock ends with its process, however that ends
        child.wait()
        with locked(tmp_path / "made", wait=False):
            pass
    assert [name for name in names(tmp_path) if not name.startswith(".")] == []


def test_a_lock_ends_with_its_block_also_by_a_fault_and_two_paths_have_two_locks(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError), locked(tmp_path / "a", wait=False), locked(tmp_path / "b", wait=False):
            raise RuntimeError
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file" / "a"):
        pass


# ---- names


def test_a_digest_is_of_the_content():
    assert digest({"a": 1, "b": [2.5, None]}) == digest({"b": [2.5, None], "a": 1}) == "2daaea6dd63221f9"
    assert digest(["a", Path("x")]) == digest(["a", "x"])
    assert digest([1, 2]) != digest([2, 1])
