"""The gradients of several tasks without a graph, against autograd."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.callbacks.gradients import jacobian
from rheidae.estimator.networks import ACTIVATIONS, MixingModel, ResidualFFIModel
from rheidae.estimator.pullback import TaskGradients, is_known
from tests.states import random_states
from tests.test_modules import inputs
from tests.test_regressor import SMALL

ROWS, TASKS = 70, 4


def network(seed, dtype=torch.float64, **options):
    """A network in training whose every parameter is random."""
    torch.manual_seed(seed)
    model = ResidualFFIModel(hidden_dim=12, **options).to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.train()


def both_ways(model, x, cotangents):
    """(output, Jacobian, buffers) by autograd and by hand, from the same random numbers."""
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = []
    for by_hand in (False, True):
        model.load_state_dict(before)
        torch.manual_seed(1)
        if by_hand:
            with torch.no_grad():
                linear = model.linearise(x)
            output, table = linear.output, TaskGradients(parameters, len(cotangents)).fill(linear, cotangents)
        else:
            output = model(x)
            table = jacobian(output, cotangents, parameters)
        found.append((output.detach(), table, {name: value.clone() for name, value in model.named_buffers()}))
    return found


def compare(model, rows=ROWS, tasks=TASKS, seed=0, rtol=1e-9, atol=1e-11):
    dtype = next(model.parameters()).dtype
    x = inputs(random_states(rows, seed)).to(dtype)
    # Some rows have more antineutrinos, others more neutrinos.
    cotangents = torch.randn(tasks, rows, 24, dtype=dtype)
    if tasks > 2:
        cotangents[1] = 0
    assert is_known(model)
    for theirs, ours in zip(*both_ways(model, x, cotangents), strict=True):
        if isinstance(theirs, dict):
            assert theirs.keys() == ours.keys()
            theirs, ours = list(theirs.values()), list(ours.values())
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    hidden_layers=st.integers(0, 3),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    dropout=st.sampled_from([0.0, 0.3]),
    use_batch_norm=st.booleans(),
    frame=st.sampled_from(["invariant", "lab"]),
    conserve=st.booleans(),
    tasks=st.integers(1, 5),
    rows=st.integers(2, 150),
)
def test_equals_autograd(seed, tasks, rows, **options):
    compare(network(seed, **options), rows, tasks, seed % 1000, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_the_mixing_model_equals_autograd(hidden_layers):
    torch.manual_seed(0)
    model = MixingModel(hidden_dim=8, hidden_layers=hidden_layers).double().train()
    model.prepare(inputs(random_states(50, 1)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    compare(model)


def test_single_precision():
    model = network(0, torch.float32)
    compare(model, rtol=2e-3, atol=2e-4)


def test_frozen_parameters_and_norms():
    model = network(0)
    model.blocks[0].layers[0].weight.requires_grad_(False)
    model.head.bias.requires_grad_(False)
    model.input_block[2].weight.requires_grad_(False)
    model.blocks[1].layers[1].eval()
    compare(model)


def test_no_task_has_a_gradient():
    model = network(0)
    x = inputs(random_states(5))
    with torch.no_grad():
        linear = model.linearise(x)
    gradients = TaskGradients(list(model.parameters()), 2)
    gradients.fill(linear, torch.randn(2, 5, 24, dtype=torch.float64))
    assert (gradients.fill(linear, torch.zeros(2, 5, 24, dtype=torch.float64)) == 0).all()


class Doubled(ResidualFFIModel):
    def forward(self, x):
        return 2 * super().forward(x)


class Renamed(ResidualFFIModel):
    pass


def test_what_is_not_known_goes_by_autograd():
    assert is_known(Renamed())
    assert not is_known(Doubled())
    assert not is_known(nn.Linear(48, 24))
    hooked = ResidualFFIModel()
    hooked.blocks[0].register_forward_hook(lambda *_: None)
    assert not is_known(hooked)
    other = ResidualFFIModel()
    other.blocks[0].layers[2] = nn.Softplus()
    assert not is_known(other)
    cumulative = ResidualFFIModel()
    cumulative.input_block[0].momentum = None
    assert not is_known(cumulative)


@pytest.mark.parametrize("schemes", [{}, {"weighting": "gradnorm", "pcgrad": True, "constraints": True}])
def test_training_is_the_same_by_hand_and_by_autograd(data, schemes, monkeypatch):
    X, y = data.data[:96], data.target[:96]
    # Without batch norm: a bias before one has no gradient but rounding, which AdamW would make into full steps.
    options = {**SMALL, "module__use_batch_norm": False, "batch_size": 32, **schemes}
    by_hand = FluxRegressor(**options).fit(X, y)
    monkeypatch.setattr("rheidae.estimator.regressor.is_known", lambda network: False)
    by_autograd = FluxRegressor(**options).fit(X, y)
    np.testing.assert_allclose(by_hand.predict(X), by_autograd.predict(X), rtol=1e-3, atol=1e-5)
    for ours, theirs in zip(by_hand.history[:, "train_loss"], by_autograd.history[:, "train_loss"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
