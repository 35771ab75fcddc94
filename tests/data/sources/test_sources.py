"""cxrclip.data.sources: each public layout, with its traps, becomes a study table."""

import gzip
import json

import numpy as np
import pandas as pd
import pytest
from downloads import about, edit, film, partial, quick_decoding, real, rejections, studies_of  # noqa: F401

from cxrclip.data.images import read_gray
from cxrclip.data.sources import SOURCES, chestxray14
from cxrclip.data.sources.chestxray14 import FINDINGS
from cxrclip.data.sources.splits import split_patients
from cxrclip.errors import InputError
from cxrclip.studies import check_leakage, open_studies, validate

pytestmark = pytest.mark.usefixtures("quick_decoding")

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]\n"
)


# ------------------------------------------------------------------------------------------------- chestxray14


def nih_row(patient, number, labels="No Finding", age="58", sex="M", view="PA"):
    return f"{patient:08d}_{number:03d}.png,{labels},{number},{patient},{age},{sex},{view},2682,2749,0.143,0.143\n"


@pytest.fixture
def nih(tmp_path):
    """Twenty patients with two films each, the last four films not downloaded."""
    root = tmp_path / "nih"
    rows = [nih_row(p, n, ["No Finding", "Effusion|Pleural_Thickening"][n]) for p in range(1, 21) for n in range(2)]
    root.mkdir()
    (root / "Data_Entry_2017_v2020.csv").write_text(HEADER + "".join(rows))
    for p in range(1, 19):
        for n in range(2):
            film(root / f"images_00{1 + p % 2}" / "images" / f"{p:08d}_{n:03d}.png", seed=2 * p + n)
    return root


def test_chestxray14_reads_the_nih_layout(nih, tmp_path):
    film(nih / "images_002" / "00000002_000.png", seed=99)  # in two folders: images_001 wins
    film(nih / "images_002" / "99999999_000.png")  # without a row
    table = partial("chestxray14", nih, tmp_path / "out", progress=False)
    assert table["studies"].tolist() == [26, 2, 8]
    assert table["patients"].tolist() == [13, 1, 4]
    validate(tmp_path / "out", [*FINDINGS, "No Finding"])
    check_leakage({"nih": tmp_path / "out"})
    facts = about(tmp_path / "out")
    assert (facts["not_downloaded"], facts["in_two_folders"], facts["without_row"]) == (4, 1, 1)
    found = studies_of(tmp_path / "out")
    normal, ill = found["00000002_000"], found["00000002_001"]
    assert normal["positive"] == ["No Finding"]
    assert normal["negative"] == list(FINDINGS)
    assert ill["positive"] == ["Pleural Effusion", "Pleural Thickening"]
    assert ill["negative"] == [name for name in FINDINGS if not name.startswith("Pleural")]
    about_ill = [ill[name] for name in ("sex", "age", "views", "patient_id", "source")]
    assert about_ill == ["M", 58, ["PA"], "2", "chestxray14"]
    assert normal["images"][0]["path"] == "images_001/images/00000002_000.png"
    original = read_gray(nih / normal["images"][0]["path"], "original").astype(int)
    assert np.abs(read_gray(normal["images"][0]["bytes"], "stored") - original).mean() < 3


def test_chestxray14_takes_only_the_folders_asked_for(nih, tmp_path):
    table = partial("chestxray14", nih, tmp_path / "out", images=("images_002",), progress=False)
    assert table["studies"].sum() == 18
    assert about(tmp_path / "out")["not_downloaded"] == 22
    with pytest.raises(InputError, match="images_003: no such folder"):
        partial("chestxray14", nih, tmp_path / "out", images=("images_003",), progress=False)


def test_chestxray14_follows_the_official_lists(nih, tmp_path):
    names = [f"{p:08d}_{n:03d}.png" for p in range(1, 21) for n in range(2)]
    (nih / "train_val_list.txt").write_text("\n".join(names[:20]))
    (nih / "test_list.txt").write_text("\n".join(names[20:]))
    shares = {"train": 0.4, "valid": 0.1, "test": 0.5}  # the list decides what is test, the ratio 4:1 what is valid
    table = partial("chestxray14", nih, tmp_path / "out", shares=shares, progress=False).set_index("split")
    assert table["studies"].to_dict() == {"train": 16, "valid": 4, "test": 16}
    tests = {row["study_id"] for row in open_studies(tmp_path / "out", "test")}
    assert tests == {name.removesuffix(".png") for name in names[20:36]}
    (nih / "test_list.txt").write_text("\n".join(names[21:]))
    with pytest.raises(InputError, match="in neither train_val_list"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)
    (nih / "test_list.txt").write_text("\n".join([*names[20:], names[1]]))
    with pytest.raises(InputError, match=r"patient 1 is in train_val_list\.txt and in test_list\.txt"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)


