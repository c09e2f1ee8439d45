"""The estimator's training options: parameters, history, validation part, failures, stopping and going on."""

import json

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EarlyStopping, LRScheduler
from torch import nn
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import Subset

from rheidae import FluxRegressor, fourflux
from rheidae.estimator.batches import BatchSlicer, TableDataset
from rheidae.estimator.callbacks import (
    BatchNormRecalibration,
    DynamicWeightAverage,
    GradientCombiner,
    GradNorm,
    KendallGal,
    LagrangianConstraints,
    PCGrad,
)
from rheidae.estimator.losses import TERMS
from rheidae.estimator.networks import MixingModel
from rheidae.estimator.step import TrainingStep
from rheidae.exceptions import FourFluxError, RunError
from rheidae.scoring.metrics import flux_error, skill
from tests.estimators import SMALL


@pytest.fixture(scope="module")
def small(data):
    return data.data[:120], data.target[:120]


# --- parameters ------------------------------------------------------------------------------------------


def test_short_names_and_instances_are_parameters(small):
    net = FluxRegressor(**SMALL, weighting=DynamicWeightAverage(3.0), pcgrad=True, constraints=True)
    parameters = net.get_params()
    assert (parameters["pcgrad"], parameters["weighting__temperature"]) == (True, 3.0)
    copy = clone(net)
    assert copy.weighting is not net.weighting
    assert copy.weighting.temperature == 3.0
    copy.set_params(weighting="gradnorm", weighting__alpha=0.5, constraints__rho=7.0, pcgrad=False)
    assert (copy.weighting.alpha, copy.constraints.rho, copy.pcgrad) == (0.5, 7.0, False)
    assert net.weighting.temperature == 3.0
    copy.fit(*small)
    assert [name for name, _ in copy.callbacks_ if name in ("weighting", "pcgrad", "constraints")] == [
        "weighting", "constraints",
    ]  # fmt: skip
    clone(copy).fit(*small)
    with pytest.raises(ValueError, match="no pcgrad"):
        copy.set_params(pcgrad__x=1)


def test_grid_search_over_algorithms(small):
    grid = {"weighting": ["none", "kendall_gal", GradNorm(0.5)], "pcgrad": [False, True], "constraints": [True, False]}
    search = GridSearchCV(FluxRegressor(**{**SMALL, "max_epochs": 1}), grid, cv=2, error_score="raise")
    search.fit(*small)
    assert len(search.cv_results_["params"]) == 12
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_callbacks_of_the_list_do_the_same(small):
    X, y = small
    callbacks = [KendallGal(), PCGrad(), LagrangianConstraints()]
    listed = FluxRegressor(**SMALL, callbacks=callbacks).fit(X, y)
    named = FluxRegressor(**SMALL, weighting="kendall_gal", pcgrad=True, constraints=True).fit(X, y)
    np.testing.assert_array_equal(listed.predict(X), named.predict(X))
    with pytest.raises(ValueError, match="2 callbacks are a WeightingCallback"):
        FluxRegressor(**SMALL, weighting="dwa", callbacks=[KendallGal()]).initialize()


def test_any_network_and_criterion_will_do(small):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(48, 8), nn.Tanh(), nn.Linear(8, 24))
            self.unused = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return 0.01 * self.layers(x)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = {"numbers": 2.0, "largest": 0.1}

        def terms(self, y_pred, y_true):
            difference = (y_pred - y_true).abs()
            return {"numbers": difference[:, 3::4].mean(), "largest": difference.amax(dim=1).mean()}

        def forward(self, y_pred, y_true):
            return sum(self.weights[name] * value for name, value in self.terms(y_pred, y_true).items())

    for weighting in ("none", "kendall_gal", "dwa", "gradnorm"):
        for pcgrad in (False, True):
            net = FluxRegressor(
                Plain, criterion=Two, weighting=weighting, pcgrad=pcgrad, constraints=True, max_epochs=2,
                random_state=0, val_split=0.2,
            ).fit(*small)  # fmt: skip
            assert net.history[-1, "train_numbers"] < net.history[0, "train_numbers"]
            assert np.isfinite(net.history[-1, "valid_largest"])


