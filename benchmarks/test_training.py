"""Training and prediction rates of the default estimator."""

import numpy as np
import pytest
import torch

from rheidae import FluxRegressor, box3d_flux
from tests.states import random_states

ROWS = 25_600
BATCH = 256
GROUP = "FluxRegressor, defaults, batches of 256, one torch thread"


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    initial = random_states(ROWS, alike=True)
    box = box3d_flux(initial)
    final = box + 0.1 * (box - initial)
    X = np.concatenate([initial.reshape(ROWS, 24), box.reshape(ROWS, 24)], axis=1).astype(np.float32)
    return X, final.reshape(ROWS, 24).astype(np.float32)


def test_training(rate, table):
    model = FluxRegressor(random_state=0, batch_size=BATCH, max_epochs=1).fit(*table)
    rate(GROUP, "training, samples of an epoch", ROWS, lambda: model.partial_fit(*table), rounds=3)


def test_prediction(rate, table):
    model = FluxRegressor(random_state=0, batch_size=BATCH, max_epochs=1).fit(*table)
    rate(GROUP, "prediction", ROWS, lambda: model.predict(table[0]), rounds=3)
