import copy
from importlib import resources

import numpy as np
import pandas as pd
import pytest
import xarray

from rheidae import FluxRegressor, box3d_flux, fourflux, mix, moments, pretrained
from rheidae.cells import Cells
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.exceptions import FourFluxError
from rheidae.export import export_regressor, load_exported
from rheidae.mixing.schemes import SCHEMES
from tests.states import random_states

GRID = (2, 3, 4)


def grid_with_bad_cells():
    """Physical cells, vacuum and every kind of cell that is not physical; and where they are."""
    F = random_states(24).reshape(*GRID, 6, 4)
    F[0, 0, 0] = 0
    F[0, 1, 2, 3, 1] = np.nan
    F[1, 0, 0, 2, 3] = -1.0
    F[1, 2, 3, 0, :3] = 2 * F[1, 2, 3, 0, 3]
    return F, np.array([[0, 1, 2], [1, 0, 0], [1, 2, 3]]).T


SCHEMES_AND_BOX3D = {**{name: (lambda F, name=name, **k: mix(F, name, **k)) for name in SCHEMES}, "flux": box3d_flux}


@pytest.mark.parametrize("flux", SCHEMES_AND_BOX3D.values(), ids=SCHEMES_AND_BOX3D)
def test_grids_give_what_rows_give_in_their_own_shape(flux):
    F = random_states(24)
    expected = flux(F)
    np.testing.assert_array_equal(flux(F.reshape(*GRID, 6, 4)), expected.reshape(*GRID, 6, 4))
    np.testing.assert_array_equal(flux(F.reshape(*GRID, 24)), expected.reshape(*GRID, 24))
    np.testing.assert_array_equal(flux(F[3]), expected[3])
    np.testing.assert_array_equal(flux(F[3].ravel()), expected[3].ravel())
    assert flux(F[:0]).shape == (0, 6, 4)
    assert flux(F.astype(np.float32).reshape(4, 6, 24)).dtype == np.float32


@pytest.mark.parametrize("flux", SCHEMES_AND_BOX3D.values(), ids=SCHEMES_AND_BOX3D)
def test_bad_cells_are_named_or_nan_alone(flux):
    F, bad = grid_with_bad_cells()
    before = F.copy()
    with pytest.raises(FourFluxError, match=r"row 6, nubar_e: .* not finite \(cell 0, 1, 2\); 2 more rows.*invalid='p"):
        flux(F)
    out = flux(F, invalid="pass")
    expected = np.zeros(GRID, dtype=bool)
    expected[tuple(bad)] = True
    np.testing.assert_array_equal(np.isnan(out).all(axis=(-2, -1)), expected)
    np.testing.assert_array_equal(np.isnan(out).any(axis=(-2, -1)), expected)
    np.testing.assert_array_equal(out[~expected], flux(F[~expected]))
    assert (out[0, 0, 0] == 0).all()
    np.testing.assert_array_equal(F, before)
    with pytest.raises(ValueError, match="neither"):
        flux(F, invalid="skip")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64])
def test_what_is_masked_is_not_physical(dtype, models):
    F = (100 * random_states(24)).astype(dtype)
    F[..., 3] += 10
    masked = np.ma.masked_array(F.reshape(*GRID, 6, 4), mask=np.zeros((*GRID, 6, 4), dtype=bool))
    masked.mask[0, 1, 2, 3, 1] = True
    X = np.ma.concatenate([masked.reshape(24, 24), box3d_flux(F.reshape(24, 24))], axis=1)
    model = models[2]["mixing"]
    exported = load_exported(resources.files("rheidae.pretrained") / "model" / "model.onnx")
    for function, given in (
        (mix, masked), (model.predict, masked), (exported, masked), (model.predict, X),
        (lambda F, **options: mix(moments.to_six(F.reshape(-1, 6, 4), species=6), **options), masked),
    ):  # fmt: skip
        with pytest.raises(FourFluxError, match=r"row 6, nubar_e: .* not finite"):
            function(given)
        out = function(given, invalid="pass").reshape(24, 24)
        assert np.isnan(out).all(axis=1).tolist() == [row == 6 for row in range(24)]
        others = function(np.delete(given.data.reshape(24, -1), 6, 0))
        np.testing.assert_allclose(np.delete(out, 6, 0), others.reshape(-1, 24), rtol=0, atol=1e-4)
    with pytest.raises(FourFluxError, match="y, row 6: a number is not finite"):
        FluxRegressor(max_epochs=1).fit(X.data, X[:, :24])


