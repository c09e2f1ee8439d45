"""Kernels of `rheidae.estimator.networks.InvariantFrame`: what its methods say, without a dozen small tensors per step.

Rows with more antineutrinos than neutrinos are read, and their changes written, with both exchanged: `exchanged[row]`
is the offset (0 or 1) of the side that counts as neutrinos. A row of `x` is (initial, Box3D) x (nu, nubar) x (e, mu,
tau) x (x, y, z, t). Six vectors belong to a row: flux factors of e, ebar, x, xbar and Box3D's relative change of
e, ebar.
"""

from __future__ import annotations

import math

from rheidae.system.numba import kernel


@kernel
def describe(x, features, vectors, size, exchanged):
    """Features ``(n, 30)``, vectors ``(n, 6, 3)`` and sizes ``(n)`` of rows ``x (n, 2, 2, 3, 4)``."""
    for row in range(x.shape[0]):
        init, box = x[row, 0], x[row, 1]
        excess = init[0, 0, 3] - init[1, 0, 3]
        excess -= 0.5 * ((init[0, 1, 3] - init[1, 1, 3]) + (init[0, 2, 3] - init[1, 2, 3]))
        swap = 1 if excess < 0.0 else 0
        exchanged[row] = swap
        total = 0.0
        for place in range(2):
            side = place ^ swap
            for k in range(4):
                total += float(init[side, 0, k] - box[side, 0, k]) ** 2
        norm = math.sqrt(total)
        size[row] = norm
        inverse = 1.0 / max(norm, 1e-12)
        out = features[row]
        for place in range(2):
            side = place ^ swap
            electron, mu, tau = init[side, 0], init[side, 1], init[side, 2]
            heavy = 0.5 * (mu[3] + tau[3])
            out[place], out[2 + place] = electron[3], heavy
            out[4 + place] = (electron[3] - box[side, 0, 3]) * inverse
            out[7 + place] = electron[3] - heavy
            by_electron, by_heavy = 1.0 / max(electron[3], 1e-12), 0.5 / max(heavy, 1e-12)
            for k in range(3):
                vectors[row, place, k] = electron[k] * by_electron
                vectors[row, 2 + place, k] = (mu[k] + tau[k]) * by_heavy
                vectors[row, 4 + place, k] = (electron[k] - box[side, 0, k]) * inverse
        out[6] = math.log(max(norm, 1e-6))
        place = 9
        for i in range(6):
            for j in range(i, 6):
                a, b = vectors[row, i], vectors[row, j]
                out[place] = a[0] * b[0] + a[1] * b[1] + a[2] * b[2]
                place += 1


@kernel
def rebuild(coefficients, vectors, size, exchanged, conserve, change):
    """Changes ``(n, 2, 3, 4)`` from coefficients ``(n, 13)``, or ``(n, 28)`` if not `conserve`."""
    for row in range(coefficients.shape[0]):
        c = coefficients[row]
        for place in range(2):
            side = place ^ exchanged[row]
            for flavor in range(1 if conserve else 2):
                first = 1 + 6 * place if conserve else 7 * (2 * place + flavor)
                number = 0 if conserve else first + 6
                for k in range(4):
                    value = 0.0
                    if k == 3:
                        value = float(c[number])
                    else:
                        for i in range(6):
                            value += c[first + i] * vectors[row, i, k]
                    value *= size[row]
                    if conserve:
                        change[row, side, 0, k] = value
                        change[row, side, 1, k] = change[row, side, 2, k] = -0.5 * value
                    elif flavor == 0:
                        change[row, side, 0, k] = value
                    else:
                        change[row, side, 1, k] = change[row, side, 2, k] = value


@kernel
def transposed_rebuild(cotangents, vectors, size, exchanged, conserve, out):
    """The transpose of `rebuild`: ``(T, n, 2, 3, 4)`` to ``(T, n, 13)`` or ``(T, n, 28)``."""
    for task in range(cotangents.shape[0]):
        for row in range(cotangents.shape[1]):
            to = out[task, row]
            if conserve:
                to[0] = 0.0
            for place in range(2):
                c = cotangents[task, row, place ^ exchanged[row]]
                for flavor in range(1 if conserve else 2):
                    first = 1 + 6 * place if conserve else 7 * (2 * place + flavor)
                    for i in range(6):
                        to[first + i] = 0.0
                    for k in range(4):
                        if conserve:
                            value = c[0, k] - 0.5 * (c[1, k] + c[2, k])
                        elif flavor == 0:
                            value = float(c[0, k])
                        else:
                            value = float(c[1, k] + c[2, k])
                        value *= size[row]
                        if k < 3:
                            for i in range(6):
                                to[first + i] += value * vectors[row, i, k]
                        elif conserve:
                            to[0] += value
                        else:
                            to[first + 6] = value
