"""A pilot of an archive with films and labels, and no reports (notebook 13): a sample archive, and its alternative.

The alternative to a pretrained model is the same image encoder from random weights, trained on the labels alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from cxrclip.encoders import CXRCLIPConfig, CXRCLIPModel

NORMAL = "NORMAL"  # the code of a film on which nothing of `codes` is seen


def write_archive(studies: Iterable[Mapping[str, Any]], folder: Path, codes: Mapping[str, Sequence[str]]) -> None:
    """Studies as a hospital's export: films as files, and labels.csv with columns file, patient, label.

    codes: the house's code -> the findings it stands for. Several codes of a film are joined by "|".
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for study in studies:
        file, positive = f"{study['study_id']}.jpg", set(study["positive"])
        (folder / file).write_bytes(study["images"][0]["bytes"])
        seen = [code for code, names in codes.items() if positive.intersection(names)]
        rows.append((file, study["patient_id"], "|".join(seen) or NORMAL))
    pd.DataFrame(rows, columns=["file", "patient", "label"]).to_csv(folder / "labels.csv", index=False)


def from_scratch(config: CXRCLIPConfig, films: Tensor, labels: np.ndarray, test_films: Tensor, *, steps: int = 150,
                 batch: int = 32, learning_rate: float = 1e-3, seed: int = 0,
                 start: CXRCLIPModel | None = None) -> np.ndarray:
    """Scores (N_test, K) of the image encoder with a linear head, trained on labels alone, from random weights.

    Args:
        config: of the model whose image encoder is taken.
        films, test_films: (N, 3, S, S), as evaluation.first_images gives them.
        labels: (N, K) bool.
        steps, batch, learning_rate: of AdamW, films drawn with replacement and not augmented; set beforehand.
        start: a trained model, a copy of which is trained on in place of random weights (fine-tuning).
    """
    torch.manual_seed(seed)
    model = CXRCLIPModel(config).train()
    if start is not None:
        model.load_state_dict(start.state_dict())
    head = nn.Linear(model.image_encoder.features, labels.shape[1])
    optimizer = torch.optim.AdamW([*model.parameters(), *head.parameters()], lr=learning_rate)
    targets = torch.tensor(labels, dtype=torch.float32)
    for _ in range(steps):
        rows = torch.randint(len(films), (batch,))
        optimizer.zero_grad()
        binary_cross_entropy_with_logits(head(model.encode_images(films[rows])), targets[rows]).backward()
        optimizer.step()
    model.eval()
    with torch.inference_mode():
        return torch.cat([head(model.encode_images(part)) for part in test_films.split(128)]).numpy()
