"""The public counts of a release against those of a download: which one is this, and is it whole?"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm import tqdm

from cxrclip.errors import InputError

GO_ON = "set ALLOW_PARTIAL=1 (allow_partial=True) to go on"


def check_counts(
    name: str,
    root: Path,
    expected: Mapping[str, int],
    found: Mapping[str, int],
    *,
    allow_partial: bool,
    progress: bool,
) -> dict[str, Any]:
    """Compare what a download holds with the public counts of its release, before any film is read.

    Args:
        name: of the source, for the message.
        root: folder of the download.
        expected: what is counted -> the public count.
        found: the same counts here; may hold others, which are only reported.
        allow_partial: go on where counts differ.
        progress: print the two side by side.

    Returns:
        What `dataset.json` keeps: {"whole": bool, "expected": {...}, "found": {...}}.

    Raises:
        InputError: counts differ and `allow_partial` is off. Fewer than expected is a partial download, more is
            another version of the release.
    """
    if progress:
        tqdm.write(f"{name}:\n{compared(expected, found).to_string(index=False)}", file=sys.stderr)
    differing = {what: (found.get(what, 0), count) for what, count in expected.items() if found.get(what, 0) != count}
    if differing and not allow_partial:
        said = ", ".join(f"{what} {here:,} of {count:,}" for what, (here, count) in differing.items())
        if any(here > count for here, count in differing.values()):
            raise InputError(f"{root}: not the {name} release known here: {said}; check its version, or {GO_ON}")
        raise InputError(f"{root}: a partial download of {name}: {said}; fetch the rest, or {GO_ON}")
    return {"whole": not differing, "expected": dict(expected), "found": dict(found)}


def compared(expected: Mapping[str, int], found: Mapping[str, int]) -> pd.DataFrame:
    """Columns count, expected, found, and a remark where they differ; counts without a public number last."""
    lines = []
    for what in [*expected, *(what for what in found if what not in expected)]:
        public, here = expected.get(what), found.get(what, 0)
        remark = "" if public in (None, here) else f"{here - public:+,}"
        lines.append((what, "-" if public is None else f"{public:,}", f"{here:,}", remark))
    return pd.DataFrame(lines, columns=["count", "expected", "found", ""])
