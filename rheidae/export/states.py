"""States that every export is compared with the estimator on."""

from __future__ import annotations

from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.datasets import EMU
from rheidae.system.h5 import dataset, open_h5

MERGER = 1e33
"""1/cm^3, the density that the made states are scaled to."""


@cache
def sample_states() -> NDArray[np.float64]:
    """Initial states ``(576, 24)`` of the simulations that ship with the package, in 1/cm^3."""
    states = []
    for name in EMU:
        with (
            resources.as_file(resources.files("rheidae.datasets") / "data" / name) as path,
            open_h5(path) as file,
        ):
            states.append(fourflux.from_emu(dataset(file, "F4_initial(1|ccm)")[()].astype(np.float64)).reshape(-1, 24))
    return np.concatenate(states)


def made_states() -> NDArray[np.float64]:
    """States ``(n, 24)`` that no simulation has, in 1/cm^3, and the sample in other units.

    Among them: isotropic ones and others without a crossing, ones with empty species, narrow beams, a single
    species, unequal mu and tau; all in units from 1e-50 to 1e50.
    """
    rng = np.random.default_rng(20)
    F = np.zeros((60, 6, 4))
    F[..., 3] = rng.uniform(0.1, 1.0, (60, 6))
    direction = rng.normal(size=(60, 6, 3))
    direction /= np.linalg.norm(direction, axis=2, keepdims=True)
    factor = rng.uniform(0.0, 0.8, (60, 6))
    factor[:10] = 0.0
    factor[10:20] = 1 - 10 ** rng.uniform(-12, -1, (10, 6))
    F[..., :3] = (factor * F[..., 3])[..., None] * direction
    F[20:30] *= rng.integers(0, 2, (10, 6))[:, :, None]
    F[20:30, 0, 3] += 0.1
    # More nu_e in every direction than anything else: no crossing.
    F[30:35, 0] = [0.0, 0.0, 0.0, 20.0]
    F[35, 1:] = 0.0
    F[:40, 2], F[:40, 5] = F[:40, 1], F[:40, 4]
    # The heavy species far apart: the change is shortened so that the emptier one stays physical.
    F[40:50, 2] *= 1e-3
    F[40:50, 5] *= 1e-3
    made = F.reshape(-1, 24)
    sample = sample_states()[::24]
    return np.concatenate([MERGER * made, made, 1e-50 * made, 1e50 * made, 1e-33 * sample, 1e10 * sample])
