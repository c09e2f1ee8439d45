"""Rates of exported models, one thread, beside the estimator: blocks of 256 rows, and one cell at a time.

    pytest benchmarks/test_export.py

The first line of each table is the figure of a peer's model, which is to be beaten. Processor time, so that other
programs do not count, but for the C interface, which takes its own.
"""

import functools
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.conftest import ROUNDS, many
from benchmarks.tables import make_table
from rheidae import FluxRegressor, box3d_flux, mix
from rheidae.estimator.networks import MixingModel, ResidualFFIModel
from rheidae.export import export_regressor, export_scheme, load_exported
from tests.states import random_states

# On a busy machine torch's own format takes minutes.
pytestmark = [pytest.mark.benchmark(timer=time.process_time), pytest.mark.timeout(900)]

ROWS, BLOCK, ONES = many(8192), 256, 100
BATCH = f"exported models, {ROWS} rows in blocks of {BLOCK}, one thread"
SINGLE = "exported models, one row at a time, one thread"
PEER_BATCH, PEER_SINGLE = 128e-6, 20e-3
"""Seconds a sample."""

MODELS = {"mixing": MixingModel, "residual": ResidualFFIModel}
CASES = (
    ("mixing", "onnx", True), ("mixing", "object", True), ("mixing", "torchscript", True), ("mixing", "pt2", True),
    ("residual", "onnx", True), ("residual", "onnx", False),
    ("residual", "torchscript", False), ("residual", "pt2", False),
)  # fmt: skip


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    X, y = make_table(ROWS)
    return X.astype(np.float64), y.astype(np.float64)


@pytest.fixture(scope="module")
def estimators(table):
    return {
        name: FluxRegressor(module, random_state=0, max_epochs=1, batch_size=256).fit(*table)
        for name, module in MODELS.items()
    }


