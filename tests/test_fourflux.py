import numpy as np
import pytest
import torch

from rheidae import fourflux
from rheidae.estimator.tensors.nodes import total_of
from rheidae.exceptions import FourFluxError
from rheidae.mixing._nodes_kernels import total_of as total_of_state
from tests.states import random_states


def test_emu_axes_element_by_element():
    raw = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    F = fourflux.from_emu(raw)
    for component, c in zip("xyzt", range(4), strict=True):
        for sign, nu in enumerate(("nu", "nubar")):
            for flavor, f in zip(("e", "mu", "tau"), range(3), strict=True):
                species = fourflux.SPECIES.index(f"{nu}_{flavor}")
                assert F[1, species, fourflux.COMPONENTS.index(component)] == raw[1, c, sign, f]
    assert (fourflux.from_emu(raw.reshape(2, 4, 6)) == F).all()
    assert (fourflux.to_emu(F) == raw).all()


@pytest.mark.parametrize("rows", [1, 2, 64, 4000])
def test_kernels_and_graphs_sum_densities_in_one_order(rows):
    """The width of a beam is what a flux leaves of its density: on the last bit of the total hangs how it mixes."""
    F = random_states(rows, 5)
    total = fourflux.total_density(F)
    assert total.tolist() == [total_of_state(state) for state in F]
    assert total.tolist() == total_of(torch.from_numpy(F))[:, 0].tolist()
    single = F.astype(np.float32)
    assert fourflux.total_density(single.reshape(-1, 24)).tolist() == [total_of_state(state) for state in single]


def test_flat_columns_are_species_major():
    F = random_states(3)
    flat = fourflux.flatten(F)
    names = fourflux.column_names("F")
    assert flat[2, names.index("F_nubar_mu_z")] == F[2, fourflux.NUBAR_MU, 2]
    assert (fourflux.unflatten(flat) == F).all()
    assert len(set(names)) == 24


@pytest.mark.parametrize("shape", [(6, 4), (5, 4, 6), (5, 24)])
def test_wrong_shape_is_named(shape):
    with pytest.raises(FourFluxError, match=r"F_init has shape .*expected \(n, 6, 4\)"):
        fourflux.as_four_flux(np.zeros(shape), "F_init")


@pytest.mark.parametrize("bad", ["a", 1j, None])
def test_only_real_numbers(bad):
    with pytest.raises(FourFluxError, match="dtype"):
        fourflux.as_four_flux(np.full((1, 6, 4), bad))


def test_types_become_native_floats():
    F = random_states(4)
    assert fourflux.as_four_flux(F.astype(">f8")).dtype == np.float64
    assert fourflux.as_four_flux(F.astype("<f4")).dtype == np.float32
    assert fourflux.as_four_flux(np.ones((1, 6, 4), int)).dtype == np.float64
    assert fourflux.as_four_flux(F) is F
    assert fourflux.as_four_flux(F[::2]).flags.c_contiguous


@pytest.mark.parametrize(
    ("row", "species", "value", "reason"),
    [
        (3, 1, (0, 0, 0, np.nan), "not finite"),
        (3, 1, (0, np.inf, 0, 1), "not finite"),
        (0, 5, (0, 0, 0, -1e-20), "negative"),
        (4, 2, (0.8, 0.8, 0, 1), "exceeds"),
        (4, 0, (0, 0, 1e-300, 0), "exceeds"),
        (4, 0, (0, 0, 1.1e30, 1e30), "exceeds"),
    ],
)
def test_first_unphysical_names_row_species_and_reason(row, species, value, reason):
    F = random_states(6)
    F[row, species] = value
    F[5, 5, 3] = -1
    found = fourflux.first_unphysical(F)
    assert (found.row, found.species) == (row, species)
    assert reason in found.reason
    with pytest.raises(FourFluxError, match=f"F row {row}, {fourflux.SPECIES[species]}"):
        fourflux.require_physical(F)


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e33, 1e300])
def test_physical_at_any_scale(scale):
    F = random_states(50, max_flux_factor=0.999) * scale
    assert fourflux.first_unphysical(F) is None
    F[0, 0] = [0, 0, scale, scale]
    assert fourflux.first_unphysical(F) is None
    F[0, 0] = 0
    assert fourflux.first_unphysical(F) is None


def test_average_heavy_leaves_distinct_rows_alone():
    init = random_states(4, alike=True)
    init[1] = random_states(1, seed=9)[0]
    final = random_states(4, seed=1)
    averaged = fourflux.average_heavy(final, init)
    assert (averaged[1] == final[1]).all()
    for row in (0, 2, 3):
        np.testing.assert_allclose(averaged[row, 1], (final[row, 1] + final[row, 2]) / 2)
        assert (averaged[row, 4] == averaged[row, 5]).all()
    np.testing.assert_allclose(averaged[:, 1:3].sum(1), final[:, 1:3].sum(1))
    assert (averaged[:, [0, 3]] == final[:, [0, 3]]).all()
