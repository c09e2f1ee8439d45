"""The growth rate alone, exact or quick."""

from __future__ import annotations

from numpy.typing import ArrayLike

from rheidae.linear.distributions import Array
from rheidae.linear.regression import fast_growth_rate
from rheidae.linear.stability import ORDER, fastest_mode


def growth_rate(F: ArrayLike, *, method: str = "exact", order: int = ORDER) -> Array:
    """Growth rate of the fast flavor instability for Minerbo distributions.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4)
        Four-fluxes, 1/cm^3.
    method : {"exact", "fast"}
        "exact": linear stability, see `fastest_mode`; about 2 ms a state. "fast": a regression of the exact rate on
        rotation invariants (`rheidae.linear.regression`), for millions of rows; under a microsecond a row.
    order : int
        Lebedev order of the quadrature, for "exact"; distributions with a weak crossing need more.

    Returns
    -------
    ndarray, shape (...)
        1/s. Of the three pairs of flavors the largest counts.

    Raises
    ------
    FourFluxError
        If `F` has another shape, or a row is not physical or holds no neutrinos.
    ValueError
        If `method` is unknown.
    """
    if method == "exact":
        return fastest_mode(F, order=order).growth_rate
    if method == "fast":
        return fast_growth_rate(F)
    raise ValueError(f"method={method!r} is unknown; expected 'exact' or 'fast'")
