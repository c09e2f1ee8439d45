"""The continuous scheme: against brute force, closed forms, finite differences and its symmetries."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.special import ive

import rheidae
from rheidae.estimator.networks.mixing import _Mixing
from rheidae.exceptions import FourFluxError
from rheidae.mixing import _survival_kernels as kernels
from rheidae.mixing.closure import inverse_langevin
from rheidae.mixing.physical import keep_physical
from rheidae.mixing.power import power_flux
from rheidae.mixing.survival import invariants, mixing_change
from tests.states import conservation_error, random_rotation, random_states, states, turn

EXCHANGES = {"mu-tau": [0, 2, 1, 3, 5, 4], "nu-nubar": [3, 4, 5, 0, 1, 2]}


def total(F):
    return F[:, :, 3].sum(axis=1)[:, None, None]


def exchanged(F, order):
    return np.ascontiguousarray(F[:, order])


def random_theta(n, seed=0):
    """Parameters of n rows, in the order of `rheidae.mixing.survival.PARAMETERS`."""
    rng = np.random.default_rng(seed)
    theta = rng.uniform([-0.3, -1.5, 0.2, 0.1, -1.5, 0.2], [0.2, 0.7, 1.3, 0.9, 0.7, 1.3], (n, 6))
    return np.insert(theta, [3, 3], rng.uniform([0.1, -1.0], [0.9, 1.0], (n, 2)), axis=1)


def given_as_options(theta):
    names = ("c", "p", "a", "axial", "p_axial", "a_axial")
    columns = np.exp(theta.T[[0, 1, 2, 5, 6, 7]])
    columns[3] = theta[:, 5]
    return dict(zip(names, columns, strict=True))


# ------------------------------------------------------------ the definition


def minerbo(F, n):
    """g at directions n (m, 3) of one four-flux."""
    f = np.linalg.norm(F[:3]) / F[3]
    Z = float(inverse_langevin(np.array([f]))[0])
    along = n @ F[:3] / np.linalg.norm(F[:3])
    return F[3] / (4 * np.pi) * 2 * Z / -np.expm1(-2 * Z) * np.exp(Z * (along - 1))


def brute_force(F, c, p, a, axial, p_axial, a_axial, points=96):
    """One state (6, 4) by a product rule of `points` x `points` nodes about the net flux, and a root finder for s."""
    F = F / F[:, 3].sum()
    e, x, ebar, xbar = F[0], 0.5 * (F[1] + F[2]), F[3], 0.5 * (F[4] + F[5])
    net = e - x - ebar + xbar
    axis = net[:3] / np.linalg.norm(net[:3])
    first = np.linalg.svd(axis[None])[2][1]
    zeta, w = np.polynomial.legendre.leggauss(points)
    phi = 2 * np.pi * np.arange(points) / points
    root = np.sqrt(1 - zeta**2)[:, None]
    n = (
        zeta[:, None, None] * axis
        + (root * np.cos(phi))[..., None] * first
        + (root * np.sin(phi))[..., None] * np.cross(axis, first)
    )
    weight = np.repeat(w[:, None] * 2 * np.pi / points, points, axis=1)
    g = [minerbo(species, n) for species in (e, x, ebar, xbar)]
    G = np.sign(net[3]) * ((g[0] - g[1]) - (g[2] - g[3]))

    def falls_off(G, weight, p, a):
        large = G > 0
        small = -(weight * G)[~large].sum()
        if small == 0:
            return np.zeros_like(G)

        def h(log_s):
            return np.exp(-p * np.logaddexp(0, a * (np.log(G[large]) - log_s)))

        log_s = brentq(lambda log_s: (weight[large] * h(log_s) * G[large]).sum() - small, -1e6, 1e4, xtol=1e-13)
        out = np.ones_like(G)
        out[large] = h(log_s)
        return out * (1 - np.exp(-small / kernels.FADE))

    ring = G.mean(axis=1)
    on_axis = falls_off(ring, 2 * np.pi * w, p_axial, a_axial)[:, None]
    both = (2 * np.pi * w * np.abs(ring)).sum()
    b = axial * (1 - np.exp(-((np.linalg.norm(net[:3]) / (kernels.AXIS * both)) ** 2)))
    mixed = 2 / 3 * c * ((1 - b) * falls_off(G, weight, p, a) + b * on_axis)
    n4 = np.concatenate([n, np.ones((*n.shape[:2], 1))], axis=2)
    lost, lostbar = (((weight * mixed * d)[..., None] * n4).sum(axis=(0, 1)) for d in (g[0] - g[1], g[2] - g[3]))
    return F + np.stack([-lost, lost / 2, lost / 2, -lostbar, lostbar / 2, lostbar / 2])


def test_is_the_definition():
    F = random_states(20, max_flux_factor=0.7)
    theta = random_theta(20)
    options = given_as_options(theta)
    expected = np.array([brute_force(F[i], *(column[i] for column in options.values())) for i in range(20)])
    error = np.abs(power_flux(F, order=131, **options) / total(F) - expected).max(axis=(1, 2))
    assert np.abs(expected - F / total(F)).max() > 0.05
    assert np.median(error) < 1e-6
    assert error.max() < 1e-4


def test_opposite_fluxes_go_to_flavor_equilibrium():
    # G is odd: both sides are alike, and everything mixes.
    F = random_states(50)
    F[:, 3:] = F[:, :3] * [-1, -1, -1, 1]
    F[:, [2, 5]] = F[:, [1, 4]]
    mean = np.stack([F[:, nu : nu + 3].mean(axis=1) for nu in (0, 3)], axis=1).repeat(3, axis=1)
    # The crossing is as deep as can be, so nothing fades but what the fade takes off at that depth.
    assert np.abs((power_flux(F, order=53) - mean) / total(F)).max() < 1e-4


def test_of_states_about_an_axis_both_components_are_one():
    F = random_states(100, max_flux_factor=0.6)
    along = np.linalg.norm(F[..., :3], axis=2) * np.random.default_rng(1).choice([-1, 1], (100, 6))
    F[..., :3] = along[..., None] * np.array([0.6, 0.0, 0.8])
    net_flux = np.abs((F[:, 0] - F[:, 3] - 0.5 * (F[:, 1] + F[:, 2] - F[:, 4] - F[:, 5]))[:, :3]).sum(axis=1)
    F = F[net_flux > 0.3]  # the axis is plain
    sphere, axial = power_flux(F, order=53), power_flux(F, order=53, axial=1.0)
    difference = np.abs((sphere - axial) / total(F)).max(axis=(1, 2))
    assert np.abs((sphere - F) / total(F)).max() > 0.05
    assert np.percentile(difference, 95) < 3e-3
    assert np.median(difference) < 2e-4


def test_strength_is_linear_and_zero_strength_is_nothing():
    F = random_states(50)
    np.testing.assert_allclose(power_flux(F, c=0.3), F + 0.3 * (power_flux(F) - F), atol=1e-15)
    np.testing.assert_array_equal(power_flux(F, c=0.0), F)


def test_bessel_functions_and_logarithm():
    x = np.concatenate([np.linspace(0, 20, 400), np.geomspace(20, 1e4, 200)])
    found = np.array([kernels.scaled_bessel(value) for value in x])
    np.testing.assert_allclose(found[:, 0], ive(0, x), rtol=1e-9, atol=2e-10)
    np.testing.assert_allclose(found[:, 1], ive(1, x), rtol=1e-9, atol=2e-10)
    x = np.geomspace(1e-300, 1e300, 1001)
    np.testing.assert_allclose([kernels.log2(value) for value in x], np.log2(x), atol=2e-13)


def test_scale_solves_the_equation_of_lepton_number():
    F = random_states(200)
    change = mixing_change(F, random_theta(200), tolerance=1e-12)
    np.testing.assert_array_equal(change.D[:, 3], change.D[:, 7])
    crosses = np.isfinite(change.scales).all(axis=1)
    assert crosses.mean() > 0.5
    assert (change.scales[crosses] > 0).all()


# --------------------------------------------------------------- derivatives


def test_derivatives_are_those_of_finite_differences():
    F, theta = random_states(60), random_theta(60)
    change = mixing_change(F, theta, derivatives=True, tolerance=1e-14)
    assert change.jacobian.shape == (60, 8, 8)
    for parameter in range(8):
        step = np.zeros(8)
        step[parameter] = 1e-5
        ahead, behind = (mixing_change(F, theta + sign * step, tolerance=1e-14).D for sign in (1, -1))
        np.testing.assert_allclose(change.jacobian[:, parameter], (ahead - behind) / 2e-5, atol=2e-8)
    assert (np.abs(change.jacobian).max(axis=(0, 2)) > 1e-4).all()


def test_torch_sees_these_derivatives():
    F = random_states(4, max_flux_factor=0.6)
    theta = torch.from_numpy(random_theta(4)).requires_grad_()
    # The function is computed to 1e-7, so the step of the comparison has to be larger than usual.
    assert torch.autograd.gradcheck(
        lambda t: _Mixing.apply(t, F, 17, torch.float64), (theta,), eps=1e-3, atol=1e-4, rtol=1e-3, nondet_tol=0
    )


# ---------------------------------------------------------------- symmetries


@given(st.integers(0, 10**6), st.booleans())
@settings(max_examples=25)
def test_turns_with_the_state(seed, reflect):
    F, rotation = random_states(5, seed), random_rotation(seed) * (-1 if reflect else 1)
    options = given_as_options(random_theta(5, seed))
    turned = power_flux(turn(F, rotation), order=17, **options)
    assert np.abs((turned - turn(power_flux(F, order=17, **options), rotation)) / total(F)).max() < 1e-11
    np.testing.assert_allclose(invariants(turn(F, rotation)), invariants(F), atol=1e-10)


@pytest.mark.parametrize("kind", ["sums", "heavy", "difference", "planar"])
@pytest.mark.parametrize("noise", [0.0, 1e-8])
def test_turns_with_the_state_without_a_net_flux(kind, noise):
    rng = np.random.default_rng(0)
    F = random_states(60, max_flux_factor=0.3, alike=True)
    if kind == "heavy":  # nu_e and nubar_e against each other: their sum has no direction
        F[:, 3, :3] = -F[:, 0, :3]
        F[:, 4, :3] = F[:, 1, :3] - 2 * F[:, 0, :3]
    elif kind == "difference":  # neither has the sum of the heavy ones
        F[:, 3, :3], F[:, 1, :3], F[:, 4, :3] = -F[:, 0, :3], F[:, 0, :3], -F[:, 0, :3]
    elif kind == "planar":  # both sums along one direction, the difference along another
        F[:, 3, :3] = 0.5 * F[:, 0, :3] + np.cross(F[:, 0, :3], [0.3, 0.2, 0.1])
        F[:, 0, :3] = F[:, 0, :3] - F[:, 3, :3]
        half = 0.5 * (F[:, 0, :3] - F[:, 3, :3])
        F[:, 1, :3], F[:, 4, :3] = half, -half
    else:
        F[:, 4, :3] = F[:, 1, :3] + F[:, 3, :3] - F[:, 0, :3]
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    F[..., 3] = np.maximum(F[..., 3], 1.2 * np.linalg.norm(F[..., :3], axis=2))
    F += noise * rng.normal(size=F.shape)
    rotation, options = random_rotation(1), given_as_options(random_theta(60))
    turned = power_flux(turn(F, rotation), order=17, **options)
    assert np.abs((turned - turn(power_flux(F, order=17, **options), rotation)) / total(F)).max() < 1e-7
    np.testing.assert_allclose(invariants(turn(F, rotation)), invariants(F), atol=1e-6)
    assert np.abs(power_flux(F, **options) - F).max() > 0.01


@pytest.mark.parametrize("order", EXCHANGES.values(), ids=EXCHANGES)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=25)
def test_exchanges(order, seed):
    F, options = random_states(5, seed), given_as_options(random_theta(5, seed))
    after = power_flux(exchanged(F, order), order=17, **options)
    assert np.abs((after - power_flux(F, order=17, **options)[:, order]) / total(F)).max() < 1e-11
    np.testing.assert_allclose(invariants(exchanged(F, order)), invariants(F), atol=1e-10)


@given(st.integers(0, 10**6), st.floats(1e-30, 1e40))
@settings(max_examples=25)
def test_scales_with_its_input(seed, scale):
    F, options = random_states(5, seed), given_as_options(random_theta(5, seed))
    scaled = power_flux(F * scale, **options) / scale
    assert np.abs(scaled - power_flux(F, **options)).max() < 1e-12
    np.testing.assert_allclose(invariants(F * scale), invariants(F), atol=1e-11)


@given(states(), st.integers(0, 10**6))
def test_conserves_for_any_state(F, seed):
    after = power_flux(F, order=17, **given_as_options(random_theta(1, seed)))
    assert np.isfinite(after).all()
    assert conservation_error(F, after) < 1e-14


def test_the_axis_loses_its_say_with_the_net_flux():
    # Two states whose net fluxes, tiny, point along different axes: nearly one state, so nearly one answer.
    F = np.zeros((2, 6, 4))
    F[..., 3] = [1, 0.3, 0.3, 0.9, 0.3, 0.3]
    F[:, 0, 0], F[:, 3, 0] = 0.6, 0.6
    F[:, 3, 1] = 0.2
    F[:, [1, 2], 1] = -0.2
    plain = power_flux(F, axial=1.0)
    F[0, 0, 0] += 1e-4
    F[1, 0, 2] += 1e-4
    after = power_flux(F, axial=1.0)
    assert np.abs(plain[0] - F[0]).max() > 0.05
    assert np.abs(after[0] - after[1]).max() < 5e-3


def test_scale_is_found_to_the_tolerance_that_is_asked_for():
    F, theta = random_states(200, max_flux_factor=0.6), random_theta(200)
    exact = mixing_change(F, theta, tolerance=1e-14).D
    for tolerance in (1e-4, 1e-7, 1e-10):
        error = np.abs(mixing_change(F, theta, tolerance=tolerance).D - exact).max()
        assert error < 0.5 * tolerance


EXTREMES = st.tuples(st.floats(0, 1.5), *[st.floats(0.01, 100)] * 2, st.floats(0, 1), *[st.floats(0.01, 100)] * 2)


@given(states(max_flux_factor=1.0), EXTREMES, st.sampled_from([13, 17, 31]))
@settings(max_examples=150)
def test_any_state_and_parameters_stay_physical(F, parameters, order):
    names = ("c", "p", "a", "axial", "p_axial", "a_axial")
    after = power_flux(F, order=order, **dict(zip(names, parameters, strict=True)))
    assert conservation_error(F, after) < 1e-13
    # Rounding of hypothesis' own states may leave |F| above N.
    start = np.maximum(np.linalg.norm(F[..., :3], axis=2) - F[..., 3], 0)
    assert (after[..., 3] >= 0).all()
    assert (np.linalg.norm(after[..., :3], axis=2) <= after[..., 3] + start + 1e-15 * total(F)[..., 0]).all()


def beams(n):
    """States of beams along one axis, both ways, which no quadrature resolves."""
    rng = np.random.default_rng(0)
    F = np.zeros((n, 6, 4))
    F[..., 3] = rng.uniform(0, 1, (n, 6)) * (rng.random((n, 6)) > 0.3)
    factor = rng.choice([0, 0.5, 0.999, 1 - 1e-9, 1.0], (n, 6)) * rng.choice([-1, 1], (n, 6))
    F[..., 2] = factor * F[..., 3]
    F[:, 0] += [0, 0, 0, 1e-3]
    return F


@pytest.mark.parametrize("axial", [0.0, 1.0])
def test_beams_stay_physical(axial):
    F = beams(3000)
    after = power_flux(F, axial=axial)
    raw = F[:, 0] - mixing_change(F, random_theta(3000), power_law=True).D[:, :4] * total(F)[:, 0]
    assert (np.linalg.norm(raw[:, :3], axis=1) < raw[:, 3] + 1e-13 * total(F)[:, 0, 0]).all()  # without the limiter
    assert (after[..., 3] >= 0).all()
    assert (np.linalg.norm(after[..., :3], axis=2) <= after[..., 3] * (1 + 1e-12)).all()
    assert conservation_error(F, after) < 1e-13
    assert np.abs(after - F).max() > 0.1


@pytest.mark.parametrize("p", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("a", [0.01, 2.0, 100.0])
def test_scale_is_found_for_every_allowed_parameter(p, a):
    # The powers themselves leave the range of a double: (G/s)^a with p = 0.01 up to 2^5000.
    F = random_states(8, max_flux_factor=0.6)
    expected = np.array([brute_force(F[i], 1.0, p, a, 0.3, p, a) for i in range(8)])
    found = power_flux(F, order=131, p=p, a=a, axial=0.3) / total(F)
    assert np.median(np.abs(found - expected).max(axis=(1, 2))) < 1e-4
    assert np.abs(expected - F / total(F)).max() > 0.03


def test_stays_physical():
    F = random_states(5000, max_flux_factor=0.8, alike=True)
    theta = random_theta(5000)
    theta[:, 0] = np.log(1.5)  # the strongest mixture that is one
    after = power_flux(F, order=31, **given_as_options(theta))
    assert (after[..., 3] >= 0).all()
    assert (np.linalg.norm(after[..., :3], axis=2) <= after[..., 3] + 1e-9).all()


# ------------------------------------------------------- no crossing, and nearly


@pytest.mark.parametrize("axial", [0.0, 0.5, 1.0])
def test_without_a_crossing_nothing_changes(axial):
    F = random_states(50)
    F[:, [1, 2, 4, 5]] = F[:, [1]]
    F[:, 0] = F[:, 3] * 1.5
    F[-1] = 0.0
    F[-1, :, 3] = [3, 1, 1, 2, 1, 1]
    np.testing.assert_array_equal(power_flux(F, axial=axial), F)
    change = mixing_change(F, random_theta(50), derivatives=True)
    assert (change.D == 0).all()
    assert (change.jacobian == 0).all()


@pytest.mark.parametrize("axial", [0.0, 0.5, 1.0])
def test_a_closing_crossing_closes_continuously(axial):
    # Ahead, nubar_e overtake nu_e as long as their density exceeds about 0.365.
    density = np.linspace(0.42, 0.34, 20_001)
    F = np.zeros((len(density), 6, 4))
    F[:, 0, 3] = 1
    F[:, 3, 2], F[:, 3, 3] = 0.4 * density, density
    change = np.abs(power_flux(F, axial=axial) - F).max(axis=(1, 2))
    assert change[0] > 0.01
    assert change[-1] == 0
    # No jump: a step of 4e-6 in density changes the answer by little more than that.
    assert np.abs(np.diff(change)).max() < 3e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"c": 2.0}, "c = 2 is outside"),
        ({"p": 0.0}, "p = 0 is outside"),
        ({"p_axial": 101.0}, r"p_axial = 101 is outside \[0.01, 100\]"),
        ({"a": np.nan}, "a = nan is outside"),
        ({"axial": [0.5, 1.5, 0.1]}, "axial = 1.5 is outside"),
        ({"p": [1.0, 2.0]}, r"p has shape \(2,\)"),
    ],
)
def test_parameters_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        rheidae.mix(random_states(3), "power", **options)


def test_mix_refuses_what_it_does_not_know():
    F = random_states(3)
    with pytest.raises(ValueError, match="'box4d' is not one of none, box3d, power"):
        rheidae.mix(F, "box4d")
    with pytest.raises(TypeError, match="mu_fraction"):
        rheidae.mix(F, "power", mu_fraction=0.5)
    with pytest.raises(ValueError, match="c has to be"):
        rheidae.mix(F, c=2.0)
    F[1, 2, 3] = -1
    with pytest.raises(FourFluxError, match="row 1"):
        rheidae.mix(F, "power")


def test_mix_box3d_is_box3d():
    F = random_states(20)
    np.testing.assert_array_equal(rheidae.mix(F, order=17), rheidae.box3d_flux(F, order=17))
    strength = np.linspace(0, 1, 20)
    expected = F + strength[:, None, None] * (rheidae.box3d_flux(F) - F)
    np.testing.assert_allclose(rheidae.mix(F, c=strength), expected, atol=1e-15)


@pytest.mark.parametrize("scheme", rheidae.mixing.schemes.SCHEMES)
@pytest.mark.parametrize("unlike", [False, True])
def test_a_stronger_change_stays_physical(scheme, unlike):
    F = random_states(300, 8, max_flux_factor=0.9, alike=True)
    F[:, 1] *= 0.05 if unlike else 1
    out = rheidae.mix(F, scheme, c=1.5)
    assert (out[..., 3] >= 0).all()
    assert (np.linalg.norm(out[..., :3], axis=2) <= out[..., 3] * (1 + 1e-12)).all()
    assert conservation_error(F, out) < 1e-13
    plain = rheidae.mix(F, scheme)
    if scheme == "none":
        np.testing.assert_array_equal(out, F)
        return
    # What is not stronger is the scheme's own, physical or not.
    assert np.abs(out - plain).max() > 0.03
    half = np.arange(300) % 2 == 0
    found = rheidae.mix(F, scheme, c=np.where(half, 1.0, 1.5))
    np.testing.assert_allclose(found[half], plain[half], rtol=0, atol=1e-15)
    np.testing.assert_array_equal(found[~half], out[~half])


def test_float32_in_float32_out_and_threads_do_not_matter():
    F = random_states(5000)
    single = power_flux(F.astype(np.float32))
    assert single.dtype == np.float32
    assert np.abs(single - power_flux(F)).max() < 1e-4
    np.testing.assert_array_equal(power_flux(F, threads=1), power_flux(F, threads=2))


# ------------------------------------------------------------------- limiter


@given(states(), st.integers(0, 10**6), st.floats(0.01, 3))
def test_the_change_is_shortened_just_as_far_as_needed(F, seed, size):
    rng = np.random.default_rng(seed)
    moved = size * rng.normal(size=(1, 2, 4)) * F[:, :, 3].sum()
    moved[..., 3] = moved[:, :1, 3]
    change = np.stack([-moved, 0.25 * moved, 0.75 * moved], axis=2).reshape(1, 6, 4)
    after = F + change
    wanted = after.copy()
    keep_physical(F, after)

    def worst(state):
        return (state[..., 3] - np.linalg.norm(state[..., :3], axis=2)).min()

    assert worst(after) >= 0
    if worst(wanted) >= 0:
        np.testing.assert_array_equal(after, wanted)
        return
    assert conservation_error(F, after) < 1e-13
    kept = np.abs(after - F).sum() / np.abs(change).sum()
    assert 0 <= kept < 1
    # A hair further and it would be unphysical.
    assert worst(F + min(1, kept + 1e-6) * change) < 0


@pytest.mark.parametrize("order", [17, 31])
def test_invariants_are_bounded_where_a_beam_falls_between_the_nodes(order):
    F = beams(3000)
    assert np.abs(invariants(F, order=order)).max() <= 10
    # What the quadrature resolves keeps its bound without being held to it.
    resolved = invariants(random_states(3000), order=order)
    assert resolved[:, 2:4].max() < 1.001
    assert resolved[:, 2:4].min() >= 0
