"""Linear stability against analytic rates, and against eigenvalues of the full problem."""

import os
from importlib import resources

import h5py
import numpy as np
import pytest

from rheidae import fourflux
from rheidae.datasets import EMU, SETTLED
from rheidae.exceptions import FourFluxError
from rheidae.linear import discrete_mode, fastest_mode, growth_rate
from rheidae.linear.distributions import alike, have_beams, matched, minerbo
from rheidae.linear.regression import draw
from rheidae.linear.stability import POTENTIAL, SPEED_OF_LIGHT
from rheidae.mixing.quadrature import lebedev
from tests.states import random_rotation, random_states, turn

YES = np.array([True])
EVERY = os.environ.get("RHEIDAE_SCAN_EVERY")


def lepton_number(g):
    """Electron lepton number (1, 3, m) that makes the potential `g` (1/cm)."""
    out = np.zeros((1, 3, len(g)))
    out[0, 0] = np.asarray(g) / POTENTIAL
    return out


def scan(g, directions, axes=13, lengths=25, also=None):
    """Largest growth rate, 1/cm: eigenvalues of the matrix of all directions over wave vectors, then Nelder-Mead.

    `also`: a wave vector of the coherence, 1/cm, that counts as well.
    """
    from scipy.optimize import minimize

    matrix = -(1 - directions.T @ directions) * g
    scale = np.abs(g).sum()

    def rate(k):
        return np.linalg.eigvals(matrix + np.diag(scale * (k @ directions))).imag.max() / scale

    # A spiral over half the sphere; lengths of both signs.
    z = (np.arange(axes) + 0.5) / axes
    phi = np.pi * (1 + np.sqrt(5)) * np.arange(axes)
    ways = np.stack([np.sqrt(1 - z**2) * np.cos(phi), np.sqrt(1 - z**2) * np.sin(phi), z], axis=1)
    ks = np.linspace(-1.2, 1.2, lengths)
    best, top = 0.0, np.zeros(3)
    for way in ways:
        stack = matrix + scale * ks[:, None, None] * np.diag(way @ directions)
        rates = np.linalg.eigvals(stack).imag.max(axis=1) / scale
        if rates.max() > best:
            best, top = rates.max(), ks[rates.argmax()] * way
    simplex = top + 0.05 * np.vstack([np.zeros(3), np.eye(3)])
    found = minimize(lambda k: -rate(k), top, method="Nelder-Mead", options={"initial_simplex": simplex, "maxfev": 150})
    there = 0.0 if also is None else rate((also - directions @ g) / scale)
    return scale * max(best, -found.fun, there)


def over_scan(F):
    """Growth rates of states on 50 directions over those of `scan`, which counts their wave vectors as well."""
    N, directions = matched(F, 11), lebedev(11).nodes
    D, same = N[:, :3] - N[:, 3:], alike(F)
    mode = discrete_mode(D, directions, same)
    wanted = []
    for d, one, k in zip(D, same, mode.wave_vector, strict=True):
        pairs = [d[0] - 0.5 * (d[1] + d[2])] if one else [d[0] - d[1], d[0] - d[2], d[1] - d[2]]
        wanted.append(max(scan(POTENTIAL * g, directions, also=k) for g in pairs))
    return mode.growth_rate / SPEED_OF_LIGHT / np.array(wanted)


def sample(name, rows):
    with resources.files("rheidae.datasets").joinpath(f"data/{name}").open("rb") as stream, h5py.File(stream) as file:
        return fourflux.from_emu(file["F4_initial(1|ccm)"][()])[rows]


# --- analytic ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (1.0, 0.3), (0.2, 3.0)])
def test_two_beams(a, b):
    """Opposite beams of neutrinos (a) and antineutrinos (b): omega^2 = k^2 - 4 a b."""
    mode = discrete_mode(lepton_number([a, -b]), np.array([[0, 0], [0, 0], [1.0, -1.0]]), YES)
    np.testing.assert_allclose(mode.growth_rate, 2 * np.sqrt(a * b) * SPEED_OF_LIGHT, rtol=1e-5)
    # k = 0: the wave vector of the coherence itself is sum g n.
    np.testing.assert_allclose(mode.wave_vector[0, 2], a + b, rtol=0.02)


