"""One short module per public data set: its download layout -> the study table."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from cxrclip.data.sources import chestxray14, chexpert, chexpert5x200, mimic, openi, rsna, siim, table, vindr

SOURCES: dict[str, Callable[..., pd.DataFrame]] = {
    "mimic-cxr": mimic.prepare,
    "chexpert": chexpert.prepare,
    "chexpert5x200": chexpert5x200.prepare,
    "chexpert5x200-mgca": chexpert5x200.prepare_mgca,
    "chestxray14": chestxray14.prepare,
    "vindr-cxr": vindr.prepare,
    "rsna": rsna.prepare,
    "siim": siim.prepare,
    "openi": openi.prepare,
    "table": table.prepare,
}
"""Name -> `prepare(root, out, *, allow_partial=False, image_size=512, max_rejected=0.05, progress=True, ...)`, which
reads the download in `root`, writes the study folder `out` and returns its summary. Where the counts are not the public
ones of the release, it goes on only with `allow_partial`."""
