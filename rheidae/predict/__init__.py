"""From a file of moments to a file of mixed ones: ``rheidae predict --model RUN --data SNAPSHOT --out FILE``."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheidae.predict.stream import predict_file

__all__ = ["predict_file"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rheidae.predict.stream"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
