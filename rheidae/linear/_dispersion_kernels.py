"""Numba kernels of linear stability: the 4 x 4 dispersion relation; no validation here.

The relation
------------
A small off-diagonal element S_j exp(i K.x - i Omega t) between two flavors obeys, along each direction n_j (c = 1),

    (omega - k.n_j) S_j = -sum_k (1 - n_j.n_k) g_k S_k,    omega = Omega - sum g,   k = K - sum g n,

with g the difference of the two flavors' lepton numbers times mu (Izaguirre, Raffelt and Tamborra 2017,
arXiv:1610.01612, eqs. 8 to 11; the shift of frame takes out the potential). With n^mu = (1, n) and
eta = diag(1, -1, -1, -1) a solution exists where

    det M = 0,    M = eta + sum_j g_j n_j n_j^T / (omega - k.n_j),

a 4 x 4 matrix, however many directions there are. Im omega > 0 is the growth rate.

Roots and their maximum
-----------------------
Newton in omega at fixed k: det/det' = 1/tr(M^-1 M'). At a root, M x = 0 gives the group velocity

    d omega/dk = sum_j g_j n_j s_j^2 / sum_j g_j s_j^2,    s_j = n_j.x/(omega - k.n_j),

whose imaginary part is the gradient of the growth rate: quasi-Newton (BFGS) ascent from the best of many k leads to the
fastest mode. Numbers are in units of sum |g| throughout.
"""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import driver, kernel, simd_function

_COARSE, _FINE = 1e-3, 1e-9

# Typed: Numba compiles a function anew for each literal integer.
_FEW, _MANY = np.int64(12), np.int64(30)


@kernel
def _weights(directions, g, kx, ky, kz, omega, work):
    """g/(omega - k.n) and g/(omega - k.n)^2 into ``work (4, m)``: re, im, re, im."""
    simd_function()
    e = omega.imag
    for j in range(g.shape[0]):
        d = omega.real - kx * directions[0, j] - ky * directions[1, j] - kz * directions[2, j]
        inverse = 1.0 / (d * d + e * e)
        re, im = d * inverse, -e * inverse
        wr, wi = g[j] * re, g[j] * im
        work[0, j], work[1, j] = wr, wi
        work[2, j], work[3, j] = wr * re - wi * im, wr * im + wi * re


@kernel
def _moments(products, work, out):
    """Sums over directions: ``out (10, 4) = products (10, m) . work (4, m)^T``."""
    simd_function()
    for c in range(10):
        a0 = a1 = a2 = a3 = 0.0
        for j in range(products.shape[1]):
            p = products[c, j]
            a0 += p * work[0, j]
            a1 += p * work[1, j]
            a2 += p * work[2, j]
            a3 += p * work[3, j]
        out[c, 0], out[c, 1], out[c, 2], out[c, 3] = a0, a1, a2, a3


@kernel
def _matrices(directions, products, g, kx, ky, kz, omega, work, sums, M, D):
    """M and its derivative in omega, ``(4, 4)`` complex."""
    _weights(directions, g, kx, ky, kz, omega, work)
    _moments(products, work, sums)
    c = 0
    for a in range(4):
        for b in range(a, 4):
            m, d = complex(sums[c, 0], sums[c, 1]), -complex(sums[c, 2], sums[c, 3])
            M[a, b], M[b, a] = m, m
            D[a, b], D[b, a] = d, d
            c += 1
    M[0, 0] += 1.0
    for a in range(1, 4):
        M[a, a] -= 1.0


@kernel
def _solve(M, D, columns):
    """Overwrite ``D`` by ``M^-1 D`` (elimination with pivots); ``M`` is destroyed."""
    for c in range(4):
        best, pivot = -1.0, c
        for r in range(c, 4):
            size = M[r, c].real ** 2 + M[r, c].imag ** 2
            if size > best:
                best, pivot = size, r
        if pivot != c:
            for k in range(4):
                M[c, k], M[pivot, k] = M[pivot, k], M[c, k]
            for k in range(columns):
                D[c, k], D[pivot, k] = D[pivot, k], D[c, k]
        inverse = 1.0 / (M[c, c] if best > 1e-60 else complex(1e-30))
        for r in range(c + 1, 4):
            f = M[r, c] * inverse
            for k in range(c + 1, 4):
                M[r, k] -= f * M[c, k]
            for k in range(columns):
                D[r, k] -= f * D[c, k]
        M[c, c] = inverse
    for c in range(3, -1, -1):
        for k in range(columns):
            v = D[c, k]
            for r in range(c + 1, 4):
                v -= M[c, r] * D[r, k]
            D[c, k] = v * M[c, c]


