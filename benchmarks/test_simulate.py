"""The solver's step on one thread, against scipy.fft alone and, where it can be built, the C++ prototype.

RHEIDAE_PROTOTYPE names a folder with ffi.cpp (the prototype, which is not part of the package); a compiler and fftw3
are needed to build it.
"""

import os
import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks.conftest import ROUNDS
from rheidae.linear import growth_rate
from rheidae.simulate.options import Options
from rheidae.simulate.solver import Solver, prepare

pytestmark = pytest.mark.benchmark(timer=time.process_time)

STEP = "a step of 16^3 cells, 50 directions, {} (processor time)"
CELLS = 16


def state(unlike):
    F = np.zeros((6, 4))
    F[:, 3] = [1.0, 0.35, 0.35, 1.2, 0.35, 0.35]
    F[0, :3], F[3, :3] = [0.02, 0.05, 0.15], [0.1, -0.06, 0.42]
    F[[1, 2, 4, 5], 2] = 0.14
    if unlike:
        F[1, 3], F[4, 3], F[1, 0] = 0.45, 0.3, 0.1
    return 1e33 * F


@pytest.fixture(scope="module")
def prototype(tmp_path_factory):
    """The executable, or None."""
    folder = os.environ.get("RHEIDAE_PROTOTYPE")
    if folder is None:
        return None
    target = tmp_path_factory.mktemp("prototype") / "ffi"
    flags = ["-O3", "-march=native", "-ffast-math", "-fno-finite-math-only"]
    command = ["g++", *flags, "-o", str(target), str(Path(folder) / "ffi.cpp"), "-lfftw3f"]
    return target if subprocess.run(command, capture_output=True).returncode == 0 else None


def seconds_of_prototype(executable, setup, steps):
    two = len(setup.G) == 2
    numbers = (CELLS, CELLS, CELLS, setup.side, setup.side, setup.side, setup.time_step, steps * setup.time_step)
    m = setup.directions.shape[1]
    lines = [" ".join(map(repr, map(float, numbers[3:])))]
    head = f"{CELLS} {CELLS} {CELLS} {lines[0]} 1e-3 1 1 {m} {int(two)}"
    rows = np.concatenate([setup.directions, setup.G]).T
    text = "\n".join([head, *(" ".join(f"{value:.12e}" for value in row) for row in rows)])
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([str(executable)], input=text, text=True, capture_output=True, check=True)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before


@pytest.mark.parametrize("unlike", [False, True])
def test_step(line, prototype, unlike):
    """In turns, so that a load on the machine hits all of them."""
    group = STEP.format("two matrices a direction" if unlike else "mu and tau alike")
    setup = prepare(state(unlike), Options())
    solver = Solver(setup, 1e-3, 1)
    steps, found = 20, {"rheidae.simulate": [], "its advection by scipy.fft": [], "the C++ prototype": []}
    with threadpool_limits(1, user_api="blas"):
        solver.turn()
        solver.advect()
        for _ in range(ROUNDS or 5):
            started = time.process_time()
            for _ in range(steps):
                solver.turn()
                solver.advect()
            found["rheidae.simulate"].append((time.process_time() - started) / steps)
            started = time.process_time()
            for _ in range(steps):
                solver.turn()
                transformed(solver.q)
            found["its advection by scipy.fft"].append((time.process_time() - started) / steps)
            if prototype is not None:
                few, many = (seconds_of_prototype(prototype, setup, count) for count in (5, 5 + 2 * steps))
                found["the C++ prototype"].append((many - few) / (2 * steps))
    first = np.array(found["rheidae.simulate"])
    for name, seconds in found.items():
        if seconds:
            line(group, name, 1 / np.median(seconds), ratio=float(np.median(first / np.array(seconds))))


def transformed(q):
    """What a shift by transforms costs, whatever its phases."""
    from scipy import fft

    for numbers in q.reshape(-1, q.shape[3], CELLS, CELLS, CELLS):
        waves = fft.rfftn(numbers, axes=(1, 2, 3))
        waves *= np.complex64(1)
        numbers[:] = fft.irfftn(waves, s=numbers.shape[1:], axes=(1, 2, 3))


@pytest.mark.parametrize(("method", "rows"), [("exact", 200), ("fast", 200_000)])
def test_growth_rate(rate, method, rows):
    rng = np.random.default_rng(0)
    F = np.resize(state(False), (rows, 6, 4)) * rng.uniform(0.9, 1.1, (rows, 6, 1))
    F[:, 2], F[:, 5] = F[:, 1], F[:, 4]
    name = f'growth_rate(F, method="{method}")'
    rate("growth rates, one thread", name, rows, lambda: growth_rate(F, method=method), rounds=3)