def test_homogeneous_mode_of_an_axisymmetric_distribution():
    """At k = 0 the rate is sqrt(J^2 - (I + K)^2/4) with the moments I, J, K = sum g (1, z, z^2)."""
    rule = lebedev(17)
    z = rule.nodes[2]
    g = rule.weights * (0.3 - 1.4 * z)
    moments = g.sum(), g @ z, g @ z**2
    wanted = np.sqrt(moments[1] ** 2 - 0.25 * (moments[0] + moments[2]) ** 2)
    from rheidae.linear import _dispersion_kernels as kernels
    from rheidae.linear.stability import _products

    scale = np.abs(g).sum()
    work, sums = np.empty((4, len(g))), np.empty((10, 4))
    M, D = np.empty((4, 4), complex), np.empty((4, 4), complex)
    omega = kernels.root(
        rule.nodes, _products(rule.nodes), g / scale, 0.0, 0.0, 0.0, 0.1 + 0.2j, 1e-9, 1e-5, 50, work, sums, M, D
    )
    np.testing.assert_allclose(scale * omega.imag, wanted, rtol=1e-8)
    assert discrete_mode(lepton_number(g), rule.nodes, YES).growth_rate[0] >= 0.999 * wanted * SPEED_OF_LIGHT


def test_potential():
    from scipy import constants

    G_F = constants.value("Fermi coupling constant") * 1e-18  # 1/eV^2
    hbar_c = constants.hbar * constants.c / constants.e * 100  # eV cm
    np.testing.assert_allclose(POTENTIAL, np.sqrt(2) * G_F * hbar_c**2, rtol=1e-7)


def test_without_a_crossing_nothing_grows():
    F = np.zeros((3, 6, 4))
    F[..., 3] = [[4, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 1, 1, 3, 1, 1]]
    F[0, 0, 2] = 0.5
    mode = fastest_mode(F * 1e33)
    assert (mode.growth_rate == 0).all()
    assert (mode.pair == -1).all()


# --- against the full eigenvalue problem -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_random_states_against_a_scan(seed):
    F = random_states(1, seed, max_flux_factor=0.6, alike=seed % 2 == 0) * 1e33
    N = matched(F, 9)
    D, directions = N[:, :3] - N[:, 3:], lebedev(9).nodes
    rate = discrete_mode(D, directions, alike(F)).growth_rate[0] / SPEED_OF_LIGHT
    pairs = ((0, 1),) if alike(F)[0] else ((0, 1), (0, 2), (1, 2))
    wanted = max(scan(POTENTIAL * (D[0, a] - D[0, b]), directions) for a, b in pairs)
    assert rate >= 0.999 * wanted
    assert rate <= 1.03 * wanted


@pytest.mark.slow
@pytest.mark.parametrize("name", [*EMU, *SETTLED] if EVERY else [*EMU[:3], "asymptotic_weak.h5", "asymptotic_mutau.h5"])
def test_sample_against_a_scan(name):
    """A few rows; `RHEIDAE_SCAN_EVERY=1 pytest tests/test_linear.py -k sample_against -s` does all."""
    F = sample(name, slice(None, None, int(EVERY)) if EVERY else slice(5, None, 100))
    ratio = over_scan(F)
    print(f"{name}: {len(F)} rows, {ratio.min():.6f} to {ratio.max():.6f}")
    np.testing.assert_allclose(ratio, 1, rtol=0.03)


@pytest.mark.slow
def test_few_neutrinos_that_resonate_with_a_wave_of_the_others():
    """In a narrow range of wave vectors."""
    F = np.empty((1, 6, 4))
    F[:, 0] = [-0.465543189559, -0.453524176743, -0.898354728761, 2.722854692256]
    F[:, 1:3] = [-0.433802621033, -0.021315753379, 0.110343597347, 1.088817912114]
    F[:, 3] = [0.031351184064, -0.558944562937, -0.528897335322, 2.066688009989]
    F[:, 4:] = [0.734209520067, -0.120238947106, 0.496459476551, 2.748028942211]
    np.testing.assert_allclose(over_scan(1e33 * F), 1, rtol=0.03)


@pytest.mark.parametrize("name", ["emu_random.h5", "emu_nsm_a.h5", "emu_nsm_b.h5"])
def test_rates_measured_in_particle_codes(name):
    """Their cells take some percent of the growth, and now and then an axis is not that of the fastest mode."""
    with resources.files("rheidae.datasets").joinpath(f"data/{name}").open("rb") as stream, h5py.File(stream) as file:
        measured = file["growthRate(1|s)"][::3]
    ratio = measured / growth_rate(sample(name, slice(None, None, 3)))
    assert 0.9 < np.median(ratio) < 1.0
    assert ratio.max() < 1.0


