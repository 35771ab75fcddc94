"""Training states on disk: tensors as safetensors, the rest as JSON. Nothing is pickled, no path is stored."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from cxrclip.errors import InputError

TENSORS, INFO = "tensors.safetensors", "info.json"


def save_state(folder: str | Path, tensors: Mapping[str, Tensor], info: Mapping) -> Path:
    """Write folder/tensors.safetensors and folder/info.json; after a crash the folder is the old or the new one.

    info: what JSON can hold. Raises InputError if the folder cannot be written.
    """
    folder = Path(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            save_file({name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}, draft / TENSORS)
            (draft / INFO).write_text(json.dumps(info, indent=1))
            for file in draft.iterdir():
                _flush(file)
            _swap(draft, folder)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except (OSError, SafetensorError) as fault:
        raise InputError(f"{folder}: cannot be written ({fault}): check the folder and the free space") from fault
    return folder
