"""The archives behind agreements: each layout faked with a few tiny files, then with one fault at a time."""

import gzip
import re
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest
import yaml
from downloads import about, dicom, edit, film, partial, public_table, quick_decoding, rejections, studies_of  # noqa: F401

from cxrclip.data.sources import (
    SOURCES,
    account,
    chestxray14,
    chexpert,
    chexpert5x200,
    mimic,
    openi,
    parse_options,
    prepare_from_text,
    rsna,
    siim,
    vindr,
)
from cxrclip.data.sources.chexpert_format import COLUMNS, FINDINGS, label_tables, patients_of
from cxrclip.data.sources.dicom import read_header
from cxrclip.data.sources.prepare import Intake
from cxrclip.data.sources.reports import parse_report
from cxrclip.data.sources.splits import gloria_split, train_valid_split
from cxrclip.data.sources.tables import grouped, read_table
from cxrclip.errors import InputError
from cxrclip.experiments import Experiment, Workbench, evaluate, pretrain
from cxrclip.results import tables
from cxrclip.studies import check_leakage, open_studies, validate

pytestmark = pytest.mark.usefixtures("quick_decoding")


def one_rejection(folder):
    (line,) = rejections(folder)
    return line["file"], line["row"], line["column"], line["reason"]


def fails(name, root, out, message, **options):
    """The source refuses, in one line, and writes nothing."""
    with pytest.raises(InputError, match=message) as caught:
        partial(name, root, out, **options)
    assert "\n" not in str(caught.value)
    assert not out.exists()


def table(path, rows, columns=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows, columns=columns).to_csv(path, index=False)


# ---------------------------------------------------------------------------------------------------------- mimic-cxr

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough

 FINDINGS: \n \n The heart is fine.
 Lungs are clear as of {}.

 IMPRESSION: \n \n 1. Normal chest.
