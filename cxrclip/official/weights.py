"""The released weights of CXR-CLIP: read strictly, never executed, and a file of random weights in their format.

A released file is a torch.save dict: `model` (state dict), `optimizer`, `scheduler`, `config` (nested plain dict),
`epoch`, `train_loss`. It was written with transformers 4.26, whose names of Swin's layers differ from today's.
The released evaluation loads with strict=False, which hides what does not fit (ledger B10). Here everything must fit.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import AliasPath, BaseModel, Field
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from cxrclip.data.files import atomic_file
from cxrclip.data.settings import checked
from cxrclip.encoders import BERTS, SWINS, CXRCLIPConfig, CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.official.published import PUBLISHED_WEIGHTS, published_tokenizer

# The released files: name without .tar -> image encoder, pretraining data.
FILES: Mapping[str, tuple[str, str]] = {
    "r50_m": ("resnet50", "M"), "r50_mc": ("resnet50", "M,C"), "r50_mcc": ("resnet50", "M,C,C14"),
    "swint_m": ("swin-tiny", "M"), "swint_mc": ("swin-tiny", "M,C"), "swint_mcc": ("swin-tiny", "M,C,C14"),
}
WHERE = ("the released files r50_m.tar, r50_mc.tar, r50_mcc.tar, swint_m.tar, swint_mc.tar, swint_mcc.tar are linked "
         "from the README of github.com/kakaobrain/cxr-clip (CC BY-NC-SA 4.0: not for commercial use)")
TOKENIZER = PUBLISHED_WEIGHTS["bio-clinical-bert"]

# Names in the file -> names in CXRCLIPModel; the image encoder's prefix also tells which one it is.
IMAGE_PREFIXES: Mapping[str, str] = {"resnet50": "image_encoder.resnet.", "swin-tiny": "image_encoder.image_encoder."}
PREFIXES: Mapping[str, str] = {
    **dict.fromkeys(IMAGE_PREFIXES.values(), "image_encoder.body.network."),
    "text_encoder.text_encoder.": "text_encoder.network.",
    "image_projection.projection.": "image_projection.",
    "text_projection.projection.": "text_projection.",
}
# Swin's layers in transformers 4 -> today. "attention.output.dense" goes before "output.dense".
SWIN_NAMES: Mapping[str, str] = {
    ".attention.self.query.": ".attention.q_proj.",
    ".attention.self.key.": ".attention.k_proj.",
    ".attention.self.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".attention.self.relative_position_": ".attention.relative_position_bias.relative_position_",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
}
# What a file may hold beside the model's parameters. BERT's pooler (UNUSED) is not read, as the feature is a token.
# TABLES are constants, not weights: they must equal the model's own.
UNUSED = ("text_encoder.network.pooler.dense.weight", "text_encoder.network.pooler.dense.bias")
TABLES = ("position_ids", "token_type_ids", "relative_position_index")
IMAGE_NAMES: Mapping[str, str] = {"resnet": "resnet50", PUBLISHED_WEIGHTS["swin-tiny"]: "swin-tiny"}  # in the config
POOLINGS: Mapping[str, str] = {"eos": "last_token", "bos": "first_token", "mean": "mean"}  # in the config
Size = Annotated[int, Field(strict=True, ge=1)]


def _entry(default: object, *keys: str) -> Any:
    return Field(default, validation_alias=AliasPath(*keys))


class _FileConfig(BaseModel):
    """What is read of the `config` of a released file, a nested dict; any entry may be absent."""

    image_encoder: str | None = _entry(None, "model", "image_encoder", "name")
    pooling: Literal["eos", "bos", "mean"] = _entry("eos", "model", "text_encoder", "pooling")
    projection_dim: Size | None = _entry(None, "model", "projection_head", "proj_dim")
    image_size: Size = _entry(224, "base", "image_size")
    max_tokens: Size = _entry(256, "base", "text_max_length")


def load_official(path: str | Path) -> CXRCLIPModel:
    """The model of a released .tar, on the CPU, in float32 (half precision is widened) and in evaluation mode.

    Every tensor of the file has its place or stands in UNUSED or TABLES, and every parameter of the model comes from
    the file. Swin's feature is the first patch, as in the released code (ledger B8). The file's `config` gives
    image_size, max_tokens and the text pooling; without it they are 224, 256 and the last token. Mean and standard
    deviation are ImageNet's for ResNet-50, 0.5 for Swin. A "module." that all names begin with, from
    DistributedDataParallel, is removed.

    Raises InputError for a file that is missing, damaged, no torch.save file, of another architecture, that holds code
    (which is never run), or whose config contradicts its weights.
    """
    path = Path(path)
    stored = _read(path)
    if not isinstance(stored, dict) or not isinstance(stored.get("model"), dict):
        raise InputError(f"{path}: no state dict under 'model', so no released CXR-CLIP file: {WHERE}")
    try:
        state = _without_prefix(stored["model"])
        model = CXRCLIPModel(_config(state, stored.get("config")))
        model.load_state_dict(_fitted(state, model))
    except InputError as fault:
        raise InputError(f"{path}: {fault}") from fault
    return model.eval()


def official_tokenizer(folder: str | Path = "") -> PreTrainedTokenizerBase:
    """The tokenizer of the released text encoder: from a local folder, or fetched once if none is given.

    Raises InputError, which says what to put where, for no tokenizer or one with another vocabulary.
    """
    size = BERTS["bio-clinical-bert"]["vocab_size"]
    what = f"config.json and vocab.txt of huggingface.co/{TOKENIZER}"
    if not folder:
        try:
            tokenizer = published_tokenizer()
        except InputError as fault:
            raise InputError(f"{fault}; or save {what} in a folder and give that folder as `tokenizer`") from fault
    elif not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder: make it and save {what} there")
    else:
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except Exception as fault:  # a folder may hold anything, and transformers then fails in many ways
            raise InputError(f"{folder}: no tokenizer ({_line(fault)}): save {what} there") from fault
    if len(tokenizer) != size or tokenizer.pad_token_id != 0:
        raise InputError(f"{folder or TOKENIZER}: a tokenizer of {len(tokenizer)} pieces, [PAD] is "
                         f"{tokenizer.pad_token_id}; the released weights need {size} and 0: save {what} there")
    return tokenizer


def random_official(path: str | Path, image_encoder: str = "resnet50", seed: int = 0) -> Path:
    """Write RANDOM weights in the released format, at full size, in float16 (half the space): `path`.

    For trying a pipeline without the released files. Its results say nothing about the paper: write "random weights"
    beside every number. image_encoder: "resnet50" or "swin-tiny". Raises InputError for another one, or for a path that
    cannot be written.
    """
    path = Path(path)
    if image_encoder not in IMAGE_PREFIXES:
        raise InputError(f"unknown image encoder {image_encoder!r}: choose one of {', '.join(IMAGE_PREFIXES)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CXRCLIPModel(_published_config(image_encoder))
        width = model.text_encoder.features
        pooler = dict(zip(UNUSED, (torch.randn(width, width) * 0.02, torch.zeros(width)), strict=True))
    tables = {name: table for name, table in model.named_buffers() if name.endswith(TABLES[0::2])}
    state = {_released_name(name, image_encoder): tensor.half() if tensor.is_floating_point() else tensor
             for name, tensor in {**model.state_dict(), **pooler, **tables}.items()}
    name = {known: name for name, known in IMAGE_NAMES.items()}[image_encoder]
    stored = {"model": state, "optimizer": {}, "scheduler": {}, "epoch": 0, "train_loss": 0.0,
              "config": {"model": {"image_encoder": {"name": name}}, "base": {"image_size": 224}}}
    try:
        with atomic_file(path) as draft:
            torch.save(stored, draft)
    except RuntimeError as fault:  # what torch raises for a full disk
        raise InputError(f"{path}: cannot be written ({_line(fault)}): free space or choose another folder") from fault
    return path


def _read(path: Path) -> object:
    """What torch.save stored, if it is tensors and plain values only."""
    if not path.is_file():
        raise InputError(f"{path}: no such file: {WHERE}")
    if not zipfile.is_zipfile(path):  # what torch.save has written since 2020; the directory at the end is cut first
        raise InputError(f"{path}: not a torch.save file, or a truncated one: get it again; {WHERE}")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load does not compare checksums
        if damaged:
            raise ValueError(f"wrong checksum of {damaged}")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:  # a hostile or damaged file may fail anywhere
        code = re.search(r"GLOBAL (\S+)", str(fault)) if isinstance(fault, pickle.UnpicklingError) else None
        if code:
            raise InputError(f"{path}: holds more than tensors and plain values ({code[1]}): refused, and nothing in "
                             "it was run; do not load it by other means unless you trust its origin") from fault
        raise InputError(f"{path}: damaged, or not a torch.save file ({_line(fault)}): get it again") from fault


def _without_prefix(state: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The state dict without the "module." of DistributedDataParallel. InputError for what is no tensor by name."""
    wrong = [name for name, tensor in state.items() if not isinstance(name, str) or not isinstance(tensor, Tensor)]
    if wrong:
        raise InputError(f"'model' holds more than named tensors: {_some(wrong)}")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return dict(state)


