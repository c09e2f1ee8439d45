"""How far neighbours of the asymptotic scheme are from it: an error scale that no simulation enters."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.mixing import _variation_kernels as kernels
from rheidae.mixing.asymptotic import tables_of
from rheidae.system.threads import share_rows

ORDER, LATITUDES = 17, 32

VARIATIONS = ("shape", "rise", "amount")
"""Kinds of variation of the survival probability: how steep it is, how far it falls on the smaller side, and, where the
crossing is shallow, how much changes at all."""


def variations(F: fourflux.Float, *, order: int = ORDER, threads: int | None = None) -> NDArray[np.float64]:
    """Sizes of small variations of the asymptotic scheme, per unit of the parameter that is varied.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, float64, any one unit; not checked.
    order, threads : int, optional
        Order of the Lebedev rule; threads to share the rows among.

    Returns
    -------
    ndarray, shape (n, 3, 3, 2, 2)
        By pair of flavors (`rheidae.mixing.asymptotic.PAIRS`), kind (`VARIATIONS`), neutrinos and antineutrinos, flux
        and density: what the first of the pair loses, over the total density; of the flux the rms of the components.
        Where mu and tau are alike the first two pairs are, and the third is zero. Zero without a crossing.
    """
    sizes, lost = np.empty((len(F), 3, kernels.KINDS, 2, 2)), np.empty((len(F), 2, 4))
    rules = variation_rules(order)
    share_rows(lambda start, stop: kernels.variation_rows(F, *rules, sizes, lost, start, stop), len(F), threads)
    return sizes


def variation_rules(order: int = ORDER) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Nodes of the sphere and of a beam."""
    return tables_of(order, LATITUDES)