"""


def dicom_id(number):
    return "-".join([f"{number:08x}"] * 5)


def mimic_root(root):
    """Ten patients with one study each, two films each; patient 8 is validate, 9 and 10 are test."""
    meta, split, label = [], [], []
    for p in range(1, 11):
        subject, study = f"1{p:07d}", f"5{p:07d}"
        for n, view in enumerate(("PA", "LL")):
            name = dicom_id(10 * p + n)
            film(root / mimic.film_name(name, subject, study), 10 * p + n)
            meta.append((name, subject, study, "CHEST", view, 40, 30))
            split.append((name, study, subject, "train" if p < 8 else "validate" if p == 8 else "test"))
        label.append((subject, study, "1.0", "-1.0", "0.0"))
        report = root / f"files/p{subject[:2]}/p{subject}/s{study}.txt"
        report.write_text(REPORT.format(p))
    columns = ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows"]
    table(root / "mimic-cxr-2.0.0-metadata.csv", meta, [*columns, "Columns"])
    table(root / "mimic-cxr-2.0.0-split.csv", split, ["dicom_id", "study_id", "subject_id", "split"])
    labels = pd.DataFrame(label, columns=["subject_id", "study_id", "Edema", "Pneumonia", "Fracture"])
    labels[[name for name in FINDINGS if name not in labels]] = ""
    labels.to_csv(root / "mimic-cxr-2.0.0-chexpert.csv", index=False)
    return root


@pytest.fixture
def mimic_cxr(tmp_path):
    (tmp_path / "mimic").mkdir()
    return mimic_root(tmp_path / "mimic")


def test_mimic_reads_films_reports_splits_views_and_labels(mimic_cxr, tmp_path):
    out = partial("mimic-cxr", mimic_cxr, tmp_path / "out")
    assert out[["split", "studies", "images", "both_sections"]].values.tolist() == [
        ["train", 7, 14, 7], ["valid", 1, 2, 1], ["test", 2, 4, 2]]
    validate(tmp_path / "out", FINDINGS)
    check_leakage({"m": tmp_path / "out"})
    first = studies_of(tmp_path / "out")["s50000001"]
    assert (first["patient_id"], first["views"]) == ("p10000001", ["PA", "LATERAL"])
    assert first["findings"] == "The heart is fine. Lungs are clear as of 1."
    assert first["impression"] == "1. Normal chest."
    assert (first["positive"], first["negative"], first["uncertain"]) == (["Edema"], ["Fracture"], ["Pneumonia"])
    partial("mimic-cxr", mimic_cxr, tmp_path / "bare", labels=None)
    assert studies_of(tmp_path / "bare")["s50000001"]["positive"] == []


def test_mimic_counts_what_is_not_there_and_takes_a_folder_above(mimic_cxr, tmp_path, monkeypatch):
    whole = {"rows": 20, "images": 20, "studies": 10, "patients": 10, "reports": 10, "train images": 14,
             "valid images": 2, "test images": 4, "train studies": 7, "valid studies": 1, "test studies": 2}
    assert whole.keys() == mimic.EXPECTED.keys()
    monkeypatch.setattr(mimic, "EXPECTED", whole)
    SOURCES["mimic-cxr"](mimic_cxr.parent, tmp_path / "out", progress=False)
    SOURCES["mimic-cxr"](mimic_cxr.parent, tmp_path / "out", reports="mimic", progress=False)
    for path in mimic_cxr.rglob("p10000001/*/*.jpg"):
        path.unlink()
    next(mimic_cxr.rglob("s50000002.txt")).unlink()
    with pytest.raises(InputError, match=r"partial download of mimic-cxr: images 18 of 20, reports 9 of 10; fetch"):
        SOURCES["mimic-cxr"](mimic_cxr, tmp_path / "no", progress=False)
    assert partial("mimic-cxr", mimic_cxr, tmp_path / "out")["studies"].sum() == 8
    facts = about(tmp_path / "out")
    assert (facts["not_downloaded"], facts["without_report"], facts["counts"]["whole"]) == (2, 1, False)


def test_mimic_takes_reports_from_the_zip_and_from_tables_of_sections(mimic_cxr, tmp_path):
    partial("mimic-cxr", mimic_cxr, tmp_path / "texts")
    texts = {key: (row["findings"], row["impression"]) for key, row in studies_of(tmp_path / "texts").items()}
    rows, archive = [], zipfile.ZipFile(mimic_cxr / "mimic-cxr-reports.zip", "w")
    with archive:
        for path in sorted(mimic_cxr.rglob("*.txt")):
            said = parse_report(path.read_text())
            rows.append((path.stem, said.impression, said.findings, "", ""))
            archive.write(path, f"files/{path.relative_to(mimic_cxr / 'files')}")
            path.unlink()
    partial("mimic-cxr", mimic_cxr, tmp_path / "zip")
    assert texts == {key: (row["findings"], row["impression"]) for key, row in studies_of(tmp_path / "zip").items()}
    rows[0] = ("s50000001", "", "", "Only  this paragraph.", "")
    columns = ["study", "impression", "findings", "last_paragraph", "comparison"]
    table(mimic_cxr / "mimic_cxr_sectioned.csv", rows, columns)
    partial("mimic-cxr", mimic_cxr, tmp_path / "table")
    found = studies_of(tmp_path / "table")
    assert found["s50000001"]["impression"] == "Only this paragraph."
    assert about(tmp_path / "table")["last_paragraphs"] == 1
    assert found["s50000002"]["findings"] == texts["s50000002"][0]
    table(mimic_cxr / "mimic_cxr_sectioned.csv", rows, ["study", "impressions", *columns[2:]])
    fails("mimic-cxr", mimic_cxr, tmp_path / "no", r"mimic_cxr_sectioned\.csv: no column 'impression'")


@pytest.mark.parametrize(
    ("text", "findings", "impression", "last", "addenda"),
    [
        (REPORT.format(1), "The heart is fine. Lungs are clear as of 1.", "1. Normal chest.", False, 0),
        (" FINDINGS: Clear.\n\n Heart ok.\n COMPARISON: ___.", "Clear. Heart ok.", None, False, 0),
        (" IMPRESSION: AP chest compared to ___:\n\n Large effusion.\n\n NOTIFICATION: Dr. ___ called.", None,
         "AP chest compared to ___: Large effusion.", False, 0),
        (" Findings: one.\n Impression:\n two", "one.", "two", False, 0),
        (" FINDINGS\n one.\n\n IMPRESSION\n two.", "one.", "two.", False, 0),
        (" FINDINGS AND IMPRESSION: all in one.", "all in one.", None, False, 0),
        (" FINDINGS/IMPRESSION: all in one.", "all in one.", None, False, 0),
        (" CONCLUSION: done.", None, "done.", False, 0),
        (" FINDINGS: first.\n FINDINGS: second.\n IMPRESSION: ___", "second.", None, False, 0),
        ("ADDENDUM  A nodule was missed.\n ______________\n FINAL REPORT\n FINDINGS: Clear.", "Clear.", None, False, 1),
        ("WET READ:\n IMPRESSION: early.\n ______________\n FINDINGS: f.\n IMPRESSION: late.", "f.", "late.", False, 1),
        (" IMPRESSION: above.\n ______________\n FINDINGS: below.", "below.", "above.", False, 1),
        (" FINAL REPORT\n\n HISTORY: pain.\n\n Heart size is normal.\n The lungs are clear.", None,
         "Heart size is normal. The lungs are clear.", True, 0),
        (" CHEST\n\n PORTABLE CHEST: Tube in place.\n\n COMPARISON:  None.", "Tube in place.", None, False, 0),
        (" FINAL REPORT\n\n COMPARISON: None here.", None, None, False, 0),
        (" FINDINGS: the word IMPRESSION: inside a line", "the word IMPRESSION: inside a line", None, False, 0),
        ("", None, None, False, 0),
        ("___\n______________\n", None, None, False, 0),
    ],
)
def test_sections_of_a_report(text, findings, impression, last, addenda):
    said = parse_report(text)
    assert (said.findings, said.impression, said.last_paragraph, said.addenda) == (findings, impression, last, addenda)


def test_mimic_counts_last_paragraphs_and_addenda(mimic_cxr, tmp_path):
    next(mimic_cxr.rglob("s50000001.txt")).write_text(" CHEST\n\n The lungs are clear.")
    next(mimic_cxr.rglob("s50000002.txt")).write_text("ADDENDUM: none\n ____________________\n FINDINGS: Clear.")
    partial("mimic-cxr", mimic_cxr, tmp_path / "out")
    facts = about(tmp_path / "out")
    assert (facts["last_paragraphs"], facts["addenda"]) == (1, 1)
    assert studies_of(tmp_path / "out")["s50000001"]["impression"] == "The lungs are clear."


META, SPLIT, CHEX = (f"mimic-cxr-2.0.0-{kind}.csv" for kind in ("metadata", "split", "chexpert"))
A, B = dicom_id(30), dicom_id(31)  # the films of patient 3, rows 5 and 6


@pytest.mark.parametrize(
    ("file", "old", "new", "rejected", "studies"),
    [
        (META, f"{A},1", f"{A[:-1]}x,1", (META, "5", "dicom_id", "is not written as in MIMIC-CXR"), 10),
        (META, f"{B},1", f"{A},1", (META, "6", "dicom_id", f"{A} stands already in row 5"), 10),
        (META, f"{B},10000003", f"{B},19999999", (META, "6", "subject_id", "differs from row 5"), 10),
        (SPLIT, f"{B},50000003,10000003,train", f"{B},50000003,10000003,dev", (META, "6", "split", "'dev' is not"), 10),
        (SPLIT, f"{B},50000003,10000003,train", f"{B},50000003,10000003,test", (META, "6", "split", "differs"), 10),
        (CHEX, "10000003,50000003", "10000003,59999999", (CHEX, "3", "study_id", "'59999999' is not in mimic"), 10),
        (CHEX, "10000003,50000003,1.0", "10000003,50000003,2.0", (CHEX, "3", "Edema", "'2' is none of 1"), 10),
        ("s50000003.txt", "The heart", b"The h\xe9art", ("s50000003.txt", "5", "report", "byte 132 is no UTF-8"), 9),
        ("s50000003.txt", REPORT.format(3), " INDICATION: pain", (META, "5", "report", "has no FINDINGS, no IMPR"), 9),
    ],
)
def test_mimic_sets_bad_rows_aside(mimic_cxr, tmp_path, file, old, new, rejected, studies):
    edit(next(mimic_cxr.rglob(file)), old, new)
    (mimic_cxr / mimic.film_name(f"{A[:-1]}x", "10000003", "50000003")).write_bytes(b"")
    out = partial("mimic-cxr", mimic_cxr, tmp_path / "out", max_rejected=0.2)
    assert out["studies"].sum() == studies
    aside = rejections(tmp_path / "out")  # a changed film name also leaves its row of the split table behind
    (line,) = [line for line in aside if file != META or line["file"] == META]
    assert (line["row"], line["column"]) == rejected[1:3]
    assert line["file"].endswith(rejected[0])
    assert rejected[3] in line["reason"]


def test_mimic_split_rows_that_point_nowhere_and_films_that_are_damaged(mimic_cxr, tmp_path):
    with open(mimic_cxr / SPLIT, "a") as file:
        file.write(f"{dicom_id(999)},50000003,10000003,train\n")
    path = mimic_cxr / mimic.film_name(A, "10000003", "50000003")
    path.write_bytes(path.read_bytes()[:100])
    partial("mimic-cxr", mimic_cxr, tmp_path / "out", max_rejected=0.2)
    lines = [(line["file"], line["row"], line["column"]) for line in rejections(tmp_path / "out")]
    assert lines == [(SPLIT, "21", "dicom_id"), (META, "5", "image")]
    assert studies_of(tmp_path / "out")["s50000003"]["views"] == ["LATERAL"]
    fails("mimic-cxr", mimic_cxr, tmp_path / "no", "2 of 11 rows are unusable", max_rejected=0.1)


def test_mimic_names_what_is_missing(mimic_cxr, tmp_path):
    no = tmp_path / "no"
    fails("mimic-cxr", mimic_cxr, no, "gone: no such file or folder", reports="gone")
    fails("mimic-cxr", mimic_cxr, no, "unknown labels 'radgraph'; use chexpert, negbio or none", labels="radgraph")
    (mimic_cxr / "r.zip").write_bytes(b"PK no")
    fails("mimic-cxr", mimic_cxr, no, r"r\.zip: not a readable zip file", reports="r.zip")
    edit(mimic_cxr / META, "ViewPosition", "View")
    fails("mimic-cxr", mimic_cxr, no, r"metadata\.csv: no column 'ViewPosition'; its columns are 'dicom_id'")
    edit(mimic_cxr / META, "View", "ViewPosition")
    for path in mimic_cxr.rglob("*.txt"):
        path.unlink()
    fails("mimic-cxr", mimic_cxr, no, "no report of the 10 listed studies is here; download them, or say")
    for path in mimic_cxr.rglob("*.jpg"):
        path.unlink()
    fails("mimic-cxr", mimic_cxr, no, "none of the 20 listed films is here; download them into files/")
    (mimic_cxr / SPLIT).unlink()
    fails("mimic-cxr", mimic_cxr, no, r"no mimic-cxr-2\.0\.0-split\.csv\.gz")


# ----------------------------------------------------------------------------------------------------------- chexpert


def chex_row(patient, study=1, view="1_frontal", split="train", home="CheXpert-v1.0-small", ap="AP", **labels):
    path = f"{home}/{split}/patient{patient:05d}/study{study}/view{view}.jpg"
    side = "Lateral" if view.endswith("lateral") else "Frontal"
    cells = dict.fromkeys(COLUMNS, "") | {"Path": path, "Sex": "Female", "Age": "61", "Frontal/Lateral": side}
    return cells | {"AP/PA": ap if side == "Frontal" else ""} | {k.replace("_", " "): v for k, v in labels.items()}


CHEXPERT = [
    *(chex_row(p, Edema="1.0", Pneumonia="-1.0", Fracture="0.0") for p in range(1, 11)),
    chex_row(1, view="2_lateral", Edema="1.0", Pneumonia="-1.0", Fracture="0.0"),
    chex_row(1, 2, No_Finding="1.0"),
    chex_row(11, ap="LL", Atelectasis="1.0"),
]
VALID = [chex_row(101, split="valid", ap="PA", Edema="1.0", Pneumonia="0.0")]


def write_films(root, rows):
    for seed, row in enumerate(rows):
        film(root / row["Path"].partition("/")[2], seed)


@pytest.fixture
def chex(tmp_path):
    """Eleven patients; the first has two studies, one of them with a lateral. One patient in valid."""
    root = tmp_path / "CheXpert-v1.0-small"
    write_films(root, CHEXPERT + VALID)
    table(root / "train.csv", CHEXPERT)
    table(root / "valid.csv", VALID)
    return root


def test_chexpert_groups_films_into_studies(chex, tmp_path):
    out = partial("chexpert", chex, tmp_path / "out")
    counts = out[["split", "studies", "patients", "images"]].values.tolist()
    assert counts == [["train", 12, 11, 13], ["valid", 1, 1, 1]]
    validate(tmp_path / "out", FINDINGS)
    check_leakage({"c": tmp_path / "out"})
    found = studies_of(tmp_path / "out")
    first = found["patient00001/study1"]
    assert [first[name] for name in ("views", "positive", "negative", "uncertain", "sex", "age", "patient_id")] == [
        ["AP", "LATERAL"], ["Edema"], ["Fracture"], ["Pneumonia"], "F", 61, "patient00001"]
    assert found["patient00001/study2"]["positive"] == ["No Finding"]
    assert found["patient00011/study1"]["views"] == ["FRONTAL"]
    assert found["patient00101/study1"]["views"] == ["PA"]
    counts = about(tmp_path / "out")["counts"]["found"]
    assert counts == {"rows of train.csv": 13, "patients of train.csv": 11, "rows of valid.csv": 1,
                      "patients of valid.csv": 1, "images": 14}


def test_chexpert_reads_v1_from_the_folder_above_and_in_batches(chex, tmp_path):
    rows = [row | {"Path": row["Path"].replace("-small", "")} for row in CHEXPERT]
    root = tmp_path / "batches"
    table(root / "CheXpert-v1.0 batch 1 (validate & csv)" / "train.csv", rows)
    for p in range(1, 12):
        target = root / f"CheXpert-v1.0 batch {2 + p % 2} (train)" / f"patient{p:05d}"
        target.parent.mkdir(exist_ok=True)
        (chex / "train" / target.name).rename(target)
    assert partial("chexpert", root, tmp_path / "out")["images"].sum() == 13
    table(chex / "train.csv", CHEXPERT)
    with pytest.raises(InputError, match=r"partial download of chexpert: rows of train\.csv 13 of 223,414"):
        SOURCES["chexpert"](chex.parent, tmp_path / "no", progress=False)


def small_5x200(monkeypatch, patients):
    """The rule of 5x200 at two films a class."""
    monkeypatch.setattr(chexpert5x200, "EACH", 2)
    expected = {"rows": 10, "patients": patients, **{f"rows of {name} alone": 2 for name in chexpert5x200.CLASSES}}
    monkeypatch.setattr(chexpert5x200, "EXPECTED", expected)
    monkeypatch.setattr(chexpert5x200, "EXPECTED_MGCA", expected)


FIVE = [chex_row(20 + i, **{name.replace(" ", "_"): "1.0"}) for i, name in enumerate(chexpert5x200.CLASSES * 2)]


@pytest.fixture
def five(chex, monkeypatch):
    """CheXpert with ten patients more, whose films make a 5x200 list of two a class."""
    small_5x200(monkeypatch, 10)
    rows = [row | {"Report Impression": f"1. Case {i}."} for i, row in enumerate(FIVE)]
    listed = pd.DataFrame(rows)
    listed.insert(0, "", range(7, 17))
    listed[list(FINDINGS)] = listed[list(FINDINGS)].replace("", "0.0")
    listed["Path"] = "/old/place/" + listed["Path"]
    listed.to_csv(chex / "chexpert_5x200.csv", index=False)
    write_films(chex, [*CHEXPERT, *VALID, *FIVE])
    table(chex / "train.csv", FIVE + CHEXPERT[:-1])
    return chex


def test_chexpert_leaves_the_patients_of_the_list_out(five, tmp_path, monkeypatch):
    partial("chexpert", five, tmp_path / "out")
    assert about(tmp_path / "out")["test_patients_removed"] == 10
    left = {row["patient_id"] for row in open_studies(tmp_path / "out", "train")}
    assert left == {f"patient{p:05d}" for p in range(1, 11)}
    found = about(tmp_path / "out")["counts"]["found"]
    assert (found["rows left"], found["patients left"], found["rows of train.csv"]) == (12, 10, 22)
    assert about(tmp_path / "out")["counts"]["expected"]["rows left"] == 216_478
    partial("chexpert5x200", five, tmp_path / "test")
    check_leakage({"c": tmp_path / "out", "t": tmp_path / "test"})
    (five / "chexpert_5x200.csv").rename(five.parent / "list.csv")
    partial("chexpert", five, tmp_path / "all")
    assert about(tmp_path / "all")["test_patients_removed"] == 0
    for test_list in (str(five.parent / "list.csv"), "mgca"):
        partial("chexpert", five, tmp_path / "out", test_list=test_list)
        assert about(tmp_path / "out")["test_patients_removed"] == 10
    # Rows below removed ones keep the numbers which they have in the file.
    edit(five / "train.csv", "Female,61,Frontal,AP,1.0", "Female,old,Frontal,AP,1.0")
    partial("chexpert", five, tmp_path / "out", max_rejected=0.2)
    assert one_rejection(tmp_path / "out")[:3] == ("train.csv", "22", "Age")


def test_chexpert_takes_the_reports_of_chexpert_plus_only_when_asked(five, tmp_path):
    rows = [("train/patient00001/study1/view1_frontal.jpg", "Heart big.", "Failure."),
            ("train/patient00001/study1/view2_lateral.jpg", "other", "other"),
            ("train/patient00020/study1/view1_frontal.jpg", "", "Atelectasis."),
            ("train/patient99999/study1/view1_frontal.jpg", "x", "y")]
    columns = ["path_to_image", "section_findings", "section_impression"]
    table(five / "df_chexpert_plus_240401.csv", rows, columns)
    partial("chexpert", five, tmp_path / "plain")
    assert studies_of(tmp_path / "plain")["patient00001/study1"]["findings"] is None
    partial("chexpert", five, tmp_path / "out", reports="auto", max_rejected=0.2)
    first = studies_of(tmp_path / "out")["patient00001/study1"]
    assert (first["findings"], first["impression"], first["positive"]) == ("Heart big.", "Failure.", ["Edema"])
    file, row, column, reason = one_rejection(tmp_path / "out")
    assert (file, row, column) == ("df_chexpert_plus_240401.csv", "4", "path_to_image")
    assert "in neither train.csv nor valid.csv" in reason
    partial("chexpert5x200-mgca", five, tmp_path / "mgca", reports="df_chexpert_plus_240401.csv", max_rejected=0.2)
    found = studies_of(tmp_path / "mgca")["patient00020/study1/view1_frontal"]
    assert (found["findings"], found["impression"], found["split"]) == (None, "Atelectasis.", "test")
    (five / "df_chexpert_plus_240401.csv").unlink()
    fails("chexpert", five, tmp_path / "no", r"no df_chexpert_plus\*\.csv; download CheXpert Plus", reports="auto")


@pytest.mark.parametrize(
    ("change", "column", "reason", "studies"),
    [
        ({"Edema": "2.0"}, "Edema", "'2' is none of 1 (positive), 0 (negative), -1 (uncertain) or empty", 12),
        ({"Path": "CheXpert-v1.0/train/p5/study1/view1_frontal.jpg"}, "Path", "does not end in train/patient", 12),
        ({"Path": CHEXPERT[4]["Path"].replace("train", "valid")}, "Path", "stands in train.csv", 12),
        ({"Sex": "X"}, "Sex", "'X' is not F or M", 12),
        ({"Age": "old"}, "Age", "'old' is not a number", 12),
        ({"Frontal/Lateral": "Side"}, "Frontal/Lateral", "'Side' is not Frontal or Lateral", 12),
        ({"AP/PA": "up"}, "AP/PA", "'up' is not AP, PA, LL, RL or empty", 12),
        ({"Path": CHEXPERT[3]["Path"]}, "Path", "view1_frontal stands already in row 4; the first is kept", 12),
        ({"Edema": "", "Pneumonia": "", "Fracture": ""}, "No Finding to Support Devices", "no label is set", 12),
        ({"Path": CHEXPERT[0]["Path"].replace("view1", "view3")}, "Age", "differs from row 1, a film of the same", 12),
    ],
)
def test_chexpert_sets_bad_rows_aside(chex, tmp_path, change, column, reason, studies):
    rows = [dict(row) for row in CHEXPERT]
    rows[4] |= change
    if column == "Age" and "differs" in reason:
        rows[4]["Age"] = "62"
    table(chex / "train.csv", rows)
    out = partial("chexpert", chex, tmp_path / "out", max_rejected=0.1)
    assert out["studies"].sum() == studies
    file, row, where, why = one_rejection(tmp_path / "out")
    assert (file, row, where) == ("train.csv", "5", column)
    assert reason in why


def test_chexpert_names_what_is_missing_and_where_films_are_bad(chex, tmp_path):
    path = chex / VALID[0]["Path"].partition("/")[2]
    path.write_bytes(b"no film")
    (chex / CHEXPERT[5]["Path"].partition("/")[2]).unlink()
    partial("chexpert", chex, tmp_path / "out", max_rejected=0.2)
    assert one_rejection(tmp_path / "out")[:3] == ("valid.csv", "1", "image")
    assert about(tmp_path / "out")["not_downloaded"] == 1
    no = tmp_path / "no"
    edit(chex / "train.csv", "Pleural Other", "Pleura")
    fails("chexpert", chex, no, r"train\.csv: no column 'Pleural Other'")
    fails("chexpert", chex, no, r"train\.csv: no column 'Pleural Other'", test_list="mgca")
    (chex / "train.csv").unlink()
    fails("chexpert", chex, no, r"no train\.csv here nor in CheXpert-v1\.0\*/")
    table(chex / "train.csv", [chex_row(77)])
    (chex / "valid.csv").unlink()
    fails("chexpert", chex, no, "none of the 1 listed films is here")


# ------------------------------------------------------------------------------------------------------ chexpert5x200


def test_5x200_reads_the_list_of_gloria(five, tmp_path):
    out = SOURCES["chexpert5x200"](five, tmp_path / "out", progress=False)
    assert out[["split", "studies", "patients", "impression"]].values.tolist() == [["test", 10, 10, 10]]
    validate(tmp_path / "out", chexpert5x200.CLASSES)
    found = studies_of(tmp_path / "out")["patient00022/study1/view1_frontal"]
    assert [found[name] for name in ("positive", "negative", "impression", "views")] == [
        ["Consolidation"], [], "1. Case 2.", ["AP"]]
    (five / FIVE[0]["Path"].partition("/")[2]).unlink()
    with pytest.raises(InputError, match="partial download of chexpert5x200: images 9 of 10"):
        SOURCES["chexpert5x200"](five, tmp_path / "no", progress=False)
    partial("chexpert5x200", five, tmp_path / "out")
    assert about(tmp_path / "out")["not_downloaded"] == 1


def test_5x200_is_known_by_its_four_counts(five, tmp_path):
    path, no = five / "chexpert_5x200.csv", tmp_path / "no"
    whole = pd.read_csv(path, dtype=str, keep_default_na=False)
    for change, message in (
        (lambda t: t.iloc[:9], r"9 rows, not 10; 9 patients, not 10; 1 rows of Pleural Effusion alone, not 2"),
        (lambda t: t.assign(Edema="1.0"), r"0 rows of Atelectasis alone, not 2; .*it is not the list that GLoRIA"),
        (lambda t: t.assign(Path=t["Path"].str.replace("00021", "00020")), r"csv: 9 patients, not 10: it is not"),
        (lambda t: t.drop(columns="Report Impression"), r"no column 'Report Impression'"),
    ):
        change(whole).to_csv(path, index=False)
        fails("chexpert5x200", five, no, message)
    path.unlink()
    fails("chexpert5x200", five, no, r"no chexpert_5x200\.csv here; take the list")
    fails("chexpert5x200", five, no, r"other\.csv: no such table", test_list="other.csv")


@pytest.mark.parametrize(
    ("old", "new", "column", "reason"),
    [
        ("Female,61", "Female,610", "Age", "610 is outside"),
        (",1. Case 0.", b",1. C\xe1se 0.", "Report Impression", "no UTF-8"),
        ("1.0,0.0,0.0,0.0,0.0,0.0,1. Case 0.", "1.0,0.0,0.0,0.0,0.0,-1.0,1. Case 0.", "Support Devices", "uncertain"),
        ("1.0,0.0,0.0,0.0,0.0,0.0,1. Case 0.", "1.0,0.0,0.0,0.0,0.0,x,1. Case 0.", "Support Devices", "'x' is none of"),
    ],
)
def test_5x200_sets_bad_rows_aside(five, tmp_path, old, new, column, reason):
    edit(five / "chexpert_5x200.csv", old, new)
    partial("chexpert5x200", five, tmp_path / "out", max_rejected=0.1)
    file, row, where, why = one_rejection(tmp_path / "out")
    assert (file, row, where) == ("chexpert_5x200.csv", "1", column)
    assert reason in why


def test_5x200_with_a_duplicate_and_with_a_damaged_film(five, tmp_path, monkeypatch):
    small_5x200(monkeypatch, 9)
    edit(five / "chexpert_5x200.csv", "patient00025", "patient00020")
    (five / FIVE[1]["Path"].partition("/")[2]).write_bytes(b"")
    partial("chexpert5x200", five, tmp_path / "out", max_rejected=0.2)
    lines = [(line["row"], line["column"]) for line in rejections(tmp_path / "out")]
    assert lines == [("6", "study"), ("2", "image")]


def test_5x200_drawn_as_mgca_does(five, tmp_path):
    out = partial("chexpert5x200-mgca", five, tmp_path / "out")
    assert out[["name", "studies", "impression"]].values.tolist() == [["chexpert5x200-mgca", 10, 0]]
    rows = pd.read_csv(five / "train.csv", dtype=str, keep_default_na=False)
    assert chexpert5x200.mgca_list(five / "train.csv", rows).index.tolist() != list(range(10))
    edit(five / "train.csv", "patient00023", "patient00024")
    fails("chexpert5x200-mgca", five, tmp_path / "no", r"9 patients, not 10: it is not the train\.csv of")
    table(five / "train.csv", FIVE[:9])
    fails("chexpert5x200-mgca", five, tmp_path / "no", "1 films have Pleural Effusion alone, fewer than 2")
    (five / "train.csv").unlink()
    fails("chexpert5x200-mgca", five, tmp_path / "no", r"no train\.csv here")


# ---------------------------------------------------------------------------------------------------------- vindr-cxr


def hex_id(number):
    return f"{number:032x}"


@pytest.fixture
def vindr_cxr(tmp_path):
    """Ten training films read by three, and four test films."""
    root = tmp_path / "vindr"
    names = [*vindr.FINDINGS, "No finding"]
    train = [{"image_id": hex_id(i), "rad_id": f"R{r}", **dict.fromkeys(names, 0)} for i in range(10) for r in range(3)]
    for i, row in enumerate(train):
        row["No finding" if i % 3 != 1 else "Pleural effusion"] = 1  # one of three sees fluid
    for row in train[27:]:
        row |= {"Pleural effusion": 0, "No finding": 1}
    test = [{"image_id": hex_id(100 + i), **dict.fromkeys(names, 0), "ILD": i % 2} for i in range(4)]
    table(root / "annotations" / "image_labels_train.csv", train)
    table(root / "annotations" / "image_labels_test.csv", test)
    for i in range(10):
        dicom(root / "train" / f"{hex_id(i)}.dicom", i, PatientSex="M", PatientAge="061Y")
    for i in range(4):
        dicom(root / "test" / f"{hex_id(100 + i)}.dicom", 100 + i, PatientSex="O", PatientAge="000Y")
    return root


def test_vindr_joins_three_readers_and_splits_as_the_paper(vindr_cxr, tmp_path):
    out = partial("vindr-cxr", vindr_cxr, tmp_path / "out")
    assert out[["split", "studies"]].values.tolist() == [["train", 8], ["valid", 2], ["test", 4]]
    validate(tmp_path / "out", [*vindr.FINDINGS, "No finding"])
    found = studies_of(tmp_path / "out")
    assert found[hex_id(0)]["positive"] == ["Pleural effusion"]
    assert "Pleural effusion" not in found[hex_id(0)]["negative"]
    assert len(found[hex_id(0)]["negative"]) == 26
    assert (found[hex_id(9)]["positive"], len(found[hex_id(9)]["negative"])) == (["No finding"], 27)
    assert [found[hex_id(100 + i)]["positive"] for i in range(2)] == [[], ["ILD"]]
    assert [found[hex_id(0)][name] for name in ("sex", "age", "views")] == ["M", 61, ["PA"]]
    assert [found[hex_id(100)][name] for name in ("sex", "age", "split")] == [None, 0, "test"]
    valid = {row["study_id"] for row in open_studies(tmp_path / "out", "valid")}
    assert valid == {item for item, split in train_valid_split(map(hex_id, range(10))).items() if split == "valid"}


def test_no_other_header_field_reaches_the_table(vindr_cxr, tmp_path):
    partial("vindr-cxr", vindr_cxr, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert b"Secret" not in path.read_bytes()
        assert b"secret-id" not in path.read_bytes()


@pytest.mark.parametrize(
    ("old", "new", "row", "column", "reason"),
    [
        (f"{hex_id(2)},R0,0", f"{hex_id(2)},R0,2", "7", "Aortic enlargement", "'2' is not 0 or 1"),
        (f"{hex_id(2)},R0", f"{hex_id(2)},R1", "7", "rad_id", "has the readers R1, R1, R2, not 3 different ones"),
        (f"{hex_id(2)},R0", f"{hex_id(2)},R0", None, None, None),
        (f"{hex_id(2)},R0,0", f"{hex_id(2)},R0,\udce9", "7", "Aortic enlargement", "no UTF-8"),
    ],
)
def test_vindr_sets_bad_rows_aside(vindr_cxr, tmp_path, old, new, row, column, reason):
    edit(vindr_cxr / "annotations" / "image_labels_train.csv", old, new.encode("utf-8", "surrogateescape"))
    out = partial("vindr-cxr", vindr_cxr, tmp_path / "out", max_rejected=0.1)
    assert out["studies"].sum() == (13 if row else 14)
    if row:
        assert one_rejection(tmp_path / "out")[:3] == ("image_labels_train.csv", row, column)
        assert reason in one_rejection(tmp_path / "out")[3]


def test_vindr_bad_films_and_other_tables(vindr_cxr, tmp_path):
    path, no = vindr_cxr / "test" / f"{hex_id(101)}.dicom", tmp_path / "no"
    path.write_bytes(path.read_bytes()[:200])
    (vindr_cxr / "train" / f"{hex_id(3)}.dicom").unlink()
    with open(vindr_cxr / "annotations" / "image_labels_test.csv", "a") as file:
        file.write(f"{hex_id(102)}{',0' * 28}\n")
    partial("vindr-cxr", vindr_cxr, tmp_path / "out", max_rejected=0.2)
    lines = [(line["file"], line["row"], line["column"]) for line in rejections(tmp_path / "out")]
    assert lines == [("image_labels_test.csv", "5", "image_id"), ("image_labels_test.csv", "2", "image")]
    assert about(tmp_path / "out")["not_downloaded"] == 1
    with pytest.raises(InputError, match=r"partial download of vindr-cxr: rows of .*_train\.csv 30 of 45,000"):
        SOURCES["vindr-cxr"](vindr_cxr, no, progress=False)
    edit(vindr_cxr / "annotations" / "image_labels_train.csv", "Other diseases", "Other disease")
    partial("vindr-cxr", vindr_cxr, tmp_path / "out", max_rejected=0.2)
    edit(vindr_cxr / "annotations" / "image_labels_train.csv", "Lung cyst", "Cyst")
    fails("vindr-cxr", vindr_cxr, no, "no column 'Lung cyst'; VinDr-CXR 1.0.0 has 28 columns of labels")
    boxes = "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    (vindr_cxr / "annotations" / "image_labels_train.csv").write_text(boxes)
    fails("vindr-cxr", vindr_cxr, no, "a table of boxes, as in VinBigData on Kaggle")
    for path in vindr_cxr.rglob("*.dicom"):
        path.unlink()
    (vindr_cxr / "annotations" / "image_labels_train.csv").unlink()
    fails("vindr-cxr", vindr_cxr, no, "no film is in train/ or test/")
    (vindr_cxr / "annotations" / "image_labels_test.csv").unlink()
    fails("vindr-cxr", vindr_cxr, no, r"no annotations/image_labels_train\.csv nor")


@pytest.mark.parametrize(
    ("fields", "view", "sex", "age", "odd"),
    [
        ({"PatientSex": "F", "PatientAge": "061Y", "ViewPosition": "ap"}, "AP", "F", 61, 0),
        ({"PatientAge": "006M"}, "", None, 0.5, 0),
        ({"PatientAge": "43"}, "", None, 43, 0),
        ({"PatientAge": "238Y", "PatientSex": "X"}, "", None, None, 2),
        ({"PatientSex": "O"}, "", None, None, 0),
        ({}, "", None, None, 0),
    ],
)
@pytest.mark.filterwarnings("error")
def test_the_three_header_fields(tmp_path, fields, view, sex, age, odd):
    dicom(tmp_path / "a.dcm", **fields)
    assert read_header(tmp_path / "a.dcm") == (view, sex, age, odd)
    (tmp_path / "a.dcm").write_bytes(b"no dicom")
    assert read_header(tmp_path / "a.dcm") == ("", None, None, 0)
    assert read_header(tmp_path / "gone.png") == ("", None, None, 0)


# --------------------------------------------------------------------------------------------------------------- rsna

KINDS = ("Lung Opacity", "No Lung Opacity / Not Normal", "Normal")


@pytest.fixture
def rsna_root(tmp_path):
    """Twenty patients, of whom those with an opacity have two boxes."""
    root, boxes, kinds = tmp_path / "rsna", [], []
    for p in range(20):
        ill = p % 3 == 0
        for box in range(1 + ill):
            boxes.append((f"p{p:02d}", *(("1", box, "9", "9") if ill else [""] * 4), int(ill)))
            kinds.append((f"p{p:02d}", KINDS[p % 3]))
        age = "155" if p == 19 else "43"
        dicom(root / "stage_2_train_images" / f"p{p:02d}.dcm", p, ViewPosition="PA", PatientSex="F", PatientAge=age)
    table(root / "stage_2_train_labels.csv", boxes, ["patientId", "x", "y", "width", "height", "Target"])
    table(root / "stage_2_detailed_class_info.csv", kinds, ["patientId", "class"])
    return root


def test_rsna_reads_classes_headers_and_the_splits_of_gloria(rsna_root, tmp_path):
    out = partial("rsna", rsna_root, tmp_path / "out")
    assert out[["split", "studies"]].values.tolist() == [["train", 14], ["valid", 3], ["test", 3]]
    validate(tmp_path / "out", ["Pneumonia", "Normal"])
    found = studies_of(tmp_path / "out")
    assert [(found[f"p0{p}"]["positive"], found[f"p0{p}"]["negative"]) for p in range(3)] == [
        (["Pneumonia"], []), ([], ["Pneumonia"]), (["Normal"], ["Pneumonia"])]
    assert [found["p00"][name] for name in ("views", "sex", "age")] == [["PA"], "F", 43]
    assert (found["p19"]["age"], about(tmp_path / "out")["odd_headers"]) == (None, 1)
    splits = gloria_split([f"p{p:02d}" for p in range(20)])
    assert {key: row["split"] for key, row in found.items()} == splits
    (rsna_root / "stage_2_train_images" / "p05.dcm").unlink()
    partial("rsna", rsna_root, tmp_path / "less")
    assert {key: row["split"] for key, row in studies_of(tmp_path / "less").items()}.items() < splits.items()
    with pytest.raises(InputError, match=r"partial download of rsna: .*patients 20 of 26,684, images 19 of 26,684"):
        SOURCES["rsna"](rsna_root, tmp_path / "no", progress=False)


LABELS, CLASSES = "stage_2_train_labels.csv", "stage_2_detailed_class_info.csv"


@pytest.mark.parametrize(
    ("file", "old", "new", "lines"),
    [
        (CLASSES, "p05,Normal", "p05,Healthy", [(CLASSES, "8", "class", "'Healthy' is not one of Lung Opacity")]),
        (CLASSES, "p03,Lung Opacity\np03", "p03,Normal\np03", [(CLASSES, "6", "class", "p03 is 'Normal' in row 5")]),
        (CLASSES, "p05,Normal", "p05,Lung Opacity", [(CLASSES, "8", "class", "which its Target in stage_2")]),
        (CLASSES, "p05,Normal\n", "", [(LABELS, "8", "patientId", "'p05' is not in stage_2_detailed")]),
        (LABELS, "p05,,,,,0", "p05,,,,,7", [(LABELS, "8", "Target", "'7' is not 0 or 1"),
                                           (CLASSES, "8", "patientId", "has no usable row")]),
    ],
)
def test_rsna_sets_bad_rows_aside(rsna_root, tmp_path, file, old, new, lines):
    edit(rsna_root / file, old, new)
    assert partial("rsna", rsna_root, tmp_path / "out", max_rejected=0.1)["studies"].sum() == 19
    found = rejections(tmp_path / "out")
    assert [(line["file"], line["row"], line["column"]) for line in found] == [line[:3] for line in lines]
    assert all(want[3] in line["reason"] for want, line in zip(lines, found, strict=True))


def test_rsna_bad_films_and_missing_tables(rsna_root, tmp_path):
    path, no = rsna_root / "stage_2_train_images" / "p04.dcm", tmp_path / "no"
    path.write_bytes(b"not a film")
    partial("rsna", rsna_root, tmp_path / "out", max_rejected=0.1)
    assert one_rejection(tmp_path / "out")[:3] == (CLASSES, "7", "image")
    edit(rsna_root / CLASSES, "class", "klass")
    fails("rsna", rsna_root, no, r"stage_2_detailed_class_info\.csv: no column 'class'; its columns are 'patientId'")
    (rsna_root / CLASSES).unlink()
    fails("rsna", rsna_root, no, r"no stage_2_detailed_class_info\.csv; give the folder")
    table(rsna_root / CLASSES, [("p00", "Normal")], ["patientId", "class"])
    (rsna_root / "stage_2_train_images").rename(rsna_root / "images")
    fails("rsna", rsna_root, no, "no film is in stage_2_train_images/")


# --------------------------------------------------------------------------------------------------------------- siim


@pytest.fixture
def siim_root(tmp_path):
    """Twenty films, every fourth with two masks, in the layout of train-rle.csv with its space."""
    root, lines = tmp_path / "siim", []
    for i in range(20):
        lines += [f"1.2.{i}, -1"] if i % 4 else [f"1.2.{i}, 5 3 10 {m}" for m in range(2)]
        dicom(root / "dicom-images-train" / f"s{i}" / f"e{i}" / f"1.2.{i}.dcm", i, ViewPosition="AP", PatientAge="030")
    (root / "train-rle.csv").write_text("ImageId, EncodedPixels\n" + "\n".join(lines) + "\n")
    return root


def test_siim_splits_by_image_and_reads_both_headers(siim_root, tmp_path):
    out = partial("siim", siim_root, tmp_path / "out")
    assert out[["split", "studies"]].values.tolist() == [["train", 14], ["valid", 3], ["test", 3]]
    validate(tmp_path / "out", ["Pneumothorax"])
    found = studies_of(tmp_path / "out")
    assert [found[f"1.2.{i}"]["positive"] for i in range(2)] == [["Pneumothorax"], []]
    assert [found[f"1.2.{i}"]["negative"] for i in range(2)] == [[], ["Pneumothorax"]]
    assert (found["1.2.0"]["views"], found["1.2.0"]["age"]) == (["AP"], 30)
    text = (siim_root / "train-rle.csv").read_text().replace(", ", ",")
    (siim_root / "stage_2_train.csv").write_text(text)
    (siim_root / "train-rle.csv").unlink()
    partial("siim", siim_root, tmp_path / "stage2")
    assert {key: row["split"] for key, row in studies_of(tmp_path / "stage2").items()} == {
        key: row["split"] for key, row in found.items()}
    with pytest.raises(InputError, match=r"partial download of siim: rows 25 of 12,954, images listed 20 of 12,047"):
        SOURCES["siim"](siim_root, tmp_path / "no", progress=False)


@pytest.mark.parametrize(
    ("old", "new", "row", "reason", "studies"),
    [
        ("1.2.5, -1", "1.2.5, 5 3 10", "8", "'5 3 10' is neither -1 nor pairs of numbers", 19),
        ("1.2.5, -1", "1.2.5, none", "8", "'none' is neither", 19),
        ("1.2.5, -1", "1.2.5,", "8", "'' is neither", 19),
        ("1.2.4, 5 3 10 1", "1.2.4, -1", "7", "1.2.4 has a mask and -1", 19),
        ("1.2.4, 5 3 10 1", "1.2.4, 5 3 10 0", "7", "the same as in row 6; the first is kept", 20),
    ],
)
def test_siim_sets_bad_rows_aside(siim_root, tmp_path, old, new, row, reason, studies):
    edit(siim_root / "train-rle.csv", old, new)
    assert partial("siim", siim_root, tmp_path / "out", max_rejected=0.1)["studies"].sum() == studies
    assert one_rejection(tmp_path / "out")[:3] == ("train-rle.csv", row, "EncodedPixels")
    assert reason in one_rejection(tmp_path / "out")[3]


def test_siim_bad_films_and_missing_tables(siim_root, tmp_path):
    no, path = tmp_path / "no", next(siim_root.rglob("1.2.7.dcm"))
    path.write_bytes(b"")
    next(siim_root.rglob("1.2.8.dcm")).unlink()
    partial("siim", siim_root, tmp_path / "out", max_rejected=0.1)
    assert one_rejection(tmp_path / "out")[:3] == ("train-rle.csv", "10", "image")
    assert about(tmp_path / "out")["not_downloaded"] == 1
    edit(siim_root / "train-rle.csv", "EncodedPixels", "Pixels")
    fails("siim", siim_root, no, r"train-rle\.csv: no column 'EncodedPixels'; its columns are 'ImageId', 'Pixels'")
    fails("siim", siim_root, no, r"other\.csv: no such table", file="other.csv")
    (siim_root / "train-rle.csv").unlink()
    fails("siim", siim_root, no, r"neither train-rle\.csv nor stage_2_train\.csv")
    (siim_root / "stage_2_train.csv").write_text("ImageId,EncodedPixels\n9.9,-1\n")
    fails("siim", siim_root, no, "none of the 1 listed films is here")


# ------------------------------------------------------------------------------------------------------ public tables


def test_the_public_table_of_chexpert_has_the_known_counts(tmp_path):
    data = gzip.decompress(public_table("chexpert_train.csv.gz").read_bytes())
    (tmp_path / "train.csv").write_bytes(data)
    ((path, rows),) = label_tables(Intake("chexpert", tmp_path))
    drawn = chexpert5x200.mgca_list(path, rows)  # raises where its counts differ
    patients = patients_of(drawn["Path"])
    found = chexpert.counts([(path, rows)], ~patients_of(rows["Path"]).isin(patients), True)
    for what in ("rows of train.csv", "patients of train.csv"):
        assert found[what] == chexpert.EXPECTED[what]
    assert {what: found[what] for what in ("rows left", "patients left")} == chexpert.REMAINING["mgca"]


def test_the_public_table_of_rsna_has_the_known_splits():
    boxes = read_table(public_table("kaggle_stage_2_train_labels.csv.zip"), ("patientId", "Target"), only=True)
    classes = boxes.assign(**{"class": np.where(boxes["Target"] == "1", "Lung Opacity", "Normal")})
    found = rsna.counts(classes, boxes, {}, gloria_split(boxes["patientId"]))
    for what in (f"rows of {LABELS}", "patients", "Lung Opacity", "split train", "split valid", "split test"):
        assert found[what] == rsna.EXPECTED[what]
    assert (found["split train"], found["split valid"], found["split test"]) == (18_678, 4_003, 4_003)


def test_the_public_table_of_siim_has_the_known_splits():
    rows = read_table(public_table("siim-pneumothorax-train-rle.csv.gz"), siim.COLUMNS)
    found = siim.counts(rows, {}, gloria_split(rows["ImageId"]))
    assert found | {"images": 12_047} == siim.EXPECTED
    masks = sum(len(group) > 1 for _, group in grouped(rows, "ImageId"))
    assert masks > 0, "films with several masks are why the split goes by image"


def test_the_public_tables_of_nih_and_open_i_have_the_known_counts(tmp_path):
    rows = read_table(public_table("Data_Entry_2017_v2020.csv.gz"), chestxray14.COLUMNS)
    found = chestxray14.counts(rows, pd.Series(dtype=bool), {})
    assert (found["rows"], found["patients"]) == (112_120, 30_805)
    with tarfile.open(public_table("NLMCXR_reports.tgz")) as archive:
        archive.extractall(tmp_path, filter="data")
    reports = list(openi.xml_reports(next(tmp_path.rglob("1.xml")).parent))
    found = openi.counts(reports, {}, {})
    assert {what: found[what] for what in openi.EXPECTED["ecgen-radiology"]} == openi.EXPECTED["ecgen-radiology"] | {
        "images": 0}


# ------------------------------------------------------------------------------------------------------- from text


def test_a_source_is_prepared_from_text_and_reported_with_its_counts(siim_root, tmp_path):
    edit(siim_root / "train-rle.csv", "1.2.5, -1", "1.2.5, none")
    next(siim_root.rglob("1.2.7.dcm")).write_bytes(b"")
    call = ("siim", siim_root, tmp_path / "out")
    with pytest.raises(InputError, match=r": a partial download of siim: rows 25 of 12,954, ") as caught:
        prepare_from_text(*call, False)
    assert str(caught.value).startswith(str(siim_root))
    assert not (tmp_path / "out").exists()
    text = prepare_from_text(*call, True, ["max_rejected=0.2", "image_size=16", "progress=false"])
    assert "The download is NOT the whole release:" in text
    assert [line.split() for line in text.splitlines() if "split train" in line] == [
        ["split", "train", "8,432", "14", "-8,418"]]
    assert "2 set aside, listed in " in text
    assert "1 in train-rle.csv, column EncodedPixels, the first: 'none' is neither -1 nor pairs of numbers" in text
    assert text.endswith(f"18 studies are in {tmp_path / 'out'}")
    assert re.search(r"^films by view: [A-Z]+ \d+", text, re.MULTILINE)
    assert "the 10 oddest values" in text
    assert len(text.splitlines()) < 40, "one screen"
    validate(tmp_path / "out")


def test_the_oddest_values_are_extremes_and_what_is_rare():
    table = pd.DataFrame({"study_id": list("abcd"), "sex": ["F", "F", "F", "M"], "age": [40, 3, 107, None],
                          "findings": ["Clear.", None, "x", "The lungs are clear."], "impression": None,
                          "views": [["PA"], ["PA", "LL"], ["PA"], ["PA"]], "positive": [["Edema"]] * 4,
                          "negative": [[]] * 4, "uncertain": [[]] * 4})
    assert account.oddest(table) == [
        "age, the least: 3 years, in b", "age, the most: 107 years, in c", "findings, the least: 1 characters, in c",
        "findings, the most: 20 characters, in d", "view 'LL': 1 times, such as in b", "sex 'M': 1 times, such as in d",
        "sex 'F': 3 times, such as in a", "view 'PA': 4 times, such as in a",
        "positive label 'Edema': 4 times, such as in a"]


def test_headings_without_a_section_are_counted_and_rare_ones_not_printed(mimic_cxr, tmp_path, monkeypatch):
    """What stands under other headings is not kept: how often is told. A heading that stands once may be text."""
    seen = []
    monkeypatch.setattr(account, "_listed", lambda counts, *_: seen.append(dict(counts)) or "x")
    prepare_from_text("mimic-cxr", mimic_cxr, tmp_path / "out", True, ["progress=false", "image_size=16"])
    dropped = about(tmp_path / "out")["dropped_headings"]
    assert dropped
    assert [counts for counts in seen if set(counts) <= set(dropped)] == [
        {name: count for name, count in dropped.items() if count > 1}]


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("padchest", ["seed=1"], "unknown source 'padchest': choose one of mimic-cxr, chexpert"),
        ("siim", ["seed"], "option 'seed': write NAME=VALUE"),
        ("siim", ["seeds=1"], "option 'seeds': siim has no such option; it has allow_partial, file, image_size"),
        ("siim", ["file=["], r"option file: '\[' is not YAML"),
        ("siim", ["image_size=large"], "option image_size: .* valid integer, .* found 'large'"),
        ("table", ["images=a"], "option 'images': table has no such option; it has age, allow_partial, expected"),
        ("table", ["file=t.csv", "image=a"], "table: option 'patient' is needed"),
        ("table", ["image=a", "patient=b"], "table: option 'file' is needed"),
    ],
)
def test_bad_options_are_one_line(tmp_path, source, options, message):
    with pytest.raises(InputError, match=message) as caught:
        prepare_from_text(source, tmp_path / "gone", tmp_path / "out", False, options)
    assert "\n" not in str(caught.value)


def test_every_source_takes_the_shared_options_and_each_its_own_types():
    for name in SOURCES:
        assert parse_options(name, ["allow_partial=true", "image_size=64", "max_rejected=0.5", "progress=false"]) == {
            "allow_partial": True, "image_size": 64, "max_rejected": 0.5, "progress": False}
    columns = ["image=[f, l]", "patient=1", "mapping={NORMAL: [No Finding]}", "shares={train: 1}",
               "values={positive: yes, negative: 0}", "study=id"]
    assert parse_options("table", columns) == {
        "image": ["f", "l"], "patient": "1", "mapping": {"NORMAL": ["No Finding"]}, "shares": {"train": 1},
        "values": {"positive": True, "negative": 0}, "study": "id"}
    assert parse_options("chestxray14", ["images=[images_001]"]) == {"images": ["images_001"]}


# ------------------------------------------------------------------------------------------------ downloads to tables


def test_each_download_fills_its_role_up_to_the_tables(mimic_cxr, five, vindr_cxr, rsna_root, siim_root, tmp_path):
    """Layout -> study table -> pretraining -> Tables 2 and 3, by a mix that names nothing but folders."""
    def source(name, root, **more):
        options = {"allow_partial": True, "image_size": 64} | more.pop("options", {})
        return {"source": name, "root": root.name, "options": options, **more}

    for number, root in enumerate((five, vindr_cxr, rsna_root, siim_root), 1):  # else one film stands in several sets
        for i, path in enumerate(sorted(path for path in root.rglob("*") if path.suffix in (".jpg", ".dcm", ".dicom"))):
            (film if path.suffix == ".jpg" else dicom)(path, 1000 * number + i)
    both = ["zero-shot", "linear-probe"]
    mix = {"about": "Faked downloads.",
           "pretraining": {"M": source("mimic-cxr", mimic_cxr), "C": source("chexpert", five),
                           "C14": {"missing": "no NIH films here"}},
           "tests": {"vindr-cxr": source("vindr-cxr", vindr_cxr, tasks=both),
                     "rsna": source("rsna", rsna_root, tasks=both, split="train"),
                     "siim": source("siim", siim_root, tasks=both, split="train"),
                     "chexpert5x200": source("chexpert5x200", five, tasks=["zero-shot", "retrieval"]),
                     "mimic-cxr": {"role": "M", "tasks": ["retrieval"], "split": "train"},
                     "openi": {"missing": "no Open-I films here"}}}
    path = tmp_path / "downloads.yaml"
    path.write_text(yaml.safe_dump(mix))
    bench = Workbench(tmp_path / "build", str(tmp_path), progress=False, jobs=1)
    run = pretrain(Experiment.at("quick", mix=str(path), pretraining=("M", "C"), batch_size=4, steps=2, validations=1),
                   bench, report=lambda step: None)
    rows = evaluate(run)
    assert set(rows["dataset"]) == {"vindr-cxr", "rsna", "siim", "chexpert5x200", "mimic-cxr"}
    table = tables.table2(rows, run.data.missing).cells.loc[("CXR-CLIP", "resnet-small (ResNet-50)", "M,C")]
    ours = {name: text for name, text in table.items() if not name[1].startswith(tables.PUBLISHED)}
    assert all("[" in text for text in ours.values()), "a measured number with its interval in every cell"
    retrieval = tables.table3(rows, run.data.missing)
    cells = retrieval.cells.loc[("CXR-CLIP", "resnet-small (ResNet-50)", "M,C")]
    assert "[" in cells["CheXpert5x200", "R@1"]
    assert "[" in cells["MIMIC-CXR", "R@10"]
    assert cells["Open-I", "R@1"].startswith(tables.DASH)
    assert [line for line in retrieval.footnotes if "no Open-I films here" in line], "the reason stands below the table"