def test_vacuum_is_no_error():
    F = np.zeros((3, 6, 4))
    for name in SCHEMES:
        np.testing.assert_array_equal(mix(F, name), F)
    assert Cells(F).vacuum.all()


@pytest.mark.parametrize("shape", [(4, 6), (6,), (5, 6, 3), (48,), ()])
def test_other_shapes(shape):
    with pytest.raises(FourFluxError, match="shape"):
        box3d_flux(np.ones(shape))


@pytest.mark.parametrize("shape", [(5, 6, 3), (2, 3, 48), (7,)])
def test_other_shapes_of_models(shape):
    model = pretrained()
    for answer in (model.predict, model.outside):
        with pytest.raises(FourFluxError, match=r"expected \(n, 48\), or initial states alone: \(\.\.\., 24\) or"):
            answer(np.ones(shape))


def test_parameters_per_cell():
    F = random_states(24).reshape(*GRID, 6, 4)
    c = np.linspace(0, 1, 24).reshape(GRID)
    for scheme in ("box3d", "power"):
        expected = mix(F.reshape(-1, 6, 4), scheme, c=c.ravel())
        np.testing.assert_array_equal(mix(F, scheme, c=c).reshape(-1, 6, 4), expected)
    p = 0.5 + c
    expected = mix(F.reshape(-1, 6, 4), "power", p=p.ravel())
    np.testing.assert_array_equal(mix(F, "power", p=p).reshape(-1, 6, 4), expected)


def test_data_frames_keep_their_names():
    F = random_states(5).reshape(5, 24)
    frame = pd.DataFrame(F, index=list("abcde"), columns=fourflux.column_names("F"))
    out = mix(frame)
    pd.testing.assert_frame_equal(out, pd.DataFrame(mix(F), index=frame.index, columns=frame.columns))


def test_data_arrays_keep_names_and_units():
    F = xarray.DataArray(
        random_states(6).reshape(2, 3, 6, 4), dims=("x", "y", "species", "component"),
        coords={"x": [1.0, 2.0], "species": list(fourflux.SPECIES)}, attrs={"units": "1/cm^3"}, name="F",
    )  # fmt: skip
    out = mix(F)
    assert out.dims == F.dims
    assert out.attrs == F.attrs
    assert list(out.coords) == list(F.coords)
    np.testing.assert_array_equal(out.values, mix(F.values))


ORDER = [1, 0, 2, 3, 5, 4]


@pytest.mark.parametrize("name", ["mix", "box3d", "model", "exported"])
def test_labels_in_another_order_are_refused(name):
    function = {
        "mix": mix, "box3d": box3d_flux, "model": pretrained().predict,
        "exported": load_exported(resources.files("rheidae.pretrained") / "model" / "model.onnx"),
    }[name]  # fmt: skip
    F = random_states(6)
    array = xarray.DataArray(F, dims=("x", "species", "c"), coords={"species": list(fourflux.SPECIES)})
    frame = pd.DataFrame(F.reshape(-1, 24), columns=fourflux.column_names("F_init"))
    flat = xarray.DataArray(frame)
    for right, wrong, first in (
        (array, array[:, ORDER], "nu_mu"),
        (frame, frame.iloc[:, ::-1], "F_init_nubar_tau_t"),
        (frame, frame.rename(columns=lambda column: column.removeprefix("F_init_")).iloc[:, ::-1], "nubar_tau_t"),
        (flat, flat[:, ::-1], "F_init_nubar_tau_t"),
        (frame.iloc[0], frame.iloc[0, ::-1], "F_init_nubar_tau_t"),
    ):
        with pytest.raises(
            FourFluxError, match=rf"(F_init|X) has, from place 0 .*, {first}, .*; expected .*nu_e.*\.sel"
        ):
            function(wrong)
        np.testing.assert_array_equal(np.ravel(function(right)), np.ravel(function(np.asarray(right))))
    # Others say nothing.
    numbered = array.assign_coords(species=[5, 3, 1, 0, 2, 4], c=["p", "q", "r", "s"])
    np.testing.assert_array_equal(function(numbered), function(F))


