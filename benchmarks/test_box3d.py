"""Box3D: Numba against plain vectorised NumPy."""

import numpy as np
import pytest

from rheidae import box3d_flux, reference
from tests.states import random_states

SAMPLES = 8192
GROUP = "Box3D, order 31, sharp crossing"


@pytest.fixture(scope="module")
def states():
    return random_states(SAMPLES, alike=True)


def numpy_in_blocks(F):
    """The reference in blocks that fit into the cache, which is when NumPy is quickest."""
    return np.concatenate([reference.box3d(F[start : start + 256]) for start in range(0, len(F), 256)])


def test_numpy(rate, states):
    rate(GROUP, "NumPy, blocks of 256", SAMPLES, lambda: numpy_in_blocks(states), rounds=3)


@pytest.mark.parametrize("threads", [1, 2])
def test_numba(rate, states, threads):
    rate(GROUP, f"Numba, {threads} thread(s)", SAMPLES, lambda: box3d_flux(states, threads=threads))


@pytest.mark.parametrize("order", [13, 17, 31, 53])
def test_orders(rate, states, order):
    rate("Box3D by order, 1 thread", f"order {order}", SAMPLES, lambda: box3d_flux(states, order=order, threads=1))
