import numpy as np
import pandas as pd
import pytest
import xarray
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rheidae import box3d_flux, mix, moments
from rheidae.exceptions import FourFluxError
from rheidae.relaxation import relax, source
from tests.states import random_states

NUMBERS = st.floats(-10, 10)


@given(st.sampled_from([3, 4, 6]), st.booleans(), st.data())
def test_there_and_back(species, summed, data):
    heavy_sum = None if summed else 1
    density = data.draw(arrays(float, (species, 2, 3), elements=NUMBERS))
    flux = data.draw(arrays(float, (species, 3, 2, 3), elements=NUMBERS))
    options = {"species": species, "heavy_sum": heavy_sum}
    F = moments.to_six(density, flux, **options)
    assert F.shape == (2, 3, 6, 4)
    back = moments.from_six(F, **options)
    np.testing.assert_allclose(back.density, density, rtol=1e-15, atol=1e-14)
    np.testing.assert_allclose(back.flux, flux, rtol=1e-15, atol=1e-14)
    # What a code sums over its species is what six species sum to, unless one stands for several.
    if heavy_sum is None:
        np.testing.assert_allclose(F[..., 3].sum(axis=-1), density.sum(axis=0), atol=1e-13)


def test_nu_x_is_a_sum_of_four():
    F = moments.to_six([1.0, 2.0, 8.0], np.zeros((3, 3)))
    assert F[:, 3].tolist() == [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    F = moments.to_six([1.0, 2.0, 8.0, 4.0], np.zeros((4, 3)), species=4)
    assert F[:, 3].tolist() == [1.0, 4.0, 4.0, 2.0, 2.0, 2.0]


def test_axes_anywhere():
    six = random_states(10, alike=True).reshape(2, 5, 6, 4)
    n, f = moments.from_six(six, species=4)
    np.testing.assert_array_equal(moments.to_six(n, f, species=4), six)
    np.testing.assert_array_equal(
        moments.to_six(
            np.moveaxis(n, 0, -1), np.moveaxis(f, (0, 1), (-1, 0)), species=4, species_axis=-1, component_axis=0
        ),
        six,
    )
    together = np.concatenate([np.moveaxis(f, (0, 1), (-2, -1)), np.moveaxis(n, 0, -1)[..., None]], axis=-1)
    np.testing.assert_array_equal(moments.to_six(together, species=4), six)


def test_a_codes_totals_survive_mixing():
    rng = np.random.default_rng(1)
    n = rng.uniform(0.5, 1.0, (3, 40))
    f = rng.normal(size=(3, 3, 40))
    f *= n[:, None] * rng.uniform(0, 0.3, (3, 1, 40)) / np.linalg.norm(f, axis=1, keepdims=True)
    mixed = moments.from_six(box3d_flux(moments.to_six(n, f).reshape(-1, 6, 4)))
    np.testing.assert_allclose(mixed.density.sum(axis=0), n.sum(axis=0), rtol=1e-14)
    np.testing.assert_allclose(mixed.density[0] - mixed.density[1], n[0] - n[1], atol=1e-14)
    np.testing.assert_allclose(mixed.flux.sum(axis=0), f.sum(axis=0), atol=1e-14)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((np.ones((2, 5)), np.ones((2, 3, 5))), {}, FourFluxError, r"density has shape \(2, 5\); expected 3 species"),
        ((np.ones((3, 5)), np.ones((3, 2, 5))), {}, FourFluxError, "expected 3 species along axis 0 and 3 components"),
        ((np.ones((3, 5)), np.ones((3, 3, 4))), {}, FourFluxError, "have to be the same"),
        ((np.ones((3, 5)), np.ones((3, 3, 5))), {"species": 5}, ValueError, "not 3, 4 or 6"),
        ((np.ones((3, 5)), np.ones((3, 3, 5))), {"heavy_sum": 3}, ValueError, "neither 1 nor 4"),
        ((np.ones((3, 5), dtype=complex),), {}, FourFluxError, "real numbers"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, options, error, message):
    with pytest.raises(error, match=message):
        moments.to_six(*arguments, **options)


def test_relaxation_solves_its_equation():
    F, end = random_states(5, 1), random_states(5, 2)
    rate = np.array([0.0, 1.0, 1e3, 1e9, 1e300])
    assert (relax(F, end, rate, 0.0) == F).all()
    np.testing.assert_allclose(relax(F, end, rate, 1e-3)[3:], end[3:], atol=1e-15)
    assert (relax(F, end, rate, 10.0)[0] == F[0]).all()
    for_ever = relax(F, end, rate, np.inf)
    assert (for_ever[0] == F[0]).all()
    np.testing.assert_allclose(for_ever[1:], end[1:], atol=1e-15)
    # Two steps are one, and a short one follows the source.
    np.testing.assert_allclose(relax(relax(F, end, rate, 1e-3), end, rate, 2e-3), relax(F, end, rate, 3e-3), atol=1e-14)
    change = relax(F[:3], end[:3], rate[:3], 1e-9) - F[:3]
    np.testing.assert_allclose(change, 1e-9 * source(F[:3], end[:3], rate[:3]), atol=2e-12)
    for spoilt, dt in ((-rate, 1.0), (rate, -1.0), (rate, np.nan)):
        with pytest.raises(ValueError, match="negative"):
            relax(F, end, spoilt, dt)


@pytest.mark.parametrize("dt", [0.0, 1e-9])
def test_cells_without_a_rate_are_nan_alone_and_infinite_ones_take_a_step_at_once(dt):
    F, end = random_states(4, 1), random_states(4, 2)
    after = relax(F, end, [1e9, np.nan, np.inf, 0.0], dt)
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 3]], relax(F[[0, 3]], end[[0, 3]], [1e9, 0.0], dt))
    np.testing.assert_allclose(after[2], end[2] if dt else F[2], rtol=1e-15)


