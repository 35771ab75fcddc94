"""Open-I, the Indiana University chest X-ray collection: 3,955 reports with 7,470 films, frontal and lateral.

Release: https://openi.nlm.nih.gov/faq (NLMCXR_reports.tgz, NLMCXR_png.tgz), CC BY-NC-ND 4.0. Cite
Demner-Fushman et al., "Preparing a collection of radiology examinations for distribution and retrieval",
JAMIA 23(2), 2016. A mirror on Kaggle (raddar/chest-xrays-indiana-university) has 3,851 of the reports as two
CSV files, and says for every film whether it is frontal or lateral, which the release does not.

Words removed for privacy read "XXXX" in the reports. They are kept: the paper's test reports have them too.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from cxrclip.data.sources.prepare import FRONTAL, LATERAL, UNKNOWN, Film, Intake, Source, Study
from cxrclip.data.sources.splits import SHARES, split_patients
from cxrclip.data.sources.tables import Unusable, records, to_text
from cxrclip.errors import InputError
from cxrclip.studies import SPLITS

REPORTS, PROJECTIONS, XML = "indiana_reports.csv", "indiana_projections.csv", "ecgen-radiology"
COLUMNS = ("uid", "filename", "projection")
KINDS = ("*.png", "*.jpg", "*.dcm")  # the first goes before the others
EXPECTED = {
    XML: {"reports": 3_955, "films named": 7_470, "with findings": 3_425, "with impression": 3_921,
          "with both sections": 3_419, "images": 7_470},
    REPORTS: {"reports": 3_851, "films named": 7_466, "images": 7_466},
}
VIEWS = {"frontal": FRONTAL, "lateral": LATERAL}


class Report(NamedTuple):
    """One report of either layout: its number, its sections, and the names of its films."""

    uid: str
    findings: str
    impression: str
    films: list[str]


def read(
    intake: Intake, *, split: str | None = "test", shares: Mapping[str, float] = SHARES, seed: int = 0,
    frontal_only: bool = False,
) -> None:
    """Read an Open-I download: one report is one study, frontal films first. Films may lie anywhere below `root`.

    Reads the XML reports (ecgen-radiology/) where they are, else the two CSV files of the mirror.

    Views come from indiana_projections.csv where it is present. Without it a rule decides: the first film of a report
    is frontal, the second of two is lateral, any other is UNKNOWN. Among the two-film reports whose DICOM header names
    a lateral, that is the second film in 695 of 777. (The header itself is no help: it is empty, or calls laterals PA.)

    The release has no patient numbers: every report counts as one patient. Reports without any text are unusable.

    Args:
        split: the split of every study; "test" is the paper's use. None splits by report in `shares`.
        shares: split -> share of the reports, when `split` is None.
        seed: of the split.
        frontal_only: leave out every film that is not frontal, as the paper does; a report without one is skipped.
    """
    root = intake.root
    if split is not None and split not in SPLITS:
        raise InputError(f"openi: unknown split {split!r}; the splits are {', '.join(SPLITS)}")
    named = intake.read_table(root / PROJECTIONS, COLUMNS) if (root / PROJECTIONS).is_file() else None
    listed = () if named is None else zip(named["filename"].map(_key), named["projection"].str.lower(), strict=True)
    views = {name: VIEWS.get(view, UNKNOWN) for name, view in listed}
    paths = [path for kind in KINDS for path in sorted(root.rglob(kind))]
    films = {_key(path.name): path for path in reversed(paths)}  # where one lies there twice, the first
    intake.file = XML if (root / XML).is_dir() else REPORTS
    reports = list(xml_reports(root / XML) if intake.file == XML else _csv_reports(intake, named))
    present = any(isinstance(report, Unusable) or films.keys() & set(report.films) for report in reports)
    intake.need(present, f"no film of {len(reports):,} reports is here; download NLMCXR_png.tgz")
    intake.count(EXPECTED[intake.file], counts(reports, films, views))
    intake.facts |= {"frontal_only": frontal_only, "split": split or "seeded by report"}
    intake.facts |= {"seed": seed, "shares": dict(shares)}
    tallies = ("not_downloaded", "without_film", "missing_films", "guessed_views", "without_frontal")
    intake.facts |= dict.fromkeys(tallies, 0)
    intake.take(enumerate(reports, 1), partial(_study, films=films, views=views, intake=intake, split=split or ""))
    intake.splits = {} if split else split_patients((study.patient_id for study in intake.studies), shares, seed)


SOURCE = Source("openi", "the Open-I download", read, "https://openi.nlm.nih.gov/faq, CC BY-NC-ND 4.0")


def counts(reports: list[Report | Unusable], films: Mapping[str, Path], views: Mapping[str, str]) -> dict[str, int]:
    """The counts of `EXPECTED` in this download."""
    readable = [report for report in reports if isinstance(report, Report)]
    sections = [(bool(report.findings.strip()), bool(report.impression.strip())) for report in readable]
    named = [{name: _view(report.films, name, views) for name in report.films} for report in readable]
    return {
        "reports": len(reports),
        "films named": sum(len(report.films) for report in readable),
        "with findings": sum(findings for findings, _ in sections),
        "with impression": sum(impression for _, impression in sections),
        "with both sections": sections.count((True, True)),
        "images": len(films.keys() & set().union(*named)),
        "with a frontal film": sum(FRONTAL in views.values() for views in named),
    }


def _study(
    report: Report, films: Mapping[str, Path], views: Mapping[str, str], intake: Intake, split: str
) -> Study | None:
    present = [name for name in report.films if name in films]
    intake.tally("missing_films", len(report.films) - len(present))
    intake.tally("guessed_views", sum(name not in views for name in present))
    if not present:
        intake.tally("not_downloaded" if report.films else "without_film")
        return None
    viewed = [Film(films[name], _view(report.films, name, views)) for name in present]
    frontal = [film for film in viewed if film.view == FRONTAL]
    if intake.facts["frontal_only"] and not frontal:
        intake.tally("without_frontal")
        return None
    other = [] if intake.facts["frontal_only"] else [film for film in viewed if film.view != FRONTAL]
    sections = [to_text(name, getattr(report, name)) for name in ("findings", "impression")]
    if not any(sections):
        raise Unusable("findings, impression", f"report {report.uid} has no text")
    return Study(f"CXR{report.uid}", f"CXR{report.uid}", frontal + other, split, *sections)


def _key(name: str) -> str:
    """One name for a film in both layouts: CXR1_1_IM-0001-3001.png and 1_IM-0001-3001.dcm.png lose what differs."""
    return name.removesuffix(".png").removesuffix(".jpg").removesuffix(".dcm").removeprefix("CXR")


def _view(films: list[str], name: str, views: Mapping[str, str]) -> str:
    """The view of one of a report's `films`: as the mirror's table says, else by its place."""
    guess = FRONTAL if name == films[0] else LATERAL if len(films) == 2 else UNKNOWN
    return views.get(name, guess)


def xml_reports(folder: Path) -> Iterator[Report | Unusable]:
    """The reports of the release by number; `Unusable` in the place of one that cannot be read."""
    paths = sorted(folder.glob("*.xml"), key=lambda path: (len(path.stem), path.stem))
    if not paths:
        raise InputError(f"{folder}: no XML report; unpack NLMCXR_reports.tgz here")
    for path in paths:
        try:
            tree = ET.parse(path)
        except (ET.ParseError, OSError, ValueError, LookupError) as error:  # the last two: its encoding
            yield Unusable(path.name, f"not a readable XML file ({error})")
            continue
        sections = {"FINDINGS": "", "IMPRESSION": ""}
        for node in tree.iter("AbstractText"):
            if (label := node.get("Label", "")) in sections:
                sections[label] += " " + "".join(node.itertext())
        names = [_key(node.get("id", "")) for node in tree.iter("parentImage")]
        yield Report(path.stem, sections["FINDINGS"], sections["IMPRESSION"], names)


def _csv_reports(intake: Intake, named: pd.DataFrame | None) -> Iterator[Report]:
    path = intake.root / REPORTS
    intake.need(path.is_file(), f"neither {XML}/ nor {REPORTS}; give the folder of an Open-I download")
    intake.need(named is not None, f"{REPORTS} without {PROJECTIONS}, which names the films; download it too")
    films = named["filename"].map(_key).groupby(named["uid"]).agg(list)
    for _, cells in records(intake.read_table(path, ("uid", "findings", "impression"))):
        yield Report(cells["uid"], cells["findings"], cells["impression"], films.get(cells["uid"], []))
