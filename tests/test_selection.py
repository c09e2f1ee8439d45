"""Model selection, pipelines and scorers: what scikit-learn's users do with any estimator."""

import warnings

import numpy as np
import pytest
import sklearn
from scipy.stats import loguniform
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    LeaveOneGroupOut,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
)
from sklearn.pipeline import make_pipeline
from sklearn.utils import Bunch
from sklearn.utils.estimator_checks import parametrize_with_checks

from rheidae import FluxRegressor, box3d_flux, fourflux
from rheidae.estimator.transformers import AppendBox3D, PowerInvariants, UnitScaler
from rheidae.exceptions import FourFluxError
from rheidae.mixing.survival import INVARIANTS, invariants
from rheidae.scoring import metrics
from rheidae.scoring import scores as evaluation
from rheidae.scoring.metrics import (
    SCORERS,
    FluxScorer,
    box3d_skill_score,
    conservation_error,
    flux_error,
    get_scorer,
    physicality_rate,
)
from rheidae.scoring.tally import Tally
from tests.states import conservation_error as conservation_error_of_states
from tests.states import random_states

QUICK = {"max_epochs": 2, "random_state": 0}


@pytest.fixture(scope="module")
def rows(data):
    """Rows of all groups, few of each."""
    chosen = np.concatenate([np.flatnonzero(data.groups == group)[:25] for group in np.unique(data.groups)])
    return data.data[chosen], data.target[chosen], data.groups[chosen]


class Constant(RegressorMixin, BaseEstimator):
    """Predicts what it is given."""

    def __init__(self, answer=None):
        self.answer = answer

    def fit(self, X, y):
        return self

    def predict(self, X):
        return self.answer


# --- model selection -------------------------------------------------------------------------------------


def test_cross_validation_leaves_groups_out(rows):
    X, y, groups = rows
    found = cross_validate(
        FluxRegressor(**QUICK), X, y, groups=groups, cv=LeaveOneGroupOut(),
        scoring={"skill": FluxScorer("box3d_skill_score"), "r2": "r2"}, return_indices=True, return_estimator=True,
    )  # fmt: skip
    assert len(found["estimator"]) == len(np.unique(groups))
    for fold, model in enumerate(found["estimator"]):
        train, test = (found["indices"][part][fold] for part in ("train", "test"))
        assert not set(groups[train]) & set(groups[test])
        again = FluxRegressor(**QUICK).fit(X[train], y[train])
        np.testing.assert_array_equal(model.predict(X[test]), again.predict(X[test]))
        init, box = X[test, :24], X[test, 24:]
        error, of_box3d = (flux_error(y[test], F, init).mean() for F in (model.predict(X[test]), box))
        assert found["test_skill"][fold] == pytest.approx(1 - error / of_box3d)
        assert found["test_r2"][fold] == pytest.approx(model.score(X[test], y[test]), rel=1e-4)
    scores = cross_val_score(
        FluxRegressor(**QUICK), X, y, groups=groups, cv=GroupKFold(3), scoring=get_scorer("neg_flux_error")
    )
    assert (scores < 0).all()
    predicted = cross_val_predict(FluxRegressor(**QUICK), X, y, groups=groups, cv=GroupKFold(2))
    assert predicted.shape == y.shape


def test_sample_weights_reach_the_training_in_cross_validation(rows):
    X, y, _ = rows
    weights = np.where(np.arange(len(X)) % 2, 20.0, 1.0)
    settings = {"cv": 2, "scoring": get_scorer("neg_flux_error"), "error_score": "raise"}
    weighted = cross_val_score(FluxRegressor(**QUICK), X, y, params={"sample_weight": weights}, **settings)
    assert (weighted != cross_val_score(FluxRegressor(**QUICK), X, y, **settings)).all()


