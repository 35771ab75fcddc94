"""Real metadata without a download: label tables and reports that the package torchxrayvision carries.

ChestX-ray14, CheXpert, RSNA and SIIM labels, the Kaggle boxes of VinDr's films, and the 3,955 Open-I reports lie
in its folder `data`. They are read as files; the package's code is never imported. There are no films here, so
what can be known is sizes, splits, label and section statistics, and how often two studies say the same. Cite
the data sets (DATA.md), and Cohen et al., "TorchXRayVision: A library of chest X-ray datasets and models",
MIDL 2022, for the package.
"""

from __future__ import annotations

import importlib.util
import tarfile
import tempfile
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Hashable, Iterable
from functools import cache
from pathlib import Path

import pandas as pd

from cxrclip.data.sources import openi
from cxrclip.data.sources import siim as siim_release
from cxrclip.data.sources.chexpert_format import FINDINGS as CHEXPERT_LABELS
from cxrclip.data.sources.chexpert_format import STATES, patients_of
from cxrclip.data.sources.splits import gloria_split, train_valid_split
from cxrclip.data.sources.tables import Unusable, read_table, to_text
from cxrclip.errors import InputError
from cxrclip.studies import SPLITS


def data_folder() -> Path:
    """Where torchxrayvision keeps its tables; raises InputError where it is not installed."""
    spec = importlib.util.find_spec("torchxrayvision")  # finds the package without running its code
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places or not (Path(places[0]) / "data").is_dir():
        raise InputError("the package torchxrayvision with its folder data is not here; pip install torchxrayvision")
    return Path(places[0]) / "data"


@cache
def nih() -> pd.DataFrame:
    """ChestX-ray14, one row a film: image, findings (as the release joins them), patient_id."""
    names = {"Image Index": "image", "Finding Labels": "findings", "Patient ID": "patient_id"}
    return read_table(data_folder() / "Data_Entry_2017_v2020.csv.gz", names, only=True).rename(columns=names)


@cache
def chexpert() -> pd.DataFrame:
    """CheXpert's train.csv, one row a film: image (path), patient_id, and 14 label columns.

    A label is "positive", "negative", "uncertain" or "" (not mentioned).
    """
    table = read_table(data_folder() / "chexpert_train.csv.gz", ("Path", *CHEXPERT_LABELS))
    labels = {name: table[name].str.removesuffix(".0").map(STATES) for name in CHEXPERT_LABELS}
    return pd.DataFrame({"image": table["Path"], "patient_id": patients_of(table["Path"])} | labels)


@cache
def rsna() -> pd.DataFrame:
    """RSNA Pneumonia 2018, one row a film, i.e. a patient: image, patient_id, rows (of the table), pneumonia, split."""
    boxes = read_table(data_folder() / "kaggle_stage_2_train_labels.csv.zip", ("patientId", "Target"))
    ill = boxes.assign(ill=boxes["Target"] == "1").groupby("patientId")["ill"]
    films = ill.agg(rows="size", pneumonia="any").rename_axis("image").reset_index()
    return films.assign(patient_id=films["image"], split=films["image"].map(gloria_split(films["image"])))


@cache
def siim() -> pd.DataFrame:
    """SIIM-ACR Pneumothorax 2019, one row a mask: image, pneumothorax, and two splits.

    `split` is by film. `row_split` is by row, as GLoRIA and MGCA cut it: a film with several masks can then be
    in train and in test (see `siim_leak`).
    """
    table = read_table(data_folder() / "siim-pneumothorax-train-rle.csv.gz", siim_release.COLUMNS)
    rows = pd.DataFrame({"image": table["ImageId"], "pneumothorax": table["EncodedPixels"] != siim_release.NO_MASK})
    rows["split"] = rows["image"].map(gloria_split(rows["image"]))
    return rows.assign(row_split=rows.index.map(gloria_split(range(len(rows)))))


def siim_leak() -> tuple[int, int]:
    """Films with a pneumothorax in the test part of `row_split`: how many are also in train, and how many there are."""
    rows = siim()
    tested = set(rows.loc[(rows["row_split"] == "test") & rows["pneumothorax"], "image"])
    return len(tested & set(rows.loc[rows["row_split"] == "train", "image"])), len(tested)


@cache
def vindr() -> pd.DataFrame:
    """The 15,000 training films of VinDr-CXR by Kaggle's numbers, one row a film: image, readers, split."""
    boxes = read_table(data_folder() / "vinbigdata-train.csv.gz", ("image_id", "rad_id"))
    films = boxes.groupby("image_id")["rad_id"].nunique().rename_axis("image").reset_index(name="readers")
    return films.assign(split=films["image"].map(train_valid_split(films["image"])))


