"""Kernels that look at pairs of initial and final four-fluxes."""

from __future__ import annotations

from rheidae.system.numba import kernel

GOOD, NOT_FINITE, NEGATIVE, TOO_FAST, EMPTY, OUT_OF_RANGE, TOTALS_DIFFER = range(7)
# Single precision, in which the outputs are written, ends at 3.4e38 and loses digits below 1.2e-38.
LEAST_TOTAL, LARGEST_TOTAL = 1e-30, 1e38


@kernel
def _fault(F, limit):
    """Return the first fault of one state ``F (6, 4)`` in the order of the numbers above, the last one left out."""
    fault = GOOD
    total = 0.0
    for species in range(6):
        n, x, y, z = F[species, 3], F[species, 0], F[species, 1], F[species, 2]
        total += n
        # Zero times NaN or infinity is NaN, which equals nothing.
        if 0.0 * x + 0.0 * y + 0.0 * z + 0.0 * n != 0.0:
            return NOT_FINITE
        if n < 0.0:
            fault = NEGATIVE
        elif fault != NEGATIVE:
            if n > 0.0:
                # Compared after division by N, so that neither 1e-30 nor 1e40 leaves the range of the square.
                x, y, z = x / n, y / n, z / n
                if not (x * x + y * y + z * z <= limit):
                    fault = TOO_FAST
            elif x != 0.0 or y != 0.0 or z != 0.0:
                fault = TOO_FAST
    if fault != GOOD:
        return fault
    if total == 0.0:
        return EMPTY
    if not (total > LEAST_TOTAL and total < LARGEST_TOTAL):
        return OUT_OF_RANGE
    return GOOD


@kernel
def classify_rows(F_init, F_true, flux_tolerance, totals_tolerance, kinds):
    """Fault of each pair of states ``(n, 6, 4)`` into ``kinds (n)``; those of the final state have 16 added."""
    limit = (1.0 + flux_tolerance) ** 2
    for i in range(F_init.shape[0]):
        kind = _fault(F_init[i], limit)
        if kind == GOOD:
            kind = _fault(F_true[i], limit)
            if kind != GOOD:
                kind += 16
            else:
                nu = nubar = nu_change = nubar_change = 0.0
                for flavor in range(3):
                    nu += F_init[i, flavor, 3]
                    nubar += F_init[i, 3 + flavor, 3]
                    nu_change += F_true[i, flavor, 3] - F_init[i, flavor, 3]
                    nubar_change += F_true[i, 3 + flavor, 3] - F_init[i, 3 + flavor, 3]
                if not (max(abs(nu_change), abs(nubar_change)) <= totals_tolerance * (nu + nubar)):
                    kind = TOTALS_DIFFER + 16
        kinds[i] = kind
