import itertools

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rheidae import _box3d_kernels as kernels
from rheidae import box3d_flux, fourflux, reference
from rheidae.exceptions import FourFluxError
from rheidae.minerbo import inverse_langevin
from rheidae.quadrature import LEBEDEV_ORDERS, lebedev
from tests.states import conservation_error, random_rotation, random_states, states, turn


def total(F):
    return F[:, :, 3].sum(axis=1)[:, None, None]


@pytest.mark.parametrize("order", LEBEDEV_ORDERS)
def test_equals_the_reference(order):
    F = random_states(64 if order < 60 else 8, seed=order)
    assert np.abs((box3d_flux(F, order=order) - reference.box3d(F, order)) / total(F)).max() < 1e-13


def test_equals_the_reference_for_beams():
    F = random_states(200, max_flux_factor=0.999)
    assert np.abs((box3d_flux(F) - reference.box3d(F)) / total(F)).max() < 1e-11


@given(states())
def test_conserves_for_any_state(F):
    assert conservation_error(F, box3d_flux(F)) < 1e-12


@given(states(), st.sampled_from([0.0, 0.3, 1.0]))
def test_mu_fraction_divides_the_final_heavy_total(F, fraction):
    shared, divided = box3d_flux(F), box3d_flux(F, mu_fraction=fraction)
    if (shared == F).all():
        np.testing.assert_array_equal(divided, F)
        return
    for nu in (0, 3):
        np.testing.assert_array_equal(divided[:, nu], shared[:, nu])
        heavy = shared[:, nu + 1] + shared[:, nu + 2]
        np.testing.assert_allclose(divided[:, nu + 1], fraction * heavy, atol=1e-14)
        np.testing.assert_allclose(divided[:, nu + 2], (1 - fraction) * heavy, atol=1e-14)


def test_continuous_where_a_beam_changes_the_branch():
    f = 1 - 1 / kernels.BEAM_Z  # Z = BEAM_Z
    F = random_states(100)
    direction = F[:, 0, :3] / np.linalg.norm(F[:, 0, :3], axis=1, keepdims=True)
    below, above = F.copy(), F.copy()
    below[:, 0, :3], above[:, 0, :3] = ((f + h) * direction * F[:, 0, 3:] for h in (-1e-10, 1e-10))
    assert np.abs((box3d_flux(above) - box3d_flux(below)) / total(F)).max() < 1e-6


@given(states(0.9), st.floats(1e-30, 1e30))
def test_scales_with_its_input(F, scale):
    np.testing.assert_allclose(box3d_flux(F * scale) / scale, box3d_flux(F), atol=1e-12 * F[..., 3].sum())


def test_power_of_two_scales_exactly():
    F = random_states(100)
    np.testing.assert_array_equal(box3d_flux(F * 2.0**100), box3d_flux(F) * 2.0**100)


def test_exchanging_neutrinos_and_antineutrinos():
    F = random_states(300)
    exchanged = box3d_flux(np.ascontiguousarray(F[:, [3, 4, 5, 0, 1, 2]]))[:, [3, 4, 5, 0, 1, 2]]
    assert np.abs((exchanged - box3d_flux(F)) / total(F)).max() < 1e-13


def test_exchanging_mu_and_tau():
    F = random_states(300)
    exchange = [0, 2, 1, 3, 5, 4]
    np.testing.assert_allclose(box3d_flux(np.ascontiguousarray(F[:, exchange]))[:, exchange], box3d_flux(F), atol=1e-15)


def test_initial_difference_of_mu_and_tau_survives():
    F = random_states(100)
    out = box3d_flux(F)
    np.testing.assert_allclose(out[:, 1] - out[:, 2], F[:, 1] - F[:, 2], atol=1e-15)


