"""cxrclip.data.images: DICOM becomes 8-bit gray as a slow plain reference says, and nothing else of it gets out."""

import contextlib
import io
import math

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from cxrclip.data import images
from cxrclip.data.images import read_gray
from cxrclip.errors import InputError

SECRET = "SECRET^NAME"


def raw(bits=12, signed=False, height=24, width=20, seed=0):
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    kind = {(8, False): np.uint8, (8, True): np.int8, (16, False): np.uint16, (16, True): np.int16}
    values = np.random.default_rng(seed).integers(low, high, (height, width))
    return values.astype(kind[8 if bits == 8 else 16, signed])


def dataset(pixels, bits=12, photometric="MONOCHROME2", **elements):
    """A data set that looks like a radiograph's, with a name that must never come out."""
    film = pydicom.Dataset()
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    film.PatientName = film.PatientID = film.AccessionNumber = SECRET
    film.Rows, film.Columns = pixels.shape[:2]
    film.SamplesPerPixel = pixels.shape[2] if pixels.ndim == 3 else 1
    film.PhotometricInterpretation = photometric
    film.PixelRepresentation = int(pixels.dtype.kind == "i")
    film.BitsAllocated, film.BitsStored, film.HighBit = 8 * pixels.dtype.itemsize, bits, bits - 1
    film.PixelData = pixels.tobytes()
    for name, value in elements.items():
        setattr(film, name, value)
    return film


def table(first, entries, depth):
    item = pydicom.Dataset()
    item.LUTDescriptor = [len(entries), first, depth]
    item.add_new("LUTData", "US", [int(entry) for entry in entries])
    return [item]


def saved(film, syntax=None, **options):
    buffer = io.BytesIO()
    if syntax is not None:
        film.file_meta.TransferSyntaxUID = syntax
    options = options or {"enforce_file_format": True}
    pydicom.dcmwrite(buffer, film, **options)
    return buffer.getvalue()


def reference(pixels, film):
    """PS3.3 C.11.1 and C.11.2 by the letter, one pixel at a time; then minimum to 0 and maximum to 255."""

    def looked_up(value, item):
        length, first, _ = item.LUTDescriptor
        return item.LUTData[min(max(value - first, 0), (length or 65536) - 1)]

    def windowed(value, center, width):
        bits, slope, intercept = film.BitsStored, film.get("RescaleSlope") or 1, film.get("RescaleIntercept") or 0
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if film.PixelRepresentation else (0, 2**bits - 1)
        low, high = sorted((low * slope + intercept, high * slope + intercept))
        kind = film.get("VOILUTFunction", "LINEAR")
        if kind == "SIGMOID":
            return (high - low) / (1 + math.exp(-4 * (value - center) / width)) + low
        shift = 0 if kind == "LINEAR_EXACT" else 1
        if value <= center - shift / 2 - (width - shift) / 2:
            return low
        if value > center - shift / 2 + (width - shift) / 2:
            return high
        return ((value - (center - shift / 2)) / (width - shift) + 0.5) * (high - low) + low

    shown = np.empty(pixels.shape)
    for place, value in np.ndenumerate(pixels.astype(int)):
        if "ModalityLUTSequence" in film:
            value = looked_up(value, film.ModalityLUTSequence[0])
        else:
            value = value * (film.get("RescaleSlope") or 1) + (film.get("RescaleIntercept") or 0)
        if "VOILUTSequence" in film:
            value = looked_up(round(value), film.VOILUTSequence[0])
        elif film.get("WindowCenter") is not None:
            value = windowed(value, np.ravel(film.WindowCenter)[0], np.ravel(film.WindowWidth)[0])
        shown[place] = -value if film.PhotometricInterpretation == "MONOCHROME1" else value
    low, high = shown.min(), shown.max()
    return np.round((shown - low) * 255 / (high - low)).astype(np.uint8)


