"""The explorer: the data of its page as one JavaScript constant, and the same questions in a notebook."""

from __future__ import annotations

import base64
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from cxrclip.book.page import NOTEBOOKS, book_model
from cxrclip.data import images
from cxrclip.data.files import write_text
from cxrclip.data.phantom import world
from cxrclip.data.phantom.anatomy import Finding, Rule
from cxrclip.evaluation import embed_texts
from cxrclip.experiments.oracle import SEVERITIES

if TYPE_CHECKING:
    from ipywidgets import VBox

FILE = NOTEBOOKS / "explorer_data.js"
SOURCE, FILMS = "mimic-cxr", 60  # the first test studies of this institution that have an impression
QUESTIONS: Mapping[str, Rule] = {
    "There is a right pleural effusion.": Rule(("Pleural Effusion",), sides=("right", "both")),
    "There is a left pleural effusion.": Rule(("Pleural Effusion",), sides=("left", "both")),
    "There is a large right pleural effusion.": Rule(("Pleural Effusion",), 3, ("right", "both")),
    "There is a right pneumothorax.": Rule(("Pneumothorax",), sides=("right", "both")),
    "The heart is enlarged.": Rule(("Cardiomegaly",)),
    "There is pulmonary edema.": Rule(("Edema",)),
    "There is pneumonia.": Rule(("Pneumonia",)),
    "There is a nodule.": Rule(("Nodule",)),
    "There is a rib fracture.": Rule(("Fracture",), kind="rib"),
    "There is a pacemaker.": Rule(("Support Devices",), kind="pacemaker"),
    "There is an endotracheal tube.": Rule(("Support Devices",), kind="endotracheal tube"),
}


def words(finding: Finding) -> str:
    """A true finding in words: "severe right pleural effusion", "mild left upper zone nodule", "pacemaker"."""
    if finding.name == "Support Devices":
        return str(finding.kind)
    side, zone = "bilateral" if finding.side == "both" else finding.side, finding.zone and f"{finding.zone} zone"
    return " ".join(filter(None, (SEVERITIES[finding.severity], side, zone, finding.kind, finding.name.lower())))


def explorer_data(films: int = FILMS) -> dict[str, list[dict]]:
    """The first `films` films, and their impressions and `QUESTIONS` as texts, with unit embeddings of three decimals.

    A film: `image` (PNG as a data URI), `truth` in words, the number of its own `text`. A text: whether it `asks` for a
    finding, and the films it is `right` for: those that truly show the finding, or whose impression it is.
    """
    places = (i for i in itertools.count() if world.record(SOURCE, "test", i).get("impression"))
    drawn = [world.study(SOURCE, "test", i) for i in itertools.islice(places, films)]
    pixels = [images.decode_gray(row["images"][0]["bytes"], row["study_id"]) for row, _ in drawn]
    truth = [[Finding(**finding) for finding in known["findings"]] for _, known in drawn]
    said = [row["impression"] for row, _ in drawn]
    right = {text: [i for i, own in enumerate(said) if own == text] for text in said}
    right |= {text: [i for i, shown in enumerate(truth) if any(map(rule, shown))] for text, rule in QUESTIONS.items()}
    texts = list(right)
    model, processor = book_model()
    seen = model.embed_images(processor(images=pixels, return_tensors="pt")["pixel_values"]).detach().numpy()
    vectors = np.concatenate([seen, embed_texts(model, processor.tokenizer, texts)]).astype(float).round(3).tolist()
    return {"films": [{"truth": list(map(words, truth[i])), "text": texts.index(said[i]), "embedding": vectors[i],
                       "image": thumbnail(pixels[i])} for i in range(films)],
            "texts": [{"text": text, "asks": text in QUESTIONS, "right": right[text], "embedding": vector}
                      for text, vector in zip(texts, vectors[films:], strict=True)]}


def thumbnail(film: np.ndarray) -> str:
    """A film (H, W) uint8 as the data URI of a PNG."""
    png = images.encode_gray(cv2.resize(film, (64, 64), interpolation=cv2.INTER_AREA), "png")
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def write(path: Path = FILE) -> str:
    """Write the data of the page, one film or text a line (`cxrclip explorer`)."""
    lines = [f'"{kind}": [\n' + ",\n".join(map(json.dumps, items)) + "]" for kind, items in explorer_data().items()]
    write_text(path, "// Simulated films, by `cxrclip explorer`.\nconst EXPLORER = {" + ",\n".join(lines) + "};\n")
    return f"{path.name}: {FILMS} films, {path.stat().st_size / 1000:.0f} kB"


def ask(query: int | str, data: Mapping[str, list[dict]], top: int = 5) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The nearest films and the nearest texts to a film's number or to a sentence, each with its cosine similarity.

    data: explorer_data(). Of a film is told what it truly shows, of a text whether it is right for the film that asks.
    """
    films, texts = (np.array([item["embedding"] for item in data[kind]]) for kind in ("films", "texts"))
    model, processor = book_model()
    asked = films[query] if isinstance(query, int) else embed_texts(model, processor.tokenizer, [query])[0]
    to_films, to_texts = films @ asked, texts @ asked
    near = [i for i in np.argsort(-to_films) if i != query][:top]
    shown = pd.DataFrame({"film": near, "cosine": to_films[near].round(2),
                          "truth": ["; ".join(data["films"][i]["truth"]) or "nothing" for i in near]})
    near = np.argsort(-to_texts)[:top]
    said = pd.DataFrame({"text": [data["texts"][i]["text"] for i in near], "cosine": to_texts[near].round(2)})
    if isinstance(query, int):
        said["right"] = ["yes" if query in data["texts"][i]["right"] else "no" for i in near]
    return shown, said


def panel(data: Mapping[str, list[dict]]) -> VBox:
    """For JupyterLab: a field for a sentence or for the number of a film, the films, and the answers of `ask`."""
    import ipywidgets
    from IPython.display import display

    query = ipywidgets.Text("There is a right pleural effusion.", description="sentence or number of a film",
                            style={"description_width": "initial"}, layout={"width": "36rem"})
    button, out = ipywidgets.Button(description="ask"), ipywidgets.Output()
    films = ipywidgets.HTML("".join(f'<img src="{film["image"]}" alt="film {i}" title="film {i}">'
                                    for i, film in enumerate(data["films"])))

    def show(_: object) -> None:
        text = query.value.strip()
        number = int(text) if text.isdecimal() and int(text) < len(data["films"]) else None
        with out:
            out.clear_output()
            for frame in ask(text if number is None else number, data):
                display(frame)
    button.on_click(show)
    return ipywidgets.VBox([query, button, out, films])