def test_octahedral_rotation_is_exact_and_any_other_within_the_quadrature_error():
    F = random_states(300)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    assert np.abs((turn(box3d_flux(F), quarter) - box3d_flux(turn(F, quarter))) / total(F)).max() < 1e-13
    rotation = random_rotation(1)
    difference = np.abs(turn(box3d_flux(F), rotation) - box3d_flux(turn(F, rotation))) / total(F)
    assert np.percentile(difference.max(axis=(1, 2)), 95) < 1.5e-3


def no_crossing(n=50):
    """nu_e above nubar_e in every direction, heavy flavors equal."""
    F = random_states(n)
    F[:, [1, 2, 4, 5]] = F[:, [1]]
    F[:, 0] = F[:, 3] * 1.5
    return F


def test_without_a_crossing_nothing_changes():
    F = no_crossing()
    np.testing.assert_array_equal(box3d_flux(F), F)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_isotropic_or_empty_states_stay(dtype):
    F = np.zeros((3, 6, 4), dtype)
    F[0, :, 3] = [3, 1, 1, 2, 1, 1]
    F[1, 0, 3] = 1
    np.testing.assert_array_equal(box3d_flux(F), F)


def test_full_equilibration_where_both_sides_are_equal():
    # nu_e and nubar_e are mirror images, no heavy neutrinos: both sides of G are alike, P = 1/3 everywhere,
    # and every flavor ends up with a third of everything.
    F = np.zeros((1, 6, 4))
    F[0, 0], F[0, 3] = [0, 0, 0.4, 1], [0, 0, -0.4, 1]
    out = box3d_flux(F)
    for flavor in range(3):
        np.testing.assert_allclose(out[0, flavor], F[0, 0] / 3, atol=1e-14)
        np.testing.assert_allclose(out[0, 3 + flavor], F[0, 3] / 3, atol=1e-14)


def axisymmetric_by_line_integral(N, f):
    """Box3D of four species along z by Gauss-Legendre quadrature between the roots of G(cos theta)."""
    Z = inverse_langevin(np.array(f))
    A = N * np.where(Z > 0, Z / np.sinh(np.maximum(Z, 1e-30)), 1) / 2  # integrated over the azimuth

    def g(mu):
        return A[:, None] * np.exp(Z[:, None] * mu)

    def difference(mu):
        e, ebar, x, xbar = g(mu)
        return (e - ebar) - (x - xbar)

    grid = np.linspace(-1, 1, 4001)
    values = difference(grid)
    roots = [-1.0]
    for i in np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1])):
        low, high = grid[i], grid[i + 1]
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (
                (middle, high) if np.sign(difference(np.array([middle]))[0]) == np.sign(values[i]) else (low, middle)
            )
        roots.append(0.5 * (low + high))
    roots.append(1.0)
    t, w = np.polynomial.legendre.leggauss(40)
    pieces = []
    for low, high in itertools.pairwise(roots):
        mu, weight = 0.5 * (high - low) * t + 0.5 * (high + low), 0.5 * (high - low) * w
        e, ebar, x, xbar = g(mu)
        D = np.array([(weight * (e - x) * mu).sum(), (weight * (e - x)).sum()])
        Dbar = np.array([(weight * (ebar - xbar) * mu).sum(), (weight * (ebar - xbar)).sum()])
        pieces.append((D, Dbar))
    I_plus = sum(D[1] - Dbar[1] for D, Dbar in pieces if D[1] > Dbar[1])
    I_minus = sum(Dbar[1] - D[1] for D, Dbar in pieces if D[1] <= Dbar[1])
    assert len(roots) > 2
    small, large = min(I_plus, I_minus), max(I_plus, I_minus)
    q = {True: 2 / 3 if I_plus <= I_minus else 2 / 3 * small / large}
    q[False] = 2 / 3 if I_minus < I_plus else 2 / 3 * small / large
    D = sum(q[bool(D[1] > Dbar[1])] * D for D, Dbar in pieces)
    Dbar = sum(q[bool(D[1] > Dbar[1])] * Dbar for D, Dbar in pieces)
    return D, Dbar