def test_metadata_routing_reaches_fit_splitter_and_scorer(rows):
    X, y, groups = rows
    weights = np.where(groups == "random", 1.0, 30.0)
    with sklearn.config_context(enable_metadata_routing=True):
        # Groups need no request: they go to what splits, GroupKFold and the model's own validation part.
        model = FluxRegressor(**QUICK, val_split=0.4).set_fit_request(sample_weight=True)
        scorer = FluxScorer("flux_error").set_score_request(sample_weight=True)
        given = {"sample_weight": weights, "groups": groups}
        found = cross_validate(
            model, X, y, params=given, cv=GroupKFold(2), scoring=scorer, return_estimator=True, return_indices=True
        )
        with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
            cross_validate(model, X, y, params=given, cv=GroupKFold(2), scoring=get_scorer("neg_flux_error"))
        direct = FluxRegressor(**QUICK, val_split=0.4).fit(X, y, groups=groups)
    np.testing.assert_array_equal(
        direct.predict(X), FluxRegressor(**QUICK, val_split=0.4).fit(X, y, groups=groups).predict(X)
    )
    for fold, score in enumerate(found["test_score"]):
        train, test = (found["indices"][part][fold] for part in ("train", "test"))
        again = FluxRegressor(**QUICK, val_split=0.4)
        again.fit(X[train], y[train], sample_weight=weights[train], groups=groups[train])
        error = flux_error(y[test], again.predict(X[test]), X[test, :24])
        assert score == pytest.approx(-np.average(error, weights=weights[test]))
        assert len(set(groups[test])) > 1


def test_searches_find_the_better_setting(rows):
    X, y, groups = rows
    grid = {"lr": [1e-9, 1e-2], "module__hidden_dim": [8]}
    settings = {"scoring": get_scorer("box3d_skill_score"), "cv": GroupKFold(2), "error_score": "raise"}
    model = FluxRegressor(max_epochs=10, random_state=0)
    search = GridSearchCV(model, grid, **settings).fit(X, y, groups=groups)
    assert search.best_params_["lr"] == 1e-2
    assert search.best_estimator_.module_.net.weights[0].shape == (2, 5, 8)
    assert search.score(X, y) == pytest.approx(get_scorer("box3d_skill_score")(search, X, y))
    chance = {"lr": loguniform(1e-4, 1e-2), "weighting": ["none", "kendall_gal"], "module__hidden_layers": [1, 2]}
    search = RandomizedSearchCV(model, chance, n_iter=2, random_state=0, **settings).fit(X, y, groups=groups)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    halving = HalvingGridSearchCV(
        model, grid, resource="max_epochs", min_resources=2, max_resources=4, factor=2, random_state=0, **settings
    ).fit(X, y, groups=groups)
    assert halving.n_resources_ == [2, 4]
    assert np.isfinite(halving.cv_results_["mean_test_score"]).all()


def test_learning_curve_and_permutation_importance(rows):
    X, y, _ = rows
    sizes, train, test = learning_curve(
        FluxRegressor(**QUICK), X, y, train_sizes=[0.5, 1.0], cv=2, scoring=get_scorer("box3d_skill_score"),
        shuffle=True, random_state=0,
    )  # fmt: skip
    assert sizes.tolist() == [25, 50]
    assert np.isfinite([train, test]).all()
    # A state without neutrinos of the second flavor but for their number: those fluxes decide nothing.
    X = X.copy()
    unused = 4 * fourflux.NU_MU
    X[:, [unused, 24 + unused]] = 0
    X[:, [column for column in range(24) if column % 4 != fourflux.T]] *= 0.01  # physical with other rows' densities
    model = FluxRegressor(**QUICK).fit(X, y)
    importance = permutation_importance(model, X, y, scoring=get_scorer("neg_flux_error"), n_repeats=2, random_state=0)
    assert importance.importances_mean.shape == (48,)
    assert importance.importances_mean[unused] == 0
    assert importance.importances_mean[4 * fourflux.NU_E + fourflux.T] > 0


# --- pipelines -------------------------------------------------------------------------------------------


def test_pipelines_from_initial_states_alone(rows):
    X, y, _ = rows
    pipeline = make_pipeline(AppendBox3D(), FluxRegressor(**QUICK)).fit(X[:, :24], y)
    ours = np.concatenate([X[:, :24], box3d_flux(X[:, :24].reshape(-1, 6, 4)).reshape(-1, 24)], axis=1)
    np.testing.assert_array_equal(pipeline[0].transform(X[:, :24]), ours)
    expected = FluxRegressor(**QUICK).fit(ours, y)
    np.testing.assert_array_equal(pipeline.predict(X[:, :24]), expected.predict(ours))
    # The scorers compute Box3D themselves where the pipeline does.
    score = get_scorer("box3d_skill_score")
    assert score(pipeline, X[:, :24], y) == pytest.approx(score(expected, ours, y), rel=1e-6)
    search = GridSearchCV(pipeline, {"appendbox3d__order": [13, 31], "fluxregressor__lr": [1e-3]}, cv=2)
    assert search.fit(X[:, :24], y).best_score_ > 0.5
    weighted = make_pipeline(AppendBox3D(), FluxRegressor(**QUICK))
    weighted.fit(X[:, :24], y, fluxregressor__sample_weight=np.arange(len(X)))
    assert (weighted.predict(X[:, :24]) != pipeline.predict(X[:, :24])).any()


