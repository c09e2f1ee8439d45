"""Take a trained model out of Python: one file that holds the whole way from initial to final four-fluxes.

`export_regressor` writes ONNX, ``torch.export`` (pt2) or TorchScript, `export_scheme` an analytic scheme,
`load_exported` reads any of them, and ``python -m rheidae.export`` does so for run folders, schemes and the model that
ships.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheidae.export.model import export_regressor, export_run, export_scheme
    from rheidae.export.opened import Exported, load_exported

__all__ = ["Exported", "export_regressor", "export_run", "export_scheme", "load_exported"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        module = "opened" if name in ("Exported", "load_exported") else "model"
        return getattr(importlib.import_module(f"rheidae.export.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
