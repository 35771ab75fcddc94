"""How trained weights are misused without an error, and what each mistake costs.

Public wrappers of the released weights make these mistakes; each still gives numbers. `load_official` and the processor
cannot make the first three: normalisation, projection and weights come from one file, which is loaded whole or refused.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from sklearn.preprocessing import normalize
from torch import nn
from transformers import PreTrainedTokenizerBase

from cxrclip import evaluation, metrics
from cxrclip.encoders import HALF, CXRCLIPModel
from cxrclip.transforms import EvalTransform


def mistakes(model: CXRCLIPModel, tokenizer: PreTrainedTokenizerBase, studies: Dataset,
             prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> pd.DataFrame:
    """Zero-shot AUROC (mean over classes) of a model used rightly and wrongly, a line a mistake.

    studies: test studies; prompts: PromptBank.zero_shot. Columns: use, auroc (NaN where it cannot be computed), why.
    """
    config, truth = model.config, evaluation.targets(studies, list(prompts))
    right = EvalTransform(config.image_size, config.image_mean, config.image_std)
    images, texts = (evaluation.embed_studies(model, studies, right),
                     evaluation.embed_prompts(model, tokenizer, prompts, max_tokens=config.max_tokens))
    other = evaluation.embed_studies(model, studies, EvalTransform(config.image_size, *HALF))  # the Swin's
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unloaded = CXRCLIPModel(config).eval()

    def auroc(embeds: np.ndarray, sides: evaluation.Prompts) -> float:
        return float(np.nanmean(metrics.class_aurocs(evaluation.zero_shot_scores(embeds, sides), truth)))

    lines = [("as trained", auroc(images.embeds, texts), ""),
             ("films normalised for the other image encoder", auroc(other.embeds, texts),
              "mean and deviation belong to the weights"),
             ("weights never loaded (names differ, strict=False)",
              auroc(evaluation.embed_studies(unloaded, studies, right).embeds,
                    evaluation.embed_prompts(unloaded, tokenizer, prompts, max_tokens=config.max_tokens)),
              "a random network gives numbers, too")]
    sides, features = _before_projection(model, tokenizer, prompts), images.features
    width = next(iter(sides.values()))[0].shape[1]
    fits = features.shape[1] == width
    lines.append(("features before the projection", auroc(normalize(features), sides) if fits else np.nan,
                  "images and texts meet only after it" if fits else
                  f"impossible here: an image has {features.shape[1]} numbers, a text {width}; with Swin and BERT both "
                  "have 768, and nothing is said"))
    return pd.DataFrame(lines, columns=["use", "auroc", "why"])


def _before_projection(model: CXRCLIPModel, tokenizer: PreTrainedTokenizerBase,
                       prompts: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> evaluation.Prompts:
    """Class -> unit text features (P, F), (Q, F), as a wrapper takes them that forgets the projection."""
    bare = copy.deepcopy(model)
    bare.config.projection_dim, bare.text_projection = model.text_projection.in_features, nn.Identity()
    return evaluation.embed_prompts(bare, tokenizer, prompts, max_tokens=model.config.max_tokens)
