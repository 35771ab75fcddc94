"""The explorer's committed data come from the committed model and the phantom world, and its page asks no server."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from cxrclip.book import explorer
from cxrclip.data.phantom import world
from cxrclip.data.phantom.anatomy import Finding

FEW = 8             # films that are drawn and embedded anew
TOLERANCE = 1e-2    # of a number of a unit embedding: other processors round otherwise


@pytest.fixture(scope="module")
def committed():
    text = explorer.FILE.read_text(encoding="utf-8")
    return json.loads(text[text.index("{") : text.rindex(";")])


@pytest.fixture(scope="module")
def anew():
    return explorer.explorer_data(FEW)


def test_films_drawn_anew_have_the_committed_truth_text_and_embedding(committed, anew):
    assert len(committed["films"]) == explorer.FILMS
    for ours, theirs in zip(anew["films"], committed["films"][:FEW], strict=True):
        assert ours["truth"] == theirs["truth"]
        assert anew["texts"][ours["text"]]["text"] == committed["texts"][theirs["text"]]["text"]
        assert ours["embedding"] == pytest.approx(theirs["embedding"], abs=TOLERANCE)


def test_texts_read_anew_have_the_committed_embedding(committed, anew):
    known = {text["text"]: text for text in committed["texts"]}
    for ours in anew["texts"]:
        theirs = known[ours["text"]]
        assert ours["asks"] == theirs["asks"]
        assert ours["right"] == [film for film in theirs["right"] if film < FEW]
        assert ours["embedding"] == pytest.approx(theirs["embedding"], abs=TOLERANCE)


def test_every_films_truth_is_that_of_the_world(committed):
    places = [i for i in range(200) if world.record(explorer.SOURCE, "test", i).get("impression")]
    for number, place in enumerate(places[: explorer.FILMS]):
        findings = world.visit(explorer.SOURCE, "test", place).case.findings
        assert committed["films"][number]["truth"] == [explorer.words(finding) for finding in findings]
        for text in committed["texts"]:
            if text["asks"]:
                shown = any(map(explorer.QUESTIONS[text["text"]], findings))
                assert (number in text["right"]) == shown, text["text"]


def test_embeddings_are_unit_rows_and_every_question_is_true_somewhere(committed):
    items = committed["films"] + committed["texts"]
    assert np.linalg.norm([item["embedding"] for item in items], axis=1) == pytest.approx(1, abs=TOLERANCE)
    assert {text["text"] for text in committed["texts"] if text["asks"]} == set(explorer.QUESTIONS)
    assert all(text["right"] for text in committed["texts"])


@pytest.mark.parametrize(("finding", "said"), [
    (Finding("Pleural Effusion", "both", severity=3), "severe bilateral pleural effusion"),
    (Finding("Nodule", "left", "upper", 1), "mild left upper zone nodule"),
    (Finding("Support Devices", kind="pacemaker"), "pacemaker"),
])
def test_a_finding_in_words(finding, said):
    assert explorer.words(finding) == said


def test_a_sentence_and_a_film_find_the_nearest_with_their_truth(committed):
    films, texts = explorer.ask("There is a pacemaker.", committed)
    assert len(films) == len(texts) == 5
    assert films["cosine"].is_monotonic_decreasing
    assert texts["text"].iloc[0] == "There is a pacemaker."
    assert all("; ".join(committed["films"][i]["truth"]) in ("", said) or said == "nothing"
               for i, said in zip(films["film"], films["truth"], strict=True))
    films, texts = explorer.ask(2, committed, top=60)
    assert 2 not in set(films["film"])
    right = {text["text"] for text in committed["texts"] if 2 in text["right"]}
    assert set(texts[texts["right"] == "yes"]["text"]) == right & set(texts["text"])


def test_the_panel_answers_a_click(committed, monkeypatch):
    asked = []
    monkeypatch.setattr(explorer, "ask", lambda query, data: asked.append(query) or ())
    query, button, _, films = explorer.panel(committed).children
    for text in ("There is a nodule.", " 7 ", "700"):
        query.value = text
        button.click()
    assert asked == ["There is a nodule.", 7, "700"]
    assert films.value.count("<img") == explorer.FILMS


def test_the_page_is_small_and_makes_no_request():
    folder = explorer.FILE.parent
    assert sum((folder / name).stat().st_size for name in ("explorer_data.js", "explorer.js", "explorer.md")) < 600_000
    code = (folder / "explorer.js").read_text(encoding="utf-8")
    assert not re.search(r"fetch|XMLHttpRequest|import\b|https?:", code)
    assert len(code.splitlines()) <= 120