def labelled_three_species():
    F = random_states(24, 3)
    F[:, 2], F[:, 4], F[:, 5] = F[:, 1], F[:, 1], F[:, 1]
    n, f = moments.from_six(F.reshape(2, 3, 4, 6, 4))
    coords = {"species": ["e", "a", "x"], "r": [1.0, 2.0], "time": 0.3}
    units = {"units": "1/ccm"}
    density = xarray.DataArray(n, dims=("species", "r", "theta", "phi"), coords=coords, attrs=units, name="n")
    flux = xarray.DataArray(
        np.moveaxis(f, 1, -1), dims=("species", "r", "theta", "phi", "component"),
        coords={**coords, "component": ["r", "t", "p"]}, attrs=units, name="fn",
    )  # fmt: skip
    return n, f, density, flux.transpose("phi", ...)


def test_dataarrays_keep_names_and_units():
    n, f, density, flux = labelled_three_species()
    F = moments.to_six(density, flux)
    np.testing.assert_array_equal(F, moments.to_six(n, f))
    assert F.dims == ("r", "theta", "phi", "species", "component")
    assert F.attrs == density.attrs
    assert F.name == "n"
    assert F.species.values.tolist() == list(moments.SPECIES[6])
    assert (F.r == density.r).all()
    assert F.time == 0.3
    mixed = mix(F)
    expected = moments.from_six(box3d_flux(moments.to_six(n, f)))
    back = moments.from_six(mixed, like=(density, flux))
    for found, one, values in zip(back, (density, flux), expected, strict=True):
        xarray.testing.assert_equal(one * 0, found * 0)
        assert (found.dims, found.attrs, found.name) == (one.dims, one.attrs, one.name)
        order = ("species", *(["component"] if found.ndim == 5 else []), "r", "theta", "phi")
        np.testing.assert_allclose(found.transpose(*order), values)
    # Without: species of the package's names, axes as asked for.
    plain = moments.from_six(mixed, species_axis=-1, component_axis=1)
    assert plain.density.dims == ("r", "theta", "phi", "species")
    assert plain.flux.dims == ("r", "component", "theta", "phi", "species")
    np.testing.assert_allclose(plain.flux, np.moveaxis(expected.flux, (0, 1), (-1, 1)))
    assert plain.density.species.values.tolist() == ["nu_e", "nubar_e", "nu_x"]
    # Other names of the dimensions, by their places; all in one.
    other = density.rename(species="s"), flux.transpose("species", "component", "r", "theta", "phi")
    other = other[0], other[1].rename(species="s", component="c")
    np.testing.assert_array_equal(moments.to_six(*other), F)
    time = density.expand_dims(component=["t"])
    whole = xarray.concat([flux, time], "component", coords="minimal", compat="override")
    np.testing.assert_array_equal(moments.to_six(whole).transpose(*F.dims), F)
    with pytest.raises(FourFluxError, match="have to be the same"):
        moments.to_six(density, flux.rename(r="x"))
    with pytest.raises(FourFluxError, match="too few"):
        moments.to_six(density[:, 0, 0, 0], density[:, 0, 0, 0])


