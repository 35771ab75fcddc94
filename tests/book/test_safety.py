"""book/safety.py: each measure by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binomtest

from cxrclip.book import safety

P = np.array([0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9])
Y = np.array([0, 0, 1, 0, 0, 1, 1, 1], bool)


def test_reliability_by_hand():
    table = safety.reliability(P, Y, bins=2)
    assert table["predicted"].tolist() == pytest.approx([0.25, 0.75])
    assert table["observed"].tolist() == [0.25, 0.75]
    wilson = binomtest(1, 4).proportion_ci(method="wilson")
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx([wilson.low, wilson.high], abs=1e-4)
    assert safety.calibration_error(P, Y, bins=2) == pytest.approx(0)
    assert safety.calibration_error(P + 0.1, Y, bins=2) == pytest.approx(0.1)


@pytest.mark.parametrize(("sensitivity", "threshold"), [(1.0, 0.3), (0.75, 0.7), (0.7, 0.7), (0.5, 0.8)])
def test_threshold_keeps_the_sensitivity(sensitivity, threshold):
    assert safety.threshold_for(P, Y, sensitivity) == threshold
    assert safety.working_point(P, Y, threshold)["sensitivity"] >= sensitivity


def test_threshold_takes_no_film_more_than_asked_for():
    """In floating point 0.55 * 100 is more than 55."""
    assert safety.threshold_for(np.arange(100) / 100, np.ones(100, bool), 0.55) == 0.45


def test_working_point_by_hand():
    assert safety.working_point(P, Y, 0.6) == {"sensitivity": 0.75, "specificity": 0.75, "read": 0.5}


def test_risk_coverage_decides_the_surest_first():
    curve = safety.risk_coverage(abs(P - 0.5), (P >= 0.5) != Y)
    assert curve["coverage"].tolist() == [i / 8 for i in range(1, 9)]
    # By distance from .5: .1 and .9 right, .2 and .8 right, .3 wrong and .7 right, .4 right and .6 wrong.
    assert curve["risk"].tolist() == pytest.approx([0, 0, 0, 0, 1 / 5, 1 / 6, 1 / 7, 2 / 8])


def test_tubes_follow_the_shares_and_change_nothing_else():
    films, sick, tubes = safety.films_with_tubes(6, ill=1.0, healthy=0.0, size=64)
    assert sick.tolist() == tubes.tolist() == [True, False] * 3
    others, same, none = safety.films_with_tubes(6, ill=0.0, healthy=0.0, size=64)
    assert same.tolist() == sick.tolist()
    assert not none.any()
    assert [np.array_equal(a, b) for a, b in zip(films, others, strict=True)] == [False, True] * 3
