"""Damaged files of every kind that the library reads, and what becomes of each.

A family has valid files, a way to change one at random, the library's reader and a plain reading by other means. A
changed file must be read as the plain reading reads it, be set aside, or be refused in one line. A traceback, another
content, a reading of more than SECONDS or of more than GROWTH bytes is a fault. Everything follows from a number.

    python tests/fuzzing.py [--number 1000] [--family images ...]    # make fuzz: writes benchmarks/fuzz.md
    python tests/fuzzing.py --family images --one 17                 # the traceback of one fault
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import yaml
from tqdm import tqdm

from cxrclip.data.workers import Failure, in_order
from cxrclip.errors import InputError

SECONDS = 20.0
GROWTH = 2**30
EQUAL, ASIDE, REFUSED = "read, equal to the plain reading", "set aside", "refused in one line"
FAULTS = ("another content", "traceback", "several lines", "too slow", "too large", "process died")
PAGE = Path(__file__).parents[1] / "benchmarks" / "fuzz.md"

Files = dict[str, bytes]
ODD = (b"\0", b"\xff", b"\xff\xfe", b"\x80", b"nan", b"-1", b"0", b"1e999", b"9" * 30, b'"', b"'", b",", b"\n", b"\r",
       b"../", b"/dev/zero", b"%s", b"{", b"[", b"&a", b"*a", b"<", b"&x;", b"\xef\xbb\xbf", b"true", b"null")


class Verdict(NamedTuple):
    """What became of a file, and in a few words why."""

    kind: str
    detail: str = ""


@dataclass(frozen=True)
class Family:
    """Files of one kind.

    make: variant (a number) -> valid files in a new folder, by name. change: the files, changed. read: folder -> what
    the library reads there; InputError refuses, None sets the file aside. plain: folder -> the same by other means;
    None where nobody else reads it. alike: whether two readings are the same.
    """

    make: Callable[[int], Files]
    change: Callable[[Files, random.Random], Files]
    read: Callable[[Path], Any]
    plain: Callable[[Path], Any]
    alike: Callable[[Any, Any], bool] = lambda measured, plain: measured == plain


# ---- changes ---------------------------------------------------------------------------------------------------------


def damaged(data: bytes, rng: random.Random, start: int = 0) -> bytes:
    """One to three changes behind `start`: a bit flipped; bytes overwritten, cut, repeated, put in; the end lost."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        place, length = rng.randrange(start, len(content) + 1), rng.choice((1, 2, 4, 16, 64))
        match rng.randrange(6):
            case 0 if place < len(content):
                content[place] ^= 1 << rng.randrange(8)
            case 1:
                content[place:place + length] = rng.randbytes(length)
            case 2:
                del content[place:place + length]
            case 3:
                content[place:place] = content[place:place + length]
            case 4:
                content[place:place] = rng.choice(ODD)
            case _ if rng.random() < 0.3:
                del content[place:]
    return bytes(content)


def one_damaged(files: Files, rng: random.Random) -> Files:
    """One of the files damaged."""
    name = rng.choice(sorted(files))
    return files | {name: damaged(files[name], rng)}


def odd_value(rng: random.Random) -> Any:
    """A value of some type."""
    return rng.choice((None, True, -1, 0, 3.5, float("nan"), 10**20, "", "x", "../x", "a\0b", "\ud800", [], [1], {},
                       {"x": 1}, [[]], "1" * 200, b"\xff"))


def odd_node(content: Any, rng: random.Random) -> Any:
    """Nested lists and mappings with one node replaced, dropped, renamed or doubled."""
    if isinstance(content, dict) and content:
        key, how = rng.choice(sorted(content, key=str)), rng.randrange(6)
        if how == 0:
            return {name: value for name, value in content.items() if name != key}
        if how == 1:
            other = odd_value(rng)
            other = "unknown" if isinstance(other, dict | list) else other
            return {other if name == key else name: value for name, value in content.items()}
        return content | {key: odd_node(content[key], rng)}
    if isinstance(content, list) and content and rng.random() < 0.7:
        place = rng.randrange(len(content))
        return [*content[:place], odd_node(content[place], rng), *content[place + rng.randrange(2):]]
    return odd_value(rng)


# ---- images ----------------------------------------------------------------------------------------------------------