def _config(state: Mapping[str, Tensor], stored: object) -> CXRCLIPConfig:
    """The configuration that names and shapes ask for, with the sizes that the file's config gives."""
    encoders = [encoder for encoder, prefix in IMAGE_PREFIXES.items() if any(name.startswith(prefix) for name in state)]
    if len(encoders) != 1:
        what = "both a ResNet and a Swin" if encoders else f"no image encoder known here ({_some(list(state))})"
        raise InputError(f"holds {what}; a released file has {' or '.join(p + '*' for p in IMAGE_PREFIXES.values())}")
    config = checked(_FileConfig, {} if stored is None else stored, "config")
    if config.image_encoder is not None and IMAGE_NAMES.get(config.image_encoder) != encoders[0]:
        raise InputError(f"config names the image encoder {config.image_encoder!r}, the weights look like "
                         f"{encoders[0]}: known are {', '.join(IMAGE_NAMES)}")
    weight = state.get("image_projection.projection.weight")
    width = weight.shape[0] if weight is not None and weight.ndim == 2 else 512  # _fitted lists a misfit
    if config.projection_dim not in (None, width):
        raise InputError(f"config says projection to {config.projection_dim}, the weights project to {width}")
    return _published_config(encoders[0], text_pooling=POOLINGS[config.pooling], projection_dim=width,
                             image_size=config.image_size, max_tokens=config.max_tokens)