def test_invariants_feed_any_regressor(rows):
    X, y, _ = rows
    pipeline = make_pipeline(PowerInvariants(), FluxRegressor(layout="generic", **QUICK)).fit(X, y)
    assert pipeline[-1].n_features_in_ == len(INVARIANTS)
    states = np.ascontiguousarray(X[:, :24].reshape(-1, 6, 4), dtype=np.float64)
    np.testing.assert_allclose(pipeline[0].transform(X), invariants(states), rtol=1e-5)
    # In 1/cm^3 the same numbers: they know no scale.
    huge = (X.astype(np.float64) * 1e33).astype(np.float32)
    np.testing.assert_allclose(pipeline[0].transform(huge), pipeline[0].transform(X), rtol=1e-3, atol=1e-4)


def test_units_in_and_out(rows):
    X, y = (z.astype(np.float64) * 1e33 for z in rows[:2])
    inner = make_pipeline(UnitScaler(1e33), FluxRegressor(layout="generic", **QUICK))
    model = TransformedTargetRegressor(inner, transformer=UnitScaler(1e33)).fit(X, y)
    expected = FluxRegressor(layout="generic", **QUICK).fit(X / 1e33, y / 1e33).predict(X / 1e33)
    np.testing.assert_allclose(model.predict(X), expected * 1e33, rtol=1e-5, atol=1e28)
    whole = TransformedTargetRegressor(
        make_pipeline(UnitScaler(1e33), FluxRegressor(**QUICK)), transformer=UnitScaler()
    )
    np.testing.assert_allclose(whole.fit(X, y).predict(X), FluxRegressor(**QUICK).fit(X, y).predict(X), rtol=1e-6)
    scores = cross_val_score(whole, X, y, cv=2, scoring=get_scorer("box3d_skill_score"))
    np.testing.assert_allclose(
        scores, cross_val_score(FluxRegressor(**QUICK), X, y, cv=2, scoring=get_scorer("box3d_skill_score"))
    )
    assert UnitScaler("auto").fit(X).unit_ in (1e33, 1e34)
    assert UnitScaler("auto").fit(0 * X).unit_ == 1
    for unit in (np.float32(8), np.int64(8)):  # as the maximum of a data set
        np.testing.assert_array_equal(UnitScaler(unit).fit_transform(X), X / 8)
    with pytest.raises(ValueError, match="unit=0 is neither"):
        UnitScaler(0).fit(X)


@pytest.mark.parametrize(
    ("step", "columns"),
    [
        (AppendBox3D(), fourflux.column_names("F_init") + fourflux.column_names("F_box")),
        (PowerInvariants(), list(INVARIANTS)),
        (PowerInvariants(append=True), fourflux.column_names("F_init") + list(INVARIANTS)),
        (UnitScaler(1.0), [f"x{i}" for i in range(24)]),
    ],
    ids=repr,
)
def test_transformers_name_their_columns(rows, step, columns):
    X = rows[0][:, :24]
    assert step.fit(X).get_feature_names_out().tolist() == columns
    table = step.set_output(transform="pandas").fit_transform(X)
    assert table.columns.tolist() == columns
    step.set_output(transform="default")
    np.testing.assert_array_equal(table, step.fit_transform(X))
    assert table.dtypes.eq(np.float32).all()
    assert step.transform(X.astype(np.float64)).dtype == np.float64
    # Names that X brings along stay.
    named = table.iloc[:, :24] if table.shape[1] >= 24 else None
    if named is not None:
        named = named.set_axis([f"column {i}" for i in range(24)], axis=1)
        assert step.fit(named).get_feature_names_out().tolist()[:24] == named.columns.tolist()
    if not isinstance(step, UnitScaler):
        with pytest.raises(FourFluxError, match=r"X has shape \(100, 23\); expected \(n, 24"):
            step.fit(X[:, :23])
        with pytest.raises(FourFluxError, match="row 4, nu_mu: number density -1 is negative"):
            step.fit(np.where((np.arange(100)[:, None] == 4) & (np.arange(24) == 7), -1, X))


