"""FluxRegressor by scikit-learn's rules, and what its users do with any estimator."""

import io
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone, is_regressor
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils import estimator_html_repr
from sklearn.utils.estimator_checks import check_estimator
from skorch.callbacks import EpochScoring
from skorch.exceptions import DeviceWarning
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.losses import FourFluxLoss, SingleTerm
from rheidae.estimator.networks import MixingModel, MultilayerPerceptron
from rheidae.exceptions import FourFluxError
from tests.estimators import SMALL

TINY = {"layout": "generic", "module__hidden_dim": 8, "max_epochs": 3, "random_state": 0}


@pytest.fixture(scope="module")
def small(data):
    return data.data[:64], data.target[:64]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 5))
    return X, np.column_stack([X[:, 0] - X[:, 1], X[:, 2] ** 2, X @ rng.normal(size=5)])


# --- the contract ----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
def test_check_estimator():
    results = check_estimator(FluxRegressor(layout="generic", max_epochs=5), on_fail=None)
    assert len(results) > 50
    assert [(result["check_name"], result["exception"]) for result in results if result["status"] != "passed"] == []


def test_what_was_not_fitted_has_parameters_alone(small):
    model = FluxRegressor(max_epochs=1)
    assert [name for name in vars(model) if name.endswith("_")] == []
    # Nothing of one estimator reaches another by the class.
    model.fit(*small)
    assert (FluxRegressor().initialized_, FluxRegressor().history_, dict(FluxRegressor().virtual_params_)) == (
        False,
        None,
        {},
    )
    assert len(model.history) == 1
    assert model.initialized_
    kept = FluxRegressor(history=model.history)
    assert kept.history is model.history


# --- layouts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [slice(0, 1), slice(0, 3), 1])
def test_generic_takes_any_widths(table, columns):
    X, y = table[0], table[1][:, columns]
    model = FluxRegressor(**{**TINY, "max_epochs": 100, "batch_size": 16}).fit(X, y)
    assert isinstance(model.module_, MultilayerPerceptron)
    assert isinstance(model.criterion_, SingleTerm)
    assert isinstance(model.criterion_.loss, nn.MSELoss)
    assert model.predict(X).shape == y.shape
    assert model.score(X, y) > 0.9
    assert model.history[-1, "train_loss"] == pytest.approx(np.mean((model.predict(X) - y) ** 2), rel=0.2)


def test_generic_does_not_normalise(table):
    X, y = table
    # Rows that are no four-fluxes, and whose scale carries the answer.
    seen = FluxRegressor(**TINY).fit(X, y).get_dataset(X, y)
    np.testing.assert_array_equal(seen.x, X.astype(np.float32))
    np.testing.assert_array_equal(seen.target, y.astype(np.float32))


def test_generic_validates_and_weighs_terms_without_box3d(table):
    model = FluxRegressor(**TINY, val_split=0.2, weighting="kendall_gal", pcgrad=True).fit(*table)
    assert {"valid_loss", "valid_mse", "weight_mse", "conflicts"} <= set(model.history[-1])
    assert not {"skill", "box3d_valid_loss"} & set(model.history[-1])


def test_generic_takes_networks_and_losses_of_torch(table):
    X, y = table
    model = FluxRegressor(nn.Linear(5, 3), criterion=nn.L1Loss, **{"layout": "generic", "max_epochs": 1}).fit(X, y)
    assert "train_l1" in model.history[-1]
    with pytest.raises(ValueError, match=r"takes n_features of MultilayerPerceptron from the data: call fit"):
        FluxRegressor(layout="generic").initialize()
    FluxRegressor(layout="generic", module__n_features=5, module__n_outputs=3).initialize()


