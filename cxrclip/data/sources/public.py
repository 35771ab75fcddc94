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
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pandas as pd

from cxrclip.data.sources import chestxray14, openi
from cxrclip.data.sources import siim as siim_release
from cxrclip.data.sources.chexpert_format import FINDINGS as CHEXPERT_LABELS
from cxrclip.data.sources.chexpert_format import STATES
from cxrclip.data.sources.splits import gloria_split, train_valid_split
from cxrclip.data.sources.tables import Unusable, read_table, to_text
from cxrclip.errors import InputError
from cxrclip.studies import SPLITS


def data_folder() -> Path:
    """Where torchxrayvision keeps its tables.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("torchxrayvision")  # finds the package without running its code
    places = list(spec.submodule_search_locations or ()) if spec else []
    if not places or not (Path(places[0]) / "data").is_dir():
        raise InputError("the package torchxrayvision with its folder data is not here; pip install torchxrayvision")
    return Path(places[0]) / "data"


@cache
def nih() -> pd.DataFrame:
    """ChestX-ray14, one row a film: image, patient_id, findings (as the release joins them), view, age, sex."""
    table = read_table(data_folder() / "Data_Entry_2017_v2020.csv.gz", chestxray14.COLUMNS)[list(chestxray14.COLUMNS)]
    table.columns = ["image", "findings", "patient_id", "age", "sex", "view"]
    return table.astype({"age": int})


@cache
def chexpert() -> pd.DataFrame:
    """CheXpert's train.csv, one row a film: image (path), patient_id, study_id, view, and 14 label columns.

    A label is "positive", "negative", "uncertain" or "" (not mentioned).
    """
    columns = ("Path", "Frontal/Lateral", "AP/PA", *CHEXPERT_LABELS)
    table = read_table(data_folder() / "chexpert_train.csv.gz", columns)
    parts = table["Path"].str.split("/", expand=True)
    view = table["AP/PA"].where(table["Frontal/Lateral"] == "Frontal", "LATERAL")
    labels = {name: table[name].str.removesuffix(".0").map(STATES) for name in CHEXPERT_LABELS}
    patients = {"image": table["Path"], "patient_id": parts[2], "study_id": parts[2] + "/" + parts[3], "view": view}
    return pd.DataFrame(patients | labels)


@cache
def rsna() -> pd.DataFrame:
    """RSNA Pneumonia 2018, one row a film, which is a patient: patient_id, pneumonia, boxes, view, sex, age, split."""
    boxes = read_table(data_folder() / "kaggle_stage_2_train_labels.csv.zip", ("patientId", "Target"))
    films = boxes.groupby("patientId")["Target"].agg(pneumonia="max", boxes="size").reset_index()
    films["pneumonia"] = films["pneumonia"] == "1"
    films["boxes"] = films["boxes"].where(films["pneumonia"], 0)
    columns = {"PatientID": "patient_id", "ViewPosition": "view", "PatientSex": "sex", "PatientAge": "age"}
    headers = read_table(data_folder() / "kaggle_stage_2_train_images_dicom_headers.csv.gz", columns)
    films = films.rename(columns={"patientId": "patient_id"}).merge(headers[[*columns]].rename(columns=columns))
    films["split"] = films["patient_id"].map(gloria_split(films["patient_id"]))
    return films.astype({"age": int})


@cache
def siim() -> pd.DataFrame:
    """SIIM-ACR Pneumothorax 2019, one row a mask: image, pneumothorax, and two splits.

    `split` is by film. `row_split` is by row, as GLoRIA and MGCA cut it: a film with several masks can then be
    in train and in test (see `siim_leak`).
    """
    table = siim_release.read_masks(data_folder() / "siim-pneumothorax-train-rle.csv.gz")
    rows = pd.DataFrame({"image": table["ImageId"], "pneumothorax": table["EncodedPixels"] != siim_release.NO_MASK})
    rows["split"] = rows["image"].map(gloria_split(rows["image"]))
    rows["row_split"] = rows.index.map(gloria_split(range(len(rows))))
    return rows


def siim_leak() -> tuple[int, int]:
    """Films with a pneumothorax in the test part of `row_split`: how many are also in train, and how many there are."""
    rows = siim()
    tested = set(rows.loc[(rows["row_split"] == "test") & rows["pneumothorax"], "image"])
    return len(tested & set(rows.loc[rows["row_split"] == "train", "image"])), len(tested)


@cache
def vindr() -> pd.DataFrame:
    """The 15,000 training films of VinDr-CXR by Kaggle's numbers, one row a film: image, readers, split."""
    boxes = read_table(data_folder() / "vinbigdata-train.csv.gz", ("image_id", "rad_id"))
    films = boxes.groupby("image_id")["rad_id"].nunique().reset_index()
    films.columns = ["image", "readers"]
    films["split"] = films["image"].map(train_valid_split(films["image"]))
    return films


