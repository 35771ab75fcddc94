"""A wheel of the tree, installed without extras, in an empty folder: the front door, the method, and `reproduce`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import venv
from contextlib import suppress
from importlib.metadata import (
    Distribution,
    PackageNotFoundError,
    distribution,
    distributions,
    packages_distributions,
)
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
# As an environment without extras: packages that ours does not depend on can be neither imported nor found.
ONLY_NEEDED = """
    import importlib.machinery, json, pathlib, re, sys
    finder = importlib.machinery.PathFinder
    known = json.loads(pathlib.Path(__file__).with_name("known.json").read_text())
    class Needed(finder):
        @classmethod
        def find_spec(cls, name, path=None, target=None):
            return None if name.split(".")[0] in known["blocked"] else finder.find_spec(name, path, target)
        @classmethod
        def find_distributions(cls, *args, **kwargs):
            for found in finder.find_distributions(*args, **kwargs):
                if re.sub("[-_.]+", "-", found.name or "").lower() in known["wanted"]:
                    yield found
    sys.meta_path[sys.meta_path.index(finder)] = Needed
"""
METHOD = """
    import importlib.util, json, sys, time
    begun = time.perf_counter()
    import cxrclip
    seconds = time.perf_counter() - begun
    loaded = set(sys.modules)
    import numpy as np, torch
    model = cxrclip.CXRCLIPModel
    from cxrclip import encoders, evaluation, losses, metrics, prompts
    from cxrclip.data import mixes
    from cxrclip.results.rows import published
    images, texts = torch.rand(2, 4, 8), torch.rand(2, 4, 8)
    terms = cxrclip.CXRCLIPLoss()(images, texts, torch.tensor(10.0))
    print(json.dumps({
        "file": cxrclip.__file__, "seconds": seconds, "heavy": sorted(loaded & {"torch", "transformers", "pandas"}),
        "model": model.__module__, "loss": bool(torch.isfinite(terms.total)),
        "auroc": metrics.auroc(np.array([0.1, 0.9]), np.array([0, 1])),
        "prompt": cxrclip.PromptBank.load().report(["Edema"], [], [], np.random.default_rng(0)),
        "mixes": [mixes.load_mix(name).name for name in ("paper", "phantom", "real-sample")],
        "published": len(published()),
        "blocked": [name for name in ("pydicom", "matplotlib", "papermill", "sphinx") if name in sys.modules]}))
"""
# `cxrclip reproduce` with a plan of one small run.
REPRODUCE = """
    import sys
    from cxrclip import cli
    from cxrclip.experiments import Experiment, comparisons

    run = Experiment.at("quick", mix="tiny.yaml", batch_size=8, steps=2, projection_dim=16)
    comparisons.plan = lambda *_: {"main": [comparisons.Row(comparisons.MAIN, "a", "steps", run)]}
    cli.app(["reproduce", "--mix", "tiny.yaml"])
"""


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(wheel: Distribution) -> set[str]:
    """The distributions that a wheel needs without its extras, with all that they need."""
    done, waiting = {("cxrclip", "")}, requirements(wheel, "")
    while waiting:
        if (asked := waiting.pop()) not in done:
            done.add(asked)
            with suppress(PackageNotFoundError):  # it is for another system
                waiting += requirements(distribution(asked[0]), asked[1])
    return {name for name, _ in done}


def requirements(one: Distribution, extra: str) -> list[tuple[str, str]]:
    """Name and extra of what a distribution asks for on this machine."""
    return [(plain(item.name), its_extra) for item in map(Requirement, one.requires or []) for its_extra in
            ("", *item.extras) if item.marker is None or item.marker.evaluate({"extra": extra})]


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """The Python of an environment with the wheel, which sees the installed packages that it depends on."""
    place = tmp_path_factory.mktemp("wheel")
    tree = place / "tree"
    shutil.copytree(ROOT / "cxrclip", tree / "cxrclip", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place, tree], check=True)
    (wheel,) = place.glob("cxrclip-*.whl")
    venv.create(place / "venv", with_pip=False)
    script = place / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site, ours = (Path(subprocess.run([path, "-c", ask], capture_output=True, text=True, check=True).stdout.strip())
                  for path in (script, sys.executable))
    subprocess.run([*pip, "--python", script, "install", "--no-deps", "--no-index", wheel], check=True)
    (site / "installed.pth").write_text(f"{ours}\n")  # the .pth files in there, as of an editable install, are not read
    wanted = needed(next(iter(distributions(name="cxrclip", path=[str(site)]))))
    blocked = [module for module, names in packages_distributions().items()
               if not set(map(plain, names)) & wanted]
    (site / "known.json").write_text(json.dumps({"wanted": sorted(wanted), "blocked": blocked}))
    (site / "sitecustomize.py").write_text(textwrap.dedent(ONLY_NEEDED))
    assert {"pydicom", "matplotlib", "seaborn", "papermill", "nbformat", "sphinx", "torchxrayvision"} <= set(blocked)
    assert not {"torch", "pandas", "pebble", "typer", "cxrclip"} & set(blocked)
    return script


def run(python: Path, folder: Path, code: str) -> subprocess.CompletedProcess:
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run([python, "-c", textwrap.dedent(code)], cwd=folder, env=variables, capture_output=True,
                          text=True)


def test_the_method_needs_no_extras_and_the_front_door_no_time(python, tmp_path):
    call = run(python, tmp_path, METHOD)
    assert call.returncode == 0, call.stderr
    shown = json.loads(call.stdout)
    assert Path(shown["file"]).is_relative_to(python.parents[1]), "the wheel's, not the tree's"
    assert shown["seconds"] < 0.3
    assert shown["heavy"] == shown["blocked"] == []
    assert (shown["model"], shown["loss"], shown["auroc"]) == ("cxrclip.encoders", True, 1.0)
    assert "edema" in shown["prompt"].lower()
    assert shown["mixes"] == ["paper", "phantom", "real-sample"]
    assert shown["published"] > 100
    assert not list(tmp_path.iterdir())


def test_reproduce_works_in_an_empty_folder_and_says_where_the_notebooks_are(python, tmp_path, tiny_mix):
    shutil.copy(tiny_mix, tmp_path / "tiny.yaml")
    call = run(python, tmp_path, REPRODUCE)
    assert call.returncode == 0, call.stderr
    lines = call.stdout.splitlines()
    assert lines[:2] == ["[1/3] data", "[2/3] runs: 1, of which 0 were found"]
    assert lines[2].startswith("[3/3] notebooks: they come with the repository")
    out = tmp_path / "build" / "tiny-quick"
    assert (out / "results.csv").is_file()
    assert {"table2.txt", "table3.md", "table4.tex"} <= {path.name for path in (out / "tables").iterdir()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["build", "tiny.yaml"]


@pytest.mark.parametrize("command", ["tables", "figures", "notebooks"])
def test_what_needs_the_repository_says_so(python, tmp_path, command):
    call = run(python, tmp_path, f"from cxrclip import cli; cli.app(['{command}'])")
    assert (call.returncode, call.stderr.count("\n"), call.stdout) == (2, 1, "")
    assert "is no clone of the repository" in call.stderr
    assert not list(tmp_path.iterdir())
