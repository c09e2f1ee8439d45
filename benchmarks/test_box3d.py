"""Box3D: speed and quadrature error of every setting, beside plain NumPy and Julia.

    pytest benchmarks/test_box3d.py

prints one table and draws error over time per sample to ``results/benchmarks/box3d.png``. One thread, processor time.
"""

import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from benchmarks.conftest import ROUNDS, many
from rheidae import box3d_flux
from rheidae.mixing import reference
from rheidae.system.outputs import Outputs
from tests.states import random_rotation, random_states, turn

SAMPLES = many(1 << 15)
NUMPY_SAMPLES = many(1 << 12)
TURNS, NUMPY_TURNS = ROUNDS or 20, 4
ORDERS = {"sharp": (15, 17, 31, 71), "shared": (15, 19, 21, 23, 29)}
GROUP = "Box3D, random states with flux factors up to 0.75"
REFERENCE = Path(__file__).parents[1] / "reference_julia" / "main.jl"


@pytest.fixture(scope="module")
def states():
    return random_states(SAMPLES, alike=True)


@pytest.fixture(scope="module")
def error(states):
    """Largest four-flux distance of the six species, over the total density: 95th percentile and maximum."""
    rotation = random_rotation(1)
    exact = turn(box3d_flux(turn(states, rotation), order=131, threads=1), rotation.T)

    def measure(out):
        distance = np.linalg.norm(out - exact, axis=2).max(axis=1) / states[:, :, 3].sum(axis=1)
        return np.percentile(distance, 95), distance.max()

    return measure


@pytest.fixture(scope="module")
def points():
    """Time per sample and error of every setting, drawn when the module is done."""
    from matplotlib.figure import Figure

    found = {}
    yield found
    figure = Figure(figsize=(6, 4.2), layout="constrained")
    axes = figure.subplots()
    for kind in ("NumPy", "Numba sharp", "Numba shared"):
        chosen = {name: point for name, point in found.items() if name.startswith(kind)}
        if not chosen:
            continue
        times, errors = zip(*chosen.values(), strict=True)
        axes.loglog(times, errors, "o-", label=kind)
        for name, point in chosen.items():
            axes.annotate(name.removeprefix(kind).strip(" ,"), point, textcoords="offset points", xytext=(5, 5))
    axes.set(xlabel="microseconds per sample, one thread", ylabel="95th percentile of the error / total density")
    axes.margins(0.15)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    with Outputs() as outputs:
        figure.savefig(outputs.path(Path("results/benchmarks/box3d.png")), format="png", dpi=100)


def numpy_in_blocks(F, order):
    """The reference in blocks that fit into the cache, which is when NumPy is quickest."""
    return np.concatenate([reference.box3d(F[start : start + 256], order) for start in range(0, len(F), 256)])


def test_numpy_and_numba(line, states, error, points):
    """All settings in turn, round after round, so that a change of the machine's speed meets all of them alike."""
    work = {f"NumPy, order {order}": partial(numpy_in_blocks, order=order) for order in (71, 31, 15)}
    work |= {
        f"Numba {crossing}, order {order}": partial(box3d_flux, order=order, crossing=crossing, threads=1)
        for crossing, orders in ORDERS.items()
        for order in orders
    }
    best = dict.fromkeys(work, float("inf"))
    for number in range(TURNS):
        for name, function in work.items():
            few = name.startswith("NumPy")
            if few and number >= NUMPY_TURNS:
                continue
            F = states[:NUMPY_SAMPLES] if few else states
            started = time.process_time()
            function(F)
            best[name] = min(best[name], (time.process_time() - started) / len(F))
    for name, seconds in best.items():
        p95, largest = error(work[name](states))
        line(GROUP, name, 1 / seconds, f"error {p95:.1e}, at most {largest:.1e}")
        points[name] = (1e6 * seconds, p95)


@pytest.mark.skipif(shutil.which("julia") is None, reason="julia is not on the PATH")
@pytest.mark.parametrize("order", [31, 15])
def test_julia(line, order):
    """The reference times itself: its start-up is not what is compared."""
    command = ["julia", "--startup-file=no", str(REFERENCE), "time", "--order", str(order), "4000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line(GROUP, f"Julia reference, order {order}, 1 thread", 1e6 / float(done.stdout.split()[0]))