@cache
def open_i() -> pd.DataFrame:
    """The Open-I reports, read by the code that reads a download: uid, findings, impression ("" if absent), images."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, tarfile.open(data_folder() / "NLMCXR_reports.tgz") as archive:
        archive.extractall(folder, filter="data")
        for report in openi.xml_reports(Path(folder) / openi.XML):
            if isinstance(report, Unusable):
                raise InputError(f"NLMCXR_reports.tgz: {report}")
            sections = (to_text(name, getattr(report, name)) or "" for name in ("findings", "impression"))
            rows.append((report.uid, *sections, len(report.films)))
    return pd.DataFrame(rows, columns=["uid", "findings", "impression", "images"])


# ------------------------------------------------------------------------------------------------------- statistics


def sizes() -> pd.DataFrame:
    """What the packaged tables say of Table 1, a line a data set.

    Returns:
        Columns name, rows (of the table), images, patients, train, valid, test (missing where the rule needs a
        list that is not in the package), rule (how the splits were made, or what is missing).
    """
    masks, films = siim(), siim().drop_duplicates("image")
    boxes = int(rsna()["boxes"].clip(lower=1).sum())
    reports = open_i()
    return pd.DataFrame(
        [
            _size("chestxray14", len(nih()), nih()["image"], nih()["patient_id"],
                  rule="needs train_val_list.txt and test_list.txt"),
            _size("chexpert", len(chexpert()), chexpert()["image"], chexpert()["patient_id"],
                  rule="needs the list of the 5x200 test patients"),
            _size("vindr-cxr", int(vindr()["readers"].sum()), vindr()["image"], splits=vindr()["split"],
                  rule="80 / 20 by film, seed 0; rows are readings; the 3,000 test films are not here"),
            _size("rsna", boxes, rsna()["patient_id"], rsna()["patient_id"], rsna()["split"],
                  rule="GLoRIA: 70 / 15 / 15 by patient, seed 0"),
            _size("siim", len(masks), films["image"], splits=films["split"], rule="GLoRIA's shares by film"),
            _size("siim (by row)", len(masks), films["image"], splits=masks["row_split"],
                  rule="GLoRIA: 70 / 15 / 15 by row, which leaks"),
            _size("openi", len(reports), range(int(reports["images"].sum())), rule="a test set: all reports"),
        ]
    ).astype(dict.fromkeys(("patients", *SPLITS), "Int64"))  # fmt: skip


def _size(
    name: str, rows: int, images: Sequence, patients: Sequence = (), splits: Sequence = (), *, rule: str
) -> dict[str, object]:
    counts = pd.Series(list(splits), dtype=object).value_counts()
    known = {split: int(counts[split]) if split in counts else pd.NA for split in SPLITS}
    who = len(set(patients)) or pd.NA
    return {"name": name, "rows": rows, "images": len(set(images)), "patients": who, **known, "rule": rule}


def label_counts() -> pd.DataFrame:
    """How often each finding is said: columns name, finding, positive, negative, uncertain, of (films)."""
    lines, films = [], len(nih())
    for finding, count in nih()["findings"].str.split("|").explode().value_counts().items():
        lines.append(("chestxray14", chestxray14.RENAMED.get(finding, finding), count, films - count, 0, films))
    for finding in CHEXPERT_LABELS:
        kinds = chexpert()[finding].value_counts()
        lines.append(("chexpert", finding, *(kinds.get(kind, 0) for kind in ("positive", "negative", "uncertain")),
                      len(chexpert())))  # fmt: skip
    for name, table, finding in (
        ("rsna", rsna()["pneumonia"], "Pneumonia"),
        ("siim", siim().groupby("image")["pneumothorax"].any(), "Pneumothorax"),
    ):
        lines.append((name, finding, table.sum(), (~table).sum(), 0, len(table)))
    return pd.DataFrame(lines, columns=["name", "finding", "positive", "negative", "uncertain", "of"])


def sections() -> pd.DataFrame:
    """What the Open-I reports consist of: columns what, reports.

    The last line is ledger row B7: the official code takes `max(findings, impression)`, which for strings is the
    later one in the alphabet, where its author says the longer one.
    """
    reports = open_i()
    has = {name: reports[name] != "" for name in ("findings", "impression")}
    both = reports[has["findings"] & has["impression"]]
    pairs = zip(both["findings"], both["impression"], strict=True)
    lines = {
        "reports": len(reports),
        "findings": has["findings"].sum(),
        "impression": has["impression"].sum(),
        "both sections": len(both),
        "neither section": (~has["findings"] & ~has["impression"]).sum(),
        "without a film": (reports["images"] == 0).sum(),
        "both, the last by alphabet is not the longest": sum(max(pair) != max(pair, key=len) for pair in pairs),
    }
    return pd.DataFrame({"what": list(lines), "reports": [int(count) for count in lines.values()]})


def collisions() -> pd.DataFrame:
    """How probable it is that two random studies say exactly the same: columns table, content, probability, n.

    NIH films by their set of labels; CheXpert films by the set of positive labels, and by all labels with their
    kind (the "triplet" of positive, negative and uncertain); Open-I reports that have both sections by impression,
    and by the longer section.
    """
    labels = chexpert()[list(CHEXPERT_LABELS)]
    reports = open_i()
    both = reports[(reports["findings"] != "") & (reports["impression"] != "")]
    contents = {
        ("chestxray14", "label set"): ["|".join(sorted(names.split("|"))) for names in nih()["findings"]],
        ("chexpert", "positive labels"): [row.tobytes() for row in (labels == "positive").to_numpy()],
        ("chexpert", "label triplet"): list(zip(*(labels[name] for name in CHEXPERT_LABELS), strict=True)),
        ("openi", "impression"): both["impression"].tolist(),
        ("openi", "longest section"): [
            max(pair, key=len) for pair in zip(both["findings"], both["impression"], strict=True)
        ],
    }
    lines = []
    for (table, what), texts in contents.items():
        pairs = sum(count * (count - 1) for count in Counter(texts).values())
        lines.append((table, what, pairs / (len(texts) * (len(texts) - 1)), len(texts)))
    return pd.DataFrame(lines, columns=["table", "content", "probability", "n"])
