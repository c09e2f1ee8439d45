"""The loops that the benchmarks compare with do the same work as the estimator: same losses, same steps."""

import pytest
import torch

from benchmarks.loops import obvious_epoch, sliced_epoch
from rheidae import FluxRegressor
from rheidae.estimator.callbacks import KendallGal, gradients
from tests.estimators import SMALL

LR, BATCH = 2e-3, 32


@pytest.fixture
def in_order(monkeypatch):
    """Rows and tasks in their own order, here and there."""
    projected = gradients.pcgrad_coefficients
    monkeypatch.setattr(torch, "randperm", lambda n, **kwargs: torch.arange(n))
    monkeypatch.setattr(
        gradients,
        "pcgrad_coefficients",
        lambda gramian: projected(gramian, torch.arange(len(gramian)).repeat(len(gramian), 1)),
    )


def twins(data, **options):
    """A net with a head that is not zero, a copy of its network, and rows."""
    torch.manual_seed(0)
    # AdamW would make full steps of gradients that are nothing but rounding.
    options = {**SMALL, "max_epochs": 1, "optimizer": torch.optim.SGD, "batch_size": BATCH, "lr": LR, **options}
    net, other = FluxRegressor(**options).initialize(), FluxRegressor(**options).initialize()
    torch.nn.init.normal_(net.module_.head.weight, std=1.0, generator=torch.Generator().manual_seed(0))
    other.module_.load_state_dict(net.module_.state_dict())
    return net, other.module_, net.get_dataset(data.data[:96], data.target[:96])


def same(ours, theirs):
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_sliced_loop(data, in_order):
    net, network, rows = twins(data)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    total = sliced_epoch(network, net.criterion_, optimizer, rows.x, rows.target, BATCH)
    net.partial_fit(data.data[:96], data.target[:96])
    assert float(total) / 3 == pytest.approx(net.history[-1, "train_loss"], rel=1e-4)
    same(net.module_, network)


def test_obvious_loop(data, in_order):
    net, network, rows = twins(data, weighting=KendallGal(initial=0.0), pcgrad=True, constraints=True)
    tasks = len(net.criterion_.weights)
    assert tasks == 6
    log_sigma, multipliers = torch.nn.Parameter(torch.zeros(tasks)), torch.zeros(2)
    groups = [{"params": list(network.parameters())}, {"params": [log_sigma], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=LR)
    total = obvious_epoch(network, net.criterion_, log_sigma, multipliers, 1.0, optimizer, rows.x, rows.target, BATCH)
    net.partial_fit(data.data[:96], data.target[:96])
    assert net.history[-1, "conflicts"] > 0
    assert float(multipliers.max()) > 0
    assert total / 3 == pytest.approx(net.history[-1, "train_objective"], rel=1e-4)
    same(net.module_, network)
    torch.testing.assert_close(net.criterion_.weighting.s, log_sigma, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net.criterion_.constraints.multipliers, multipliers, rtol=1e-4, atol=1e-7)
