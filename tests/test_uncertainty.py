"""Standard deviations: calibrated where the errors were seen, wider far away, and in the unit of the input."""

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError

from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.exceptions import FourFluxError
from rheidae.power import power_invariants
from rheidae.uncertainty import COVERAGE, DEVIATIONS, ErrorScale
from tests.states import nearby_states, random_states

FAST = {"max_epochs": 3, "random_state": 0}


def known_errors(n, seed):
    """States, predictions, and a truth whose errors are Gaussian, of a size that depends on the state."""
    F = random_states(n, seed, alike=True)
    F /= F[:, :, 3].sum(axis=1)[:, None, None]
    predicted = mix(F, "power")
    depth = power_invariants(F)[:, 1]
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
    floor = np.sqrt(np.square(true - box).mean(axis=0))
    assert np.median(floor) > 1e-3
    assert np.percentile(scale.std(F, predicted) / floor, 90) < 0.4
    far, far_predicted, *_ = known_errors(300, 1)
    changed = (far != far_predicted).any(axis=(1, 2))
    # Some of these happen to have invariants like those seen.
    assert np.median(scale.std(far, far_predicted)[changed] / floor) > 0.95


def test_nothing_is_in_doubt_where_nothing_changes():
    F, predicted, true, box, _ = known_errors(200, 0)
    scale = ErrorScale.fit(F, predicted, true, box)
    assert (scale.std(F, F) == 0).all()


def test_comes_back_from_its_file(tmp_path):
    F, predicted, true, box, _ = known_errors(200, 0)
    scale = ErrorScale.fit(F, predicted, true, box)
    scale.save(tmp_path / "scale.safetensors")
    again = ErrorScale.load(tmp_path / "scale.safetensors")
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