def test_four_flux_is_the_default_and_insists_on_its_widths(small, table):
    X, y = small
    model = FluxRegressor(max_epochs=1).initialize()
    assert isinstance(model.module_, MixingModel)
    assert isinstance(model.criterion_, FourFluxLoss)
    for bad_X, bad_y, message in (
        (table[0], table[1], r"X has shape \(60, 5\); expected \(n, 48\)"),
        (X[:, :23], y, r"X has shape \(64, 23\); expected \(n, 48\)"),
        (X, y[:, :23], r"y has shape \(64, 23\); expected \(n, 24\)"),
        (X, y[:, 0], r"y has shape \(64,\); expected \(n, 24\)"),
        (X[0], y[0], r"X has shape \(48,\); expected \(n, 48\)"),
        (X.tolist()[:3], 5, r"y has shape \(\)"),
        (X, None, "the target y is None"),
    ):
        with pytest.raises(ValueError, match=message):
            model.fit(bad_X, bad_y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "four"}, "layout='four' is not one of four_flux, generic"),
        ({"layout": "generic", "constraints": True}, "constraints=True are about four-fluxes"),
    ],
)
def test_impossible_layouts_are_named(table, options, message):
    with pytest.raises(ValueError, match=message):
        FluxRegressor(**options).fit(*table)


def test_generic_refuses_what_single_precision_cannot_hold(table):
    X, y = table
    with pytest.raises(FourFluxError, match=r"y, row 3: 1e\+40 is too large for single precision; scale the columns"):
        FluxRegressor(**TINY).fit(X, np.where(np.arange(60)[:, None] == 3, 1e40, y))


def test_widths_of_later_calls_are_those_of_the_first(table):
    X, y = table
    model = FluxRegressor(**TINY).fit(X, y)
    assert (model.n_features_in_, model.n_outputs_) == (5, 3)
    with pytest.raises(ValueError, match="X has 4 features, but FluxRegressor is expecting 5"):
        model.predict(X[:, :4])
    with pytest.raises(ValueError, match="X has 4 features"):
        model.partial_fit(X[:, :4], y)
    with pytest.raises(FourFluxError, match="y has 2 columns; FluxRegressor was trained on 3"):
        model.partial_fit(X, y[:, :2])
    # A new fit starts anew.
    assert model.fit(X[:, :4], y[:, 0]).predict(X[:, :4]).shape == (60,)


# --- parameters ------------------------------------------------------------------------------------------


def test_parameters_go_in_and_come_out(small):
    model = FluxRegressor(**SMALL, weighting="dwa", pcgrad=True, constraints=True)
    assert {"_params_to_validate", "iterator_train__shuffle"}.isdisjoint(model.get_params())
    assert is_regressor(model)
    copy = clone(model)
    assert repr(copy) == repr(model)
    copy.set_params(module__hidden_dim=9, lr=1e-3, weighting__temperature=3.0, max_epochs=1)
    assert copy.get_params()["module__hidden_dim"] == 9
    copy.fit(*small)
    assert copy.module_.head.in_features == 9
    # After the training they count for the next one; the network that is trained answers until then.
    expected, std = copy.predict(small[0], return_std=True)
    copy.set_params(module__hidden_dim=5)
    np.testing.assert_array_equal(copy.predict(small[0]), expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(copy)).predict(small[0], return_std=True)[1], std)
    for again in (clone(copy).fit(*small), copy.partial_fit(*small)):
        assert again.module_.head.in_features == 5
        assert len(again.history) == 1
    with pytest.raises(ValueError, match="hiden"):
        copy.set_params(hiden_dim=3)


def test_repr_says_what_was_set(small):
    model = FluxRegressor(max_epochs=3, module__hidden_dim=16, weighting="dwa")
    assert repr(model) == "FluxRegressor(max_epochs=3, module__hidden_dim=16, weighting='dwa')"
    html = estimator_html_repr(model)
    assert "FluxRegressor" in html
    assert "max_epochs" in html
    assert "Not fitted" in html
    model._repr_mimebundle_()
    assert "Not fitted" not in estimator_html_repr(model.fit(*small))
    assert "module__hidden_dim" in model._repr_html_()


# --- pickles ---------------------------------------------------------------------------------------------


