import math

import numpy as np
import pytest

from rheidae.mixing.quadrature import LEBEDEV_ORDERS, lebedev


def double_factorial(n):
    return math.prod(range(n, 0, -2)) if n > 0 else 1


def monomial_integral(a, b, c):
    """int x^a y^b z^c over the unit sphere, all exponents even."""
    return (
        4 * np.pi * double_factorial(a - 1) * double_factorial(b - 1) * double_factorial(c - 1)
        / double_factorial(a + b + c + 1)
    )  # fmt: skip


@pytest.mark.parametrize("order", LEBEDEV_ORDERS)
def test_monomials_up_to_the_order(order):
    (x, y, z), w = lebedev(order)
    even = order - order % 2
    for a, b in [(0, 0), (2, 0), (even, 0), (even // 4 * 2, even // 4 * 2), (even - 2, 2)]:
        c = max(0, (even - a - b) // 2 * 2)
        np.testing.assert_allclose((w * x**a * y**b * z**c).sum(), monomial_integral(a, b, c), rtol=1e-9)
    assert abs((w * x**3 * y).sum()) < 1e-13


def test_nodes_are_unit_vectors_and_read_only():
    nodes, weights = lebedev(31)
    np.testing.assert_allclose(np.linalg.norm(nodes, axis=0), 1, atol=1e-14)
    assert weights.size == 350
    with pytest.raises(ValueError, match="read-only"):
        nodes[0, 0] = 0


@pytest.mark.parametrize("order", [0, 14, 33, 133])
def test_unknown_order_names_the_nearest(order):
    with pytest.raises(ValueError, match=f"no Lebedev rule of order {order}; the nearest are"):
        lebedev(order)
