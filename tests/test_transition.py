import numpy as np
import pytest

from benchmarks import converged
from rheidae import box3d_flux, mix, moments
from rheidae.fourflux import T
from rheidae.mixing.transition import transition_matrix
from tests.states import random_rotation, random_states, turn


def alike(n, seed=0):
    F = random_states(n, seed)
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    return F


@pytest.mark.parametrize("scheme", ["none", "box3d", "power", "asymptotic"])
def test_densities_are_those_of_the_scheme_and_columns_sum_to_one(scheme):
    F = random_states(60)
    matrix = transition_matrix(F, scheme)
    for kind in matrix:
        np.testing.assert_allclose(kind.sum(axis=-2), 1, rtol=0, atol=1e-14)
    mixed = np.einsum("nij,nj->ni", matrix.density, F[..., T])
    total = F[..., T].sum(axis=1, keepdims=True)
    assert np.abs((mixed - mix(F, scheme)[..., T]) / total).max() < 2e-3


@pytest.mark.parametrize("scheme", ["box3d", "power", "asymptotic"])
def test_sides_that_are_equal_to_the_bit_mix_fully(scheme):
    F = np.zeros((1, 6, 4))
    F[0, 0], F[0, 3] = [0, 0, 1 / 3, 1], [0, 0, -1 / 3, 1]
    mixed = transition_matrix(F, scheme).density[0] @ F[0, :, 3]
    np.testing.assert_allclose(mixed, 1 / 3, atol=1e-6)
    np.testing.assert_allclose(mix(F, scheme)[0, :, 3], 1 / 3, atol=1e-6)


@pytest.mark.parametrize("scheme", ["box3d", "asymptotic"])
def test_matrices_do_not_depend_on_the_frame(scheme):
    F, rotation = np.concatenate([random_states(30, 3), alike(30, 4)]), random_rotation(3)
    for kind, turned in zip(transition_matrix(F, scheme), transition_matrix(turn(F, rotation), scheme), strict=True):
        np.testing.assert_allclose(turned, kind, rtol=0, atol=1e-9)


@pytest.mark.parametrize("scheme", ["box3d", "power"])
def test_a_change_that_is_shortened_has_the_matrix_of_the_shorter_one(scheme):
    """Unlike mu and tau, one of them nearly empty: half of the change is more than it has."""
    F = random_states(60, 5)
    F[:30, 1] *= 1e-2
    F[30:, 5] *= 1e-2
    mixed = box3d_flux(F, physical=True) if scheme == "box3d" else mix(F, scheme)
    longer, shorter = (transition_matrix(F, scheme, physical=physical) for physical in (False, True))
    total = F[..., T].sum(axis=1, keepdims=True)

    def off(matrices):
        return (np.abs(np.einsum("nij,nj->ni", matrices.density, F[..., T]) - mixed[..., T]) / total).max(axis=1)

    assert off(shorter).max() < 1e-3
    for matrix in shorter:
        np.testing.assert_allclose(matrix.sum(axis=-2), 1, rtol=0, atol=1e-14)
    if scheme == "power":
        np.testing.assert_array_equal(longer, shorter)
        return
    shortened = np.abs(mixed - mix(F, scheme)).max(axis=(1, 2)) > 0
    assert 20 < shortened.sum() < 50
    assert off(longer)[shortened].max() > 0.02
    # By one factor, fluxes as densities; others are as they were.
    for one, other in zip(longer, shorter, strict=True):
        np.testing.assert_array_equal(other[~shortened], one[~shortened])
        whole, part = (matrix[shortened] - np.eye(6) for matrix in (one, other))
        t = part[:, :1, :1] / whole[:, :1, :1]
        np.testing.assert_allclose(part, t * whole, rtol=1e-10, atol=1e-14)
        assert t.max() < 1


@pytest.mark.parametrize("kind", ["any", "beams", "along", "nearly empty"])
@pytest.mark.parametrize("same", [True, False])
def test_settled_states_of_any_kind_have_matrices(kind, same):
    """Also of beams and of unlike mu and tau, where one survival probability on a plain rule does not do."""
    F = converged.states(kind, 60, alike=same)
    density, flux = transition_matrix(F, "asymptotic")
    for matrix in (density, flux):
        np.testing.assert_allclose(matrix.sum(axis=-2), 1, rtol=0, atol=1e-14)
    assert density.min() > -1e-14
    mixed = mix(F, "asymptotic")
    assert np.abs(np.einsum("nij,nj->ni", density, F[..., T]) - mixed[..., T]).max() < 2e-3
    if kind == "along":  # then fluxes, too, are known wholly by what is along their own direction
        axis = F[:, 0, :3] / np.linalg.norm(F[:, 0, :3], axis=1)[:, None]
        before, after = (np.einsum("nsk,nk->ns", G[..., :3], axis) for G in (F, mixed))
        assert np.abs(np.einsum("nij,nj->ni", flux, before) - after).max() < 2e-3
        assert np.abs(after - before).max() > 0.05


@pytest.mark.parametrize("scheme", ["box3d", "power", "asymptotic"])
def test_fluxes_along_one_axis_are_those_of_the_scheme(scheme):
    F = alike(60)
    F[..., 2] = np.linalg.norm(F[..., :3], axis=-1)
    F[..., :2] = 0
    mixed = np.einsum("nij,nj->ni", transition_matrix(F, scheme).flux, F[..., 2])
    total = F[..., T].sum(axis=1, keepdims=True)
    assert np.abs((mixed - mix(F, scheme)[..., 2]) / total).max() < 2e-3


@pytest.mark.parametrize(("species", "heavy_sum"), [(3, None), (3, 1), (4, None), (4, 1)])
def test_fewer_species(species, heavy_sum):
    F = alike(20)
    if species == 3:  # one entry for all four
        F[:, 4], F[:, 5] = F[:, 1], F[:, 1]
    options = {"species": species, "heavy_sum": heavy_sum}
    matrix = transition_matrix(F.reshape(4, 5, 6, 4), **options).density
    assert matrix.shape == (4, 5, species, species)
    before, after = (moments.from_six(G, **options, species_axis=-1).density for G in (F, mix(F)))
    mixed = np.einsum("nij,nj->ni", matrix.reshape(20, species, species), before)
    assert np.abs((mixed - after) / F[..., T].sum(axis=1, keepdims=True)).max() < 4e-3


@pytest.mark.parametrize("scheme", ["power", "asymptotic"])
def test_vacuum_and_cells_that_are_not_physical(scheme):
    F = alike(3)
    F[0], F[1, 0, 3] = 0, np.nan
    density, flux = transition_matrix(F, scheme)
    np.testing.assert_array_equal(density[0], np.eye(6))
    assert np.isnan(density[1]).all()
    assert np.isnan(flux[1]).all()
    assert np.isfinite(density[2]).all()
    with pytest.raises(ValueError, match="is not one of"):
        transition_matrix(F, "other")
