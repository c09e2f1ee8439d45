"""PCGrad against torchjd, the closed form for two tasks, and a loop written from the paper."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rheidae import FluxRegressor
from rheidae.estimator.callbacks import GradientCombiner, KendallGal, PCGrad
from rheidae.estimator.callbacks.gradients import pcgrad_coefficients
from rheidae.estimator.gradients import conflicts, jacobian
from rheidae.estimator.networks import ACTIVATIONS, MixingModel, ResidualFFIModel
from tests.estimators import SMALL, inputs, prepared
from tests.states import random_states


def from_the_paper(table, orders):
    """Algorithm 1 of arXiv:2001.06782, gradient by gradient."""
    total = torch.zeros_like(table[0])
    for i, order in enumerate(orders.tolist()):
        g = table[i].clone()
        for j in order:
            if j != i and g @ table[j] < 0:
                g -= (g @ table[j]) / (table[j] @ table[j]) * table[j]
        total += g
    return total


def random_gradients(seed, tasks, width=40):
    """Task gradients of a random network and random losses, with conflicts."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, tasks)).double()
    output = network(torch.randn(9, 5, dtype=torch.float64))
    mixture = torch.randn(tasks, tasks, dtype=torch.float64)
    losses = ((output @ mixture) ** 2 - torch.randn(tasks, dtype=torch.float64) * output).mean(dim=0)
    rows = [torch.autograd.grad(loss, list(network.parameters()), retain_graph=True) for loss in losses]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


@pytest.mark.parametrize("tasks", [2, 3, 6])
@pytest.mark.parametrize("seed", range(5))
def test_equals_torchjd_with_the_same_order(seed, tasks):
    aggregation = pytest.importorskip("torchjd.aggregation")
    table = random_gradients(seed, tasks)
    torch.manual_seed(seed)
    expected = aggregation.PCGrad()(table)
    torch.manual_seed(seed)
    orders = torch.stack([torch.randperm(tasks) for _ in range(tasks)])
    found = pcgrad_coefficients(table @ table.T, orders).sum(dim=0) @ table
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(found, from_the_paper(table, orders), rtol=1e-6, atol=1e-9)


def test_some_of_them_have_conflicts():
    counts = [float(conflicts(table @ table.T)) for table in (random_gradients(seed, 6) for seed in range(5))]
    assert max(counts) > 2


# Squares of tiny numbers vanish.
numbers = st.floats(-10, 10).filter(lambda x: x == 0 or abs(x) > 1e-100)
vectors = st.lists(numbers, min_size=3, max_size=3)


@settings(max_examples=200, deadline=None)
@given(vectors, vectors)
def test_two_tasks_have_a_closed_form(a, b):
    table = torch.tensor([a, b], dtype=torch.float64)
    gramian = table @ table.T
    found = pcgrad_coefficients(gramian) @ table
    inner = float(gramian[0, 1])
    if inner >= 0:
        torch.testing.assert_close(found, table)
        return
    expected = torch.stack([table[0] - inner / gramian[1, 1] * table[1], table[1] - inner / gramian[0, 0] * table[0]])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    # Neither projection points against the other task any more.
    scale = float(gramian.diagonal().max())
    assert float(found[0] @ table[1]) >= -1e-9 * scale
    assert float(found[1] @ table[0]) >= -1e-9 * scale


def test_without_conflict_it_is_the_sum():
    table = torch.rand(5, 30, dtype=torch.float64)
    torch.testing.assert_close(PCGrad().combine(table, table @ table.T), table.sum(dim=0))


def test_a_zero_gradient_takes_no_part():
    table = random_gradients(3, 4)
    with_zero = torch.cat([table, torch.zeros_like(table[:1])])
    orders = torch.tensor([[0, 1, 2, 3]] * 4)
    wide = torch.tensor([[4, 0, 1, 2, 3]] * 5)
    torch.testing.assert_close(
        pcgrad_coefficients(with_zero @ with_zero.T, wide).sum(dim=0) @ with_zero,
        pcgrad_coefficients(table @ table.T, orders).sum(dim=0) @ table,
    )


# --- the tasks' gradients ------------------------------------------------------------------------------------


