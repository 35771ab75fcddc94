"""`python -m cxrclip.data.sources`: one download, as it lies on disk -> one checked study folder.

    python -m cxrclip.data.sources --source chestxray14 --root NIH --out studies/c14 --option image_size=256
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from cxrclip.data.sources import SOURCES
from cxrclip.data.sources.counts import compared
from cxrclip.data.sources.intake import COUNTED, Writing
from cxrclip.data.sources.table import Columns
from cxrclip.errors import InputError
from cxrclip.studies import validate

SHOWN = ("split", "studies", "patients", "images", "two_views", "findings", "impression", "labelled")


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare one source. Faults of the input are one line on stderr and status 2."""
    parser = argparse.ArgumentParser(prog="python -m cxrclip.data.sources", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--source", required=True, help=f"one of {', '.join(SOURCES)}")
    parser.add_argument("--root", required=True, type=Path, help="folder of the download")
    parser.add_argument("--out", required=True, type=Path, help="study folder to write")
    parser.add_argument("--allow-partial", action="store_true", help="go on where counts are not those of the release")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="a parameter of the source, its value in YAML; several may be given")
    given = parser.parse_args(arguments)
    try:
        if given.source not in SOURCES:
            raise InputError(f"unknown source {given.source!r}: choose one of {', '.join(SOURCES)}")
        options = read_options(given.source, given.option)
        table = SOURCES[given.source](given.root, given.out, **{"allow_partial": given.allow_partial} | options)
        validate(given.out)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(report(given.out, table))
    return 0


def read_options(source: str, pairs: Sequence[str]) -> dict[str, Any]:
    """"key=value" pairs as parameters of the source's `prepare`.

    Raises:
        InputError: no "=", a value that is no YAML, or a parameter which the source does not have.
    """
    known = set(inspect.signature(SOURCES[source]).parameters) - {"root", "out", "writing", "columns"}
    known |= {field.name for field in fields(Columns)} if source == "table" else set(Writing.__annotations__)
    options = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise InputError(f"--option {pair!r}: write KEY=VALUE")
        if key not in known:
            raise InputError(f"--option {key!r}: {source} has no such parameter; it has {', '.join(sorted(known))}")
        try:
            options[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"--option {key}: {value!r} is not YAML ({' '.join(str(error).split())})") from error
    return options


def report(folder: Path, table: pd.DataFrame) -> str:
    """What stands in a study folder, against what the release should hold, and what was set aside, as text."""
    facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    about, lines = facts["about"], [table[list(SHOWN)].to_string(index=False), ""]
    if counts := about.get("counts"):
        whole = "the whole release" if counts["whole"] else "NOT the whole release"
        lines += [f"The download is {whole}:", compared(counts["expected"], counts["found"]).to_string(index=False), ""]
    counted = {name: about[name] for name in COUNTED if about.get(name)}
    lines += [f"{count:,} {name.replace('_', ' ')}" for name, count in counted.items()]
    lines += _set_aside(folder / "rejected.csv") if facts["rejected"] else ["nothing set aside"]
    return "\n".join([*lines, f"{facts['studies']:,} studies are in {folder}"])


def _set_aside(path: Path) -> list[str]:
    """How many rows of which file and column were set aside, each with its first reason."""
    aside = pd.read_csv(path, dtype=str, keep_default_na=False)
    lines = [f"{len(aside):,} set aside, listed in {path}:"]
    for (file, column), reasons in aside.groupby(["file", "column"], sort=False)["reason"]:
        lines.append(f"  {len(reasons):,} in {file}, column {column}, the first: {reasons.iloc[0]}")
    return lines


if __name__ == "__main__":
    sys.exit(main())
