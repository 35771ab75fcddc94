"""A film of one's own: its scores are the model's, and the point of the occlusion map is where the score comes from."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from builders import book_model

from cxrclip.book import scoring
from cxrclip.data.phantom import world
from cxrclip.errors import InputError


class Corner:
    """A model whose margin is the brightness of one corner of the image."""

    logit_scale = torch.tensor(0.0)

    def __init__(self, rows, columns):
        self.rows, self.columns = rows, columns

    def embed_images(self, images):
        return images[:, :1, self.rows, self.columns].mean(dim=(2, 3))

    def embed_texts(self, ids, mask):
        return torch.tensor([[0.0], [1.0]])


def stub(images=None, text=None, return_tensors="pt"):
    if text is not None:
        return {"input_ids": None, "attention_mask": None}
    return {"pixel_values": torch.from_numpy(np.stack(images)).float()[:, None].expand(-1, 3, -1, -1) / 255}


def test_the_point_lies_where_the_score_comes_from():
    films = np.full((3, 64, 64), 200, np.uint8)
    masks = np.zeros((3, 64, 64), bool)
    masks[:, 4:14, 44:54] = True
    models = {"right": Corner(slice(0, 16), slice(40, 64)), "wrong": Corner(slice(48, 64), slice(0, 16))}
    table = scoring.pointing_game(scoring.Places(films, masks), "Mass", models, stub)
    assert table.loc["right", "hits"] == 1
    assert table.loc["wrong", "hits"] == 0
    assert 0.02 < table.loc["chance", "hits"] < 0.1
    assert table.loc["right", "low"] < 1 == table.loc["right", "high"]


def test_scores_are_those_of_the_pair_for_any_format(tmp_path):
    model, processor = book_model()
    film = cv2.resize(np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8), (80, 80))
    cv2.imwrite(str(tmp_path / "film.png"), film)
    scores = scoring.score(film, ["Edema", "a mass"], model, processor)
    inputs = processor(images=[film], text=["No Edema", "Edema", "No a mass", "a mass"], return_tensors="pt")
    with torch.inference_mode():
        logits = model(**inputs).logits_per_image.reshape(2, 2)
    np.testing.assert_allclose(scores, torch.softmax(logits, dim=1)[:, 1], atol=1e-6)
    np.testing.assert_array_equal(scoring.score(tmp_path / "film.png", ["Edema", "a mass"], model, processor), scores)
    with pytest.raises(InputError, match="no such image file"):
        scoring.score(tmp_path / "none.dcm", ["Edema"], model, processor)


def test_true_places_are_those_of_the_frontal_film(tmp_path):
    folder = world.generate("vindr-cxr", {"test": 40}, tmp_path / "t", progress=False)
    shown = scoring.places(folder, "Cardiomegaly", most=5)
    assert 1 <= len(shown.films) == len(shown.masks) <= 5
    assert shown.films.shape == shown.masks.shape
    middle = shown.masks.mean(axis=(1, 2))
    assert ((middle > 0.01) & (middle < 0.5)).all()


def test_the_panel_warns_and_has_its_fields():
    path, words, button, label, _ = scoring.panel(None, None).children
    assert label.value == scoring.CAVEAT
    assert (path.description, words.description, button.description) == ("film", "findings", "score")
