"""Box3D: the four-fluxes that the fast flavor instability leaves behind, from those before it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.mixing import _box3d_kernels as sharp
from rheidae.mixing import _crossing_kernels as resolved
from rheidae.mixing.quadrature import lebedev
from rheidae.system.threads import default_threads

GROWTH_RATE_PER_DENSITY = 1.9255208312824877e-22
"""``sqrt(2) G_F / hbar`` in cm^3/s: ``G_F/(hbar c)^3 = 1.1663787e-5/GeV^2`` (CODATA 2022), densities in 1/cm^3."""

# Below this a thread costs more to hand its rows to than it saves.
_ROWS_PER_THREAD = 1024

Arguments = tuple[Any, ...]


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
    growth_rate : ndarray, shape (n,)
        ``sqrt(2) G_F/hbar sqrt(I_plus I_minus)`` in 1/s, for densities in 1/cm^3: an estimate of the growth rate
        of the instability. On the simulations that ship with the package it is 0.8 of the rate of the fastest
        mode (median; 0.77 to 1.3 for nine tenths of them).
    """

    F_box: fourflux.Float
    survival_probability: NDArray[np.float64]
    I_plus: NDArray[np.float64]
    I_minus: NDArray[np.float64]
    has_crossing: NDArray[np.bool_]
    growth_rate: NDArray[np.float64]


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
        Order of the Lebedev rule, one of `rheidae.mixing.quadrature.LEBEDEV_ORDERS`, where the crossing is sharp. Cost
        grows with its square. At 31 the 95th percentile of the error is 6e-4 of the total density.
    crossing : {"sharp", "resolved"}
        How the jump of the survival probability at ``G = 0`` is treated. "sharp" counts each node of the Lebedev
        rule to the side on which it lies. "resolved" integrates up to the crossing itself, along meridians that end
        there; it does not use `order`. It takes no
        longer than "sharp" at order 31 and its error is a third on states with independent random flux directions,
        a five-hundredth on merger-like ones (95th percentiles); it sees shallow crossings that no node falls
        into. It is not the default because its largest error in thousands of random states, where a small second
        region lies between the meridians, is twice that of "sharp".
    mu_fraction : float, optional
        None (default): mu and tau take equal parts of the change, so that an initial difference between
        them survives. A number in [0, 1]: mu gets that fraction of the final heavy total, tau the rest,
        except in states without a crossing, which stay as they are.
    threads : int, optional
        Threads to share the rows among; the result does not depend on it. Default: Numba's number
        (``NUMBA_NUM_THREADS``, else the processors that the process may use), but one in a worker process of joblib,
        Dask and the like.

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

    See Also
    --------
    box3d : The same with survival probabilities, integrals and growth rate.

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

    With equal mu and tau the exact answer is physical, being a mixture of the initial distributions. Where they
    differ, the mean of both is mixed and each takes half of the change: the conservation laws stay exact, but a
    species that starts much emptier than its partner can end up with ``N < 0`` or ``|F| > N``. Sharing the heavy
    part in another way would break the lepton number of mu or tau. The same befalls beams, flux factors above about
    0.99, which lie between the nodes. `rheidae.mixing.power.keep_physical` mends both.

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
    F = _checked(F_init)
    out = np.empty_like(F)
    method, constants = _method(crossing, order)
    _mix(F, out, mu_fraction, threads, lambda start, stop: method.rows(F, *constants, out, start, stop))
    return out


def box3d(
    F_init: ArrayLike,
    *,
    order: int = 31,
    crossing: str = "sharp",
    mu_fraction: float | None = None,
    threads: int | None = None,
) -> Box3D:
    """Box3D with its intermediate results: survival probabilities, integrals of G and the growth rate.

    Parameters, errors and method are those of `box3d_flux`.

    Returns
    -------
    Box3D
        Named tuple of ``F_box, survival_probability, I_plus, I_minus, has_crossing, growth_rate``.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import box3d
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1e33, 0.3e33, 0.3e33, 0.9e33, 0.3e33, 0.3e33]
    >>> F[0, 3, 2] = 0.4e33
    >>> result = box3d(F)
    >>> print(result.has_crossing, result.growth_rate.round(-9))  # 1/s
    [ True] [6.1e+10]
    """
    F = _checked(F_init)
    out = np.empty_like(F)
    sides = np.empty((len(F), 4))
    method, constants = _method(crossing, order)
    _mix(F, out, mu_fraction, threads, lambda start, stop: method.diagnosed(F, *constants, out, sides, start, stop))
    I_plus, I_minus = (np.maximum(side, 0.0) for side in (sides[:, 0], sides[:, 1]))
    has_crossing: NDArray[np.bool_] = np.any(sides[:, 2:] < 1, axis=1)
    # The square root of each: the product of two 1e300 is infinite.
    growth_rate = np.where(has_crossing, GROWTH_RATE_PER_DENSITY * np.sqrt(I_plus) * np.sqrt(I_minus), 0.0)
    return Box3D(out, sides[:, 2:].copy(), I_plus, I_minus, has_crossing, growth_rate)


