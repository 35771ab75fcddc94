"""The reports of a release -> their findings and impression; and where MIMIC-CXR keeps its reports.

A report is a text of lines with headings ("FINDINGS:", "IMPRESSION:", ...), as in MIMIC-CXR. An addendum or a wet read
stands above it, and a line of underscores between them. Words removed for privacy read "___"; they are kept.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from cxrclip.data.sources.tables import Unusable, read_table, records, to_text
from cxrclip.errors import InputError

_RULE = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_SECTION = r"(?:FINDINGS?|Findings?|IMPRESSIONS?|Impressions?|CONCLUSIONS?|Conclusions?)"
# A heading starts a line: one of ours (also without colon, when alone), or anything in capitals before a colon.
_HEADING = re.compile(
    rf"^[ \t]*(?P<name>{_SECTION}(?=[ \t]*(?::|$))|[A-Z][A-Z ()/,&'-]+(?=:))[ \t]*:?", re.MULTILINE
)
_KINDS = {"FINDING": "findings", "IMPRESSION": "impression", "CONCLUSION": "impression"}
_BOTH = re.compile(r"(FINDINGS?|IMPRESSIONS?)\s*(AND|/|&)\s*(FINDINGS?|IMPRESSIONS?)")
# What a paragraph under these headings says is not what the film shows.
_BACKGROUND = ("EXAM", "STUDY", "INDICATION", "HISTORY", "CLINICAL", "REASON", "TECHNIQUE", "COMPARISON", "DATE",
               "NOTIFICATION", "RECOMMENDATION", "WET READ", "ADDENDUM")
_INLINE = re.compile(rf"\s+(?=(?:{_SECTION}|INDICATION|COMPARISON|TECHNIQUE|HISTORY|RECOMMENDATIONS?)[ \t]*:)")
TABLES = ("mimic_cxr_sectioned.csv", "mimic_cxr_sections.csv")
ZIP, FOLDER = "mimic-cxr-reports.zip", "mimic-cxr-reports"


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
    sections: dict[str, str] = {}
    for part in reversed(parts):
        sections = _sections(part) | sections
    last = None if sections else _last_paragraph(parts[-1])
    return Sections(sections.get("findings"), sections.get("impression", last), last is not None, len(parts) - 1)


def _sections(part: str) -> dict[str, str]:
    """Findings and impression of a part of a report, where they say something."""
    headings = list(_HEADING.finditer(part))
    sections = {}
    for heading, end in zip(headings, [*(heading.start() for heading in headings[1:]), len(part)], strict=False):
        name = heading["name"].upper().strip()
        kind = "findings" if _BOTH.fullmatch(name) else _KINDS.get(name.removesuffix("S"))
        if kind and (body := _one_line(part[heading.end() : end])):
            sections[kind] = body
    return sections


def _last_paragraph(part: str) -> str | None:
    for paragraph in reversed(re.split(r"\n[ \t]*\n", part)):
        heading = _HEADING.match(paragraph)
        if heading and any(word in heading["name"].upper() for word in _BACKGROUND):
            continue
        body = paragraph[heading.end() :] if heading else paragraph
        if any(letter.islower() for letter in body):  # else a title, or the end of a form
            return _one_line(body)
    return None


def _one_line(text: str) -> str | None:
    """The text on one line; None where it has no letter."""
    return to_text("report", text) if any(letter.isalpha() for letter in text) else None


def with_lines(text: str) -> str:
    """A report that was exported on one line, with a line for each heading again; others are returned as they are."""
    return text if "\n" in text.strip() else _INLINE.sub("\n", text)


class Reports(NamedTuple):
    """The reports of a MIMIC-CXR download by (subject, study): whether there is one, and its sections.

    `where` names the file or folder. `read` raises `Unusable` where a report cannot be read.
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
        InputError: `reports` names nothing, a damaged zip file, or a table that lacks a column.
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
    if path.suffix != ".zip":
        return _table(path)
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable zip file ({error}); download it again") from error
    members = {name[name.find("files/") :]: name for name in archive.namelist() if name.endswith(".txt")}
    return _texts(path.name, members.__contains__, lambda name: archive.read(members[name]))


def _texts(where: str, has: Callable[[str], bool], read_bytes: Callable[[str], bytes]) -> Reports:
    def file_name(subject: str, study: str) -> str:
        return f"files/p{subject[:2]}/p{subject}/s{study}.txt"

    def read(subject: str, study: str) -> Sections:
        name = file_name(subject, study)
        try:
            return parse_report(read_bytes(name).decode("utf-8"))
        except UnicodeDecodeError as error:
            raise Unusable("report", f"byte {error.start} is no UTF-8; copy the file again", file=name) from error
        except (OSError, zipfile.BadZipFile, zlib.error) as error:
            reason = getattr(error, "strerror", None) or error
            raise Unusable("report", f"cannot be read from {where} ({reason})", file=name) from error

    return Reports(where, lambda subject, study: has(file_name(subject, study)), read)


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