@pytest.mark.parametrize("dimensions", [1, 2])
@pytest.mark.parametrize("seed", [0, 6])
def test_boxes_of_fewer_dimensions_against_a_scan(seed, dimensions):
    """Their fastest mode is a minor one of the whole space."""
    F = random_states(6, seed, max_flux_factor=0.6, alike=True)[:3] * 1e33
    N, directions = matched(F, 11), lebedev(11).nodes
    D = N[:, :3] - N[:, 3:]
    box = random_rotation(seed)[:dimensions]
    mode = discrete_mode(D, directions, alike(F), box)
    np.testing.assert_allclose(mode.wave_vector @ box.T @ box, mode.wave_vector, atol=1e-9)
    along = [np.linspace(-2.2, 2.2, 221 if dimensions == 1 else 25)] * dimensions
    K = np.stack(np.meshgrid(*along), axis=-1).reshape(-1, dimensions) @ box
    for d, rate in zip(D, mode.growth_rate, strict=True):
        g = POTENTIAL * (d[0] - 0.5 * (d[1] + d[2]))
        size = np.abs(g).sum()
        interaction = 1 - directions.T @ directions
        matrix = np.diag(interaction @ g) - interaction * g
        wanted = max(np.linalg.eigvals(matrix + np.diag(size * k @ directions)).imag.max() for k in K)
        if wanted > 0.01 * size:
            assert rate >= 0.99 * wanted * SPEED_OF_LIGHT


def test_eigenvalue_at_the_wave_vector_found():
    F = random_states(5, 11, alike=True) * 1e33
    N = matched(F, 11)
    directions = lebedev(11).nodes
    D = N[:, :3] - N[:, 3:]
    mode = discrete_mode(D, directions, alike(F))
    for d, rate, K in zip(D, mode.growth_rate, mode.wave_vector, strict=True):
        g = POTENTIAL * (d[0] - 0.5 * (d[1] + d[2]))
        matrix = -(1 - directions.T @ directions) * g + np.diag((K - directions @ g) @ directions)
        np.testing.assert_allclose(np.linalg.eigvals(matrix).imag.max() * SPEED_OF_LIGHT, rate, rtol=1e-6)


# --- properties --------------------------------------------------------------------------------------------


def test_turns_with_the_state_and_scales():
    F, rotation = random_states(6, 4, alike=True) * 1e33, random_rotation(8)
    mode, turned = fastest_mode(F), fastest_mode(turn(F, rotation))
    np.testing.assert_allclose(turned.growth_rate, mode.growth_rate, rtol=1e-9)
    np.testing.assert_allclose(growth_rate(F * 1e-3), mode.growth_rate * 1e-3, rtol=1e-6)
    size = np.linalg.norm(mode.wave_vector, axis=1)
    assert np.median(np.linalg.norm(turned.wave_vector - mode.wave_vector @ rotation.T, axis=1) / size) < 1e-6


