"""`make reproduce`: what it trains ahead of the notebooks must end with it, however soon it ends."""

from __future__ import annotations

import multiprocessing

from cxrclip.book import reproduce


def test_nothing_is_left_behind_when_everything_was_found_at_once(tiny_mix, tiny_bench):
    """The process that trains ahead may not even have made its own group yet when the notebooks are done."""
    with reproduce.trained_ahead("quick", tiny_mix, 0, tiny_bench):
        pass
    assert not multiprocessing.active_children()


def test_notebooks_that_ask_for_no_run_go_first():
    names = [path.name[:2] for path in reproduce.in_order(reproduce.NOTEBOOKS.glob("[0-9]*.ipynb"))]
    assert names.index("14") < names.index("05") < names.index("06") < names.index("15")
    assert sorted(names) == sorted(path.name[:2] for path in reproduce.NOTEBOOKS.glob("[0-9]*.ipynb"))
