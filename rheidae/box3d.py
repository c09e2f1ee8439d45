"""Box3D: the four-fluxes that the fast flavor instability leaves behind, from those before it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numba
import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import _box3d_kernels as kernels
from rheidae import fourflux
from rheidae.quadrature import lebedev

# Below this a thread costs more to hand its rows to than it saves.
_ROWS_PER_THREAD = 1024


@cache
def _pairs(order: int) -> tuple[NDArray[np.float64], ...]:
    return kernels.antipodal_pairs(*lebedev(order))


def box3d_flux(
    F_init: ArrayLike,
    *,
    order: int = 31,
    crossing: str = "sharp",
    mu_fraction: float | None = None,
    threads: int | None = None,
) -> fourflux.Float:
    r"""Final four-fluxes of the fast flavor instability by the Box3D scheme.

    Parameters
    ----------
    F_init : array_like, shape (n, 6, 4)
        Initial four-fluxes: species (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), then (x, y, z, t).
        Any one unit, usually 1/cm^3; any contiguous or strided real array.
    order : int
        Order of the Lebedev rule, one of `rheidae.quadrature.LEBEDEV_ORDERS`. Cost grows with its square.
        The error against a converged quadrature is dominated by the jump of the survival probability, and
        is 6e-4 of the total density (95th percentile) at the default.
    crossing : {"sharp"}
        How the jump is treated: "sharp" counts each node to the side on which it lies.
    mu_fraction : float, optional
        None (default): mu and tau take equal parts of the change, so that an initial difference between
        them survives. A number in [0, 1]: mu gets that fraction of the final heavy total, tau the rest,
        except in states without a crossing, which stay as they are.
    threads : int, optional
        Threads to share the rows among; the result does not depend on it. Default: Numba's number
        (``NUMBA_NUM_THREADS``, else the processors that the process may use).

    Returns
    -------
    ndarray, shape (n, 6, 4)
        In the unit of the input; float32 for float32 input, else float64. A state without a crossing comes
        back unchanged.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical: not finite, ``N < 0`` or ``|F| > N``.
    ValueError
        If `order`, `crossing`, `mu_fraction` or `threads` is not one of the allowed values.

    Notes
    -----
    Richers, Froustey, Ghosh, Foucart and Gomez, arXiv:2409.04405, section III. Each species is given its
    Minerbo distribution ``g(n)``; ``x`` is the mean of mu and tau. With
    ``G = (g_e - gbar_e) - (g_x - gbar_x)`` and ``I`` the integrals of ``|G|`` over its positive and its
    negative side, the survival probability is ``P = 1/3`` on the side with the smaller integral and
    ``P = 1 - (2/3) I_small/I_large`` on the other. The change is applied in conservative form,

    .. math:: D = \int (1 - P)(g_e - g_x)\,(n, 1)\,d\Omega, \quad
              F_e' = F_e - D, \quad F_{\mu,\tau}' = F_{\mu,\tau} + D/2,

    likewise for antineutrinos, so that the flavor sum of every component and the lepton number of every flavor
    are conserved to rounding whatever the quadrature.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import box3d_flux
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4  # electron antineutrinos stream along z
    >>> box3d_flux(F)[0, :, 3].round(3)
    array([0.616, 0.492, 0.492, 0.516, 0.492, 0.492])
    """
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    if crossing != "sharp":
        raise ValueError(f"crossing={crossing!r} is not known; it must be 'sharp'")
    if mu_fraction is not None and not 0 <= mu_fraction <= 1:
        raise ValueError(f"mu_fraction={mu_fraction!r} is outside [0, 1]")
    nodes = _pairs(order)
    out = np.empty_like(F)

    def rows(start: int, stop: int) -> None:
        kernels.sharp_rows(F, *nodes, out, start, stop)
        if mu_fraction is not None:
            kernels.divide_heavy(F, out, mu_fraction, start, stop)

    share_rows(rows, len(F), threads)
    return out


def share_rows(work, rows: int, threads: int | None) -> None:  # type: ignore[no-untyped-def]
    """Call ``work(start, stop)`` so that all `rows` are covered, from as many threads as pay off.

    A pool of Python threads around kernels that release the interpreter lock, and not ``prange``: Numba's own
    threads do not survive a fork, and its parallel kernels take seconds to load.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r} must be at least 1")
    available: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    count = min(threads or available, max(1, rows // _ROWS_PER_THREAD))
    if count == 1:
        work(0, rows)
        return
    bounds = np.linspace(0, rows, count + 1).astype(int).tolist()
    with ThreadPoolExecutor(count) as pool:
        # list() so that an exception in a thread is raised here.
        list(pool.map(work, bounds[:-1], bounds[1:]))
