"""Raw simulation files to training sets: ``rheidae preprocess --config config/pre_process.yaml``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheidae.preprocess.pipeline import Written, preprocess

__all__ = ["Written", "preprocess"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rheidae.preprocess.pipeline"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
