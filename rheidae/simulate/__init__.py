"""Pseudo-spectral simulations of the fast flavor instability: what the moments are after it has settled.

    from rheidae import simulate
    result = simulate(F_init)

or, for many states, ``python -m rheidae.simulate --config config/simulate.yaml``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rheidae.system.lazy import lazy

if TYPE_CHECKING:
    from rheidae.simulate.simulation import Simulation, simulate

__all__ = ["Simulation", "simulate"]
__getattr__, __dir__ = lazy(__name__, dict.fromkeys(__all__, "rheidae.simulate.simulation"))
