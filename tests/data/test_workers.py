"""Tasks side by side: results come back, and a fault, a dead process and Ctrl-C each end in one line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from cxrclip.data.progress import progress_bar
from cxrclip.data.workers import Task, WorkFailed, environment, side_by_side

CODE = """
    import sys, time
    from pathlib import Path
    from cxrclip.cli import command, app
    from cxrclip.data.progress import progress_bar
    from cxrclip.data.workers import Task, side_by_side

    @command("sleep")
    def sleep():
        tasks = [Task(f"sleep {i}", (60,), Path("log")) for i in range(3)]
        side_by_side(time.sleep, tasks, 2, progress_bar(shown=False))

    app(["sleep"])
"""


def run(function, arguments, tmp_path, workers=2):
    finished = {}
    with progress_bar(total=len(arguments), shown=False) as bar:
        tasks = [Task(f"task {i}", (argument,), tmp_path / f"{i}.jsonl") for i, argument in enumerate(arguments)]
        side_by_side(function, tasks, workers, bar, finished=lambda task, result: finished.update({task.name: result}))
    return finished


def test_every_task_gets_its_result(tmp_path):
    assert run(abs, [-1, -2, -3], tmp_path) == {"task 0": 1, "task 1": 2, "task 2": 3}
    assert run(abs, [], tmp_path) == {}


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


def test_variables_are_put_back(monkeypatch):
    monkeypatch.setenv("CXRCLIP_A", "before")
    with environment({"CXRCLIP_A": "in", "CXRCLIP_B": "in"}):
        assert (os.environ["CXRCLIP_A"], os.environ["CXRCLIP_B"]) == ("in", "in")
    assert os.environ["CXRCLIP_A"] == "before"
    assert "CXRCLIP_B" not in os.environ


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