def test_a_step_without_schemes_is_plain_backpropagation(small):
    """Against the criterion's own sum and autograd, through AdamW."""
    X, y = small
    # Without batch norm: a bias before one has no gradient but rounding, which AdamW would make into full steps.
    options = {**SMALL, "grad_clip": None, "module__use_batch_norm": False}
    torch.manual_seed(0)
    net, twin = FluxRegressor(**options).initialize(), FluxRegressor(**options).initialize()
    twin.module_.load_state_dict(net.module_.state_dict())
    dataset = net.get_dataset(X, y)
    for _ in range(3):
        net.train_step((dataset.x, dataset.target))
        twin.optimizer_.zero_grad()
        twin.criterion_(twin.infer(dataset.x), dataset.target).backward()
        twin.optimizer_.step()
    for ours, theirs in zip(net.module_.parameters(), twin.module_.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_mixed_precision_is_close_and_different(small):
    X, y = small
    options = {**SMALL, "weighting": "kendall_gal", "pcgrad": True}
    fine = FluxRegressor(**options).fit(X, y).predict(X)
    coarse = FluxRegressor(**options, mixed_precision=True).fit(X, y).predict(X)
    assert (fine != coarse).any()
    np.testing.assert_allclose(coarse, fine, atol=0.02)


def test_mixed_precision_is_bfloat16_in_training_alone(small):
    net = FluxRegressor(**SMALL, mixed_precision=True, val_split=0.2).initialize()
    seen = set()
    net.module_.head.register_forward_hook(lambda layer, x, y: seen.add((layer.training, y.dtype)))
    net.partial_fit(*small).predict(small[0])
    assert seen == {(True, torch.bfloat16), (False, torch.float32)}
    assert all(parameter.dtype == torch.float32 for parameter in net.module_.parameters())


@pytest.mark.parametrize("weighting", ["none", "kendall_gal", "dwa", "gradnorm"])
@pytest.mark.parametrize("pcgrad", [False, True])
def test_units_do_not_matter(small, weighting, pcgrad):
    """Data in units of 1e-33/cm^3 and in 1/cm^3 give the same predictions."""
    X, y = (z.astype(np.float64) for z in small)
    options = {**SMALL, "weighting": weighting, "pcgrad": pcgrad, "constraints": True}
    here = FluxRegressor(**options).fit(X, y).predict(X)
    there = FluxRegressor(**options).fit(X * 1e33, y * 1e33).predict(X * 1e33)
    np.testing.assert_allclose(there / 1e33, here, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weighting", ["none", "kendall_gal", "dwa", "gradnorm"])
def test_the_mixing_model_trains_with_every_scheme(small, weighting):
    options = {"random_state": 0, "weighting": weighting, "pcgrad": True, "constraints": True}
    net = FluxRegressor(max_epochs=15, **options).fit(*small)
    assert net.history[-1, "train_loss"] < 0.8 * net.history[0, "train_loss"]
    again = FluxRegressor(max_epochs=15, **options).fit(*small)
    np.testing.assert_array_equal(again.predict(small[0]), net.predict(small[0]))


def warm_up(epochs):
    return LRScheduler(LinearLR, start_factor=0.1, total_iters=epochs)


# --- history ---------------------------------------------------------------------------------------------


def test_history_is_complete_and_json_safe(small):
    net = FluxRegressor(
        **SMALL, weighting="gradnorm", pcgrad=True, constraints=True, val_split=0.2,
        callbacks=[warm_up(2), BatchNormRecalibration()], callbacks__lr_schedule=None,
    ).fit(*small)  # fmt: skip
    expected = {f"{prefix}_{name}" for prefix in ("train", "valid", "weight") for name in TERMS}
    expected |= {
        f"{kind}_{name}" for kind in ("violation", "multiplier") for name in ("negative_density", "superluminal")
    }
    expected |= {"train_loss", "valid_loss", "box3d_valid_loss", "skill", "lr", "conflicts", "train_objective", "epoch"}
    for row in net.history:
        assert expected <= set(row)
        assert all(type(row[name]) in (float, int) for name in expected)
    assert json.loads(json.dumps(net.history.to_list(), allow_nan=False)) == net.history.to_list()
    np.testing.assert_allclose(net.history[:, "lr"], [0.1 * net.lr, 0.55 * net.lr, net.lr], rtol=1e-9)


def test_losses_of_the_history_are_comparable(small):
    """With the criterion's own weights whatever the scheme; a zero residual scores exactly Box3D's loss."""
    X, y = small
    frozen = {**SMALL, "lr": 0.0, "module__use_batch_norm": False, "max_epochs": 1, "grad_clip": None}
    net = FluxRegressor(**frozen, weighting=KendallGal(lr=0.0), val_split=0.25).fit(X, y)
    row = net.history[0]
    assert row["valid_loss"] == row["box3d_valid_loss"]
    assert row["skill"] == 0
    for part in ("train", "valid"):
        expected = sum(weight * row[f"{part}_{name}"] for name, weight in net.criterion_.weights.items())
        assert row[f"{part}_loss"] == pytest.approx(expected, rel=1e-12)


def test_a_zero_residual_scores_box3ds_loss_in_every_term(small):
    """Exactly, and it is the loss of the box columns themselves."""
    X, y = small
    frozen = {**SMALL, "lr": 0.0, "module__use_batch_norm": False, "max_epochs": 1, "grad_clip": None}
    for name in TERMS:
        others = {f"criterion__w_{other}": 0.0 for other in TERMS if other != name}
        net = FluxRegressor(**frozen, **others, val_split=0.25).fit(X, y)
        row = net.history[0]
        assert row[f"valid_{name}"] * net.criterion_.weights[name] == row["valid_loss"] == row["box3d_valid_loss"]
    rows = FluxRegressor(**SMALL).initialize().get_dataset(X, y)
    net = FluxRegressor(**frozen, train_split=lambda dataset, y: (dataset, dataset)).fit(X, y)
    for name, value in net.criterion_.terms(rows.x[:, 24:], rows.target).items():
        assert net.history[0, f"valid_{name}"] == pytest.approx(float(value), rel=1e-6, abs=1e-12)


def test_skill_of_the_history_is_that_of_the_metrics(small):
    X, y = small
    captured = {}

    class Split:
        def __call__(self, dataset, y=None, **kwargs):
            captured["rows"] = np.arange(90, 120)
            return torch.utils.data.Subset(dataset, range(90)), torch.utils.data.Subset(dataset, range(90, 120))

    net = FluxRegressor(**SMALL, train_split=Split(), load_best=False).fit(X, y)
    rows = captured["rows"]
    init, box = X[rows, :24], X[rows, 24:]
    expected = skill(flux_error(y[rows], net.predict(X[rows]), init), flux_error(y[rows], box, init))
    assert net.history[-1, "skill"] == pytest.approx(expected, abs=1e-4)


# --- validation part -------------------------------------------------------------------------------------


class Parts(Callback):
    def on_epoch_begin(self, net, dataset_train=None, dataset_valid=None, **kwargs):
        self.sets = tuple({tuple(x.tolist()) for x, _ in part} for part in (dataset_train, dataset_valid))


def parts(small, **options):
    callback = Parts()
    fit = {"groups": options.pop("groups")} if "groups" in options else {}
    net = FluxRegressor(**{**SMALL, "max_epochs": 1, **options}, callbacks=[callback]).fit(*small, **fit)
    rows = {tuple(x.tolist()): i for i, x in enumerate(net.get_dataset(small[0]).x)}
    return tuple({rows[row] for row in part} for part in callback.sets)


def test_the_validation_part_is_shuffled_and_seeded(small):
    train, valid = parts(small, val_split=0.25)
    assert len(valid) == 30
    assert train | valid == set(range(120))
    assert not train & valid
    assert valid != set(range(90, 120))
    assert parts(small, val_split=0.25)[1] == valid
    assert parts(small, val_split=0.25, random_state=1)[1] != valid


def test_the_validation_part_takes_whole_groups(small):
    groups = np.repeat(np.arange(24), 5)
    rng = np.random.default_rng(0)
    groups = groups[rng.permutation(120)]
    train, valid = parts(small, val_split=0.25, groups=groups)
    assert len(valid) == 30
    assert not {groups[i] for i in train} & {groups[i] for i in valid}
    assert len(train) + len(valid) == 120


@pytest.mark.parametrize("load_best", [True, False])
def test_the_best_epoch_is_what_predicts(small, load_best):
    X, y = small
    options = {**SMALL, "max_epochs": 40, "lr": 0.05, "batch_size": 16, "callbacks__lr_schedule": None}
    stop = [("stop", EarlyStopping(patience=4, sink=lambda text: None))]
    net = FluxRegressor(**options, val_split=0.3, load_best=load_best, callbacks=stop)

    class Keep(Callback):
        def on_epoch_begin(self, net, dataset_valid=None, **kwargs):
            self.valid = dataset_valid

    keep = Keep()
    net.set_params(callbacks=[*stop, ("keep", keep)])
    net.fit(X, y)
    losses = net.history[:, "valid_loss"]
    assert len(losses) < 40
    batch = tuple(torch.stack(column) for column in zip(*keep.valid, strict=True))
    loss = float(net.validation_step(batch)["loss"])
    assert loss == pytest.approx(min(losses) if load_best else losses[-1], rel=1e-5)


class Elsewhere(torch.Tensor):
    """Says that it is on an accelerator."""

    device = torch.device("cuda")


def test_all_batches_are_recorded_under_one_name_on_an_accelerator(small, monkeypatch):
    step = TrainingStep.train

    def elsewhere(self, batch, **kwargs):
        result = step(self, batch, **kwargs)
        return result | {"record": result["record"].as_subclass(Elsewhere)}

    expected = FluxRegressor(**SMALL, batch_size=16).fit(*small).history[:, "batches", :, "train_loss"]
    monkeypatch.setattr(TrainingStep, "train", elsewhere)
    assert FluxRegressor(**SMALL, batch_size=16).fit(*small).history[:, "batches", :, "train_loss"] == expected


# --- failures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 1}, "batch norm has no variance in a batch of one row"),
        ({"val_split": 0.001}, "a validation part of 0.001 of 120 rows is empty"),
        ({"val_split": 0.995}, "a validation part of 0.995 of 120 rows leaves none to train on"),
        ({"val_split": 1.5}, "must lie between 0 and 1"),
        ({"train_split": lambda dataset, y: (dataset, torch.utils.data.Subset(dataset, []))}, "no validation rows"),
    ],
)
def test_impossible_trainings_are_refused_before_they_start(small, options, message):
    net = FluxRegressor(**SMALL, **options)
    with pytest.raises(FourFluxError, match=message):
        net.fit(*small)
    assert len(net.history) == 0


