"""Asymptotic mixing: the state in which three-dimensional simulations settle, without fitted numbers."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.mixing import _asymptotic_kernels as kernels
from rheidae.mixing._nodes_kernels import LATITUDES, spiral_rule, symmetric_rule
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.quadrature import lebedev
from rheidae.system.threads import share_rows

Array = NDArray[np.float64]

ORDER = 29
"""Order of the Lebedev rule."""

FINER = ((53, 192), (59, 320), (59, 640))
"""Order, and circles of latitude of the rule of a species, of the levels for states that those before leave in doubt.
"""

COARSER = (23, 80)
"""Likewise, of what the first level is compared with where there are beams; it goes behind the others."""

PAIRS = ("e-mu", "e-tau", "mu-tau")
"""Columns of `crossings`."""


def asymptotic_flux(
    F_init: ArrayLike, *, order: int = ORDER, levels: int = 4, threads: int | None = None
) -> fourflux.Float:
    r"""Final four-fluxes of the settled fast flavor instability.

    Parameters
    ----------
    F_init : array_like, shape (n, 6, 4)
        Initial four-fluxes, any one unit, usually 1/cm^3; mu and tau may differ.
    order : int
        Order of the Lebedev rule, one of `rheidae.mixing.quadrature.LEBEDEV_ORDERS`; states in doubt have finer ones.
    levels : {4, 1}
        1: without those finer rules; models take beams so, as their exported forms do.
    threads : int, optional
        Threads to share the rows among; the result does not depend on it.

    Returns
    -------
    ndarray, shape (n, 6, 4)
        In the unit of the input; float32 for float32 input, else float64. Physical; flavor sums and the lepton number
        of each flavor are those of the input. A state without a crossing in any pair of flavors comes back unchanged.

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical.
    ValueError
        If `order` or `threads` is not one of the allowed values.

    See Also
    --------
    asymptotic_transitions : The transition probabilities of one state, by direction.
    crossings : Which pairs of flavors have a crossing.

    Notes
    -----
    Where mu and tau are alike, with G as in `rheidae.box3d_flux`, counted positive on the side with the larger
    integral,

    .. math:: P = \tfrac13 + a\,\frac{G}{\sqrt{G^2 + s^2}}, \quad a = \begin{cases} 2/3 & G > 0 \\ 1/3 & G < 0,
              \end{cases} \qquad \int (1 - P)\, G\, d\Omega = 0

    and s from the last equation. P is 1/3 at the crossing, tends to 1 on the larger side and to 0 on the smaller. No
    crossing is left, as in the simulations of Xiong et al. (arXiv:2307.11129), George et al. (arXiv:2409.08833) and of
    `rheidae.simulate`.

    Where they differ, all three pairs of flavors count. The pair with the strongest crossing, by
    :math:`\sqrt{I_+ I_-}`, first mixes as two flavors, by the share that it is ahead of the second; then all three mix
    by a doubly stochastic matrix, a mean of permutations weighted by how far each is from leaving no crossing. "Why
    this function" in ``docs/physics.md`` has the argument. Both are one function, continuous in the state.

    The quadrature turns with the state, a species with a flux factor above 0.8 brings nodes of its own, and states
    whose crossing lies between few nodes get more, so that answers are right for every flux factor in [0, 1]. The
    change is applied in conservative form.

    Examples
    --------
    >>> import numpy as np
    >>> from rheidae import mix
    >>> F = np.zeros((1, 6, 4))
    >>> F[0, :, 3] = [1.0, 0.3, 0.3, 0.9, 0.3, 0.3]
    >>> F[0, 3, 2] = 0.4
    >>> mix(F, "asymptotic")[0, :, 3].round(2)
    array([0.56, 0.52, 0.52, 0.46, 0.52, 0.52])
    """
    F, exact = _checked(F_init)
    out, tables = np.empty(F.shape), (*levels_of(order, levels), three_flavors(exact))
    share_rows(lambda start, stop: kernels.asymptotic_rows(exact, *tables, out, start, stop), len(F), threads)
    keep_physical(exact, out, threads)
    return out.astype(F.dtype, copy=False)


def asymptotic_transitions(F: ArrayLike, directions: ArrayLike, *, order: int = ORDER) -> Array:
    """Transition probabilities from flavor to flavor, by direction; antineutrinos have the same.

    Parameters
    ----------
    F : array_like, shape (6, 4)
        A state, any unit.
    directions : array_like, shape (3, m)
        Unit vectors.
    order : int
        Order of the Lebedev rule.

    Returns
    -------
    ndarray, shape (m, 3, 3)
        ``p[:, a, b]``: from flavor a to flavor b, each in the order e, mu, tau. Rows and columns sum to 1; the identity
        without a crossing.

    Raises
    ------
    FourFluxError
        If the shape of `F` is another, or it is not physical.
    ValueError
        If `directions` or `order` is not as above.
    """
    state = np.asarray(F)
    _, exact = _checked(state[None] if state.ndim == 2 else state)
    nodes = np.array(directions, dtype=np.float64, order="C")
    if nodes.ndim != 2 or len(nodes) != 3:
        raise ValueError(f"directions have shape {nodes.shape}; expected (3, m)")
    p = np.empty((nodes.shape[1], 3, 3))
    kernels.transition_row(exact[0], *tables_of(order), nodes, p)
    return p


def asymptotic_matrices(F: fourflux.Float, *, order: int = ORDER, threads: int | None = None) -> Array:
    """Averages ``(n, 2, 6, 6)`` of the transition probabilities over each species of states ``(n, 6, 4)`` in any unit.

    Of densities and of fluxes, species out and in; see `rheidae.mixing.transition`. Raises `FourFluxError` as
    `asymptotic_flux` does.
    """
    _, exact = _checked(F)
    out, tables = np.empty((len(exact), 2, 6, 6)), tables_of(order)
    share_rows(lambda start, stop: kernels.matrix_rows(exact, *tables, out, start, stop), len(exact), threads)
    return out


def asymptotic_survival(F: fourflux.Float, directions: Array) -> Array:
    """``P(n)`` of electron neutrinos, shape (m,), of a state (6, 4) in directions (3, m)."""
    survival: Array = asymptotic_transitions(F, directions)[:, 0, 0]
    return survival


def crossings(F_init: ArrayLike, *, order: int = ORDER, threads: int | None = None) -> NDArray[np.bool_]:
    """Whether the lepton numbers of each pair of flavors cross: any such pair is unstable.

    Parameters
    ----------
    F_init : array_like, shape (n, 6, 4)
        Four-fluxes, any one unit.
    order, threads
        As in `asymptotic_flux`.

    Returns
    -------
    ndarray of bool, shape (n, 3)
        For the pairs of `PAIRS`: whether ``L_a - L_b``, with ``L = g - gbar``, has both signs, by more than rounding
        (1e-14 of the total density).

    Raises
    ------
    FourFluxError
        If the shape is another, or a row is not physical.

    Notes
    -----
    A side that lies between the nodes of the first level is not seen, where `asymptotic_flux` may find it by its finer
    rules: of 12,000 random states of ten kinds that do not cross by this, 16 change there, by at most 0.0025 of the
    total density.
    """
    F, exact = _checked(F_init)
    crosses, tables = np.empty((len(F), 3), dtype=np.bool_), tables_of(order)
    share_rows(lambda start, stop: kernels.crossing_rows(exact, *tables, crosses, start, stop), len(F), threads)
    return crosses


def three_flavors(F: Array) -> bool | None:
    """Whether mu and tau differ in any of the states ``(n, 6, 4)``, as kernels want it: True or None."""
    return None if np.array_equal(F[:, 1::3], F[:, 2::3]) else True


def _checked(F_init: ArrayLike) -> tuple[fourflux.Float, Array]:
    """The states as given, and as contiguous float64."""
    F = fourflux.as_four_flux(F_init, "F_init")
    fourflux.require_physical(F, "F_init")
    return F, np.ascontiguousarray(F, dtype=np.float64)


@cache
def levels_of(order: int = ORDER, levels: int = 4) -> tuple[tuple[Array, ...], tuple[Array, ...], int]:
    """Nodes of each level, on the sphere and of a beam, and how many levels count, as the kernels want them."""
    first = tables_of(order)
    # Of one length, for which the kernel is compiled.
    others = [tables_of(max(order, least), n) if levels > 1 else first for least, n in FINER]
    others.append(tables_of(*COARSER) if levels > 1 else first)
    spheres, narrow = zip(first, *others, strict=True)
    return spheres, narrow, levels


@cache
def tables_of(order: int = ORDER, latitudes: int = LATITUDES) -> tuple[Array, Array]:
    """Nodes of the sphere and of a beam."""
    return symmetric_rule(*lebedev(order)), spiral_rule(latitudes)
