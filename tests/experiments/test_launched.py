"""`accelerate launch -m cxrclip.cli pretrain`: the run of one process, and what is left when a process is killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest
import torch

from cxrclip.experiments import Workbench, pretrain
from cxrclip.experiments.checkpoints import FolderStore
from cxrclip.experiments.train import finished_run, run_folder

# The command itself, on one small run in place of the book's.
SCRIPT = """
import json
import sys
from cxrclip import cli, training
from cxrclip.book import reproduce
from cxrclip.experiments import Experiment
changes = json.loads(sys.argv.pop(1))
changes["pretraining"] = tuple(changes["pretraining"])
reproduce.planned = lambda profile, mix, seed, data: ([], [Experiment.at(profile, mix=mix, seed=seed, **changes)])
reproduce.check = lambda *_: None
original = training.Recipe.__init__
training.Recipe.__init__ = lambda self, *args, **kwargs: original(self, *args, **kwargs | {"save_every": SAVE_EVERY})
sys.argv[0] = "cxrclip"
cli.main()
"""
SAVE_EVERY = 4
CHANGES = {"pretraining": ("M", "C14"), "image_encoder": "resnet-small-groupnorm", "batch_size": 8,
           "projection_dim": 16}
TOLERANCE = {"atol": 2e-4, "rtol": 2e-3}
# A weight of next to no gradient goes where rounding sends it, for AdamW makes full steps: all weights are compared by
# the length of their difference. The bias of the keys, which softmax does not see, has no gradient at all.
WEIGHTS, NO_GRADIENT = 5e-3, "key.bias"


@pytest.fixture
def launch(tmp_path, tiny_mix):
    """A function that starts the command in several processes and returns the launcher."""
    script = tmp_path / "launched.py"
    script.write_text(SCRIPT.replace("SAVE_EVERY}", f"{SAVE_EVERY}}}"))

    def start(processes, build, **changes):
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(processes),
                   "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port",
                   "0", str(script), json.dumps(CHANGES | changes), "pretrain", "--profile", "quick", "--mix", tiny_mix,
                   "--build", str(build), "--device", "cpu"]
        environment = os.environ | {"TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return start


def lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def assert_same_run(run, expected):
    columns = ["step", "total", "mvs", "icl", "tcl", "valid_total", "accuracy_image_text", "logit_scale"]
    assert list(run.log()["step"]) == list(expected.log()["step"])
    found, wanted = run.log()[columns], expected.log()[columns]
    assert torch.allclose(torch.tensor(found.values), torch.tensor(wanted.values), **TOLERANCE, equal_nan=True)
    ours, others = (torch.cat([tensor.flatten() for name, tensor in each.model.named_parameters()
                               if not name.endswith(NO_GRADIENT)]) for each in (run, expected))
    assert (ours - others).norm() <= WEIGHTS * others.norm()


@pytest.mark.parametrize("chunk", [None, 2])
def test_two_processes_make_the_run_of_one(launch, tiny_experiment, tiny_bench, tmp_path, chunk):
    experiment = replace(tiny_experiment, **CHANGES, steps=6, chunk=chunk)
    launcher = launch(2, tmp_path / "build", steps=6, chunk=chunk)
    output, _ = launcher.communicate(timeout=500)
    assert launcher.returncode == 0, output
    run = finished_run(experiment, Workbench(build=tmp_path / "build", progress=False))
    assert_same_run(run, pretrain(replace(experiment, chunk=None), tiny_bench))


def test_a_killed_process_stops_all_and_another_number_of_them_goes_on(launch, tiny_experiment, tiny_bench, tmp_path):
    experiment = replace(tiny_experiment, **CHANGES, steps=24)
    bench = Workbench(build=tmp_path / "build", progress=False)
    folder = run_folder(experiment, bench)  # prepares the data, too
    launcher = launch(2, tmp_path / "build", steps=24)
    while lines(folder / "log.jsonl") < 9:
        assert launcher.poll() is None, launcher.communicate()[0]
        time.sleep(0.02)
    workers = psutil.Process(launcher.pid).children(recursive=True)
    second = next(worker for worker in workers if worker.environ().get("RANK") == "1")
    second.kill()
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode != 0
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
    print(output)
    assert "one of 2 training processes has ended" in output or "exitcode" in output
    assert not (folder / "run.json").exists()
    assert FolderStore(folder).finished_steps() > lines(folder / "log.jsonl") - SAVE_EVERY - 1
    assert_same_run(pretrain(experiment, bench), pretrain(experiment, tiny_bench))  # one process goes on
