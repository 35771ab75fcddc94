"""The loop: the published schedule, resume to the bit, and what each line of the log says."""

from __future__ import annotations

import itertools
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from cxrclip import training
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, Workbench, pretrain
from cxrclip.experiments.checkpoints import FolderStore, load_state
from cxrclip.experiments.train import batches_for, run_folder
from cxrclip.prompts import PromptBank


@pytest.mark.parametrize(("step", "expected"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (55, 0.5), (100, 0.0)])
def test_schedule_is_linear_warmup_then_squared_cosine(step, expected):
    # 100 steps with 10 of warm-up: 1/10, 2/10, ... 1, then cos^2 from 1 (step 10) over 1/2 (half way) to 0.
    assert training.learning_rate_factor(step, 100, 0.1) == pytest.approx(expected, abs=1e-12)


def test_validation_steps_end_with_the_last():
    assert training.validation_steps(training.Recipe(7, validations=3)) == {2, 5, 7}


def test_a_gpu_that_is_not_there_is_named():
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(InputError, match="no GPU"):
        training.start_accelerator("cuda")
    with pytest.raises(InputError, match="choose auto, cpu or cuda"):
        training.start_accelerator("tpu")


def test_one_process_may_ask_for_one_precision_after_another():
    """A run in float32 that followed one in bf16 in the same process was refused."""
    for precision in ("no", "bf16", "no"):
        assert training.start_accelerator("cpu", precision).mixed_precision == precision


def test_every_cpu_computes_in_float32():
    """A CPU with bf16 arithmetic gave other numbers than one without, and small encoders did not gain by it."""
    assert training.start_accelerator("cpu").mixed_precision == "no"


def test_finished_run_is_found_and_its_log_is_whole(tiny_experiment, tiny_bench):
    run = pretrain(tiny_experiment, tiny_bench)
    log = run.log()
    assert list(log["step"]) == list(range(1, 7))
    total = log["mvs"] + tiny_experiment.icl_weight * log["icl"] + tiny_experiment.tcl_weight * log["tcl"]
    assert torch.allclose(torch.tensor(total), torch.tensor(log["total"]), atol=1e-4)
    assert log["valid_total"].notna().sum() == 5  # 6 steps, 5 validations
    before = (run.folder / "run.json").stat().st_mtime_ns
    assert pretrain(tiny_experiment, tiny_bench).key == run.key
    assert (run.folder / "run.json").stat().st_mtime_ns == before


def test_the_kept_weights_are_those_of_the_best_validation(tiny_experiment, tiny_bench):
    run = pretrain(tiny_experiment, tiny_bench)
    _, info = load_state(FolderStore(run.folder).path("best"))
    log = run.log()
    assert info["best"] == pytest.approx(log["valid_total"].min())
    assert info["step"] == log["step"][log["valid_total"].idxmin()]


KILLED_RUN = """
import sys
from cxrclip.experiments import Experiment, Workbench, pretrain
from cxrclip import training
training.Recipe.__dataclass_fields__  # the recipe's defaults are used
original = training.Recipe.__init__
def every_two(self, *args, **kwargs):
    original(self, *args, **kwargs | {"save_every": 2})
training.Recipe.__init__ = every_two
pretrain(Experiment.at("quick", mix=sys.argv[1], batch_size=8, steps=40, projection_dim=16),
         Workbench(build=sys.argv[2], progress=False), report=lambda step: None)
"""


def test_killed_and_resumed_ends_with_bitwise_the_same_weights(tiny_experiment, tiny_bench, tmp_path):
    experiment = replace(tiny_experiment, steps=40)
    whole = pretrain(experiment, tiny_bench)
    bench = Workbench(build=tmp_path, progress=False)
    folder = run_folder(experiment, bench)
    arguments = [sys.executable, "-c", KILLED_RUN, experiment.mix, str(tmp_path)]
    kills = 0
    for enough in (5, 17, 31):
        process = subprocess.Popen(arguments, env=os.environ | {"TQDM_DISABLE": "1"})
        while process.poll() is None and _lines(folder / "log.jsonl") < enough:
            time.sleep(0.01)
        process.kill()
        process.wait()
        kills += not (folder / "run.json").exists()
    assert kills == 3, "the run was not killed in its middle"
    subprocess.run(arguments, check=True)
    resumed = pretrain(experiment, bench)
    assert resumed.key == whole.key
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name]), name
    columns = ["step", "total", "mvs", "icl", "tcl", "valid_total"]
    assert whole.log()[columns].equals(resumed.log()[columns])


def test_a_streamed_run_trains_and_its_batches_go_on_at_any_step(tiny_experiment, tiny_bench):
    experiment = replace(tiny_experiment, batches="streamed", pretraining=("M", "C14"))
    run = pretrain(experiment, tiny_bench)
    assert len(run.log()) == experiment.steps
    assert math.isfinite(run.log()["valid_total"].iloc[-1])
    data = tiny_bench.prepared(experiment.mix, experiment.profile)
    make, validation = batches_for(experiment, data, PromptBank.load(), run.tokenizer, run.model.config)
    whole, rest = list(itertools.islice(make(0, 0, 1), 8)), list(itertools.islice(make(5, 0, 1), 3))
    for one, other in zip(whole[5:], rest, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(whole[0]["pixel_values"], whole[1]["pixel_values"])
    assert all(torch.equal(one["pixel_values"], other["pixel_values"])
               for one, other in zip(validation(), validation(), strict=True))


@pytest.mark.parametrize("change", [{"shares": (0.5,)}, {"reports_last": 0.5}, {"rules": "official"}])
def test_what_needs_random_access_excludes_streaming(change):
    with pytest.raises(InputError, match="needs studies at random access"):
        Experiment.at("quick", batches="streamed", **change)


def _lines(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_seed_changes_the_weights_and_the_key(tiny_experiment, tiny_bench):
    one, two = (pretrain(replace(tiny_experiment, seed=seed), tiny_bench) for seed in (0, 1))
    assert one.key != two.key
    assert not torch.equal(one.model.logit_scale, two.model.logit_scale)


def test_dropout_depends_on_the_step_alone(tiny_experiment, tiny_bench):
    torch.manual_seed(123)
    state = torch.get_rng_state()
    pretrain(replace(tiny_experiment, steps=2, seed=7), tiny_bench)
    assert torch.equal(state, torch.get_rng_state()), "training must leave the caller's random state alone"


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match=r"unknown profile 'huge'.*quick, standard, paper"):
        Experiment.at("huge")
    with pytest.raises(InputError, match="unknown parameter 'learningrate'"):
        Experiment.at("quick", learningrate=1)
