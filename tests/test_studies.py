"""cxrclip.studies: tables are read as they were written, and every fault is named."""

import json
import os
import shutil
import socket

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import small_film, small_row

from cxrclip import studies
from cxrclip.data.shards import Rejected, write_studies
from cxrclip.data.stream import StreamedBatches
from cxrclip.errors import InputError
from cxrclip.studies import SCHEMA, check_leakage, fingerprint, open_studies, summary, validate


def test_a_table_reads_back_as_it_was_written(tmp_path):
    full = small_row(
        1,
        images=[{"bytes": small_film(1), "path": None}, {"bytes": small_film(2), "path": "b.png"}],
        views=["AP", "LATERAL"],
        findings="Heart is large.",
        impression="Cardiomegaly.",
        findings_aug=["The heart is big."],
        positive=["Cardiomegaly"],
        negative=["Edema"],
        uncertain=["Pneumonia"],
        sex="F",
        age=61.5,
    )
    folder = write_studies([small_row(0), full], tmp_path / "t", about={"seed": 3})
    first, second = open_studies(folder)
    empty = {name: [] for name in ("findings_aug", "impression_aug", "positive", "negative", "uncertain")}
    assert first == small_row(0) | empty | dict.fromkeys(("findings", "impression", "sex", "age"))
    assert second == full | {"impression_aug": []}
    facts = json.loads((folder / "dataset.json").read_text())
    assert facts["studies"] == 2
    assert facts["about"] == {"seed": 3}
    assert not list(tmp_path.glob(".*"))  # no temporary folder is left
    validate(folder)


def test_the_fingerprint_is_of_the_content_not_of_the_files(tmp_path):
    rows = [small_row(i, age=0.1 * i) for i in range(7)]
    base = fingerprint(write_studies(rows, tmp_path / "a"))
    assert fingerprint(write_studies(iter(rows), tmp_path / "b", shard_rows=2, about={"x": 1})) == base
    changes = (
        {"age": 2.0},
        {"positive": ["Edema"]},
        {"images": [{"bytes": small_film(99), "path": "6.png"}]},
        {"findings": "x"},
    )
    for n, change in enumerate(changes):
        assert fingerprint(write_studies([*rows[:6], rows[6] | change], tmp_path / f"c{n}")) != base
    assert fingerprint(write_studies(rows[::-1], tmp_path / "d")) != base
    assert len(list((tmp_path / "b").glob("studies-*.parquet"))) == 4
    validate(tmp_path / "b")


def test_open_several_folders_by_split(tmp_path):
    a = write_studies([small_row(i) for i in range(8)], tmp_path / "a", shard_rows=3)
    b = write_studies([small_row(i, source="there") for i in range(20, 28)], tmp_path / "b")
    found = [row["study_id"] for row in open_studies([a, b], "train")]
    assert found == [f"s{i}" for i in (0, 1, 4, 5, 20, 21, 24, 25)]
    assert [row["study_id"] for row in open_studies(str(a), "test")] == ["s3", "s7"]
    table = open_studies([a, b])
    assert isinstance(table, datasets.Dataset)
    assert [row["study_id"] for row in table.__getitems__([9, 2])] == ["s21", "s2"]


def test_opening_is_quiet_and_offline_and_leaves_the_progress_setting(tmp_path, monkeypatch, capfd):
    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    folder = write_studies([small_row(0)], tmp_path / "a")
    shown = datasets.are_progress_bars_disabled()
    open_studies(folder)
    next(iter(StreamedBatches([folder], 1, seed=0)))
    assert datasets.are_progress_bars_disabled() == shown
    assert capfd.readouterr() == ("", "")


def test_a_folder_made_again_is_never_read_from_an_old_copy(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "default"))
    for writable in (True, False):
        monkeypatch.setattr(studies.os, "access", lambda *_, w=writable: w)
        for text in ("first", "other"):
            folder = write_studies([small_row(0, findings=text)], tmp_path / "a")
            for shard in folder.glob("*.parquet"):
                os.utime(shard, (1, 1))  # the same time and size as before
            assert open_studies(folder)[0]["findings"] == text
        assert (folder / ".cache").exists() == writable
    assert (tmp_path / "default" / "cxrclip").exists()


def broken(folder, rows):
    """A folder whose rows were changed behind the library's back."""
    write_studies([small_row(i) for i in range(len(rows))], folder)
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), folder / "studies-00000.parquet")
    return folder


def whole(i, **changes):
    lists = {field.name: [] for field in SCHEMA if pa.types.is_list(field.type)}
    return lists | small_row(i) | changes


def test_validate_names_rows_and_counts_the_others(tmp_path):
    rows = [whole(0), *(whole(i, split="dev") for i in range(1, 6))]
    with pytest.raises(InputError, match=r"row 2 \(s1\), column split: 'dev'.*row 4 .*and 2 more") as caught:
        validate(broken(tmp_path / "t", rows))
    assert "\n" not in str(caught.value)


