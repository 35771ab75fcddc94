"""Training states on disk: tensors as safetensors, the rest as JSON. Nothing is pickled, no path is stored.

The released weights of the paper have a format of their own: load_official, from official.py.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from cxrclip.errors import InputError
from cxrclip.official.rules import INTENDED, Rules
from cxrclip.official.weights import load_official as load_official

INFO = "info.json"
OPTIMIZER = "optimizer."


def save_state(folder: str | Path, tensors: Mapping[str, Tensor], info: Mapping) -> Path:
    """Write a state; whatever interrupts it, `folder` holds the whole old state or the whole new one.

    The tensors get a file of a new name; info.json, which names that file, is then put in place by one rename.
    One process at a time may write a folder.

    info: what JSON can hold, without a key "tensors". Raises InputError if the folder cannot be written.
    """
    folder = Path(folder)
    draft = folder.with_name(f".{folder.name}.draft")
    name = f"tensors-{secrets.token_hex(4)}.safetensors"
    try:
        shutil.rmtree(draft, ignore_errors=True)  # of a run that was killed
        target = folder if folder.is_dir() else draft
        target.mkdir(parents=True, exist_ok=True)
        save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, target / name)
        (target / f"{INFO}.draft").write_text(json.dumps({**info, "tensors": name}, indent=1))
        _flush(target / name, target / f"{INFO}.draft")
        os.replace(target / f"{INFO}.draft", target / INFO)
        if target is draft:
            os.rename(draft, folder)
        _flush(folder, folder.parent)
        for old in folder.glob("tensors-*.safetensors"):
            if old.name != name:
                old.unlink()
    except (OSError, SafetensorError) as fault:
        raise InputError(f"{folder}: the state cannot be written ({fault}): check the folder and the space") from fault
    return folder


def load_state(folder: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The (tensors, info) that save_state wrote, tensors on the CPU; nothing is ever executed.

    Raises InputError naming the file that is missing, damaged or not from save_state.
    """
    file = Path(folder) / INFO
    try:
        info = json.loads(file.read_text())
        name = info.pop("tensors")
        if Path(name).name != name:
            raise ValueError(f"{name!r} is not a file of this folder")
        file = Path(folder) / name
        return load_file(file), info
    except FileNotFoundError as fault:
        raise InputError(f"{file}: no such file: start anew or choose another folder") from fault
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise InputError(f"{file}: damaged or no training state ({reason}): delete {folder} to start anew") from fault


def optimizer_tensors(optimizer: Optimizer) -> dict[str, Tensor]:
    """The optimiser's state, flat: "optimizer.<parameter number>.<name>" -> tensor (AdamW: step and two moments).

    Learning rate and weight decay are not part of it: the recipe sets them at every step.
    """
    return {f"{OPTIMIZER}{number}.{name}": torch.as_tensor(value)
            for number, slots in optimizer.state_dict()["state"].items() for name, value in slots.items()}


def load_optimizer_tensors(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what optimizer_tensors made back; other tensors are ignored. Continuing is then bitwise the same.

    Raises InputError if the state belongs to other parameters (number or shape).
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith(OPTIMIZER):
            number, name = key[len(OPTIMIZER):].split(".", 1)
            state.setdefault(int(number), {})[name] = tensor.clone()
    for number, slots in state.items():
        shapes = {tuple(tensor.shape) for tensor in slots.values() if tensor.ndim}
        if number >= len(parameters) or shapes - {tuple(parameters[number].shape)}:
            raise InputError(f"the optimiser state of parameter {number} does not fit this model: it is another run's")
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], rules: Rules = INTENDED) -> nn.Module:
    """Put `weights` into `model`. Raises InputError naming the keys that do not fit.

    rules.lenient_loading: what does not fit is left out in silence and stays as it was (ledger B10).
    """
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as fault:  # tensors of another shape, which torch refuses in any case
        raise InputError(f"weights do not fit the model: {str(fault).splitlines()[-1].strip()}") from fault
    if (missing or unexpected) and not rules.lenient_loading:
        named = "; ".join(f"{what}: {', '.join(keys[:3])}{' ...' if len(keys) > 3 else ''}"
                          for what, keys in (("missing", missing), ("not of this model", unexpected)) if keys)
        raise InputError(f"weights do not fit the model ({len(missing)} missing, {len(unexpected)} unknown; {named}): "
                         "they are those of another model, or wrapped under other names")
    return model


def _flush(*paths: Path) -> None:
    """Wait until files or folders are on the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
