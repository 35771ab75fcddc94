"""The one module where every image format becomes 8-bit gray.

Films arrive as PNG, JPEG, TIFF or BMP with 1, 8 or 16 bits, in gray, colour, CMYK or with a palette, or as DICOM.
Everything after this module sees one thing only: a NumPy array (H, W) of uint8.
"""

from __future__ import annotations

import io
import logging
import stat
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import cv2
import numpy as np
from PIL import Image

from cxrclip.errors import InputError

if TYPE_CHECKING:
    from pydicom import Dataset

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_MAGIC = (b"\x89PNG", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"BM")
MAX_PIXELS = 100_000_000  # the largest digital chest films have about 20 million
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R 601
MAX_BYTES = 2**30
MIN_SIDE = 16  # fewer pixels show no chest
JPEG_QUALITY = 95

# What Pillow raises on damaged files, found by flipping and cutting bytes.
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
# What pydicom and its plugins raise beside these, found in the same way.
DICOM_DAMAGE = (*_DAMAGE, AttributeError, RuntimeError, ArithmeticError, MemoryError)
# Without these there is no picture.
_DICOM_REQUIRED = ("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated")
# The only elements of a DICOM file which are read at all: those that turn its pixels into light and dark.
_DICOM_ELEMENTS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "ExtendedOffsetTable"),
    *("ExtendedOffsetTableLengths", "PixelData", "FloatPixelData", "DoubleFloatPixelData"),
    *("ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction"),
]
_ALONE = threading.Lock()


def read_gray(source: bytes | Path, where: str, *, at_least: int | None = None) -> np.ndarray:
    """Decode one film to gray.

    8-bit gray is returned as it is. Colour, CMYK and palettes become luma (ITU-R 601); equal channels give
    exactly that channel; transparent pixels are black, as the background of a film is. Gray with more than
    8 bits is stretched from its own minimum and maximum to 0..255: such files hold raw detector values of
    10 to 16 bits, and their nominal range says nothing about the data. An orientation tag is not applied.

    DICOM is known by its content ("DICM" at byte 128) or by the suffix .dcm or .dicom. In this order: modality LUT
    or rescale, VOI LUT or else window (the first of several), MONOCHROME1 inverted, stretched from minimum to
    maximum, as the official recipe does. Compressed pixels are decoded by the plugins of pydicom. Of the header
    only what describes the pixels is read; none of it goes anywhere but into them.

    Args:
        source: the encoded file, or its path.
        where: how the message names the film (file, row).
        at_least: for whoever shrinks the film to that many pixels (shorter side) anyway. A JPEG film is then decoded
            at a half, a quarter or an eighth of its size, as long as twice `at_least` pixels remain; colour becomes
            the file's own luma. Shrunk to 512 pixels, films of 2544 x 3056 differ from those decoded in full by 0.2
            gray levels on average, where storing them as JPEG costs 1.0. None decodes in full.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: a missing, empty or damaged file, no image, several pages or frames, a compression that cannot be
            decoded, a side under `MIN_SIDE`, more than `MAX_PIXELS` pixels, or the same value everywhere.
    """
    named = not isinstance(source, bytes) and source.suffix.lower() in (".dcm", ".dicom")
    data = source if isinstance(source, bytes) else _content(source, where)
    if not data:
        raise InputError(f"{where}: the image file is empty (0 bytes); copy or download it again")
    if data[128:132] == b"DICM" or (named and not data.startswith(_MAGIC)):
        gray = _read_dicom(data, where)
    else:
        gray = _read_image(data, where, at_least)
    if gray.min() == gray.max():
        raise InputError(f"{where}: every pixel has the value {gray.flat[0]}; there is no film in it: leave it out")
    return gray