@pytest.mark.parametrize("layout", ["four_flux", "generic"])
def test_compile_is_refused_with_the_reason(small, layout):
    net = FluxRegressor(layout=layout, max_epochs=1, compile=True)
    with pytest.raises(ValueError, match="several gradients of one graph"):
        net.fit(*small)
    assert len(net.set_params(compile=False).fit(*small).history) == 1


def test_single_rows_without_batch_norm_are_fine(small):
    X, y = small
    FluxRegressor(**SMALL, batch_size=1, module__use_batch_norm=False).fit(X[:7], y[:7])
    with pytest.raises(FourFluxError, match="1 training rows"):
        FluxRegressor(**SMALL).fit(X[:1], y[:1])


class Poison(Callback):
    """Spoil the weights before a batch."""

    def __init__(self, epoch, batch):
        self.epoch, self.batch = epoch, batch

    def on_train_begin(self, net, **kwargs):
        self.count = 0

    def on_epoch_begin(self, net, **kwargs):
        self.count = 0

    def on_batch_begin(self, net, training=False, **kwargs):
        self.count += 1
        if (len(net.history), self.count) == (self.epoch, self.batch):
            nn.init.constant_(net.module_.head.bias, np.nan)


@pytest.mark.parametrize("options", [{}, {"pcgrad": True, "weighting": "gradnorm", "constraints": True}])
def test_a_loss_that_is_not_finite_stops_the_run(small, options):
    net = FluxRegressor(**SMALL, batch_size=16, callbacks=[Poison(2, 3)], **options)
    with pytest.raises(RunError, match=r"epoch 2, batch 3: .*train_density=nan.*last good checkpoint: none"):
        net.fit(*small)


