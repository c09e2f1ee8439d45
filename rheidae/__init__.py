"""Rheidae: sub-grid models of the neutrino fast flavor instability.

Box3D and other mixing schemes on moments (`box3d_flux`, `mix`), training sets from particle-in-cell simulations
(`load_dataset`, ``rheidae preprocess``), networks that learn from them, of mixing or of what Box3D leaves unexplained
(`FluxRegressor`), one that is ready (`pretrained`), and what trainings leave behind (`load_run`).
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

from rheidae.system.lazy import lazy

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rheidae.datasets import load_dataset
    from rheidae.estimator.regressor import FluxRegressor
    from rheidae.mixing.box3d import Box3D, box3d, box3d_flux
    from rheidae.mixing.schemes import mix
    from rheidae.pretrained import pretrained
    from rheidae.runs.folder import load_run
    from rheidae.simulate import simulate

__all__ = [
    "Box3D", "FluxRegressor", "__version__", "box3d", "box3d_flux", "load_dataset", "load_run", "mix",
    "pretrained", "simulate",
]  # fmt: skip

# Numba, torch and matplotlib take seconds to import: each name is loaded when first asked for.
_HOME = {
    "FluxRegressor": "rheidae.estimator.regressor",
    "Box3D": "rheidae.mixing.box3d",
    "box3d": "rheidae.mixing.box3d",
    "box3d_flux": "rheidae.mixing.box3d",
    "mix": "rheidae.mixing.schemes",
    "load_dataset": "rheidae.datasets",
    "load_run": "rheidae.runs.folder",
}


__getattr__ = lazy(__name__, _HOME)[0]


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """The package as a module whose `simulate` and `pretrained` are the functions of these names.

    It has folders of these names too, for ``python -m rheidae.simulate``, and Python puts a folder in the place of the
    name when it imports it. Here that has no effect; ``from rheidae.simulate import ...`` reaches the folder as always.
    """

    @property
    def simulate(self) -> Any:
        """`rheidae.simulate.simulate`."""
        return importlib.import_module("rheidae.simulate").simulate

    @simulate.setter
    def simulate(self, folder: types.ModuleType) -> None:
        pass

    @property
    def pretrained(self) -> Any:
        """`rheidae.pretrained.pretrained`."""
        return importlib.import_module("rheidae.pretrained").pretrained

    @pretrained.setter
    def pretrained(self, folder: types.ModuleType) -> None:
        pass


sys.modules[__name__].__class__ = _Package
