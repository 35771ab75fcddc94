"""What the tests of sources share: tiny films in the layouts of the releases, and a look at what came out."""

import csv
import importlib.util
import json
import os
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from cxrclip.data.images import encode_gray
from cxrclip.data.sources import SOURCES
from cxrclip.data.sources import prepare as driver
from cxrclip.studies import open_studies

PROJECT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("CXRCLIP_DATA", PROJECT.parent / "shared" / "data"))


def real(name):
    if not (DATA / name).is_dir():
        pytest.skip(f"no real sample: {name} is not in CXRCLIP_DATA nor in ../shared/data")
    return DATA / name


def public_table(name):
    """Path of a table inside the torchxrayvision package (found without importing it)."""
    found = importlib.util.find_spec("torchxrayvision")
    path = found and Path(found.submodule_search_locations[0]) / "data" / name
    if not path or not path.is_file():
        pytest.skip(f"no public table: {name} is not in the torchxrayvision package")
    return path


@contextmanager
def in_this_process(function, calls, workers, seconds):
    yield (function(*arguments) for arguments in calls)


@pytest.fixture
def quick_decoding(monkeypatch):
    """Decode films without worker processes, whose start takes a second; test_intake.py and test_pool.py use them."""
    monkeypatch.setattr(driver, "in_order", in_this_process)


def partial(name, *args, **options):
    """A source on a download that is not the whole release."""
    return SOURCES[name](*args, allow_partial=True, **{"progress": False} | options)


def pixels(seed=0, size=(40, 30)):
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def film(path, seed=0, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_gray(pixels(seed, size), "jpeg" if path.suffix == ".jpg" else "png"))


def dicom(path, seed=0, **fields):
    """A DICOM film with 12 bits and a name in its header that must go nowhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = f"1.2.3.{seed + 1}"
    data.PatientName, data.PatientID = "Secret^Name", "secret-id"
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 40, 30, 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = (pixels(seed).astype(np.uint16) * 16).tobytes()
    with pydicom.config.disable_value_validation():  # the releases hold values which the standard forbids
        for name, value in fields.items():
            setattr(data, name, value)
        data.save_as(path, enforce_file_format=True)


def about(folder):
    return json.loads((folder / "dataset.json").read_text())["about"]


def rejections(folder):
    with open(folder / "rejected.csv", newline="") as file:
        return list(csv.DictReader(file))


def studies_of(folder):
    return {row["study_id"]: row for row in open_studies(folder)}


def edit(path, old, new):
    """Replace bytes or text in a file, which must hold them."""
    data = path.read_bytes()
    old, new = (part if isinstance(part, bytes) else part.encode() for part in (old, new))
    assert old in data
    path.write_bytes(data.replace(old, new, 1))