@cache
def open_i() -> pd.DataFrame:
    """The Open-I reports, read by the code that reads a download.

    Columns uid, findings, impression ("" if absent), images, normal (its only major MeSH code is "normal").
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder, tarfile.open(data_folder() / "NLMCXR_reports.tgz") as archive:
        archive.extractall(folder, filter="data")
        for report in openi.xml_reports(Path(folder) / openi.XML):
            if isinstance(report, Unusable):
                raise InputError(f"NLMCXR_reports.tgz: {report}")
            sections = (to_text(name, getattr(report, name)) or "" for name in ("findings", "impression"))
            codes = {code.text for code in ET.parse(Path(folder) / openi.XML / f"{report.uid}.xml").iter("major")}
            rows.append((report.uid, *sections, len(report.films), codes == {"normal"}))
    return pd.DataFrame(rows, columns=["uid", "findings", "impression", "images", "normal"])


def sizes() -> pd.DataFrame:
    """What the packaged tables say of Table 1, a line a data set.

    Columns name, rows (of the table), images, patients, train, valid, test (missing where the rule needs a list that
    is not in the package), rule (how the splits were made, or what is missing).
    """
    masks, boxes, readings = siim(), rsna(), vindr()
    films = masks.drop_duplicates("image")
    lines = [
        ("chestxray14", len(nih()), nih(), (), "needs train_val_list.txt and test_list.txt"),
        ("chexpert", len(chexpert()), chexpert(), (), "needs the list of the 5x200 test patients"),
        ("vindr-cxr", readings["readers"].sum(), readings, readings["split"],
         "80 / 20 by film, seed 0; rows are readings; the 3,000 test films are not here"),
        ("rsna", boxes["rows"].sum(), boxes, boxes["split"], "GLoRIA: 70 / 15 / 15 by patient, seed 0"),
        ("siim", len(masks), films, films["split"], "GLoRIA's shares by film"),
        ("siim (by row)", len(masks), films, masks["row_split"], "GLoRIA: 70 / 15 / 15 by row, which leaks"),
        ("openi", len(open_i()), {"image": range(open_i()["images"].sum())}, (), "a test set: all reports"),
    ]
    table = [(name, rows, len(set(table["image"])), len(set(table.get("patient_id", ()))) or None,
              *(Counter(splits)[split] or None for split in SPLITS), rule) for name, rows, table, splits, rule in lines]
    columns = ["name", "rows", "images", "patients", *SPLITS, "rule"]
    return pd.DataFrame(table, columns=columns).astype(dict.fromkeys(("patients", *SPLITS), "Int64"))


def sections() -> pd.DataFrame:
    """What the Open-I reports consist of: columns what, reports.

    The last line is ledger row B7: the official code takes `max(findings, impression)`, which for strings is the
    later one in the alphabet, where its author says the longer one.
    """
    reports, pairs = open_i(), _pairs()
    lines = {
        "reports": len(reports),
        "findings": (reports["findings"] != "").sum(),
        "impression": (reports["impression"] != "").sum(),
        "both sections": len(pairs),
        "neither section": (reports["findings"] + reports["impression"] == "").sum(),
        "without a film": (reports["images"] == 0).sum(),
        "both, the last by alphabet is not the longest": sum(max(pair) != max(pair, key=len) for pair in pairs),
    }
    return pd.DataFrame({"what": list(lines), "reports": [int(count) for count in lines.values()]})


def _pairs() -> list[tuple[str, str]]:
    """Findings and impression of the Open-I reports that have both."""
    pairs = zip(open_i()["findings"], open_i()["impression"], strict=True)
    return [pair for pair in pairs if all(pair)]


def collisions() -> pd.DataFrame:
    """How probable it is that two random studies say exactly the same: columns table, content, probability, n.

    NIH films by their set of labels; CheXpert films by the set of positive labels, and by all labels with their
    kind (the "triplet" of positive, negative and uncertain); Open-I reports that have both sections by impression,
    and by the longer section.
    """
    labels = chexpert()[list(CHEXPERT_LABELS)]
    contents = {
        ("chestxray14", "label set"): ["|".join(sorted(names.split("|"))) for names in nih()["findings"]],
        ("chexpert", "positive labels"): [row.tobytes() for row in (labels == "positive").to_numpy()],
        ("chexpert", "label triplet"): list(zip(*(labels[name] for name in CHEXPERT_LABELS), strict=True)),
        ("openi", "impression"): [impression for _, impression in _pairs()],
        ("openi", "longest section"): [max(pair, key=len) for pair in _pairs()],
    }
    lines = [(table, what, collision(items), len(items)) for (table, what), items in contents.items()]
    return pd.DataFrame(lines, columns=["table", "content", "probability", "n"])


def collision(items: Iterable[Hashable]) -> float:
    """The probability that two different items, of two or more, are equal."""
    counts = Counter(items)
    n = counts.total()
    return sum(count * (count - 1) for count in counts.values()) / (n * (n - 1))
