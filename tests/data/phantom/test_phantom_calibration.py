"""The phantom's labels and reports come near those of public tables, and are measured as those are."""

import pandas as pd
import pytest

from cxrclip.data.phantom import calibration
from cxrclip.data.phantom.anatomy import settings
from cxrclip.data.phantom.reports import CHEXPERT
from cxrclip.data.sources import public
from cxrclip.errors import InputError

WITHIN = 0.2


@pytest.fixture(scope="module")
def comparison():
    return calibration.comparison()


def test_every_statistic_is_within_a_fifth_of_the_public_one(comparison):
    assert list(comparison.columns) == ["statistic", "table", "public", "phantom", "ratio"]
    assert set(comparison["table"]) == set(calibration.TABLES)
    assert not comparison.duplicated(["statistic", "table"]).any()
    far = comparison[(comparison["ratio"] - 1).abs() > WITHIN]
    assert far.empty, far.to_string()


def test_the_vocabulary_is_rich(comparison):
    words = comparison.set_index("statistic").loc["usual words"]
    assert words["phantom"] >= 750


def public_numbers() -> dict[str, dict[str, float]]:
    """The content of `public.yaml`, computed anew."""
    mined = public.nih()["findings"].str.get_dummies("|").astype(bool)
    masks = public.siim().groupby("image")["pneumothorax"].any()
    return {
        "chestxray14": calibration.label_numbers(mined.replace({True: "positive", False: "negative"})),
        "chexpert": calibration.label_numbers(public.chexpert()[list(CHEXPERT)]),
        "rsna": {"share with pneumonia": float(public.rsna()["pneumonia"].mean())},
        "siim": {"share with pneumothorax": float(masks.mean())},
        "openi": calibration.report_numbers(public.open_i()),
    }


def test_the_public_numbers_are_those_of_the_tables():
    try:
        public.data_folder()
    except InputError as reason:
        pytest.skip(str(reason))
    recorded, computed = settings("public.yaml"), public_numbers()
    assert {table: list(numbers) for table, numbers in recorded.items()} == {
        table: list(numbers) for table, numbers in computed.items()}  # fmt: skip
    for table, numbers in computed.items():
        assert recorded[table] == pytest.approx(numbers, rel=1e-3)


def test_statistics_of_a_few_labels():
    states = pd.DataFrame({
        "No Finding": ["positive", "", "positive", ""],
        "Edema": ["", "positive", "", "positive"],
        "Mass": ["negative", "uncertain", "", "positive"],
    })  # fmt: skip
    assert calibration.label_numbers(states) == pytest.approx({
        "chance of equal positive labels": 1 / 6, "share of normals": 0.5, "findings per study": 0.75,
        "chance of equal labels": 0, "uncertain labels per study": 0.25, "share with an uncertain label": 0.25,
        "denied labels per study": 0.25,
    })  # fmt: skip


def test_statistics_of_a_few_reports():
    reports = pd.DataFrame({
        "findings": ["Heart normal. Lungs clear.", "", "A 3.5 cm mass.", ""],
        "impression": ["Normal.", "1. Mass. 2. No edema.", "Normal.", ""],
        "normal": [True, False, False, True],
    })  # fmt: skip
    assert calibration.report_numbers(reports) == pytest.approx({
        "chance of equal impressions": 1, "chance of equal longest sections": 0, "share of normals": 1 / 3,
        "missing sections per report": 1 / 3, "usual words": 0, "sentences of findings": 1.5, "words of findings": 3.5,
        "sentences of impression": 4 / 3, "words of impression": 5 / 3,
    })  # fmt: skip