def test_pickles(small, tmp_path):
    X, y = small
    model = FluxRegressor(max_epochs=2, random_state=0, weighting="gradnorm", pcgrad=True, constraints=True)
    fresh = pickle.loads(pickle.dumps(model)).fit(X, y)
    model.fit(X, y)
    np.testing.assert_array_equal(fresh.predict(X), model.predict(X))
    joblib.dump(model, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib"), clone(model).fit(X, y)):
        for ours, theirs in zip(copy.predict(X, return_std=True), model.predict(X, return_std=True), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        assert copy.history == model.history or len(copy.history) == len(model.history)
        assert copy.score(X, y) == model.score(X, y)
    # The optimizer and the random numbers come along: training goes on as it would have.
    copy = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(copy.partial_fit(X, y).predict(X), model.partial_fit(X, y).predict(X))


def test_a_model_trained_on_another_device_comes_to_the_cpu(small, monkeypatch):
    X, y = small
    model = FluxRegressor(max_epochs=1, random_state=0, weighting="kendall_gal", constraints=True).fit(X, y)
    expected = model.predict(X)
    # What a machine with an accelerator writes: the same bytes under another name of the device. The state of the CPU's
    # random numbers is on the CPU there too.
    model.device = "cuda"
    here = model.rng_state_.untyped_storage().data_ptr()
    with monkeypatch.context() as patch:
        tag = "location_tag"
        patch.setattr(torch.serialization, tag, lambda storage: "cpu" if storage.data_ptr() == here else "cuda:0")
        dump = io.BytesIO()
        pickle.dump(model, dump)
    with pytest.warns(DeviceWarning):
        copy = pickle.loads(dump.getvalue())
    assert str(copy.device) == "cpu"
    np.testing.assert_array_equal(copy.predict(X), expected)
    copy.partial_fit(X, y)


# --- input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["four_flux", "generic"])
def test_forms_of_input(small, table, layout):
    X, y = small if layout == "four_flux" else (z.astype(np.float32) for z in table)
    model = FluxRegressor(layout=layout, max_epochs=1, random_state=0).fit(X, y)
    expected = model.predict(X)
    forms = {
        "fortran": np.asfortranarray,
        "strided": lambda z: np.repeat(np.repeat(z, 2, axis=0), 3, axis=1)[::2, ::3],
        "reversed": lambda z: z[::-1].copy()[::-1],
        "torch": torch.from_numpy,
        "with a graph": lambda z: torch.from_numpy(z).requires_grad_(),
        "read only": lambda z: np.frombuffer(z.tobytes(), z.dtype).reshape(z.shape),
    }
    for name, form in forms.items():
        found = FluxRegressor(layout=layout, max_epochs=1, random_state=0).fit(form(X), form(y)).predict(form(X))
        np.testing.assert_array_equal(found, expected, err_msg=name)
        assert found.dtype == np.float32
    double = model.predict(X.astype(np.float64))
    assert double.dtype == np.float64
    np.testing.assert_allclose(double, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(X.astype(np.float64).tolist()), double)
    np.testing.assert_array_equal(model.predict(X.astype(np.longdouble)), double)


def test_lists_of_grids(small):
    """As NumPy takes them, in `fit`, `score` and `calibrate`."""
    X, y = (z[:, :24].astype(np.float64).reshape(-1, 6, 4) for z in small)
    model = FluxRegressor(max_epochs=1, random_state=0)
    expected, score = model.fit(X, y).predict(X), model.score(X, y)
    np.testing.assert_array_equal(model.fit(X.tolist(), y.tolist()).predict(X), expected)
    assert model.score(X.tolist(), y.tolist()) == score
    std = model.predict(X, return_std=True)[1]
    np.testing.assert_array_equal(model.calibrate(X.tolist(), y.tolist()).predict(X, return_std=True)[1], std)


def test_data_frames_and_their_names(data, small):
    X = pd.DataFrame(small[0], columns=data.feature_names)
    y = pd.DataFrame(small[1], columns=data.target_names)
    model = FluxRegressor(max_epochs=1, random_state=0).fit(X, y)
    assert model.feature_names_in_.tolist() == list(data.feature_names)
    assert model.n_features_in_ == 48
    expected = FluxRegressor(max_epochs=1, random_state=0).fit(*small)
    assert not hasattr(expected, "feature_names_in_")
    np.testing.assert_array_equal(model.predict(X), expected.predict(small[0]))
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(X.rename(columns=str.upper))


def test_not_fitted_is_said(small):
    with pytest.raises(NotFittedError):
        FluxRegressor().predict(small[0])
    assert not hasattr(FluxRegressor(), "predict_proba")


def test_skorchs_scoring_callback_works(small):
    scoring = EpochScoring("r2", name="valid_r2", lower_is_better=False)
    model = FluxRegressor(max_epochs=2, val_split=0.3, random_state=0, callbacks=[("r2", scoring)]).fit(*small)
    assert model.history[-1, "valid_r2"] > 0.5


# --- weights of rows -------------------------------------------------------------------------------------


def test_weighted_terms_are_those_of_repeated_rows(small):
    criterion = FourFluxLoss()
    seen = FluxRegressor().get_dataset(*small)
    times = torch.from_numpy(np.random.default_rng(0).integers(0, 4, 64))
    # Superluminal predictions, so that no term is zero.
    pred = (seen.x[:, 24:].reshape(-1, 6, 4) * torch.tensor([9.0, 9.0, 9.0, 1.1])).reshape(-1, 24)
    rows = torch.arange(64).repeat_interleave(times)
    weighted = criterion.terms(pred, seen.target, times / times.double().mean())
    repeated = criterion.terms(pred[rows], seen.target[rows])
    for name, value in repeated.items():
        assert value > 0
        assert weighted[name] == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("options", [{}, {"weighting": "kendall_gal", "pcgrad": True, "constraints": False}])
def test_weights_of_rows_repeat_and_remove_them(small, options):
    X, y = small
    times = np.arange(64) % 3
    settings = {"max_epochs": 5, "random_state": 0, "batch_size": -1, **options}
    weighted = FluxRegressor(**settings).fit(X, y, sample_weight=7.0 * times)
    rows = np.repeat(np.arange(64), times)
    repeated = FluxRegressor(**settings).fit(X[rows], y[rows])
    scale = np.abs(y).max()
    unweighted = FluxRegressor(**settings).fit(X, y)
    assert np.abs(unweighted.predict(X) - repeated.predict(X)).max() > 1e-4 * scale
    # What the network standardises its features by is taken from the rows, not from their weights.
    for model in (weighted, repeated):
        assert np.isfinite(model.history[:, "train_loss"]).all()
    generic = {**settings, "layout": "generic", "module__hidden_dim": 8}
    weighted = FluxRegressor(**generic).fit(X, y, sample_weight=7.0 * times)
    repeated = FluxRegressor(**generic).fit(X[rows], y[rows])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), atol=1e-6 * scale)
    np.testing.assert_allclose(weighted.history[:, "train_loss"], repeated.history[:, "train_loss"], rtol=1e-6)


