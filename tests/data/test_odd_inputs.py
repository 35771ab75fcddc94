"""Hostile inputs, and files that a disk has changed: each ends in one line, and costs no more than itself."""

import json
import os
import zipfile
import zlib

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import mixed_rows, small_film
from downloads import film, partial, quick_decoding, rejections, studies_of  # noqa: F401

from cxrclip.data.files import making
from cxrclip.data.images import MAX_PIXELS, decode_gray, encode_gray, read_gray
from cxrclip.data.mixes import load_mix
from cxrclip.data.shards import write_studies
from cxrclip.data.sources.tables import read_table
from cxrclip.errors import InputError
from cxrclip.experiments.checkpoints import load_embeddings
from cxrclip.official.weights import official_tokenizer
from cxrclip.prompts import PromptBank
from cxrclip.studies import open_studies, validate

REPORT = """<?xml version="1.0" encoding="utf-8"?><eCitation><AbstractText Label="FINDINGS">Clear lungs.</AbstractText>
<parentImage id="CXR{i}_IM-0001-1001"/></eCitation>"""


def bomb(side):
    """A PNG of side x side black pixels, a few kB long."""
    def chunk(name, data):
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
    size = side.to_bytes(4, "big")
    rows = zlib.compressobj(9)
    data = b"".join(rows.compress(bytes(side + 1)) for _ in range(side)) + rows.flush()
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size + size + b"\x08\x00\x00\x00\x00") + chunk(b"IDAT", data)
            + chunk(b"IEND", b""))


@pytest.mark.parametrize("encoding", ["rot13", "no-such", "utf-7", "shift_jis", "idna"])
def test_a_report_in_an_odd_encoding_is_one_report_set_aside(encoding, tmp_path, quick_decoding):  # noqa: F811
    for i in (1, 2, 3):
        film(tmp_path / "NLMCXR_png" / f"CXR{i}_IM-0001-1001.png", i)
        text = REPORT.format(i=i).replace("utf-8", encoding if i == 2 else "utf-8")
        (tmp_path / "ecgen-radiology").mkdir(exist_ok=True)
        (tmp_path / "ecgen-radiology" / f"{i}.xml").write_text(text)
    partial("openi", tmp_path, tmp_path / "out", max_rejected=1.0)
    assert set(studies_of(tmp_path / "out")) == {"CXR1", "CXR3"}
    assert [line["column"] for line in rejections(tmp_path / "out")] == ["2.xml"]


@pytest.mark.skipif(os.name == "nt", reason="pipes and devices of POSIX")
def test_a_cell_that_names_no_film_is_one_row_set_aside(tmp_path, quick_decoding):  # noqa: F811
    root = tmp_path / "films"
    for i in range(3):
        film(root / f"{i}.png", i)
    film(tmp_path / "secret.png", 9)
    os.mkfifo(root / "pipe.png")
    odd = ["../secret.png", "pipe.png", "/dev/zero", "a\0b.png", "0.png/x.png", ".", "sub/../../secret.png"]
    rows = [f"{name},p{i},Edema" for i, name in enumerate(["0.png", "1.png", "2.png", *odd])]
    (root / "t.csv").write_text("\n".join(["image,who,label", *rows]) + "\n")
    partial("table", root, tmp_path / "out", file="t.csv", image="image", patient="who", labels="label",
            max_rejected=1.0)
    assert set(studies_of(tmp_path / "out")) == {"0", "1", "2"}
    assert len(rejections(tmp_path / "out")) == len(odd)


