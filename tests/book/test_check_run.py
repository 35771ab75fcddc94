"""A committed run trained again: equal numbers agree, others do not, and what cannot be checked says why."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cxrclip.book import check_run as checking
from cxrclip.book.check_run import check_run, compared
from cxrclip.errors import InputError
from cxrclip.experiments import evaluate, pretrain


@pytest.fixture(scope="module")
def committed(tiny_experiment, tiny_bench):
    return evaluate(pretrain(tiny_experiment, tiny_bench)).assign(mix=tiny_experiment.mix)  # its file, for its name


@pytest.fixture
def plan(monkeypatch, tiny_experiment):
    monkeypatch.setattr(checking, "planned", lambda *_: ([], [tiny_experiment]))


def test_the_same_run_again_agrees(plan, committed, tiny_bench, tmp_path):
    """Trained anew in another folder, on the same processor: every number is equal."""
    table, agree = check_run("", committed, replace(tiny_bench, build=tmp_path))
    assert agree
    assert (table["difference"] == 0).all()
    assert len(table) == len(committed.query("`class` == 'all'"))


def test_other_numbers_do_not_agree(committed):
    moved = committed.assign(**{name: committed[name] + 1000 for name in ("value", "low", "high")})
    assert compared(committed, committed)["inside"].all()
    assert not compared(moved, committed)["inside"].any()


def test_what_cannot_be_checked_says_why(plan, committed, tiny_bench):
    with pytest.raises(InputError, match="no committed results"):
        check_run("", None, tiny_bench)
    with pytest.raises(InputError, match="no committed run is of this version"):
        check_run("", committed.assign(key="of another version"), tiny_bench)
    with pytest.raises(InputError, match="not among the 1 committed ones"):
        check_run("0123", committed, tiny_bench)
    with pytest.raises(InputError, match="give another --build"):
        check_run(committed["key"].iloc[0], committed, tiny_bench)
