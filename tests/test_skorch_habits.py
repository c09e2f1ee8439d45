"""What users of skorch do works here, or is refused by name."""

import numpy as np
import pytest
import torch
from skorch.callbacks import (
    BatchScoring,
    Checkpoint,
    EpochScoring,
    Freezer,
    LoadInitState,
    LRScheduler,
    PassthroughScoring,
    Unfreezer,
)
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.callbacks.schedule import one_cycle
from rheidae.scoring.metrics import FluxScorer, get_scorer
from tests.estimators import SMALL

FLAT = {**SMALL, "module__use_batch_norm": False}
KINDS = {"mixing": {"random_state": 0, "max_epochs": 2}, "residual": {**SMALL, "max_epochs": 2}}
KINDS["generic"] = {"layout": "generic", "random_state": 0, "max_epochs": 2, "module__hidden_dim": 8}


@pytest.fixture(scope="module")
def rows(data):
    return data.data[:80], data.target[:80]


class Quiet(Checkpoint):
    def __init__(self, dirname):
        super().__init__(dirname=str(dirname), sink=lambda text: None)


# --- scores (skorch#552, #171, #595) ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_caching", [True, False])
def test_the_score_of_the_training_rows_is_theirs(rows, kind, use_caching):
    scores = [
        ("default", EpochScoring(None, name="mine", on_train=True, lower_is_better=False, use_caching=use_caching)),
        ("r2", EpochScoring("r2", name="r2", on_train=True, lower_is_better=False, use_caching=use_caching)),
    ]
    model = FluxRegressor(**KINDS[kind], callbacks=scores).fit(*rows, sample_weight=np.linspace(0.5, 2, 80))
    last = model.history[-1]
    assert last["mine"] == pytest.approx(model.score(*rows), abs=1e-9)
    assert last["r2"] == pytest.approx(model.score(*rows), abs=1e-6)
    assert last["r2_best"] in (True, False)


def test_our_scorers_score_by_name_and_as_objects(rows):
    named = ["neg_flux_error", "box3d_skill_score", "conservation_error_t"]
    named[2] = "neg_" + named[2]
    chosen = {}

    def split(dataset, y=None, **_):
        chosen["rows"] = np.arange(0, 80, 2)
        return [torch.utils.data.Subset(dataset, np.arange(start, 80, 2)) for start in (1, 0)]

    callbacks = [EpochScoring(name, lower_is_better=False) for name in named]
    callbacks.append(EpochScoring(FluxScorer("flux_error", species="nu_e"), lower_is_better=False))
    model = FluxRegressor(max_epochs=2, random_state=0, train_split=split, load_best=False, callbacks=callbacks)
    model.fit(*rows)
    valid = [part[chosen["rows"]] for part in rows]
    for name in named:
        assert model.history[-1, name] == pytest.approx(get_scorer(name)(model, *valid), rel=1e-9), name
    expected = FluxScorer("flux_error", species="nu_e")(model, *valid)
    assert model.history[-1, "flux_error_nu_e"] == pytest.approx(expected, rel=1e-9)


def test_scores_of_batches(rows):
    seen = []

    def by_hand(net, X, y):
        seen.append(len(y))
        return float(net.score(X, y))

    def now(net, X, y):
        return net.history[-1, "batches", -1, "train_loss"]

    callbacks = [
        ("by_hand", BatchScoring(by_hand, name="mine", on_train=True)),
        ("loss", BatchScoring(now, name="now", on_train=True)),
        ("whole", PassthroughScoring("mine", on_train=True, lower_is_better=False)),
        ("valid", BatchScoring("neg_mean_absolute_error", name="valid_mae")),
    ]
    options = {"batch_size": 30, "max_epochs": 2, "val_split": 0.25, "random_state": 0}
    weight = np.linspace(1, 2, 80)
    model = FluxRegressor(**options, callbacks=callbacks).fit(*rows, sample_weight=weight)
    batches = model.history[-1, "batches"]
    assert [batch.get("train_batch_size") for batch in batches] == [30, 30, None]
    assert seen == 2 * [30, 30]
    assert model.history[-1, "batches"][-1].keys() == {"valid_batch_size", "valid_loss", "valid_mae"}
    assert model.history[-1, "now"] == pytest.approx(model.history[-1, "train_loss"], rel=1e-9)
    assert np.isfinite(model.history[:, ("mine_best", "valid_mae")]).all()
    assert model.history[0, "batches"] == []


