"""The reports of a release -> their findings and impression; and where MIMIC-CXR keeps its reports.

A report is a text of lines with headings ("FINDINGS:", "IMPRESSION:", ...), as in MIMIC-CXR. An addendum or a wet read
stands above it, and a line of underscores between them. Words removed for privacy read "___"; they are kept.
"""

from __future__ import annotations

import difflib
import re
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cxrclip.data.sources.tables import Unusable, records, to_text
from cxrclip.errors import InputError

if TYPE_CHECKING:
    from cxrclip.data.sources.prepare import Intake

_RULE = re.compile(r"^[ \t]*_{10,}[ \t]*$", re.MULTILINE)
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_SECTION = r"(?:FINDINGS?|Findings?|IMPRESSIONS?|Impressions?|CONCLUSIONS?|Conclusions?)"
# A heading starts a line: one of ours (also without colon, when alone), anything in capitals before a colon, or ours
# beside another word ("Final impression:").
_HEADING = re.compile(
    rf"^[ \t]*(?P<name>{_SECTION}(?=[ \t]*(?::|$))|[A-Z][A-Z0-9 ()/.,&'-]+(?=:(?:\s|$))"
    r"|(?:[A-Z][a-z]+ )?(?i:findings?|impressions?|conclusions?)(?: (?:and|/|&) [a-z]+)?(?=:(?:\s|$)))[ \t]*:?",
    re.MULTILINE,
)
_KINDS = {"FINDING": "findings", "FINDINGS": "findings", "IMPRESSION": "impression", "IMPRESSIONS": "impression",
          "CONCLUSION": "impression", "CONCLUSIONS": "impression"}
_SPELT_LIKE = 0.84  # similarity of "IMRPESSION" to "IMPRESSION": one letter lost, doubled, or two in the wrong order
# A heading of these words alone names the film, and what follows is its description: "CHEST, TWO VIEWS:".
_FILM_WORDS = {
    "CHEST", "THORAX", "VIEW", "VIEWS", "RADIOGRAPH", "RADIOGRAPHS", "RADIOGRAPHY", "XRAY", "FILM", "FILMS",
}
_VIEW_WORDS = {
    "AP", "PA", "LAT", "LATERAL", "FRONTAL", "OBLIQUE", "LORDOTIC", "DECUBITUS", "UPRIGHT", "ERECT", "SUPINE",
    "SEMI", "SEMIERECT", "SEMIUPRIGHT", "PORTABLE", "BEDSIDE", "SINGLE", "ONE", "TWO", "THREE", "FOUR", "1", "2",
    "3", "4", "X", "RAY", "OF", "THE", "AND", "WITH", "RIGHT", "LEFT",
}
_INLINE = re.compile(rf"\s+(?=(?:{_SECTION}|INDICATION|COMPARISON|TECHNIQUE|HISTORY|RECOMMENDATIONS?)[ \t]*:)")
TABLES = ("mimic_cxr_sectioned.csv", "mimic_cxr_sections.csv")
ZIP, FOLDER = "mimic-cxr-reports.zip", "mimic-cxr-reports"


class Sections(NamedTuple):
    """Findings and impression (None where there is none), and how they were come by.

    last_paragraph: the impression is the end of a report without either section.
    addenda: parts above the report proper. dropped: the headings whose text is not kept.
    """

    findings: str | None
    impression: str | None
    last_paragraph: bool = False
    addenda: int = 0
    dropped: tuple[str, ...] = ()


def parse_report(text: str) -> Sections:
    """Find the sections of a report, by the rule of the release's own table of sections (MIT-LCP/mimic-cxr, txt/).

    A heading that has one of our words, also misspelt or beside others ("FINAL IMPRESSION"), begins that section;
    one that names a film ("CHEST, TWO VIEWS") begins findings. "FINDINGS AND IMPRESSION" is findings. Of two sections
    of a kind, the last that says something counts. The report proper is what stands below the last line of
    underscores; what is above it (addenda, wet reads) gives a section only where the report has none of that kind.
    Where no part has either, every paragraph of the last section after its first is the impression.
    """
    parts = [part for part in _RULE.split(text) if part.strip()] or [""]
    sections: dict[str, str] = {}
    dropped: list[str] = []
    for part in reversed(parts):
        split = _sections(part)
        sections = {kind: body for _, kind, body in split if kind and body} | sections
        dropped += [name for name, kind, body in split if body and not kind]
    addenda = len(parts) - 1
    if sections:
        return Sections(sections.get("findings"), sections.get("impression"), False, addenda, tuple(dropped))
    last = _last_paragraphs(parts[-1])
    return Sections(None, last, last is not None, addenda, tuple(dropped))


def _sections(part: str) -> list[tuple[str, str | None, str | None]]:
    """(heading, kind or None, text or None) of each section, in order."""
    headings = list(_HEADING.finditer(part))
    ends = (*(heading.start() for heading in headings[1:]), len(part))
    return [(" ".join(heading["name"].split()), _kind(heading["name"]), _one_line(part[heading.end() : end]))
            for heading, end in zip(headings, ends, strict=False)]


def _kind(heading: str) -> str | None:
    """The section that a heading begins: findings, impression, or None for any other."""
    words = set(re.findall(r"[A-Z0-9]+", heading.upper()))
    kinds = {_kind_of(word) for word in words} - {None}
    if kinds:
        return "findings" if "findings" in kinds else "impression"
    return "findings" if _FILM_WORDS & words and words <= _FILM_WORDS | _VIEW_WORDS else None


@lru_cache(maxsize=10_000)
def _kind_of(word: str) -> str | None:
    """The section that a word names, be it misspelt."""
    close = [known for known in difflib.get_close_matches(word, _KINDS, cutoff=_SPELT_LIKE) if known[0] == word[0]]
    return _KINDS[close[0]] if close else None


def _last_paragraphs(part: str) -> str | None:
    """Every paragraph of the last section after its first: the first is what the heading, or the title, is for.

    A report that is one paragraph without a heading is that paragraph.
    """
    headings = list(_HEADING.finditer(part))
    section = part[headings[-1].end() :] if headings else part
    first, *rest = _BLANK_LINE.split(section.strip())
    is_whole = not headings and not rest and any(letter.islower() for letter in first)  # one paragraph, not a title
    return _one_line(first if is_whole else " ".join(rest))


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


def open_reports(places: Sequence[Path], reports: str | None, intake: Intake) -> Reports:
    """Reports from a table of sections, from the zip file of the release, or from its folder of texts.

    Args:
        places: folders in which they may lie; the last is where texts are looked for in the end.
        reports: path of one of the three, absolute or relative to the first place. None takes what lies in a place.
        intake: where rows of a table that cannot be used are set aside.

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
        return _table(path, intake)
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


def _table(path: Path, intake: Intake) -> Reports:
    names = ("findings", "impression", "last_paragraph")
    table = intake.read_table(path, ("study", *names))
    rows = intake.first_of(((row, (cells["study"], (row, cells))) for row, cells in records(table)), "study", path.name)

    def read(_: str, study: str) -> Sections:
        row, cells = rows[f"s{study}"]
        try:
            findings, impression, last = (to_text(name, cells[name]) for name in names)
        except Unusable as fault:
            raise Unusable(fault.column, fault.reason, row=row, file=path.name) from fault
        return Sections(findings, impression) if findings or impression else Sections(None, last, last is not None)

    return Reports(path.name, lambda _, study: f"s{study}" in rows, read)
