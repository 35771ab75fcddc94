"""Training states and embeddings on disk: tensors as safetensors, arrays as npz. Nothing is pickled or executed."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from cxrclip.data.files import atomic_file
from cxrclip.errors import InputError
from cxrclip.evaluation import ImageEmbeddings

INFO = "info"  # of a file's metadata: what is no tensor, as JSON
MODEL, OPTIMIZER = "model.", "optimizer."  # prefixes of tensor names in a state


class FolderStore:
    """Checkpoints of one run in a folder, a file each (training.Store)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Where the checkpoint of a name is kept."""
        return self.folder / f"{name}.safetensors"

    def save(self, name: str, model: nn.Module, optimizer: AdamW, info: Mapping[str, object]) -> None:
        """Write weights, AdamW's moments and `info`, whole or not at all."""
        weights = {f"{MODEL}{key}": tensor for key, tensor in model.state_dict().items()}
        save_state(self.path(name), weights | optimizer_tensors(optimizer), info)

    def load(self, name: str, model: nn.Module, optimizer: AdamW | None = None) -> dict | None:
        """Put the stored weights (and moments) back and return `info`; None where nothing is stored."""
        if not self.path(name).is_file():
            return None
        tensors, info = load_state(self.path(name))
        model.load_state_dict({key.removeprefix(MODEL): tensor for key, tensor in tensors.items()
                               if key.startswith(MODEL)})
        if optimizer is not None:
            load_optimizer_tensors(optimizer, tensors)
        return info

    def finished_steps(self) -> int:
        """Steps after which the stored state was written; 0 without one."""
        return load_info(self.path("state"))["step"] if self.path("state").is_file() else 0


def save_state(path: str | Path, tensors: Mapping[str, Tensor], info: Mapping) -> Path:
    """Write tensors and `info`, what JSON can hold, into one file; InputError if it cannot be written.

    Whatever interrupts it, `path` holds the whole old state or the whole new one.
    """
    path = Path(path)
    try:
        with atomic_file(path) as draft:
            save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, draft,
                      {INFO: json.dumps(info)})
    except SafetensorError as fault:  # what it raises for a full disk
        raise InputError(f"{path}: cannot be written ({fault}): free space or choose another folder") from fault
    return path


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """The (tensors, info) that save_state wrote, tensors on the CPU; nothing is ever executed.

    Raises InputError naming a file that is missing, damaged or not from save_state.
    """
    info = load_info(path)
    with _readable(path):
        return load_file(path), info


def load_info(path: str | Path) -> dict:
    """What save_state wrote beside the tensors, which are not read. Raises as load_state does."""
    with _readable(path), safe_open(path, "pt") as file:
        return dict(json.loads(file.metadata()[INFO]))


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """InputError in place of what a missing or damaged file raises."""
    try:
        yield
    except FileNotFoundError as fault:
        raise InputError(f"{path}: no such file: start anew or choose another folder") from fault
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as fault:
        reason = str(fault).splitlines()[0] if str(fault) else type(fault).__name__
        raise InputError(f"{path}: damaged or no training state ({reason}): delete it to start anew") from fault


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
            state.setdefault(int(number), {})[name] = tensor
    for number, slots in state.items():
        shapes = {tuple(tensor.shape) for tensor in slots.values() if tensor.ndim}
        if number >= len(parameters) or shapes - {tuple(parameters[number].shape)}:
            raise InputError(f"the optimiser state of parameter {number} does not fit this model: it is another run's")
        # A fused AdamW walks weights and moments as they lie in memory: both need one order (channels_last).
        state[number] = {name: torch.empty_like(parameters[number], dtype=tensor.dtype).copy_(tensor) if tensor.ndim
                         else tensor.clone() for name, tensor in slots.items()}
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
    except (OSError, ValueError, LookupError, EOFError, RuntimeError, zlib.error, zipfile.BadZipFile) as fault:
        raise InputError(f"{path}: damaged embeddings ({type(fault).__name__}): delete it and embed again") from fault
