"""The fastest growing mode of a state: growth rate, wave vector, and between which flavors."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae.fourflux import T
from rheidae.linear.distributions import Array, alike, as_states, have_beams, lepton_numbers_of_beams, minerbo
from rheidae.mixing.quadrature import lebedev

SPEED_OF_LIGHT = 2.99792458e10
"""cm/s"""

POTENTIAL = 6.42284614e-33
"""``sqrt(2) G_F/(hbar c)`` in cm^2: a lepton number density in 1/cm^3 times this is a potential in 1/cm (CODATA)."""

ORDER = 23
"""Lebedev order for continuous distributions: 194 nodes; the growth rate of the states in docs/simulate.md differs from
order 53 by less than 3e-4."""

PAIRS = ((0, 1), (0, 2), (1, 2))
"""Pairs of flavors between which a mode can grow: e-mu, e-tau, mu-tau."""

# The unstable wave vectors lie within about 1.2 sum |g|. The axes through the corners, edges and faces of a cube, both
# ways, three lengths, three Newton starts each. The cube stands along the mean direction of the smaller side of the
# crossing: where that is small, its few neutrinos resonate with a wave of the others that runs along with them, at
# |k| near sum |g| and in a narrow range, which more starts on this axis hit. On 1,100 random states whose smaller side
# is above 0.001 of the whole as good as thirty times as many starts; of 3,250 states with a symmetry some 30 modes that
# grow slowly are missed.
_LENGTHS = (0.2, 0.45, 0.8)
_ON_AXIS = (0.6, 0.9, 1.05, 1.2, 1.35)
_PHASES = np.array([-0.75, 0.0, 0.75])
_HEIGHTS = np.array([0.1])
_FLOOR = 1e-5
_ASCENTS = 4
# The fastest mode of a line or a plane is a minor one of the whole space, in a narrow range of wave vectors, at lengths
# |K| = |k + J| up to 2.2 sum |g|: more starts. They miss a few that grow at less than 1 % of sum |g|.
_REACH = 2.2
_BOX_PHASES = np.linspace(-1.1, 1.1, 17)
_BOX_HEIGHTS = np.array([0.01, 0.1])
_BOX_ASCENTS = 16


class FastestMode(NamedTuple):
    """The fastest mode of each of n states.

    Attributes
    ----------
    growth_rate : ndarray, shape (...)
        1/s; 0 where the state is stable.
    wave_vector : ndarray, shape (..., 3)
        1/cm, of the flavor coherence itself (not in the frame that turns with the potential).
    pair : ndarray of int, shape (...)
        Index into `PAIRS`; where mu and tau are alike, 0 stands for e and either. -1 where the state is stable.
    """

    growth_rate: Array
    wave_vector: Array
    pair: NDArray[np.int64]


def fastest_mode(F: ArrayLike, *, order: int = ORDER) -> FastestMode:
    """Linear stability of Minerbo distributions: the wave vector that grows fastest, of all directions and lengths.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4)
        Four-fluxes, 1/cm^3.
    order : int
        Lebedev order of the quadrature.

    Returns
    -------
    FastestMode

    Raises
    ------
    FourFluxError
        If `F` has another shape, or a row is not physical or holds no neutrinos.

    Notes
    -----
    States with a flux factor above 0.8 take nodes that follow their beams, on which every species has its exact moments
    (`rheidae.linear.distributions.lepton_numbers_of_beams`), so that rates are right up to flux factor 1. The others'
    nodes stand along the principal axes of the fluxes.

    The dispersion relation is that of Izaguirre, Raffelt and Tamborra 2017, arXiv:1610.01612; its derivation and how it
    is solved stand in ``_dispersion_kernels.py``.
    """
    states, leading = as_states(F, "F")
    # So that a state has the same nodes however it is turned: rates that are small depend on them.
    axes = _principal_axes(states)
    states[..., :T] = states[..., :T] @ axes
    likes, beams = alike(states), have_beams(states)
    N = minerbo(states[~beams], order)
    out = _no_mode(len(states))
    found = [(np.flatnonzero(~beams), discrete_mode(N[:, :3] - N[:, 3:], lebedev(order).nodes, likes[~beams]))]
    for row in np.flatnonzero(beams):
        lepton_number, directions = lepton_numbers_of_beams(states[row], order)
        found.append((np.array([row]), discrete_mode(lepton_number[None], directions, likes[row : row + 1])))
    for rows, mode in found:
        for column, values in zip(out, mode, strict=True):
            column[rows] = values
    out.wave_vector[:] = (axes @ out.wave_vector[:, :, None])[:, :, 0]
    return FastestMode._make(column.reshape((*leading, *column.shape[1:])) for column in out)


def discrete_mode(
    lepton_number: Array, directions: Array, mu_tau_alike: NDArray[np.bool_], box: Array | None = None
) -> FastestMode:
    """Fastest mode of distributions over discrete directions.

    Parameters
    ----------
    lepton_number : ndarray, shape (n, 3, m)
        Neutrinos minus antineutrinos of the flavors e, mu, tau in each direction, 1/cm^3.
    directions : ndarray, shape (3, m)
        Unit vectors.
    mu_tau_alike : ndarray of bool, shape (n,)
        Where True, mu and tau are taken as their average, and one pair of flavors is looked at.
    box : ndarray, shape (d, 3), optional
        Orthonormal vectors: only wave vectors that they span. Default: all.
    """
    rows, pairs, parts = [], [], []
    D = np.asarray(lepton_number, dtype=np.float64) * POTENTIAL
    for number, (a, b) in enumerate(PAIRS):
        which = np.flatnonzero(~mu_tau_alike) if number else np.arange(len(D))
        other = D[which, b]
        if number == 0:
            other = np.where(mu_tau_alike[:, None], 0.5 * (D[:, 1] + D[:, 2]), other)
        rows.append(which)
        pairs.append(np.full(len(which), number))
        parts.append(D[which, a] - other)
    row, pair, g = np.concatenate(rows), np.concatenate(pairs), np.concatenate(parts)
    # Differences that are nothing but rounding are none.
    g[np.abs(g).max(axis=1) <= 1e-13 * POTENTIAL * np.abs(lepton_number[row]).sum(axis=(1, 2))] = 0.0
    rate, k = _solve(g, directions, box)
    best = np.full(len(D), -1)
    for candidate in np.argsort(rate, kind="stable"):
        if rate[candidate] > 0:
            best[row[candidate]] = candidate
    grows = best >= 0
    out = _no_mode(len(D))
    out.growth_rate[grows] = rate[best[grows]] * SPEED_OF_LIGHT
    # Back from the frame that turns with the potential: K = k + sum g n.
    out.wave_vector[grows] = k[best[grows]] + g[best[grows]] @ directions.T
    out.pair[grows] = pair[best[grows]]
    return out


def _principal_axes(states: Array) -> Array:
    """Axes ``(n, 3, 3)``, as columns, of the fluxes of each state ``(n, 6, 4)``."""
    flux = states[..., :T] / states[..., T].sum(axis=1)[:, None, None]
    return np.linalg.eigh(flux.transpose(0, 2, 1) @ flux)[1]


def _no_mode(n: int) -> FastestMode:
    return FastestMode(np.zeros(n), np.zeros((n, 3)), np.full(n, -1))


def _solve(g: Array, directions: Array, box: Array | None) -> tuple[Array, Array]:
    from rheidae.linear import _dispersion_kernels as kernels

    rate, k = np.zeros(len(g)), np.zeros((len(g), 3))
    if not len(g):
        return rate, k
    J = g @ directions.T
    if box is None or len(box) == 3:
        P, starts, frames = np.eye(3), _starts(), _frames(_smaller_side(g, J, directions))
        search = _PHASES, _HEIGHTS, _FLOOR, _ASCENTS
    else:
        # The wave vectors of the box, K = k + J; the kernel shifts them by -J.
        P, starts, frames = box.T @ box, _starts_in(len(box)) @ box, np.broadcast_to(np.eye(3), (len(g), 3, 3))
        search = _BOX_PHASES, _BOX_HEIGHTS, _FLOOR, _BOX_ASCENTS
    # Copies: to Numba, arrays that cannot be written are of another type, for which it would compile all anew.
    kernels.fastest(
        np.array(directions, dtype=np.float64, order="C"), _products(directions), np.ascontiguousarray(g),
        np.array(frames), P, np.ascontiguousarray(starts), *search, rate, k,
    )  # fmt: skip
    return rate, k


@cache
def _starts() -> Array:
    ways = np.array([(x, y, z) for x in (-1, 0, 1) for y in (-1, 0, 1) for z in (-1, 0, 1) if x or y or z], dtype=float)
    ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    axis = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])
    return np.concatenate([*(length * ways for length in _LENGTHS), *(length * axis for length in _ON_AXIS)])


def _starts_in(dimensions: int) -> Array:
    """Wave vectors of a line or a plane, ``(s, dimensions)``."""
    if dimensions == 1:
        return np.linspace(-_REACH, _REACH, 89)[:, None]
    angle = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    ways = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.concatenate([length * ways for length in np.linspace(0.2, _REACH, 11)])


def _smaller_side(g: Array, J: Array, directions: Array) -> Array:
    """Flux ``(n, 3)`` of the part of ``g`` of the sign that is the rarer."""
    size = np.abs(g)
    negative = np.where(g.sum(axis=1) >= 0, 1.0, -1.0)[:, None]
    return np.asarray(size @ directions.T - negative * J)


def _frames(axis: Array) -> Array:
    """Orthonormal frames ``(n, 3, 3)`` whose last column is along `axis`, so that answers turn with the state."""
    size = np.linalg.norm(axis, axis=1, keepdims=True)
    z = np.where(size > 0, axis / np.where(size > 0, size, 1.0), [0.0, 0.0, 1.0])
    other = np.where(np.abs(z[:, :1]) < 0.9, [1.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    x = np.cross(z, other)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return np.stack([x, np.cross(z, x), z], axis=2)


def _products(directions: Array) -> Array:
    four = np.concatenate([np.ones((1, directions.shape[1])), directions])
    return np.array([four[a] * four[b] for a in range(4) for b in range(a, 4)])