@parametrize_with_checks([UnitScaler("auto")])
def test_check_estimator_of_what_takes_any_width(estimator, check):
    check(estimator)


# --- metrics and scorers ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def states():
    init, pred, true = (random_states(50, seed=seed) for seed in range(3))
    return true, pred, init


def test_flux_error_by_hand(states):
    true, pred, init = states
    for species in (None, *fourflux.SPECIES):
        for component in (None, *fourflux.COMPONENTS):
            which = range(6) if species is None else [fourflux.SPECIES.index(species)]
            parts = range(4) if component is None else [fourflux.COMPONENTS.index(component)]
            expected = [
                np.mean([sum((pred[n, s, c] - true[n, s, c]) ** 2 for c in parts) ** 0.5 for s in which])
                / sum(init[n, s, 3] for s in range(6))
                for n in range(50)
            ]
            found = flux_error(true, pred, init, species=species, component=component)
            np.testing.assert_allclose(found, expected)


def test_skill_is_one_zero_and_negative_where_it_should(states):
    true, pred, init = states
    box = box3d_flux(init)
    assert box3d_skill_score(true, true, init) == 1
    assert box3d_skill_score(true, box, init) == 0
    assert box3d_skill_score(true, 0.5 * (true + box), init, box) == pytest.approx(0.5)
    assert box3d_skill_score(true, 2 * box - true, init, box) == pytest.approx(-1)
    weight = np.arange(50)
    error, of_box = (np.average(flux_error(true, F, init), weights=weight) for F in (pred, box))
    assert box3d_skill_score(true, pred, init, box, sample_weight=weight) == pytest.approx(1 - error / of_box)
    with pytest.raises(FourFluxError, match="Box3D makes no error"):
        box3d_skill_score(box, box, init, box)


def test_conservation_error_sees_what_changes(states):
    _, pred, init = states
    box = box3d_flux(init)
    assert conservation_error(box, init).max() < 1e-14
    assert conservation_error(pred, init).max() == pytest.approx(conservation_error_of_states(init, pred))
    # One more neutrino: its flavor sum and its lepton number.
    more = box.copy()
    more[:, fourflux.NU_MU, fourflux.T] += 0.1 * fourflux.total_density(init)
    np.testing.assert_allclose(conservation_error(more, init), 0.1)
    np.testing.assert_allclose(conservation_error(more, init, component="x"), 0, atol=1e-14)
    # A pair: the lepton number alone stays. A swap of flavors: the sums alone stay.
    more[:, fourflux.NUBAR_MU, fourflux.T] += 0.1 * fourflux.total_density(init)
    np.testing.assert_allclose(conservation_error(more, init, component="t"), 0.1)
    swap = init.copy()
    swap[:, fourflux.NU_E, fourflux.T] += 0.2 * fourflux.total_density(init)
    swap[:, fourflux.NU_TAU, fourflux.T] -= 0.2 * fourflux.total_density(init)
    np.testing.assert_allclose(conservation_error(swap, init), 0.2)


def test_physicality_rate_counts(states):
    pred = states[1].copy()
    assert physicality_rate(pred) == 1
    pred[:10, 0, fourflux.T] = -1e-3
    pred[:5, 1, :3] = [3.0, 0, 0]
    assert physicality_rate(pred) == pytest.approx(1 - 15 / 300)
    assert physicality_rate(pred, species="nu_e") == pytest.approx(0.8)
    assert physicality_rate(pred, species="nu_tau") == 1
    assert physicality_rate(pred, species="nu_e", sample_weight=np.arange(50) >= 10) == 1


def test_metrics_agree_with_the_evaluation(rows, data):
    X, y, _ = rows
    model = FluxRegressor(**QUICK).fit(X, y)
    pred = model.predict(X)
    every = np.arange(len(X))
    scored = evaluation.score(Bunch(data=X, target=y, groups=rows[2]), every, rows[2], every, pred[None])
    report = Tally().add(scored, np.ones(len(X), dtype=bool)).summary(resamples=10)["schemes"]["model"]
    assert get_scorer("box3d_skill_score")(model, X, y) == pytest.approx(report["skill"])
    assert -get_scorer("neg_flux_error")(model, X, y) == pytest.approx(report["error"])
    assert get_scorer("physicality_rate")(model, X, y) == report["physical_fraction"]
    changed = max(report["flavor_sum_change"], report["lepton_number_change"])
    assert conservation_error(pred, X[:, :24]).max() == pytest.approx(changed, rel=1e-3, abs=1e-9)


