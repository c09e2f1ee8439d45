"""Standard deviations: calibrated in every family, wider far from what was seen, and in the unit of the input."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from skorch.helper import predefined_split

from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import FourFluxError
from rheidae.mixing.survival import ASYMPTOTIC, mixing_change
from rheidae.scoring.metrics import COVERAGE, DEVIATIONS
from tests.states import nearby_states, random_rotation, random_states, turn

FAST = {"max_epochs": 3, "random_state": 0}


def answers(n, seed, **options):
    """States, the scheme's answer, and a truth whose survival probability is steeper or falls less, at random."""
    F = random_states(n, seed, alike=True, **options)
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    rng = np.random.default_rng(seed)
    theta = np.tile(ASYMPTOTIC, (n, 1))
    theta[:, 2], theta[:, 3] = rng.normal(0, 0.2, n), 1 - np.abs(rng.normal(0, 0.3, n))
    lost = mixing_change(F, theta, order=53).D.reshape(n, 2, 4)
    true = F.copy()
    for nu in (0, 3):
        true[:, nu] -= lost[:, nu // 3]
        true[:, nu + 1 : nu + 3] += 0.5 * lost[:, nu // 3][:, None]
    return F, mix(F, "asymptotic"), true


def within(scale, F, predicted, true):
    changed = (predicted != F).any(axis=(1, 2))
    return (np.abs(true - predicted) <= DEVIATIONS * scale.std(F, predicted, predicted))[changed]


def test_covers_what_it_promises_also_in_families_not_seen():
    F, predicted, true = answers(1500, 0)
    scale = ErrorScale.fit(F, predicted, true, predicted)
    for seed, flux_factor in ((1, 0.75), (2, 0.3)):
        F, predicted, true = answers(1500, seed, max_flux_factor=flux_factor)
        assert np.abs(within(scale, F, predicted, true).mean(axis=(0, 2)) - COVERAGE).max() < 0.05
    # Not on the whole alone: the widest intervals are hundreds of times the narrowest.
    std = scale.std(F, predicted, predicted)[:, 0, 3]
    narrow = (std > 0) & (std < np.quantile(std[std > 0], 0.3))
    assert abs((np.abs(true - predicted)[narrow, 0, 3] <= DEVIATIONS * std[narrow]).mean() - COVERAGE) < 0.1


def test_far_from_the_rows_seen_another_answer_counts():
    F = nearby_states(300)
    predicted, box = mix(F, "asymptotic"), box3d_flux(F)
    true = predicted + 1e-5 * np.random.default_rng(0).normal(size=F.shape)
    scale = ErrorScale.fit(F, predicted, true, box)
    far, far_predicted, _ = answers(300, 1)
    unlike = F * [[1.0], [1.3], [0.7], [1.0], [1.0], [1.0]]
    unlike /= unlike[:, :, 3].sum(axis=1)[:, None, None]
    for state, answer in ((far, far_predicted), (unlike, mix(unlike, "asymptotic"))):
        other = box3d_flux(state)
        changed = (state != answer).any(axis=(1, 2))
        apart = np.abs(answer - other)[changed][:, :, 3]
        assert ((scale.std(state, answer, other)[changed][:, :, 3] / apart) > 0.95).mean() > 0.9
    assert np.median(scale.std(F, predicted, box) / np.abs(predicted - box)) < 0.4


def test_heavy_tails_are_covered_as_promised():
    # Student's t with two degrees of freedom: 1.64 of its own deviations are no 90 %.
    def with_tails(seed):
        F, predicted, true = answers(4000, seed)
        tails = np.random.default_rng(seed).standard_t(2.1, (len(F), 1, 1))
        return F, predicted, predicted + tails * (true - predicted)

    F, predicted, true = with_tails(0)
    covered = within(ErrorScale.fit(F, predicted, true, predicted), *with_tails(1))
    assert abs(covered.mean() - COVERAGE) < 0.02


def test_exchange_of_neutrinos_and_antineutrinos_changes_nothing():
    F, predicted, true = answers(600, 0)
    scale = ErrorScale.fit(F[:300], predicted[:300], true[:300], box3d_flux(F[:300]))
    # Rows seen and others, so that the distance from those seen counts.
    F[300:, 0] *= 1.5
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    states = F, mix(F, "asymptotic"), box3d_flux(F)
    exchanged = [state[:, [3, 4, 5, 0, 1, 2]] for state in states]
    std, outside = scale.judge(*states)
    turned, turned_outside = scale.judge(*exchanged)
    np.testing.assert_allclose(turned[:, [3, 4, 5, 0, 1, 2]], std, atol=1e-12)
    np.testing.assert_array_equal(turned_outside, outside)
    assert 0.05 < outside[300:].mean() < 1.0


def test_knows_no_frame():
    F, predicted, true = answers(500, 0)
    true[:, :, 0] += 0.01  # errors along x alone
    scale, rotation = ErrorScale.fit(F, predicted, true, predicted), random_rotation(1)
    # One deviation for the three components of a flux, the same however the state is turned.
    std = scale.std(F, predicted, predicted)
    np.testing.assert_array_equal(std[:, :, 0], std[:, :, 1])
    turned = turn(predicted, rotation)
    np.testing.assert_allclose(scale.std(turn(F, rotation), turned, turned), std, rtol=1e-6)


def test_nothing_is_in_doubt_where_nothing_changes():
    F, predicted, true = answers(200, 0)
    assert (ErrorScale.fit(F, predicted, true, predicted).std(F, F, F) == 0).all()


def test_comes_back_from_its_file(tmp_path):
    F, predicted, true = answers(200, 0)
    scale = ErrorScale.fit(F, predicted, true, predicted)
    again = ErrorScale.from_bytes(scale.to_bytes())
    np.testing.assert_array_equal(again.std(F, predicted, F), scale.std(F, predicted, F))


def test_predictions_have_standard_deviations_in_their_own_unit(data):
    X, y = data.data[:200].astype(np.float64), data.target[:200].astype(np.float64)
    model = FluxRegressor(**FAST).fit(X, y)
    final, std = model.predict(X, return_std=True)
    np.testing.assert_array_equal(final, model.predict(X))
    assert std.shape == final.shape
    assert (std > 0).all()
    _, scaled_std = model.predict(X * 1e-33, return_std=True)
    np.testing.assert_allclose(scaled_std, std * 1e-33, rtol=1e-4)


def test_calibration_uses_the_rows_it_is_given(data):
    X, y = data.data[:300], data.target[:300]
    model = FluxRegressor(**FAST).fit(X, y)
    before = model.predict(X, return_std=True)[1]
    wrong = y.copy()
    wrong[:, 0] += 0.3 * y[:, 3]  # errors many times as large
    after = model.calibrate(X, wrong).predict(X, return_std=True)[1]
    assert np.median((after / before)[:, 0]) > 5
    assert np.median((after / before)[:, 3]) < 3
    with pytest.raises(FourFluxError, match="2 rows"):
        model.calibrate(X[:2], y[:3])
    with pytest.raises(NotFittedError, match="calibrate"):
        FluxRegressor(**FAST).initialize().predict(X, return_std=True)


def test_generic_tables_have_none(data):
    model = FluxRegressor(layout="generic", **FAST).fit(data.data[:60], data.target[:60])
    for ask in (lambda: model.predict(data.data, return_std=True), lambda: model.calibrate(data.data, data.target)):
        with pytest.raises(ValueError, match="layout='generic' has no standard deviations"):
            ask()


def test_fit_calibrates_on_the_validation_rows_if_there_are_enough(data):
    X, y = data.data[:200], data.target[:200]
    for val_split, held_out in ((0.3, True), (0.1, False)):
        model = FluxRegressor(**FAST, val_split=val_split).fit(X, y)
        train, valid = (part.indices for part in model.get_split_datasets(X, y))
        before = model.predict(X, return_std=True)[1]
        rows = valid if held_out else train
        again = model.calibrate(X[rows], y[rows]).predict(X, return_std=True)[1]
        np.testing.assert_allclose(again, before, rtol=1e-3)
        rows = train if held_out else valid
        assert (model.calibrate(X[rows], y[rows]).predict(X, return_std=True)[1] / before).max() > 1.01


def test_fit_calibrates_on_validation_rows_that_are_a_data_set_of_their_own(data):
    """As `rheidae train` has them; more than there are training rows, and the truth as it was given."""
    X, y = data.data, data.target
    train, valid = np.arange(150), np.arange(150, 310)
    given = FluxRegressor().get_dataset(X[valid], y[valid])
    model = FluxRegressor(**FAST, train_split=predefined_split(given)).fit(X[train], y[train])
    found = model.error_scale_.arrays
    expected = model.calibrate(X[valid], y[valid]).error_scale_.arrays
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
    from_data_set = FluxRegressor(**FAST).fit(FluxRegressor().get_dataset(X[train], y[train]), None).error_scale_
    for name, array in FluxRegressor(**FAST).fit(X[train], y[train]).error_scale_.arrays.items():
        np.testing.assert_array_equal(from_data_set.arrays[name], array)
    with pytest.raises(ValueError, match="get_dataset"):
        model.fit(given, None, sample_weight=np.ones(len(valid)))


def test_chance_between_mu_and_tau_is_an_error_of_each(data):
    X, y = data.data[:300], data.target[:300].copy()
    model = FluxRegressor(**FAST).fit(X, y)
    split = np.random.default_rng(0).choice([-0.2, 0.2], (300, 1)) * X[:, [3]]
    y[:, [7, 19]] += split
    y[:, [11, 23]] -= split
    for fitted in (model.calibrate(X, y), FluxRegressor(**FAST).fit(X, y)):
        final, std = fitted.predict(X, return_std=True)
        np.testing.assert_array_equal(std[:, 4:8], std[:, 8:12])
        for species in range(6):
            columns = slice(4 * species, 4 * species + 4)
            covered = np.abs(final - y)[:, columns] <= DEVIATIONS * std[:, columns]
            assert abs(covered.mean() - COVERAGE) < 0.05
