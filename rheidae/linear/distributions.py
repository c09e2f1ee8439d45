"""Angular distributions on the directions of a Lebedev rule: closures, evaluated at nodes or matched to moments."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.cells import Cells
from rheidae.exceptions import FourFluxError
from rheidae.fourflux import SPECIES, T
from rheidae.mixing.asymptotic import tables_of
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.sphere import minerbo as minerbo_distributions
from rheidae.mixing.sphere import peak_and_exponent

Array = NDArray[np.float64]

Closure = Callable[[Array, int, Array], ArrayLike]
"""``closure(F, species, directions)``: a distribution up to its normalisation, at ``directions (m, 3)``, for one
four-flux ``F (4)`` of species 0 to 5."""

LATITUDES = 32
"""Circles of latitude, of four nodes each, of a beam's own rule."""

LITTLE = 1e-9
"""A species with less than this part of a row's total density counts for nothing, and may be a beam."""

MATCHED = 1e-6
"""The moments of a matched distribution are the given ones to this part of the number density, or an error says so."""


def as_states(F: ArrayLike, name: str = "F_init") -> tuple[Array, tuple[int, ...]]:
    """``(..., 6, 4)`` or ``(..., 24)`` four-fluxes as ``(n, 6, 4)`` float64, checked, and the leading shape.

    Raises `FourFluxError` if the shape is another, a number is not finite, a four-flux not physical, or a row holds no
    neutrinos.
    """
    cells = Cells(F, name)
    empty = np.flatnonzero(cells.vacuum)
    if len(empty):
        raise FourFluxError(f"{name} row {empty[0]}: no neutrinos, all six densities are 0. Remove the row")
    return cells.rows.astype(np.float64), cells.shape


def alike(states: Array) -> NDArray[np.bool_]:
    """Whether mu and tau, and their antineutrinos, are the same to 1e-6 of a row's total density."""
    apart = np.abs(states[:, [1, 4]] - states[:, [2, 5]]).max(axis=(1, 2))
    return np.asarray(apart <= 1e-6 * states[:, :, T].sum(axis=1))


def minerbo(states: Array, order: int) -> Array:
    """Minerbo distributions ``(n, 6, m)`` of states ``(n, 6, 4)`` at the nodes of a Lebedev rule, times their weights.

    In the unit of the states; the moments have the quadrature error of the rule.
    """
    rule = lebedev(order)
    with np.errstate(under="ignore"):
        return minerbo_distributions(states, rule.nodes) * rule.weights


def have_beams(states: Array) -> NDArray[np.bool_]:
    """Rows with a species that a rule at rest does not resolve: flux factors above 0.8."""
    from rheidae.linear import _beams_kernels as kernels

    out = np.empty(len(states), dtype=np.bool_)
    kernels.beam_rows(states, out)
    return out


def lepton_numbers_of_beams(state: Array, order: int) -> tuple[Array, Array]:
    """Lepton numbers ``(3, m)`` of a state ``(6, 4)`` and the nodes ``(3, m)`` that they are on, which follow it.

    Neutrinos minus antineutrinos of each flavor and direction, in the unit of the state; each species has its exact
    moments. Beside the sphere's rule, of a Lebedev order, each beam has one of its own.
    """
    from rheidae.linear import _beams_kernels as kernels

    table, narrow = tables_of(order, LATITUDES)
    nodes, L = np.empty((2, 3, table.shape[1] + 6 * narrow.shape[1]))
    m = kernels.lepton_numbers_row(state, table, narrow, nodes, L)
    return L[:, :m], nodes[:, :m]


def matched(states: Array, order: int, closure: str | Closure = "minerbo") -> Array:
    """Distributions on the nodes of a Lebedev rule whose sums are exactly the given moments.

    Number densities ``(n, 6, m)`` of each direction, in the unit of the states ``(n, 6, 4)``; the rule must have no
    negative weights. What the `Closure` returns is multiplied by ``exp(a + b.n)``, the least change (in relative
    entropy) that makes the moments right; for "minerbo" this is the maximum-entropy distribution of the directions
    themselves.

    Raises `FourFluxError` if the rule has too few directions for a flux factor, or the closure returns something that
    is no distribution.
    """
    rule = lebedev(order)
    nodes, weights = rule.nodes, rule.weights / rule.weights.sum()
    n, m = len(states), len(weights)
    N = states[:, :, T].reshape(-1)
    flux = np.divide(states[:, :, :3].reshape(-1, 3), N[:, None], out=np.zeros((6 * n, 3)), where=N[:, None] > 0)
    _, Z, axis = peak_and_exponent(states)
    prior = np.log(np.broadcast_to(weights, (6 * n, m)))
    a = (axis * Z[..., None]).reshape(-1, 3)
    if closure != "minerbo":
        prior = prior + np.log(_evaluated(states, closure, nodes))
        a = np.zeros_like(a)
    # Newton on the convex function log sum exp(prior + a.(n - flux)); steps are bounded while it is far from its end.
    # A beam has its own b -> infinity: the directions nearest to it do it best, and the check below decides.
    for _ in range(60):
        exponent = prior + a @ nodes
        e = np.exp(exponent - exponent.max(axis=1, keepdims=True))
        e /= e.sum(axis=1, keepdims=True)
        mean = e @ nodes.T
        miss = flux - mean
        if np.abs(miss).max(initial=0.0) < 1e-13:
            break
        spread = np.einsum("ki,ai,bi->kab", e, nodes, nodes, optimize=True) - mean[:, :, None] * mean[:, None, :]
        spread += 1e-14 * np.eye(3)
        step = np.linalg.solve(spread, miss[:, :, None])[:, :, 0]
        size = np.linalg.norm(step, axis=1, keepdims=True)
        a = a + step * np.minimum(
            1.0, (1.0 + 0.5 * np.linalg.norm(a, axis=1, keepdims=True)) / np.maximum(size, 1e-300)
        )
    worst = np.where(LITTLE * np.repeat(states[:, :, T].sum(axis=1), 6) < N, np.abs(miss).max(axis=1), 0.0)
    if (worst > MATCHED).any():
        row, species = divmod(int(np.argmax(worst)), 6)
        raise FourFluxError(
            f"row {row}, {SPECIES[species]}: the {m} directions of Lebedev order {order} do not represent the flux "
            f"factor {np.linalg.norm(flux[6 * row + species]):.4g} (off by {worst.max():.1e}); choose a higher order "
            "of directions"
        )
    return (e * N[:, None]).reshape(n, 6, m)


def _evaluated(states: Array, closure: str | Closure, nodes: Array) -> Array:
    if isinstance(closure, str):
        raise FourFluxError(f"closure={closure!r} is unknown; expected 'minerbo' or a function of direction")
    directions = np.ascontiguousarray(nodes.T)
    out = np.empty((len(states), 6, len(directions)))
    for row, state in enumerate(states):
        for species in range(6):
            values = np.asarray(closure(state[species], species, directions), dtype=np.float64)
            sound = values.shape == (len(directions),) and np.isfinite(values).all() and (values >= 0).all()
            if not sound or (state[species, T] > 0 and not values.any()):
                raise FourFluxError(
                    f"closure of row {row}, {SPECIES[species]}, returned shape {values.shape} for {len(directions)} "
                    "directions; expected one finite number >= 0 for each, not all of them 0 where there are neutrinos"
                )
            # Nothing at a node: so little that the moments do not see it.
            out[row, species] = np.maximum(values / (values.max() or 1.0), 1e-30)
    return out.reshape(6 * len(states), -1)
