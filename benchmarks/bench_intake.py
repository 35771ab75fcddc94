"""Films into study tables: against a plain loop, one core; and time and memory against the number of studies.

The plain loops read a film, apply the official steps (DICOM: modality LUT, VOI LUT, MONOCHROME1 inverted), shrink
it to a shorter side of 512 with a Lanczos filter and save it, one row after the other. Ours averages areas, in
steps where the film is large, and decodes JPEG small: what that changes in the pixels is printed, too.

Run: OMP_NUM_THREADS=1 python benchmarks/bench_intake.py
"""

from __future__ import annotations

import io
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import cv2
import numpy as np
import pandas as pd
import psutil
import pydicom
from PIL import Image
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from timing import interleaved, table, write_section

from cxrclip.data.images import decode_gray, encode_gray, read_gray, resize_shorter, store_film
from cxrclip.data.sources.prepare import Film, Intake, Study

SIZE = 512
FILMS = 6


def film(height, width, seed):
    """Shapes at all scales, noise and a marker: what a film is to a decoder, if not to a reader."""
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width), np.float32)
    for scale, level in ((400, 45), (120, 20), (40, 10), (12, 4), (3, 3), (1, 2)):
        noise = rng.normal(0, level, (height // scale + 2, width // scale + 2)).astype(np.float32)
        pixels += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    pixels = np.clip(pixels + 120, 0, 255).astype(np.uint8)
    place, thick = (width // 12, height // 8), max(1, width // 150)
    return cv2.putText(pixels, "L", place, cv2.FONT_HERSHEY_SIMPLEX, width / 300, 250, thick)


def dicom(pixels):
    """A radiograph as it leaves the machine: 12 of 16 bits, MONOCHROME1, a window."""
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.SOPClassUID, data.SOPInstanceUID = pydicom.uid.DigitalXRayImageStorageForPresentation, "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME1", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.WindowCenter, data.WindowWidth = 2000, 3000
    data.PixelData = (pixels.astype(np.uint16) * 16).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, enforce_file_format=True)
    return buffer.getvalue()


def target(height, width):
    scale = SIZE / min(height, width)
    return round(width * scale), round(height * scale)


def pillow_loop(table, out):
    for i, row in table.iterrows():
        image = Image.open(row["path"]).convert("L")
        image.resize(target(*image.size[::-1]), Image.Resampling.LANCZOS).save(out / f"{i}.jpg", quality=95)


def opencv_loop(table, out):
    for i, row in table.iterrows():
        image = cv2.imread(row["path"], cv2.IMREAD_GRAYSCALE)
        small = cv2.resize(image, target(*image.shape), interpolation=cv2.INTER_LANCZOS4)
        cv2.imwrite(str(out / f"{i}.jpg"), small, [cv2.IMWRITE_JPEG_QUALITY, 95])


def dicom_loop(table, out):
    for i, row in table.iterrows():
        data = pydicom.dcmread(row["path"])
        image = apply_voi_lut(apply_modality_lut(data.pixel_array, data), data)
        image = image.max() - image if data.PhotometricInterpretation == "MONOCHROME1" else image
        small = cv2.resize(image, target(*image.shape), interpolation=cv2.INTER_LANCZOS4)
        gray = ((small - small.min()) / (small.max() - small.min()) * 255).astype(np.uint8)
        cv2.imwrite(str(out / f"{i}.jpg"), gray, [cv2.IMWRITE_JPEG_QUALITY, 95])


def throughput(folder):
    """A row for each kind of film and plain loop."""
    cv2.setNumThreads(1)
    both = {"Pillow": pillow_loop, "OpenCV": opencv_loop}
    kinds = {"JPEG 2544 x 3056": ("jpg", encode_gray, (3056, 2544), both),
             "PNG 1024 x 1024": ("png", lambda pixels: encode_gray(pixels, "png"), (1024, 1024), both),
             "DICOM 2544 x 3056": ("dcm", dicom, (3056, 2544), {"pydicom": dicom_loop})}
    rows = []
    for name, (suffix, encode, shape, loops) in kinds.items():
        paths = [folder / f"{i}.{suffix}" for i in range(FILMS)]
        for i, path in enumerate(paths):
            path.write_bytes(encode(film(*shape, seed=i)))
        films = [(path, path.name) for path in paths]
        exact = [resize_shorter(read_gray(path, "film"), SIZE) for path in paths]
        stored = [decode_gray(encode_gray(image), "film") for image in exact]
        prepared = [decode_gray(store_film(*film, SIZE), "film") for film in films]
        listed = pd.DataFrame({"path": [str(path) for path in paths]})
        for title, loop in loops.items():
            ratio = interleaved(lambda films=films: [store_film(*film, SIZE) for film in films],
                                lambda loop=loop, listed=listed: loop(listed, folder), 3)
            rows.append([name, f"{FILMS / ratio.ours:.0f}", title, ratio.text(), difference(exact, prepared),
                         difference(exact, stored)])
    return rows


def difference(first, second):
    off = [np.abs(a.astype(int) - b) for a, b in zip(first, second, strict=True)]
    return f"{np.mean([one.mean() for one in off]):.2f} (largest {np.max([one.max() for one in off])})"


def prepare(folder, studies, workers):
    """One preparation in this process: seconds, and the peak memory of this process and of its largest child."""
    taken = Intake("bench", folder, "list.csv", progress=False)
    text = "The lungs are clear, there is no effusion. " * 14
    for i in range(studies):
        films = [Film(folder / f"{(i + k) % 200}.jpg", "PA") for k in range(1 + i % 2)]
        taken.studies.append(Study(f"s{i}", f"p{i}", films, "train", f"{text}{i}", f"Normal {i}.", row=i + 1))
    peak, start = Peak(), time.perf_counter()
    taken.write(folder / "out", image_size=64, max_rejected=0, workers=workers)
    seconds = time.perf_counter() - start
    print("|".join([f"{studies:,}", f"{seconds:.1f}", *(f"{size:.0f}" for size in peak.megabytes)]))


class Peak(Thread):
    """Samples the resident memory of this process, and of it with its children, ten times a second."""

    def __init__(self):
        super().__init__(daemon=True)
        self.megabytes = (0.0, 0.0)
        self.start()

    def run(self):
        me = psutil.Process()
        while True:
            own = me.memory_info().rss
            children = 0
            for child in me.children(recursive=True):
                with suppress(psutil.Error):
                    children += child.memory_info().rss
            both = zip(self.megabytes, (own, own + children), strict=True)
            self.megabytes = tuple(max(old, new / 2**20) for old, new in both)
            time.sleep(0.1)


def main():
    with tempfile.TemporaryDirectory() as name:
        rows = throughput(Path(name))
    write_section("Films into study tables, one core", table(
        ["films", "ours, films a CPU second", "plain loop", "CPU time of the loop against ours",
         "gray levels off an exact area average", "of which by storing as JPEG"], rows))
    with tempfile.TemporaryDirectory() as name:
        folder, rows = Path(name), []
        for i in range(200):
            (folder / f"{i}.jpg").write_bytes(encode_gray(film(80, 96, i)))
        for studies in (2_000, 8_000, 16_000):
            command = [sys.executable, __file__, name, str(studies), "2"]
            rows.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().split("|"))
    write_section("Preparation of small films in two processes", table(
        ["studies", "wall seconds", "MiB at most", "with its workers"], rows))


if __name__ == "__main__":
    if len(sys.argv) == 4:
        prepare(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    else:
        main()
