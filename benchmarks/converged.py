"""States of every kind, and their converged answer by asymptotic mixing, by another quadrature."""

from __future__ import annotations

import numba
import numpy as np

from rheidae.mixing import _asymptotic_kernels as kernels
from rheidae.mixing._nodes_kernels import VALUES, WEIGHT
from rheidae.mixing.closure import inverse_langevin

KINDS = ("any", "ordinary", "beams", "mixed", "along", "lines", "stream", "clusters", "nearly empty", "coinciding")


def states(kind, n, seed=0, alike=True):
    """``(n, 6, 4)`` random states, total density 1: flux factors up to 1 - 1e-12, directions as the kind says."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    N, f = rng.uniform(0, 1, (n, 6)), rng.uniform(0, 1, (n, 6))
    unit = _unit(rng.normal(size=(n, 6, 3)))
    narrow = 1 - 10 ** -rng.uniform(0, 12, (n, 6))
    if kind == "ordinary":
        f *= 0.9
    elif kind == "beams":
        f = narrow
    elif kind not in ("any", "coinciding"):
        f = np.where(rng.random((n, 6)) < 0.5, f, narrow)
    if kind in ("along", "lines"):
        unit = unit[:, :1] * (rng.choice([-1, 1], (n, 6, 1)) if kind == "lines" else np.ones((n, 6, 1)))
    elif kind == "stream":  # free streaming: widths alike, directions within them
        gap = 10 ** (-rng.uniform(0.3, 4, (n, 1)) + rng.uniform(-0.7, 0.7, (n, 6)))
        f = 1 - gap.clip(1e-12, 1)
        spread = 10 ** rng.uniform(-3, 0.5, (n, 1, 1)) * np.sqrt(2 * (1 - f))[..., None]
        unit = _unit(unit[:, :1] + spread * rng.normal(size=(n, 6, 3)))
    elif kind == "clusters":
        centre = np.take_along_axis(unit[:, :2], rng.integers(0, 2, (n, 6, 1)), axis=1)
        unit = _unit(centre + 10 ** rng.uniform(-4, 0.3, (n, 1, 1)) * unit)
        f = 1 - 10 ** (-rng.uniform(0.5, 6, (n, 1)) + rng.uniform(-1, 1, (n, 6))).clip(-12, 0)
    elif kind == "nearly empty":
        unit = np.where(rng.random((n, 1, 1)) < 0.5, unit[:, :1], unit)
        N *= 10 ** -(rng.uniform(0, 6, (n, 6)) * (rng.random((n, 6)) < 0.4)) * (rng.random((n, 6)) < 0.9)
    elif kind == "coinciding":
        unit = np.where(rng.random((n, 6, 1)) < 0.5, unit[:, :1], unit)
    N[:, 0] += 1e-3
    F = np.concatenate([(N * f)[..., None] * unit, N[..., None]], axis=2)
    if alike:
        F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    length = np.linalg.norm(F[..., :3], axis=2)
    F[..., :3] *= (np.minimum(length, F[..., 3] * (1 - 1e-15)) / np.where(length > 0, length, 1))[..., None]
    return F / F[..., 3].sum(axis=1)[:, None, None]


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def answer(F, points=1500):
    """Final states: Fibonacci lattices of so many points on the sphere and about each flux.

    The scale is found by bisection; of unlike mu and tau, the scales are those of the package, on these nodes.
    """
    i = np.arange(points) + 0.5
    z, phi = 1 - 2 * i / points, np.pi * (1 + 5**0.5) * i
    lattice = np.array([np.sqrt(1 - z * z) * np.cos(phi), np.sqrt(1 - z * z) * np.sin(phi), z])
    turned = np.ascontiguousarray(np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0] @ lattice)
    alike = (F[:, 1] == F[:, 2]).all() and (F[:, 4] == F[:, 5]).all()
    moments = F[:, [0, 1, 3, 4]] if alike else F
    length = np.linalg.norm(moments[..., :3], axis=2)
    N = np.ascontiguousarray(moments[..., 3])
    f = np.minimum(length / np.where(N > 0, N, 1), 1 - 1.2e-16)
    Z = inverse_langevin(f.ravel()).reshape(f.shape)
    unit = moments[..., :3] / np.where(length > 0, length, 1)[..., None]
    unit[length == 0] = [0, 0, 1]
    change = np.zeros_like(F)
    if not alike:
        _mixed(unit, Z, N, turned, lattice, change)
        return F + change
    lost = np.zeros((len(F), 2, 4))
    _lost(unit, Z, N, turned, lattice, lost)
    share = np.array([1, -0.5, -0.5])[:, None]
    return F - np.concatenate([lost[:, :1] * share, lost[:, 1:] * share], axis=1)


@numba.njit(error_model="numpy")
def _nodes(h, Z, N, base, lattice, x, w, g):
    """Nodes, weights and distributions of one state; returns how many nodes."""
    points, species = base.shape[1], len(N)
    width, n = np.empty(species), points
    x[:, :n] = base
    for s in range(species):
        width[s] = min(1.5 / max(Z[s], 1e-9), 1.0)
        if Z[s] <= 2.0 or N[s] == 0.0:
            continue
        sign = 1.0 if h[s, 2] >= 0 else -1.0
        a = -1.0 / (sign + h[s, 2])
        u = np.array([1 + sign * h[s, 0] ** 2 * a, sign * h[s, 0] * h[s, 1] * a, -sign * h[s, 0]])
        v = np.array([h[s, 0] * h[s, 1] * a, sign + h[s, 1] ** 2 * a, -h[s, 1]])
        c = width[s]
        for i in range(points):
            inverse = 1.0 / (1.0 + (1.0 - c) * lattice[2, i])
            t, across = c * (1.0 - lattice[2, i]) * inverse, np.sqrt(c * (2.0 - c)) * inverse
            for k in range(3):
                x[k, n] = across * (lattice[0, i] * u[k] + lattice[1, i] * v[k]) - t * h[s, k] + h[s, k]
            n += 1
    for i in range(n):
        density = 1.0
        for s in range(species):
            t = 0.5 * ((x[0, i] - h[s, 0]) ** 2 + (x[1, i] - h[s, 1]) ** 2 + (x[2, i] - h[s, 2]) ** 2)
            if Z[s] > 2.0 and N[s] != 0.0:
                c = width[s]
                density += c * (2.0 - c) / (c + (1.0 - c) * t) ** 2
            peak = 2 * Z[s] / -np.expm1(-2 * Z[s]) if Z[s] > 1e-8 else 1.0
            g[s, i] = N[s] / (4 * np.pi) * peak * np.exp(-Z[s] * t)
        w[i] = 4 * np.pi / points / density
    return n


@numba.njit(error_model="numpy")
def _mixed(unit, Z, N, base, lattice, change):
    work, scratch = np.zeros((kernels._ROWS, 7 * base.shape[1])), np.empty((10, 12))
    x, w, g = work[:3], work[WEIGHT], work[VALUES : VALUES + 6]
    for row in range(len(N)):
        n = _nodes(unit[row], Z[row], N[row], base, lattice, x, w, g)
        kernels._lepton_numbers(np.int64(3), n, work)
        kernels.forget_scales(scratch)
        h = work[kernels._MIXED : kernels._MIXED + 6]
        h[:, :n] = g[:, :n]
        kernels.mix_flavors(n, work, scratch)
        for s in range(6):
            for i in range(n):
                moved = w[i] * (h[s, i] - g[s, i])
                for k in range(3):
                    change[row, s, k] += moved * x[k, i]
                change[row, s, 3] += moved


@numba.njit(error_model="numpy")
def _lost(unit, Z, N, base, lattice, lost):
    points = base.shape[1]
    x, w, g, G = np.empty((3, 5 * points)), np.empty(5 * points), np.empty((4, 5 * points)), np.empty(5 * points)
    for row in range(len(N)):
        n = _nodes(unit[row], Z[row], N[row], base, lattice, x, w, g)
        large = small = 0.0
        for i in range(n):
            G[i] = g[0, i] - g[1, i] - g[2, i] + g[3, i]
            large += w[i] * max(G[i], 0.0)
            small += w[i] * max(-G[i], 0.0)
        sign, small = (1.0 if large >= small else -1.0), min(large, small)
        if small < 1e-14:
            continue
        low, high = -90.0, 60.0
        while high - low > 1e-9:
            middle, total = 0.5 * (low + high), 0.0
            s = np.exp(middle)
            for i in range(n):
                r = sign * G[i] / np.hypot(G[i], s) if G[i] != 0 else 0.0
                total += w[i] * (2 / 3 - r / 2 - abs(r) / 6) * sign * G[i]
            low, high = (low, middle) if total > 0 else (middle, high)
        for i in range(n):
            r = sign * G[i] / np.hypot(G[i], s) if G[i] != 0 else 0.0
            value = w[i] * (2 / 3 - r / 2 - abs(r) / 6) * (1 - 2.0 ** -min(small / 1e-7, 1000.0))
            for nu in range(2):
                moved = value * (g[2 * nu, i] - g[2 * nu + 1, i])
                for k in range(3):
                    lost[row, nu, k] += moved * x[k, i]
                lost[row, nu, 3] += moved