@kernel
def root(directions, products, g, kx, ky, kz, omega, tolerance, floor, steps, work, sums, M, D):
    """Newton from ``omega`` to a root in the upper half plane; an imaginary part of -1 says that it found none."""
    previous = 1e300
    for _ in range(steps):
        _matrices(directions, products, g, kx, ky, kz, omega, work, sums, M, D)
        _solve(M, D, 4)
        step = 1.0 / (D[0, 0] + D[1, 1] + D[2, 2] + D[3, 3])
        size = abs(step)
        if not size < 1e3:
            return complex(0.0, -1.0)
        if size > 0.3:
            step *= 0.3 / size
        new = omega - step
        # The real axis holds the poles of all directions: near it a step goes half the way.
        if new.imag < 0.3 * omega.imag:
            new = complex(new.real, 0.3 * omega.imag)
        if new.imag < floor:
            return complex(0.0, -1.0)
        if size < tolerance and abs(new - omega) < 2 * tolerance:
            return new
        if size > 4 * previous and previous < 0.02:
            return complex(0.0, -1.0)
        omega, previous = new, size
    return complex(0.0, -1.0)


@kernel
def velocity(directions, products, g, kx, ky, kz, omega, work, sums, M, D, out):
    """D omega/dk at a root, its imaginary part into ``out (3)``, its real part into ``out (3:6)``."""
    _matrices(directions, products, g, kx, ky, kz, omega, work, sums, M, D)
    # Inverse iteration: M is singular to the root's error, so that one solution is the null vector.
    D[0, 0], D[1, 0], D[2, 0], D[3, 0] = 1.0 + 0.3j, 0.7 - 0.2j, -0.4 + 0.6j, 0.5 + 0.5j
    _solve(M, D, 1)
    size = 0.0
    for a in range(4):
        size = max(size, abs(D[a, 0]))
    x0, x1, x2, x3 = D[0, 0] / size, D[1, 0] / size, D[2, 0] / size, D[3, 0] / size
    total, vx, vy, vz = 0.0j, 0.0j, 0.0j, 0.0j
    for j in range(g.shape[0]):
        nx, ny, nz = directions[0, j], directions[1, j], directions[2, j]
        s = x0 + nx * x1 + ny * x2 + nz * x3
        # work holds g/(omega - k.n)^2.
        s = s * s * complex(work[2, j], work[3, j])
        total += s
        vx += nx * s
        vy += ny * s
        vz += nz * s
    v = 1.0 / total
    vx, vy, vz = vx * v, vy * v, vz * v
    out[0], out[1], out[2], out[3], out[4], out[5] = vx.imag, vy.imag, vz.imag, vx.real, vy.real, vz.real


@kernel
def _project(P, a, b):
    """``b = P a`` for the components from 0 to 2: only wave vectors of the box may change."""
    for i in range(3):
        b[i] = P[i, 0] * a[0] + P[i, 1] * a[1] + P[i, 2] * a[2]


@kernel
def ascend(directions, products, g, P, k, omega, floor, work, sums, M, D, h, B):
    """BFGS ascent of Im omega from ``k (3)``, which is moved; returns omega there. Work: ``h (7, 6), B (3, 3)``."""
    omega = root(directions, products, g, k[0], k[1], k[2], omega, _FINE, floor, _MANY, work, sums, M, D)
    if omega.imag < 0:
        return omega
    grad, step, trial, new, y, Hy, raw = h[0], h[1], h[2], h[3], h[4], h[5], h[6]
    velocity(directions, products, g, k[0], k[1], k[2], omega, work, sums, M, D, raw)
    _project(P, raw, grad)
    for i in range(3):
        for j in range(3):
            B[i, j] = 0.15 if i == j else 0.0
    for _ in range(60):
        slope = 0.0
        for i in range(3):
            step[i] = B[i, 0] * grad[0] + B[i, 1] * grad[1] + B[i, 2] * grad[2]
            slope += step[i] * grad[i]
        size = np.sqrt(step[0] ** 2 + step[1] ** 2 + step[2] ** 2)
        if slope < 1e-12 or slope < 1e-7 * omega.imag:
            break
        length = min(1.0, 0.1 / size)
        accepted = False
        for _attempt in range(8):
            dot = 0.0j
            for i in range(3):
                trial[i] = k[i] + length * step[i]
                dot += length * step[i] * complex(raw[3 + i], raw[i])
            guess = omega + dot
            if guess.imag < floor:
                guess = complex(guess.real, 0.5 * omega.imag)
            found = root(
                directions, products, g, trial[0], trial[1], trial[2], guess, _FINE, floor, _MANY, work, sums, M, D
            )
            if found.imag > omega.imag + 1e-4 * length * slope:
                accepted = True
                break
            length *= 0.3
        if not accepted:
            break
        velocity(directions, products, g, trial[0], trial[1], trial[2], found, work, sums, M, D, raw)
        _project(P, raw, new)
        # B approximates minus the inverse Hessian: s = step taken, y = decrease of the gradient.
        sy = 0.0
        for i in range(3):
            step[i] *= length
            y[i] = grad[i] - new[i]
            sy += step[i] * y[i]
        if sy > 1e-14:
            yHy = 0.0
            for i in range(3):
                Hy[i] = B[i, 0] * y[0] + B[i, 1] * y[1] + B[i, 2] * y[2]
                yHy += Hy[i] * y[i]
            for i in range(3):
                for j in range(3):
                    B[i, j] += (1.0 + yHy / sy) * step[i] * step[j] / sy - (Hy[i] * step[j] + step[i] * Hy[j]) / sy
        for i in range(3):
            k[i], grad[i] = trial[i], new[i]
        omega = found
    return omega


