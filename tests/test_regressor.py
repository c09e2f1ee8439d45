import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.dataset import ValidSplit

from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.estimator.networks import MixingModel, ResidualFFIModel
from rheidae.exceptions import FourFluxError, RunError
from rheidae.mixing.survival import ASYMPTOTIC, mixing_change
from rheidae.scoring.metrics import flux_error
from tests.estimators import SMALL
from tests.states import random_states


@pytest.fixture(scope="module")
def small(data):
    return data.data[:120], data.target[:120]


def untrained(**options):
    return FluxRegressor(**{**SMALL, **options}).initialize()


def test_zero_network_is_exactly_box3d_or_the_initial_state(small):
    X, _ = small
    np.testing.assert_array_equal(untrained().predict(X), X[:, 24:])
    np.testing.assert_array_equal(untrained(predict_residual=False).predict(X), X[:, :24])


def test_zero_residual_scores_box3d_in_every_term(small):
    X, y = small
    net = untrained()
    dataset = net.get_dataset(X, y)
    ours = net.criterion_.terms(net.infer(dataset.x).detach(), dataset.target)
    box = net.criterion_.terms(dataset.x[:, 24:], dataset.target)
    assert ours.keys() == box.keys()
    for name, value in ours.items():
        assert torch.equal(value, box[name]), name


def test_learns(small):
    X, y = small
    net = FluxRegressor(random_state=0, max_epochs=60, batch_size=32).fit(X, y)
    assert net.history[-1, "train_loss"] < 0.5 * net.history[0, "train_loss"]
    error = flux_error(y, net.predict(X), X[:, :24]).mean()
    assert error < 0.5 * flux_error(y, X[:, 24:], X[:, :24]).mean()


@pytest.mark.parametrize("predict_residual", [True, False])
@pytest.mark.parametrize("unit", [1e-33, 1.0, 1e33])
def test_predictions_scale_with_the_input(small, predict_residual, unit):
    X, y = (z.astype(np.float64) for z in small)
    options = {**SMALL, "predict_residual": predict_residual}
    here = FluxRegressor(**options).fit(X, y).predict(X)
    there = FluxRegressor(**options).fit(X * unit, y * unit).predict(X * unit)
    assert here.dtype == np.float64
    np.testing.assert_allclose(there / unit, here, rtol=1e-5, atol=1e-7)


def test_single_precision_in_1_per_cm3(small):
    X, y = ((z.astype(np.float64) * 1e33).astype(np.float32) for z in small)
    net = FluxRegressor(**SMALL).fit(X, y)
    prediction = net.predict(X)
    assert np.isfinite(prediction).all()
    assert np.isfinite(net.history[:, "train_loss"]).all()


def test_random_state_repeats_and_leaves_the_global_generator_alone(small):
    X, y = small
    options = {**SMALL, "module__dropout": 0.2}
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = FluxRegressor(**options).fit(X, y).predict(X)
    assert torch.rand(1) == expected
    torch.manual_seed(4)
    np.testing.assert_array_equal(FluxRegressor(**options).fit(X, y).predict(X), first)
    assert (FluxRegressor(**{**options, "random_state": 1}).fit(X, y).predict(X) != first).any()


def test_partial_fit_goes_on(small):
    X, y = small
    # A constant rate: the cosine of the default depends on the number of epochs.
    options = {**SMALL, "callbacks__lr_schedule": None, "module__dropout": 0.1}
    whole = FluxRegressor(**{**options, "max_epochs": 6}).fit(X, y)
    halves = FluxRegressor(**options).fit(X, y).partial_fit(X, y)
    assert len(halves.history) == 6
    np.testing.assert_array_equal(halves.predict(X), whole.predict(X))


def test_targets_are_averaged_over_mu_and_tau(small):
    X, y = small
    swapped = y.reshape(-1, 6, 4)[:, [0, 2, 1, 3, 5, 4]].reshape(-1, 24)
    first = FluxRegressor(**SMALL).fit(X, y).predict(X)
    np.testing.assert_array_equal(FluxRegressor(**SMALL).fit(X, swapped).predict(X), first)


def test_history_names_every_term(small):
    X, y = small
    net = FluxRegressor(**SMALL, train_split=ValidSplit(0.2, random_state=0)).fit(X, y)
    for part in ("train", "valid"):
        for name in ("loss", "density", "magnitude", "direction", "unphysical", "residual_l1"):
            assert isinstance(net.history[-1, f"{part}_{name}"], float)


def test_epoch_means_weigh_batches_by_their_rows(small):
    X, y = small
    frozen = {**SMALL, "lr": 0.0, "module__use_batch_norm": False, "max_epochs": 1}
    net = FluxRegressor(**frozen, batch_size=50).fit(X, y)
    dataset = net.get_dataset(X, y)
    terms = net.criterion_.terms(dataset.x[:, 24:], dataset.target)
    assert net.history[0, "train_residual_l1"] == pytest.approx(float(terms["residual_l1"]), rel=1e-5)


