"""Splits that other projects made with scikit-learn, so that their test sets are the ones used here."""

from __future__ import annotations

from collections.abc import Iterable

from sklearn.model_selection import train_test_split


def gloria_split(items: Iterable[str]) -> dict[str, str]:
    """Item -> split, 70 % train, 15 % valid, 15 % test, by the rule of GLoRIA (Huang et al., ICCV 2021).

    Items are sorted, 30 % are drawn with seed 0, and of these one half with seed 0 again, which is valid. The
    halves round so that 26,684 RSNA patients give 18,678 / 4,003 / 4,003.
    """
    train, rest = train_test_split(sorted(set(items)), test_size=0.3, random_state=0)
    test, valid = train_test_split(rest, test_size=0.5, random_state=0)
    return {item: name for name, part in (("train", train), ("valid", valid), ("test", test)) for item in part}


def train_valid_split(items: Iterable[str]) -> dict[str, str]:
    """Item -> split, 80 % train and 20 % valid of the sorted items with seed 0, as CXR-CLIP cuts VinDr-CXR."""
    train, valid = train_test_split(sorted(set(items)), test_size=0.2, random_state=0)
    return {item: name for name, part in (("train", train), ("valid", valid)) for item in part}