def test_one_weight_for_all_rows_is_none(small):
    one, none = (FluxRegressor(max_epochs=2, random_state=0).fit(*small, sample_weight=w) for w in (3.0, None))
    np.testing.assert_allclose(one.predict(small[0]), none.predict(small[0]), atol=1e-5 * np.abs(small[1]).max())


@pytest.mark.parametrize("val_split", [0.0, 0.85])
def test_one_row_that_counts_trains_without_an_error_scale(small, val_split):
    """As one row by itself does; with `val_split` none of the rows that would be calibrated on counts."""
    X, y = small
    weight = np.arange(len(X)) == 3
    model = FluxRegressor(max_epochs=1, random_state=0)
    for given in ((X, y, weight), (model.get_dataset(X, y, weight), None), (X[:1], y[:1])):
        assert model.set_params(val_split=0).fit(X, y).error_scale_ is not None
        model.set_params(val_split=val_split if len(given[0]) > 1 else 0).fit(*given)
        assert model.error_scale_ is None
        assert np.isfinite(model.predict(X)).all()


def test_weights_of_zero_take_rows_out(small):
    X, y = small
    settings = {"max_epochs": 5, "random_state": 0, "batch_size": -1, "weighting": "kendall_gal", "pcgrad": True}
    # The steps of Adam have the same size for any gradient: where one is rounding, so is the sign of its step.
    settings |= {"optimizer": torch.optim.SGD, "lr": 1e-3}
    weighted = FluxRegressor(**settings).fit(X, y, sample_weight=np.arange(64) < 40)
    removed = FluxRegressor(**settings).fit(X[:40], y[:40])
    np.testing.assert_allclose(weighted.predict(X), removed.predict(X), atol=1e-5 * np.abs(y).max())