def test_one_row_left_over(small):
    X, y = small
    net = FluxRegressor(**SMALL, batch_size=40).fit(X[:81], y[:81])
    assert net.history[0, "train_batch_count"] == 2


def test_groups_reach_the_split(small, data):
    X, y = small
    split = ValidSplit(GroupKFold(2))
    FluxRegressor(**SMALL, train_split=split).fit(X, y, groups=data.groups[:120])


def test_scikit_learn_model_selection(small, data):
    X, y = small
    scores = cross_val_score(FluxRegressor(**SMALL), X, y, groups=data.groups[:120], cv=GroupKFold(3))
    assert np.isfinite(scores).all()
    grid = {"module__hidden_dim": [8, 16], "predict_residual": [True, False]}
    search = GridSearchCV(FluxRegressor(**SMALL), grid, cv=2)
    search.fit(X, y)
    assert search.best_estimator_.predict(X).shape == (120, 24)
    pipeline = make_pipeline(FunctionTransformer(lambda z: z.astype(np.float64) * 1e33), FluxRegressor(**SMALL))
    assert np.isfinite(pipeline.fit(X, y.astype(np.float64) * 1e33).predict(X)).all()


def test_clone_parameters_and_pickle(small):
    X, y = small
    net = FluxRegressor(**SMALL, batch_size=33)
    copy = clone(net.set_params(lr=5e-3, module__hidden_dim=9))
    assert (copy.lr, copy.module__hidden_dim, copy.batch_size) == (5e-3, 9, 33)
    net.fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(net)).predict(X), net.predict(X))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda X, y: (X[:, :23], y), r"X has shape .* expected \(n, 48\)"),
        (lambda X, y: (X, y[:, 0]), r"y has shape \(120,\)"),
        (lambda X, y: (X, y[:-1]), "X has 120 rows, y has 119"),
        (lambda X, y: (np.where(np.arange(120)[:, None] == 5, np.nan, X), y), "X, row 5: a number is not finite"),
        (lambda X, y: (X, np.where(np.arange(120)[:, None] == 7, np.inf, y)), "y, row 7"),
        (lambda X, y: (np.where(np.arange(120)[:, None] == 2, 0, X), y), "X, row 2: the total number density is 0"),
    ],
)
def test_bad_input_is_named(small, spoil, message):
    with pytest.raises(FourFluxError, match=message):
        FluxRegressor(**SMALL).fit(*spoil(*small))


def test_strided_and_torch_input(small):
    X, y = small
    net = FluxRegressor(**SMALL).fit(X, y)
    np.testing.assert_array_equal(net.predict(np.asfortranarray(X)), net.predict(X))
    np.testing.assert_array_equal(net.predict(torch.from_numpy(X)), net.predict(X))
    np.testing.assert_array_equal(net.predict(X[:0]), np.empty((0, 24)))


@pytest.mark.parametrize("module", [MixingModel, ResidualFFIModel], ids=["mixing", "residual"])
@pytest.mark.parametrize("size", [0.1, 2.0])
@pytest.mark.parametrize(("dtype", "unit"), [(np.float32, 1.0), (np.float32, 1e33), (np.float64, 1e33)])
def test_predictions_are_physical_whatever_the_weights(module, size, dtype, unit):
    # mu and tau differ, flux factors reach 0.999, one species in six is empty.
    F = random_states(3000, max_flux_factor=0.999)
    F[np.random.default_rng(0).random((3000, 6)) < 1 / 6] = 0
    F[F[..., 3].sum(axis=1) == 0, 0, 3] = 1
    F *= unit
    X = np.concatenate([F, box3d_flux(F)], axis=1).reshape(-1, 48).astype(dtype)
    net = FluxRegressor(module, random_state=0).initialize()
    with torch.no_grad():
        for parameter in net.module_.parameters():
            torch.nn.init.normal_(parameter, std=size)
    final = net.predict(X).reshape(-1, 6, 4)
    total = F[..., 3].sum(axis=1)[:, None]
    slack = 1e-13 if dtype == np.float64 else 2e-7  # rounding of the result to its own float type
    assert final.dtype == (np.float64 if unit > 1 else dtype)  # float32 does not hold the squares of 1e33
    assert (final[..., 3] >= -slack * total).all()
    assert (np.linalg.norm(final[..., :3].astype(np.float64), axis=2) <= final[..., 3] + slack * total).all()
    moved = np.abs(final - F).max(axis=(1, 2)) / total[:, 0]
    assert np.percentile(moved, 90) > 1e-3


