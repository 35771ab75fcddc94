"""book.governance: nothing real is committed, and the scanner bites on planted examples."""

import io
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cxrclip.book import governance
from cxrclip.book.governance import open_i_sentences, scan
from cxrclip.errors import InputError

PROJECT = Path(__file__).resolve().parents[2]
HEX = "0123456789abcdef"


def real_sentences():
    try:
        return open_i_sentences()
    except InputError as reason:
        pytest.skip(str(reason))


def test_the_committed_tree_is_clean():
    try:
        files = governance.committed(PROJECT)
    except InputError as reason:
        pytest.skip(str(reason))
    assert any(path.suffix == ".ipynb" for path in files)
    found = scan(PROJECT, files, real_sentences())
    assert not found, "\n".join(map(str, found))


def test_thousands_of_real_sentences_are_known_and_the_phantoms_own_are_not_among_them():
    sentences = real_sentences()
    assert 4_000 < len(sentences) < 5_000
    assert "pa and lateral views of the chest were obtained" not in sentences


PLANTED = {
    "subject": "| 1" + "0000032 | F |",
    "study": "['s5" + "0414267', 3]",
    "subject in a path": "files/p10/p1" + "0000032/view.png",
    "film": "-".join([HEX[:8]] * 5),
    "report": "FINAL REPORT\n EXAMINATION: CHEST",
    "chexpert": "train/patient" + "00001/study1",
    "vindr": f"image {HEX}{HEX} shows",
    "rsna": f"{HEX[:8]}-{HEX[:4]}-{HEX[:4]}-{HEX[:4]}-{HEX[:12]}",
    "siim": "1.2.276.0.72300" + "10.3.1.4.8323329",
}


def notebook(path, *, source="", text="", data=None, mix="phantom"):
    parameters = {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": f'mix = "{mix}"', "outputs": []}
    output = {"output_type": "display_data", "data": data or {"text/html": text}}
    cell = {"cell_type": "code", "metadata": {}, "source": [source], "outputs": [output]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cells": [parameters, cell]}))
    return path


@pytest.mark.parametrize("kind", PLANTED)
def test_an_id_is_found_in_notebooks_results_and_figures(kind, tmp_path):
    files = [notebook(tmp_path / "notebooks" / "01_x.ipynb", text=PLANTED[kind]),
             notebook(tmp_path / "notebooks" / "02_x.ipynb", source=PLANTED[kind])]  # fmt: skip
    for name in ("results/a.csv", "figures/a.json", "DATA.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(PLANTED[kind])
        files.append(tmp_path / name)
    found = scan(tmp_path, files)
    assert [one.file for one in found] == [str(path.relative_to(tmp_path)) for path in files]
    assert all(PLANTED[kind] not in str(one) for one in found)


def test_numbers_and_hashes_that_are_no_ids_pass(tmp_path):
    text = "10,000,032 steps, 0.10000032, 5123.4, 20261124, 00012345_001.png, 16 hex 0123456789abcdef, CXR1000_IM-0003"
    assert not scan(tmp_path, [notebook(tmp_path / "notebooks" / "01_x.ipynb", text=text)])
    (tmp_path / "cxrclip").mkdir()
    (tmp_path / "cxrclip" / "code.py").write_text(PLANTED["subject"])  # code is not searched: it has fixtures
    assert not scan(tmp_path, [tmp_path / "cxrclip" / "code.py"])


def test_a_real_sentence_is_found_whatever_its_case_and_line_breaks(tmp_path):
    sentence = sorted(real_sentences(), key=len)[2000]
    said = "We read: " + sentence.capitalize().replace(" ", ",\n ", 1) + ". And so on."
    (found,) = scan(tmp_path, [notebook(tmp_path / "notebooks" / "01_x.ipynb", text=said)], real_sentences())
    assert "a sentence of a real report" in found.what
    assert sentence not in str(found).lower()
    short = " ".join(sentence.split()[:-1])
    assert not scan(tmp_path, [notebook(tmp_path / "notebooks" / "01_x.ipynb", text=short)], [sentence])


def png(mode):
    buffer = io.BytesIO()
    Image.new(mode, (20, 20)).save(buffer, "PNG")
    return buffer.getvalue()


def test_films_are_found_in_every_way_they_may_come(tmp_path):
    (tmp_path / "figures").mkdir()
    files = {
        "figures/drawn.png": png("RGBA"),
        "figures/drawn.json": b'{"mix": "phantom"}',
        "figures/film.png": png("L"),
        "figures/film.json": b"{}",
        "figures/deep.png": cv2.imencode(".png", np.zeros((20, 20), np.uint16))[1].tobytes(),
        "figures/deep.json": b"{}",
        "figures/orphan.png": png("RGB"),
        "figures/real.svg": b"<svg/>",
        "figures/real.json": b'{"mix": "real-sample"}',
        "figures/film.jpg": b"\xff\xd8\xff",
        "results/studies-00000.parquet": b"PAR1",
        "cxrclip/phantom/a.dcm": b"DICM",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    books = {"01_ok": ("image/png", "phantom"), "02_jpeg": ("image/jpeg", "phantom"), "03_real": ("image/png", "mine")}
    paths = [tmp_path / name for name in files]
    for name, (kind, mix) in books.items():
        paths.append(notebook(tmp_path / "notebooks" / f"{name}.ipynb", data={kind: "aGk="}, mix=mix))
    assert [(one.file, one.what.split(" (")[0]) for one in scan(tmp_path, paths)] == [
        ("figures/film.png", "a gray picture"),
        ("figures/deep.png", "a gray picture"),
        ("figures/orphan.png", "no orphan.json that says where it comes from"),
        ("figures/real.svg", "drawn from mix 'real-sample'"),
        ("figures/film.jpg", "a film or a study table"),
        ("results/studies-00000.parquet", "a film or a study table"),
        ("cxrclip/phantom/a.dcm", "a film or a study table"),
        ("notebooks/02_jpeg.ipynb", "image/jpeg: a photograph's format; figures are PNG or SVG"),
        ("notebooks/03_real.ipynb", "pictures of a run with mix ['mine']"),
    ]