class Interrupt(Callback):
    def __init__(self, epoch):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise KeyboardInterrupt


def test_ctrl_c_keeps_history_and_best_weights(small):
    X, y = small
    net = FluxRegressor(**{**SMALL, "max_epochs": 9}, val_split=0.2, callbacks=[Interrupt(4)]).fit(X, y)
    assert net.interrupted_
    assert net.history[:, "epoch"] == [1, 2, 3]
    whole = FluxRegressor(**{**SMALL, "max_epochs": 9}, val_split=0.2, callbacks=[Interrupt(4)])
    assert np.isfinite(net.predict(X)).all()
    best = int(np.argmin(net.history[:, "valid_loss"])) + 1
    whole.set_params(callbacks=[Interrupt(best + 1)], load_best=True)
    np.testing.assert_array_equal(whole.fit(X, y).predict(X), net.predict(X))


# --- going on --------------------------------------------------------------------------------------------


class Snapshots(Callback):
    def on_train_begin(self, net, **kwargs):
        self.states = getattr(self, "states", [])

    def on_epoch_end(self, net, **kwargs):
        self.states.append(net.training_state())


NETWORKS = {"residual": {**SMALL, "module__dropout": 0.1}, "mixing": {"random_state": 0}}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("weighting", ["none", "kendall_gal", "dwa", "gradnorm"])
def test_a_resumed_training_is_the_same_training(small, weighting, network, tmp_path):
    X, y = small

    def net(*extra):
        callbacks = [warm_up(3), BatchNormRecalibration(), EarlyStopping(patience=9), *extra]
        options = {**network, "max_epochs": 7, "batch_size": 32, "val_split": 0.2, "callbacks": callbacks}
        return FluxRegressor(weighting=weighting, pcgrad=True, constraints=True, **options)

    snapshots = Snapshots()
    whole = net(snapshots).fit(X, y)
    for epoch in (1, 4, 7):
        path = tmp_path / "state.pt"
        torch.save(snapshots.states[epoch - 1], path)
        state = torch.load(path, weights_only=True)
        resumed = net().resume(X, y, state)
        np.testing.assert_array_equal(resumed.predict(X), whole.predict(X))
        skip = ("dur", "batches")
        for ours, theirs in zip(resumed.history, whole.history, strict=True):
            assert {k: v for k, v in ours.items() if k not in skip} == {
                k: v for k, v in theirs.items() if k not in skip
            }


