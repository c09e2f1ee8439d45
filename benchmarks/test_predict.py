"""Cells a second of ``rheidae predict``, on two threads: reading, mixing, growth rates and writing of a snapshot."""

import os
import time

import h5py
import numpy as np
import pytest

from benchmarks.conftest import many
from rheidae import moments
from rheidae.predict.stream import predict_file
from tests.states import random_states

SIDE = int(os.environ.get("RHEIDAE_BENCH_SIDE", many(96)))


@pytest.mark.parametrize("scheme", ["box3d", "power", "asymptotic", "pretrained"])
def test_cells_per_second(scheme, tmp_path):
    F = random_states(1 << 14)
    F[:, 2], F[:, 4], F[:, 5] = F[:, 1], F[:, 1], F[:, 1]
    grid = (SIDE, SIDE, SIDE)
    density, flux = moments.from_six(np.resize(F, (*grid, 6, 4)))
    with h5py.File(tmp_path / "data.h5", "w") as file:
        for name, n, f in zip("eax", density, flux, strict=True):
            file[f"n_{name}"], file[f"fn_{name}"] = n, f
    with h5py.File(tmp_path / "small.h5", "w") as file:
        for name, n, f in zip("eax", density, flux, strict=True):
            file[f"n_{name}"], file[f"fn_{name}"] = n[:1], f[:, :1]
    predict_file(scheme, tmp_path / "small.h5", tmp_path / "out.h5", threads=2)  # compiles
    started, used = time.perf_counter(), time.process_time()
    predict_file(scheme, tmp_path / "data.h5", tmp_path / "out.h5", threads=2)
    wall, processor = time.perf_counter() - started, time.process_time() - used
    print(
        f"\n{scheme}: {SIDE**3} cells, {SIDE**3 / wall:,.0f} a second on two threads, "
        f"{1e6 * processor / SIDE**3:.1f} us of processor time each"
    )
