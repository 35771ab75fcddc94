"""Splits: seeded by patient, or drawn with scikit-learn as other projects did, so that the test sets are theirs."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping
from typing import TypeVar

from sklearn.model_selection import train_test_split

from cxrclip.errors import InputError
from cxrclip.studies import SPLITS

SHARES = {"train": 0.7, "valid": 0.1, "test": 0.2}
Item = TypeVar("Item", str, int)


def split_patients(patients: Iterable[str], shares: Mapping[str, float], seed: int) -> dict[str, str]:
    """Give every patient a split: they are put in the order of a seeded hash and cut by `shares` (split -> share).

    So the order of the rows does not matter, and a patient seldom moves when more of a release is downloaded.

    Raises:
        InputError: an unknown split, a negative share, or shares that do not sum to 1.
    """
    if not set(shares) <= set(SPLITS) or min(shares.values(), default=-1) < 0 or abs(sum(shares.values()) - 1) > 1e-6:
        raise InputError(f"shares {dict(shares)}: give {', '.join(SPLITS)} shares from 0 to 1 that sum to 1")
    ordered = sorted(set(patients), key=lambda patient: hashlib.sha256(f"{seed}:{patient}".encode()).digest())
    cuts = [round(share * len(ordered)) for share in itertools.accumulate(shares.get(split, 0) for split in SPLITS)]
    bounds = zip(SPLITS, [0, *cuts[:-1]], cuts, strict=True)
    return {patient: split for split, start, stop in bounds for patient in ordered[start:stop]}


def gloria_split(items: Iterable[Item]) -> dict[Item, str]:
    """Item -> split, 70 % train, 15 % valid, 15 % test, by the rule of GLoRIA (Huang et al., ICCV 2021).

    Items are sorted, 30 % are drawn with seed 0, and of these one half with seed 0 again, which is valid. The
    halves round so that 26,684 RSNA patients give 18,678 / 4,003 / 4,003.
    """
    train, rest = train_test_split(_at_least(4, items), test_size=0.3, random_state=0)
    test, valid = train_test_split(rest, test_size=0.5, random_state=0)
    return dict.fromkeys(train, "train") | dict.fromkeys(valid, "valid") | dict.fromkeys(test, "test")


def train_valid_split(items: Iterable[str]) -> dict[str, str]:
    """Item -> split, 80 % train and 20 % valid of the sorted items with seed 0, as CXR-CLIP cuts VinDr-CXR."""
    train, valid = train_test_split(_at_least(2, items), test_size=0.2, random_state=0)
    return dict.fromkeys(train, "train") | dict.fromkeys(valid, "valid")


def _at_least(number: int, items: Iterable[Item]) -> list[Item]:
    """The sorted items, of which the rule of a split needs a number."""
    if len(ordered := sorted(set(items))) < number:
        raise InputError(f"{len(ordered)} films are listed, the rule of the split needs {number}; check the table")
    return ordered


def split_sizes(splits: Mapping[str, str]) -> dict[str, int]:
    """How many items are in each split, under the names of the published counts ("split train", ...)."""
    return {f"split {name}": list(splits.values()).count(name) for name in SPLITS}
