"""Take a trained model out of Python: one file that holds the whole way from initial to final four-fluxes.

`export_regressor` writes ONNX, ``torch.export`` (pt2) or TorchScript, `export_scheme` an analytic scheme,
`load_exported` reads any of them, and ``python -m rheidae.export`` does so for run folders, schemes and the model that
ships.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rheidae.system.lazy import lazy

if TYPE_CHECKING:
    from rheidae.export.model import export_regressor, export_run, export_scheme
    from rheidae.export.opened import Exported, load_exported

__all__ = ["Exported", "export_regressor", "export_run", "export_scheme", "load_exported"]
_OPENED, _MODEL = "rheidae.export.opened", "rheidae.export.model"
__getattr__, __dir__ = lazy(__name__, {name: _OPENED if "xported" in name else _MODEL for name in __all__})