def decode_gray(data: bytes, where: str) -> np.ndarray:
    """Decode a film of a study table, that is, bytes which `encode_gray` wrote, to (H, W) uint8.

    The same pixels as `read_gray`, four times as fast (OpenCV against Pillow; 128 films a training step), but it
    notices less: it is for films that went through `read_gray` once and stand in a table with a fingerprint.

    Raises:
        InputError: the bytes cannot be decoded; names `where`.
    """
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION
    if _too_large(data):
        raise InputError(f"{where}: more than {MAX_PIXELS:,} pixels; not a film: leave it out")
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    if image is None:
        raise InputError(f"{where}: the stored film cannot be decoded; prepare the study folder again")
    return image


def _too_large(data: bytes) -> bool:
    """Whether the header promises more than MAX_PIXELS: 5 kB may unpack to 4 GiB."""
    try:
        with _quietly(), Image.open(io.BytesIO(data), formats=FORMATS) as header:
            return header.width * header.height > MAX_PIXELS
    except Image.DecompressionBombError:
        return True
    except _DAMAGE:  # the decoder says what is wrong
        return False


def encode_gray(image: np.ndarray, format: Literal["jpeg", "png"] = "jpeg") -> bytes:
    """Encode (H, W) uint8 as JPEG (quality 95) or PNG (lossless). The same array gives the same bytes."""
    if image.ndim != 2 or image.dtype != np.uint8:
        raise ValueError(f"encode_gray needs (H, W) uint8, not {image.shape} {image.dtype}")
    options = {"jpeg": [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY], "png": []}[format]
    return cv2.imencode(f".{format}", image, options)[1].tobytes()


