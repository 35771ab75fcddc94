"""A film of your own and the book's model (notebook 06): scores of findings in your own words, and where it looks.

The model has seen simulated films only, so a score is for playing with it, and never for a patient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from captum.attr import Occlusion
from torch import Tensor

from cxrclip.book.safety import wilson
from cxrclip.data.images import decode_gray
from cxrclip.encoders import CXRCLIPModel
from cxrclip.hub.processing import CXRCLIPProcessor, Film
from cxrclip.studies import open_studies

if TYPE_CHECKING:
    from ipywidgets import VBox

PATCH, STRIDE = 12, 4   # pixels of the model's image: what is hidden at once, and how far it moves
NEAR = 4                # pixels a point may lie beside the true place
CAVEAT = "The model has seen simulated films only. A score says nothing about a patient."


def score(film: Film, findings: Sequence[str], model: CXRCLIPModel, processor: CXRCLIPProcessor) -> pd.Series:
    """Finding -> probability of "<finding>" against "No <finding>": softmax of the scaled cosines, not calibrated.

    The order of films is that of Table 2, whose scores leave the scale out (evaluation.zero_shot_scores).

    film: an array, a PIL image or a path of a PNG, JPEG, TIFF, BMP or DICOM file. findings: free text.
    Raises InputError for what is no film.
    """
    with torch.inference_mode():
        image = model.embed_images(processor(images=[film], return_tensors="pt")["pixel_values"])
        margins = torch.cat([image @ _direction(finding, model, processor) for finding in findings])
        probabilities = torch.sigmoid(model.logit_scale.exp() * margins).numpy()
    return pd.Series(probabilities, index=list(findings), name="probability")


def _direction(finding: str, model: CXRCLIPModel, processor: CXRCLIPProcessor) -> Tensor:
    """(D,): the unit embedding of "<finding>" minus that of "No <finding>"; its product with an image is the margin."""
    tokens = processor(text=[f"No {finding}", finding], return_tensors="pt")
    negative, positive = model.embed_texts(tokens["input_ids"], tokens["attention_mask"])
    return positive - negative


def occlusion(pixel_values: Tensor, finding: str, model: CXRCLIPModel, processor: CXRCLIPProcessor) -> np.ndarray:
    """(B, S, S): how much the finding's margin falls when this place of the image is hidden (captum's Occlusion).

    The margin is the cosine of image and "<finding>" minus that of image and "No <finding>". pixel_values:
    (B, 3, S, S).
    """
    with torch.inference_mode():
        direction = _direction(finding, model, processor)
        margin = Occlusion(lambda images: model.embed_images(images) @ direction)
        return margin.attribute(pixel_values, (3, PATCH, PATCH), (3, STRIDE, STRIDE), baselines=0)[:, 0].numpy()


@dataclass(frozen=True)
class Places:
    """Films with a finding: films (N, H, W) uint8, and masks (N, H, W) bool of where it truly shows."""

    films: np.ndarray
    masks: np.ndarray


def places(folder: Path, finding: str, most: int = 60) -> Places:
    """The first test films of a phantom study folder that show a finding, with its true place in the frontal film."""
    rows = {row["study_id"]: row for row in pq.read_table(folder / "truth.parquet").to_pylist()}
    films, masks = [], []
    for study in open_studies(folder, "test"):
        truth, view = rows[study["study_id"]], study["views"][0]
        named = {i for i, item in enumerate(truth["findings"]) if item["name"] == finding}
        shown = [decode_gray(mask["png"], study["study_id"]) > 0 for mask in truth["masks"]
                 if mask["finding_index"] in named and mask["view"] == view]
        if shown and len(films) < most:
            films.append(decode_gray(study["images"][0]["bytes"], study["study_id"]))
            masks.append(np.any(shown, axis=0))
    return Places(np.array(films), np.array(masks))


def pointing_game(shown: Places, finding: str, models: Mapping[str, CXRCLIPModel],
                  processor: CXRCLIPProcessor) -> pd.DataFrame:
    """How often the point of the largest fall lies in the finding's true place, or at most NEAR pixels beside it.

    Columns model, hits, low, high (Wilson's 95 % interval), n; the row "chance" is the mean share of the image that
    counts as a hit.
    """
    pixels = processor(images=list(shown.films), return_tensors="pt")["pixel_values"]
    size = pixels.shape[-1]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * NEAR + 1, 2 * NEAR + 1))
    resize = partial(cv2.resize, dsize=(size, size), interpolation=cv2.INTER_AREA)
    counted = np.array([cv2.dilate((resize(mask.astype(np.float32)) > 0).astype(np.uint8), kernel) > 0
                        for mask in shown.masks])
    share, flat = counted.mean(), counted.reshape(len(counted), -1)
    rows = [{"model": "chance", "hits": share, "low": share, "high": share, "n": len(counted)}]
    for name, model in models.items():
        points = occlusion(pixels, finding, model, processor).reshape(flat.shape).argmax(axis=1)
        share = flat[np.arange(len(flat)), points].mean()
        low, high = wilson(share, len(flat))
        rows.append({"model": name, "hits": share, "low": low, "high": high, "n": len(flat)})
    return pd.DataFrame(rows).set_index("model")


def panel(model: CXRCLIPModel, processor: CXRCLIPProcessor) -> VBox:
    """For JupyterLab: a field for the path of a film, one for findings, and their scores below."""
    import ipywidgets
    from IPython.display import display

    path = ipywidgets.Text(description="film", placeholder="path of a PNG, JPEG or DICOM file")
    words = ipywidgets.Text("Pneumothorax, Pleural effusion", description="findings")
    button, out = ipywidgets.Button(description="score"), ipywidgets.Output()

    def show(_: object) -> None:
        with out:
            out.clear_output()
            findings = [word.strip() for word in words.value.split(",") if word.strip()]
            try:
                display(score(Path(path.value), findings, model, processor).round(3).to_frame())
            except ValueError as error:  # an InputError: the film cannot be read
                print(error)
    button.on_click(show)
    return ipywidgets.VBox([path, words, button, ipywidgets.Label(CAVEAT), out])
