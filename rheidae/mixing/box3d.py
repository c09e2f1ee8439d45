"""Box3D: the four-fluxes that the fast flavor instability leaves behind, from those before it."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.cells import Cells
from rheidae.mixing import _box3d_kernels as kernels
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.quadrature import lebedev
from rheidae.system.threads import share_rows

ORDERS = {"shared": 23, "sharp": 31}
"""Ways to treat the crossing, and the order of the Lebedev rule that each takes by default."""


class Box3D(NamedTuple):
    """What `box3d` knows about each of n states.

    Attributes
    ----------
    F_box : ndarray, shape (n, 6, 4)
        Final four-fluxes, in the unit of the input.
    survival_probability : ndarray, shape (n, 2)
        P of electron neutrinos where ``G > 0`` and where ``G < 0``; 1 on both sides without a crossing.
    I_plus, I_minus : ndarray, shape (n,)
        Integrals of ``|G|`` over directions with ``G > 0`` and ``G < 0``, in the unit of the input.
    has_crossing : ndarray of bool, shape (n,)
        Whether both integrals are positive, by more than the rounding of G (1e-14 of the total density).
    """

    F_box: fourflux.Float
    survival_probability: NDArray[np.float64]
    I_plus: NDArray[np.float64]
    I_minus: NDArray[np.float64]
    has_crossing: NDArray[np.bool_]


def box3d_flux(
    F_init: ArrayLike,
    *,
    order: int | None = None,
    crossing: str = "shared",
    mu_fraction: float | None = None,
    physical: bool = False,
    threads: int | None = None,
    invalid: str = "raise",
) -> Any:
    r"""Final four-fluxes of the fast flavor instability by the Box3D scheme.

    Parameters
    ----------
    F_init : array_like, shape (..., 6, 4) or (..., 24)
        Initial four-fluxes: species (nu_e, nu_mu, nu_tau, nubar_e, nubar_mu, nubar_tau), then (x, y, z, t).
        Any one unit, usually 1/cm^3; any contiguous or strided real array, a data frame, or a DataArray of xarray.
    order : int, optional
        Order of the Lebedev rule, one of `rheidae.mixing.quadrature.LEBEDEV_ORDERS`. Cost grows with its square.
        Default: 23 where the crossing is shared, 31 where it is sharp, which take about the same time.
    crossing : {"shared", "sharp"}
        How the jump of the survival probability at ``G = 0`` is treated. "shared" divides the weight of a node beside
        the crossing between both sides by its distance to it, and takes what is known exactly, integrals over the whole
        sphere, from the four-fluxes; its nodes turn with the state. "sharp", the published formula, counts each node to
        the side on which it lies; they are at rest. On states with random flux directions (``pytest
        benchmarks/test_box3d.py``) the 95th percentile of the error is 1.4e-4 of the total density by default and 6e-4
        with the sharp crossing. A crossing so shallow that its region is smaller than a node's cell is seen, or not, as
        the nodes happen to lie.
    mu_fraction : float, optional
        None (default): mu and tau take equal parts of the change, so that an initial difference between
        them survives. A number in [0, 1]: mu gets that fraction of the final heavy total, tau the rest,
        except in states without a crossing, which stay as they are.
    physical : bool
        Shorten the change of a row that would leave ``N >= 0`` and ``|F| <= N``, as models do
        (`rheidae.mixing.physical.keep_physical`): all six species by one factor, so that every sum stays. With
        `mu_fraction` the change is that division included. False (default): the answer of the scheme.
    threads : int, optional
        Threads to share the rows among; the result does not depend on it. Default: Numba's number
        (``NUMBA_NUM_THREADS``, else the processors that the process may use), but one in a worker process of joblib,
        Dask and the like.
    invalid : {"raise", "pass"}
        What becomes of cells that are not physical: an error that names row and reason, or NaN for these cells alone.
        Vacuum is no error, and stays as it is (see `rheidae.cells`).

    Returns
    -------
    ndarray, shape of the input
        In the unit of the input; float32 for float32 input, else float64; a data frame or DataArray where one came
        in. A state without a crossing comes back unchanged.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical: not finite, ``N < 0`` or ``|F| > N``.
    ValueError
        If `order`, `crossing`, `mu_fraction`, `threads` or `invalid` is not one of the allowed values.

    See Also
    --------
    box3d : The same with survival probabilities and integrals.
    rheidae.linear.growth_rate : Growth rate of the instability.

    Notes
    -----
    Richers, Froustey, Ghosh, Foucart and Gomez, arXiv:2409.04405, section III. Each species is given its
    Minerbo distribution ``g(n)``; that of ``x`` belongs to the mean four-flux of mu and tau. With
    ``G = (g_e - gbar_e) - (g_x - gbar_x)`` and ``I`` the integrals of ``|G|`` over its positive and its
    negative side, the survival probability is ``P = 1/3`` on the side with the smaller integral and
    ``P = 1 - (2/3) I_small/I_large`` on the other. The change is applied in conservative form,

    .. math:: D = \int (1 - P)(g_e - g_x)\,(n, 1)\,d\Omega, \quad
              F_e' = F_e - D, \quad F_{\mu,\tau}' = F_{\mu,\tau} + D/2,

    likewise for antineutrinos, so that the flavor sum of every component and the lepton number of every flavor
    are conserved to rounding whatever the quadrature.

    With equal mu and tau the exact answer is physical, being a mixture of the initial distributions. Where they
    differ, the mean of both is mixed and each takes half of the change: the conservation laws stay exact, but a
    species that starts much emptier than its partner can end up with ``N < 0`` or ``|F| > N``. Sharing the heavy
    part in another way would break the lepton number of mu or tau. Beams, flux factors above about 0.95, lie on a
    node or between them: with either crossing their answers may be unphysical, too. ``physical=True`` mends what is
    unphysical, not what is wrong: for beams take ``mix(F, "asymptotic")``. ``python -m benchmarks.quadrature box3d``
    says how often, and by how much.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import box3d_flux
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4  # electron antineutrinos stream along z
    >>> box3d_flux(F)[0, :, 3].round(2)
    array([0.62, 0.49, 0.49, 0.52, 0.49, 0.49])
    """
    cells = Cells(F_init, "F_init", invalid)
    if not physical:
        return cells.back(_mixed(cells.rows, order, crossing, mu_fraction, threads, sides=False)[0])
    F = np.ascontiguousarray(cells.rows, dtype=np.float64)
    out, _ = _mixed(F, order, crossing, mu_fraction, threads, sides=False)
    keep_physical(F, out, threads)
    return cells.back(out.astype(cells.rows.dtype, copy=False))


def box3d(
    F_init: ArrayLike,
    *,
    order: int | None = None,
    crossing: str = "shared",
    mu_fraction: float | None = None,
    threads: int | None = None,
) -> Box3D:
    """Box3D with its intermediate results: survival probabilities and the integrals of G.

    Parameters, errors and method are those of `box3d_flux`, for `F_init` of shape ``(n, 6, 4)`` alone.

    Returns
    -------
    Box3D
        Named tuple of ``F_box, survival_probability, I_plus, I_minus, has_crossing``.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import box3d
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> result = box3d(F)
    >>> print(result.has_crossing, result.survival_probability.round(2))
    [ True] [[0.51 0.33]]
    """
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    out, sides = _mixed(F, order, crossing, mu_fraction, threads, sides=True)
    I_plus, I_minus = (np.maximum(side, 0.0) for side in (sides[:, 0], sides[:, 1]))
    has_crossing: NDArray[np.bool_] = np.any(sides[:, 2:] < 1, axis=1)
    return Box3D(out, sides[:, 2:].copy(), I_plus, I_minus, has_crossing)


def box3d_survival(F: fourflux.Float, directions: NDArray[np.float64], **options: Any) -> NDArray[np.float64]:
    """``P(n)``, shape (m,), of a state (6, 4) in directions (3, m): one number on each side of the crossing.

    `options` are those of `box3d`.
    """
    from rheidae.mixing.sphere import lepton_number

    ((positive, negative),) = box3d(F[None], **options).survival_probability
    return np.where(lepton_number(F, directions) > 0, positive, negative)


@cache
def _pairs(order: int) -> NDArray[np.float64]:
    pairs: NDArray[np.float64] = kernels.antipodal_pairs(*lebedev(order))
    return pairs


def _mixed(
    F: fourflux.Float, order: int | None, crossing: str, mu_fraction: float | None, threads: int | None, sides: bool
) -> tuple[fourflux.Float, NDArray[np.float64]]:
    """Final states of physical ones, and ``(n, 4)`` (or no) ``I_plus, I_minus, P_plus, P_minus``."""
    if crossing not in ORDERS:
        raise ValueError(f"crossing={crossing!r} is not known; it must be 'shared' or 'sharp'")
    if mu_fraction is not None and not 0 <= mu_fraction <= 1:
        raise ValueError(f"mu_fraction={mu_fraction!r} is outside [0, 1]")
    nodes, shared = _pairs(ORDERS[crossing] if order is None else order), crossing == "shared"
    out, both = np.empty_like(F), np.empty((len(F) if sides else 0, 4))

    def work(start: int, stop: int) -> None:
        kernels.box3d_rows(F, nodes, shared, out, both, start, stop)
        if mu_fraction is not None:
            kernels.divide_heavy(F, out, mu_fraction, start, stop)

    share_rows(work, len(F), threads)
    return out, both