def _pixels(seed: int, kind: type = np.uint8, channels: int = 0) -> np.ndarray:
    shape = (40, 30, channels) if channels else (40, 30)
    return np.random.default_rng(seed).integers(0, 256 if kind is np.uint8 else 4096, shape).astype(kind)


def make_image(variant: int) -> Files:
    """A film as PNG, JPEG, TIFF or BMP, gray or not, with 1, 8 or 16 bits."""
    from PIL import Image

    gray, colour = Image.fromarray(_pixels(variant)), Image.fromarray(_pixels(variant, channels=3))
    turned = Image.Exif()
    turned[0x0112] = 6
    image, options = [
        (gray, {"format": "PNG"}), (gray, {"format": "JPEG"}), (gray, {"format": "TIFF"}), (gray, {"format": "BMP"}),
        (Image.fromarray(_pixels(variant, np.uint16)), {"format": "PNG"}), (gray.convert("1"), {"format": "PNG"}),
        (colour, {"format": "PNG"}), (colour, {"format": "JPEG", "exif": turned, "progressive": True}),
        (colour.convert("P"), {"format": "PNG"}), (colour.convert("CMYK"), {"format": "JPEG"}),
        (Image.fromarray(_pixels(variant, channels=4)), {"format": "PNG"}),
        (gray, {"format": "TIFF", "compression": "tiff_lzw"}),
        (Image.fromarray(_pixels(variant, np.uint16)), {"format": "TIFF", "compression": "tiff_deflate"}),
    ][variant % 13]
    file = io.BytesIO()
    image.save(file, **options)
    return {"film": file.getvalue()}


def change_image(files: Files, rng: random.Random) -> Files:
    """Damaged; every second PNG has right checksums again, so that the damage reaches the decoder."""
    data = damaged(files["film"], rng)
    return {"film": _with_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.5 else data}


def _with_checksums(data: bytes) -> bytes:
    content, place = bytearray(data), 8
    while place + 12 <= len(content):
        end = place + 8 + int.from_bytes(content[place:place + 4], "big")
        content[end:end + 4] = zlib.crc32(content[place + 4:end]).to_bytes(4, "big")
        place = end + 4
    return bytes(content[:len(data)])


def read_image(folder: Path) -> np.ndarray:
    """A film as the sources read it."""
    from cxrclip.data.images import read_gray

    return read_gray(folder / "film", "film")


def plain_image(folder: Path) -> np.ndarray:
    """The same by Pillow alone."""
    from PIL import Image

    image = Image.open(folder / "film")
    image.load()
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    if image.mode[0] in "IF":
        return stretched(np.asarray(image))
    black = Image.new("RGBA", image.size, "black")
    return np.asarray(Image.alpha_composite(black, image.convert("RGBA")).convert("L"))


def stretched(values: np.ndarray) -> np.ndarray:
    """From the lowest to the highest value to 0..255."""
    low, high = float(values.min()), float(values.max())
    return np.round((values.astype(np.float64) - low) * 255 / (high - low))


def near(measured: np.ndarray, plain: np.ndarray) -> bool:
    """The same film to one shade."""
    return measured.shape == plain.shape and int(np.abs(measured.astype(int) - plain.astype(int)).max()) <= 1


# ---- DICOM -----------------------------------------------------------------------------------------------------------


def make_dicom(variant: int) -> Files:
    """A DICOM film, uncompressed, with 8 to 16 bits, in the usual kinds of header."""
    import pydicom
    from downloads import dicom
    from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

    fields = [{}, {"WindowCenter": 2000, "WindowWidth": 3000}, {"PhotometricInterpretation": "MONOCHROME1"},
              {"RescaleSlope": 2, "RescaleIntercept": -1024}, {"PixelRepresentation": 1},
              {"NumberOfFrames": 1, "PixelAspectRatio": [1, 1]}][variant % 6]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.dcm"
        dicom(path, variant, **fields)
        if variant % 5 in (3, 4):
            film = pydicom.dcmread(path)
            if variant % 5 == 3:
                film.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
            else:
                film.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
                film.PixelData = np.frombuffer(film.PixelData, "<u2").astype(">u2").tobytes()
            pydicom.dcmwrite(path, film, implicit_vr=variant % 5 == 3, little_endian=variant % 5 == 3,
                             enforce_file_format=False, force_encoding=True)
        return {"film.dcm": path.read_bytes()}


ELEMENTS = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit",
            "PixelRepresentation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth",
            "VOILUTFunction", "PlanarConfiguration")