@pytest.mark.parametrize("axes", [[2], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("largest", [0.2, 0.75, 0.999])
def test_degenerate_and_weak_states_turn_too(axes, largest):
    """Axially symmetric and coplanar ones; those that grow slowly depend on the nodes, which have to follow."""
    F = random_states(40, 12, max_flux_factor=largest, alike=True) * 1e33
    F[..., [k for k in range(3) if k not in axes]] = 0
    rate = growth_rate(F)
    assert (rate > 0).sum() > 10
    for seed in range(3):
        np.testing.assert_allclose(growth_rate(turn(F, random_rotation(seed))), rate, rtol=1e-7)


def test_slow_modes_along_the_axis_of_a_state():
    """Against eigenvalues of all directions; they grow for wave vectors in a narrow range of lengths."""
    Fz = [[0.193198, 0.122474, 0.386773, 0.044488], [0.237802, 0.121169, 0.186937, 0.103749]]
    N = [[0.487578, 0.404526, 0.866773, 0.301942], [0.349790, 0.856786, 0.673870, 0.358957]]
    F = np.zeros((2, 6, 4))
    F[:, :, 2], F[:, :, 3] = (np.array(part)[:, [0, 1, 1, 2, 3, 3]] for part in (Fz, N))
    directions = lebedev(23).nodes
    L = minerbo(1e33 * F, 23)
    for g, rate in zip((L[:, 0] - L[:, 3] - L[:, 1] + L[:, 4]) * POTENTIAL, growth_rate(1e33 * F), strict=True):
        matrix = -(1 - directions.T @ directions) * g
        k = np.abs(g).sum() * np.concatenate([-np.arange(0.4, 0.8, 0.01), np.arange(0.4, 0.8, 0.01)])
        growths = [np.linalg.eigvals(matrix + np.diag(one * directions[2])).imag.max() for one in k]
        assert rate >= 0.999 * SPEED_OF_LIGHT * max(growths) > 0


def test_the_largest_of_three_pairs_counts():
    """Electron neutrinos without a crossing over either, and a crossing between mu and tau."""
    F = np.zeros((6, 4))
    F[:, 3] = [3, 1, 1, 1, 1, 1]
    F[1, 2], F[2, 2] = 0.5, -0.5
    mode = fastest_mode(1e33 * F)
    assert mode.pair == 2
    assert mode.growth_rate > 0
    swapped = F[[0, 2, 1, 3, 5, 4]]
    np.testing.assert_allclose(growth_rate(1e33 * swapped), mode.growth_rate, rtol=1e-6)


def test_more_directions_converge():
    F = random_states(8, 4, max_flux_factor=0.7) * 1e33
    np.testing.assert_allclose(growth_rate(F), growth_rate(F, order=41), rtol=3e-3)


@pytest.mark.parametrize("width", [1e-6, 1e-12, 0.0, -1e-7])
@pytest.mark.parametrize("axis", [(0.0, 0.0, 1.0), (1.0, 2.0, 3.0)])
def test_beams_grow_as_delta_functions_do(axis, width):
    """Two opposite ones of N and N/2: 2 sqrt(N N/2); also where rounding has left |F| a little above N."""
    F, axis = np.zeros((6, 4)), np.array(axis) / np.linalg.norm(axis)
    F[0, 3], F[3, 3] = 1e33, 5e32
    F[0, :3], F[3, :3] = (1 - width) * 1e33 * axis, (width - 1) * 5e32 * axis
    limit = 2 * np.sqrt(0.5) * 1e33 * POTENTIAL * SPEED_OF_LIGHT
    np.testing.assert_allclose(growth_rate(F), limit, rtol=1e-4)


def test_beams_against_many_directions_at_rest():
    F = 1e33 * random_states(20, 3, max_flux_factor=0.95)
    F = F[have_beams(F)]
    assert len(F) > 10
    D = minerbo(F, 131)
    at_rest = discrete_mode(D[:, :3] - D[:, 3:], lebedev(131).nodes, alike(F)).growth_rate
    strong = at_rest > 0.02 * F[..., 3].sum(axis=1) * POTENTIAL * SPEED_OF_LIGHT
    np.testing.assert_allclose(growth_rate(F)[strong], at_rest[strong], rtol=5e-3)


def test_beams_turn_with_the_state():
    F, rotation = 1e33 * draw(60, 4), random_rotation(5)
    strong = growth_rate(F) > 0.02 * F[..., 3].sum(axis=1) * POTENTIAL * SPEED_OF_LIGHT
    beams = have_beams(F) & strong
    np.testing.assert_allclose(growth_rate(turn(F[beams], rotation)), growth_rate(F[beams]), rtol=1e-7)
    quick = growth_rate(F[beams], method="fast")
    np.testing.assert_allclose(growth_rate(turn(F[beams], rotation), method="fast"), quick, rtol=1e-3)
    assert np.median(np.abs(quick / growth_rate(F[beams]) - 1)) < 0.04


def test_matched_moments():
    F = random_states(20, 5, max_flux_factor=0.8) * 1e33
    F[0, 1] = 0  # none of a species
    F[1, 2, :3] = 0  # isotropic
    for closure in ("minerbo", lambda F, species, directions: F[3] * (1.1 + directions @ [0.3, 0.1, 0.9]) ** 2):
        N = matched(F, 19, closure)
        assert (N >= 0).all()
        np.testing.assert_allclose(N.sum(axis=-1), F[..., 3], rtol=1e-12)
        np.testing.assert_allclose(N @ lebedev(19).nodes.T, F[..., :3], atol=1e-11 * F.max())
    # Where quadrature is good, both are the same distribution.
    mild = random_states(5, 6, max_flux_factor=0.5) * 1e33
    np.testing.assert_allclose(matched(mild, 31), minerbo(mild, 31), rtol=1e-8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda F: F[:, :4], r"shape \(2, 4, 4\); expected \(\.\.\., 6, 4\)"),
        (lambda F: np.where(F[1, 2, 3] == F, np.nan, F), r"row 1, nu_tau: .* not finite"),
        (lambda F: F * np.array([4, 4, 4, 1.0]), r"exceeds N"),
        (lambda F: F * 0, r"no neutrinos"),
    ],
)
def test_bad_input(change, message):
    with pytest.raises(FourFluxError, match=message):
        fastest_mode(change(random_states(2, 1, alike=False)))


