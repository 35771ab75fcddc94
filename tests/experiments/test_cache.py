"""experiments/cache.py: what is part of a run's key, and what is not."""

from __future__ import annotations

from dataclasses import fields, make_dataclass, replace
from types import SimpleNamespace

from cxrclip.experiments import cache
from cxrclip.experiments.experiment import Experiment


def prepared(content="c0ffee"):
    """A prepared mix, as far as a key asks: roles, their folders, and the fingerprints of their content."""
    role = SimpleNamespace(max_negatives=None)
    return SimpleNamespace(mix=SimpleNamespace(pretraining={"M": role}), folders={"M": "somewhere"},
                           fingerprints=lambda roles: dict.fromkeys(roles, content))


def test_only_departures_from_the_defaults_are_in_the_key():
    assert cache.settings(Experiment()) == {}
    assert cache.settings(Experiment(seed=3, icl_weight=1.0, mix="elsewhere")) == {"seed": 3}


def test_a_new_field_that_is_off_leaves_the_key(monkeypatch):
    experiment = Experiment.at("quick", seed=2)
    before = cache.run_key(experiment, prepared())
    wider = make_dataclass("Wider", [("new_switch", bool, False)], bases=(Experiment,), frozen=True)
    values = {item.name: getattr(experiment, item.name) for item in fields(Experiment)}
    monkeypatch.setattr(cache, "Experiment", wider)
    assert cache.run_key(wider(**values), prepared()) == before
    assert cache.run_key(wider(**values, new_switch=True), prepared()) != before


def test_the_key_is_the_same_on_every_machine_and_python():
    """Written down: a key that depended on Python or on code would move. Raising a version moves it, too."""
    assert cache.run_key(Experiment.at("quick"), prepared()) == "a105ebf58ff87ee4"


def test_content_and_versions_are_in_the_key(monkeypatch):
    experiment = Experiment.at("quick")
    before = cache.run_key(experiment, prepared())
    assert cache.run_key(experiment, prepared("other")) != before
    assert cache.run_key(replace(experiment, learning_rate=1.0), prepared()) != before
    monkeypatch.setattr(cache, "VERSIONS", dict(cache.VERSIONS) | {"evaluation": 99})
    assert cache.run_key(experiment, prepared()) == before, "another evaluation retrains nothing"
    for stage in ("tokenizer", "training"):
        monkeypatch.setattr(cache, "VERSIONS", dict(cache.VERSIONS) | {stage: 99})
        assert cache.run_key(experiment, prepared()) != before
    tests = {"rsna": ["zero-shot"]}
    monkeypatch.undo()
    key = cache.evaluation_key(tests)
    monkeypatch.setattr(cache, "VERSIONS", dict(cache.VERSIONS) | {"evaluation": 99})
    assert cache.evaluation_key(tests) != key
