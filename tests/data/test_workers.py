"""cxrclip.data.workers: a call that crashes, hangs or fails costs no other, and Ctrl-C or a kill leaves no process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import decoders
import psutil
import pytest

from cxrclip.data import workers
from cxrclip.data.progress import progress_bar
from cxrclip.data.workers import AHEAD, Failure, Task, WorkFailed, in_order, side_by_side
from cxrclip.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]

CODE = """
    import sys, time
    from pathlib import Path
    from cxrclip.cli import command, app
    from cxrclip.data.progress import progress_bar
    from cxrclip.data.workers import Task, side_by_side

    @command("sleep")
    def sleep():
        tasks = [Task(f"sleep {i}", (60,), Path("log")) for i in range(3)]
        side_by_side(time.sleep, tasks, 2, progress_bar(shown=False), {})

    app(["sleep"])
"""


def run(function, arguments, tmp_path, workers=2):
    with progress_bar(total=len(arguments), shown=False) as bar:
        tasks = [Task(f"task {i}", (argument,), tmp_path / f"{i}.jsonl") for i, argument in enumerate(arguments)]
        return side_by_side(function, tasks, workers, bar, {"CXRCLIP_A": "in"})


def test_every_task_gets_its_result(tmp_path):
    assert run(abs, [-1, -2, -3], tmp_path) == [1, 2, 3]
    assert run(abs, [], tmp_path) == []


def test_a_fault_is_one_line_and_its_traceback_a_file(tmp_path):
    with pytest.raises(WorkFailed) as failed:
        run(int, ["1", "no\nnumber", "3"], tmp_path, workers=1)
    path = tmp_path / "1.error.txt"
    assert str(failed.value).startswith("task 1: ValueError: invalid literal")
    assert str(failed.value).endswith(f"(see {path})")
    assert "\n" not in str(failed.value)
    assert "Traceback" in path.read_text()


def test_a_dead_process_is_one_line_and_says_where_to_look(tmp_path):
    (tmp_path / "0.jsonl").write_text("{}\n")
    with pytest.raises(WorkFailed, match=r"^task 0: its process died with exit code 7, .*\(see .*0\.jsonl\)$"):
        run(os._exit, [7], tmp_path)


def test_processes_start_with_the_variables_given(monkeypatch, tmp_path):
    monkeypatch.setenv("CXRCLIP_A", "before")
    assert run(os.getenv, ["CXRCLIP_A"], tmp_path) == ["in"]
    assert os.environ["CXRCLIP_A"] == "before"


def started():
    """The command of CODE, in a process group of its own, once both of its workers are there."""
    call = subprocess.Popen([sys.executable, "-c", textwrap.dedent(CODE)], stderr=subprocess.PIPE, text=True,
                            start_new_session=True)
    deadline = time.monotonic() + 60
    while len(children := psutil.Process(call.pid).children(recursive=True)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    return call, children


@pytest.mark.skipif(os.name == "nt", reason="sends signals as a POSIX terminal does")
@pytest.mark.parametrize("pause", [0, 2], ids=["at the start", "at work"])
def test_ctrl_c_ends_all_at_once_with_one_line(pause):
    call, children = started()
    time.sleep(pause)
    os.killpg(call.pid, signal.SIGINT)  # as a terminal does: to every process in the foreground
    _, complaint = call.communicate(timeout=15)
    assert call.returncode == 130
    assert complaint.split("\n") == ["", "interrupted: the same command goes on where it stopped", ""]
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_processes_end_when_their_parent_is_killed():
    call, children = started()
    time.sleep(2)
    call.kill()
    call.communicate()
    assert psutil.wait_procs(children, timeout=10)[1] == []


# ---- in order


@pytest.mark.parametrize("processes", [1, 2])
def test_a_call_that_kills_its_process_fails_and_all_others_are_kept_in_order(processes):
    with in_order(decoders.doubled, ((i,) for i in range(40)), processes, 60) as results:
        results = list(results)
    assert isinstance(results.pop(13), Failure)
    values, ids = zip(*results, strict=True)
    assert list(values) == [2 * i for i in range(40) if i != 13]
    assert len(set(ids)) <= processes + 1
    assert os.getpid() not in ids, "also one worker is a process of its own"


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


def test_a_caller_that_cannot_import_its_workers_gets_one_line(monkeypatch):
    monkeypatch.setattr(workers, "_begin", exit)  # no worker can begin
    with pytest.raises(InputError, match="cannot be started"), in_order(decoders.doubled, [(1,)], 1, 60) as results:
        next(results)


SCRIPT = """
import os, time
from cxrclip.data.workers import in_order
with in_order(os.getpgid, ([0] for i in range(9)), 2, 60) as results:
    next(results)
    print("ready", flush=True)
    time.sleep(600)
"""


def test_a_script_needs_no_guard_and_processes_end_when_it_was_killed(tmp_path):
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
