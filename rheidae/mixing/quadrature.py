"""Lebedev quadrature on the unit sphere."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LEBEDEV_ORDERS = (*range(3, 33, 2), *range(35, 132, 6))
"""Degrees for which a Lebedev rule is known (Lebedev and Laikov 1999) and SciPy has it."""


class Quadrature(NamedTuple):
    """Nodes on the unit sphere and their weights.

    Attributes
    ----------
    nodes : ndarray, shape (3, points)
        Unit vectors, x, y and z in rows, so that each component lies contiguous in memory.
    weights : ndarray, shape (points,)
        Their sum is 4 pi. The rules of degree 13, 25 and 27 have negative weights.
    """

    nodes: NDArray[np.float64]
    weights: NDArray[np.float64]


def upper_half(nodes: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Mark one of each pair of antipodes among the nodes ``(3, points)`` of a rule.

    Raises `ValueError` if the rule is not symmetric under inversion.
    """
    x, y, z = nodes
    # Coordinates that are zero but for rounding would put both or none of a pair there.
    on_equator, on_axis = np.abs(z) <= 1e-12, np.abs(y) <= 1e-12
    upper: NDArray[np.bool_] = np.where(on_equator, np.where(on_axis, x > 0, y > 0), z > 0)
    if 2 * np.count_nonzero(upper) != weights.size:
        raise ValueError("the rule is not symmetric under inversion")
    return upper


@cache
def lebedev(order: int) -> Quadrature:
    """Return the Lebedev rule that is exact for spherical harmonics up to degree `order`, one of `LEBEDEV_ORDERS`.

    These are 3 (6 points), ..., 13 (74), 17 (110), 31 (350), 53 (974), ..., 131 (5810). The arrays are read-only, and
    made once per process.

    Raises
    ------
    ValueError
        If no rule of that degree is known; the message names the nearest ones.
    """
    if order not in LEBEDEV_ORDERS:
        near = sorted(LEBEDEV_ORDERS, key=lambda known: abs(known - order))[:3]
        raise ValueError(f"no Lebedev rule of order {order}; the nearest are {sorted(near)}")
    from scipy.integrate import lebedev_rule

    nodes, weights = lebedev_rule(order)
    nodes, weights = np.ascontiguousarray(nodes), np.ascontiguousarray(weights)
    nodes.setflags(write=False)
    weights.setflags(write=False)
    return Quadrature(nodes, weights)
