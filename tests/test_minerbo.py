import mpmath
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rheidae.mixing import reference
from rheidae.mixing.closure import inverse_langevin
from rheidae.mixing.quadrature import lebedev


def langevin_error(f, Z):
    """Relative residual of coth Z - 1/Z = f in 60 digits, over its derivative with respect to log Z."""
    with mpmath.workdps(60 + int(-2 * mpmath.log10(f)) if f < 1e-3 else 60):
        f, Z = mpmath.mpf(f), mpmath.mpf(Z)
        slope = 1 / Z**2 - mpmath.csch(Z) ** 2
        return float((mpmath.coth(Z) - 1 / Z - f) / (slope * Z))


@given(st.one_of(st.floats(1e-150, 1, exclude_max=True), st.floats(1e-15, 0.1).map(lambda h: 1 - h)))
def test_inverse_langevin_to_rounding(f):
    # Half an ulp of f alone moves Z by eps f / (2 (1 - f)); everything beyond is the kernel's own rounding.
    assert abs(langevin_error(f, float(inverse_langevin(f)))) < 1e-15 * (1 + 1 / (1 - f)) + 1e-15


def test_limits():
    assert inverse_langevin(0.0) == 0
    np.testing.assert_allclose(inverse_langevin([1e-300, 1e-20]), [3e-300, 3e-20], rtol=1e-15)
    h = np.array([1e-3, 1e-9, 2.0**-50])
    np.testing.assert_allclose(inverse_langevin(1 - h) * (1 - (1 - h)), 1, rtol=1e-15)
    assert inverse_langevin(np.full((2, 3), 0.5)).shape == (2, 3)


@pytest.mark.parametrize("f", [-1e-300, 1.0, 2.0, np.nan])
def test_outside_the_domain(f):
    with pytest.raises(ValueError, match="outside"):
        inverse_langevin([0.1, f])


@pytest.mark.parametrize("f", [0.0, 1e-12, 0.3, 0.8])
def test_distribution_has_the_moments_it_was_made_from(f):
    nodes, w = lebedev(131)
    F = np.array([f * 0.6, 0.0, -f * 0.8, 1.0]) * 2.5
    g = reference.minerbo(F, nodes)
    np.testing.assert_allclose((w * g).sum(), 2.5, rtol=1e-13)
    np.testing.assert_allclose((w * g * nodes).sum(axis=1), F[:3], atol=1e-13)
    assert (g > 0).all()
