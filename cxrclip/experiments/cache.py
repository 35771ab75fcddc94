"""What makes a run the same run: its settings, the content of its data, and the versions of the stages that made it.

A stage's version is raised by hand when its numbers change in meaning; golden tests (tests/test_golden.py) fail until
it is. So a reworded message, a renamed variable or a new switch that is off by default retrain nothing.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path

from cxrclip.data import mixes
from cxrclip.data.mixes import digest
from cxrclip.data.phantom import world
from cxrclip.experiments.experiment import Experiment
from cxrclip.official.behaviours import Behaviours

VERSIONS: Mapping[str, int] = {"phantom": world.VERSION, "tokenizer": 1, "training": 2, "evaluation": 1}

NOT_IN_KEY = ("mix", "profile")  # they choose the data, whose content is in the key


def settings(experiment: Experiment) -> dict[str, object]:
    """The fields of an experiment that differ from their defaults: what its key holds of it."""
    return {item.name: value for item in fields(Experiment)
            if item.name not in NOT_IN_KEY and (value := getattr(experiment, item.name)) != item.default}


def run_key(experiment: Experiment, data: mixes.Prepared) -> str:
    """Key of a run: its settings, the content of its data and vocabulary, and the stages that train it."""
    vocabulary = data.fingerprints(tuple(role for role in data.mix.pretraining if role in data.folders))
    roles = [data.mix.pretraining[role] for role in experiment.pretraining]
    parts = [settings(experiment), data.fingerprints(experiment.pretraining), vocabulary,
             [role.max_negatives for role in roles], stages("tokenizer", "training")]
    if Behaviours.of(experiment.rules).seen_films:  # ledger D2: test films are trained on, too
        seen = {test: share for role in roles for test, share in role.seen.items()}
        parts.append([seen, data.fingerprints(tuple(seen))])
    return digest(parts)


def tokenizer_key(data: mixes.Prepared) -> str:
    """Key of the vocabulary of a mix: the content of its pretraining data, and the stage that learns it."""
    roles = tuple(role for role in data.mix.pretraining if role in data.folders)
    return digest([data.fingerprints(roles), stages("tokenizer")])


def evaluation_key(tests: Mapping[str, Sequence]) -> str:
    """Key of an evaluation: the test roles with their tasks and content, and the stage that evaluates."""
    return digest([tests, stages("evaluation")])


def stages(*names: str) -> dict[str, int]:
    """The versions of some stages."""
    return {name: VERSIONS[name] for name in names}


def versions_text(versions: Mapping[str, int] = VERSIONS) -> str:
    """Stage versions as result rows show them: "phantom=1 tokenizer=1 training=2 evaluation=1"."""
    return " ".join(f"{name}={number}" for name, number in versions.items())


@cache
def commit() -> str:
    """Git commit of the code that runs, "-dirty" behind it where files differ from it; "" outside of its checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # installed, perhaps inside of another project's checkout
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
