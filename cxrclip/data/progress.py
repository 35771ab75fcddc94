"""One way to show progress: a text bar on stderr, which `TQDM_DISABLE=1` silences everywhere."""

from __future__ import annotations

from typing import Any

from tqdm import tqdm


def progress_bar(*args: Any, shown: bool = True, **options: Any) -> tqdm:
    """tqdm's bar; hidden when not `shown`. (Passing `disable=False` to tqdm would overrule TQDM_DISABLE.)"""
    return tqdm(*args, **options, **({} if shown else {"disable": True}))
