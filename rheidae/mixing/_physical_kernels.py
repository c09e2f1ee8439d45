"""Numba kernel that keeps rows physical. No validation here; see `rheidae.mixing.physical`."""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel


@kernel
def _inside(F, out, scale, slack, t):
    """Whether ``F + t (out - F)`` of one species, times `scale`, lies in the cone, or outside by `slack` at most."""
    square = 0.0
    for k in range(3):
        x = scale * (F[k] + t * (out[k] - F[k]))
        square += x * x
    return scale * (F[3] + t * (out[3] - F[3])) + slack >= np.sqrt(square)


@kernel
def limit_rows(F, out, start, stop):
    """Shorten the change ``out - F`` of each row as far as keeps every species physical, by one factor for all six.

    Physical four-fluxes form a convex cone, so along the way from a physical F there is one place where it is left.
    Bisection finds it: its quadratic equation loses all digits where F lies at the cone's edge and goes along it. A
    common factor keeps every linear conservation law. Rows that are physical already are not touched; a species that
    starts outside the cone, by rounding or more, does not get further from it.
    """
    for i in range(start, stop):
        total = 0.0
        for s in range(6):
            total += F[i, s, 3]
        if not total > 0.0:
            continue
        scale = 1.0 / total
        factor = 1.0
        for s in range(6):
            if _inside(F[i, s], out[i, s], scale, 0.0, factor):
                continue
            square = 0.0
            for k in range(3):
                square += scale * F[i, s, k] * (scale * F[i, s, k])
            slack = max(np.sqrt(square) - scale * F[i, s, 3], 0.0)
            if _inside(F[i, s], out[i, s], scale, slack, factor):
                continue
            low, high = 0.0, factor
            for _ in range(54):
                middle = 0.5 * (low + high)
                if _inside(F[i, s], out[i, s], scale, slack, middle):
                    low = middle
                else:
                    high = middle
            factor = low
        if factor < 1.0:
            # A hair inside: rounding must not carry the row out again.
            factor *= 1.0 - 1e-9
            for s in range(6):
                for k in range(4):
                    out[i, s, k] = F[i, s, k] + factor * (out[i, s, k] - F[i, s, k])
