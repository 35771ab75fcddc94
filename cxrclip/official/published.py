"""The published weights that CXR-CLIP's training starts from: ImageNet's ResNet-50 and Swin-Tiny, Bio_ClinicalBERT.

They are fetched once, then read from the caches of torch hub and Hugging Face. Small encoders have no such weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import TypeVar

import torch
from huggingface_hub import constants as hub
from huggingface_hub.utils import logging as hub_logging
from torch import Tensor
from torchvision.models import ResNet50_Weights
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.bert import BertModel
from transformers.models.swin import SwinModel

from cxrclip.encoders import BERTS, SWINS, CXRCLIPModel
from cxrclip.errors import InputError

PUBLISHED_WEIGHTS: Mapping[str, str] = {
    "resnet50": "IMAGENET1K_V1", "swin-tiny": "microsoft/swin-tiny-patch4-window7-224",
    "bio-clinical-bert": "emilyalsentzer/Bio_ClinicalBERT"}
T = TypeVar("T")


def start_from_published(model: CXRCLIPModel) -> None:
    """Put the published weights into both encoders of `model`; a small encoder stays as it is.

    Raises InputError naming weights that are neither on this machine nor can be fetched.
    """
    encoders = {model.config.image_encoder: model.image_encoder, model.config.text_encoder: model.text_encoder}
    for name, encoder in encoders.items():
        if name in PUBLISHED_WEIGHTS:
            encoder.network.load_state_dict(_published_weights(name))


def published_tokenizer(text_encoder: str = "bio-clinical-bert") -> PreTrainedTokenizerBase:
    """The tokenizer of a published text encoder, fetched once; InputError if there is none or it cannot be fetched."""
    known = [name for name in BERTS if name in PUBLISHED_WEIGHTS]
    if text_encoder not in known:
        raise InputError(f"unknown published text encoder {text_encoder!r}: choose one of {', '.join(known)}")
    source = PUBLISHED_WEIGHTS[text_encoder]
    return _fetch(text_encoder, partial(AutoTokenizer.from_pretrained, source, trust_remote_code=False))


def published_place(name: str) -> tuple[str, Path]:
    """Where a published encoder's weights come from (a URL), and the file or folder of this machine they belong in.

    ResNet-50: a file of torch hub (TORCH_HOME moves it). The others: a folder of the Hugging Face cache (HF_HOME).
    """
    source = PUBLISHED_WEIGHTS[name]
    if name == "resnet50":
        url = ResNet50_Weights[source].url
        return url, Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name
    folder = f"models--{source.replace('/', '--')}"
    return f"{hub.ENDPOINT}/{source}", Path(hub.HF_HUB_CACHE) / folder


def published_fetched(image_encoder: str, text_encoder: str) -> None:
    """Fetch what an experiment with these encoders starts from, so that a fault shows before any work.

    Raises InputError naming what cannot be fetched, its source and its place here.
    """
    for name in (image_encoder, text_encoder):
        if name in PUBLISHED_WEIGHTS:
            _published_weights(name)
    if text_encoder in PUBLISHED_WEIGHTS:
        published_tokenizer(text_encoder)


def _published_weights(name: str) -> Mapping[str, Tensor]:
    source = PUBLISHED_WEIGHTS[name]
    if name == "resnet50":
        weights = _fetch(name, _resnet50_weights)
        return {key: tensor for key, tensor in weights.items() if not key.startswith("fc.")}
    kind = SwinModel if name in SWINS else BertModel
    return _fetch(name, lambda **options: kind.from_pretrained(source, add_pooling_layer=False, **options).state_dict())


def _resnet50_weights(local_files_only: bool = False) -> Mapping[str, Tensor]:
    _, place = published_place("resnet50")
    if local_files_only and not place.is_file():
        raise FileNotFoundError(place)
    return ResNet50_Weights[PUBLISHED_WEIGHTS["resnet50"]].get_state_dict(check_hash=True)


def _fetch(name: str, get: Callable[..., T]) -> T:
    """What `get` finds in the cache, without asking the network; else what it gets from the network."""
    try:
        with suppress(OSError):
            return get(local_files_only=True)
        with _without_retry_lines():
            return get()
    except OSError as fault:  # urllib and huggingface_hub both raise one where there is no network
        url, place = published_place(name)
        how = f"download {url} to {place}" if name == "resnet50" else (
            f"where there is a network, run `hf download {PUBLISHED_WEIGHTS[name]}` ({url}) and copy what it made "
            f"to {place}")
        raise InputError(f"{name}: {PUBLISHED_WEIGHTS[name]} is not on this machine and cannot be fetched: "
                         f"{how}") from fault
    except (EOFError, RuntimeError, UnpicklingError) as fault:  # what torch raises for a file that was cut off
        raise InputError(f"{name}: {published_place(name)[1]} is damaged ({type(fault).__name__}): delete it and fetch "
                         "it again") from fault


@contextmanager
def _without_retry_lines() -> Iterator[None]:
    """Silence huggingface_hub's line for each retry: our one line says what failed."""
    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)