# --- freezing (skorch#342) -------------------------------------------------------------------------------


SCHEMES = {
    "plain": {},
    "pcgrad": {"pcgrad": True, "weighting": "kendall_gal", "constraints": True},
    "gradnorm": {"weighting": "gradnorm"},
    "mixed": {"mixed_precision": True},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("frozen", ["head*", "blocks*", "*"])
def test_freezing_and_unfreezing(rows, scheme, frozen):
    states = []

    class Keep(EpochScoring):
        def on_epoch_end(self, net, **kwargs):
            states.append({name: value.clone() for name, value in net.module_.named_parameters()})

    callbacks = [("freeze", Freezer(frozen, at=2)), ("unfreeze", Unfreezer(frozen, at=3)), ("keep", Keep(None))]
    FluxRegressor(**FLAT, **SCHEMES[scheme], callbacks=callbacks, callbacks__lr_schedule=None).fit(*rows)
    prefix = frozen.removesuffix("*")
    for name, first in states[0].items():
        assert torch.equal(states[1][name], first) == name.startswith(prefix), name
        assert not torch.equal(states[2][name], states[1][name]), name


def test_frozen_from_the_start(rows):
    model = FluxRegressor(**FLAT, weighting="gradnorm", pcgrad=True, callbacks=[Freezer("*")]).initialize()
    before = [value.clone() for value in model.module_.parameters()]
    model.partial_fit(*rows)
    assert all(map(torch.equal, before, model.module_.parameters()))
    assert len(model.history) == 3


# --- overriding (skorch#81) ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["infer", "get_loss", "evaluation_step", "forward_iter"])
def test_overriding_what_is_not_gone_by_is_refused(name):
    mixin = type("Mixin", (), {name: lambda self, *args, **kwargs: None})
    with pytest.raises(TypeError, match=rf"Mine overrides {name}\(\)"):
        type("Mine", (mixin, FluxRegressor), {})


def test_overriding_steps_is_honoured(rows):
    calls = []

    class Mine(FluxRegressor):
        def train_step_single(self, batch, **fit_params):
            calls.append("single")
            return super().train_step_single(batch, **fit_params)

        def validation_step(self, batch, **fit_params):
            calls.append("valid")
            return super().validation_step(batch, **fit_params)

    Mine(max_epochs=1, random_state=0, val_split=0.5).fit(*rows)
    assert calls == ["single", "valid"]


def test_gradients_accumulate(rows):
    """As in skorch's FAQ: a step for two batches, here two halves of the rows, is nearly that of the whole."""

    class Twice(FluxRegressor):
        def train_step(self, batch, **fit_params):
            last = len(self.history[-1, "batches"]) % 2 == 0
            step = self.train_step_single(batch, **fit_params)
            if last:
                for parameter in self.module_.parameters():
                    parameter.grad /= 2
                self.optimizer_.step()
                self.optimizer_.zero_grad()
            return step

    options = {**FLAT, "max_epochs": 2, "criterion": nn.MSELoss, "grad_clip": None, "iterator_train__shuffle": False}
    halves = Twice(**options, batch_size=40).fit(*rows)
    whole = FluxRegressor(**options, batch_size=80).fit(*rows)
    for one, other in zip(halves.module_.parameters(), whole.module_.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("name", "value"), [("use_caching", True), ("predict_nonlinearity", torch.exp)])
def test_parameters_without_meaning_are_refused(rows, name, value):
    with pytest.raises(ValueError, match=f"{name}=.* has no meaning here"):
        FluxRegressor(**{name: value}).fit(*rows)


# --- learning rates (pytorch#65342) ----------------------------------------------------------------------


def test_every_training_has_a_schedule_of_its_own(rows, tmp_path):
    epochs = 4
    expected = [1e-2 * one_cycle(epoch, epochs) for epoch in range(epochs)]
    options = {"random_state": 0, "max_epochs": epochs, "load_best": False}
    model = FluxRegressor(**options, warm_start=True).fit(*rows)
    model.partial_fit(*rows).fit(*rows)
    np.testing.assert_allclose(model.history[:, "lr"], 3 * expected)
    # Also another one.
    model.set_params(lr=2e-2, max_epochs=2).partial_fit(*rows)
    np.testing.assert_allclose(model.history[-2:, "lr"], [2e-2 * one_cycle(epoch, 2) for epoch in range(2)])
    model.partial_fit(*rows, epochs=3)
    np.testing.assert_allclose(model.history[-3:, "lr"], [2e-2 * one_cycle(epoch, 3) for epoch in range(3)])

    checkpoint = Quiet(tmp_path)
    FluxRegressor(**options, val_split=0.25, callbacks=[checkpoint]).fit(*rows)
    loaded = FluxRegressor(**options, callbacks=[LoadInitState(checkpoint)]).fit(*rows)
    np.testing.assert_allclose(loaded.history[-epochs:, "lr"], expected)


def test_a_training_that_an_error_ended_leaves_the_rate_alone(rows):
    stopped = []

    def stop(net, X, y):
        if len(net.history) == 2 and not stopped:
            stopped.append(True)
            raise RuntimeError("stop")
        return 0.0

    model = FluxRegressor(random_state=0, max_epochs=4, callbacks=[("stop", EpochScoring(stop, on_train=True))])
    with pytest.raises(RuntimeError, match="stop"):
        model.fit(*rows)
    model.partial_fit(*rows)
    np.testing.assert_allclose(model.history[-4:, "lr"], [1e-2 * one_cycle(epoch, 4) for epoch in range(4)])


def test_a_scheduler_of_the_users_takes_the_place_of_ours(rows):
    step = LRScheduler("StepLR", step_size=1, gamma=0.5)
    model = FluxRegressor(random_state=0, max_epochs=3, callbacks=[step]).fit(*rows)
    np.testing.assert_allclose(model.history[:, "lr"], [1e-2, 5e-3, 2.5e-3])
    plateau = LRScheduler("ReduceLROnPlateau", monitor="train_loss", step_every="batch", patience=0, threshold=1.0)
    model = FluxRegressor(random_state=0, max_epochs=1, batch_size=20, callbacks=[plateau]).fit(*rows)
    assert model.optimizer_.param_groups[0]["lr"] < 1e-2


# --- the rest --------------------------------------------------------------------------------------------


def test_checkpoints_by_their_defaults(rows, tmp_path):
    """(skorch#869)"""
    checkpoint = Quiet(tmp_path)
    model = FluxRegressor(random_state=0, max_epochs=6, val_split=0.25, callbacks=[checkpoint]).fit(*rows)
    for part in ("train", "valid"):
        losses = model.history[:, f"{part}_loss"]
        best = [loss < min(losses[:epoch], default=np.inf) for epoch, loss in enumerate(losses)]
        assert model.history[:, f"{part}_loss_best"] == best
    loaded = FluxRegressor(random_state=0, max_epochs=6).initialize()
    loaded.load_params(checkpoint=checkpoint)
    # The best epoch's weights, which the model itself returned to.
    for one, other in zip(loaded.module_.parameters(), model.module_.parameters(), strict=True):
        assert torch.equal(one, other)
    assert loaded.history[-1, "valid_loss"] == min(model.history[:, "valid_loss"])


@pytest.mark.parametrize("kind", KINDS)
def test_another_default_type(rows, kind):
    """(sktime#5048)"""
    options = {**KINDS[kind], "weighting": "kendall_gal", "pcgrad": True, "val_split": 0.25}
    expected = FluxRegressor(**options).fit(*rows)
    torch.set_default_dtype(torch.float64)
    try:
        model = FluxRegressor(**options).fit(*rows)
        predicted = model.predict(rows[0])
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    np.testing.assert_array_equal(predicted, expected.predict(rows[0]))
    for one, other in zip(model.module_.parameters(), expected.module_.parameters(), strict=True):
        assert one.dtype == other.dtype


def test_inference_mode_outside(rows):
    """A sibling of the default type: torch's global modes do not reach a training."""
    expected = FluxRegressor(random_state=0, max_epochs=1).fit(*rows).predict(rows[0])
    with torch.inference_mode():
        np.testing.assert_array_equal(FluxRegressor(random_state=0, max_epochs=1).fit(*rows).predict(rows[0]), expected)


def test_scores_of_a_tensor_dataset(rows):
    dataset = FluxRegressor().get_dataset(*rows)
    tensors = torch.utils.data.TensorDataset(dataset.x, dataset.target)
    score = EpochScoring("r2", on_train=True, lower_is_better=False)
    model = FluxRegressor(random_state=0, max_epochs=1, callbacks=[score]).fit(tensors, None)
    assert model.history[-1, "r2"] == pytest.approx(model.score(*tensors.tensors), abs=1e-6)