def change_header(files: Files, rng: random.Random) -> Files:
    """Bytes before the pixels damaged, or one to three elements given another value, emptied or left out."""
    import pydicom

    data = files["film.dcm"]
    pixels = max(data.find(b"\xe0\x7f\x10\x00"), data.find(b"\x7f\xe0\x00\x10"))
    if rng.random() < 0.5:
        return {"film.dcm": damaged(data[:pixels], rng, 128 if rng.random() < 0.8 else 0) + data[pixels:]}
    film = pydicom.dcmread(io.BytesIO(data))
    with pydicom.config.disable_value_validation():
        for name in rng.sample(ELEMENTS, rng.choice((1, 1, 2, 3))):
            value = rng.choice((0, 1, 2, 3, 8, 12, 15, 16, 32, 64, 65535, -1, 0.5, "", "MONOCHROME1", "RGB", "SIGMOID",
                                "YBR_FULL", [1, 2], None))
            try:
                setattr(film, name, value)
                film.save_as(file := io.BytesIO())
                data = file.getvalue()
            except Exception:  # a value that cannot be written: another one next time
                film = pydicom.dcmread(io.BytesIO(data))
    return {"film.dcm": data}


def make_stream(variant: int) -> Files:
    """A DICOM film with compressed pixels: RLE, JPEG, JPEG 2000, and what pydicom brings of the rest."""
    import pydicom
    from pydicom.data import get_testdata_file
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless

    film = pydicom.dcmread(io.BytesIO(make_dicom(30 * variant)["film.dcm"]))
    film.Rows, film.Columns, film.PixelData = 80, 60, 4 * film.PixelData  # JPEG 2000 wants some pixels
    match variant % 5:
        case 0:
            film.compress(RLELossless)
        case 1:
            film.compress(JPEG2000Lossless)
        case 2:
            film.Rows, film.Columns, film.BitsAllocated, film.BitsStored, film.HighBit = 40, 30, 8, 8, 7
            film.PixelData = encapsulate([make_image(13 * variant + 1)["film"]])
            film["PixelData"].is_undefined_length = True
            film.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        case _:
            names = ("JPEG-LL.dcm", "JPEGLSNearLossless_08.dcm", "JPEG2000.dcm", "MR_small_RLE.dcm")
            path = get_testdata_file(names[variant // 5 % 4], download=False)
            if path:
                return {"film.dcm": Path(path).read_bytes()}
            film.compress(RLELossless)
    film.save_as(file := io.BytesIO())
    return {"film.dcm": file.getvalue()}


def change_stream(files: Files, rng: random.Random) -> Files:
    """The pixels damaged."""
    data = files["film.dcm"]
    return {"film.dcm": damaged(data, rng, data.rfind(b"\xe0\x7f\x10\x00"))}


def read_dicom(folder: Path) -> np.ndarray:
    """A film as the sources read it."""
    from cxrclip.data.images import read_gray

    return read_gray(folder / "film.dcm", "film")


def plain_dicom(folder: Path) -> np.ndarray:
    """The same by pydicom's own functions."""
    import pydicom
    from PIL import Image
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    film = pydicom.dcmread(folder / "film.dcm", force=True)
    available = pydicom.pixels.get_decoder(film.file_meta.TransferSyntaxUID).available_plugins
    for plugin in ("pillow", "pylibjpeg"):  # two decoders make different pixels of damaged ones
        if plugin in available:
            film.pixel_array_options(decoding_plugin=plugin)
    values = film.pixel_array
    if values.ndim == 3:
        return stretched(np.asarray(Image.fromarray(values).convert("L")))
    slope, intercept = film.get("RescaleSlope"), film.get("RescaleIntercept")  # pydicom wants both, or does nothing
    values = values * (1.0 if slope is None else float(slope)) + (0.0 if intercept is None else float(intercept))
    for name in ("RescaleSlope", "RescaleIntercept"):  # else a window turns films with a falling slope around
        film.pop(name, None)
    values = apply_voi_lut(apply_modality_lut(values, film), film).astype(np.float64)
    return stretched(-values if film.PhotometricInterpretation == "MONOCHROME1" else values)


# ---- tables and reports ----------------------------------------------------------------------------------------------

TABLE = """file,who,label,findings,sex,age,split
0.png,p0,Edema,"The heart is large, the lungs are clear.",F,61,train
1.png,p1,,"No ""acute"" process.
Second line.",M,058Y,test
2.png,p2,Edema|Mass,Ein schöner Befund.,,,valid
3.png,p3,Mass,,F,7.0,train
"""


def make_csv(variant: int) -> Files:
    """A table of films, plain, with a byte order mark, with line ends of Windows, packed, or with commas at the end."""
    import gzip

    ended = TABLE.replace("train\n", "train,\n")
    data = [TABLE, "\ufeff" + TABLE, TABLE.replace("\n", "\r\n"), TABLE, ended][variant % 5].encode()
    return {"t.csv.gz": gzip.compress(data, mtime=0)} if variant % 5 == 3 else {"t.csv": data}


def make_parquet(variant: int) -> Files:
    """The same table as Parquet, with text or numbers."""
    import pandas as pd

    table = pd.read_csv(io.StringIO(TABLE), dtype=object if variant % 2 else None)
    file = io.BytesIO()
    table.to_parquet(file, compression=("snappy", None, "gzip")[variant % 3])
    return {"t.parquet": file.getvalue()}


def read_cells(folder: Path) -> list[tuple[str, ...]] | None:
    """The rows of a table that the sources would take."""
    from cxrclip.data.sources.tables import Unusable, check_row, read_table, records

    aside: list[object] = []
    columns = ("file", "who", "findings")
    table = read_table(next(folder.glob("t.*")), columns, aside=lambda *fault: aside.append(fault))
    rows = []
    for _, cells in records(table):
        try:
            check_row(cells)
            rows.append(tuple(cells[name] for name in columns))
        except Unusable as fault:
            aside.append(fault)
    return rows or (None if aside else [])


def plain_csv(folder: Path) -> list[tuple[str, ...]]:
    """The rows by the csv module: those with the commonest number of fields, and no broken letters."""
    import csv
    import gzip

    from cxrclip.data.sources.tables import plain_cell

    (path,) = folder.glob("t.*")
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    text = data.decode("utf-8-sig", "surrogateescape")
    header, *rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    header = [name.strip() for name in header]
    rows = [row for row in rows if any(cell.strip() for cell in row) or len(row) > 1]
    widths = Counter(len(row) for row in rows)
    ended = widths.most_common(1)[0][0] if widths and widths.most_common(1)[0][1] * 2 > len(rows) else len(header)
    width = ended if all(not row[len(header):] or not "".join(row[len(header):]).strip()
                         for row in rows if len(row) == ended) and ended >= len(header) else len(header)
    kept = [row for row in rows if len(row) == width and "".join(row).isprintable is not None
            and not any("\ud800" <= letter <= "\udfff" for letter in "".join(row))]
    places = [header.index(name) for name in ("file", "who", "findings")]
    return [tuple(plain_cell(row[place]) for place in places) for row in kept]


def plain_parquet(folder: Path) -> list[tuple[str, ...]]:
    """The rows by pandas."""
    import pyarrow.parquet as pq

    from cxrclip.data.sources.tables import plain_cell

    rows = pq.read_table(folder / "t.parquet", columns=["file", "who", "findings"]).to_pylist()
    return [tuple("" if value is None else plain_cell(str(value)) for value in row.values()) for row in rows]


XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{i}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText><AbstractText Label="INDICATION">Pain &amp; fever</AbstractText>
<AbstractText Label="FINDINGS">The heart is large. Lungs clear, {i}.</AbstractText>
<AbstractText Label="IMPRESSION">Cardiomegaly.</AbstractText>
</Abstract></Article></MedlineCitation><parentImage id="CXR{i}_IM-0001-1001"/></eCitation>
"""


def make_xml(variant: int) -> Files:
    """Three Open-I reports and their films."""
    from cxrclip.data.images import encode_gray

    encodings = ("utf-8", "iso-8859-1", "utf-16")
    files = {f"NLMCXR_png/CXR{i}_IM-0001-1001.png": encode_gray(_pixels(i), "png") for i in (1, 2, 3)}
    for i in (1, 2, 3):
        encoding = encodings[variant % 3] if i == 2 else "utf-8"
        files[f"ecgen-radiology/{i}.xml"] = XML.format(i=i).replace("utf-8", encoding).encode(encoding)
    return files


def change_xml(files: Files, rng: random.Random) -> Files:
    """The second report damaged, or its first line promising another encoding."""
    data = files["ecgen-radiology/2.xml"]
    if rng.random() < 0.2:
        others = (b"utf-7", b"utf-32", b"cp037", b"rot13", b"none", b"idna", b"shift_jis", b"hex", b"", b"\0")
        data = data.replace(b"utf-8", rng.choice(others))
    return files | {"ecgen-radiology/2.xml": damaged(data, rng)}


def read_xml(folder: Path) -> dict[str, tuple[str | None, str | None]] | None:
    """Open-I's reports as the source prepares them: study -> its sections. The second alone may be set aside."""
    from downloads import in_this_process

    from cxrclip.data.sources import SOURCES
    from cxrclip.data.sources import prepare as driver
    from cxrclip.studies import read_shards

    driver.in_order = in_this_process
    SOURCES["openi"](folder, folder / "out", allow_partial=True, max_rejected=1.0, progress=False)
    studies = {row["study_id"]: (row["findings"], row["impression"])
               for shard in read_shards(folder / "out") for row in shard}
    assert studies.keys() >= {"CXR1", "CXR3"}, "a whole report was lost"
    return studies if "CXR2" in studies else None


def plain_xml(folder: Path) -> dict[str, tuple[str | None, str | None]]:
    """The same by the text nodes of a minidom."""
    from xml.dom import minidom

    def text(node: minidom.Node) -> str:
        return node.data if node.nodeType in (node.TEXT_NODE, node.CDATA_SECTION_NODE) else "".join(
            map(text, node.childNodes))

    studies = {}
    for i in (1, 2, 3):
        nodes = minidom.parse(str(folder / "ecgen-radiology" / f"{i}.xml")).getElementsByTagName("AbstractText")
        studies[f"CXR{i}"] = tuple(
            " ".join(" ".join(text(node) for node in nodes if node.getAttribute("Label") == label).split()) or None
            for label in ("FINDINGS", "IMPRESSION"))
    return studies


# ---- settings --------------------------------------------------------------------------------------------------------


def make_mix(variant: int) -> Files:
    """The library's own mixes."""
    from cxrclip.data import mixes

    paths = sorted(Path(mixes.__file__).with_name("mix").glob("*.yaml"))
    return {"mix.yaml": paths[variant % len(paths)].read_bytes()}


def make_prompts(variant: int) -> Files:
    """The library's own prompts."""
    from cxrclip.prompts import DEFAULT_FILE

    return {"prompts.yaml": DEFAULT_FILE.read_bytes()}


def change_settings(files: Files, rng: random.Random) -> Files:
    """Damaged as text, or with an odd value or key in some place."""
    ((name, data),) = files.items()
    if rng.random() < 0.4:
        return {name: damaged(data, rng)}
    content = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 2))):
        content = odd_node(content, rng)
    try:
        return {name: yaml.safe_dump(content, allow_unicode=True).encode()}
    except (yaml.YAMLError, UnicodeEncodeError):
        return {name: damaged(data, rng)}