@pytest.fixture(scope="module")
def exports(estimators, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exports")

    def of(name, format, with_box3d):
        if ROUNDS == 1 and (name, format) == ("mixing", "pt2"):
            pytest.skip("takes a minute, and the tests make one: run without RHEIDAE_BENCH_ROUNDS=1")
        path = folder / f"{name}-{with_box3d}.{'o' if format == 'object' else format}"
        if not path.exists():
            export_regressor(estimators[name], path, format, with_box3d=with_box3d)
        return path

    return of


@pytest.fixture(scope="module")
def opened(exports):
    return functools.cache(lambda *case: load_exported(exports(*case)))


def test_peer(line):
    line(BATCH, "peer", 1 / PEER_BATCH)
    line(SINGLE, "peer", 1 / PEER_SINGLE)


def title(name, format, with_box3d):
    box3d = "" if name == "mixing" else ", Box3D inside" if with_box3d else ", Box3D given"
    return f"{name}, {format}{box3d}"


@pytest.mark.parametrize("name", MODELS)
def test_estimator(rate, table, estimators, name):
    X, model = table[0], estimators[name]
    blocks = [X[start : start + BLOCK] for start in range(0, ROWS, BLOCK)]
    rate(BATCH, f"{name}, predict(X), Box3D given", ROWS, lambda: [model.predict(block) for block in blocks], rounds=3)


@pytest.mark.parametrize("name", MODELS)
def test_estimator_of_one(rate, table, estimators, name):
    one, model = table[0][:1], estimators[name]
    rate(SINGLE, f"{name}, predict(X), Box3D given", ONES, lambda: [model.predict(one) for _ in range(ONES)], rounds=3)


def function_and_tables(table, model):
    tables = [np.ascontiguousarray(part) for part in np.hsplit(table[0], 2)]
    return model.predict, tables[: len(model.inputs)]


@pytest.mark.parametrize(("name", "format", "with_box3d"), CASES)
def test_batches(rate, table, opened, name, format, with_box3d):
    predict, tables = function_and_tables(table, opened(name, format, with_box3d))
    blocks = [[part[start : start + BLOCK] for part in tables] for start in range(0, ROWS, BLOCK)]
    rate(BATCH, title(name, format, with_box3d), ROWS, lambda: [predict(*block) for block in blocks], rounds=3)


@pytest.mark.parametrize(("name", "format", "with_box3d"), CASES)
def test_single_rows(rate, table, opened, name, format, with_box3d):
    predict, tables = function_and_tables(table, opened(name, format, with_box3d))
    one = [part[:1] for part in tables]
    rate(SINGLE, title(name, format, with_box3d), ONES, lambda: [predict(*one) for _ in range(ONES)], rounds=3)


@pytest.mark.parametrize(("scheme", "order"), [("asymptotic", 41), ("box3d", 23), ("power", 31)])
def test_schemes(rate, tmp_path, scheme, order):
    """The title gives p99 and maximum of the distance to `mix` at its default order, f up to 0.99."""
    F = random_states(many(4096), 3, max_flux_factor=0.99, alike=True).reshape(-1, 24)
    export_scheme(scheme, tmp_path / "scheme.onnx", order=order)
    predict = load_exported(tmp_path / "scheme.onnx").predict
    off = np.linalg.norm((predict(F) - mix(F, scheme)).reshape(-1, 6, 4), axis=2).max(axis=1) / F[:, 3::4].sum(axis=1)
    blocks = [F[start : start + BLOCK] for start in range(0, len(F), BLOCK)]
    title = f"{scheme}, order {order}, onnx, off by {np.quantile(off, 0.99):.0e}, {off.max():.0e}"
    rate(BATCH, title, len(F), lambda: [predict(block) for block in blocks], rounds=3)


def test_c_interface(line, table, exports, tmp_path):
    source = Path(__file__).parents[1] / "examples" / "cpp"
    subprocess.run(["make", "-s", "-C", source, f"PYTHON={sys.executable}", f"BUILD={tmp_path}"], check=True)
    np.savetxt(tmp_path / "cells.txt", table[0][:, :24], fmt="%.17g")
    command = [tmp_path / "predict", "--time", "5", exports("mixing", "onnx", True), tmp_path / "cells.txt"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    batch, single = map(float, re.findall(r"([\d.]+) us", told))
    line(BATCH, "mixing, onnx by the C interface", 1e6 / batch, "time of the clock")
    line(SINGLE, "mixing, onnx by the C interface", 1e6 / single, "time of the clock")


LINKED = """
#include "rheidae_mix.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

int main(int argc, char **argv) {
    size_t n = atoi(argv[1]), sizes[2] = {atoi(argv[2]), 1};
    double *F = malloc(n * 24 * 8), *G = malloc(n * 24 * 8);
    if (argc != 3 || fread(F, 24 * 8, n, stdin) != n) return 1;
    for (int kind = 0; kind < 2; ++kind) {
        double best = 1e9;
        for (int round = 0; round < 5; ++round) {
            double start = now();
            for (size_t i = 0; i + sizes[kind] <= n; i += sizes[kind]) rheidae_mix(sizes[kind], F + 24 * i, G + 24 * i);
            double took = (now() - start) / n;
            best = took < best ? took : best;
        }
        printf("%.3f us\\n", 1e6 * best);
    }
    return 0;
}
"""


@pytest.mark.parametrize("cpu", ["native", "x86-64-v3"])
def test_linked_into_a_program(line, table, estimators, tmp_path, cpu):
    if cpu != "native" and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip(f"{cpu}: another family of processors")
    export_regressor(estimators["mixing"], tmp_path / "model.o", "object", cpu=cpu)
    (tmp_path / "main.c").write_text(LINKED)
    subprocess.run(["gcc", "-O2", "main.c", "model.o", "-o", "main", "-lm"], cwd=tmp_path, check=True)
    F = np.ascontiguousarray(table[0][:, :24]).tobytes()
    told = subprocess.run([tmp_path / "main", str(ROWS), str(BLOCK)], input=F, check=True, capture_output=True).stdout
    batch, single = map(float, re.findall(rb"([\d.]+) us", told))
    line(BATCH, f"mixing, object for {cpu}, linked into C", 1e6 / batch, "")
    line(SINGLE, f"mixing, object for {cpu}, linked into C", 1e6 / single, "")


def test_box3d(rate, table):
    F = table[0][:, :24].reshape(-1, 6, 4)
    rate(BATCH, "Box3D alone, box3d_flux(F)", ROWS, lambda: box3d_flux(F, threads=1), rounds=3)
