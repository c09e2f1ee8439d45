"""Small estimators, and rows as their networks see them."""

import numpy as np
import torch
from torch import nn

from rheidae import FluxRegressor, box3d_flux
from rheidae.estimator.networks import ResidualFFIModel
from rheidae.export.graph import OUTPUTS
from tests.states import random_states

SMALL = {
    "module": ResidualFFIModel, "module__hidden_dim": 16, "module__hidden_layers": 1,
    "max_epochs": 3, "random_state": 0,
}  # fmt: skip


def prepared(data, **options):
    """A net whose head is not zero, and a batch."""
    torch.manual_seed(0)
    net = FluxRegressor(**{**SMALL, **options}).initialize()
    nn.init.normal_(net.module_.head.weight, std=0.3, generator=torch.Generator().manual_seed(0))
    net.notify("on_train_begin", X=None, y=None)
    dataset = net.get_dataset(data.data[:64], data.target[:64])
    return net, (dataset.x, dataset.target)


def inputs(F):
    """(n, 48) float64 tensor in units of the total density."""
    F = F / F[:, :, 3].sum(axis=1)[:, None, None]
    return torch.from_numpy(np.concatenate([F.reshape(-1, 24), box3d_flux(F, order=31).reshape(-1, 24)], axis=1))


def check_single_state(exported, shape):
    """All outputs of one state, given by itself, are those of a table of one row."""
    F = random_states(1, 25)
    expected, found = exported.predict_all(F), exported.predict_all(F.reshape(shape))
    for name in OUTPUTS:
        own = shape if name in ("F_final", "std") else expected[name].shape[1:]
        assert found[name].shape == own
        np.testing.assert_array_equal(found[name], expected[name].reshape(own))
    np.testing.assert_array_equal(exported.predict(F[0]), found["F_final"].reshape(6, 4))
