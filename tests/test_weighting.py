"""The weighting schemes against hand computation, known noise and finite differences."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.callbacks import DynamicWeightAverage, GradNorm, KendallGal
from rheidae.estimator.gradients import last_shared_parameters
from tests.estimators import SMALL, prepared


class Split(nn.Module):
    """A criterion of squared errors on blocks of the 24 columns, without closed forms."""

    def __init__(self, *scales):
        super().__init__()
        self.weights = {f"block{i}": 1.0 for i in range(len(scales))}
        self.scales = scales

    def terms(self, y_pred, y_true):
        blocks = (y_pred - y_true).chunk(len(self.scales), dim=1)
        return {
            name: scale * block.square().mean()
            for name, block, scale in zip(self.weights, blocks, self.scales, strict=True)
        }

    def forward(self, y_pred, y_true):
        return sum(self.terms(y_pred, y_true).values())


class Constant(nn.Module):
    """The same 24 numbers for every row."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(24))

    def forward(self, x):
        return self.value.expand(len(x), 24)

    def last_shared_parameters(self):
        return [self.value]


def noisy_rows(n, levels, seed=0):
    """Rows of total density 1 whose targets scatter around the initial state by `levels`, block by block."""
    rng = np.random.default_rng(seed)
    X = np.tile(np.array([0.0, 0.0, 0.0, 1 / 6]), (n, 12))
    y = X[:, 24:] + np.repeat(levels, 24 // len(levels)) * rng.normal(size=(n, 24))
    return X, y


def test_kendall_gal_recovers_known_noise_levels():
    levels = np.array([0.3, 0.1, 0.03, 0.01])
    X, y = noisy_rows(4000, levels)
    net = FluxRegressor(
        Constant, criterion=Split(1, 1, 1, 1), weighting=KendallGal(initial=0.0, lr=0.05), average_heavy=False,
        max_epochs=60, batch_size=500, lr=1e-3, random_state=0,
    ).fit(X, y)  # fmt: skip
    found = net.criterion_.weighting.s.detach().exp().numpy()
    np.testing.assert_allclose(found, levels, rtol=0.05)
    weights = [net.history[-1, f"weight_block{i}"] for i in range(4)]
    np.testing.assert_allclose(weights, 0.5 / found**2, rtol=1e-6)


def test_kendall_gal_gradients_are_those_of_its_objective(data):
    net, batch = prepared(data, weighting=KendallGal(initial=-1.0))
    net.module_.double()
    net.criterion_.double()
    batch = tuple(part.double() for part in batch)
    net.train_step_single(batch)
    s = net.criterion_.weighting.s.detach().clone().requires_grad_()
    values = torch.stack(list(net.criterion_.terms(net.infer(batch[0]), batch[1]).values()))
    losses = torch.tensor(list(net.criterion_.weights.values())) * values
    objective = (0.5 * torch.exp(-2 * s) * losses + s).sum()
    parameters = list(net.module_.parameters())
    expected = torch.autograd.grad(objective, [s, *parameters])
    torch.testing.assert_close(net.criterion_.weighting.s.grad, expected[0], rtol=1e-6, atol=1e-7)
    for parameter, gradient in zip(parameters, expected[1:], strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-9)


def test_kendall_gal_weight_of_a_vanishing_term_stays_bounded(data):
    net = FluxRegressor(**{**SMALL, "max_epochs": 30}, lr=0.1, weighting=KendallGal(floor=1e-4))
    net.fit(data.data[:60], data.target[:60])
    assert max(net.history[:, "weight_unphysical"]) < 2 * 0.5 / 1e-4


def test_dwa_by_hand():
    """Five epochs of a table worked out from the paper's equation 7."""
    scheme = DynamicWeightAverage(temperature=2.0)
    module = scheme.make_module(2)
    losses = [(1.0, 1.0), (0.5, 1.0), (0.25, 0.5), (0.25, 0.1), (0.2, 0.1)]
    table = []
    for epoch in losses:
        table.append(module.factors().tolist())
        module.update(torch.tensor(epoch), scheme.temperature)
    expected = [[1.0, 1.0], [1.0, 1.0]]
    for r in ((0.5, 1.0), (0.5, 0.5), (1.0, 0.2)):
        e = [math.exp(r[0] / 2), math.exp(r[1] / 2)]
        expected.append([2 * e[0] / sum(e), 2 * e[1] / sum(e)])
    np.testing.assert_allclose(table, expected, rtol=1e-6)
    np.testing.assert_allclose(expected[2], [0.8756470, 1.1243530], rtol=1e-6)  # exp(.25), exp(.5)
    np.testing.assert_allclose(expected[3], [1, 1])
    np.testing.assert_allclose(expected[4], [1.1973753, 0.8026247], rtol=1e-6)  # exp(.5), exp(.1)


def test_dwa_in_training_follows_the_history(data):
    net = FluxRegressor(**{**SMALL, "max_epochs": 5}, weighting="dwa").fit(data.data[:100], data.target[:100])
    names = list(net.criterion_.weights)
    weights = np.array([[row[f"weight_{name}"] for name in names] for row in net.history])
    losses = np.array([[row[f"train_{name}"] for name in names] for row in net.history])
    np.testing.assert_allclose(weights.sum(axis=1), len(names), rtol=1e-6)
    np.testing.assert_array_equal(weights[:2], 1)
    for t in range(2, 5):
        with np.errstate(invalid="ignore"):
            rate = np.where(losses[t - 2] > 0, losses[t - 1] / losses[t - 2], 1)
        e = np.exp(rate / 2)
        np.testing.assert_allclose(weights[t], len(names) * e / e.sum(), rtol=1e-5)


@pytest.mark.parametrize("pcgrad", [False, True])
def test_gradnorm_equalises_gradient_norms(pcgrad):
    """Three tasks whose losses differ by factors of 100 (alpha 0: the goal is equal norms)."""
    X, y = noisy_rows(400, np.array([0.2, 0.2, 0.2]), seed=1)
    y = y + 0.5
    net = FluxRegressor(
        Constant, criterion=Split(1.0, 100.0, 1e4), weighting=GradNorm(alpha=0.0, lr=0.1), pcgrad=pcgrad,
        average_heavy=False, max_epochs=150, batch_size=400, lr=1e-6, random_state=0, grad_clip=None,
    ).fit(X, y)  # fmt: skip
    weights = net.criterion_.weighting.factors()
    assert float(weights.sum()) == pytest.approx(3, rel=1e-5)
    dataset = net.get_dataset(X, y)
    terms = net.criterion_.terms(net.infer(dataset.x), dataset.target).values()
    norms = [
        float(w * torch.autograd.grad(term, net.module_.value, retain_graph=True)[0].norm().detach())
        for w, term in zip(weights, terms, strict=True)
    ]
    np.testing.assert_allclose(norms, np.mean(norms), rtol=0.05)


@pytest.mark.parametrize("pcgrad", [False, True])
def test_gradnorm_weights_follow_their_own_loss_and_the_network_does_not(data, pcgrad):
    net, batch = prepared(data, weighting=GradNorm(alpha=0.7), pcgrad=pcgrad)
    net.module_.double()
    batch = tuple(part.double() for part in batch)
    module = net.criterion_.weighting.double()
    module.first.copy_(torch.tensor([0.01, 0.02, 0.3, 0.0, 0.04, 0.05]))
    with torch.no_grad():
        module.log_w.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4, -0.5, -0.1]))
    net.train_step_single(batch)
    values = list(net.criterion_.terms(net.infer(batch[0]), batch[1]).values())
    losses = torch.stack([w * v for w, v in zip(net.criterion_.weights.values(), values, strict=True)])
    (shared,) = last_shared_parameters(net.module_)
    assert shared is net.module_.head.weight
    norms = torch.stack([torch.autograd.grad(loss, shared, retain_graph=True)[0].norm() for loss in losses])
    factors = module.factors()
    # By the paper: rates against the first batch; a term that was zero there, and still is, counts as 1.
    rate = torch.where(module.first > 0, losses.detach() / module.first, 1.0)
    assert float(rate.max() / rate.min()) > 2
    targets = (factors * norms).mean() * (rate / rate.mean()) ** 0.7

    def own_loss(log_w):
        return float(((log_w.exp() * norms - targets).abs() / (factors * norms).mean()).sum())

    here, step = module.log_w.detach().clone(), 1e-6
    for i in range(5):
        up, down = here.clone(), here.clone()
        up[i] += step
        down[i] -= step
        slope = (own_loss(up) - own_loss(down)) / (2 * step)
        assert float(module.log_w.grad[i]) == pytest.approx(slope, rel=1e-4, abs=1e-8)
    if pcgrad:
        return

    def network_loss():
        values = net.criterion_.terms(net.infer(batch[0]), batch[1]).values()
        fixed = net.criterion_.weights.values()
        return sum(f * float(w) * v.item() for f, w, v in zip(fixed, factors, values, strict=True))

    gradients = [p.grad.clone() for p in net.module_.parameters()]
    rng = np.random.default_rng(0)
    for parameter, gradient in zip(net.module_.parameters(), gradients, strict=True):
        index = int(rng.integers(parameter.numel()))
        flat = parameter.data.view(-1)
        middle = float(flat[index])
        flat[index] = middle + step
        up = network_loss()
        flat[index] = middle - step
        down = network_loss()
        flat[index] = middle
        assert float(gradient.view(-1)[index]) == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorm_targets_by_hand(alpha):
    """Equation 2 of the paper: rates 1/2, 1/4 and 1 (the third term has no first loss yet) over their mean 7/12."""
    module = GradNorm(alpha).make_module(3)
    module.first.copy_(torch.tensor([2.0, 4.0, 0.0]))
    found = module.targets(torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 2.0, 6.0]))
    np.testing.assert_allclose(found, [3 * (r * 12 / 7) ** alpha for r in (0.5, 0.25, 1.0)], rtol=1e-6)
    module.targets(torch.tensor([1.0, 1.0, 5.0]), torch.tensor([1.0, 2.0, 6.0]))
    assert module.first.tolist() == [2.0, 4.0, 5.0]