def test_validate_finds_labels_outside_the_vocabulary(tmp_path):
    folder = write_studies([small_row(0, positive=["Edema"], uncertain=["Oedema"])], tmp_path / "t")
    validate(folder)
    validate(folder, ["Edema", "Oedema"])
    with pytest.raises(InputError, match=r"row 1 \(s0\), column uncertain: unknown finding 'Oedema'"):
        validate(folder, ["Edema"])


def test_validate_finds_changed_content_and_other_columns(tmp_path):
    with pytest.raises(InputError, match="2 studies differ from their fingerprint"):
        validate(broken(tmp_path / "a", [whole(0), whole(1, age=3.0)]))
    folder = write_studies([small_row(0)], tmp_path / "b")
    table = pq.read_table(folder / "studies-00000.parquet")
    for changed, message in (
        (table.drop_columns(["views"]), "column views is missing"),
        (table.append_column("extra", pa.array([1])), "column extra is unknown"),
        (table.set_column(14, "age", pa.array(["61"])), "column age has type string, not float"),
    ):
        pq.write_table(changed, folder / "studies-00000.parquet")
        with pytest.raises(InputError, match=message):
            validate(folder)


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = write_studies([small_row(i) for i in range(4)], tmp_path / "t", shard_rows=2)
    shard, facts = folder / "studies-00001.parquet", folder / "dataset.json"
    for damage, message in (
        (lambda: shard.write_bytes(shard.read_bytes()[:300]), "damaged|cannot be opened|has changed"),
        (shard.unlink, "1 of 2 Parquet shards"),
        (lambda: facts.write_text("{"), "Invalid JSON.*prepare the folder again"),
        (facts.unlink, "no dataset.json"),
        (lambda: shutil.rmtree(folder), "no dataset.json"),
    ):
        damage()
        for use in (validate, open_studies, lambda f: check_leakage({"t": f})):
            with pytest.raises(InputError, match=message) as caught:
                use(folder)
            assert "\n" not in str(caught.value)


def test_unknown_and_empty_splits(tmp_path):
    folder = write_studies([small_row(0)], tmp_path / "t")
    with pytest.raises(InputError, match="unknown split 'dev'"):
        open_studies(folder, "dev")
    with pytest.raises(InputError, match="no study in split 'test'"):
        open_studies(folder, "test")
    with pytest.raises(InputError, match="no folder given"):
        open_studies([])


def test_leakage_of_patients_and_of_films(tmp_path):
    a = write_studies([small_row(i) for i in range(4)], tmp_path / "a")
    other = write_studies([small_row(i + 10, source="there") for i in range(4)], tmp_path / "b")
    same_film = write_studies([small_row(10, source="far")], tmp_path / "c")
    check_leakage({"a": a, "b": other})
    same_number = write_studies([small_row(77, patient_id="p2", source="x", split="test")], tmp_path / "d")
    check_leakage({"a": a, "same patient number elsewhere": same_number})
    patient = write_studies([small_row(30, patient_id="p2", split="test")], tmp_path / "e")
    with pytest.raises(InputError, match=r"patient p2 of here is in valid of a \(s2\) and in test of e \(s30\)"):
        check_leakage({"a": a, "e": patient})
    with pytest.raises(InputError, match=r"one film is in there, b \(s10\), and in far, c \(s10\)"):
        check_leakage({"b": other, "c": same_film})
    inside = write_studies([small_row(0), small_row(1, patient_id="p0", split="valid")], tmp_path / "g")
    with pytest.raises(InputError, match="patient p0"):
        check_leakage({"g": inside})


def test_summary_counts_what_is_there(tmp_path):
    two = [{"bytes": small_film(i), "path": None} for i in (50, 51)]
    rows = [
        small_row(0, findings="a", impression="b", positive=["Edema", "Mass"], negative=["Hernia"]),
        small_row(1, patient_id="p0", impression="b", images=two, views=["PA", "LATERAL"]),
        small_row(4, images=two, views=["PA", "PA"], uncertain=["Edema"]),
        small_row(3),
    ]
    folder = write_studies(rows, tmp_path / "t", rejected=[Rejected("x.csv", 3, "age", "no")])
    train, test = summary({"here": folder}).to_dict("records")
    assert train == {
        "name": "here",
        "split": "train",
        "studies": 3,
        "patients": 2,
        "images": 5,
        "two_views": 1,
        "findings": 1,
        "impression": 2,
        "both_sections": 1,
        "labelled": 2,
        "positive": 2,
        "negative": 1,
        "uncertain": 1,
        "rejected": 1,
    }
    assert (test["split"], test["studies"], test["labelled"], test["rejected"]) == ("test", 1, 0, 0)
