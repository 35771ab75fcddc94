"""What the truth adds to a prompt: only what is there, in the words of side, zone and severity."""

from __future__ import annotations

import pytest

from cxrclip.data.phantom.anatomy import Finding
from cxrclip.experiments.oracle import contents, place_in_words, rich_details
from cxrclip.prompts import PromptBank


def finding(name, side=None, zone=None, severity=2, kind=None):
    return {"name": name, "side": side, "zone": zone, "severity": severity, "kind": kind}


@pytest.mark.parametrize(("found", "words"), [
    (finding("Mass", "left", "lower", 3), "severe left lower zone"),
    (finding("Pleural Effusion", "both", None, 1), "mild bilateral"),
    (finding("Cardiomegaly"), "moderate"),
    (finding("Support Devices", "right", None, 2, "central line"), "right"),
    (finding("Support Devices", None, None, 2, "sternal wires"), "")])
def test_words_of_a_finding(found, words):
    assert place_in_words(Finding(**found)) == words


def test_details_by_class_of_own_names_and_umbrella_terms():
    truth = {"a": [finding("Mass", "left", "upper", 1), finding("Nodule", "right", "lower", 3),
                   finding("Pleural Effusion", "right", None, 3)], "b": []}
    assert rich_details(truth, PromptBank.load()) == {"b": {}, "a": {
        "Mass": "mild left upper zone", "Nodule": "severe right lower zone", "Pleural Effusion": "severe right",
        "Lung Lesion": "mild left upper zone and severe right lower zone"}}


def test_contents_are_equal_for_equal_findings_in_any_order():
    nodule = {"name": "Nodule", "side": "left", "zone": "upper", "severity": 2, "kind": None}
    other = nodule | {"side": "right"}
    truth = {"a": [nodule, other], "b": [other, nodule], "c": [nodule], "d": []}
    a, b, c, d = contents(truth, ["a", "b", "c", "d"])
    assert a == b
    assert len({a, c, d}) == 3