def _published_config(image_encoder: str, **changes: Any) -> CXRCLIPConfig:
    """The published configuration, with the released code's feature for Swin: the first patch (ledger B8)."""
    pooling = "first_token" if image_encoder in SWINS else "mean"
    return CXRCLIPConfig(image_encoder=image_encoder, image_pooling=pooling, **changes)


def _fitted(state: Mapping[str, Tensor], model: CXRCLIPModel) -> dict[str, Tensor]:
    """The file's tensors by the model's names; InputError lists everything that is unknown, lacking or misshapen."""
    wanted, tables = model.state_dict(), dict(model.named_buffers())
    fitted: dict[str, Tensor] = {}
    unknown, unfit = [], []
    for released, tensor in state.items():
        name = _name(released, wanted)
        if name in wanted and name not in fitted:
            fitted[name] = tensor
            unfit += [released] if _misfit(tensor, wanted[name]) else []
        elif name.endswith(TABLES) and name in tables:
            same = not _misfit(tensor, tables[name]) and torch.equal(tensor.long(), tables[name].long())
            unfit += [] if same else [released]
        elif name not in UNUSED:
            unknown.append(released)
    lacking = [_released_name(name, model.config.image_encoder) for name in wanted if name not in fitted]
    faults = {"unknown": unknown, "lacking": lacking, "of another shape, kind or content": unfit}
    if any(faults.values()):
        listed = "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in faults.items() if names)
        raise InputError(f"not the weights of {model.config.image_encoder} and {model.config.text_encoder}: {listed}")
    broken = [name for name, tensor in fitted.items() if not tensor.isfinite().all()]
    if broken:
        raise InputError(f"{len(broken)} tensors hold NaN or infinite numbers: {_some(broken)}")
    return fitted


def _name(released: str, wanted: Mapping[str, Tensor]) -> str:
    """The model's name for a released one; Swin's old names become new ones where the model has the new ones."""
    for old, new in PREFIXES.items():
        if released.startswith(old):
            name = new + released.removeprefix(old)
            return _replaced(name, SWIN_NAMES) if name not in wanted and old == IMAGE_PREFIXES["swin-tiny"] else name
    return released


def _released_name(name: str, image_encoder: str) -> str:
    """The inverse of _name: as the released files have it."""
    if name.startswith("image_encoder."):
        inner = name.removeprefix("image_encoder.body.network.")
        old = _replaced(f".{inner}", {new: old for old, new in SWIN_NAMES.items()})[1:]
        return IMAGE_PREFIXES[image_encoder] + (old if image_encoder in SWINS else inner)
    for old, new in PREFIXES.items():
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def _replaced(name: str, names: Mapping[str, str]) -> str:
    """`name` with the first matching part replaced."""
    for old, new in names.items():
        if old in name:
            return name.replace(old, new)
    return name


def _misfit(tensor: Tensor, wanted: Tensor) -> bool:
    plain = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return not plain or tensor.shape != wanted.shape or tensor.is_floating_point() != wanted.is_floating_point()


def _some(names: Sequence[object], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(map(str, names[:most])) + (f", and {len(names) - most} more" if len(names) > most else "")


def _line(fault: Exception) -> str:
    """The first line of an error, at most 120 characters."""
    return (str(fault).splitlines() or [type(fault).__name__])[0][:120] or type(fault).__name__
