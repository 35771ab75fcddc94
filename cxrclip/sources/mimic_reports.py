"""The reports of MIMIC-CXR: free text -> findings and impression.

A report is a text of lines with headings ("FINDINGS:", "IMPRESSION:", ...). An addendum or a wet read stands above it,
and a line of underscores between them. Words removed for privacy read "___"; they are kept.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cxrclip.errors import InputError
from cxrclip.sources.intake import Unusable, read_table, records, to_text

TABLES = ("mimic_cxr_sectioned.csv", "mimic_cxr_sections.csv")
ZIP, FOLDER = "mimic-cxr-reports.zip", "mimic-cxr-reports"
_RULE = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_OURS = r"(?:FINDINGS?|Findings?|IMPRESSIONS?|Impressions?|CONCLUSIONS?|Conclusions?)"
# A heading starts a line: one of ours (also without colon, when alone), or anything in capitals before a colon.
_HEADING = re.compile(
    rf"^[ \t]*(?P<name>{_OURS}(?=[ \t]*(?::|$))|[A-Z][A-Z ()/,&'-]+(?=:))[ \t]*:?", re.MULTILINE
)
_KINDS = {"FINDING": "findings", "IMPRESSION": "impression", "CONCLUSION": "impression"}
_BOTH = re.compile(r"(FINDINGS?|IMPRESSIONS?)\s*(AND|/|&)\s*(FINDINGS?|IMPRESSIONS?)")
# What a paragraph under these headings says is not what the film shows.
_BACKGROUND = ("EXAM", "STUDY", "INDICATION", "HISTORY", "CLINICAL", "REASON", "TECHNIQUE", "COMPARISON", "DATE",
               "NOTIFICATION", "RECOMMENDATION", "WET READ", "ADDENDUM")


class Sections(NamedTuple):
    """Findings and impression (None where there is none), and how they were come by."""

    findings: str | None
    impression: str | None
    last_paragraph: bool = False
    addenda: int = 0


def parse_report(text: str) -> Sections:
    """Find the sections of a report.

    The report proper is what stands below the last line of underscores. What is above it (addenda, wet reads) gives a
    section only where the report has none of that kind. Of two sections of a kind, the last that says something
    counts. "FINDINGS AND IMPRESSION" is findings. Where no part has either, the last paragraph is the impression, if
    it is no history, comparison or title.
    """
    parts = [part for part in _RULE.split(text) if part.strip()] or [""]
    found: dict[str, str] = {}
    for part in reversed(parts):
        here = {kind: body for kind, body in _sections(part) if body}
        found = here | found
    if found:
        return Sections(found.get("findings"), found.get("impression"), False, len(parts) - 1)
    last = _last_paragraph(parts[-1])
    return Sections(None, last, last is not None, len(parts) - 1)


def _sections(part: str) -> list[tuple[str, str | None]]:
    """(kind, text) of each findings or impression section, in order."""
    headings = list(_HEADING.finditer(part))
    ends = [heading.start() for heading in headings[1:]] + [len(part)] * bool(headings)
    kinds = [(_kind(heading["name"]), part[heading.end() : end]) for heading, end in zip(headings, ends, strict=True)]
    return [(kind, _said(body)) for kind, body in kinds if kind]


def _kind(heading: str) -> str | None:
    name = heading.upper().strip()
    return "findings" if _BOTH.fullmatch(name) else _KINDS.get(name.removesuffix("S"))


def _last_paragraph(part: str) -> str | None:
    for paragraph in reversed(re.split(r"\n[ \t]*\n", part)):
        heading = _HEADING.match(paragraph)
        if heading and any(word in heading["name"].upper() for word in _BACKGROUND):
            continue
        body = paragraph[heading.end() :] if heading else paragraph
        if any(letter.islower() for letter in body):  # else a title, or the end of a form
            return _said(body)
    return None


def _said(text: str) -> str | None:
    """The text on one line; None where it has no letter."""
    return to_text("report", text) if any(letter.isalpha() for letter in text) else None


@dataclass(frozen=True)
class Reports:
    """Where the reports of a download come from.

    has(subject, study): is there one? read(subject, study): its sections; `Unusable` where it cannot be read.
    """

    where: str
    has: Callable[[str, str], bool]
    read: Callable[[str, str], Sections]


def open_reports(root: Path, reports: str | None) -> Reports:
    """Reports from a table of sections, from the zip file of the release, or from its folder of texts.

    Args:
        root: folder of the download.
        reports: path of one of the three, absolute or relative to `root`. None takes what lies in `root`.

    Raises:
        InputError: `reports` names nothing, or a table lacks a column.
    """
    if reports is not None:
        path = root / reports
        if not path.exists():
            raise InputError(f"{path}: no such file or folder; name the reports of MIMIC-CXR, or leave `reports` out")
    else:
        path = next((root / name for name in (*TABLES, ZIP, FOLDER) if (root / name).exists()), root)
    if path.is_dir():
        return _folder(path)
    return _zip(path) if path.suffix == ".zip" else _table(path)


def report_name(subject: str, study: str) -> str:
    """files/p10/p10000032/s50414267.txt"""
    return f"files/p{subject[:2]}/p{subject}/s{study}.txt"


def _folder(folder: Path) -> Reports:
    def read(subject: str, study: str) -> Sections:
        name = report_name(subject, study)
        try:
            return _decoded((folder / name).read_bytes(), name)
        except OSError as error:
            raise Unusable("report", f"cannot be read ({error.strerror})", file=name) from error

    return Reports(folder.name, lambda subject, study: (folder / report_name(subject, study)).is_file(), read)


def _zip(path: Path) -> Reports:
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip file ({error}); download it again") from error
    members = {name[name.find("files/") :]: name for name in archive.namelist() if name.endswith(".txt")}

    def read(subject: str, study: str) -> Sections:
        name = report_name(subject, study)
        try:
            return _decoded(archive.read(members[name]), name)
        except (OSError, zipfile.BadZipFile, zipfile.zlib.error) as error:
            raise Unusable("report", f"damaged in {path.name} ({error})", file=name) from error

    return Reports(path.name, lambda subject, study: report_name(subject, study) in members, read)


def _decoded(data: bytes, name: str) -> Sections:
    try:
        return parse_report(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unusable("report", f"byte {error.start} is no UTF-8; copy the file again", file=name) from error


def _table(path: Path) -> Reports:
    table = read_table(path, ("study", "findings", "impression", "last_paragraph"), only=True)
    rows = {cells["study"]: (row, cells) for row, cells in records(table)}

    def read(_: str, study: str) -> Sections:
        row, cells = rows[f"s{study}"]
        try:
            findings, impression, last = (
                to_text(name, cells[name]) for name in ("findings", "impression", "last_paragraph")
            )
        except Unusable as fault:
            raise Unusable(fault.column, fault.reason, row=row, file=path.name) from fault
        if findings or impression:
            return Sections(findings, impression)
        return Sections(None, last, last is not None)

    return Reports(path.name, lambda _, study: f"s{study}" in rows, read)
