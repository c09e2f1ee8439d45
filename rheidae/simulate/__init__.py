"""Pseudo-spectral simulations of the fast flavor instability: what the moments are after it has settled.

    from rheidae import simulate
    result = simulate(F_init)

or, for many states, ``python -m rheidae.simulate --config config/simulate.yaml``.
"""

from rheidae.simulate.simulation import Simulation, simulate

__all__ = ["Simulation", "simulate"]
