"""`make reproduce`: what it trains ahead of the notebooks must end with it, however soon it ends."""

from __future__ import annotations

import multiprocessing

from cxrclip import reproduce


def test_nothing_is_left_behind_when_everything_was_found_at_once(tiny_mix, tiny_bench):
    """The process that trains ahead may not even have made its own group yet when the notebooks are done."""
    with reproduce.trained_ahead("quick", tiny_mix, 0, tiny_bench):
        pass
    assert not multiprocessing.active_children()