def read_mix(folder: Path) -> dict[str, list[str]]:
    """A mix: its roles by section, and their sizes."""
    from cxrclip.data.mixes import load_mix

    mix = load_mix(str(folder / "mix.yaml"))
    return {"pretraining": list(mix.pretraining), "tests": list(mix.tests)}


def plain_mix(folder: Path) -> dict[str, list[str]]:
    """The same by PyYAML."""
    content = yaml.safe_load((folder / "mix.yaml").read_text(encoding="utf-8"))
    return {name: list(content.get(name) or {}) for name in ("pretraining", "tests")}


def read_prompts(folder: Path) -> dict[str, Any]:
    """Prompts: class -> state -> sentences."""
    from cxrclip.prompts import PromptBank

    bank = PromptBank.load(folder / "prompts.yaml")
    return {name: {state: list(texts) for state, texts in states.items()} for name, states in bank.prompts.items()}


def plain_prompts(folder: Path) -> dict[str, Any]:
    """The same by PyYAML. One sentence may stand without a list."""
    content = yaml.safe_load((folder / "prompts.yaml").read_text(encoding="utf-8"))
    content = content if "prompts" in content else yaml.safe_load(make_prompts(0)["prompts.yaml"])
    return {name: {state: [texts] if isinstance(texts, str) else texts for state, texts in states.items()}
            for name, states in content["prompts"].items()}


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def make_checkpoint(variant: int) -> Files:
    """A training state, stored embeddings, and a small file in the released format."""
    import torch

    from cxrclip.evaluation import ImageEmbeddings
    from cxrclip.experiments.checkpoints import save_embeddings, save_state

    generator = torch.Generator().manual_seed(variant)
    tensors = {name: torch.randn(6, 5, generator=generator) for name in ("model.a", "optimizer.0.exp_avg")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        match variant % 3:
            case 0:
                save_state(folder / "state.safetensors", tensors, {"step": variant, "draws": [1, 2]})
            case 1:
                arrays = {field: np.random.default_rng(variant).normal(size=(4, 3)).astype(np.float32)
                          for field in ImageEmbeddings.__dataclass_fields__}
                save_embeddings(ImageEmbeddings(**arrays), folder / "embeddings.npz")
            case _:
                torch.save({"model": tensors, "config": {"base": {"image_size": 224}}}, folder / "r50.tar")
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """What the library takes from it; the small released file is never a whole model, and so refused."""
    from dataclasses import asdict

    from cxrclip.experiments.checkpoints import load_embeddings, load_state
    from cxrclip.official.weights import load_official

    (path,) = folder.iterdir()
    if path.suffix == ".tar":
        return {"model": load_official(path)}
    if path.suffix == ".npz":
        return asdict(load_embeddings(path))
    tensors, info = load_state(path)
    return {name: tensor.numpy() for name, tensor in tensors.items()} | {"info": info}


def plain_checkpoint(folder: Path) -> dict[str, Any]:
    """The same by numpy and safetensors."""
    from safetensors import safe_open

    (path,) = folder.iterdir()
    if path.suffix == ".npz":
        return dict(np.load(path, allow_pickle=False))
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | {  # noqa: SIM118
            "info": json.loads(file.metadata()["info"])}


def same_arrays(measured: Mapping[str, Any], plain: Mapping[str, Any]) -> bool:
    """The same names with the same content."""
    return measured.keys() == plain.keys() and all(
        np.array_equal(measured[name], plain[name], equal_nan=measured[name].dtype.kind == "f")
        if isinstance(measured[name], np.ndarray) else measured[name] == plain[name] for name in measured)


# ---- study tables ----------------------------------------------------------------------------------------------------


def make_studies(variant: int) -> Files:
    """A study folder: two shards and dataset.json."""
    from builders import mixed_rows

    from cxrclip.data.shards import write_studies

    rows = mixed_rows()
    with tempfile.TemporaryDirectory() as name:
        folder = write_studies(rows[variant % 3:variant % 3 + 6], Path(name) / "t", shard_rows=4)
        return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def change_studies(files: Files, rng: random.Random) -> Files:
    """A shard or dataset.json damaged, or an odd value in dataset.json."""
    if rng.random() < 0.2:
        content = odd_node(json.loads(files["dataset.json"]), rng)
        try:
            return files | {"dataset.json": json.dumps(content, default=str).encode()}
        except (UnicodeEncodeError, TypeError):
            pass
    return one_damaged(files, rng)


def read_studies(folder: Path) -> list[dict[str, Any]]:
    """The studies as training opens them, without a check of the whole folder before."""
    from cxrclip.studies import open_studies

    return open_studies(folder).to_list()


def plain_studies(folder: Path) -> list[dict[str, Any]]:
    """The same by pyarrow."""
    import pyarrow.parquet as pq

    return [row for shard in sorted(folder.glob("*.parquet")) for row in pq.read_table(shard).to_pylist()]


FAMILIES: Mapping[str, Family] = {
    "images": Family(make_image, change_image, read_image, plain_image, near),
    "DICOM headers": Family(make_dicom, change_header, read_dicom, plain_dicom, near),
    "DICOM streams": Family(make_stream, change_stream, read_dicom, plain_dicom, near),
    "CSV tables": Family(make_csv, one_damaged, read_cells, plain_csv),
    "Parquet tables": Family(make_parquet, one_damaged, read_cells, plain_parquet),
    "XML reports": Family(make_xml, change_xml, read_xml, plain_xml),
    "mixes (YAML)": Family(make_mix, change_settings, read_mix, plain_mix),
    "prompts (YAML)": Family(make_prompts, change_settings, read_prompts, plain_prompts),
    "checkpoints": Family(make_checkpoint, one_damaged, read_checkpoint, plain_checkpoint, same_arrays),
    "study tables": Family(make_studies, change_studies, read_studies, plain_studies),
}


# ---- what becomes of a file ------------------------------------------------------------------------------------------


def files_of(name: str, number: int) -> Files:
    """The changed files of a number, the same on any machine."""
    family, rng = FAMILIES[name], random.Random(f"{name} {number}")
    return family.change(family.make(number), rng)


def reading(name: str, folder: Path) -> Verdict:
    """What the library makes of a folder, against the plain reading."""
    family = FAMILIES[name]
    try:
        measured = family.read(folder)
    except InputError as error:
        return Verdict(REFUSED if str(error).splitlines()[1:] == [] else "several lines", str(error))
    if measured is None:
        return Verdict(ASIDE)
    try:
        plain = family.plain(folder)
    except Exception as error:  # the library reads what another reader does not
        return Verdict("read, refused by the plain reading", f"{type(error).__name__}: {error}"[:200])
    return Verdict(EQUAL) if family.alike(measured, plain) else Verdict("another content")


def attempt(name: str, number: int) -> Verdict:
    """In a worker: write the files of a number, read them, and watch time and memory."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for path, data in files_of(name, number).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        with open(os.devnull, "w") as nowhere:
            shown, sys.stderr = sys.stderr, nowhere
            try:
                verdict = reading(name, folder)
            finally:
                sys.stderr = shown
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        return Verdict("too large", f"{grown / 2**20:,.0f} MiB") if grown > GROWTH else verdict
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return Verdict("traceback", f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"[:300])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verdicts(name: str, numbers: range, workers: int = 0) -> list[Verdict]:
    """What became of the file of each number, in processes of their own: a decoder may abort or hang.

    A decoder that aborts or hangs costs one film: the sources decode in such processes, too.
    """
    lost = ASIDE if name.startswith(("images", "DICOM")) else "process died"
    calls = [(name, number) for number in numbers]
    results = []
    with in_order(attempt, calls, workers or os.cpu_count() or 1, SECONDS) as outcomes:
        for outcome in tqdm(outcomes, name, len(calls)):
            if isinstance(outcome, Failure):
                outcome = Verdict("too slow" if "longer" in outcome.reason else lost, outcome.reason)
            results.append(outcome)
    return results


def faults(results: list[Verdict]) -> list[tuple[int, Verdict]]:
    """Those that must not happen, each with its number."""
    return [(number, verdict) for number, verdict in enumerate(results) if verdict.kind in FAULTS]


# ---- the long form ---------------------------------------------------------------------------------------------------


def table_of(results: Mapping[str, list[Verdict]]) -> str:
    """benchmarks/fuzz.md."""
    kinds = [EQUAL, "read, refused by the plain reading", ASIDE, REFUSED]
    lines = [f"| files | changed | {' | '.join(kinds)} | faults |", "|---" * (len(kinds) + 3) + "|"]
    for name, outcomes in results.items():
        counts = Counter(verdict.kind for verdict in outcomes)
        cells = [f"{counts[kind]:,}" for kind in kinds]
        lines.append(f"| {name} | {len(outcomes):,} | {' | '.join(cells)} | {len(faults(outcomes))} |")
    head = __doc__.split("\n\n")[1].replace("\n", " ")
    return "\n".join(["# Damaged files", "", f"Written by `make fuzz`. {head}", "", *lines, "",
                      "Read, refused by the plain reading: files that the library mends on purpose, such as a header "
                      "without an element that has a default.", ""])


def main() -> None:
    """The long form, or one file again."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--number", type=int, default=1000)
    parser.add_argument("--family", nargs="*", default=list(FAMILIES))
    parser.add_argument("--one", type=int)
    options = parser.parse_args()
    if options.one is not None:
        folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
        for path, data in files_of(options.family[0], options.one).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
        print(folder)
        print(reading(options.family[0], folder))
        return
    results = {}
    for name in options.family:
        start = time.time()
        results[name] = verdicts(name, range(options.number))
        wrong = faults(results[name])
        print(f"{name}: {Counter(v.kind for v in results[name])}, {time.time() - start:.0f} s")
        for number, verdict in itertools.islice(wrong, 12):
            print(f"  --one {number}: {verdict.kind}: {verdict.detail}")
    if set(results) == set(FAMILIES):
        PAGE.write_text(table_of(results), encoding="utf-8")
    sys.exit(any(faults(outcomes) for outcomes in results.values()))


if __name__ == "__main__":
    import fuzzing  # by name, as the worker processes import it

    fuzzing.main()
