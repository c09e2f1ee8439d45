"""Rates of the default model, the mixing network: one thread, processor time: other programs do not count."""

import time

import numpy as np
import pytest
import torch

from benchmarks.conftest import many
from benchmarks.tables import make_table
from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.mixing.transition import transition_matrix

pytestmark = pytest.mark.benchmark(timer=time.process_time)

ROWS = many(32_768)
PREDICT = f"default model, prediction of {ROWS} rows, one thread"
TRAIN = f"default model, an epoch of {ROWS} rows, one thread"


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    return make_table(ROWS)


@pytest.fixture(scope="module")
def model(table):
    return FluxRegressor(random_state=0, max_epochs=1, batch_size=256).fit(*table)


@pytest.fixture(scope="module")
def initial(table):
    return np.ascontiguousarray(table[0][:, :24].reshape(-1, 6, 4))


def test_box3d(rate, initial):
    rate(PREDICT, "Box3D alone, box3d_flux(F)", ROWS, lambda: box3d_flux(initial, threads=1), rounds=5)


def test_power_scheme(rate, initial):
    rate(PREDICT, 'the power scheme alone, mix(F, "power")', ROWS, lambda: mix(initial, "power", threads=1), rounds=3)


@pytest.mark.parametrize("alike", [True, False])
def test_asymptotic_scheme(rate, initial, alike):
    F, name = initial, 'the settled state, mix(F, "asymptotic")'
    if not alike:
        F, name = initial[::8].copy(), f"{name}, unlike mu and tau"
        F[:, [2, 5]] *= 0.9
    rate(PREDICT, name, len(F), lambda: mix(F, "asymptotic", threads=1), rounds=5)


@pytest.mark.parametrize("scheme", ["asymptotic", "power"])
def test_transition_matrices(rate, initial, scheme):
    F = initial[::64].copy()
    rate(
        PREDICT, f'transition_matrix(F, "{scheme}")', len(F), lambda: transition_matrix(F, scheme, threads=1), rounds=3
    )


def test_prediction(rate, table, model):
    rate(PREDICT, "predict(X)", ROWS, lambda: model.predict(table[0]), rounds=5)


@pytest.mark.parametrize("rows", [1, 4096])
def test_prediction_of_blocks(rate, table, model, rows):
    X, calls = table[0][:rows], max(1, 4096 // rows // 8)

    def work():
        for _ in range(calls):
            model.predict(X)

    rate("default model, predict(X) of a block, one thread", f"rows: {rows}", rows * calls, work, rounds=9)


def test_prediction_from_the_initial_state(rate, initial, model):
    def work():
        box = box3d_flux(initial, threads=1)
        model.predict(np.concatenate([initial.reshape(-1, 24), box.reshape(-1, 24)], axis=1))

    rate(PREDICT, "Box3D, then predict(X)", ROWS, work, rounds=5)


def test_prediction_with_standard_deviations(rate, table, model):
    rate(PREDICT, "predict(X, return_std=True)", ROWS, lambda: model.predict(table[0], return_std=True), rounds=5)


@pytest.mark.parametrize("batch_size", [32, 256, 4096])
def test_training(rate, table, batch_size):
    model = FluxRegressor(random_state=0, max_epochs=1, batch_size=batch_size).fit(*table)
    note = "default batch size" if batch_size == FluxRegressor().batch_size else ""
    rate(TRAIN, f"batches of {batch_size}", ROWS, lambda: model.partial_fit(*table), rounds=2, note=note)
