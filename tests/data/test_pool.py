"""cxrclip.data.pool: calls in worker processes, in order, and one that fails costs no other."""

import os
import subprocess
import sys
import time
from pathlib import Path

import decoders
import pytest

from cxrclip.data.pool import AHEAD, Failure, in_order

PROJECT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_call_that_kills_its_process_fails_and_all_others_are_kept_in_order(workers):
    with in_order(decoders.doubled, ((i,) for i in range(40)), workers, 60) as results:
        results = list(results)
    assert isinstance(results.pop(13), Failure)
    values, processes = zip(*results, strict=True)
    assert list(values) == [2 * i for i in range(40) if i != 13]
    assert len(set(processes)) <= workers + 1
    assert os.getpid() not in processes, "also one worker is a process of its own"


def test_calls_are_taken_only_a_few_ahead_of_the_reader():
    taken = []

    def calls():
        for i in range(1000):
            taken.append(i)
            yield (i + 100,)

    with in_order(decoders.doubled, calls(), 2, 60) as results:
        for read, (result, _) in enumerate(results, 1):
            assert result == 2 * (read + 99)
            assert len(taken) - read < 2 * AHEAD
            if read == 10:
                break
    assert len(taken) <= 10 + 2 * AHEAD


def test_a_caller_that_cannot_import_its_workers_gets_one_line(monkeypatch, tmp_path):
    from cxrclip.data import pool
    from cxrclip.errors import InputError

    monkeypatch.setattr(pool.cv2, "setNumThreads", exit)  # no worker can begin
    with in_order(decoders.doubled, [(1,)], 1, 60) as results, pytest.raises(InputError, match="cannot be started"):
        next(results)


SCRIPT = """
import os, time
from cxrclip.data.pool import in_order
with in_order(os.getpgid, ([0] for i in range(9)), 2, 60) as results:
    next(results)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_script_needs_no_guard_and_processes_end_when_it_was_killed(tmp_path):
    psutil = pytest.importorskip("psutil")
    (tmp_path / "script.py").write_text(SCRIPT)
    semaphores = set(Path("/dev/shm").glob("*"))
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    with subprocess.Popen([sys.executable, tmp_path / "script.py"], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout.readline() == b"ready\n"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
    deadline = time.time() + 20
    while any(child.is_running() and child.status() != "zombie" for child in children) and time.time() < deadline:
        time.sleep(0.2)
    assert not [child for child in children if child.is_running() and child.status() != "zombie"]
    assert not set(Path("/dev/shm").glob("loky-*")) - semaphores, "no semaphore is left behind"
