"""What tests/test_distributed.py starts as two processes:  -m tests.distributed_program DATA FOLDER."""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

from rheidae import load_dataset
from rheidae.estimator.networks import MixingModel, MultilayerPerceptron, ResidualFFIModel
from rheidae.exceptions import FourFluxError


class Unphysical(ResidualFFIModel):
    """Violates the constraints from the first batch on."""

    def __init__(self, **options):
        super().__init__(**options)
        nn.init.normal_(self.head.weight, std=1.0)


class Plain(nn.Module):
    """A layer that knows no closed form of its derivatives."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(48, 24)

    def forward(self, x):
        return self.layer(x)


class RootMeanSquare(nn.Module):
    """Not the mean of what it is on parts of the batch."""

    def forward(self, y_pred, y_true):
        return (y_pred - y_true).square().mean().sqrt()


COMMON = {"random_state": 0, "max_epochs": 3, "batch_size": 32, "lr": 1e-3, "val_split": 0.2, "constraints": True}
SMALL = {"module__hidden_dim": 16, "module__hidden_layers": 1}
RESIDUAL = {"module": Unphysical, **SMALL, "module__use_batch_norm": False}

CASES = {
    **{
        f"{name}-{scheme}-{'pcgrad' if pcgrad else 'sum'}": {**COMMON, **network, "weighting": scheme, "pcgrad": pcgrad}
        for name, network in (("mixing", {"module": MixingModel}), ("residual", RESIDUAL))
        for scheme in ("kendall_gal", "dwa", "gradnorm")
        for pcgrad in (True, False)
    },
    "lab": {**COMMON, **RESIDUAL, "module__frame": "lab", "module__conserve": False, "pcgrad": True},
    "autograd": {**COMMON, "module": Plain, "weighting": "gradnorm", "pcgrad": True},
    "batch-norm": {**COMMON, "module": Unphysical, **SMALL, "weighting": "dwa", "pcgrad": True},
    # One of the processes has nothing to do in any batch.
    "single-rows": {**COMMON, "module": MixingModel, "batch_size": 1, "max_epochs": 1, "pcgrad": True},
    "generic": {
        **COMMON, "layout": "generic", "module": MultilayerPerceptron, "module__hidden_dim": 8,
        "criterion": RootMeanSquare, "constraints": False,
    },
}  # fmt: skip


def rows(path):
    """81 training rows in batches of 32, 32 and 17, and 20 that validate; every third row counts four times."""
    data = load_dataset(path)
    weight = np.where(np.arange(101) % 3, 1.0, 4.0)
    return data.data[:101], data.target[:101], weight


def fit(model, name, X, y, weight):
    """Train; the weights of rows where the criterion takes some."""
    few = 12 if name == "single-rows" else len(X)
    return model.fit(X[:few], y[:few], sample_weight=None if name in ("generic", "residual-dwa-sum") else weight[:few])


def result(model):
    numbers = [{k: v for k, v in row.items() if k not in ("batches", "dur")} for row in model.history.to_list()]
    trained = {"module": model.module_.state_dict(), "criterion": model.criterion_.state_dict()}
    return {"history": numbers, **trained}


def check_batch_norm(rank):
    """Value and derivative of a batch norm whose rows lie in two processes."""
    from rheidae.estimator.processes import GlobalBatchNorm

    torch.manual_seed(0)
    x, c = torch.randn(7, 3, dtype=torch.float64) + 5, torch.randn(7, 3, dtype=torch.float64)
    found = []
    for kind, own in ((nn.BatchNorm1d, slice(0, 7)), (GlobalBatchNorm, slice(0, 3) if rank == 0 else slice(3, 7))):
        norm = kind(3).double()
        nn.init.uniform_(norm.weight, 0.5, 2.0, generator=torch.Generator().manual_seed(1))
        part = x[own].clone().requires_grad_()
        norm.division = (own.stop - own.start, 7)
        y = norm(part)
        gradient, by_weight = torch.autograd.grad(y, [part, norm.weight], c[own])
        if kind is GlobalBatchNorm:
            torch.distributed.all_reduce(by_weight)
            found.append((y, gradient, by_weight, norm.running_mean, norm.running_var, norm.num_batches_tracked))
        else:
            mine = slice(0, 3) if rank == 0 else slice(3, 7)
            found.append((y[mine], gradient[mine], by_weight, norm.running_mean, norm.running_var, torch.tensor(1)))
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs)


def main(path, folder):
    from accelerate import Accelerator

    from rheidae.estimator.distributed import DistributedFluxRegressor

    accelerator = Accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2
    check_batch_norm(rank)
    X, y, weight = rows(path)
    results = {}
    for name, options in CASES.items():
        model = fit(DistributedFluxRegressor(accelerator=accelerator, **options), name, X, y, weight)
        results[name] = result(model)
    few = {"accelerator": accelerator, "max_epochs": 2, "module__hidden_dim": 8}
    # No seed, but the first process's.
    model = DistributedFluxRegressor(**few).fit(X, y)
    results["no seed"] = result(model)
    # Masks of dropout differ, what is drawn for all does not.
    dropout = {**few, "module": ResidualFFIModel, "module__dropout": 0.5, "module__use_batch_norm": False}
    model = DistributedFluxRegressor(**dropout, pcgrad=True, random_state=0).fit(X, y)
    results["dropout"] = {**result(model), "drawn": model.rng_state_}
    # Trained in two parts, printing, and taken along.
    model = DistributedFluxRegressor(**few, random_state=0, verbose=1).fit(X, y).partial_fit(X, y)
    results["in parts"] = result(model)
    assert model.module_.state_dict().keys() == model.plain().module_.state_dict().keys()
    if rank == 0:
        torch.save(model.plain(), Path(folder) / "plain.pt")
        np.save(Path(folder) / "predicted.npy", model.predict(X))
    try:
        DistributedFluxRegressor(**few).fit(X[rank:], y[rank:])
    except FourFluxError as error:
        results["message"] = str(error)
    torch.save(results, Path(folder) / f"process{rank}.pt")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