@pytest.mark.parametrize("layout", ["four_flux", "generic"])
def test_a_network_that_answers_nan_is_an_error(small, layout):
    X, y = small
    net = FluxRegressor(layout=layout, max_epochs=1, random_state=0).fit(X, y)
    with torch.no_grad():
        next(net.module_.parameters()).fill_(float("nan"))
    for ask in (lambda: net.predict(X), lambda: net.score(X, y)):
        with pytest.raises(RunError, match=r"X, row 0: the network's output is not finite .* train anew"):
            ask()


def test_rows_that_no_quadrature_resolves_do_not_spoil_the_others(small):
    # Six beams, exactly along an axis, among rows of the sample: in training, calibration and prediction.
    X, y = (table.copy() for table in small)
    F = np.zeros((6, 6, 4))
    F[..., 3] = np.random.default_rng(0).uniform(0.1, 1, (6, 6))
    F[..., 2] = F[..., 3] * [1, 1, 1, -1, 1, 1]
    X[:6] = np.concatenate([F, box3d_flux(F)], axis=1).reshape(6, 48)
    y[:6] = F.reshape(6, 24)
    net = FluxRegressor(random_state=0, max_epochs=60).fit(X, y)
    final, std = net.predict(X, return_std=True)
    assert np.isfinite(final).all()
    assert np.isfinite(std).all()
    error, of_box3d = (flux_error(y[6:], pred[6:], X[6:, :24]).mean() for pred in (final, X[:, 24:]))
    assert error < 0.6 * of_box3d


@pytest.mark.parametrize("module", [MixingModel, ResidualFFIModel], ids=["mixing", "residual"])
def test_states_without_a_crossing_come_back_as_they_are(module, small):
    F = random_states(200)
    F[:, [1, 2, 4, 5]] = F[:, [1]]
    F[:, 0] = 1.5 * F[:, 3]
    F *= 1e33
    X = np.concatenate([F, box3d_flux(F)], axis=1).reshape(-1, 48)
    net = FluxRegressor(module, random_state=0, max_epochs=2).fit(*small)
    np.testing.assert_array_equal(net.predict(X), X[:, :24])
    np.testing.assert_array_equal(net.predict(X.astype(np.float32)), X[:, :24].astype(np.float32))


def test_untrained_mixing_model_predicts_the_analytic_scheme(small):
    X, _ = small
    net = FluxRegressor().initialize()
    total = X[:, 3:24:4].sum(axis=1)[:, None]
    F = np.ascontiguousarray(X[:, :24] / total, dtype=np.float64).reshape(-1, 6, 4)
    D = mixing_change(F, np.tile(ASYMPTOTIC, (len(F), 1)), order=17).D.reshape(-1, 2, 4)
    np.testing.assert_allclose((F - net.predict(X).reshape(-1, 6, 4) / total[:, None])[:, [0, 3]], D, atol=5e-7)


def test_blocks_change_no_answer(small):
    X, y = (table.astype(np.float64) for table in small)
    model = FluxRegressor(max_epochs=1, random_state=0).fit(X, y)
    grid = X[:24, :24].reshape(4, 3, 2, 24)
    expected = [model.predict(rows, return_std=True) for rows in (X, grid)]
    score = model.score(X, y)
    model.set_params(iterator_valid__batch_size=7)
    for rows, pair in zip((X, grid), expected, strict=True):
        for part, whole in zip(model.predict(rows, return_std=True), pair, strict=True):
            np.testing.assert_allclose(part, whole, rtol=1e-6, atol=1e-8)
    assert model.score(X, y) == pytest.approx(score, rel=1e-9)
    # The type is one for all rows, and rows are known by their own numbers.
    single = X.astype(np.float32)
    single[20] *= np.float32(1e30)
    assert model.predict(single).dtype == model.predict(single[20:21]).dtype == np.float64
    X[17, 3] = -1
    with pytest.raises(FourFluxError, match="row 17"):
        model.predict(X)
    answer = model.predict(X, invalid="pass")
    assert np.isnan(answer).all(axis=1).tolist() == [row == 17 for row in range(len(X))]


@pytest.mark.parametrize("empty", [slice(3, 6), slice(0, 3)])
def test_species_that_are_not_there_do_not_stop_the_others(small, empty):
    """The last digits of a root would ask of them what they do not have, and the limiter stop the whole row."""
    F = random_states(200, 6, alike=True)
    F[:, empty] = 0.0
    model = FluxRegressor(max_epochs=1, random_state=0).fit(*small)
    changed, expected = (
        np.abs(G - F).max(axis=(1, 2)) / F[:, :, 3].sum(axis=1) for G in (model.predict(F), mix(F, "asymptotic"))
    )
    moving = expected > 1e-3
    assert moving.sum() > 50
    assert (changed[moving] > 1e-4).mean() > 0.98
