"""What the released code did: its weights, its behaviours, and what each of them costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cxrclip.official.weights import load_official as load_official


def __getattr__(name: str) -> Any:
    """`load_official`, imported when it is first asked for: it needs torch and transformers."""
    if name != "load_official":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cxrclip.official.weights import load_official

    return load_official