def test_a_damaged_packed_table_is_one_line(tmp_path):
    with zipfile.ZipFile(tmp_path / "t.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("t.csv", "a,b\n" + "1,2\n" * 999)
    data = bytearray((tmp_path / "t.zip").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "t.zip").write_bytes(data)
    with pytest.raises(InputError, match="not a readable table"):
        read_table(tmp_path / "t.zip", ["a"])


def test_a_parquet_column_shorter_than_its_table_is_one_line(tmp_path, monkeypatch):
    pd.DataFrame({"a": ["1", "2"]}).to_parquet(tmp_path / "t.parquet")
    monkeypatch.setattr(pq.ParquetFile, "read", lambda self, columns: pa.table({name: [] for name in columns}))
    with pytest.raises(InputError, match="0 of 2 rows"):
        read_table(tmp_path / "t.parquet", ["a"])


def test_a_picture_that_unpacks_to_gigabytes_is_refused_by_its_header():
    data = bomb(12_000)
    assert len(data) < 200_000
    assert MAX_PIXELS < 12_000**2
    for read in (read_gray, decode_gray):
        with pytest.raises(InputError, match="more than 100,000,000"):
            read(data, "film 1")


def test_aliases_and_endless_products_are_refused(tmp_path):
    path = tmp_path / "bomb.yaml"
    lines = ["about: &a0 [x, x]", *(f"k{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 12))]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"aliases .* stand for more than 100,000 values"):
        load_mix(str(path))
    path.write_text("about: &a [*a]\npretraining: {}\n")
    with pytest.raises(InputError, match="aliases"):
        load_mix(str(path))
    path.write_text("pretraining: {M: {phantom: M, sizes: &s {quick: {train: 8}}}}\n"
                    "tests: {rsna: {phantom: rsna, sizes: *s}}\n")
    assert load_mix(str(path)).tests["rsna"].sizes == {"quick": {"train": 8}}
    words = [f"w{i}" for i in range(300)]
    path = tmp_path / "prompts.yaml"
    edema = {"severity": words, "subtype": words, "location": words}
    path.write_text(json.dumps({"zero_shot": {"t": {"Edema": edema}}}))
    with pytest.raises(InputError, match="27,000,000 combinations"):
        PromptBank.load(path)


def test_a_byte_changed_after_the_check_is_not_trained_on(tmp_path):
    folder = write_studies(mixed_rows(), tmp_path / "t")
    validate(folder)
    (shard,) = folder.glob("*.parquet")
    data = shard.read_bytes()
    place = data.index(b"large. Lungs")
    shard.write_bytes(data[:place] + b"small" + data[place + 5:])
    with pytest.raises(InputError, match="its content has changed since it was written"):
        open_studies(folder)
    shard.write_bytes(data)
    assert len(open_studies(folder)) == 20


@pytest.mark.parametrize("facts", [{"sha256": "../x"}, {"sha256": "a\0b"}, {"shards": "1"}, {"about": None},
                                   {"files": []}])
def test_an_odd_dataset_json_is_one_line(facts, tmp_path):
    folder = write_studies(mixed_rows(), tmp_path / "t")
    whole = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(whole | facts))
    with pytest.raises(InputError, match=f"dataset.json: .*{next(iter(facts))}.*prepare the folder again"):
        open_studies(folder)


def test_damaged_embeddings_are_one_line(tmp_path):
    (tmp_path / "e.npz").write_bytes(b"PK\x05\x06" + bytes(18))
    with pytest.raises(InputError, match="damaged embeddings"):
        load_embeddings(tmp_path / "e.npz")


def test_code_beside_a_tokenizer_is_never_run(tmp_path):
    (tmp_path / "evil.py").write_text("open('was-run', 'w')\nclass Evil:\n    pass\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(
        {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError):
        official_tokenizer(tmp_path)
    assert not list(tmp_path.glob("**/was-run"))


def test_what_is_made_needs_no_lock(tmp_path):
    with making(tmp_path / "no folder" / "thing", lambda: True) as missing:
        assert not missing
    assert not list(tmp_path.iterdir())
    with making(tmp_path / "thing", lambda: False) as missing:
        assert missing


def test_a_small_film_is_read_as_before():
    data = small_film(1)
    assert encode_gray(decode_gray(data, "film"), "png") == data
