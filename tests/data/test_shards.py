"""data/shards.py: a study table is written whole or not at all, and every fault is named."""

import csv
import errno
import json
import os
from pathlib import Path

import pytest
from builders import small_film, small_row

from cxrclip.data import shards
from cxrclip.data.files import atomic_folder
from cxrclip.data.shards import Rejected, read_about, refuse_many, resumable_studies, write_studies
from cxrclip.errors import InputError
from cxrclip.studies import fingerprint, open_studies, validate


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "training"}, "column split: 'training' is not one of train, valid, test"),
        ({"patient_id": " "}, "column patient_id: ' ' is not a text"),
        ({"source": None}, "column source has no value"),
        ({"images": []}, "column images: none"),
        ({"images": None}, "column images has no value"),
        ({"images": [{"bytes": b"GIF89a"}]}, "column images: image 0 is neither JPEG nor PNG"),
        ({"images": [{"bytes": None}]}, "column images: image 0 is neither JPEG nor PNG"),
        ({"views": ["PA", "AP"]}, "column views: 2 views for 1 images"),
        ({"views": [""]}, "column views: .* empty name"),
        ({"findings": "  "}, "column findings: 2 characters"),
        ({"impression": "x" * 20_001}, "column impression: 20,001 characters"),
        ({"positive": "Edema"}, "column positive holds 'Edema'; give a list"),
        ({"findings_aug": "The heart is large."}, "column findings_aug holds a text; give a list"),
        ({"findings": b"The heart is large."}, "column findings: bytes; 1 to 20,000 characters or null"),
        ({"positive": [""]}, "column positive: '' is not a finding name"),
        ({"positive": ["Edema"], "negative": ["Edema"]}, "column negative: 'Edema' is named twice"),
        ({"sex": "female"}, "column sex: 'female'"),
        ({"age": 414}, "column age: 414 is outside"),
        ({"age": float("nan")}, "column age: nan is outside"),
        ({"age": -1}, "column age: -1 is outside"),
        ({"study_id": "s0"}, "column study_id: is in the table twice"),
        ({"sex": 3}, "column sex: 3 is not one of"),
        ({"findings_aug": [3]}, "wrong type"),
        ({"age": "old"}, "row 2: images or age have the wrong type"),
        ({"images": [small_film(1)]}, "row 2: images or age have the wrong type"),
        ({"laterality": "left"}, "unknown column 'laterality'"),
    ],
)
def test_a_bad_row_is_named_and_nothing_is_written(tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        write_studies([small_row(0), small_row(1) | change], tmp_path / "t")
    assert "\n" not in str(caught.value)
    assert "heart" not in str(caught.value), "no message quotes a report"
    assert "row 2" in str(caught.value) or "wrong type" in message
    assert list(tmp_path.iterdir()) == []


def test_rejected_rows_are_listed_beside_the_table(tmp_path):
    rejected = []

    def rows():
        rejected.append(Rejected("films.csv", 2, "image", "cut, or damaged"))
        yield small_row(0)

    folder = write_studies(rows(), tmp_path / "t", rejected=rejected)
    with open(folder / "rejected.csv", newline="") as file:
        assert list(csv.reader(file)) == [list(Rejected._fields), ["films.csv", "2", "image", "cut, or damaged"]]
    assert json.loads((folder / "dataset.json").read_text())["rejected"] == 1
    assert str(rejected[0]) == "films.csv, row 2, column image: cut, or damaged"


def test_more_bad_rows_than_the_share_stop():
    bad = [Rejected("a.csv", i, "age", f"bad {i}") for i in range(1, 6)]
    refuse_many(bad, 100, 0.05, "out")
    refuse_many([], 0, 0.0, "out")
    with pytest.raises(InputError, match=r"out: nothing written, 5 of 99 rows .*bad 1; .*bad 3 \(and 2 more\)"):
        refuse_many(bad, 99, 0.05, "out")


def test_no_row_at_all_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no study to write"):
        write_studies([], tmp_path / "t")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_writing_leaves_the_older_folder(tmp_path, fault):
    write_studies([small_row(0)], tmp_path / "t")
    before = fingerprint(tmp_path / "t")

    def rows():
        yield small_row(1)
        raise fault

    with pytest.raises(fault):
        write_studies(rows(), tmp_path / "t", shard_rows=1)
    assert fingerprint(tmp_path / "t") == before
    validate(tmp_path / "t")
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_folder_with_other_files_is_never_replaced(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="holds other files"):
        write_studies([small_row(0)], tmp_path / "precious")
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    for place in ("file", "file/below"):
        with pytest.raises(InputError, match="cannot be written"):
            write_studies([small_row(0)], tmp_path / place)
    (tmp_path / "empty").mkdir()
    write_studies([small_row(0)], tmp_path / "empty")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "file", "precious"]