@kernel
def _fastest(
    directions, products, g, P, starts, phases, heights, floor, ascents, rates, omegas, work, sums, M, D, h, B, at, k
):
    """The fastest mode of one pair of flavors: returns the growth rate, its wave vector into ``k (3)``."""
    for s in range(starts.shape[0]):
        kx, ky, kz = starts[s, 0], starts[s, 1], starts[s, 2]
        size = np.sqrt(kx * kx + ky * ky + kz * kz)
        rates[s], omegas[s] = -1.0, 0.0j
        for p in range(phases.shape[0]):
            for q in range(heights.shape[0]):
                omega = complex(phases[p] * size, heights[q])
                omega = root(directions, products, g, kx, ky, kz, omega, _COARSE, floor, _FEW, work, sums, M, D)
                if omega.imag > rates[s]:
                    rates[s], omegas[s] = omega.imag, omega
    best = 0.0
    k[0], k[1], k[2] = 0.0, 0.0, 0.0
    for _ in range(ascents):
        top = 0
        for s in range(1, starts.shape[0]):
            if rates[s] > rates[top]:
                top = s
        if rates[top] <= 0.0:
            break
        rates[top] = -1.0
        for i in range(3):
            at[i] = starts[top, i]
        omega = ascend(directions, products, g, P, at, omegas[top], floor, work, sums, M, D, h, B)
        if omega.imag > best:
            best = omega.imag
            k[0], k[1], k[2] = at[0], at[1], at[2]
    return best


@driver
def fastest(directions, products, g, frames, P, starts, phases, heights, floor, ascents, rate, wave):
    """`_fastest` of many states: ``g (n, m)`` to ``rate (n)`` and ``wave (n, 3)``, in the unit of ``g``.

    ``directions (3, m)``; ``products (10, m)``: n_a n_b for a <= b; ``starts (s, 3)`` wave vectors in units of sum |g|,
    turned by ``frames (n, 3, 3)`` and shifted by -J where ``P``, the projection on the box's wave vectors, is not 1.
    """
    m, count = g.shape[1], starts.shape[0]
    full = P[0, 0] + P[1, 1] + P[2, 2] > 2.5
    work, sums = np.empty((4, m)), np.empty((10, 4))
    M, D = np.empty((4, 4), dtype=np.complex128), np.empty((4, 4), dtype=np.complex128)
    h, B, at, k = np.empty((7, 3 + 3)), np.empty((3, 3)), np.empty(3), np.empty(3)
    rates, omegas = np.empty(count), np.empty(count, dtype=np.complex128)
    turned, unit = np.empty((count, 3)), np.empty(m)
    for r in range(g.shape[0]):
        scale, low, high = 0.0, 0.0, 0.0
        for j in range(m):
            scale += abs(g[r, j])
            low, high = min(low, g[r, j]), max(high, g[r, j])
        rate[r], wave[r, 0], wave[r, 1], wave[r, 2] = 0.0, 0.0, 0.0, 0.0
        # One sign in all directions: the matrix is similar to a symmetric one, and nothing grows.
        if not (low < 0.0 < high):
            continue
        for j in range(m):
            unit[j] = g[r, j] / scale
        for i in range(3):
            J = 0.0
            if not full:
                for j in range(m):
                    J += unit[j] * directions[i, j]
            for s in range(count):
                v = -J
                for a in range(3):
                    v += frames[r, i, a] * starts[s, a]
                turned[s, i] = v
        rate[r] = scale * _fastest(
            directions, products, unit, P, turned, phases, heights, floor, ascents,
            rates, omegas, work, sums, M, D, h, B, at, k,
        )  # fmt: skip
        for i in range(3):
            wave[r, i] = scale * k[i]
