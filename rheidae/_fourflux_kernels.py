"""Kernels over arrays of four-fluxes."""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel, scalar_kernel


@scalar_kernel
def _is_physical(x, y, z, n, limit):
    """Whether a four-flux is finite with ``N >= 0`` and ``|F|^2 <= limit N^2``; NaN fails every comparison."""
    if n > 1e-140 and n < 1e140:
        return x * x + y * y + z * z <= limit * (n * n)
    # Squares would leave the range of a double.
    if n > 0.0 and n < float("inf"):
        x, y, z = x / n, y / n, z / n
        return x * x + y * y + z * z <= limit
    return n == 0.0 and x == 0.0 and y == 0.0 and z == 0.0


@kernel
def first_unphysical(F, tolerance):
    """Row and species of the first unphysical four-flux in ``F (n, 6, 4)``, or ``(-1, -1)``."""
    limit = (1.0 + tolerance) ** 2
    for row in range(F.shape[0]):
        for species in range(6):
            x, y, z = float(F[row, species, 0]), float(F[row, species, 1]), float(F[row, species, 2])
            if not _is_physical(x, y, z, float(F[row, species, 3]), limit):
                return row, species
    return -1, -1


@kernel
def unphysical_rows(F, tolerance, out):
    """Mark in ``out (n,)`` the rows of ``F (n, 6, 4)`` that hold an unphysical four-flux; return how many there are."""
    limit = (1.0 + tolerance) ** 2
    count = 0
    for row in range(F.shape[0]):
        bad = False
        for species in range(6):
            x, y, z = float(F[row, species, 0]), float(F[row, species, 1]), float(F[row, species, 2])
            if not _is_physical(x, y, z, float(F[row, species, 3]), limit):
                bad = True
        out[row] = bad
        count += bad
    return count


@kernel
def _least_margin(F):
    """The smallest ``N - |F|`` of the species of ``F (6, 4)``, over the total density."""
    total, least = 0.0, np.inf
    for s in range(6):
        total += F[s, 3]
        least = min(least, F[s, 3] - np.sqrt(F[s, 0] ** 2 + F[s, 1] ** 2 + F[s, 2] ** 2))
    return least / total if total > 0.0 else least


@kernel
def mark_changes(F, G, edge, changed, met):
    """Mark rows of ``G (n, 6, 4)`` that differ from ``F``, and those of them that have met ``N = |F|`` to `edge`."""
    for row in range(F.shape[0]):
        differs = False
        for s in range(6):
            for k in range(4):
                differs = differs or F[row, s, k] != G[row, s, k]
        changed[row] = differs
        met[row] = differs and _least_margin(G[row]) <= edge < _least_margin(F[row])
