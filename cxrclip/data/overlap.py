"""Films that are in pretraining and in a test set, found by their pixels.

RSNA's and SIIM's films are NIH films under other names, with other numbers, converted to DICOM, so `check_leakage`,
which compares bytes and patients, cannot find them. The tables that could tell (NIH's train_val_list.txt and RSNA's
own mapping of its names to NIH's) come with the downloads, and no package holds them; for SIIM there is none. So
films are compared as thumbnails of 32 x 32 pixels. Among 1,427 real NIH films, the same film at 64 and at 256 pixels
correlates with more than 0.9999, after a gamma of 1.3 and a coarse JPEG with more than 0.992; two films of one
patient with less than 0.978, of two patients with less than 0.96. (One pair of file names holds the same film.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from cxrclip.data.images import decode_gray
from cxrclip.studies import open_studies

SIDE = 32
SAME_FILM = 0.99  # least correlation of two thumbnails of one film
_AT_ONCE = 512  # films in one matrix product


def thumbnail(film: np.ndarray) -> np.ndarray:
    """(H, W) uint8 -> (1024,) float32 of mean 0 and length 1, so that a dot product is a correlation."""
    small = cv2.resize(film, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32).ravel()
    small -= small.mean()
    return small / max(float(np.linalg.norm(small)), 1e-6)


def shared_films(pretraining: Mapping[str, str | Path], tests: Mapping[str, str | Path]) -> pd.DataFrame:
    """How many films of the test split of each test set a model has seen in the train split of each pretraining set.

    Memory holds the thumbnails of one test set (4 KB a film); pretraining films stream past. 112,120 NIH films
    against 4,003 RSNA films are 10^12 multiplications: minutes, most of them for decoding.

    Args:
        pretraining, tests: role -> study folder. Phantom films are more alike than real ones (up to 0.989 in 22,500
            pairs) and none is in two studies, so leave those roles out.

    Returns:
        Columns test, pretraining, films (of the test split), shared (of these also in pretraining), share.

    Raises:
        InputError: a folder is no study table or has no such split.
    """
    lines = []
    for test, folder in tests.items():
        wanted = np.stack(list(_thumbnails(folder, "test")))
        for role, other in pretraining.items():
            seen = np.zeros(len(wanted), bool)
            films = _thumbnails(other, "train")
            while batch := list(itertools.islice(films, _AT_ONCE)):
                seen |= (wanted @ np.stack(batch).T).max(axis=1) >= SAME_FILM
            lines.append((test, role, len(wanted), int(seen.sum()), float(seen.mean())))
    return pd.DataFrame(lines, columns=["test", "pretraining", "films", "shared", "share"])


def _thumbnails(folder: str | Path, split: str) -> Iterator[np.ndarray]:
    for study in open_studies(folder, split).select_columns(["study_id", "images"]):
        for i, image in enumerate(study["images"]):
            yield thumbnail(decode_gray(image["bytes"], f"study {study['study_id']}, image {i}"))