def test_every_scorer_has_a_name(rows):
    X, y, _ = rows
    model = FluxRegressor(**QUICK).fit(X, y)
    assert {"neg_flux_error", "box3d_skill_score", "neg_conservation_error", "physicality_rate"} <= SCORERS.keys()
    assert {"neg_flux_error_nu_e", "neg_flux_error_t", "box3d_skill_score_nubar_tau_z"} <= SCORERS.keys()
    pred, init = model.predict(X), X[:, :24]
    for name in SCORERS:
        assert np.isfinite(get_scorer(name)(model, X, y)), name
    of_nu_e = flux_error(y, pred, init, species="nu_e", component="z").mean()
    assert get_scorer("neg_flux_error_nu_e_z")(model, X, y) == pytest.approx(-of_nu_e)
    found = cross_val_score(model, X, y, cv=2, scoring=get_scorer("physicality_rate_nu_e"))
    np.testing.assert_array_equal(
        found, cross_val_score(model, X, y, cv=2, scoring=FluxScorer("physicality_rate", "nu_e"))
    )
    for bad, message in (
        ({"metric": "flux"}, "metric='flux' is not one of flux_error"),
        ({"metric": "flux_error", "species": "nu_x"}, "'nu_x' is not one of nu_e"),
        ({"metric": "physicality_rate", "component": "t"}, "not told apart by component"),
    ):
        with pytest.raises(ValueError, match=message):
            FluxScorer(**bad)
    with pytest.raises(ValueError, match="'flux_error_nu_x' is not one of ours; the nearest is 'neg_flux"):
        get_scorer("flux_error_nu_x")
    get_scorer("neg_flux_error").set_score_request(sample_weight=True)
    assert get_scorer("neg_flux_error").get_metadata_routing().score.requests == {"sample_weight": None}


@pytest.mark.parametrize("scoring", [None, "r2", "neg_flux_error", "box3d_skill_score", "neg_conservation_error",
                                     "physicality_rate", "explained_variance", "neg_mean_squared_error"])  # fmt: skip
def test_scores_in_1_per_cm3_in_single_precision(rows, scoring):
    X, y, _ = rows
    chosen = get_scorer(scoring) if scoring in SCORERS else scoring
    settings = {"cv": 2, "scoring": chosen, "error_score": "raise"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = cross_val_score(FluxRegressor(**QUICK), X.astype(np.float64), y.astype(np.float64), **settings)
        huge = ((z.astype(np.float64) * 1e33).astype(np.float32) for z in (X, y))
        found = cross_val_score(FluxRegressor(**QUICK), *huge, **settings)
    unit = 1e66 if scoring == "neg_mean_squared_error" else 1.0
    np.testing.assert_allclose(found / unit, expected, rtol=1e-3, atol=1e-6)
    assert np.isfinite(found).all()
    assert scoring == "physicality_rate" or (np.abs(found) != 1).all()


@pytest.mark.parametrize(
    "scoring", ["neg_flux_error", "box3d_skill_score", "neg_conservation_error", "physicality_rate"]
)
def test_scorers_refuse_nan_and_wrong_shapes(rows, scoring):
    X, y, _ = rows
    answer = y.copy()
    answer[7, 3] = np.nan
    with pytest.raises(FourFluxError, match="F_pred, row 7: a number is not finite"):
        get_scorer(scoring)(Constant(answer), X, y)
    answer[7, 3] = np.inf
    with pytest.raises(FourFluxError, match="F_pred, row 7: a number is not finite"):
        get_scorer(scoring)(Constant(answer), X, y)
    with pytest.raises(FourFluxError, match=r"F_pred has shape \(100, 23\)"):
        get_scorer(scoring)(Constant(y[:, :23]), X, y)
    with pytest.raises(FourFluxError, match="its first 24 columns have to be"):
        get_scorer(scoring)(Constant(y), X[:, :20], y)


def test_an_estimator_of_another_house_is_scored_too(rows):
    X, y, _ = rows
    model = make_pipeline(AppendBox3D(), LinearRegression()).fit(X[:, :24], y)
    assert get_scorer("box3d_skill_score")(model, X[:, :24], y) == pytest.approx(
        metrics.skill(flux_error(y, model.predict(X[:, :24]), X[:, :24]), flux_error(y, X[:, 24:], X[:, :24])), rel=1e-4
    )
