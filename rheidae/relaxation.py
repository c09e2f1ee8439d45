"""Relaxation towards the mixed state: how a code that takes time steps applies an answer of this package.

The instability grows in nanoseconds, a time step takes microseconds; where a code wants a finite rate all the same,
the Bhatnagar-Gross-Krook form ``dF/dt = -(F - F_mixed) rate`` has one (Nagakura, Johns and Zaizen, arXiv:2312.16285).
Akaho, Nagakura and Yamada (arXiv:2506.07017) compare ways to integrate it; with mixed state and rate held over the step
it has a solution in closed form, `relax`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Float = NDArray[np.float64]


def relax(F: ArrayLike, F_mixed: ArrayLike, rate: ArrayLike, dt: float) -> Float:
    """Four-fluxes after a time step under ``dF/dt = -(F - F_mixed) rate``, `F_mixed` and `rate` held fixed.

    Parameters
    ----------
    F, F_mixed : array_like, shape (..., 6, 4)
        Present and mixed four-fluxes, one unit. Any other moments of one linear law will do, if the axes of `rate` come
        first.
    rate : array_like, shape (...)
        Relaxation rate in 1/s, not negative; such as the growth rate of the instability (`rheidae.linear.growth_rate`).
        Infinite: the mixed state, unless `dt` is 0. NaN, as of a cell that is not physical: NaN, of that cell alone.
    dt : float
        Time step in s, not negative; infinite: the mixed state, where there is a rate.

    Returns
    -------
    ndarray, shape (..., 6, 4)
        ``F + (F_mixed - F) (1 - exp(-rate dt))``: exact, stable for any step, between both states, so that what they
        have in common (conserved sums, physicality) holds.

    Raises
    ------
    ValueError
        If a rate or the step is negative, or the step is NaN.
    """
    start, end, rates = (np.asarray(array, dtype=np.float64) for array in (F, F_mixed, rate))
    if (rates < 0).any() or not dt >= 0:
        raise ValueError("rate and dt must not be negative, nor dt NaN")
    if dt > 0:  # also a step without an end, in which cells without a rate stay as they are
        share = -np.expm1(-np.multiply(rates, dt, out=np.zeros(rates.shape), where=rates != 0))
    else:
        share = np.where(np.isnan(rates), rates, 0.0)
    return start + (end - start) * share.reshape(share.shape + (1,) * (start.ndim - share.ndim))


def source(F: ArrayLike, F_mixed: ArrayLike, rate: ArrayLike) -> Float:
    """Source term ``-(F - F_mixed) rate``, for codes that integrate it themselves; arguments as of `relax`."""
    start, end, rates = (np.asarray(array, dtype=np.float64) for array in (F, F_mixed, rate))
    return (end - start) * rates.reshape(rates.shape + (1,) * (start.ndim - rates.ndim))
