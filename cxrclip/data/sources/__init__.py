"""One short module per public data set: its download layout -> the study table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cxrclip.data.settings import checked
from cxrclip.data.sources import chestxray14, chexpert, chexpert5x200, mimic, openi, rsna, siim, table, vindr
from cxrclip.data.sources.account import closing_account
from cxrclip.data.sources.prepare import Source
from cxrclip.errors import InputError
from cxrclip.studies import validate

SOURCES: dict[str, Source] = {source.name: source for source in (
    mimic.SOURCE, chexpert.SOURCE, chexpert5x200.SOURCE, chexpert5x200.MGCA, chestxray14.SOURCE, vindr.SOURCE,
    rsna.SOURCE, siim.SOURCE, openi.SOURCE, table.SOURCE,
)}
"""Name -> `prepare(root, out, *, allow_partial=False, image_size=512, max_rejected=0.05, progress=True, workers=None,
...)`, which reads the download in `root`, writes the study folder `out` and returns its summary (see `Source`)."""


def prepare_from_text(
    source: str, root: str | Path, out: str | Path, allow_partial: bool, options: Sequence[str] = ()
) -> str:
    """Prepare a source, validate the folder and report on it; options are text, as on a command line.

    Args:
        source: a name in `SOURCES`.
        root, out, allow_partial: as of `Source`.
        options: "name=value" each, the value in YAML ("image_size=512", "shares={train: 0.8, test: 0.2}").

    Returns:
        What the folder holds, against what the release should, and what was set aside and why.

    Raises:
        InputError: an unknown source or option, a value of another type, and all that `Source` raises.
    """
    if source not in SOURCES:
        raise InputError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}")
    summary = SOURCES[source](root, out, **{"allow_partial": allow_partial} | parse_options(source, options))
    validate(out)
    return closing_account(Path(out), summary)


def parse_options(source: str, pairs: Sequence[str]) -> dict[str, Any]:
    """The options of a source from "name=value", each in its type; those it does not have are left as they are.

    Raises:
        InputError: no "=", no YAML, or a value of another type.
    """
    known, values = SOURCES[source].options(), {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise InputError(f"option {pair!r}: write NAME=VALUE")
        kind, option = known.get(name, Any), f"option {name}"
        try:
            values[name] = checked(kind, yaml.safe_load(text), option)
        except yaml.YAMLError as error:
            raise InputError(f"{option}: {text!r} is not YAML ({' '.join(str(error).split())})") from error
        except InputError:  # the text itself where YAML reads a name as a number: image=1
            values[name] = checked(kind, text, option)
    return values
