"""How many studies fit into memory at once: the chunk of cached gradients (training.cached_backward), measured."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn

from cxrclip import training
from cxrclip.encoders import CXRCLIPModel
from cxrclip.errors import InputError
from cxrclip.experiments.experiment import Experiment
from cxrclip.losses import processes

USABLE = 0.6  # share of the free memory for what is kept; the backward pass works in the rest
GIB = 2 ** 30


def fitting_chunk(experiment: Experiment, model: CXRCLIPModel, accelerator: Accelerator) -> int:
    """Studies that each process embeds at once: its whole share of the batch, or equal chunks of it that fit.

    What one study keeps is measured with texts of max_tokens tokens, the most that can come. All processes take the
    smallest chunk among them. Raises InputError where not even one study fits.
    """
    model.to(accelerator.device)  # type: ignore[arg-type]
    share = experiment.batch_size // processes()
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    free = free_bytes(accelerator.device) - 4 * weights  # gradients, AdamW's two moments, buckets of the exchange
    each = bytes_of_a_study(experiment, model, accelerator)
    fits = torch.tensor(int(USABLE * free / each), device=accelerator.device)
    if processes() > 1:
        dist.all_reduce(fits, dist.ReduceOp.MIN)
    if fits < 1:
        raise InputError(f"{experiment.name}: {free / GIB:.2f} GiB of memory are free beside the weights, one study "
                         f"needs {each / USABLE / GIB:.2f}: lower image_size or max_tokens, or take a larger device")
    return math.ceil(share / math.ceil(share / int(fits)))


def bytes_of_a_study(experiment: Experiment, model: CXRCLIPModel, accelerator: Accelerator) -> int:
    """Bytes kept between the passes for one study more: `views` images and `texts` texts of max_tokens tokens."""
    sizes = []
    with torch.random.fork_rng(), accelerator.autocast():
        probe = copy.deepcopy(model).train()  # statistics of the model itself stay as they are
        for studies in (2, 3):
            pixels = torch.zeros(experiment.views, studies, 3, experiment.image_size, experiment.image_size)
            tokens = torch.ones(experiment.texts, studies, experiment.max_tokens, dtype=torch.long)
            batch = dict(zip(training.INPUTS, (pixels, tokens, tokens), strict=True))
            with kept_bytes(probe) as kept:
                training.embed(probe, training.on_device(batch, accelerator.device))
            sizes.append(kept())
    return sizes[1] - sizes[0]


@contextmanager
def kept_bytes(model: nn.Module) -> Iterator[Callable[[], int]]:
    """Yield a function that counts the bytes which autograd has kept so far, each storage once, without the weights."""
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors themselves, so that no address is used twice

    def keep(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(tensor.untyped_storage().nbytes() for place, tensor in kept.items() if place not in weights)


def free_bytes(device: torch.device) -> int:
    """Memory of the device that this process may still take; on a CPU its share of what the machine has left."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    return psutil.virtual_memory().available // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