def compare(model, dtype=torch.float64, rows=70, tasks=4, **tolerances):
    """One pass for all tasks is a pass for each."""
    x = inputs(random_states(rows)).to(dtype)
    cotangents = torch.randn(tasks, rows, 24, dtype=dtype)
    cotangents[1] = 0
    parameters = [p for p in model.parameters() if p.requires_grad]
    outputs = model.train()(x)
    table = jacobian(outputs, cotangents, parameters)
    torch.testing.assert_close(table, jacobian(outputs, cotangents, parameters, together=False), **tolerances)
    assert (table[1] == 0).all()
    assert (table[0] != 0).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("options", [{}, {"frame": "lab"}, {"use_batch_norm": False, "conserve": False}])
def test_all_tasks_in_one_pass(activation, options):
    torch.manual_seed(0)
    model = ResidualFFIModel(8, 2, activation, dropout=0.1, **options).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    model.blocks[0].layers[0].weight.requires_grad_(False)
    compare(model, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("hidden_layers", [0, 2])
def test_all_tasks_in_one_pass_through_the_mixing_scheme(hidden_layers):
    torch.manual_seed(0)
    model = MixingModel(hidden_dim=8, hidden_layers=hidden_layers).double()
    model.prepare(inputs(random_states(50, 1)))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    compare(model, rtol=1e-8, atol=1e-10)


class Halved(torch.autograd.Function):
    """Something that torch cannot do for several tasks at once."""

    @staticmethod
    def forward(ctx, x):
        return 0.5 * x

    @staticmethod
    def backward(ctx, *gradients):
        return torch.from_numpy(0.5 * gradients[0].numpy())


class OneByOne(nn.Module):
    def __init__(self, operation=Halved):
        super().__init__()
        self.operation = operation
        self.layer = nn.Linear(48, 24)
        self.unused = nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return 0.01 * self.operation.apply(self.layer(x))


def test_a_network_whose_tasks_have_to_go_one_by_one(data):
    net = FluxRegressor(OneByOne, pcgrad=True, weighting="gradnorm", max_epochs=2, random_state=0)
    with pytest.warns(UserWarning, match="OneByOne: one backward pass a task"):
        net.fit(data.data[:60], data.target[:60])
    assert net.history[-1, "train_loss"] < net.history[0, "train_loss"]
    assert (net.module_.unused == 0).all()


class Broken(Halved):
    @staticmethod
    def backward(ctx, *gradients):
        raise RuntimeError("what is wrong with the network itself")


def test_an_error_of_the_network_is_not_hidden(data):
    net = FluxRegressor(OneByOne, pcgrad=True, max_epochs=1, random_state=0, module__operation=Broken)
    with pytest.raises(RuntimeError, match="wrong with the network itself"):
        net.fit(data.data[:60], data.target[:60])


def test_clipping_sees_the_network_alone(data):
    """With gradients of tasks and without."""
    for pcgrad in (False, True):
        net, batch = prepared(data, pcgrad=pcgrad, grad_clip=1e-3, weighting=KendallGal(initial=0.0))
        net.train_step(batch)
        norm = torch.cat([p.grad.reshape(-1) for p in net.module_.parameters()]).norm()
        assert float(norm.detach()) == pytest.approx(1e-3, rel=1e-2)
        assert float(net.criterion_.weighting.s.grad.norm()) > 1e-3


@pytest.mark.parametrize("weighting", ["none", "kendall_gal", "dwa", "gradnorm"])
@pytest.mark.parametrize("constraints", [False, True])
def test_the_step_projects_the_weighted_terms(data, weighting, constraints):
    """The gradient of a step, from autograd's gradients of each weighted term and of the penalty."""
    net, (x, y) = prepared(data, weighting=weighting, constraints=constraints, pcgrad=True)
    net.module_.double()
    net.criterion_.double()
    x, y = x.double(), y.double()
    if constraints:
        net.criterion_.constraints.multipliers.fill_(0.5)
    torch.manual_seed(5)
    step = net.train_step_single((x, y))
    parameters = list(net.module_.parameters())
    found = torch.cat([p.grad.reshape(-1) for p in parameters])
    y_pred = net.infer(x)
    terms = net.criterion_.terms(y_pred, y)
    factors = torch.ones(len(terms)) if weighting == "none" else net.criterion_.weighting.factors()
    tasks = [net.criterion_.weights[name] * w * terms[name] for name, w in zip(terms, factors, strict=True)]
    if constraints:
        lagrangian = net.criterion_.constraints
        c = lagrangian.violations(y_pred)
        tasks.append((0.5 * c + 0.5 * lagrangian.rho * c**2).sum())
        assert float(tasks[-1].detach()) > 0
    rows = []
    for task in tasks:
        gradients = torch.autograd.grad(task, parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in gradients]))
    torch.manual_seed(5)
    orders = torch.rand(len(tasks), len(tasks)).argsort(dim=1)
    torch.testing.assert_close(found, from_the_paper(torch.stack(rows), orders), rtol=1e-6, atol=1e-9)
    table = torch.stack(rows)
    assert float(step["record"][-1]) == float(conflicts(table @ table.T))


