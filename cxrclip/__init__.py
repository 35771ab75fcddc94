"""CXR-CLIP (You et al., MICCAI 2023) as an executable paper.

The names below are imported when they are first used, so that `import cxrclip` itself takes no time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrclip.encoders import CXRCLIPModel
    from cxrclip.experiments import Experiment, Workbench, evaluate, pretrain
    from cxrclip.losses import CXRCLIPLoss
    from cxrclip.official.weights import load_official
    from cxrclip.prompts import PromptBank

__version__ = "0.1.0"
__all__ = ["CXRCLIPLoss", "CXRCLIPModel", "Experiment", "PromptBank", "Workbench", "__version__", "evaluate",
           "load_official", "pretrain"]
_MODULES = {
    "CXRCLIPLoss": "losses", "CXRCLIPModel": "encoders", "PromptBank": "prompts", "load_official": "official.weights",
    "Experiment": "experiments", "Workbench": "experiments", "evaluate": "experiments", "pretrain": "experiments",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