@pytest.mark.parametrize(
    ("old", "new", "column", "reason"),
    [
        ("Effusion|Pleural_Thickening,1,3,", "Effusion|Oedema,1,3,", "Finding Labels", "'Effusion|Oedema' is not"),
        ("Effusion|Pleural_Thickening,1,3,", "No Finding|Mass,1,3,", "Finding Labels", "'No Finding|Mass'"),
        ("Effusion|Pleural_Thickening,1,3,", "Mass|Mass,1,3,", "Finding Labels", "'Mass|Mass'"),
        ("Effusion|Pleural_Thickening,1,3,", ",1,3,", "Finding Labels", "''"),
        ("1,3,58,M", "1,3,414,M", "Patient Age", "414 is outside 0 to 120 years"),
        ("1,3,58,M", "1,3,old,M", "Patient Age", "'old' is not a number"),
        ("1,3,58,M", "1,3,58,W", "Patient Gender", "'W' is not F or M"),
        ("1,3,58,M", "1,,58,M", "Patient ID", "is empty"),
        ("1,3,58,M,PA", "1,3,58,M,LL", "View Position", "'LL' is not PA or AP"),
        ("00000003_001", "00000003_000", "study", "00000003_000 stands already in row 5; the first is kept"),
    ],
)
def test_chestxray14_sets_bad_rows_aside(nih, tmp_path, old, new, column, reason):
    edit(nih / "Data_Entry_2017_v2020.csv", old, new)
    table = partial("chestxray14", nih, tmp_path / "out", progress=False)
    assert table["studies"].sum() == 35
    (line,) = rejections(tmp_path / "out")
    assert (line["file"], line["row"], line["column"]) == ("Data_Entry_2017_v2020.csv", "6", column)
    assert reason in line["reason"]
    with pytest.raises(InputError, match=r"nothing written, 1 of 36 rows .*row 6"):
        partial("chestxray14", nih, tmp_path / "again", max_rejected=0.02, progress=False)
    assert not (tmp_path / "again").exists()


def test_bad_films_are_set_aside_and_too_many_stop(nih, tmp_path):
    names = sorted((nih / "images_001" / "images").glob("*.png"))
    names[0].write_bytes(names[0].read_bytes()[:200])
    table = partial("chestxray14", nih, tmp_path / "out", progress=False)
    assert table["studies"].sum() == 35
    (line,) = rejections(tmp_path / "out")
    assert line["row"] == "3"
    assert line["reason"].startswith("images_001/images/00000002_000.png: the image is cut or damaged")
    names[1].write_bytes(b"")
    with pytest.raises(InputError, match=r"2 of 36 rows are unusable, more than max_rejected=0.05 .*0 bytes") as caught:
        partial("chestxray14", nih, tmp_path / "again", progress=False)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "again").exists()
    partial("chestxray14", nih, tmp_path / "again", max_rejected=0.1, progress=False)


def test_the_same_call_gives_the_same_content_and_another_seed_other_splits(nih, tmp_path):
    def prepared(name, **options):
        partial("chestxray14", nih, tmp_path / name, progress=False, **options)
        return json.loads((tmp_path / name / "dataset.json").read_text())["sha256"]

    assert prepared("a") == prepared("b")
    assert prepared("a") != prepared("c", seed=1)
    assert prepared("a") != prepared("d", image_size=16)
    stored = read_gray(studies_of(tmp_path / "d")["00000001_000"]["images"][0]["bytes"], "stored")
    assert stored.shape == (21, 16)


