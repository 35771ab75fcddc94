"""Training states and embeddings on disk: tensors as safetensors, the rest as JSON. Nothing is pickled or executed."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cxrclip.data.files import atomic_file, flush
from cxrclip.errors import InputError
from cxrclip.evaluation import ImageEmbeddings

INFO = "info.json"
MODEL, OPTIMIZER = "model.", "optimizer."  # prefixes of tensor names in a state


class FolderStore:
    """Checkpoints of one run in a folder, by name (training.Store)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, name: str, model: nn.Module, optimizer: AdamW, info: Mapping[str, object]) -> None:
        """Write weights, AdamW's moments and `info`, whole or not at all."""
        weights = {f"{MODEL}{key}": tensor for key, tensor in model.state_dict().items()}
        save_state(self.folder / name, weights | optimizer_tensors(optimizer), info)

    def load(self, name: str, model: nn.Module, optimizer: AdamW | None = None) -> dict | None:
        """Put the stored weights (and moments) back and return `info`; None where nothing is stored."""
        if not (self.folder / name).is_dir():
            return None
        tensors, info = load_state(self.folder / name)
        model.load_state_dict({key.removeprefix(MODEL): tensor for key, tensor in tensors.items()
                               if key.startswith(MODEL)})
        if optimizer is not None:
            load_optimizer_tensors(optimizer, tensors)
        return info

    def finished_steps(self) -> int:
        """Steps after which the stored state was written; 0 without one."""
        return read_info(self.folder / "state")["step"] if (self.folder / "state").is_dir() else 0


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
        flush(target / name, target / f"{INFO}.draft")
        os.replace(target / f"{INFO}.draft", target / INFO)
        if target is draft:
            os.rename(draft, folder)
        for old in folder.glob("tensors-*.safetensors"):
            if old.name != name:
                old.unlink()
    except (OSError, SafetensorError) as fault:
        raise InputError(f"{folder}: the state cannot be written ({fault}): check the folder and the space") from fault
    return folder


def read_info(folder: str | Path) -> dict:
    """What save_state stored beside the tensors, and the name of their file. InputError if missing or damaged."""
    file = Path(folder) / INFO
    try:
        info = json.loads(file.read_text())
        if Path(info["tensors"]).name != info["tensors"]:
            raise ValueError(f"{info['tensors']!r} is not a file of this folder")
        return info
    except FileNotFoundError as fault:
        raise InputError(f"{file}: no such file: start anew or choose another folder") from fault
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise _damaged(file, fault) from fault


def load_state(folder: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The (tensors, info) that save_state wrote, tensors on the CPU; nothing is ever executed.

    Raises InputError naming the file that is missing, damaged or not from save_state.
    """
    info = read_info(folder)
    file = Path(folder) / info.pop("tensors")
    try:
        return load_file(file), info
    except FileNotFoundError as fault:
        raise InputError(f"{file}: no such file: start anew or choose another folder") from fault
    except (OSError, ValueError, SafetensorError) as fault:
        raise _damaged(file, fault) from fault


def _damaged(file: Path, fault: Exception) -> InputError:
    reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
    return InputError(f"{file}: damaged or no training state ({reason}): delete {file.parent} to start anew")


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


# ---- embeddings -----------------------------------------------------------------------------------------------------


def save_embeddings(embeddings: ImageEmbeddings, path: str | Path) -> Path:
    """Store embeddings as .npz, whole or not at all."""
    path = Path(path)
    with atomic_file(path) as draft:
        np.savez(draft, **asdict(embeddings))
    return path


def load_embeddings(path: str | Path) -> ImageEmbeddings:
    """Read what save_embeddings stored; never executes anything. Raises InputError for a missing or damaged file."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return ImageEmbeddings(**{name: stored[name] for name in ImageEmbeddings.__dataclass_fields__})
    except FileNotFoundError as fault:
        raise InputError(f"{path}: no such embeddings: embed the studies first") from fault
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as fault:
        raise InputError(f"{path}: damaged embeddings ({type(fault).__name__}): delete it and embed again") from fault
