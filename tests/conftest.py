"""Shared fixtures: a phantom mix small enough to draw and train in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cxrclip.experiments import Experiment, Workbench

TINY = {
    "about": "A phantom mix for tests.",
    "pretraining": {
        "M": {"phantom": "M", "sizes": {"quick": {"train": 24, "valid": 8}}},
        "C": {"missing": "needs CheXpert: registration"},
        "C14": {"phantom": "C14", "max_negatives": 3, "seen": {"rsna": 0.5},
                "sizes": {"quick": {"train": 24, "valid": 8}}},
    },
    "tests": {
        "rsna": {"phantom": "rsna", "tasks": ["zero-shot", "linear-probe"],
                 "sizes": {"quick": {"train": 40, "test": 30}}},
        "vindr-cxr": {"missing": "needs VinDr-CXR: credentialed access"},
        "openi": {"phantom": "openi", "tasks": ["retrieval"], "sizes": {"quick": {"test": 20}}},
    },
}


@pytest.fixture(scope="session")
def tiny_mix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of a mix file whose roles are a few phantom studies each."""
    path = tmp_path_factory.mktemp("mix") / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY, sort_keys=False))
    return str(path)


@pytest.fixture(scope="session")
def tiny_bench(tmp_path_factory: pytest.TempPathFactory) -> Workbench:
    """A workbench in a folder of its own."""
    return Workbench(build=Path(tmp_path_factory.mktemp("build")), progress=False, jobs=1)


@pytest.fixture(scope="session")
def tiny_experiment(tiny_mix: str) -> Experiment:
    """Six steps on the tiny mix."""
    return Experiment.at("quick", mix=tiny_mix, batch_size=8, steps=6, projection_dim=16)
