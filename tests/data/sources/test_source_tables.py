"""cxrclip.data.sources.tables: rows that do not fit, quotes, changed types, tables without a header, films."""

import gzip
import zipfile

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from downloads import film, partial, rejections, studies_of

from cxrclip.data.sources.splits import gloria_split, train_valid_split
from cxrclip.data.sources.tables import Unusable, film_at, read_table, records, to_age
from cxrclip.errors import InputError


def read(path, *columns, aside=True, **options):
    """The rows by number, and the numbers of those set aside."""
    faults = []
    table = read_table(path, columns, aside=(lambda *fault: faults.append(fault)) if aside else None, **options)
    assert all(isinstance(reason, str) and "\n" not in reason for *_, reason in faults)
    return dict(records(table)), [row for row, *_ in faults]


def written(tmp_path, text, name="t.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def refused(path, *columns, **options):
    with pytest.raises(InputError) as caught:
        read(path, *columns, **options)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bad", ["2,b,c", "2", "2,b,", '2,b,""', "2,b, ,,"])
def test_a_row_with_another_number_of_fields_is_set_aside(tmp_path, bad):
    path = written(tmp_path, f"id,text\n1,a\n{bad}\n\n3,c\n")
    assert read(path, "id", "text") == ({1: {"id": "1", "text": "a"}, 3: {"id": "3", "text": "c"}}, [2])
    assert "line 3" in refused(path, "id", aside=False)


def test_lines_that_all_end_in_a_comma_are_whole_and_one_that_has_another_is_not(tmp_path):
    text = "id,text\n1,a,\n2,b,\n3,c,\n"
    assert list(read(written(tmp_path, text), "id")[0]) == [1, 2, 3]
    rows, faults = read(written(tmp_path, text + "4,half, a text,\n5,\n"), "id", "text")
    assert (list(rows), faults) == ([1, 2, 3], [4, 5])
    assert list(read(written(tmp_path, text.replace("text\n", "text,\n")), "id")[0]) == [1, 2, 3]


def test_a_header_that_fits_no_row_is_refused(tmp_path):
    assert "line 2 has 3 fields, not 2" in refused(written(tmp_path, "id,text\n1,a,b\n2,c,d\n"), "id")


@pytest.mark.parametrize(
    ("text", "line"),
    [('id,text\n1,a\n2,"Zebra\n3,"b"\n4,c\n', 3), ('id,text\n1,"a"x\n', 2), ('id,text\n1,a\n2,"Zebra\n', 3),
     ('id,"text\n1,Zebra\n', 1), ('id,text\n1,"two\nlines"\n2,"Zebra" and "b"\n', 4)],
)
def test_a_quote_at_fault_names_its_line_and_no_text(tmp_path, text, line):
    message = refused(written(tmp_path, text), "id")
    assert f"line {line}:" in message
    assert "Zebra" not in message


def test_every_packing_reads_alike(tmp_path):
    data = "\ufeffid,text\r\n1,\"a, \"\"b\"\"\r\nc\"\r\n".encode()
    (tmp_path / "t.csv").write_bytes(data)
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(data))
    with zipfile.ZipFile(tmp_path / "t.csv.zip", "w") as archive:
        archive.writestr("t.csv", data)
    for path in tmp_path.iterdir():
        assert read(path, "id") == ({1: {"id": "1", "text": 'a, "b"\r\nc'}}, [])
    (tmp_path / "t.csv.zip").write_bytes(b"PK no archive")
    assert "not a readable table" in refused(tmp_path / "t.csv.zip", "id")


def test_cells_that_changed_type_on_the_way(tmp_path):
    frame = pd.DataFrame({"id": [10000032.0, None, -1.0], "text": ["nan", "None", "<NA>"], "v": [0.5, 1e6, 2.0]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = pa.table({"id": frame["id"], "text": frame["text"], "v": frame["v"], "boxes": [[1], [], [2]],
                      "bytes": [b"1", b"2", None]})
    pq.write_table(table, tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        rows, _ = read(tmp_path / name, "id", "text", "v")
        assert [tuple(cells.values()) for cells in rows.values()] == [
            ("10000032", "", "0.5"), ("", "", "1000000"), ("-1", "", "2")]
    assert "column 'boxes' holds list" in refused(tmp_path / "t.parquet", "boxes")
    assert read(written(tmp_path, "id\n1.2.0\nv1.0\n"), "id")[0] == {1: {"id": "1.2.0"}, 2: {"id": "v1.0"}}


def test_a_table_without_a_header_is_refused_and_not_shown(tmp_path):
    path = written(tmp_path, "s1,Zebra\ns2,Horse\n")
    assert "Zebra" not in refused(path, "study", "text")
    assert "its columns are 'id', 'text'" in refused(written(tmp_path, "id, text\n1,a\n"), "id", "study")


@pytest.mark.parametrize(("cell", "years"), [("061Y", 61), ("6m", 0.5), ("002D", 2 / 365.25), ("7", 7), ("50.5", 50.5)])
def test_ages_with_their_unit(cell, years):
    assert to_age({"age": cell}, "age") == pytest.approx(years)
    with pytest.raises(Unusable):
        to_age({"age": f"{cell}x"}, "age")


def test_a_film_of_another_suffix(tmp_path):
    for name in ("a.png", "b.jpeg", "c.1.png", "d.jpg", "d.png"):
        film(tmp_path / name, 1)
    for name, there in (("a.jpg", "a.png"), ("b.dcm", "b.jpeg"), ("c.1", "c.1.png"), ("d.jpg", "d.jpg"), ("e.png", "")):
        assert film_at(str(tmp_path / name)) == (there and str(tmp_path / there))


def test_tables_and_films_converted_by_hand_in_each_source(tmp_path):
    """A row with a comma too many is one row lost; films of another suffix are found."""
    nih = tmp_path / "nih"
    lines = ["Image Index,Finding Labels,Patient ID,Patient Age,Patient Gender,View Position"]
    for i in range(4):
        film(nih / "images" / f"{i}_000.jpg", i)
        lines.append(f"{i}_000.png,{'Mass, Nodule' if i == 2 else 'Mass'},{i},0{i}2M,F,PA")
    written(nih, "\n".join(lines), "Data_Entry_2017_v2020.csv")
    partial("chestxray14", nih, tmp_path / "out", max_rejected=0.5)
    assert sorted(studies_of(tmp_path / "out")) == ["0_000", "1_000", "3_000"]
    assert [(line["file"], line["row"]) for line in rejections(tmp_path / "out")] == [
        ("Data_Entry_2017_v2020.csv", "3")]
    written(nih, "file,who,text\nimages/0_000.png,a,one\nimages/1_000,b,two, three\n")
    partial("table", nih, tmp_path / "out", file="t.csv", image="file", patient="who", impression="text",
            max_rejected=0.5)
    assert list(studies_of(tmp_path / "out")) == ["images/0_000"]
    written(nih, "ImageId,EncodedPixels\n0_000,-1\n1_000,1 2, 3 4\n", "train-rle.csv")
    with pytest.raises(InputError, match=r"train-rle\.csv: line 3 has 3 fields, not 2"):
        partial("siim", nih, tmp_path / "no")


def test_a_rule_of_a_split_needs_some_films():
    assert len(gloria_split("abcd")) == 4
    assert len(train_valid_split("ab")) == 2
    for rule, items in ((gloria_split, "abc"), (gloria_split, ""), (train_valid_split, "a")):
        with pytest.raises(InputError, match="the rule of the split needs"):
            rule(items)