def test_weights_reach_partial_fit_and_the_validation(small):
    X, y = small
    settings = {"max_epochs": 2, "random_state": 0}
    ones = np.ones(64)
    half = np.where(np.arange(64) < 32, 1.0, 5.0)
    first = FluxRegressor(**settings, val_split=0.5).fit(X, y, sample_weight=half)
    second = FluxRegressor(**settings, val_split=0.5).partial_fit(X, y, sample_weight=half)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    third = FluxRegressor(**settings, val_split=0.5).fit(X, y, sample_weight=ones)
    assert first.history[0, "valid_loss"] != third.history[0, "valid_loss"]


def test_bad_weights_are_refused(small):
    X, y = small
    for weight, message in ((-np.ones(64), "[Nn]egative"), (np.ones(63), "sample_weight.*shape")):
        with pytest.raises(ValueError, match=message):
            FluxRegressor(max_epochs=1).fit(X, y, sample_weight=weight)

    class Plain(nn.Module):
        weights = {"l1": 1.0}  # noqa: RUF012

        def terms(self, y_pred, y_true):
            return {"l1": (y_pred - y_true).abs().mean()}

    FluxRegressor(criterion=Plain, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match="Plain cannot weigh rows: give its terms"):
        FluxRegressor(criterion=Plain, max_epochs=1).fit(X, y, sample_weight=np.ones(64))


# --- going on, scoring, random numbers -------------------------------------------------------------------


def test_warm_start_goes_on(small):
    X, y = small
    settings = {"callbacks__lr_schedule": None, "random_state": 0, "max_epochs": 2}
    warm = FluxRegressor(**settings, warm_start=True).fit(X, y).fit(X, y)
    assert len(warm.history) == 4
    whole = FluxRegressor(**{**settings, "max_epochs": 4}).fit(X, y)
    parts = FluxRegressor(**settings).partial_fit(X, y).partial_fit(X, y)
    cold = FluxRegressor(**settings).fit(X, y).fit(X, y)
    assert len(cold.history) == 2
    for model in (warm, parts):
        np.testing.assert_array_equal(model.predict(X), whole.predict(X))
    assert (cold.predict(X) != whole.predict(X)).any()


def test_score_is_r2_in_double_precision(small):
    X, y = small
    model = FluxRegressor(max_epochs=2, random_state=0).fit(X, y)
    weight = np.linspace(0, 2, 64)
    expected = r2_score(y.astype(np.float64), model.predict(X).astype(np.float64), sample_weight=weight)
    assert model.score(X, y, sample_weight=weight) == pytest.approx(expected, rel=1e-5)
    # In 1/cm^3 the squares do not fit float32.
    X33, y33 = ((z.astype(np.float64) * 1e33).astype(np.float32) for z in small)
    assert model.score(X33, y33) == pytest.approx(model.score(X, y), rel=1e-4)
    assert 0 < model.score(X33, y33) < 1


def test_random_state(small):
    X, y = small
    settings = {"max_epochs": 1}
    one, again, other = (FluxRegressor(**settings, random_state=seed).fit(X, y).predict(X) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()
    generator = FluxRegressor(**settings, random_state=np.random.RandomState(1)).fit(X, y).predict(X)
    np.testing.assert_array_equal(generator, one)
    torch.manual_seed(5)
    first = FluxRegressor(**settings).fit(X, y).predict(X)
    torch.manual_seed(5)
    np.testing.assert_array_equal(FluxRegressor(**settings).fit(X, y).predict(X), first)
    assert (FluxRegressor(**settings).fit(X, y).predict(X) != first).any()


def test_a_table_of_another_width_is_refused(small):
    X, y = small
    with pytest.raises(FourFluxError, match=r"X has shape \(64, 23\); expected \(n, 48\)"):
        FluxRegressor().fit(X[:, :23], y)