def test_a_state_that_does_not_fit_is_refused(small):
    snapshots = Snapshots()
    FluxRegressor(**{**SMALL, "max_epochs": 1}, callbacks=[snapshots]).fit(*small)
    (state,) = snapshots.states
    with pytest.raises(RunError, match="does not fit"):
        FluxRegressor(**{**SMALL, "module__hidden_dim": 8}).resume(*small, state)
    with pytest.raises(RunError, match="format 'x'"):
        FluxRegressor(**SMALL).resume(*small, {**state, "format": "x"})


def test_trained_nets_stay_physical(small):
    X, y = small
    net = FluxRegressor(random_state=0, max_epochs=30, weighting="kendall_gal", pcgrad=True, constraints=True).fit(X, y)
    assert fourflux.first_unphysical(fourflux.unflatten(net.predict(X)), tolerance=1e-2) is None
    assert isinstance(net._only(GradientCombiner), PCGrad)


def test_more_rows_than_are_looked_at_beforehand(small, monkeypatch):
    """Statistics of the features come from evenly spaced rows of the training part, itself a part of the data."""
    X, y = small
    monkeypatch.setattr("rheidae.estimator.batches.ENOUGH_ROWS", 30)
    net = FluxRegressor(random_state=0, max_epochs=1, val_split=0.2)
    train, _ = parts(small, val_split=0.2)
    looked_at = []

    class Watched(MixingModel):
        def prepare(self, x):
            looked_at.append(x)
            super().prepare(x)

    net.set_params(module=Watched).fit(X, y)
    rows = {tuple(x.tolist()): i for i, x in enumerate(net.get_dataset(X).x)}
    found = {rows[tuple(x.tolist())] for x in looked_at[0]}
    assert len(found) == 24
    assert found < train


def test_parts_of_parts_are_the_rows_that_they_name():
    table = TableDataset(torch.arange(20.0)[:, None], torch.arange(20.0)[:, None])
    part = Subset(Subset(table, [3, 5, 7, 11, 13]), range(4, 0, -2))
    (batch,) = BatchSlicer(part, 9)
    assert batch[0][:, 0].tolist() == [13, 7]
