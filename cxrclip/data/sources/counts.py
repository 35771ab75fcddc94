"""The published counts of a release against those of a download: which one is this, and is it whole?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from cxrclip.errors import InputError

GO_ON = "set --allow-partial (allow_partial=True) to go on"


def check_counts(
    name: str,
    root: Path,
    published: Mapping[str, int],
    measured: Mapping[str, int],
    *,
    allow_partial: bool,
    progress: bool,
) -> dict[str, Any]:
    """Compare what a download holds with the published counts of its release, before any film is read.

    Args:
        name: of the source, for the message.
        root: folder of the download.
        published: what is counted -> the published count.
        measured: the same counts here; may hold others, which are only reported.
        allow_partial: go on where counts differ.
        progress: print the two side by side.

    Returns:
        What `dataset.json` keeps: {"whole": bool, "expected": {...}, "found": {...}}.

    Raises:
        InputError: counts differ and `allow_partial` is off. Fewer than published is a partial download, more is
            another version of the release.
    """
    if progress:
        tqdm.write(f"{name}:\n{compared(published, measured).to_string(index=False)}", file=sys.stderr)
    differing = {what: (measured.get(what, 0), n) for what, n in published.items() if measured.get(what, 0) != n}
    if differing and not allow_partial:
        listed = ", ".join(f"{what} {count:,} of {n:,}" for what, (count, n) in differing.items())
        if any(count > n for count, n in differing.values()):
            raise InputError(f"{root}: not the {name} release known here: {listed}; check its version, or {GO_ON}")
        raise InputError(f"{root}: a partial download of {name}: {listed}; fetch the rest, or {GO_ON}")
    return {"whole": not differing, "expected": dict(published), "found": dict(measured)}


def compared(published: Mapping[str, int], measured: Mapping[str, int]) -> pd.DataFrame:
    """Columns count, expected, found, and a remark where they differ; counts without a published number last."""
    lines = []
    for what in [*published, *(what for what in measured if what not in published)]:
        expected, count = published.get(what), measured.get(what, 0)
        remark = "" if expected in (None, count) else f"{count - expected:+,}"
        lines.append((what, "-" if expected is None else f"{expected:,}", f"{count:,}", remark))
    return pd.DataFrame(lines, columns=["count", "expected", "found", ""])
