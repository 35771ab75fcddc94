"""cxrclip.data.images: every image format becomes 8-bit gray, every damaged file one clear message."""

import contextlib
import io
import struct
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from cxrclip.data import images
from cxrclip.data.images import decode_gray, encode_gray, read_gray, resize_shorter
from cxrclip.errors import InputError


@pytest.fixture(autouse=True)
def no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def film(height=40, width=30, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def test_gray_png_is_returned_unchanged_from_bytes_and_from_a_path(tmp_path):
    pixels = film()
    data = saved(Image.fromarray(pixels))
    (tmp_path / "a.png").write_bytes(data)
    for source in (data, tmp_path / "a.png"):
        gray = read_gray(source, "a.png")
        assert gray.dtype == np.uint8
        np.testing.assert_array_equal(gray, pixels)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "BMP"])
def test_equal_colour_channels_give_exactly_that_channel(format):
    pixels = film()
    data = saved(Image.fromarray(np.stack([pixels] * 3, -1)), format)
    np.testing.assert_array_equal(read_gray(data, "rgb"), pixels)


def test_colour_becomes_luma():
    colour = np.random.default_rng(1).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    luma = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(read_gray(saved(Image.fromarray(colour)), "rgb") - luma).max() <= 0.51


def test_transparent_pixels_are_black_and_opaque_ones_unchanged():
    pixels = film()
    alpha = np.full_like(pixels, 255)
    alpha[:5] = 0
    expected = np.where(alpha == 0, 0, pixels)
    for channels in ([pixels] * 3, [pixels]):
        data = saved(Image.fromarray(np.stack([*channels, alpha], -1)))
        np.testing.assert_array_equal(read_gray(data, "alpha"), expected)


def test_palette_with_and_without_transparency():
    indices = film() % 4
    image = Image.fromarray(indices).convert("P")
    image.putpalette([0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255])
    np.testing.assert_array_equal(read_gray(saved(image), "palette"), indices * 85)
    with_bytes = saved(image, transparency=bytes([255, 255, 255, 0]))
    np.testing.assert_array_equal(read_gray(with_bytes, "palette"), np.where(indices == 3, 0, indices * 85))


def test_cmyk_jpeg_keeps_light_and_dark():
    pixels = np.zeros((32, 32), np.uint8)
    pixels[:, 16:] = 200
    gray = read_gray(saved(Image.fromarray(np.stack([pixels] * 3, -1)).convert("CMYK"), "JPEG", quality=95), "cmyk")
    assert abs(gray[:, :14].mean() - 0) < 6
    assert abs(gray[:, 18:].mean() - 200) < 6


def test_one_bit_becomes_black_and_white():
    bits = film() > 127
    np.testing.assert_array_equal(read_gray(saved(Image.fromarray(bits)), "bits"), bits * 255)


@pytest.mark.parametrize(("low", "high"), [(0, 65535), (100, 4195), (30000, 30255)])
def test_sixteen_bits_are_stretched_from_their_own_range(low, high):
    values = np.linspace(low, high, 64 * 64).reshape(64, 64).round().astype(np.uint16)
    expected = np.round((values - np.float64(low)) / (high - low) * 255)
    for data in (cv2.imencode(".png", values)[1].tobytes(), cv2.imencode(".tiff", values)[1].tobytes()):
        np.testing.assert_array_equal(read_gray(data, "16 bit"), expected)


def test_jpeg_is_close_to_its_pixels():
    smooth = cv2.GaussianBlur(film(64, 64), (0, 0), 4)
    assert np.abs(read_gray(saved(Image.fromarray(smooth), "JPEG", quality=95), "jpeg").astype(int) - smooth).max() < 8