CURVE = (np.sqrt(np.linspace(0, 1, 3000)) * 4095).round()
CASES = {
    "8 bit": ({"bits": 8}, {}),
    "12 bit": ({}, {}),
    "16 bit": ({"bits": 16}, {}),
    "signed": ({"bits": 16, "signed": True}, {}),
    "MONOCHROME1": ({}, {"photometric": "MONOCHROME1"}),
    "rescale": ({}, {"RescaleSlope": 2.5, "RescaleIntercept": -1024}),
    "window": ({}, {"WindowCenter": 1800, "WindowWidth": 900}),
    "first window of two": ({}, {"WindowCenter": [1800, 500], "WindowWidth": [900, 100]}),
    "window after rescale": (
        {"signed": True, "bits": 16},
        {"RescaleSlope": 0.5, "RescaleIntercept": 10, "WindowCenter": 200, "WindowWidth": 3000},
    ),
    "falling rescale": ({}, {"RescaleSlope": -10, "RescaleIntercept": 30000}),
    "window after falling rescale": (
        {},
        {"RescaleSlope": -10, "RescaleIntercept": 30000, "WindowCenter": 13000, "WindowWidth": 10000},
    ),
    "MONOCHROME1 after falling rescale": (
        {},
        {"photometric": "MONOCHROME1", "RescaleSlope": -0.5, "RescaleIntercept": 0, "WindowCenter": -900,
         "WindowWidth": 700, "VOILUTFunction": "SIGMOID"},
    ),
    "empty rescale": (
        {},
        {"RescaleSlope": None, "RescaleIntercept": None, "WindowCenter": 1800, "WindowWidth": 900},
    ),
    "slope alone": ({}, {"RescaleSlope": -2, "WindowCenter": -3000, "WindowWidth": 900}),
    "intercept alone": ({}, {"RescaleIntercept": -1024, "WindowCenter": 800, "WindowWidth": 900}),
    "LINEAR_EXACT": ({}, {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"}),
    "SIGMOID": ({}, {"WindowCenter": 1800, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}),
    "MONOCHROME1 window": ({}, {"photometric": "MONOCHROME1", "WindowCenter": 1800, "WindowWidth": 900}),
    "empty window": ({}, {"WindowCenter": None, "WindowWidth": None}),
    "modality LUT": ({}, {"ModalityLUTSequence": table(500, CURVE, 16)}),
    "modality LUT of 8-bit pixels": ({"bits": 8}, {"ModalityLUTSequence": table(100, CURVE[::30], 16)}),
    "VOI LUT": ({}, {"VOILUTSequence": table(500, CURVE, 12)}),
    "VOI LUT before window": (
        {},
        {"VOILUTSequence": table(500, CURVE, 12), "WindowCenter": 1800, "WindowWidth": 9},
    ),
    "VOI LUT of 8 bits": ({}, {"VOILUTSequence": table(500, CURVE // 16, 8)}),
    "VOI LUT after rescale": (
        {},
        {"RescaleSlope": 0.7, "RescaleIntercept": 3, "VOILUTSequence": table(0, CURVE, 16)},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_pixels_are_those_of_the_slow_reference(name):
    pixels, elements = CASES[name]
    values = raw(**pixels)
    film = dataset(values, pixels.get("bits", 12), **elements)
    expected = reference(values, film)
    found = read_gray(saved(film), name)
    assert found.dtype == np.uint8
    off = np.abs(found.astype(int) - expected)
    assert off.max() <= 1
    assert off.mean() < 0.01  # a value that falls just between two grays may be rounded either way
    assert len(np.unique(expected)) > 20


def test_overlay_bits_above_the_stored_ones_are_no_pixels():
    values = raw()
    film = dataset(values | 0x8000)
    np.testing.assert_array_equal(read_gray(saved(film), "overlay"), reference(values, film))


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless,
               JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless], ids=lambda uid: uid.name)  # fmt: skip
def test_lossless_transfer_syntaxes_give_the_same_pixels(syntax):
    values = raw(height=70, width=64)
    film = dataset(values, WindowCenter=1800, WindowWidth=900)
    expected = reference(values, film)
    if syntax in (RLELossless, JPEG2000Lossless):
        film.compress(syntax, generate_instance_uid=False)
        data = saved(film)
    elif syntax in (JPEGLosslessSV1, JPEGLSLossless):
        data = by_gdcm(saved(film), syntax)
    else:
        film = film if syntax != ExplicitVRBigEndian else dataset(values.byteswap(), WindowCenter=1800, WindowWidth=900)
        data = saved(film, syntax)
    np.testing.assert_array_equal(read_gray(data, syntax.name), expected)


def by_gdcm(data, syntax):
    """The file compressed again by GDCM, which has encoders that pydicom has not."""
    import tempfile

    import gdcm

    with tempfile.NamedTemporaryFile(suffix=".dcm") as before, tempfile.NamedTemporaryFile(suffix=".dcm") as after:
        before.write(data)
        before.flush()
        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(before.name)
        assert reader.Read()
        kind = {JPEGLosslessSV1: gdcm.TransferSyntax.JPEGLosslessProcess14_1,
                JPEGLSLossless: gdcm.TransferSyntax.JPEGLSLossless}[syntax]  # fmt: skip
        change.SetTransferSyntax(gdcm.TransferSyntax(kind))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        writer.SetFileName(after.name)
        assert writer.Write()
        return after.read()


def jpeg(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_baseline_jpeg_is_decoded(photometric):
    data = jpeg(raw(8))
    pixels = np.asarray(Image.open(io.BytesIO(data)))
    film = dataset(pixels, 8, photometric, PixelData=encapsulate([data]))
    found = read_gray(saved(film, JPEGBaseline8Bit), "jpeg").astype(int)
    assert np.abs(found - reference(pixels, film)).max() <= 2


def test_colour_becomes_luma():
    colour = np.random.default_rng(1).integers(0, 256, (20, 22, 3), dtype=np.uint8)
    film = dataset(colour, 8, "RGB", PlanarConfiguration=0)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    stretched = (luma - luma.min()) / np.ptp(luma) * 255
    assert np.abs(read_gray(saved(film), "rgb") - stretched).max() < 1.6


def test_the_content_or_the_suffix_says_what_is_dicom(tmp_path):
    values = raw()
    film = dataset(values)
    whole = saved(film)
    bare = saved(film, ImplicitVRLittleEndian, implicit_vr=True, little_endian=True)
    del film.file_meta
    headless = saved(film, implicit_vr=True, little_endian=True)
    assert headless[128:132] != b"DICM"
    png = io.BytesIO()
    Image.fromarray(raw(8)).save(png, "PNG")
    swapped = dataset(values.byteswap())
    del swapped.file_meta
    big = saved(swapped, implicit_vr=False, little_endian=False)
    kinds = {"a.dicom": whole, "b": whole, "c.png": whole, "d.DCM": headless, "e.dcm": bare, "big.dcm": big}
    for name, data in kinds.items():
        (tmp_path / name).write_bytes(data)
        np.testing.assert_array_equal(read_gray(tmp_path / name, name), reference(values, dataset(values)))
    (tmp_path / "f.dcm").write_bytes(png.getvalue())  # a PNG under a wrong name is a PNG
    np.testing.assert_array_equal(read_gray(tmp_path / "f.dcm", "f"), raw(8))
    (tmp_path / "g.dcm").write_bytes(b"<html>404 not found, and so on and so on</html>")
    with pytest.raises(InputError, match=r"g: a DICOM file without pixels|g: the DICOM file is cut"):
        read_gray(tmp_path / "g.dcm", "g")


def unusable():
    good = saved(dataset(raw()))
    rle = dataset(raw())
    rle.compress(RLELossless, generate_instance_uid=False)
    rle = saved(rle)
    without = dataset(raw())
    del without.PixelData
    several = dataset(np.concatenate([raw(), raw()]), Rows=24, NumberOfFrames=2)
    odd = dataset(raw(), PixelData=encapsulate([b"film film"]))
    broken = dataset(raw(8), 8, PixelData=encapsulate([jpeg(raw(8))[:200]]))
    palette = dataset(raw(8), 8, "PALETTE COLOR")
    return {
        "without pixels": (saved(without), "without pixels"),
        "cut before the pixels": (good[:300], "without pixels|cut or damaged"),
        "cut in the pixels": (good[:-100], "cut or damaged"),
        "cut in compressed pixels": (rle[:-600], "cut or damaged|cut before them"),
        "two frames": (saved(several), "2 frames in one DICOM file"),
        "MPEG": (saved(odd, pydicom.uid.MPEG2MPML), "transfer syntax MPEG2 Main Profile / Main Level cannot"),
        "no known syntax": (
            saved(odd, pydicom.uid.MPEG2MPML).replace(b"1.2.840.10008.1.2.4.100", b"1.2.840.10008.1.2.4.199"),
            "transfer syntax .* cannot be decoded",
        ),
        "broken JPEG": (saved(broken, JPEGBaseline8Bit), r"pixels in JPEG Baseline .* that cannot be decoded"),
        "no 12-bit JPEG": (saved(odd, JPEGExtended12Bit), r"pixels in JPEG Extended .* that cannot be decoded"),
        "palette": (saved(palette), r"its colours \(PhotometricInterpretation\) cannot be read"),
        "window without width": (saved(dataset(raw(), WindowCenter=10, WindowWidth=0)), "the window or VOI LUT in its"),
        "uniform": (saved(dataset(np.full((20, 20), 7, np.uint16))), "no film in it"),
        "window beside the values": (saved(dataset(raw(), WindowCenter=9e6, WindowWidth=2)), "no film in it"),
        "tiny": (saved(dataset(raw(height=5))), "20 x 5 pixels; a side needs"),
        "only the magic": (b"\0" * 128 + b"DICM", "without pixels"),
    }


@pytest.mark.parametrize("name", images._DICOM_REQUIRED)
@pytest.mark.parametrize("empty", [True, False])
def test_an_element_that_is_missing_or_empty_is_named(name, empty):
    film = dataset(raw())
    film["PixelData"].VR = "OW"  # else it is derived from BitsAllocated as the file is written
    if empty:
        film[name] = pydicom.DataElement(name, pydicom.datadict.dictionary_VR(name), None)
    else:
        delattr(film, name)
    with pytest.raises(InputError, match=f"film: its DICOM header does not say {name}; export"):
        read_gray(saved(film), "film")


def test_colour_of_16_bits_becomes_luma():
    colour = np.stack([raw(16, seed=seed) for seed in range(3)], axis=-1)
    luma = colour @ [0.299, 0.587, 0.114]
    expected = np.round((luma - luma.min()) * 255 / (luma.max() - luma.min()))
    film = dataset(colour, 16, "RGB", PlanarConfiguration=0)
    assert np.abs(read_gray(saved(film), "colour") - expected).max() <= 1


@pytest.mark.parametrize("pages", [2, 3])
@pytest.mark.parametrize("count", [None, 1])
def test_pages_that_the_header_does_not_count_are_no_film(pages, count):
    film = dataset(np.concatenate([raw()] * pages), Rows=24)
    if count:
        film.NumberOfFrames = count
    with pytest.raises(InputError):
        read_gray(saved(film), "film")


@pytest.mark.parametrize("name", unusable())
def test_an_unusable_dicom_is_one_clear_line_without_its_header(name, capfd):
    data, message = unusable()[name]
    with pytest.raises(InputError, match=message) as caught:
        read_gray(data, "list.csv, row 7")
    assert str(caught.value).startswith("list.csv, row 7: ")
    assert "\n" not in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    with pytest.raises(InputError, match="60000 x 60000 pixels, more than"):
        read_gray(saved(dataset(raw(), Rows=60000, Columns=60000)), "bomb")
    monkeypatch.setattr(images, "MAX_PIXELS", 479)
    with pytest.raises(InputError, match="20 x 24 pixels, more than 479"):
        read_gray(saved(dataset(raw())), "large")


def test_nothing_of_the_header_but_its_pixel_elements_is_read(monkeypatch):
    read = []
    original = images._dicom_gray
    monkeypatch.setattr(images, "_dicom_gray", lambda film, where: read.append(film) or original(film, where))
    read_gray(saved(dataset(raw(), WindowCenter=1800, WindowWidth=900)), "film")
    assert {element.keyword for element in read[0]} <= set(images._DICOM_ELEMENTS)
    assert SECRET not in str(read[0])


@pytest.mark.parametrize("compressed", [None, RLELossless, JPEG2000Lossless, JPEGBaseline8Bit], ids=str)
def test_damage_at_any_byte_gives_pixels_or_an_input_error(compressed):
    pixels = raw(8, height=64, width=64) if compressed == JPEG2000Lossless else raw(8)
    film = dataset(pixels, 8, WindowCenter=100, WindowWidth=90, RescaleSlope=2, RescaleIntercept=1)
    if compressed == JPEGBaseline8Bit:
        film.PixelData = encapsulate([jpeg(raw(8))])
    elif compressed is not None:
        film.compress(compressed, generate_instance_uid=False)
    rng, whole = np.random.default_rng(5), saved(film, compressed)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(132, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        if rng.random() < 0.3:
            data = data[: rng.integers(133, len(data))]
        with contextlib.suppress(InputError):
            assert read_gray(bytes(data), "fuzz").dtype == np.uint8
