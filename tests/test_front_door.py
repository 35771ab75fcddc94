"""`import cxrclip` costs nothing, and its names are there when they are asked for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import cxrclip

HEAVY = ("torch", "transformers", "torchvision", "pandas", "datasets", "sklearn")
LIGHT = ("cxrclip", "cxrclip.official", "cxrclip.data", "cxrclip.hub")
LOADED = """
import json, sys, time
start = time.perf_counter()
import {module}
print(json.dumps([time.perf_counter() - start, sorted(sys.modules)]))
"""


def imported(module):
    """Seconds that the import takes in a process of its own, and the names of the modules then loaded."""
    call = subprocess.run([sys.executable, "-c", LOADED.format(module=module)], capture_output=True, text=True,
                          check=True, cwd=Path(cxrclip.__file__).parents[1])
    return json.loads(call.stdout)


@pytest.mark.parametrize("module", LIGHT)
def test_a_package_alone_imports_no_library(module):
    assert not set(HEAVY) & set(imported(module)[1])


def test_import_is_fast():
    assert min(imported("cxrclip")[0] for _ in range(3)) < 0.3


def test_every_name_is_there():
    assert cxrclip.CXRCLIPModel.__module__ == "cxrclip.encoders"
    assert cxrclip.CXRCLIPLoss.__module__ == "cxrclip.losses"
    assert cxrclip.PromptBank.__module__ == "cxrclip.prompts"
    assert cxrclip.official.load_official is cxrclip.load_official
    assert cxrclip.load_official.__module__ == "cxrclip.official.weights"
    for name in ("Experiment", "Workbench", "pretrain", "evaluate"):
        assert getattr(cxrclip, name).__module__.startswith("cxrclip.experiments"), name
    assert set(cxrclip.__all__) <= set(dir(cxrclip))
    assert all(hasattr(cxrclip, name) for name in cxrclip.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'cxrclip' has no attribute 'CLIP'"):
        cxrclip.CLIP  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'cxrclip.official' has no attribute 'CLIP'"):
        cxrclip.official.CLIP  # noqa: B018
    with pytest.raises(ImportError):
        from cxrclip import CLIP  # noqa: F401


def test_submodules_are_imported_as_ever():
    from cxrclip import losses

    assert losses.CXRCLIPLoss is cxrclip.CXRCLIPLoss