@pytest.mark.parametrize(("order", "tolerance"), [(31, 4e-3), (131, 5e-4)])
def test_axisymmetric_states_against_a_line_integral(order, tolerance):
    N, f = np.array([1.0, 1.2, 0.4, 0.5]), [0.2, 0.45, 0.5, 0.3]
    F = np.zeros((1, 6, 4))
    for species, which in ((0, 0), (3, 1), (1, 2), (2, 2), (4, 3), (5, 3)):
        F[0, species] = [0, 0, N[which] * f[which], N[which]]
    D, Dbar = axisymmetric_by_line_integral(N, f)
    out = box3d_flux(F, order=order)
    sum_of_densities = F[..., 3].sum()
    for nu, moved in ((0, D), (3, Dbar)):
        np.testing.assert_allclose(out[0, nu, 2:], F[0, nu, 2:] - moved, atol=tolerance * sum_of_densities)
        np.testing.assert_allclose(out[0, nu + 1, 2:], F[0, nu + 1, 2:] + moved / 2, atol=tolerance * sum_of_densities)


def test_final_state_is_physical_when_mu_equals_tau():
    F = random_states(2000, max_flux_factor=0.9, alike=True)
    assert fourflux.first_unphysical(box3d_flux(F), tolerance=1e-3) is None


@pytest.mark.parametrize("f", [0.0, 1e-12, 0.98, 0.999999, 1.0])
def test_extreme_flux_factors_stay_finite_and_conserve(f):
    F = random_states(50)
    direction = F[:, 0, :3] / np.linalg.norm(F[:, 0, :3], axis=1, keepdims=True)
    F[:, 0, :3] = f * direction * F[:, 0, 3:]
    out = box3d_flux(F)
    assert np.isfinite(out).all()
    assert conservation_error(F, out) < 1e-12


def test_single_precision_follows_double():
    F = (random_states(2000) * 1e33).astype(np.float32)
    single = box3d_flux(F)
    assert single.dtype == np.float32
    double = box3d_flux(F.astype(np.float64))
    assert np.abs((single - double) / total(F.astype(np.float64))).max() < 1e-6


def test_result_does_not_depend_on_threads_or_neighbours():
    F = random_states(5000)
    one = box3d_flux(F, threads=1)
    np.testing.assert_array_equal(box3d_flux(F, threads=3), one)
    np.testing.assert_array_equal(box3d_flux(F[1234:1235]), one[1234:1235])
    np.testing.assert_array_equal(box3d_flux(F[::7]), one[::7])
    assert box3d_flux(F[:0]).shape == (0, 6, 4)


def test_input_is_not_changed():
    F = random_states(10)
    before = F.copy()
    box3d_flux(F, mu_fraction=0.5)
    np.testing.assert_array_equal(F, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 14}, "no Lebedev rule"),
        ({"crossing": "blunt"}, "crossing='blunt'"),
        ({"mu_fraction": 1.5}, "mu_fraction"),
        ({"mu_fraction": float("nan")}, "mu_fraction"),
        ({"threads": 0}, "threads"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        box3d_flux(random_states(2), **options)


def test_unphysical_rows_are_refused():
    F = random_states(5)
    F[3, 4, 3] = np.nan
    with pytest.raises(FourFluxError, match="F_init row 3, nubar_mu"):
        box3d_flux(F)


def test_callable_from_user_kernels():
    pairs = kernels.antipodal_pairs(*lebedev(31))

    @numba.njit
    def step(F, x, y, z, w, out):
        kernels.sharp_flux(F, x, y, z, w, out)
        return out[0, 3]

    F, out = random_states(1), np.empty((6, 4))
    assert step(F[0], *pairs, out) == box3d_flux(F)[0, 0, 3]


@settings(max_examples=25)
@given(states(0.9), st.integers(0, 10**6))
def test_no_state_loses_density_it_does_not_have(F, seed):
    # Every flavor's final density is a convex mixture of initial ones when mu = tau.
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    out = box3d_flux(F, order=53)
    assert out[..., 3].min() >= -1e-3 * F[..., 3].sum()
