"""Training and prediction rates of the estimator, against loops written by hand."""

import os
import subprocess
import sys

import pytest
import torch

from benchmarks.conftest import many
from benchmarks.loops import obvious_epoch, sliced_epoch
from benchmarks.tables import make_table
from rheidae import FluxRegressor
from rheidae.estimator.networks import MixingModel, ResidualFFIModel

ROWS = many(12_800)
BATCH = 256
# Of a round: the estimator looks at the data before them and calibrates after them.
EPOCHS = 3
ALL = "training with Kendall-Gal, PCGrad and constraints: batches of 256, one thread"
SUM = "training on the sum of the losses: batches of 256, one thread"
PREDICT = "prediction: batches of 256, one thread"
SCHEMES = {"weighting": "kendall_gal", "pcgrad": True, "constraints": True}


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    return make_table(ROWS)


def estimator(table, module=ResidualFFIModel, **options):
    """The network that both sides train, 3 hidden layers of 128; the criterion has all six terms."""
    return FluxRegressor(module, random_state=0, batch_size=BATCH, max_epochs=EPOCHS, lr=2e-3, **options).fit(*table)


def by_hand(table):
    """Network, criterion and rows as the loops want them, after the first epochs of the estimator."""
    model = estimator(table)
    dataset = model.get_dataset(*table)
    return model.module_, model.criterion_, dataset.x, dataset.target


def test_all_schemes(in_turns, table):
    network, criterion, x, y = by_hand(table)
    log_sigma = torch.nn.Parameter(torch.zeros(len(criterion.weights)))
    groups = [{"params": list(network.parameters())}, {"params": [log_sigma], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    multipliers = torch.zeros(2)
    model = estimator(table, **SCHEMES)

    def loop():
        for _ in range(EPOCHS):
            obvious_epoch(network, criterion, log_sigma, multipliers, 1.0, optimizer, x, y, BATCH)

    in_turns(ALL, EPOCHS * ROWS, {"obvious loop": loop, "FluxRegressor": lambda: model.partial_fit(*table)})


def test_sum_of_losses(in_turns, table):
    network, criterion, x, y = by_hand(table)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, fused=True)
    model = estimator(table)

    def loop():
        for _ in range(EPOCHS):
            sliced_epoch(network, criterion, optimizer, x, y, BATCH)

    in_turns(SUM, EPOCHS * ROWS, {"loop over sliced tensors": loop, "FluxRegressor": lambda: model.partial_fit(*table)})


@pytest.mark.skipif("RHEIDAE_BENCH_THREADS" not in os.environ, reason="takes minutes: RHEIDAE_BENCH_THREADS=1,2")
@pytest.mark.parametrize("batch", [32, BATCH, 4096])
@pytest.mark.parametrize("schemes", [{}, SCHEMES], ids=["sum", "all schemes"])
@pytest.mark.parametrize("module", [MixingModel, ResidualFFIModel], ids=["mixing", "residual"])
def test_a_second_thread(in_turns, module, schemes, batch):
    rows = 6400 if batch == 32 else 2 * ROWS
    table = make_table(rows)
    model = FluxRegressor(module, random_state=0, batch_size=batch, max_epochs=1, lr=2e-3, **schemes).fit(*table)

    counts = [int(count) for count in os.environ["RHEIDAE_BENCH_THREADS"].split(",")]
    name = f"{module.__name__}, {'all schemes' if schemes else 'sum of the losses'}, batches of {batch}"
    in_turns(
        name,
        rows,
        {
            f"{count} threads": lambda count=count: model.set_params(threads=count).partial_fit(*table)
            for count in counts
        },
    )


def test_prediction(rate, table):
    model = estimator(table)
    rate(PREDICT, "FluxRegressor", ROWS, lambda: model.predict(table[0]), rounds=3)


GROWTH = """
import resource, sys, time
import torch
torch.set_num_threads(1)
from benchmarks.tables import make_table
from rheidae import FluxRegressor
table = make_table(int(sys.argv[1]))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = FluxRegressor(random_state=0, batch_size=256, max_epochs=1, val_split=0.1)
started = time.perf_counter()
model.fit(*table)
seconds = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, model.history[0, "dur"], peak / 1024, sum(part.nbytes for part in table) / 2**20)
"""


@pytest.mark.skipif("RHEIDAE_BENCH_ROWS" not in os.environ, reason="takes minutes: RHEIDAE_BENCH_ROWS=100000,1000000")
def test_growth(capsys):
    """Seconds and memory of one epoch by rows: both have to be linear."""
    lines = []
    for rows in map(int, os.environ["RHEIDAE_BENCH_ROWS"].split(",")):
        done = subprocess.run(
            [sys.executable, "-c", GROWTH, str(rows)], capture_output=True, text=True, check=True, env=os.environ
        )
        seconds, epoch, peak, table = map(float, done.stdout.split())
        lines.append((rows, seconds, epoch, peak, table))
    with capsys.disabled():
        print("\n    rows  fit, s  epoch, s  peak MiB  table MiB")
        for rows, seconds, epoch, peak, table in lines:
            print(f"{rows:8d} {seconds:7.2f} {epoch:9.2f} {peak:9.0f} {table:10.0f}")
    rates = [epoch / rows for rows, _, epoch, _, _ in lines]
    assert max(rates) < 1.5 * min(rates)