def test_features_and_targets_in_another_order_are_refused(models):
    X, y, _ = models
    names = fourflux.column_names("F_init") + fourflux.column_names("F_box")
    features = pd.DataFrame(X, columns=names)
    targets = pd.DataFrame(y, columns=fourflux.column_names("F_true"))
    model = FluxRegressor(max_epochs=1, random_state=0)
    with pytest.raises(FourFluxError, match="X has, from place 0 of axis -1 on, F_box_nubar_tau_t"):
        model.fit(features.iloc[:, ::-1], y)
    with pytest.raises(FourFluxError, match="y has, from place 0 of axis -1 on, F_true_nubar_tau_t"):
        model.fit(features, targets.iloc[:, ::-1])
    assert model.fit(features, targets).predict(features).shape == (120, 24)


@pytest.fixture(scope="module")
def models():
    """Two trainings that hardly differ from none, one of a network that looks at Box3D's answer; and their rows."""
    F = random_states(120).reshape(-1, 24)
    X, y = np.concatenate([F, box3d_flux(F)], axis=1), mix(F, "power")
    options = {"random_state": 0, "max_epochs": 1}
    mixing = FluxRegressor(**options).fit(X, y)
    residual = FluxRegressor(ResidualFFIModel, module__hidden_dim=8, **options).fit(X, y)
    return X, y, {"mixing": mixing, "residual": residual}


@pytest.mark.parametrize("name", ["mixing", "residual"])
def test_models_take_grids(models, name):
    X, _, trained = models
    model, F = trained[name], X[:, :24]
    expected = model.predict(X)
    for shape in ((120, 24), (120, 6, 4), (4, 5, 6, 6, 4), (4, 5, 6, 24)):
        np.testing.assert_array_equal(model.predict(F.reshape(shape)), expected.reshape(shape))
    state, std = model.predict(F.reshape(2, 60, 6, 4), return_std=True)
    np.testing.assert_array_equal(std.reshape(-1, 24), model.predict(X, return_std=True)[1])
    np.testing.assert_array_equal(state.reshape(-1, 24), expected)


@pytest.mark.parametrize("block", [4, 4096])
@pytest.mark.parametrize("shape", [(6, 4), (24,)])
def test_models_take_single_states(models, shape, block):
    X, _, trained = models
    model = copy.deepcopy(trained["mixing"]).set_params(iterator_valid__batch_size=block)
    expected, found = model.predict_all(X[:1]), model.predict_all(X[0, :24].reshape(shape))
    for name in ("F_final", "std"):
        np.testing.assert_array_equal(found[name], expected[name].reshape(shape))
    assert found["outside"].shape == ()
    assert found["outside"] == model.outside(X[0, :24].reshape(shape)) == expected["outside"][0]