@pytest.mark.parametrize("method", ["exact", "fast"])
def test_grids_with_vacuum_and_cells_that_are_not_physical(method):
    F = random_states(6, 1).astype(np.float32).reshape(2, 3, 6, 4)
    F[0, 1], F[1, 2, 0, 3] = 0, np.nan
    with pytest.raises(FourFluxError, match=r"row 5, nu_e: .* not finite .*\(cell 1, 2\)"):
        growth_rate(F, method=method)
    rate = growth_rate(F, method=method, invalid="pass")
    assert rate[0, 1] == 0
    assert np.isnan(rate[1, 2])
    assert rate[0, 0] == growth_rate(F[0, 0], method=method) > 0
    np.testing.assert_array_equal(rate, growth_rate(F.reshape(2, 3, 24), method=method, invalid="pass"))


@pytest.mark.parametrize("name", ["emu_random.h5", "emu_nsm_a.h5", "emu_nsm_b.h5"])
def test_quick_rate_on_families_that_were_not_fitted(name):
    F = sample(name, slice(0, None, 4))
    error = np.abs(growth_rate(F, method="fast") / growth_rate(F) - 1)
    assert np.median(error) < 0.01
    assert np.quantile(error, 0.95) < 0.04


def test_quick_rate_of_three_pairs_turns_scales_and_knows_stable_states():
    F, rotation = random_states(40, 2, max_flux_factor=0.6) * 1e33, random_rotation(3)
    quick = growth_rate(F, method="fast")
    strong = growth_rate(F) > 0.02 * F[..., 3].sum(axis=1) * POTENTIAL * SPEED_OF_LIGHT
    assert strong.sum() > 20
    assert np.median(np.abs(quick / growth_rate(F) - 1)[strong]) < 0.02
    np.testing.assert_allclose(growth_rate(1e-3 * F, method="fast"), 1e-3 * quick, rtol=1e-9)
    np.testing.assert_allclose(growth_rate(turn(F, rotation), method="fast"), quick, rtol=1e-9)
    for other in (F[:, [0, 2, 1, 3, 5, 4]], F[:, [1, 2, 0, 4, 5, 3]], F[:, [3, 4, 5, 0, 1, 2]]):
        np.testing.assert_allclose(growth_rate(other, method="fast"), quick, rtol=1e-9)
    stable = np.zeros((2, 6, 4))
    stable[..., 3] = [[4, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]]
    np.testing.assert_array_equal(growth_rate(stable, method="fast"), 0)
    assert growth_rate(F[0], method="fast") == quick[0]


def test_quick_rate_does_not_jump_where_the_other_side_becomes_the_larger():
    F = np.array([random_states(40, 2, max_flux_factor=0.9, alike=True)] * 3)
    F[:, :, 3, 3] = F[0, :, 0, 3] - 2 * F[0, :, 1, 3] + 2 * F[0, :, 4, 3] + np.array([[-1e-9], [0], [1e-9]])
    F = F[:, (F[0, :, 3, 3] > 0.9 * np.linalg.norm(F[0, :, 3, :3], axis=1)) & (F[0, :, 3, 3] > 0)]
    F[:, :, 3, :3] *= 0.9
    below, equal, above = growth_rate(1e33 * F, method="fast")
    assert len(equal) > 20
    np.testing.assert_allclose([below, above], [equal] * 2, rtol=1e-6)


def test_unknown_method():
    with pytest.raises(ValueError, match="expected 'exact' or 'fast'"):
        growth_rate(random_states(1), method="quick")


def test_too_few_directions():
    F = np.zeros((1, 6, 4))
    F[:, :, 3] = 1.0
    F[0, 3, 2] = 0.97
    with pytest.raises(FourFluxError, match=r"nubar_e: the 6 directions of Lebedev order 3 .*higher order"):
        matched(turn(F, random_rotation(1)), 3)


def test_closure_that_is_none():
    with pytest.raises(FourFluxError, match="returned shape"):
        matched(random_states(1), 11, lambda F, species, directions: 1.0)
    with pytest.raises(FourFluxError, match="not all of them 0"):
        matched(random_states(1), 11, lambda F, species, directions: np.zeros(len(directions)))
    with pytest.raises(FourFluxError, match="unknown"):
        matched(random_states(1), 11, "levermore")
