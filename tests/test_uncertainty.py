"""Standard deviations: calibrated where the errors were seen, wider far away, and in the unit of the input."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import FourFluxError
from rheidae.mixing.survival import invariants
from rheidae.scoring.metrics import COVERAGE, DEVIATIONS
from tests.states import nearby_states, random_rotation, random_states, turn

FAST = {"max_epochs": 3, "random_state": 0}


def known_errors(n, seed):
    """States, predictions, and a truth whose errors are Gaussian, of a size that depends on the state."""
    F = random_states(n, seed, alike=True)
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    predicted = mix(F, "power")
    depth = invariants(F)[:, 1]
    size = 1e-3 * np.exp(0.3 * (depth - depth.mean()))[:, None, None] * np.array([1, 2, 2, 1, 3, 3])[:, None]
    true = predicted + size * np.random.default_rng(seed).normal(size=F.shape)
    return F, predicted, true, box3d_flux(F), size


def test_finds_the_size_of_errors_that_is_there():
    scale = ErrorScale.fit(*known_errors(4000, 0)[:4])
    F, predicted, true, _, size = known_errors(4000, 1)
    changed = (predicted != F).any(axis=(1, 2))
    std = scale.std(F, predicted)[changed]
    covered = np.abs(true - predicted)[changed] <= DEVIATIONS * std
    assert abs(covered.mean() - COVERAGE) < 0.02
    ratio = std / size[changed]
    assert np.percentile(ratio, 5) > 0.75
    assert np.percentile(ratio, 95) < 1.35


def test_far_from_the_rows_seen_it_is_box3ds_error_at_least():
    # One state with a hundredth of noise on it, and states drawn without regard to it.
    F = nearby_states(300)
    predicted, box = mix(F, "power"), box3d_flux(F)
    true = predicted + 1e-4 * np.random.default_rng(0).normal(size=F.shape)
    scale = ErrorScale.fit(F, predicted, true, box)
    floor = np.square(true - box).mean(axis=0)
    floor[:, :3] = floor[:, :3].mean(axis=1, keepdims=True)  # no component of a flux is told from the others
    floor = np.sqrt(floor)
    assert np.median(floor) > 1e-3
    assert np.percentile(scale.std(F, predicted) / floor, 90) < 0.4
    far, far_predicted, *_ = known_errors(300, 1)
    changed = (far != far_predicted).any(axis=(1, 2))
    # Some of these happen to have invariants like those seen.
    assert np.median(scale.std(far, far_predicted)[changed] / floor) > 0.95


def test_heavy_tails_are_covered_as_promised():
    # Student's t with three degrees of freedom: 1.64 of its standard deviations hold 93 %, of a normal one's 90 %.
    def with_tails(seed):
        F, predicted, _, box, size = known_errors(4000, seed)
        return F, predicted, predicted + size * np.random.default_rng(seed).standard_t(2.1, F.shape), box

    scale = ErrorScale.fit(*with_tails(0))
    F, predicted, true, _ = with_tails(1)
    changed = (predicted != F).any(axis=(1, 2))
    covered = np.abs(true - predicted)[changed] <= DEVIATIONS * scale.std(F, predicted)[changed]
    assert abs(covered.mean() - COVERAGE) < 0.02


def test_knows_no_frame():
    F, predicted, true, box, _ = known_errors(500, 0)
    true[:, :, 0] += 0.01  # errors along x alone
    scale, rotation = ErrorScale.fit(F, predicted, true, box), random_rotation(1)
    # One deviation for the three components of a flux, the same however the state is turned.
    std = scale.std(F, predicted)
    np.testing.assert_array_equal(std[:, :, 0], std[:, :, 1])
    np.testing.assert_allclose(scale.std(turn(F, rotation), turn(predicted, rotation)), std, rtol=1e-6)


def test_nothing_is_in_doubt_where_nothing_changes():
    F, predicted, true, box, _ = known_errors(200, 0)
    scale = ErrorScale.fit(F, predicted, true, box)
    assert (scale.std(F, F) == 0).all()


def test_comes_back_from_its_file(tmp_path):
    F, predicted, true, box, _ = known_errors(200, 0)
    scale = ErrorScale.fit(F, predicted, true, box)
    again = ErrorScale.from_bytes(scale.to_bytes())
    np.testing.assert_array_equal(again.std(F, predicted), scale.std(F, predicted))


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
