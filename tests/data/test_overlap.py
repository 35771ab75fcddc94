"""data/overlap.py: one film is found again under another name, and two films stay apart."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from cxrclip.data.images import encode_gray, read_gray
from cxrclip.data.overlap import shared_films, thumbnail
from cxrclip.data.shards import write_studies

PROJECT = Path(__file__).resolve().parents[2]


def blurred(seed, side=200):
    noise = np.random.default_rng(seed).normal(0, 1, (side, side))
    smooth = cv2.GaussianBlur(noise, (0, 0), side / 12)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def table(folder, films, split):
    rows = [
        {"study_id": str(i), "patient_id": str(i), "source": folder.name, "split": split, "views": ["PA"],
         "images": [{"bytes": data, "path": None}]}
        for i, data in enumerate(films)
    ]  # fmt: skip
    return write_studies(rows, folder)


def test_the_same_film_is_found_in_another_size_format_and_tone(tmp_path):
    films = [blurred(i) for i in range(12)]
    nih = table(tmp_path / "nih", [encode_gray(film, "png") for film in films], "train")
    tone = [(255 * (cv2.resize(film, (90, 90)) / 255) ** 1.2).astype(np.uint8) for film in films[:4]]
    unseen = [blurred(i) for i in range(50, 56)]
    rsna = table(tmp_path / "rsna", [encode_gray(film) for film in (*tone, *unseen)], "test")
    other = table(tmp_path / "other", [encode_gray(blurred(i)) for i in range(100, 104)], "train")
    found = shared_films({"C14": nih, "M": other}, {"rsna": rsna})
    assert found.to_dict("records") == [
        {"test": "rsna", "pretraining": "C14", "films": 10, "shared": 4, "share": 0.4},
        {"test": "rsna", "pretraining": "M", "films": 10, "shared": 0, "share": 0.0},
    ]


def test_two_real_films_even_of_one_patient_stay_apart():
    root = Path(os.environ.get("CXRCLIP_DATA", PROJECT.parent / "shared" / "data")) / "chestxray14" / "images_64px"
    paths = sorted(root.rglob("*.png"))[:300]
    if not paths:
        pytest.skip("no real sample: chestxray14 is not in CXRCLIP_DATA nor in ../shared/data")
    small = np.stack([thumbnail(read_gray(path, path.name)) for path in paths])
    correlation = small @ small.T - 2 * np.eye(len(small))
    assert correlation.max() < 0.98