SCHEMES = ("box3d", "power")
"""Analytic schemes that `mix` knows."""


def mix(
    F_init: ArrayLike,
    scheme: str = "box3d",
    *,
    c: ArrayLike = 1.0,
    order: int = 31,
    threads: int | None = None,
    **parameters: Any,
) -> fourflux.Float:
    """Final four-fluxes by an analytic scheme.

    Parameters
    ----------
    F_init : array_like, shape (n, 6, 4)
        Initial four-fluxes, any one unit, usually 1/cm^3.
    scheme : {"box3d", "power"}
        "box3d": the survival probability jumps at the crossing (`box3d_flux`). "power": it falls off continuously
        (`rheidae.mixing.power.power_flux`).
    c : float or array_like, shape (n,)
        Strength of the change, in [0, 1.5]; 1 is the scheme itself.
    order, threads : int
        Order of the Lebedev rule; threads to share the rows among.
    **parameters
        Those of the scheme: ``crossing`` and ``mu_fraction`` of Box3D; ``p``, ``a``, ``axial``, ``p_axial``,
        ``a_axial`` of the power scheme, numbers or arrays of shape (n,).

    Returns
    -------
    ndarray, shape (n, 6, 4)
        In the unit and the float type of the input. Flavor sums and lepton numbers are those of the input, to rounding
        (with ``mu_fraction`` the lepton numbers of mu and tau only together); a state without a crossing is the input.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical.
    ValueError
        If the scheme is not known or a parameter is outside its range.
    TypeError
        If the scheme has no such parameter.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import mix
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> mix(F)[0, 0, 3].round(2), mix(F, c=0.5)[0, 0, 3].round(2)
    (np.float64(0.62), np.float64(0.81))
    """
    if scheme == "power":
        from rheidae.mixing.power import power_flux

        return power_flux(F_init, c=c, order=order, threads=threads, **parameters)
    if scheme != "box3d":
        raise ValueError(f"scheme={scheme!r} is not one of {', '.join(SCHEMES)}")
    out = box3d_flux(F_init, order=order, threads=threads, **parameters)
    strength = np.asarray(c, dtype=out.dtype)
    if strength.shape not in ((), (len(out),)) or not ((strength >= 0) & (strength <= 1.5)).all():
        raise ValueError(f"c has to be a number in [0, 1.5], or {len(out)} of them; got {c!r}")
    if (strength == 1).all():
        return out
    F = fourflux.as_four_flux(F_init, "F_init")
    return F + strength.reshape(-1, 1, 1) * (out - F)


class _Method(NamedTuple):
    """The kernels of one way to treat the crossing."""

    rows: Callable[..., None]
    diagnosed: Callable[..., None]


_METHODS = {
    "sharp": _Method(sharp.sharp_rows, sharp.sharp_rows_diagnosed),
    "resolved": _Method(resolved.resolved_rows, resolved.resolved_rows_diagnosed),
}


def _method(crossing: str, order: int) -> tuple[_Method, Arguments]:
    """Return the kernels for `crossing`, and the constants that they take after F."""
    if crossing not in _METHODS:
        raise ValueError(f"crossing={crossing!r} is not known; it must be 'sharp' or 'resolved'")
    return _METHODS[crossing], _resolved_plan() if crossing == "resolved" else _pairs(order)


@cache
def _pairs(order: int) -> Arguments:
    return (sharp.antipodal_pairs(*lebedev(order)),)


@cache
def _resolved_plan() -> Arguments:
    return resolved.resolved_plan()


def _checked(F_init: ArrayLike) -> fourflux.Float:
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    return F


def _mix(
    F: fourflux.Float,
    out: fourflux.Float,
    mu_fraction: float | None,
    threads: int | None,
    kernel: Callable[[int, int], None],
) -> None:
    """Run ``kernel(start, stop)`` over all rows, and divide the heavy flavors if a fraction is given."""
    if mu_fraction is not None and not 0 <= mu_fraction <= 1:
        raise ValueError(f"mu_fraction={mu_fraction!r} is outside [0, 1]")

    def work(start: int, stop: int) -> None:
        kernel(start, stop)
        if mu_fraction is not None:
            sharp.divide_heavy(F, out, mu_fraction, start, stop)

    share_rows(work, len(F), threads)


def share_rows(work: Callable[[int, int], None], rows: int, threads: int | None) -> None:
    """Call ``work(start, stop)`` so that all `rows` are covered, from as many threads as pay off.

    A pool of Python threads around kernels that release the interpreter lock, and not ``prange``: Numba's own
    threads do not survive a fork, and its parallel kernels take seconds to load.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads={threads!r} must be at least 1")
    count = max(1, rows // _ROWS_PER_THREAD)
    if count > 1:
        count = min(threads or default_threads(), count)
    if count == 1:
        work(0, rows)
        return
    bounds = np.linspace(0, rows, count + 1).astype(int).tolist()
    with ThreadPoolExecutor(count) as pool:
        # list() so that an exception in a thread is raised here.
        list(pool.map(work, bounds[:-1], bounds[1:]))