def test_chestxray14_names_what_is_missing(nih, tmp_path, capsys):
    with pytest.raises(InputError, match="image_size=3 needs at least 16"):
        partial("chestxray14", nih, tmp_path / "out", image_size=3, progress=False)
    with pytest.raises(InputError, match="no such folder; give the folder of the NIH download"):
        partial("chestxray14", tmp_path / "nowhere", tmp_path / "out", progress=False)
    edit(nih / "Data_Entry_2017_v2020.csv", "Patient Age", "Age")
    with pytest.raises(InputError, match="no column 'Patient Age'; its columns are 'Image Index'"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)
    (nih / "Data_Entry_2017_v2020.csv").write_text(HEADER + nih_row(77, 0))
    with pytest.raises(InputError, match="none of the 1 listed films"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)
    (nih / "Data_Entry_2017_v2020.csv").write_bytes(b"\xff\xfe\x00,\x81")
    with pytest.raises(InputError, match="not a readable table"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)
    (nih / "Data_Entry_2017_v2020.csv").unlink()
    with pytest.raises(InputError, match=r"no Data_Entry_2017_v2020\.csv"):
        partial("chestxray14", nih, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr() == ("", "")


def test_a_partial_download_says_so(nih, tmp_path, capsys):
    with pytest.raises(InputError, match=r"nih: a partial download of chestxray14: rows 40 of 112,120, .*images 36 of "
                       r"112,120, .*; fetch the rest, or set --allow-partial") as caught:
        SOURCES["chestxray14"](nih, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert "112,120    36 -112,084" in capsys.readouterr().err
    partial("chestxray14", nih, tmp_path / "out", progress=True)
    counts = about(tmp_path / "out")["counts"]
    assert (counts["whole"], counts["expected"]["images"], counts["found"]["images"]) == (False, 112_120, 36)
    assert "36 studies of Data_Entry_2017_v2020.csv found; 0 rejected, 4 not downloaded" in capsys.readouterr().err


def test_a_full_download_needs_no_word_and_more_than_that_is_another_release(nih, tmp_path, monkeypatch):
    names = [f"{p:08d}_{n:03d}.png" for p in range(1, 21) for n in range(2)]
    (nih / "train_val_list.txt").write_text("\n".join(names[:20]))
    (nih / "test_list.txt").write_text("\n".join(names[20:]))
    whole = {"rows": 40, "patients": 20, "images": 36, "in train_val_list.txt": 20, "in test_list.txt": 20}
    monkeypatch.setattr(chestxray14, "EXPECTED", whole)
    SOURCES["chestxray14"](nih, tmp_path / "out", progress=False)
    assert about(tmp_path / "out")["counts"] == {"whole": True, "expected": whole, "found": whole}
    monkeypatch.setattr(chestxray14, "EXPECTED", whole | {"rows": 39, "images": 40})
    with pytest.raises(InputError, match=r"not the chestxray14 release known here: rows 40 of 39, images 36 of 40"):
        SOURCES["chestxray14"](nih, tmp_path / "out", progress=False)


# ------------------------------------------------------------------------------------------------------- openi


def openi_xml(uid, films, findings="Heart is <b>fine</b>.", impression="Normal\n  XXXX."):
    filled = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
    sections = (filled if findings else '<AbstractText Label="FINDINGS"/>') + (
        f'<AbstractText Label="IMPRESSION">{impression}</AbstractText>'
        '<AbstractText Label="INDICATION">pain</AbstractText>'
    )
    images = "".join(f'<parentImage id="{name}"><caption>PA and lateral</caption></parentImage>' for name in films)
    return f'<eCitation><uId id="CXR{uid}"/><Abstract>{sections}</Abstract>{images}</eCitation>'


@pytest.fixture
def openi(tmp_path):
    """Five reports: two films; one of two here; three films; without text; not downloaded. And one without films."""
    root = tmp_path / "openi"
    (root / "ecgen-radiology").mkdir(parents=True)
    reports = {
        "1": openi_xml(1, ["CXR1_1_IM-0001-3001", "CXR1_1_IM-0001-4001"]),
        "2": openi_xml(2, ["CXR2_IM-0652-1001", "CXR2_IM-0652-2001"], findings=""),
        "3": openi_xml(3, ["CXR3_IM-1-1", "CXR3_IM-1-2", "CXR3_IM-1-3"]),
        "4": openi_xml(4, ["CXR4_IM-1-1"], findings="", impression="  "),
        "5": openi_xml(5, ["CXR5_IM-1-1"]),
        "10": openi_xml(10, []),
    }
    for uid, text in reports.items():
        (root / "ecgen-radiology" / f"{uid}.xml").write_text(text)
    there = ("1_1_IM-0001-3001", "1_1_IM-0001-4001", "2_IM-0652-2001", "3_IM-1-1", "3_IM-1-2", "3_IM-1-3", "4_IM-1-1")
    for seed, name in enumerate(there):
        film(root / "images" / f"CXR{name}.png", seed)
    return root


def test_openi_reads_the_xml_layout_and_guesses_views(openi, tmp_path):
    table = partial("openi", openi, tmp_path / "out", max_rejected=0.5, progress=False)
    assert table[["split", "studies", "images", "both_sections"]].values.tolist() == [["test", 3, 6, 2]]
    validate(tmp_path / "out")
    facts = about(tmp_path / "out")
    counts = [facts[name] for name in ("not_downloaded", "without_film", "missing_films", "guessed_views")]
    assert counts == [1, 1, 2, 7]  # the report without a text had a view, too
    found = studies_of(tmp_path / "out")
    assert found["CXR1"]["findings"] == "Heart is fine."
    assert found["CXR1"]["impression"] == "Normal XXXX."
    assert found["CXR1"]["views"] == ["FRONTAL", "LATERAL"]
    assert found["CXR2"]["findings"] is None
    assert found["CXR2"]["views"] == ["LATERAL"]  # it is the second of its report, though alone here
    assert found["CXR3"]["views"] == ["FRONTAL", "UNKNOWN", "UNKNOWN"]
    (line,) = rejections(tmp_path / "out")
    assert "report 4 has no text" in line["reason"]


def test_openi_takes_views_from_the_mirror_and_puts_frontals_first(openi, tmp_path):
    rows = [("1", "1_1_IM-0001-3001.dcm.png", "Lateral"), ("1", "1_1_IM-0001-4001.dcm.png", "Frontal")]
    pd.DataFrame(rows, columns=["uid", "filename", "projection"]).to_csv(openi / "indiana_projections.csv", index=False)
    partial("openi", openi, tmp_path / "out", max_rejected=0.5, progress=False)
    first = studies_of(tmp_path / "out")["CXR1"]
    assert first["views"] == ["FRONTAL", "LATERAL"]
    names = [image["path"] for image in first["images"]]
    assert names == ["images/CXR1_1_IM-0001-4001.png", "images/CXR1_1_IM-0001-3001.png"]
    assert about(tmp_path / "out")["guessed_views"] == 5


def test_openi_reads_the_kaggle_mirror_like_the_xml(openi, tmp_path):
    xml = partial("openi", openi, tmp_path / "xml", max_rejected=0.5, progress=False)
    mirror = tmp_path / "mirror"
    reports, films = [], []
    for uid, findings, impression, names in (
        ("1", "Heart is fine.", "Normal XXXX.", ["1_1_IM-0001-3001", "1_1_IM-0001-4001"]),
        ("2", "", "Normal XXXX.", ["2_IM-0652-1001", "2_IM-0652-2001"]),
        ("3", "Heart is fine.", "Normal XXXX.", ["3_IM-1-1", "3_IM-1-2", "3_IM-1-3"]),
    ):
        reports.append({"uid": uid, "MeSH": "normal", "findings": findings, "impression": impression})
        views = ["Frontal", "Lateral", "Frontal"]
        films += [{"uid": uid, "filename": f"{n}.dcm.png", "projection": v} for n, v in zip(names, views, strict=False)]
    for name in (path.name for path in (openi / "images").glob("*.png")):
        target = mirror / "images" / "images_normalized" / (name.removeprefix("CXR").removesuffix(".png") + ".dcm.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((openi / "images" / name).read_bytes())
    pd.DataFrame(reports).to_csv(mirror / "indiana_reports.csv", index=False)
    with pytest.raises(InputError, match=r"without indiana_projections\.csv"):
        partial("openi", mirror, tmp_path / "out", progress=False)
    pd.DataFrame(films).to_csv(mirror / "indiana_projections.csv", index=False)
    table = partial("openi", mirror, tmp_path / "out", progress=False)
    columns = ["studies", "images", "findings", "impression"]
    assert table[columns].values.tolist() == xml[columns].values.tolist()
    a, b = studies_of(tmp_path / "xml"), studies_of(tmp_path / "out")
    assert {uid: (r["findings"], r["impression"]) for uid, r in a.items()} == {
        uid: (r["findings"], r["impression"]) for uid, r in b.items()
    }
    assert b["CXR3"]["views"] == ["FRONTAL", "FRONTAL", "LATERAL"]


def test_openi_splits_by_report_or_all_in_one(openi, tmp_path):
    options = {"max_rejected": 0.5, "progress": False}
    table = partial("openi", openi, tmp_path / "a", split="train", **options)
    assert table["split"].tolist() == ["train"]
    table = partial("openi", openi, tmp_path / "b", split=None, shares={"train": 0.67, "test": 0.33}, **options)
    assert table[["split", "studies"]].values.tolist() == [["train", 2], ["test", 1]]
    with pytest.raises(InputError, match="unknown split 'all'"):
        partial("openi", openi, tmp_path / "c", split="all", **options)


def test_openi_counts_the_release_and_keeps_frontals_only_where_asked(openi, tmp_path):
    with pytest.raises(InputError, match=r"partial download of openi: reports 6 of 3,955, films named 9 of 7,470, .*"
                       r"with both sections 4 of 3,419, images 7 of 7,470"):
        SOURCES["openi"](openi, tmp_path / "out", progress=False)
    table = partial("openi", openi, tmp_path / "out", frontal_only=True, max_rejected=0.5, progress=False)
    assert table[["studies", "images", "two_views"]].values.tolist() == [[2, 2, 0]]
    assert about(tmp_path / "out")["without_frontal"] == 1  # of report 2 only the lateral is here
    assert about(tmp_path / "out")["counts"]["found"]["with a frontal film"] == 5


def test_openi_reports_with_undecodable_bytes_are_set_aside(openi, tmp_path):
    text = openi_xml(1, ["CXR1_1_IM-0001-3001"]).encode()
    (openi / "ecgen-radiology" / "1.xml").write_bytes(text.replace(b"fine", b"f\xefne"))
    partial("openi", openi, tmp_path / "out", max_rejected=0.5, progress=False)
    assert rejections(tmp_path / "out")[0]["column"] == "1.xml"
    root = tmp_path / "mirror"
    film(root / "1_a.dcm.png")
    film(root / "2_a.dcm.png", 1)
    (root / "indiana_projections.csv").write_text("uid,filename,projection\n1,1_a.dcm.png,Frontal\n2,2_a.dcm.png,\n")
    (root / "indiana_reports.csv").write_bytes(b"uid,findings,impression\n1,caf\xe9,ok\n2,,fine\n")
    partial("openi", root, tmp_path / "m", max_rejected=0.5, progress=False)
    (line,) = rejections(tmp_path / "m")
    assert (line["file"], line["row"], line["column"]) == ("indiana_reports.csv", "1", "findings")
    assert "no UTF-8" in line["reason"]


def test_openi_faults(openi, tmp_path):
    (openi / "ecgen-radiology" / "2.xml").write_text("<eCitation><cut")
    (openi / "ecgen-radiology" / "3.xml").write_text(openi_xml(3, ["CXR3_IM-1-1"], findings="long " * 5000))
    partial("openi", openi, tmp_path / "out", max_rejected=0.9, progress=False)
    lines = rejections(tmp_path / "out")
    assert [line["column"] for line in lines] == ["2.xml", "findings", "findings, impression"]
    assert "24,999 characters" in lines[1]["reason"]
    for path in (openi / "images").glob("CXR[1234]*.png"):
        path.unlink()
    (openi / "ecgen-radiology" / "2.xml").unlink()
    with pytest.raises(InputError, match=r"no film of 5 reports is here; download NLMCXR_png\.tgz"):
        partial("openi", openi, tmp_path / "none", progress=False)
    for path in (openi / "ecgen-radiology").glob("*.xml"):
        path.unlink()
    with pytest.raises(InputError, match="no XML report"):
        partial("openi", openi, tmp_path / "none", progress=False)
    (openi / "ecgen-radiology").rmdir()
    with pytest.raises(InputError, match=r"neither ecgen-radiology/ nor indiana_reports\.csv"):
        partial("openi", openi, tmp_path / "none", progress=False)
    assert not (tmp_path / "none").exists()


# ------------------------------------------------------------------------------------------------------- table


def tabled(root, rows, file="t.csv"):
    root.mkdir(exist_ok=True)
    frame = pd.DataFrame(rows)
    if file.endswith(".parquet"):
        frame.to_parquet(root / file)
    else:
        frame.to_csv(root / file, index=False)
    return root


@pytest.fixture
def films(tmp_path):
    root = tmp_path / "films"
    for i in range(12):
        film(root / f"f{i}.png", i)
        film(root / f"l{i}.png", i + 100)
    return root


MAPPING = {"NORMAL": ["No Finding"], "BACTERIA": ["Pneumonia"], "VIRUS": ["Pneumonia"]}


def test_table_with_a_labels_column_and_a_mapping(films, tmp_path):
    kinds = ["NORMAL", "BACTERIA", "VIRUS"]
    tabled(films, [{"file": f"f{i}.png", "label": kinds[i % 3], "who": f"p{i // 2}"} for i in range(12)])
    options = {"file": "t.csv", "name": "kermany", "image": "file", "patient": "who", "labels": "label"}
    options["progress"] = False
    table = SOURCES["table"](films, tmp_path / "out", mapping=MAPPING, shares={"train": 0.5, "test": 0.5}, **options)
    assert table[["name", "split", "patients", "studies"]].values.tolist() == [
        ["kermany", "train", 3, 6],
        ["kermany", "test", 3, 6],
    ]
    check_leakage({"kermany": tmp_path / "out"})
    found = studies_of(tmp_path / "out")
    assert [found[f"f{i}"]["positive"] for i in range(3)] == [["No Finding"], ["Pneumonia"], ["Pneumonia"]]
    with pytest.raises(InputError, match=r"label 'VIRUS' is not in the mapping \(NORMAL\)|label 'BACTERIA'"):
        SOURCES["table"](films, tmp_path / "no", mapping={"NORMAL": ["No Finding"]}, **options)


@pytest.mark.parametrize("file", ["t.csv", "t.parquet"])
def test_table_with_views_sections_label_columns_and_splits(films, tmp_path, file):
    columns = ("f", "l", "who", "id", "find", "imp", "E", "M", "s")
    cells = [
        ("f0.png", "l0.png", "a", "x0", " Heart  fine.", None, 1, 0, "train"),
        ("f1.png", None, "a", "x1", None, "Normal.", -1, None, "train"),
        ("f2.png", "l2.png", "b", "x2", None, None, None, 1, "validate"),
    ]
    rows = [dict(zip(columns, row, strict=True)) for row in cells]
    extra = [{"sex": "Male", "age": 60.5}, {"sex": "F", "age": None}, {"sex": None, "age": 0}]
    tabled(films, [row | more for row, more in zip(rows, extra, strict=True)], file)
    SOURCES["table"](
        films,
        tmp_path / "out",
        file=file,
        image=["f", "l"],
        views=["PA", "LATERAL"],
        patient="who",
        study="id",
        findings="find",
        impression="imp",
        label_columns={"E": "Edema", "M": "Mass"},
        split="s",
        sex="sex",
        age="age",
        progress=False,
    )
    found = studies_of(tmp_path / "out")
    assert [r["views"] for r in found.values()] == [["PA", "LATERAL"], ["PA"], ["PA", "LATERAL"]]
    assert [r["findings"] for r in found.values()] == ["Heart fine.", None, None]
    assert [r["impression"] for r in found.values()] == [None, "Normal.", None]
    labels = [(r["positive"], r["negative"], r["uncertain"]) for r in found.values()]
    assert labels == [(["Edema"], ["Mass"], []), ([], [], ["Edema"]), (["Mass"], [], [])]
    assert [r["split"] for r in found.values()] == ["train", "train", "valid"]
    assert [(r["sex"], r["age"]) for r in found.values()] == [("M", 60.5), ("F", None), (None, 0)]


def test_table_with_several_labels_a_separator_a_view_column_and_other_values(films, tmp_path):
    tabled(
        films,
        [
            {"f": "f0.png", "who": "a", "L": "Edema; Mass", "v": "AP", "N": "yes"},
            {"f": "f1.png", "who": "b", "L": "", "v": "", "N": "NO"},
        ],
    )
    options = {"values": {"positive": "Yes", "negative": "no"}, "vocabulary": ["Edema", "Mass", "N"]}
    SOURCES["table"](
        films,
        tmp_path / "out",
        file="t.csv",
        image="f",
        patient="who",
        labels="L",
        separator=";",
        view="v",
        label_columns=["N"],
        shares={"train": 1},
        progress=False,
        **options,
    )
    first, second = studies_of(tmp_path / "out").values()
    assert (first["positive"], first["views"]) == (["Edema", "Mass", "N"], ["AP"])
    assert (second["positive"], second["negative"], second["views"]) == ([], ["N"], ["UNKNOWN"])


@pytest.mark.parametrize(
    ("change", "column", "reason"),
    [
        ({"E": "2"}, "E", "'2' is none of 1 (positive), 0 (negative), -1 (uncertain) or empty"),
        ({"L": "Oedema"}, "L", "'Oedema' is not in the vocabulary"),
        ({"L": "Edema"}, "L", "'Edema' is named twice"),
        ({"L": "", "E": ""}, "L, E", "neither a text nor a label"),
        ({"f": ""}, "f", "names no film"),
        ({"f": "gone.png"}, "image", "gone.png: no such image file"),
        ({"who": ""}, "who", "is empty"),
        ({"age": "200"}, "age", "200 is outside"),
        ({"f": "f0.png"}, "study", "f0 stands already in row 1"),
    ],
)
def test_table_sets_bad_rows_aside(films, tmp_path, change, column, reason):
    rows = [{"f": f"f{i}.png", "who": f"p{i}", "L": "Mass", "E": "1", "age": "50"} for i in range(12)]
    rows[4] |= change
    options = {"image": "f", "patient": "who", "labels": "L", "label_columns": ["E"]}
    options["vocabulary"] = ["Mass", "E", "Edema"]
    if change == {"L": "Edema"}:
        options["label_columns"] = {"E": "Edema"}
    SOURCES["table"](
        tabled(films, rows), tmp_path / "out", file="t.csv", age="age", max_rejected=0.1, progress=False, **options
    )
    (line,) = rejections(tmp_path / "out")
    assert (line["file"], line["row"]) == ("t.csv", "5")
    assert column in line["column"]
    assert reason in line["reason"]


def test_table_refuses_a_patient_in_two_splits_and_unknown_splits(films, tmp_path):
    rows = [{"f": f"f{i}.png", "who": f"p{i // 2}", "s": "train"} for i in range(12)]
    rows[5]["s"] = "test"
    options = {"file": "t.csv", "image": "f", "patient": "who", "split": "s", "progress": False}
    with pytest.raises(InputError, match=r"t\.csv, rows 5 and 6: patient p2 is in train and in test"):
        SOURCES["table"](tabled(films, rows), tmp_path / "out", **options)
    rows[5]["s"] = "fold 3"
    with pytest.raises(InputError, match=r"row 6, column s: 'fold 3' is not train, valid or test"):
        SOURCES["table"](tabled(films, rows), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_bad_film_leaves_the_other_films_of_its_study(films, tmp_path):
    rows = [{"f": f"f{i}.png", "l": f"l{i}.png", "who": i} for i in range(12)]
    (films / "f3.png").write_bytes(b"not a film")
    options = {"file": "t.csv", "image": ["f", "l"], "views": ["PA", "LATERAL"], "patient": "who", "progress": False}
    SOURCES["table"](tabled(films, rows), tmp_path / "out", max_rejected=0.1, **options)
    assert len(studies_of(tmp_path / "out")) == 12
    (study,) = (row for row in open_studies(tmp_path / "out") if row["patient_id"] == "3")
    assert study["views"] == ["LATERAL"]
    assert len(rejections(tmp_path / "out")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "picture"}, "no column 'picture'; its columns are 'f', 'who'"),
        ({"label_columns": ["Edema"]}, "no column 'Edema'"),
        ({"file": "u.csv"}, r"u\.csv: no such table"),
        ({"patient": None}, "option 'patient' is needed"),
        ({"colour": "red"}, "option 'colour': table has no such option; it has age, allow_partial"),
        ({"views": ["PA", "AP"]}, "2 `views` for 1 `image` columns"),
        ({"image": ["f", "f"], "view": "who"}, "one `view` column"),
        ({"values": {"maybe": 2}}, "unknown key 'maybe'"),
        ({"shares": {"train": 0.5, "test": 0.6}}, "sum to 1"),
        ({"shares": {"train": 0.5, "dev": 0.5}}, "give train, valid, test shares"),
        ({"shares": {}}, "give train, valid, test shares"),
        ({"max_rejected": 5}, "max_rejected=5"),
    ],
)
def test_table_parameters_that_cannot_be(films, tmp_path, change, message):
    tabled(films, [{"f": "f0.png", "who": "a"}])
    options = {"file": "t.csv", "image": "f", "patient": "who", "progress": False} | change
    with pytest.raises(InputError, match=message) as caught:
        SOURCES["table"](films, tmp_path / "out", **options)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_table_compares_with_the_counts_it_is_given(films, tmp_path, capsys):
    rows = [{"f": f"f{i}.png", "who": f"p{i // 2}"} for i in range(12)]
    options = {"file": "t.csv", "image": "f", "patient": "who"}
    whole = {"rows": 12, "images": 12, "patients": 6, "studies": 12}
    tabled(films, rows)
    SOURCES["table"](films, tmp_path / "out", expected=whole, **options)
    assert about(tmp_path / "out")["counts"]["whole"]
    assert "patients        6     6" in capsys.readouterr().err
    (films / "f3.png").unlink()
    with pytest.raises(InputError, match="films: a partial download of table: images 11 of 12; fetch the rest"):
        SOURCES["table"](films, tmp_path / "no", expected=whole, progress=False, **options)
    partial("table", films, tmp_path / "no", expected=whole, progress=False, max_rejected=0.1, **options)
    with pytest.raises(InputError, match="unknown count 'films' in `expected`; known are rows, images"):
        SOURCES["table"](films, tmp_path / "no", expected={"films": 1}, progress=False, **options)


def test_table_sets_aside_rows_with_undecodable_bytes(films, tmp_path):
    text = "".join(f"f{i}.png,p{i},{'café' if i == 3 else 'ok'}\n" for i in range(12))
    (films / "t.csv").write_bytes(b"f,who,text\n" + text.encode("latin-1"))
    options = {"file": "t.csv", "image": "f", "patient": "who", "findings": "text", "progress": False}
    SOURCES["table"](films, tmp_path / "out", max_rejected=0.1, **options)
    (line,) = rejections(tmp_path / "out")
    assert (line["row"], line["column"]) == ("4", "text")
    assert "no UTF-8" in line["reason"]
    with pytest.raises(InputError, match=r"1 of 12 rows are unusable"):
        SOURCES["table"](films, tmp_path / "no", **options)


def test_table_finds_the_sections_of_whole_reports(films, tmp_path):
    reports = ["FINDINGS: Clear. IMPRESSION: Normal.", "HISTORY: pain.\n\nFINDINGS:\nClear.\n\nIMPRESSION:\nNormal.",
               "Lungs are clear.", "Old.\n__________\nIMPRESSION: New.", "COMPARISON: none"]
    rows = [{"f": f"f{i}.png", "who": f"p{i}", "text": text} for i, text in enumerate(reports)]
    options = {"file": "t.csv", "image": "f", "patient": "who", "report": "text", "progress": False}
    SOURCES["table"](tabled(films, rows), tmp_path / "out", max_rejected=0.5, **options)
    found = [(row["findings"], row["impression"]) for row in open_studies(tmp_path / "out")]
    assert found == [("Clear.", "Normal."), ("Clear.", "Normal."), (None, "Lungs are clear."), (None, "New.")]
    assert (about(tmp_path / "out")["last_paragraphs"], about(tmp_path / "out")["addenda"]) == (1, 1)
    (line,) = rejections(tmp_path / "out")
    assert (line["row"], line["column"], line["reason"]) == ("5", "text", "neither a text nor a label")
    with pytest.raises(InputError, match="give `report`, or `findings` and `impression`, not both"):
        SOURCES["table"](films, tmp_path / "no", findings="text", **options)


def test_a_cut_gzip_table_is_one_line(films, tmp_path):
    whole = gzip.compress(b"f,who\n" + b"".join(b"f%d.png,p%d\n" % (i, i) for i in range(12)))
    options = {"file": "t.csv.gz", "image": "f", "patient": "who", "progress": False}
    (films / "t.csv.gz").write_bytes(whole)
    assert SOURCES["table"](films, tmp_path / "out", **options)["studies"].sum() == 12
    (films / "t.csv.gz").write_bytes(whole[:40])
    with pytest.raises(InputError, match=r"t\.csv\.gz: not a readable table") as caught:
        SOURCES["table"](films, tmp_path / "no", **options)
    assert "\n" not in str(caught.value)


def test_an_empty_or_ragged_table_is_refused(films, tmp_path):
    options = {"file": "t.csv", "image": "f", "patient": "who", "progress": False}
    for text, message in (
        ("f,who\n", "no usable study"),
        ("", "not a readable table"),
        ("f,who\nf0.png,a\nf1.png,a,b,c\n", "1 of 2 rows are unusable"),
    ):
        (films / "t.csv").write_text(text)
        with pytest.raises(InputError, match=message) as caught:
            SOURCES["table"](films, tmp_path / "out", **options)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------------- splits, real samples


def test_splits_by_patient_are_exact_seeded_and_blind_to_order():
    patients = [str(i) for i in range(100)]
    splits = split_patients(patients, {"train": 0.7, "valid": 0.1, "test": 0.2}, seed=0)
    counts = {name: list(splits.values()).count(name) for name in ("train", "valid", "test")}
    assert counts == {"train": 70, "valid": 10, "test": 20}
    assert split_patients(patients[::-1] * 2, {"train": 0.7, "valid": 0.1, "test": 0.2}, seed=0) == splits
    assert split_patients(patients, {"train": 0.7, "valid": 0.1, "test": 0.2}, seed=1) != splits
    more = split_patients([str(i) for i in range(120)], {"train": 0.7, "valid": 0.1, "test": 0.2}, seed=0)
    assert sum(more[patient] != split for patient, split in splits.items()) < 15


def test_real_nih_films_in_one_folder(tmp_path):
    table = partial("chestxray14", real("chestxray14"), tmp_path / "out", images=("images_64px",), progress=False)
    assert table["studies"].sum() == 710
    assert table["rejected"].sum() == 0
    validate(tmp_path / "out", [*FINDINGS, "No Finding"])
    check_leakage({"nih": tmp_path / "out"})
    assert 0.5 < np.mean([row["positive"] == ["No Finding"] for row in open_studies(tmp_path / "out")]) < 0.65


def test_real_openi_studies(tmp_path):
    table = partial("openi", real("openi"), tmp_path / "out", split="train", progress=False)
    counts = table[["studies", "images", "findings", "impression", "two_views"]].values.tolist()
    assert counts == [[18, 27, 16, 18, 8]]
    assert about(tmp_path / "out")["missing_films"] == 9
    validate(tmp_path / "out")
    found = studies_of(tmp_path / "out")
    assert found["CXR1000"]["views"] == ["FRONTAL", "FRONTAL", "LATERAL"]
    assert "XXXX" in found["CXR7"]["findings"]


def test_real_paediatric_films_through_the_table_source(tmp_path):
    options = {"file": "labels.csv", "name": "kermany", "image": "file", "patient": "patient", "labels": "label"}
    table = SOURCES["table"](
        real("kermany"), tmp_path / "out", mapping=MAPPING, shares={"test": 1}, image_size=64, progress=False, **options
    )
    assert table[["split", "studies", "patients"]].values.tolist() == [["test", 428, 365]]
    validate(tmp_path / "out", ["Pneumonia", "No Finding"])
    assert sum(row["positive"] == ["No Finding"] for row in open_studies(tmp_path / "out")) == 164
