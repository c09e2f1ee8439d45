"""The growth rate alone, exact or quick."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from rheidae.cells import Cells
from rheidae.linear.distributions import Array
from rheidae.linear.regression import fast_growth_rate
from rheidae.linear.stability import ORDER, fastest_mode


def growth_rate(F: ArrayLike, *, method: str = "exact", order: int = ORDER, invalid: str = "raise") -> Array:
    """Growth rate of the fast flavor instability for Minerbo distributions.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4) or (..., 24)
        Four-fluxes, 1/cm^3.
    method : {"exact", "fast"}
        "exact": linear stability, see `fastest_mode`; about 2 ms a state, 5 with beams. "fast": a regression of the
        exact rate on rotation invariants (`rheidae.linear.regression`), for millions of rows; about a microsecond a
        row, 8 with beams.
    order : int
        Lebedev order of the quadrature, for "exact"; distributions with a weak crossing need more.
    invalid : {"raise", "pass"}
        What becomes of cells that are not physical: an error that names row and reason, or NaN for these cells alone.

    Returns
    -------
    ndarray, shape (...)
        1/s. Of the three pairs of flavors the largest counts. 0 in stable cells and in vacuum.

    Raises
    ------
    FourFluxError
        If `F` has another shape, or a row is not physical.
    ValueError
        If `method` or `invalid` is unknown.
    """
    if method not in ("exact", "fast"):
        raise ValueError(f"method={method!r} is unknown; expected 'exact' or 'fast'")
    cells = Cells(F, "F", invalid)
    out = np.where(cells.invalid, np.nan, 0.0)
    filled = ~(cells.vacuum | cells.invalid)
    states = cells.rows[filled].astype(np.float64)
    out[filled] = fast_growth_rate(states) if method == "fast" else fastest_mode(states, order=order).growth_rate
    return out.reshape(cells.shape)
