"""Pseudo-spectral simulations of the fast flavor instability: what the moments are after it has settled.

    from rheidae import simulate
    result = simulate(F_init)

or, for many states, ``python -m rheidae.simulate --config config/simulate.yaml``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rheidae.simulate.simulation import Simulation, simulate

__all__ = ["Simulation", "simulate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module("rheidae.simulate.simulation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