def test_data_frames_keep_names_and_units():
    n, f, *_ = labelled_three_species()
    index = pd.Index([f"cell {i}" for i in range(24)], name="where")
    density = pd.DataFrame(n.reshape(3, -1).T, index=index, columns=["ne", "na", "nx"])
    columns = [f"f{s}{k}" for s in "eax" for k in "xyz"]
    flux = pd.DataFrame(np.moveaxis(f.reshape(3, 3, -1), -1, 0).reshape(-1, 9), index=index, columns=columns)
    density.attrs["units"] = flux.attrs["units"] = "1/ccm"
    F = moments.to_six(density, flux)
    assert list(F.columns[:2]) == ["F_nu_e_x", "F_nu_e_y"]
    mixed = mix(F)
    expected = moments.from_six(box3d_flux(moments.to_six(n, f)).reshape(-1, 6, 4))
    back = moments.from_six(mixed, like=(density, flux))
    for found, one, values in zip(back, (density, flux), expected, strict=True):
        pd.testing.assert_frame_equal(0 * found, 0 * one)
        assert found.attrs == one.attrs
        np.testing.assert_allclose(found, np.moveaxis(values, -1, 0).reshape(24, -1), rtol=1e-14)
    plain = moments.from_six(mixed)
    assert list(plain.density) == ["nu_e", "nubar_e", "nu_x"]
    assert list(plain.flux)[3:5] == ["nubar_e_x", "nubar_e_y"]
    whole = pd.DataFrame(moments.from_six(F.to_numpy().reshape(-1, 6, 4), species=6).density.T)
    with pytest.raises(FourFluxError, match=r"\(n, 12\)"):
        moments.to_six(whole)
    together = np.concatenate([flux.to_numpy().reshape(24, 3, 3), density.to_numpy()[..., None]], axis=2)
    np.testing.assert_array_equal(moments.to_six(pd.DataFrame(together.reshape(24, 12))), F)
    with pytest.raises(FourFluxError, match="align"):
        moments.to_six(density, flux.iloc[::-1])


@pytest.mark.parametrize(("three", "known"), [(["nu_x", "nu_e", "nubar_e"], True), (["e", "a", "x"], False)])
def test_species_in_another_order_are_refused_where_they_are_named(three, known):
    n, f = np.array([[1.0], [0.9], [1.2]]), random_states(3)[:, :3, :1]
    density = xarray.DataArray(n, dims=("s", "r"), coords={"name": ("s", three), "s": [3, 1, 2]})
    flux = xarray.DataArray(f, dims=("s", "component", "r"), coords={"component": list("xyz")})
    columns = [f"{s}_{k}" for s in three for k in "xyz"]
    table, fluxes = pd.DataFrame(n.T, columns=three), pd.DataFrame(f.reshape(1, 9), columns=columns)
    whole = xarray.concat([flux, density.expand_dims(component=["t"])], "component").transpose("r", "s", "component")
    for three_species in ((density, flux), (table, fluxes), (whole,)):
        if not known:
            np.testing.assert_array_equal(np.ravel(moments.to_six(*three_species)), moments.to_six(n, f).ravel())
            continue
        with pytest.raises(
            FourFluxError, match=r"has, from place 0 .*nu_x.*nu_e.*; expected nu_e.*nubar_e.*nu_x.*\.sel"
        ):
            moments.to_six(*three_species)
    if known:  # the remedy
        names = list(moments.SPECIES[3])
        six = moments.to_six(table[names], fluxes[[f"{s}_{k}" for s in names for k in "xyz"]])
        np.testing.assert_array_equal(np.ravel(six), moments.to_six(n[[1, 2, 0]], f[[1, 2, 0]]).ravel())


def test_components_and_coordinates_in_another_order_are_refused():
    *_, density, flux = labelled_three_species()
    F = moments.to_six(density, flux)
    with pytest.raises(FourFluxError, match="flux has, from place 0 of axis -1 on, y, x, z; expected x, y, z:"):
        moments.to_six(density, flux.assign_coords(component=list("yxz")))
    with pytest.raises(FourFluxError, match="F has, from place 0 of axis -1 on, t, x, y, z; expected x, y, z, t:"):
        moments.from_six(F.roll(component=1, roll_coords=True))
    with pytest.raises(FourFluxError, match="F has, from place 1 of axis -2 on, nu_tau, nu_mu, nubar_e"):
        moments.from_six(F[:, :, :, [0, 2, 1, 3, 4, 5]])
    with pytest.raises(FourFluxError, match="different coordinates along 'r'; align them"):
        moments.to_six(density, flux.isel(r=[1, 0]))
    with pytest.raises(FourFluxError, match="different coordinates along 'species'"):
        moments.to_six(density, flux.isel(species=[0, 2, 1]))
