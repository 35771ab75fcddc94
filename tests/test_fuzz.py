"""The short form of `make fuzz`: a few damaged files of each kind (fuzzing.py)."""

import fuzzing
import pytest

# Numbers that once ended in a traceback.
KNOWN = {"checkpoints": (10, 448, 883, 964), "Parquet tables": (111,), "study tables": (676, 708)}


@pytest.mark.parametrize("name", fuzzing.FAMILIES)
def test_damaged_files_are_read_alike_set_aside_or_refused(name):
    results = fuzzing.verdicts(name, range(60), workers=1)
    assert fuzzing.faults(results) == []
    kinds = {verdict.kind for verdict in results}
    assert {fuzzing.EQUAL} < kinds, "some files survive, and some do not"


@pytest.mark.parametrize(("name", "number"), [(name, number) for name, numbers in KNOWN.items() for number in numbers])
def test_files_that_once_ended_in_a_traceback(name, number):
    assert fuzzing.attempt(name, number).kind in (fuzzing.EQUAL, fuzzing.ASIDE, fuzzing.REFUSED)


def test_a_reader_that_fails_or_lies_is_a_fault(monkeypatch):
    family = fuzzing.FAMILIES["images"]
    cases = {"traceback": lambda folder: 1 / 0, "another content": lambda folder: 255 - family.plain(folder)}
    for kind, read in cases.items():
        broken = fuzzing.Family(family.make, lambda files, rng: files, read, family.plain, family.alike)
        monkeypatch.setattr(fuzzing, "FAMILIES", {"images": broken})
        assert fuzzing.attempt("images", 0).kind == kind