def test_columns_that_a_network_does_not_use_may_be_missing(models):
    X, y, trained = models
    unknown = X.copy()
    unknown[:, 24:] = np.nan
    expected = trained["mixing"].predict(X)
    np.testing.assert_array_equal(trained["mixing"].predict(unknown), expected)
    for inputs, target in ((X[:, :24], y), (X[:, :24].reshape(-1, 6, 4), y.reshape(-1, 6, 4)), (unknown, y)):
        again = FluxRegressor(random_state=0, max_epochs=1).fit(inputs, target)
        np.testing.assert_array_equal(again.predict(inputs).reshape(-1, 24), expected)
        assert again.score(inputs, target) == trained["mixing"].score(X, y)
    with pytest.raises(FourFluxError, match="not finite"):
        trained["residual"].predict(unknown)


def test_models_keep_labels(models):
    X, _, trained = models
    model = copy.deepcopy(trained["mixing"]).set_params(iterator_valid__batch_size=50)
    frame = pd.DataFrame(X[:, :24], columns=fourflux.column_names("F"), index=range(7, 127))
    frame.attrs["units"] = "1/ccm"
    array = xarray.DataArray(
        X[:, :24].reshape(12, 10, 6, 4), dims=("x", "y", "species", "component"),
        coords={"species": list(fourflux.SPECIES)}, attrs=frame.attrs, name="F",
    )  # fmt: skip
    expected = model.predict_all(X)
    for given in (frame, array):
        found = model.predict_all(given)
        assert type(found["outside"]) is np.ndarray
        for name in ("F_final", "std"):
            like = given.copy()
            like[:] = expected[name].reshape(given.shape)
            assert found[name].attrs == given.attrs
            assert like.equals(found[name])
        assert model.score(given, expected["F_final"]) == model.score(X, expected["F_final"])


def test_data_frames_of_initial_states(models):
    X, y, _ = models
    frame = pd.DataFrame(X[:, :24], columns=fourflux.column_names("F_init"))
    model = FluxRegressor(random_state=0, max_epochs=1).fit(frame, y)
    assert list(model.feature_names_in_) == fourflux.column_names("F_init") + fourflux.column_names("F_box")
    assert model.predict(frame).shape == (120, 24)


@pytest.mark.parametrize("name", ["mixing", "residual"])
def test_models_have_the_same_policy(models, name):
    F, bad = grid_with_bad_cells()
    model = models[2][name]
    with pytest.raises(FourFluxError, match=r"row 6, nubar_e: .* not finite"):
        model.predict(F)
    out, std = model.predict(F, return_std=True, invalid="pass")
    expected = np.zeros(GRID, dtype=bool)
    expected[tuple(bad)] = True
    for numbers in (out, std):
        np.testing.assert_array_equal(np.isnan(numbers).all(axis=(-2, -1)), expected)
        np.testing.assert_array_equal(np.isnan(numbers).any(axis=(-2, -1)), expected)
        assert (numbers[0, 0, 0] == 0).all()
    # Matrix products round as their number of rows has it.
    np.testing.assert_allclose(out[~expected], model.predict(F[~expected]), rtol=0, atol=1e-6)


def test_units_of_input_and_target_have_to_agree(models):
    X, y, _ = models
    with pytest.raises(FourFluxError, match=r"y: the total number density is 1e\+33 times that of X .* in one unit"):
        FluxRegressor(max_epochs=1).fit(X, 1e33 * y)
    with pytest.raises(FourFluxError, match=r"y: the total number density is -1 times that of X"):
        FluxRegressor(max_epochs=1).fit(X, -y)
    FluxRegressor(max_epochs=1).check_rows(X, 1.3 * y)


def test_exported_models_take_grids_and_have_the_same_policy(models, tmp_path):
    model = models[2]["residual"]
    export_regressor(model, tmp_path / "model.onnx")
    exported = load_exported(tmp_path / "model.onnx")
    F, _ = grid_with_bad_cells()
    with pytest.raises(FourFluxError, match="row 6"):
        exported(F)
    np.testing.assert_allclose(exported(F, invalid="pass"), model.predict(F, invalid="pass"), rtol=0, atol=1e-5)
    assert exported(F[:0]).shape == (0, 3, 4, 6, 4)
