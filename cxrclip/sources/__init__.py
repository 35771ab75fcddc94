"""One short module per public data set: its download layout -> the study table."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from cxrclip.sources import chestxray14, openi, table

SOURCES: dict[str, Callable[..., pd.DataFrame]] = {
    "chestxray14": chestxray14.prepare,
    "openi": openi.prepare,
    "table": table.prepare,
}
"""Name -> `prepare(root, out, *, image_size=512, max_rejected=0.05, progress=True, ...)`, which reads the
download in `root`, writes the study folder `out` and returns its summary."""
