"""Transition matrices: which part of each species goes where, for what a scheme does not see itself.

Fast conversion gives neutrinos of all energies one survival probability P(n). Energy moments and energy groups thus mix
by the matrix of the number moments, as far as their directions are distributed alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import moments
from rheidae.cells import Cells
from rheidae.fourflux import T
from rheidae.mixing._survival_kernels import fill_matrices
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.quadrature import lebedev
from rheidae.mixing.schemes import SCHEMES
from rheidae.mixing.sphere import distributions, electron_and_heavy

Array = NDArray[np.float64]

ORDER = 53
"""Lebedev order of the averages; they are the scheme's answer to 2e-3 of the total density."""


class Transition(NamedTuple):
    """Matrices of `transition_matrix`.

    Attributes
    ----------
    density : ndarray, shape (..., species, species)
        ``N' = density @ N``: species out, species in. Columns sum to 1, unless a heavy entry
        is a mean (``heavy_sum=1``).
    flux : ndarray, shape (..., species, species)
        The same for fluxes, by averages weighted with the flux along each species' own direction. Where a species is
        nearly isotropic these grow as one over its flux factor: they hold for parts of it with its own angular
        distribution, and energy groups of another flux factor than the whole need `keep_physical` after them.
    """

    density: Array
    flux: Array


def transition_matrix(
    F: ArrayLike,
    scheme: str = "box3d",
    *,
    species: int = 6,
    heavy_sum: int | None = None,
    order: int = ORDER,
    physical: bool = False,
    threads: int | None = None,
) -> Transition:
    r"""Transition matrices of densities and of fluxes.

    Parameters
    ----------
    F : array_like, shape (..., 6, 4) or (..., 24)
        Initial four-fluxes of number, any unit; cells that are not physical get NaN.
    scheme : str
        One of `rheidae.mixing.schemes.SCHEMES`.
    species, heavy_sum : int
        Of the matrices, as in `rheidae.moments.to_six`.
    order : int
        Of the Lebedev rule.
    physical : bool
        Shorten changes as ``box3d_flux(F, physical=True)`` does; power, as its answers, has it so anyway.
    threads : int, optional
        Threads to share the rows among, of the asymptotic scheme.

    Returns
    -------
    Transition

    Raises
    ------
    FourFluxError
        If the shape is another.
    ValueError
        If the scheme, `species` or `heavy_sum` is not known.

    Notes
    -----
    Of the asymptotic scheme, with its transition probabilities :math:`p_{ab}` from flavor to flavor, for neutrinos and
    for antineutrinos,

    .. math:: N_b' = \sum_a \Bigl(\int p_{ab}\, g_a\, d\Omega / N_a\Bigr)\, N_a .

    Of the others, which have one survival probability, with the averages :math:`q_a = \int (1-P) g_a d\Omega / N_a` of
    the electron and of the heavy flavor,

    .. math:: N_e' = (1 - q_e) N_e + \tfrac12 q_x (N_\mu + N_\tau), \quad
              N_\mu' = N_\mu + \tfrac12 q_e N_e - \tfrac14 q_x (N_\mu + N_\tau),

    and likewise tau: an initial difference of mu and tau survives, as in the schemes. Where the change is shortened to
    stay physical, by a factor t, the matrices T become ``1 + t (T - 1)``. For fluxes the averages are over
    :math:`g_a\, n \cdot \hat F_a`, which is exact along the species' own direction; what conversion turns aside is left
    out. A species without flux takes the average of its density. Energy moments E of a group mix as ``density @ E``. A
    state takes some 0.2 ms, in Python, and less by the asymptotic scheme; per cell and step, take `rheidae.mix` for
    number moments.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"scheme={scheme!r} is not one of {', '.join(SCHEMES)}")
    cells = Cells(F, "F", "pass")
    rows = np.asarray(cells.rows, dtype=np.float64)
    matrices = SCHEMES[scheme].matrices
    if matrices is not None:
        out = matrices(rows, order=order, threads=threads)
    else:
        out, rule = np.empty((len(rows), 2, 6, 6)), lebedev(order)
        mixed = rows.copy()
        for row, state in enumerate(rows):
            averages, lost = _averages(state, scheme, *rule)
            fill_matrices(averages, out[row])
            mixed[row] += np.kron(lost, [[-1.0], [0.5], [0.5]])
        if physical or SCHEMES[scheme].limited:
            kept = mixed.copy()
            keep_physical(rows, kept, threads)
            left, whole = (np.abs(states - rows).sum(axis=(1, 2)) for states in (kept, mixed))
            t = np.divide(left, whole, out=np.ones(len(rows)), where=left < whole)
            out += (1 - t)[:, None, None, None] * (np.eye(6) - out)
    out[cells.invalid] = np.nan
    density, flux = of_species(out.swapaxes(0, 1), species, heavy_sum).reshape(2, *cells.shape, species, species)
    return Transition(density, flux)


def of_species(matrices: Array, species: int, heavy_sum: int | None = None) -> Array:
    """Matrices ``(..., species, species)`` of a code's species from those of six, ``(..., 6, 6)``."""
    one_each = np.zeros((species, 4, species))
    one_each[np.arange(species), T, np.arange(species)] = 1
    divide = moments.to_six(one_each.transpose(2, 0, 1), species=species, heavy_sum=heavy_sum)[..., T].T
    unit = np.zeros((6, 6, 4))
    unit[np.arange(6), np.arange(6), T] = 1
    add = moments.from_six(unit, species=species, heavy_sum=heavy_sum).density
    found: Array = add @ matrices @ divide
    return found


def _averages(F: Array, scheme: str, directions: Array, weights: Array) -> tuple[Array, Array]:
    """Averages ``(4, 2)`` of 1 - P for e, ebar, x, xbar, by number and along the flux; what e and ebar lose."""
    four = electron_and_heavy(F)
    scale = four[:, T].max()
    if scale == 0:
        return np.zeros((4, 2)), np.zeros((2, 4))
    states = F / scale
    # In the principal axes of the fluxes, so that matrices do not depend on the frame.
    directions = np.linalg.eigh((four[:, :T] / scale).T @ four[:, :T])[1] @ directions
    mixed = weights * (1 - SCHEMES[scheme].survival(states, directions))
    g = distributions(states, directions)
    number = _ratio(g @ mixed, g @ weights, np.zeros(4))
    length = np.linalg.norm(four[:, :T], axis=1)
    along = (four[:, :T] / np.where(length > 0, length, 1)[:, None]) @ directions
    flux = _ratio((g * along) @ mixed, (g * along) @ weights, number)
    lost = scale * (mixed * (g[:2] - g[2:])) @ np.vstack([directions, np.ones_like(weights)]).T
    return np.stack([number, np.where(length > 1e-6 * four[:, T], flux, number)], axis=1), lost


def _ratio(over: Array, under: Array, otherwise: Array) -> Array:
    return np.where(under > 0, over / np.where(under > 0, under, 1.0), otherwise)
