"""The one command line: help at once, every fault one line and an exit code, every command reaches its function."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cxrclip import cli
from cxrclip.errors import InputError

ROOT = Path(__file__).parents[1]
COMMANDS = ("reproduce", "pretrain", "dry-run", "notebooks", "data", "augment-texts", "tables", "figures", "export",
            "scan", "explorer")


def call(*arguments):
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def test_help_lists_every_command_and_imports_nothing_heavy():
    code = "import sys; from cxrclip.cli import app; sys.exit(any(name in sys.modules for name in ('torch', 'pandas')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    begun = time.monotonic()
    shown = subprocess.run([sys.executable, "-m", "cxrclip.cli", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert time.monotonic() - begun < 3
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    for name in COMMANDS:
        assert call(name, "--help").exit_code == 0


@pytest.mark.parametrize(("arguments", "message"), [
    (["--profile", "huge"], "unknown profile 'huge': choose one of quick, standard, paper"),
    (["--mix", "nope"], "unknown mix 'nope': choose one of paper, phantom, real-sample"),
    (["--profile", "paper", "--mix", "paper", "--data", "gone"], "nothing to pretrain on, there is no gone/mimic-cxr"),
    (["--profile", "paper"], "mix phantom, role M: no sizes for profile 'paper'"),
    (["--mix", "real-sample", "--data", "gone"], "no folder gone/openi: set DATA"),
    (["--device", "tpu"], "unknown device 'tpu': choose auto, cpu or cuda"),
    (["--build", "/proc/nowhere"], "/proc/nowhere"),
])
def test_bad_calls_of_reproduce_give_one_clear_line(arguments, message):
    done = call("reproduce", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stdout == ""


def test_in_a_process_of_its_own_a_fault_is_one_line_too():
    done = subprocess.run([sys.executable, "-m", "cxrclip.cli", "reproduce", "--profile", "huge"], cwd=ROOT,
                          capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n"), done.stdout) == (2, 1, "")


@pytest.mark.parametrize(("error", "code", "line"), [
    (InputError("file, row 3: mend it"), 2, "error: file, row 3: mend it\n"),
    (OSError(28, "No space left on device", "out/x"), 2, "error: out/x: No space left on device: free some space or "),
    (ModuleNotFoundError("No module named 'pydicom'", name="pydicom.pixels"), 2, "pip install 'cxrclip[data]'\n"),
    (KeyboardInterrupt(), 130, "\ninterrupted: the same command goes on where it stopped\n"),
])
def test_what_a_command_raises_is_one_line_and_a_code(error, code, line, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise error
    monkeypatch.setattr("cxrclip.hub.export.open_run", fails)
    done = call("export", "--run", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == code
    assert line in done.stderr
    assert "Traceback" not in done.stderr


def test_a_fault_of_the_library_keeps_its_traceback(monkeypatch, tmp_path):
    monkeypatch.setattr("cxrclip.hub.export.open_run", lambda *_: 1 / 0)
    assert isinstance(call("export", "--run", tmp_path, "--out", tmp_path).exception, ZeroDivisionError)


def test_usage_errors_name_the_option():
    assert "--root" in call("data", "--source", "siim").stderr
    assert call("data", "--source", "siim").exit_code == 2


def test_data_hands_its_options_to_the_source(tmp_path):
    done = call("data", "--source", "padchest", "--root", tmp_path, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "unknown source 'padchest'" in done.stderr
    done = call("data", "--source", "siim", "--root", tmp_path, "--out", tmp_path / "out", "--option", "seed=1",
                "--option", "seeds=1", "--allow-partial")
    assert done.exit_code == 2
    assert "siim has no such option" in done.stderr


def test_augment_texts_names_the_new_folder(monkeypatch, tmp_path):
    calls = {}

    def augmented(folder, out, there, back, **options):
        calls.update(folder=folder, out=out, there=there, **options)
        return {"studies": 1200}
    monkeypatch.setattr("cxrclip.data.augment.augment_with_models", augmented)
    done = call("augment-texts", "--studies", tmp_path / "m", "--split", "all", "--back-prefix", "x ")
    assert done.stdout == f"{tmp_path / 'm-aug'}: 1,200 studies\n"
    assert calls["out"] == tmp_path / "m-aug"
    assert (calls["split"], calls["back_prefix"], calls["there"]) == (None, "x ", "Helsinki-NLP/opus-mt-en-it")
    assert call("augment-texts", "--studies", tmp_path, "--split", "half").exit_code == 2


def test_export_says_what_it_wrote(monkeypatch, tmp_path):
    monkeypatch.setattr("cxrclip.hub.export.export", lambda run, out, data: out / json.dumps((run.name, data)))
    done = call("export", "--run", tmp_path / "runs" / "k", "--out", tmp_path, "--data", "films")
    assert done.stdout == f'wrote {tmp_path}/["k", "films"]: its README.md tells how to use it\n'


def test_scan_says_what_and_where(tmp_path, monkeypatch):
    assert call("scan", tmp_path).exit_code == 2, "not under version control"
    monkeypatch.setattr("cxrclip.book.governance.committed", lambda root: [root / "page.md"])
    monkeypatch.setattr("cxrclip.book.governance.open_i_sentences", frozenset)
    (tmp_path / "page.md").write_text("train/patient" + "00001/study1")
    done = call("scan", tmp_path)
    assert done.exit_code == 1
    assert "page.md, text: a patient as in CheXpert\ngovernance: 1 findings" in done.stdout
