"""What plain transformers needs of a trained model besides its weights: film -> pixels, text -> tokens.

Importing this module teaches transformers' auto classes and its zero-shot pipeline the names of this library:

    import cxrclip.hub.processing
    from transformers import pipeline
    classify = pipeline("zero-shot-image-classification", model="<folder of an exported model>")

Nothing in the folder is executed (no trust_remote_code). The pipeline then reads films as the evaluation does: left to
itself, transformers turns 16-bit films white, applies orientation tags and shows what is transparent.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, ProcessorMixin
from transformers.image_processing_utils import BaseImageProcessor
from transformers.pipelines import PIPELINE_REGISTRY, ZeroShotImageClassificationPipeline

from cxrclip.data import images as films
from cxrclip.encoders import IMAGENET, CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.transforms import EvalTransform

TEXT_INPUTS = ["input_ids", "attention_mask"]  # what CXRCLIPModel takes; BERT's own tokenizer adds token_type_ids

Film = np.ndarray | torch.Tensor | Image.Image | str | Path


class CXRCLIPImageProcessor(BaseImageProcessor):
    """Films as the evaluation sees them: exactly transforms.EvalTransform.

    size: pixels a side, of the shorter side and of the central crop. image_mean, image_std: one value a channel, of
    images scaled to 0-1. Other keywords are what transformers itself stores.
    """

    model_input_names = ("pixel_values",)

    def __init__(self, size: int = 224, image_mean: Sequence[float] = IMAGENET[0],
                 image_std: Sequence[float] = IMAGENET[1], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size, self.image_mean, self.image_std = size, list(image_mean), list(image_std)

    def preprocess(self, images: Film | Sequence[Film], return_tensors: str | None = None) -> BatchFeature:
        """One film or a list of B films -> {"pixel_values": (B, 3, size, size) float32}, a tensor by default.

        Raises InputError for what `gray` cannot read.
        """
        transform = EvalTransform(self.size, self.image_mean, self.image_std)
        pixels = torch.stack([transform(film) for film in self.fetch_images(images)])
        return BatchFeature({"pixel_values": pixels}, tensor_type=return_tensors)

    def fetch_images(self, image_url_or_urls: Film | Sequence[Film]) -> list[np.ndarray]:
        """One film or a list of films -> gray films (H, W) uint8. (transformers' own name; it would load RGB.)"""
        given = image_url_or_urls if isinstance(image_url_or_urls, list | tuple) else [image_url_or_urls]
        if not given:
            raise InputError("no film given: give one film or a list of films")
        return [gray(film, f"film {number}") for number, film in enumerate(given, 1)]


def gray(film: Film, where: str) -> np.ndarray:
    """A film in memory or on disk -> (H, W) uint8, by the rules of images.read_gray.

    Arrays and tensors: (H, W), or (H, W, channels) uint8. Paths: every format, DICOM too; no addresses.
    Raises InputError naming `where` (a path names itself) for a file or an array that is no film.
    """
    if isinstance(film, str | Path):
        return films.read_gray(Path(film), str(film))
    if not isinstance(film, Image.Image):
        try:
            film = Image.fromarray(np.asarray(film))
        except (TypeError, ValueError, AttributeError, RuntimeError) as fault:  # RuntimeError: a tensor with gradient
            shape = f"{tuple(getattr(film, 'shape', ()))} {getattr(film, 'dtype', type(film).__name__)}"
            raise InputError(f"{where}: {shape} is no film: give a path, a PIL image, or an array (H, W) or "
                             "(H, W, 3) of uint8") from fault
    return films.to_gray(film, where)


class CXRCLIPProcessor(ProcessorMixin):
    """Films and texts -> what CXRCLIPModel takes: pixel_values, input_ids, attention_mask.

    Texts are padded to the longest of the call and cut at max_tokens, the tokenizer's model_max_length.
    """

    text_kwargs = {"padding": True, "truncation": True}  # noqa: RUF012 (transformers reads it from the class)

    def __init__(self, image_processor: CXRCLIPImageProcessor, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(image_processor, tokenizer)

    @classmethod
    def of(cls, config: CXRCLIPConfig, tokenizer: PreTrainedTokenizerBase) -> CXRCLIPProcessor:
        """The processor of a model with this configuration; the tokenizer is copied.

        Raises InputError if the tokenizer has another vocabulary than the model.
        """
        if len(tokenizer) != config.vocab_size:
            raise InputError(f"the tokenizer has {len(tokenizer)} tokens, the model {config.vocab_size}: "
                             "take the tokenizer that the model was trained with")
        tokenizer = copy.deepcopy(tokenizer)
        tokenizer.backend_tokenizer.no_truncation()  # else the length of an earlier call is saved, and overrides ours
        tokenizer.init_kwargs.pop("max_length", None)
        tokenizer.model_max_length = config.max_tokens
        tokenizer.model_input_names = list(TEXT_INPUTS)
        tokenizer.init_kwargs["model_input_names"] = list(TEXT_INPUTS)  # only what is in init_kwargs is saved
        return cls(CXRCLIPImageProcessor(config.image_size, config.image_mean, config.image_std), tokenizer)


class FilmPipeline(ZeroShotImageClassificationPipeline):
    """transformers' own pipeline, which hands films to `gray` and cuts labels that are longer than the model reads.

    Models of other libraries are served as before.
    """

    def preprocess(self, image: Film, candidate_labels: Sequence[str] = (),
                   hypothesis_template: str = "This is a photo of {}.", **kwargs: Any) -> dict[str, Any]:
        """transformers' own step; raises InputError for what `gray` cannot read."""
        if isinstance(self.image_processor, CXRCLIPImageProcessor):
            image = Image.fromarray(gray(image, "the film"))
            most = self.tokenizer.model_max_length
            given = kwargs.get("tokenizer_kwargs") or {}
            kwargs["tokenizer_kwargs"] = {"truncation": True, "max_length": most} | given
            texts = [hypothesis_template.format(label) for label in candidate_labels]
            if cut := sum(len(ids) > most for ids in self.tokenizer(texts)["input_ids"]):
                warnings.warn(f"{cut} of {len(texts)} labels are longer than the {most} tokens the model reads: their "
                              "ends are cut off", stacklevel=2)
        return super().preprocess(image, candidate_labels, hypothesis_template, **kwargs)


PIPELINE_REGISTRY.supported_tasks["zero-shot-image-classification"]["impl"] = FilmPipeline
# "torchvision" is the kind that the auto classes look for first; these tensors are made by EvalTransform all the same.
transformers.AutoImageProcessor.register(CXRCLIPConfig, image_processor_classes={"torchvision": CXRCLIPImageProcessor})
transformers.AutoProcessor.register(CXRCLIPConfig, CXRCLIPProcessor)
transformers.AutoModelForZeroShotImageClassification.register(CXRCLIPConfig, CXRCLIPModel)
