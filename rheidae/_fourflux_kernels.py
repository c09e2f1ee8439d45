"""Kernels over arrays of four-fluxes."""

from __future__ import annotations

from rheidae._numba import kernel


@kernel
def first_unphysical(F, tolerance):
    """Row and species of the first unphysical four-flux in ``F (n, 6, 4)``, or ``(-1, -1)``.

    Lengths are compared after division by N, so that neither 1e-30 nor 1e40 leaves the range of the square;
    the comparisons are written so that NaN fails them.
    """
    limit = (1.0 + tolerance) ** 2
    for row in range(F.shape[0]):
        for species in range(6):
            n = float(F[row, species, 3])
            x = float(F[row, species, 0])
            y = float(F[row, species, 1])
            z = float(F[row, species, 2])
            if n > 0.0 and n < float("inf"):
                x, y, z = x / n, y / n, z / n
                if not (x * x + y * y + z * z <= limit):
                    return row, species
            elif not (n == 0.0 and x == 0.0 and y == 0.0 and z == 0.0):
                return row, species
    return -1, -1
