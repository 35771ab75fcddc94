"""Where the reports of MIMIC-CXR come from: its folder of texts, its zip file, or a table of sections."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cxrclip.data.sources.report_text import Sections, parse_report
from cxrclip.data.sources.tables import Unusable, read_table, records, to_text
from cxrclip.errors import InputError

TABLES = ("mimic_cxr_sectioned.csv", "mimic_cxr_sections.csv")
ZIP, FOLDER = "mimic-cxr-reports.zip", "mimic-cxr-reports"


class Reports(NamedTuple):
    """Where the reports of a download come from, and two functions of (subject, study).

    Args:
        where: the name of the file or folder.
        has: is there a report?
        read: its sections; raises `Unusable` where it cannot be read.
    """

    where: str
    has: Callable[[str, str], bool]
    read: Callable[[str, str], Sections]


def open_reports(places: Sequence[Path], reports: str | None) -> Reports:
    """Reports from a table of sections, from the zip file of the release, or from its folder of texts.

    Args:
        places: folders in which they may lie; the last is where texts are looked for in the end.
        reports: path of one of the three, absolute or relative to the first place. None takes what lies in a place.

    Raises:
        InputError: `reports` names nothing, or a table lacks a column.
    """
    if reports is not None:
        path = places[0] / reports
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; name the reports of MIMIC-CXR, or leave `reports` out")
    else:
        known = (place / name for place in places for name in (*TABLES, ZIP, FOLDER))
        path = next((path for path in known if path.exists()), places[-1])
    if path.is_dir():
        return _texts(path.name, lambda name: (path / name).is_file(), lambda name: (path / name).read_bytes())
    return _zip(path) if path.suffix == ".zip" else _table(path)


def report_name(subject: str, study: str) -> str:
    """files/p10/p10000032/s50414267.txt"""
    return f"files/p{subject[:2]}/p{subject}/s{study}.txt"


def _zip(path: Path) -> Reports:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip file ({error}); download it again") from error
    members = {name[name.find("files/") :]: name for name in archive.namelist() if name.endswith(".txt")}
    return _texts(path.name, members.__contains__, lambda name: archive.read(members[name]))


def _texts(where: str, has: Callable[[str], bool], read_bytes: Callable[[str], bytes]) -> Reports:
    def read(subject: str, study: str) -> Sections:
        name = report_name(subject, study)
        try:
            return parse_report(read_bytes(name).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Unusable("report", f"byte {error.start} is no UTF-8; copy the file again", file=name) from error
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unusable("report", f"cannot be read from {where} ({reason})", file=name) from error

    return Reports(where, lambda subject, study: has(report_name(subject, study)), read)


def _table(path: Path) -> Reports:
    names = ("findings", "impression", "last_paragraph")
    table = read_table(path, ("study", *names), only=True)
    rows = {cells["study"]: (row, cells) for row, cells in records(table)}

    def read(_: str, study: str) -> Sections:
        row, cells = rows[f"s{study}"]
        try:
            findings, impression, last = (to_text(name, cells[name]) for name in names)
        except Unusable as fault:
            raise Unusable(fault.column, fault.reason, row=row, file=path.name) from fault
        return Sections(findings, impression) if findings or impression else Sections(None, last, last is not None)

    return Reports(path.name, lambda _, study: f"s{study}" in rows, read)
