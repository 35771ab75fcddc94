"""The sections of a report: headings in other words, titles, last paragraphs, as the release's own table has them."""

from __future__ import annotations

import pytest

from cxrclip.data.sources.reports import parse_report, with_lines


def report(*paragraphs):
    """A text as MIMIC-CXR stores it: a title line, then paragraphs between lines with one space."""
    return " " * 33 + "FINAL REPORT\n" + "\n \n".join(f" {paragraph}" for paragraph in paragraphs) + "\n"


def said(*paragraphs):
    sections = parse_report(report(*paragraphs))
    return sections.findings, sections.impression


@pytest.mark.parametrize("heading", [
    "FINDINGS", "Findings", "FINDING", "FIDNINGS", "FINDNGS", "FINIDINGS", "CHEST",
    "CHEST, TWO VIEWS", "CHEST, 2 VIEWS",
    "PA AND LATERAL VIEWS OF THE CHEST", "PORTABLE AP CHEST RADIOGRAPH", "CHEST (PA AND LAT)", "SEMI-UPRIGHT AP VIEW",
    "CHEST X-RAY", "REPORT FINDINGS",
])
def test_headings_of_findings(heading):
    assert said("INDICATION:  Cough.", f"{heading}:  The lungs are clear.", "IMPRESSION:  Normal.") == \
        ("The lungs are clear.", "Normal.")


@pytest.mark.parametrize("heading", [
    "IMPRESSION", "Impression", "IMPRESSIONS", "FINAL IMPRESSION", "Final impression", "IMPRESSION AND RECOMMENDATION",
    "IMPRESSION/RECOMMENDATIONS", "IMPRESION", "IMRPESSION", "IMPRESSIN", "IMPPRESSION", "CONCLUSION", "CONLCUSION",
    "Impression and plan",
])
def test_headings_of_the_impression(heading):
    assert said("INDICATION:  Cough.", "FINDINGS:  The lungs are clear.", f"{heading}:  Normal.") == \
        ("The lungs are clear.", "Normal.")


@pytest.mark.parametrize("heading", [
    "COMPARISON", "COMPRESSION", "REASON FOR CHEST X-RAY", "HISTORY", "TECHNIQUE", "CHEST CT", "RECOMMENDATION",
    "NOTIFICATION", "WET READ", "DEPRESSION",
])
def test_other_headings_end_a_section_and_are_named(heading):
    text = report("FINDINGS:  The lungs are clear.", f"{heading}:  Something else.", "IMPRESSION: Ok.")
    sections = parse_report(text)
    assert sections[:2] == ("The lungs are clear.", "Ok.")
    assert sections.dropped == (heading,)


def test_words_inside_a_sentence_are_no_heading():
    text = "Clear at 10:30 AM.\n The next word IMPRESSION: inside a line.\n AT 10:45 the line was moved."
    assert said(f"FINDINGS:  {text}") == (" ".join(line.strip() for line in text.splitlines()), None)


@pytest.mark.parametrize(("paragraphs", "impression"), [
    (("HISTORY:  Cough.", "The lungs are clear.", "No pneumothorax."), "The lungs are clear. No pneumothorax."),
    (("HISTORY:  Pain.", "COMPARISON:  None.", "Large effusion.", "Told by phone."), "Large effusion. Told by phone."),
    (("HISTORY:\n \n Cough.", "The lungs are clear."), "The lungs are clear."),
    (("The heart is large.", "The lungs are clear."), "The lungs are clear."),  # the first goes with the title
    (("EXAMINATION:  Chest.", "INDICATION:  Cough.", "TECHNIQUE:  PA."), None),
    (("INDICATION:  Cough and fever, question pneumonia.", "COMPARISON:  None."), None),
    (("INDICATION: Cough",), None),
    ((), None),
])
def test_without_either_section_the_end_of_the_last_one_counts(paragraphs, impression):
    sections = parse_report(report(*paragraphs))
    assert sections[:3] == (None, impression, impression is not None)


def test_the_title_never_stands_in_a_section():
    for paragraphs in (["FINDINGS:  Clear."], ["HISTORY:  Cough.", "Clear."], ["Chest film.", "Clear."]):
        assert all("FINAL REPORT" not in (text or "") for text in said(*paragraphs))


def test_an_empty_view_heading_is_only_a_title():
    assert said("CHEST, PA AND LATERAL:", "INDICATION:  Cough.", "FINDINGS:  Clear.") == ("Clear.", None)


def test_a_report_on_one_line():
    text = "INDICATION: cough FINDINGS: Clear. IMPRESSION: Normal."
    assert parse_report(with_lines(text))[:2] == ("Clear.", "Normal.")