def test_gradnorm_weights_sum_to_the_number_of_tasks(data):
    net = FluxRegressor(**SMALL, weighting="gradnorm", batch_size=32).fit(data.data[:100], data.target[:100])
    for row in net.history:
        assert sum(row[f"weight_{name}"] for name in net.criterion_.weights) == pytest.approx(6, rel=1e-5)
    assert len({row["weight_density"] for row in net.history}) == 3


def test_trained_weights_reach_the_optimizer_without_decay():
    net = FluxRegressor(**SMALL, weighting=KendallGal(lr=0.5), optimizer__weight_decay=0.1).initialize()
    network, _, weights = net.optimizer_.param_groups
    assert weights["params"] == [net.criterion_.weighting.s]
    assert (weights["weight_decay"], weights["lr"]) == (0.0, 0.5)
    assert (network["weight_decay"], network["lr"]) == (0.1, net.lr)


def test_a_module_without_linear_layers_needs_to_say_what_it_shares():
    X, y = noisy_rows(20, np.array([0.1]))

    class Bare(Constant):
        last_shared_parameters = None

        def __getattribute__(self, name):
            if name == "last_shared_parameters":
                raise AttributeError(name)
            return super().__getattribute__(name)

    with pytest.raises(ValueError, match="last_shared_parameters"):
        FluxRegressor(Bare, criterion=Split(1, 1), weighting="gradnorm", max_epochs=1).fit(X, y)


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (KendallGal(initial="zero"), "initial='zero'"),
        (KendallGal(floor=0), "floor"),
        (DynamicWeightAverage(0), "temperature"),
        ("kendal", "kendall_gal, dwa, gradnorm"),
    ],
)
def test_impossible_settings(scheme, message):
    with pytest.raises(ValueError, match=message):
        FluxRegressor(weighting=scheme).initialize()
