"""Numba kernel that keeps rows physical. No validation here; see `rheidae.mixing.physical`."""

from __future__ import annotations

import numpy as np

from rheidae.system.numba import kernel

#: A species may be outside by this part of the total density before the whole row's change is shortened: it is put
#: `EDGE` inside by its density.
ROUNDING, EDGE = 1e-13, 5e-16


@kernel
def _inside(F, out, scale, slack, t):
    """Whether ``F + t (out - F)`` of one species, times `scale`, lies in the cone, or outside by `slack` at most."""
    square = 0.0
    for k in range(3):
        x = scale * (F[k] + t * (out[k] - F[k]))
        square += x * x
    return scale * (F[3] + t * (out[3] - F[3])) + slack >= np.sqrt(square)


@kernel
def _put_on_edge(F, out, total):
    """Move what is outside by rounding a hair inside, by the density, unless the species stayed as it was."""
    square = 0.0
    for k in range(3):
        square += out[k] * out[k]
    length = np.sqrt(square)
    moved = out[0] != F[0] or out[1] != F[1] or out[2] != F[2] or out[3] != F[3]
    if moved and -EDGE * total < length - out[3] < ROUNDING * total:
        out[3] = length + EDGE * total


@kernel
def limit_row(F, out):
    """Shorten the change ``out - F`` of a row as far as keeps every species physical; return the factor.

    It is one factor for all six. Physical four-fluxes form a convex cone, so along the way from a physical F there is
    one place where it is left. Bisection finds it: its quadratic equation loses all digits where F lies at the cone's
    edge and goes along it. A common factor keeps every linear conservation law. Rows that are physical already are not
    touched; a species that starts outside the cone, by rounding or more, does not get further from it. A mixture of
    positive distributions is physical but for rounding, which must not cost the row its change where a species has no
    width: see `ROUNDING`.
    """
    total = 0.0
    for s in range(6):
        total += F[s, 3]
    if not total > 0.0:
        return 1.0
    scale = 1.0 / total
    factor = 1.0
    for s in range(6):
        _put_on_edge(F[s], out[s], total)
        if _inside(F[s], out[s], scale, 0.0, factor):
            continue
        square = 0.0
        for k in range(3):
            square += scale * F[s, k] * (scale * F[s, k])
        slack = max(np.sqrt(square) - scale * F[s, 3], 0.0)
        if _inside(F[s], out[s], scale, slack, factor):
            continue
        low, high = 0.0, factor
        for _ in range(54):
            middle = 0.5 * (low + high)
            if _inside(F[s], out[s], scale, slack, middle):
                low = middle
            else:
                high = middle
        factor = low
    if factor < 1.0:
        # A hair inside: rounding must not carry the row out again.
        factor *= 1.0 - 1e-9
        for s in range(6):
            for k in range(4):
                out[s, k] = F[s, k] + factor * (out[s, k] - F[s, k])
    return factor


@kernel
def limit_rows(F, out, start, stop):
    """`limit_row` of each row."""
    for i in range(start, stop):
        limit_row(F[i], out[i])