def test_random_orders_are_seeded(data):
    X, y = data.data[:100], data.target[:100]
    options = {**SMALL, "batch_size": 32, "pcgrad": True, "weighting": "gradnorm"}
    first = FluxRegressor(**options).fit(X, y)
    second = FluxRegressor(**options).fit(X, y)
    np.testing.assert_array_equal(first.predict(X), second.predict(X))
    assert 0 <= first.history[-1, "conflicts"] <= 15
    assert max(first.history[:, "conflicts"]) > 0


AGGREGATORS = {"UPGrad": {}, "CAGrad": {"c": 0.5}, "PCGrad": {}, "Mean": {}, "MGDA": {}, "IMTLG": {}, "AlignedMTL": {}}


@pytest.mark.parametrize("name", AGGREGATORS)
def test_aggregators_of_torchjd_drop_in(data, name):
    """The step's direction is theirs, of autograd's gradients; a constraint that is kept does not stop them."""
    aggregation = pytest.importorskip("torchjd.aggregation")
    aggregator = getattr(aggregation, name)(**AGGREGATORS[name])
    net, (x, y) = prepared(data, weighting="kendall_gal", constraints=True, pcgrad=GradientCombiner(aggregator))
    net.module_.double()
    net.criterion_.double()
    torch.nn.init.zeros_(net.module_.head.weight)  # Box3D's answer, which violates nothing
    x, y = x.double(), y.double()
    torch.manual_seed(5)
    net.train_step_single((x, y))
    parameters = list(net.module_.parameters())
    found = torch.cat([p.grad.reshape(-1) for p in parameters])
    terms, factors = net.criterion_.terms(net.infer(x), y), net.criterion_.weighting.factors()
    tasks = [net.criterion_.weights[term] * w * terms[term] for term, w in zip(terms, factors, strict=True)]
    rows = [torch.autograd.grad(task, parameters, retain_graph=True, materialize_grads=True) for task in tasks]
    table = torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])
    active = table.any(dim=1)
    assert int(active.sum()) == 5
    torch.manual_seed(5)
    torch.testing.assert_close(found, aggregator(table[active]), rtol=1e-5, atol=1e-9)
    assert float(found.norm()) > 0


def test_training_with_aggregators_of_torchjd(data):
    aggregation = pytest.importorskip("torchjd.aggregation")
    X, y = data.data[:60], data.target[:60]
    for aggregator in (aggregation.UPGrad(), aggregation.CAGrad(c=0.5, norm_eps=1e-9)):
        net = FluxRegressor(**{**SMALL, "max_epochs": 60}, pcgrad=GradientCombiner(aggregator), constraints=True)
        net.fit(X, y)
        assert net.history[-1, "train_distance"] < 0.9 * net.history[0, "train_distance"]


def test_an_aggregator_with_a_number_for_each_task_sees_all_of_them():
    table = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    weights = torch.tensor([2.0, 3.0, 4.0])
    combiner = GradientCombiner(lambda jacobian: weights @ jacobian, active_only=False)
    torch.testing.assert_close(combiner.combine(table, table @ table.T), torch.tensor([2.0, 8.0]))
    nothing = torch.zeros(3, 2)
    found = GradientCombiner(lambda jacobian: jacobian.mean(dim=0)).combine(nothing, nothing @ nothing.T)
    assert (found == 0).all()


def test_a_combiner_may_be_any_function(data):
    X, y = data.data[:60], data.target[:60]
    options = {**SMALL, "lr": 2e-3, "batch_size": 64}
    summed = FluxRegressor(**options, pcgrad=GradientCombiner(lambda table: table.sum(dim=0))).fit(X, y)
    plain = FluxRegressor(**options).fit(X, y)
    np.testing.assert_allclose(summed.predict(X), plain.predict(X), rtol=1e-4, atol=1e-6)