def test_a_new_folder_can_be_filled_around_a_study_table(tmp_path):
    with atomic_folder(tmp_path / "world") as partial:
        write_studies([small_row(0)], partial)
        (partial / "truth.txt").write_text("more")
        assert not (tmp_path / "world").exists()
    assert {path.name for path in (tmp_path / "world").iterdir()} == {
        "studies-00000.parquet",
        "dataset.json",
        "truth.txt",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["world"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("step", ["mkdir", "shard", "facts", "rename"])
def test_a_full_disk_or_a_read_only_place_is_one_clear_line(tmp_path, monkeypatch, step, code):
    def fail(*_args, **_kwargs):
        raise OSError(code, os.strerror(code))

    write_studies([small_row(0)], tmp_path / "t")
    before = fingerprint(tmp_path / "t")
    target, name = {
        "mkdir": (Path, "mkdir"),
        "shard": (shards.pq, "write_table"),
        "facts": (Path, "write_text"),
        "rename": (Path, "rename"),
    }[step]
    with monkeypatch.context() as patch:
        patch.setattr(target, name, fail)
        with pytest.raises(InputError, match=os.strerror(code)) as caught:
            write_studies([small_row(1)], tmp_path / "t")
    assert str(caught.value).startswith(f"{tmp_path / 't'}: cannot be written")
    assert "free space" in str(caught.value)
    assert fingerprint(tmp_path / "t") == before
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


# ---- resumable


def put(table, number, key, *rows, rejected=()):
    """Use shard `number` if it is there; else write it. Returns whether it was there."""
    if table.has(number, key):
        table.reuse(number)
        return True
    table.add(number, key, rows, rejected)
    return False


def broken_off(folder, fault, *shards):
    """Prepare `folder` up to a fault after these shards."""
    with resumable_studies(folder) as table:
        for number, key, *rows in shards:
            put(table, number, key, *rows)
        raise fault


def test_finished_shards_outlive_an_interruption(tmp_path):
    rejected = [Rejected("a.csv", 2, "image", "gone")]
    with pytest.raises(KeyboardInterrupt):
        broken_off(tmp_path / "t", KeyboardInterrupt, (0, "k", small_row(0)), (1, "k1", small_row(1)))
    assert [path.name for path in tmp_path.iterdir()] == [".t.partial"]
    with resumable_studies(tmp_path / "t") as table:
        assert not put(table, 0, "k0", small_row(0), rejected=rejected)
    with resumable_studies(tmp_path / "t") as table:
        assert table.has(0, "k0")
        assert table.reuse(0) == rejected
        assert not put(table, 1, "other key", small_row(11))
        put(table, 2, "k2")  # a shard without a row has no file
        table.finish({"seed": 1}, rejected)
    assert [row["study_id"] for row in open_studies(tmp_path / "t")] == ["s0", "s11"]
    assert read_about(tmp_path / "t") == ({"seed": 1}, rejected)
    validate(tmp_path / "t")
    assert fingerprint(tmp_path / "t") == fingerprint(write_studies([small_row(0), small_row(11)], tmp_path / "u"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t", "u"]


def test_a_damaged_shard_is_made_anew_by_the_next_run(tmp_path):
    with pytest.raises(RuntimeError):
        broken_off(tmp_path / "t", RuntimeError, (0, "k", small_row(0)))
    shard = tmp_path / ".t.partial" / "table" / "studies-00000.parquet"
    shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(InputError, match="damaged"):
        broken_off(tmp_path / "t", RuntimeError, (0, "k", small_row(0)))
    with resumable_studies(tmp_path / "t") as table:
        assert not put(table, 0, "k", small_row(0))
        table.finish({}, [])
    validate(tmp_path / "t")


def test_shards_that_are_no_longer_wanted_go(tmp_path):
    with pytest.raises(InputError, match=r"enough \(2 finished shards wait in .*\.t\.partial"):
        broken_off(tmp_path / "t", InputError("enough"), (0, "k0", small_row(0)), (1, "k1", small_row(1)))
    with resumable_studies(tmp_path / "t") as table:
        assert put(table, 0, "k0")
        table.finish({}, [])
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["dataset.json", "studies-00000.parquet"]


def test_nothing_stays_of_a_preparation_without_a_finished_shard(tmp_path):
    with pytest.raises(InputError, match=r"^nothing$"):
        broken_off(tmp_path / "t", InputError("nothing"))
    assert list(tmp_path.iterdir()) == []


def test_two_preparations_of_one_folder_do_not_mix(tmp_path):
    with resumable_studies(tmp_path / "t") as table:
        table.add(0, "k", [small_row(0)], [])
        with pytest.raises(InputError, match=r"t: another process is preparing it"), resumable_studies(tmp_path / "t"):
            pass
        assert table.has(0, "k")
        table.finish({}, [])
    validate(tmp_path / "t")
