"""The schemes in plain NumPy, one line per equation: slow, and there to be read and compared with.

Box3D is that of Richers, Froustey, Ghosh, Foucart and Gomez, arXiv:2409.04405, section III, and the names are theirs;
asymptotic mixing is ours, see docs/physics.md. Tests and benchmarks use this module; the package itself does not.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from rheidae.mixing.quadrature import lebedev

Array = NDArray[np.float64]


def inverse_langevin(f: Array) -> Array:
    """Solve ``L(Z) = coth Z - 1/Z = f`` for flux factors in [0, 1), to 1e-11 relative.

    By Newton's method from the Pade form of Cohen (1991).
    """
    Z = f * (3 - f**2) / (1 - f**2)
    for _ in range(7):
        series = Z < 0.03
        safe = np.where(series, 1.0, Z)
        q = np.exp(-2 * safe)
        L = np.where(series, Z / 3 - Z**3 / 45 + 2 * Z**5 / 945, (1 + q) / (1 - q) - 1 / safe)
        slope = np.where(series, 1 / 3 - Z**2 / 15 + 2 * Z**4 / 189, 1 / safe**2 - 4 * q / (1 - q) ** 2)
        Z = Z - (L - f) / slope
    return Z


def minerbo(F: Array, nodes: Array) -> Array:
    """Minerbo distributions ``g(n) = N/(4 pi) Z/sinh Z exp(Z Fhat.n)``, ``(..., points)``, per steradian.

    Of four-fluxes ``(..., 4)``, in their unit, in the directions ``nodes (3, points)``.
    """
    N, vector = F[..., 3], F[..., :3]
    length = np.linalg.norm(vector, axis=-1)
    Fhat = vector / np.where(length > 0, length, 1.0)[..., None]
    Z = inverse_langevin(np.minimum(length / np.where(N > 0, N, 1.0), 1 - 1e-16))
    # Z / sinh Z = 2 Z exp(-Z) / (1 - exp(-2 Z)), which does not overflow.
    safe = np.where(Z > 0, Z, 1.0)
    norm = N / (4 * np.pi) * np.where(Z > 0, 2 * safe / -np.expm1(-2 * safe), 1.0)
    return norm[..., None] * np.exp(Z[..., None] * (Fhat @ nodes - 1))


def box3d(F_init: Array, order: int = 31) -> Array:
    """Box3D with a sharp crossing, in conservative form: final from initial four-fluxes ``(n, 6, 4)``, any one unit."""
    nodes, w = lebedev(order)
    e, ebar = F_init[:, 0], F_init[:, 3]
    x, xbar = F_init[:, 1:3].mean(axis=1), F_init[:, 4:6].mean(axis=1)
    g_e, g_x, gbar_e, gbar_x = (minerbo(F, nodes) for F in (e, x, ebar, xbar))
    G = (g_e - gbar_e) - (g_x - gbar_x)
    I_plus = (w * G * (G > 0)).sum(axis=1)
    I_minus = -(w * G * (G <= 0)).sum(axis=1)
    small, large = np.minimum(I_plus, I_minus), np.maximum(I_plus, I_minus)
    crossing = small > 0
    P_large = 1 - (2 / 3) * small / np.where(crossing, large, 1.0)
    P_plus = np.where(I_plus <= I_minus, 1 / 3, P_large)
    P_minus = np.where(I_plus <= I_minus, P_large, 1 / 3)
    P = np.where(crossing[:, None], np.where(G > 0, P_plus[:, None], P_minus[:, None]), 1.0)
    moments = np.vstack([nodes, np.ones_like(w)])  # (n, 1)
    D = (w * (1 - P) * (g_e - g_x)) @ moments.T
    Dbar = (w * (1 - P) * (gbar_e - gbar_x)) @ moments.T
    change = np.stack([-D, D / 2, D / 2, -Dbar, Dbar / 2, Dbar / 2], axis=1)
    return F_init + change


PAIRS = ((0, 1), (0, 2), (1, 2))


def asymptotic(F_init: Array, order: int = 31) -> Array:
    """Asymptotic mixing of flux factors that the rule, at rest, resolves, up to about 0.8.

    Final from initial four-fluxes ``(n, 6, 4)``, any one unit.
    """
    nodes, w = lebedev(order)
    g = minerbo(F_init, nodes)
    p = np.array([transitions(L, w) for L in g[:, :3] - g[:, 3:]])
    moments = np.vstack([nodes, np.ones_like(w)])  # (n, 1)
    mixed = np.concatenate([np.einsum("inab,ian->ibn", p, g[:, s]) for s in (slice(0, 3), slice(3, 6))], axis=1)
    return F_init + (w * (mixed - g)) @ moments.T


def transitions(L: Array, w: Array) -> Array:
    """``p (m, 3, 3)``, from flavor to flavor, for lepton numbers ``L (3, m)`` on nodes with weights ``w (m,)``."""
    p = np.tile(np.eye(3), (len(w), 1, 1))
    sigma = strength(L, w)
    second, strongest = np.sort(sigma)[1:]
    if strongest == 0:
        return p
    share = 1 - second / strongest
    p = (1 - share) * p + share * two_flavors(L, w, PAIRS[sigma.argmax()])
    if second == 0:
        return p
    return p @ three_flavors(np.einsum("nab,an->bn", p, L), w)


def strength(L: Array, w: Array) -> Array:
    """``sigma = sqrt(I+ I-)`` of the pairs; 0 without a crossing."""
    G = np.stack([L[a] - L[b] for a, b in PAIRS])
    I_plus, I_minus = np.maximum(G, 0) @ w, np.maximum(-G, 0) @ w
    return np.sqrt(I_plus * I_minus)


def u(c: Array) -> Array:
    """How far a permutation of this cost is out of the mixture."""
    return c / np.sqrt(1 + c**2)


def bisect(rising: Callable[[float], float]) -> float:
    """The logarithm at which `rising` changes its sign."""
    low, high = -40.0, 40.0
    for _ in range(48):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return middle


def two_flavors(L: Array, w: Array, pair: tuple[int, int]) -> Array:
    """``T (m, 3, 3)`` of a pair that has a crossing."""
    a, b = pair
    G = L[a] - L[b]
    G = G * np.sign(w @ G) / np.abs(G).max()
    log_s = bisect(lambda log_s: w @ ((1 - u(G / np.exp(log_s))) * G))
    T = np.tile(np.eye(3), (len(w), 1, 1))
    T[:, a, a] = T[:, b, b] = 1 / 2 + u(G / np.exp(log_s)) / 2
    T[:, a, b] = T[:, b, a] = 1 - T[:, a, a]
    return T


PERMUTATIONS = ((0, 1, 2), (1, 0, 2), (0, 2, 1), (1, 2, 0), (2, 0, 1), (2, 1, 0))


def permutations(A: Array, B: Array, alpha: float, beta: float) -> Array:
    """``p (m, 3, 3)`` from rank to rank, for gaps ``A = L1 - L2``, ``B = L2 - L3`` of the sorted lepton numbers."""
    level = np.array([alpha + beta, beta, 0])  # lambda; L3 is put at 0
    gain = np.stack([(A + B) * level[pi[0]] + B * level[pi[1]] for pi in PERMUTATIONS], axis=1)
    cost = gain[:, :1] - gain  # the identity is the best
    order = np.argsort(cost, axis=1, kind="stable")
    reached = np.append(u(np.take_along_axis(cost, order, axis=1)), np.ones((len(A), 1)), axis=1)
    weight = np.cumsum((np.diff(reached, axis=1) / np.arange(1, 7))[:, ::-1], axis=1)[:, ::-1]
    matrix = np.array([np.eye(3)[list(pi)] for pi in PERMUTATIONS])
    return np.einsum("nk,nkab->nab", weight, matrix[order])


def three_flavors(L: Array, w: Array) -> Array:
    """``p (m, 3, 3)`` where two or three pairs have a crossing."""
    final = np.argsort(-(L @ w), kind="stable")  # flavors in the order of their totals
    first = np.argsort(-L, axis=0, kind="stable")  # and of each direction
    S = np.take_along_axis(L, first, axis=0)
    scale = (S[0] - S[2]).max()
    A, B = (S[0] - S[1]) / scale, (S[1] - S[2]) / scale
    highest, _, lowest = (w @ (L[flavor] - S[2]) / scale for flavor in final)

    def totals(log_alpha: float, log_beta: float) -> Array:
        p = permutations(A, B, np.exp(log_alpha), np.exp(log_beta))
        after: Array = np.einsum("n,na,nab->b", w, np.stack([A + B, B, 0 * A], axis=1), p)
        return after

    def log_beta(log_alpha: float) -> float:  # the lowest flavor keeps its total
        return bisect(lambda b: lowest - totals(log_alpha, b)[2])

    log_alpha = bisect(lambda a: totals(a, log_beta(a))[0] - highest)  # and the highest
    p = permutations(A, B, np.exp(log_alpha), np.exp(log_beta(log_alpha)))
    out = np.empty_like(p)
    for a in range(3):
        for b in range(3):
            out[np.arange(len(w)), first[a], final[b]] = p[:, a, b]
    return out
