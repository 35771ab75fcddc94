"""The text of a report -> its findings and impression.

A report is a text of lines with headings ("FINDINGS:", "IMPRESSION:", ...), as in MIMIC-CXR. An addendum or a wet read
stands above it, and a line of underscores between them. Words removed for privacy read "___"; they are kept.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from cxrclip.data.sources.tables import to_text

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
        sections = {kind: body for kind, body in _sections(part) if body} | sections
    if sections:
        return Sections(sections.get("findings"), sections.get("impression"), False, len(parts) - 1)
    last = _last_paragraph(parts[-1])
    return Sections(None, last, last is not None, len(parts) - 1)


def _sections(part: str) -> list[tuple[str, str | None]]:
    """(kind, text) of each findings or impression section, in order."""
    headings = list(_HEADING.finditer(part))
    ends = [heading.start() for heading in headings[1:]] + [len(part)] * bool(headings)
    kinds = [(_kind(heading["name"]), part[heading.end() : end]) for heading, end in zip(headings, ends, strict=True)]
    return [(kind, _one_line(body)) for kind, body in kinds if kind]


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
            return _one_line(body)
    return None


def _one_line(text: str) -> str | None:
    """The text on one line; None where it has no letter."""
    return to_text("report", text) if any(letter.isalpha() for letter in text) else None


def with_lines(text: str) -> str:
    """A report that was exported on one line, with a line for each heading again; others are returned as they are."""
    return text if "\n" in text.strip() else _INLINE.sub("\n", text)