def damaged_files():
    png, jpeg = saved(Image.fromarray(film(64, 64))), saved(Image.fromarray(film(64, 64)), "JPEG")
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 0xFF
    nan = io.BytesIO()
    Image.fromarray(np.full((20, 20), np.nan, np.float32)).save(nan, "TIFF")
    pages = io.BytesIO()
    Image.fromarray(film()).save(pages, "TIFF", save_all=True, append_images=[Image.fromarray(film())])
    return {
        "empty": (b"", "empty"),
        "text": (b"<html>404 not found</html>", "not a readable"),
        "gif": (saved(Image.fromarray(film()), "GIF"), "not a readable"),
        "header only": (png[:20], "damaged|not a readable"),
        "truncated png": (png[: len(png) // 2], "cut or damaged"),
        "truncated jpeg": (jpeg[: len(jpeg) // 2], "cut or damaged"),
        "flipped byte": (bytes(flipped), "cut or damaged"),
        "uniform": (saved(Image.fromarray(np.full((30, 30), 7, np.uint8))), "value 7; there is no film"),
        "uniform 16 bit": (cv2.imencode(".png", np.full((30, 30), 999, np.uint16))[1].tobytes(), "no film"),
        "tiny": (saved(Image.fromarray(film(40, 3))), "3 x 40 pixels"),
        "not a number": (nan.getvalue(), "NaN"),
        "two pages": (pages.getvalue(), "2 pages"),
    }


@pytest.mark.parametrize("name", damaged_files())
def test_an_unusable_file_is_one_clear_line(name):
    data, message = damaged_files()[name]
    with pytest.raises(InputError, match=message) as caught:
        read_gray(data, "films.csv, row 7")
    assert str(caught.value).startswith("films.csv, row 7: ")
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder_in_place_of_a_file(tmp_path):
    with pytest.raises(InputError, match="row 3: no such image file"):
        read_gray(tmp_path / "gone.png", "row 3")
    with pytest.raises(InputError, match="row 4: no image file, but a folder"):
        read_gray(tmp_path, "row 4")


def declared(side):
    """A small PNG whose header says `side` x `side` pixels."""
    png = saved(Image.fromarray(film()))
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def test_too_many_pixels_are_refused_before_decoding(monkeypatch):
    for side in (12_000, 60_000):  # Pillow itself only warns of the first
        with pytest.raises(InputError, match="not a film"):
            read_gray(declared(side), "bomb")
    monkeypatch.setattr(images, "MAX_PIXELS", 900)
    with pytest.raises(InputError, match="30 x 40 pixels, more than 900"):
        read_gray(saved(Image.fromarray(film())), "large")
    assert read_gray(saved(Image.fromarray(film(30, 30))), "just fits").shape == (30, 30)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "TIFF", "BMP"])
def test_damage_at_any_byte_gives_an_image_or_an_input_error(format):
    rng, whole = np.random.default_rng(5), saved(Image.fromarray(film(24, 24)), format)
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            data[place] = rng.integers(0, 256)
        if rng.random() < 0.3:
            data = data[: rng.integers(0, len(data))]
        with contextlib.suppress(InputError):
            assert read_gray(bytes(data), "damaged").dtype == np.uint8


def test_encoding_is_deterministic_and_png_is_lossless():
    pixels = film()
    np.testing.assert_array_equal(read_gray(encode_gray(pixels, "png"), "png"), pixels)
    assert encode_gray(pixels) == encode_gray(pixels.copy())
    assert encode_gray(pixels).startswith(b"\xff\xd8\xff")
    with pytest.raises(ValueError, match="uint8"):
        encode_gray(pixels.astype(np.float32))


@pytest.mark.parametrize("format", ["jpeg", "png"])
def test_a_stored_film_decodes_to_the_same_pixels_the_fast_way(format):
    for seed in range(5):
        data = encode_gray(film(30 + seed, 50, seed), format)
        np.testing.assert_array_equal(decode_gray(data, "film"), read_gray(data, "film"))
    for damage in (b"", b"no film", data[:20]):
        with pytest.raises(InputError, match="study 3: the stored film cannot be decoded"):
            decode_gray(damage, "study 3")


def test_resize_shorter_averages_areas_and_keeps_the_aspect_ratio():
    pixels = film(64, 96)
    small = resize_shorter(pixels, 16)
    assert small.shape == (16, 24)
    blocks = pixels.reshape(16, 4, 24, 4).mean((1, 3))
    assert np.abs(small - blocks).max() <= 0.51
    assert resize_shorter(pixels, 64) is pixels
    assert resize_shorter(pixels.T, 100).shape == (150, 100)
    assert resize_shorter(film(17, 1000), 16).shape == (16, 941)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_films_are_decoded_small_only_where_twice_the_target_remains(mode):
    smooth = cv2.GaussianBlur(film(640, 800), (0, 0), 3)
    data = saved(Image.fromarray(smooth).convert(mode), "JPEG", quality=95)
    sizes = {at_least: read_gray(data, "jpeg", at_least=at_least).shape for at_least in (321, 320, 160, 159, 80, 16)}
    assert sizes == {321: (640, 800), 320: (640, 800), 160: (320, 400), 159: (320, 400), 80: (160, 200), 16: (80, 100)}
    whole, part = read_gray(data, "jpeg"), read_gray(data, "jpeg", at_least=80)
    assert np.abs(resize_shorter(whole, 80).astype(int) - resize_shorter(part, 80)).max() <= 2
    for format in ("PNG", "TIFF", "BMP"):
        np.testing.assert_array_equal(read_gray(saved(Image.fromarray(smooth), format), "x", at_least=16), smooth)
    with pytest.raises(InputError, match="cut or damaged"):
        read_gray(data[: len(data) // 2], "jpeg", at_least=80)


def test_stored_films_are_shrunk_never_enlarged_and_faults_stand_in_their_place(tmp_path):
    for name, pixels in {"a.png": film(60, 90), "b.png": film(30, 40)}.items():
        (tmp_path / name).write_bytes(saved(Image.fromarray(pixels)))
    first, missing, second = (images.store_film(tmp_path / name, name, 32) for name in ("a.png", "no.png", "b.png"))
    assert first == encode_gray(resize_shorter(film(60, 90), 32))
    assert second == encode_gray(film(30, 40))
    (tmp_path / "large.png").write_bytes(saved(Image.fromarray(large := cv2.GaussianBlur(film(300, 401), (0, 0), 4))))
    stored = images.store_film(tmp_path / "large.png", "large.png", 32)
    assert np.abs(decode_gray(stored, "large").astype(int) - resize_shorter(large, 32)).mean() < 2  # in steps, as JPEG
    assert isinstance(missing, InputError)
    assert "no.png: no such image file" in str(missing)