def store_film(path: Path, where: str, size: int) -> bytes | InputError:
    """A film as a study table stores it: gray, shorter side at most `size` pixels, JPEG; or why it cannot be used.

    where: how the message names the film.
    """
    try:
        gray = read_gray(path, where, at_least=size)
    except InputError as error:
        return error
    while min(gray.shape) >= 4 * size:  # as for JPEG, and six times as fast as to average all in one step
        gray = cv2.resize(gray, (gray.shape[1] // 2, gray.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return encode_gray(resize_shorter(gray, size) if min(gray.shape) > size else gray)


def resize_shorter(image: np.ndarray, size: int) -> np.ndarray:
    """Scale (H, W) uint8 so that its shorter side has `size` pixels; the aspect ratio is kept.

    Shrinking averages areas (no aliasing), enlarging interpolates linearly.
    """
    height, width = image.shape
    shorter = min(height, width)
    if shorter == size:
        return image
    scale = size / shorter
    target = (max(size, round(width * scale)), max(size, round(height * scale)))
    return cv2.resize(image, target, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _content(path: Path, where: str) -> bytes:
    try:
        kind = path.stat()
        if not stat.S_ISREG(kind.st_mode) or kind.st_size > MAX_BYTES:  # a pipe or a device may never end
            raise InputError(f"{where}: no image file, but a folder, a device or more than {MAX_BYTES:,} bytes; leave "
                             "it out")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{where}: no such image file; check the path or download it") from error
    except OSError as error:
        raise InputError(f"{where}: the image file cannot be read ({error.strerror}); check its rights") from error
    except InputError:
        raise
    except ValueError as error:  # a path with a NUL
        raise InputError(f"{where}: no path of an image file; mend the cell") from error


def _read_image(data: bytes, where: str, at_least: int | None) -> np.ndarray:
    try:
        with _quietly():
            image = Image.open(io.BytesIO(data), formats=FORMATS)  # the header; what is no film is refused by it
            _refuse_size(*image.size, where)
            if image.format == "TIFF":
                if image.n_frames > 1:
                    raise InputError(f"{where}: {image.n_frames} pages in one file; export one film per file")
                image.load()  # this decoder warns while it loads, too
        if at_least is not None:
            image.draft("L", (2 * at_least, 2 * at_least))  # JPEG only; does nothing to the other formats
        image.load()
        return to_gray(image, where)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"{where}: more than {MAX_PIXELS:,} pixels; not a film: leave it out") from error
    except Image.UnidentifiedImageError as error:
        raise InputError(f"{where}: not a readable {', '.join(FORMATS)} image; download or convert it") from error
    except _DAMAGE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: the image is cut or damaged ({reason}); download it again") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """One thread at a time (`catch_warnings` changes the process), without warnings and log lines.

    Those of pydicom quote the header, and so a name might get into a log.
    """
    logger = logging.getLogger("pydicom")
    with _ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        level = logger.level
        logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            logger.setLevel(level)


def _refuse_size(width: int, height: int, where: str) -> None:
    if width * height > MAX_PIXELS:
        raise InputError(f"{where}: {width} x {height} pixels, more than {MAX_PIXELS:,}; not a film: leave it out")
    if min(width, height) < MIN_SIDE:
        raise InputError(f"{where}: {width} x {height} pixels; a side needs at least {MIN_SIDE}: leave it out")


def to_gray(image: Image.Image, where: str) -> np.ndarray:
    """An open image as (H, W) uint8, by the rules of `read_gray`. Raises InputError for pixels that are no number."""
    mode = image.mode
    if mode in ("L", "1"):
        return np.asarray(image.convert("L"))
    if mode == "F" or mode.startswith("I"):
        return _stretch(np.asarray(image), where)
    if mode in ("LA", "La", "PA", "RGBa", "RGBA") or "transparency" in image.info:
        colour = image.convert("RGBA")
        black = Image.new("RGBA", colour.size, (0, 0, 0, 255))
        return np.asarray(Image.alpha_composite(black, colour).convert("L"))
    return np.asarray(image.convert("RGB").convert("L"))


def _read_dicom(data: bytes, where: str) -> np.ndarray:
    import pydicom  # here, since training reads no DICOM and need not wait for the import

    try:
        with _quietly():
            film = pydicom.dcmread(io.BytesIO(data), force=True, specific_tags=_DICOM_ELEMENTS)
            _complete_header(film)
            _refuse_dicom(film, where)
            return _dicom_gray(film, where)
    except InputError:
        raise
    except (*DICOM_DAMAGE, pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException) as error:
        reason = type(error).__name__  # not the message: a damaged file may have put a patient's name into it
        raise InputError(f"{where}: the DICOM file is cut or damaged ({reason}); export it again") from None


def _complete_header(film: Dataset) -> None:
    """Read a header as it is meant: an empty element counts as absent; half a rescale line has slope 1 or intercept 0;
    a bare data set, as old archives export it, has the transfer syntax in which it was read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    for tag in [element.tag for element in film if element.is_empty]:
        del film[tag]
    if "RescaleSlope" in film or "RescaleIntercept" in film:
        film.RescaleSlope, film.RescaleIntercept = film.get("RescaleSlope", 1), film.get("RescaleIntercept", 0)
    if "TransferSyntaxUID" not in film.file_meta:
        implicit, little = film.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        film.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _refuse_dicom(film: Dataset, where: str) -> None:
    """Refuse a DICOM file that holds no single film, before its pixels are decoded."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(film.dir()):
        raise InputError(f"{where}: a DICOM file without pixels, or cut before them; leave it out or export it again")
    if absent := [name for name in _DICOM_REQUIRED if name not in film]:
        raise InputError(f"{where}: its DICOM header does not say {', '.join(absent)}; export the film again")
    frames = int(film.get("NumberOfFrames", 1))
    if frames > 1:
        raise InputError(f"{where}: {frames} frames in one DICOM file; export one film per file")
    _refuse_size(int(film.Columns), int(film.Rows), where)
    syntax = UID(film.file_meta.TransferSyntaxUID)
    with suppress(NotImplementedError):  # an unknown syntax
        if get_decoder(syntax).is_available:
            return
    name = syntax.name if syntax.keyword else "(unknown)"
    raise InputError(f"{where}: transfer syntax {name} cannot be decoded; export the film uncompressed")


def _dicom_gray(film: Dataset, where: str) -> np.ndarray:
    values = _dicom_values(film, where)
    if film.SamplesPerPixel != 1 or film.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        if values.dtype == np.uint8 and values.ndim == 3:
            return _stretch(np.asarray(Image.fromarray(values).convert("L")), where)
        if values.ndim == 3 and film.PhotometricInterpretation == "RGB":
            return _stretch(values @ _LUMA, where)
        raise InputError(f"{where}: its colours (PhotometricInterpretation) cannot be read; export it in gray")
    if values.dtype.kind == "f" or values.dtype.itemsize > 2:
        return _stretch(_shown(values, film, where), where)
    # A film has millions of pixels and at most 65,536 values: work on these, and look the pixels up.
    bins, half = 1 << 8 * values.dtype.itemsize, 0
    values = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
    if values.dtype.kind == "i":  # the lowest number becomes 0
        half = bins // 2
        values = values.view(f"u{values.dtype.itemsize}") ^ half
    present = np.flatnonzero(cv2.calcHist([values], [0], None, [bins], [0, bins]))
    shades = np.zeros(bins, np.uint8)
    shades[present] = _stretch(_shown(present - half, film, where), where)
    return shades[values]


def _dicom_values(film: Dataset, where: str) -> np.ndarray:
    """The stored pixels, (H, W) or (H, W, 3), decoded by the plugin that survives damaged data."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    # GDCM, the default, aborts the process on damaged pixels; it is alone with 12-bit JPEG, lossless JPEG and JPEG-LS.
    syntax = film.file_meta.TransferSyntaxUID
    available = () if syntax == JPEGExtended12Bit else get_decoder(syntax).available_plugins
    if safe := [plugin for plugin in ("pylibjpeg", "pillow") if plugin in available]:
        film.pixel_array_options(decoding_plugin=safe[0])
    try:
        values = film.pixel_array
    except DICOM_DAMAGE as error:
        if not syntax.is_compressed:
            raise
        raise InputError(f"{where}: pixels in {syntax.name} that cannot be decoded ({type(error).__name__}); "
                         "export the film uncompressed") from None
    if values.shape[:2] != (film.Rows, film.Columns):
        raise InputError(f"{where}: its pixels do not fit Rows and Columns; export one film per file")
    return values


def _shown(values: np.ndarray, film: Dataset, where: str) -> np.ndarray:
    """Stored values -> numbers that grow from dark to light, as the header says the film is to be shown."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    if lut := film.get("ModalityLUTSequence"):
        values = _within(values, lut[0])
    values = apply_modality_lut(values, film)
    for name in ("RescaleSlope", "RescaleIntercept"):  # applied; a window read with a falling slope would be inverted
        film.pop(name, None)
    if lut := film.get("VOILUTSequence"):
        values = _within(values, lut[0])
    try:
        values = apply_voi_lut(values, film)
    except ValueError as error:
        raise InputError(f"{where}: the window or VOI LUT in its header is not valid; export the film again") from error
    return -values.astype(np.float64) if film.PhotometricInterpretation == "MONOCHROME1" else values


def _within(values: np.ndarray, lut: Dataset) -> np.ndarray:
    """Integers inside the range of a look-up table, which is declared to hold 16 bits.

    pydicom computes the index with as many bits as the entries have, so that 8-bit tables would wrap around.
    """
    length, first, _ = lut.LUTDescriptor
    lut.LUTDescriptor = [length, first, 16]
    return np.clip(np.rint(values).astype(np.int64), first, first + (length or 2**16) - 1)


def _stretch(values: np.ndarray, where: str) -> np.ndarray:
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"{where}: pixels that are no number (NaN or infinite); export the film again")
    low, high = values.min(), values.max()
    return np.round((values - low) * (255.0 / max(high - low, 1e-12))).astype(np.uint8)
