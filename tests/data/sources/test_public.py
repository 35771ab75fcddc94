"""cxrclip.data.sources.public: the known numbers of the real label tables and reports in torchxrayvision."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cxrclip import results
from cxrclip.data.sources import public
from cxrclip.errors import InputError

try:
    public.data_folder()
except InputError as reason:
    pytest.skip(str(reason), allow_module_level=True)


def row(frame, **where):
    for column, value in where.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_sizes_are_the_published_ones():
    sizes = public.sizes()

    def numbers(name):
        line = row(sizes, name=name)
        cells = [line[column] for column in ("rows", "images", "patients", "train", "valid", "test")]
        return [None if cell is pd.NA else cell for cell in cells]

    assert numbers("chestxray14") == [112_120, 112_120, 30_805, None, None, None]
    assert numbers("chexpert") == [223_414, 223_414, 64_540, None, None, None]
    assert numbers("vindr-cxr") == [45_000, 15_000, None, 12_000, 3_000, None]
    assert numbers("rsna") == [30_227, 26_684, 26_684, 18_678, 4_003, 4_003]
    assert numbers("siim") == [12_954, 12_047, None, 8_432, 1_808, 1_807]
    assert numbers("siim (by row)") == [12_954, 12_047, None, 9_067, 1_944, 1_943]
    assert numbers("openi") == [3_955, 7_470, None, None, None, None]


def test_a_third_of_the_ill_test_films_leak_when_siim_is_split_by_row():
    assert public.siim_leak() == (154, 476)
    assert public.siim().groupby("image")["split"].nunique().max() == 1


def test_labels_are_the_known_ones():
    nih = public.nih()["findings"].str.split("|").explode().value_counts()
    assert (nih["No Finding"], nih["Hernia"], nih["Effusion"], len(nih)) == (60_361, 227, 13_317, 15)
    labels = public.chexpert()[list(public.CHEXPERT_LABELS)]
    assert labels["No Finding"].value_counts().drop("").to_dict() == {"positive": 22_381}
    assert (labels == "").all(axis=1).sum() == 12  # ledger row B12: an empty prompt each
    assert public.siim().groupby("image")["pneumothorax"].any().sum() == 2_669
    assert public.vindr()["readers"].eq(3).all()


def test_sections_are_counted():
    found = public.sections().set_index("what")["reports"].to_dict()
    assert found == {
        "reports": 3_955,
        "findings": 3_425,
        "impression": 3_921,
        "both sections": 3_419,
        "neither section": 28,
        "without a film": 104,
        "both, the last by alphabet is not the longest": 990,
    }


def test_collisions_are_the_known_ones():
    found = public.collisions()
    assert list(found.columns) == ["table", "content", "probability", "n"]
    expected = {
        ("chestxray14", "label set"): (0.3023, 112_120),
        ("chexpert", "positive labels"): (0.0224, 223_414),
        ("chexpert", "label triplet"): (0.0026, 223_414),
        ("openi", "impression"): (0.0160, 3_419),
        ("openi", "longest section"): (0.0014, 3_419),
    }
    assert {(line.table, line.content): (round(line.probability, 4), line.n) for line in found.itertuples()} == expected
    assert list(results.published().query("task == 'collision'")["value"]) == list(found["probability"].round(4))


def test_the_code_of_the_package_is_not_run_nor_is_torch_for_the_counts():
    code = (
        "import sys\n"
        "from cxrclip.data.sources import public\n"
        "assert len(public.siim()) == 12_954\n"
        "assert not {'torchxrayvision', 'torchvision', 'cxrclip.evaluation'} & set(sys.modules)\n"
    )
    project = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", code], check=True, cwd=project)


def test_without_the_package_one_line_says_so(monkeypatch):
    monkeypatch.setattr(public.importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError, match="pip install torchxrayvision"):
        public.data_folder()
