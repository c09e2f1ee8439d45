"""Mixing by a survival probability with eight parameters: what the network sets, and the power scheme."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing._nodes_kernels import sphere_rule
from rheidae.mixing.asymptotic import tables_of
from rheidae.mixing.quadrature import lebedev
from rheidae.system.threads import share_rows

Array = NDArray[np.float64]

AXIAL_POINTS = 24
"""Gauss-Legendre nodes along the axis."""

TOLERANCE = 1e-10
"""Relative error allowed in ``int (1 - P) G = 0`` before the two densities that it equates are averaged."""

PARAMETERS = ("log_c", "log_p", "log_a", "rise", "log2_shift", "axial", "log_p_axial", "log_a_axial")
"""Columns of `theta`. Of ``1 - P``: ``2/3 c`` at the crossing, p and a on the larger side, b and rho on the smaller;
the weight of the axial component, and p and a of that one."""

ASYMPTOTIC = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
"""Parameters of the asymptotic scheme."""

INVARIANTS = ("axial_depth", "depth", "net_number", "net_flux", "net_quadrupole")
"""Columns of `invariants`."""

_ORDER = 31


class Change(NamedTuple):
    """What `mixing_change` returns for n states.

    Attributes
    ----------
    D : ndarray, shape (n, 8)
        Four-fluxes ``(x, y, z, t)`` that nu_e and nubar_e lose, over the total number density.
    jacobian : ndarray, shape (n, 8, 8), or None
        Derivatives of `D` by the parameters, in the order of `PARAMETERS`.
    scales : ndarray, shape (n, 2)
        ``s`` on the sphere and on the axis, over the total number density per steradian; NaN where there is no
        crossing, or no such component.
    """

    D: Array
    jacobian: Array | None
    scales: Array


@cache
def rules(order: int) -> tuple[Array, Array]:
    """Nodes of the sphere and of the axis."""
    return sphere_rule(*lebedev(order)), kernels.axial_rule(AXIAL_POINTS)


@cache
def _beam_rules(order: int, beams: bool) -> tuple[Array, Array]:
    """Nodes of rows with beams; none if they have no nodes."""
    return tables_of(order) if beams else (np.empty((4, 0)), np.empty((4, 0)))


def mixing_change(
    F: fourflux.Float,
    theta: Array,
    *,
    power_law: bool = False,
    derivatives: bool = False,
    order: int = _ORDER,
    tolerance: float = TOLERANCE,
    beams: bool = True,
    threads: int | None = None,
) -> Change:
    r"""Change by mixing and its derivatives by the parameters, in one pass.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, any one unit; not checked. mu and tau enter as their mean.
    theta : ndarray, shape (n, 8)
        Parameters of each row, in the order of `PARAMETERS`.
    power_law : bool
        Whether ``1 - P`` falls off as ``(1 + x)^-p`` on the larger side, instead of ``[r (r + x)]^-p``.
    derivatives : bool
        Whether to compute the Jacobian.
    order, threads
        Order of the Lebedev rule; threads to share the rows among.
    tolerance : float
        Relative error of lepton number before it is made exact.
    beams : bool
        Whether species with a flux factor above 0.8 bring nodes of their own; the axial component fades out with them.
        Else they fade out of the distributions, from 0.9 to 0.95, and `calm` says how far the answer is to be trusted.

    Returns
    -------
    Change

    Notes
    -----
    With ``q = 1 - P``, G counted positive on the side with the larger integral, ``x = (|G|/s)^a``, ``r = sqrt(1 +
    x^2)``, ``q_0 = (2/3) c`` and ``z = 2^(-a rho) x``

    .. math:: q = q_0\,[r (r + x)]^{-p} \quad (G > 0), \qquad q = q_0 + b\,(1 - q_0)\,z/\sqrt{1 + z^2} \quad (G < 0)

    and s from ``int q G = 0``. `ASYMPTOTIC` is the scheme of `rheidae.mixing.asymptotic` for mu and tau alike.
    """
    n = len(F)
    F = np.ascontiguousarray(F, dtype=np.float64)
    theta = np.ascontiguousarray(theta, dtype=np.float64)
    D, scales = np.empty((n, 8)), np.empty((n, 2))
    J = np.empty((n, kernels.PARAMETERS, 8) if derivatives else (0, 0, 0))
    (sphere, axial), of_beams = rules(order), _beam_rules(order, beams)
    share_rows(
        lambda start, stop: kernels.survival_rows(
            F, theta, not power_law, sphere, *of_beams, axial, tolerance, derivatives, D, J, scales, start, stop
        ),
        n,
        threads,
    )
    with np.errstate(over="ignore", under="ignore"):
        return Change(D, J if derivatives else None, np.exp2(scales))


def invariants(F: fourflux.Float, *, order: int = _ORDER, threads: int | None = None) -> Array:
    """Five numbers of a state that know nothing of its frame, its scale, or which side is which.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, any one unit; not checked.
    order, threads
        As of `mixing_change`.

    Returns
    -------
    ndarray, shape (n, 5)
        In the order of `INVARIANTS`, of ``G`` and its azimuthal mean ``Gbar`` with ``A = int |Gbar|``: depth of the
        crossing in Gbar and in G, ``log(I_small/I_large + 1e-3)``; ``|int G|/A``; ``|int G n|/A``; and ``|int G|/A``
        times the quadrupole ``int Gbar P2(zeta)/A``, with G counted positive on the larger side. Species fade out of
        all but net number and net flux as they become beams, from a flux factor of 0.9 to 0.95.
    """
    F = np.ascontiguousarray(F, dtype=np.float64)
    out = np.empty((len(F), kernels.FEATURES))
    sphere, axial = rules(order)
    share_rows(lambda start, stop: kernels.survival_features(F, sphere, axial, out, start, stop), len(F), threads)
    return out


def calm(F: fourflux.Float) -> Array:
    """How far a rule that does not follow beams is to be trusted, ``(n,)`` from 0 to 1, of states ``(n, 6, 4)``.

    1 where no flux factor is above 0.8, 0 where that of a species with more than a trace is above 0.9: the product of
    ``1 - smoothstep(f in [0.8, 0.9]) n/(n + 1e-5)``, n over the total density, over e, x and their antineutrinos. The
    states, of any unit, have to be C-contiguous and are not checked; mu and tau enter as their mean.
    """
    out = np.empty(len(F))
    kernels.calm_rows(F, out)
    return out


def likeness(F: fourflux.Float, *, order: int = _ORDER) -> Array:
    r"""How alike mu and tau are, from 0 to 1.

    Parameters
    ----------
    F : ndarray, shape (n, 6, 4)
        Initial four-fluxes, C-contiguous, any one unit; not checked.
    order : int
        Order of the Lebedev rule.

    Returns
    -------
    ndarray, shape (n,)
        1 where their lepton numbers are the same in every direction, 0 where they differ as much as the electron's does
        from theirs, or more: ``max(0, 1 - u)`` with

        .. math:: u = 2 \int |L_\mu - L_\tau|\, d\Omega \Big/ \int |L_e - L_\mu| + |L_e - L_\tau|\, d\Omega.
    """
    w = np.empty(len(F))
    kernels.likeness_rows(F, rules(order)[0], w)
    return w


def survival_probability(
    F: fourflux.Float, directions: Array, theta: Array | tuple[float, ...] = ASYMPTOTIC, power_law: bool = False
) -> Array:
    """``P(n)`` of electron neutrinos, the axial component included.

    Parameters
    ----------
    F : ndarray, shape (6, 4)
        A state, any unit.
    directions : ndarray, shape (3, m)
        Unit vectors.
    theta : sequence of 8 numbers
        Parameters, in the order of `PARAMETERS`.
    power_law : bool
        As of `mixing_change`.

    Returns
    -------
    ndarray, shape (m,)
        Of `mixing_change` at order 31; 1 without a crossing.
    """
    from rheidae.mixing import sphere

    log_c, log_p, log_a, rise, shift, axial, log_p_axial, log_a_axial = theta
    q0 = 2 / 3 * np.exp(log_c)
    lift = rise * (1 - q0) / q0 if rise else 0.0

    def q(G: Array, weighted: Array, s: float, log_p: float, log_a: float) -> Array:
        if np.isnan(s):  # infinite where both sides are equal
            return np.zeros_like(G)
        large, small = np.maximum(weighted, 0).sum(), np.maximum(-weighted, 0).sum()
        if small > large:  # a beam between the nodes; the kernel goes by the quadrature, too
            G, small = -G, large
        a = np.exp(log_a)
        x, z = (np.maximum(G, 0) / s) ** a, np.exp2(-a * shift) * (np.maximum(-G, 0) / s) ** a
        r = np.sqrt(1 + x * x)
        base = 1 + x if power_law else r * (r + x)
        h = base ** -np.exp(log_p) + lift * z / np.sqrt(1 + z * z)
        return -np.expm1(-small / kernels.FADE) * q0 * h

    state = np.array(F[None], dtype=np.float64, order="C")
    state /= fourflux.total_density(state)[:, None, None]
    scales = mixing_change(state, np.array([theta], dtype=np.float64), power_law=power_law).scales[0]
    e, ebar, heavy, heavybar = sphere.electron_and_heavy(state[0])
    net = (e - ebar) - (heavy - heavybar)
    sign = 1.0 if net[fourflux.T] >= 0 else -1.0
    nodes, weights = lebedev(_ORDER)
    G_nodes = weights * sign * sphere.lepton_number(state[0], nodes)
    on_sphere = q(sign * sphere.lepton_number(state[0], directions), G_nodes, scales[0], log_p, log_a)
    # About the net flux; its part of the mixture is small where that is.
    size = np.linalg.norm(net[: fourflux.T])
    if axial == 0 or not size > kernels.NO_DIRECTION:
        return 1 - on_sphere
    axis = sign * net[: fourflux.T] / size
    zeta, zeta_weights = np.polynomial.legendre.leggauss(AXIAL_POINTS)
    G_axis = 2 * np.pi * zeta_weights * sign * sphere.mean_lepton_number(state[0], axis, zeta)
    G_here = sign * sphere.mean_lepton_number(state[0], axis, axis @ directions)
    on_axis = q(G_here, G_axis, scales[1], log_p_axial, log_a_axial)
    beta = axial * -np.expm1(-((size / (kernels.AXIS * np.abs(G_axis).sum())) ** 2))
    return 1 - (1 - beta) * on_sphere - beta * on_axis
