"""Tables about the solver: against rows that ship with the package, and convergence in its own parameters.

``python -m rheidae.simulate.comparison`` makes a few rows of another program, the prototype, again, with ``--emu``
three-dimensional rows of the particle code Emu at their stop; with ``--convergence`` one state is simulated with other
cells, boxes, directions, seeds and time steps. ``--resolution`` simulates nothing: it holds the prototype's rows, by
how many cells they had a wavelength, to the settled ones of the sample.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rheidae import fourflux
from rheidae.linear.distributions import Array
from rheidae.simulate.options import Options
from rheidae.simulate.simulation import Simulation, simulate
from rheidae.system import commands
from rheidae.system.h5 import dataset, open_h5

MADE_AGAIN = ("prototype_published", "prototype_random", "prototype_nsm_a", "prototype_nsm_b")
PROTOTYPE = (*MADE_AGAIN, "prototype_mutau")

EMU: dict[str, Any] = {"perturbation": 1e-6, "order": 9, "saturation_times": 3.0, "window": 1 / 3}
"""How the three-dimensional rows of Emu were run: `rheidae/datasets/data/README.md`."""

VARIANTS: dict[str, dict[str, Any]] = {
    "as by default": {},
    "seed 2": {"seed": 2},
    "seed 3": {"seed": 3},
    "time step 0.3": {"time_step": 0.3},
    "perturbation 1e-4": {"perturbation": 1e-4},
    "28 saturation times": {"saturation_times": 28.0},
    "86 directions": {"order": 15},
    "larger box, 24 cells": {"cells": 24, "wavelengths": 4.95},
    "24 cells": {"cells": 24},
    "24 cells, smaller box": {"cells": 24, "wavelengths": 2.2},
    "17 cells (no loss at the shortest wave)": {"cells": 17},
}


def distance(F: Array, other: Array, F_init: Array) -> float:
    """Four-flux distance of two final states ``(6, 4)``, mean over species, over the total density."""
    return float(np.linalg.norm(F - other, axis=-1).mean() / F_init[:, fourflux.T].sum())


def compare(name: str, path: str | Path, rows: int, **options: Any) -> Iterator[tuple[str, Simulation, float, float]]:
    """Make the first rows of a raw file again: label, result, its distance from the row, and the row's change."""
    with open_h5(path) as file:
        F_init, final = _states(file, rows)
    for row, (state, wanted) in enumerate(zip(F_init, final, strict=True)):
        result = simulate(state, **options)
        yield f"{name} {row}", result, distance(result.F_final, wanted, state), distance(state, wanted, state)


def resolution() -> Iterator[tuple[str, Array, Array, Array]]:
    """Files of the prototype; of their rows: cells a wavelength, distance from the sample's, change over its change."""
    waves, cells = Options().sides()
    for name in PROTOTYPE:
        _, coarse, large, of_prototype = _settled(name)
        F, fine, small, of_sample = _settled(name.replace("prototype", "asymptotic"))
        at = [of_prototype.index(one) for one in of_sample]
        coarse, large = coarse[at], large[at]
        apart = [distance(*rows) for rows in zip(coarse, fine, F, strict=True)]
        amplitude = ((coarse - F) * (fine - F)).sum(axis=(1, 2)) / ((fine - F) ** 2).sum(axis=(1, 2))
        yield name, cells / waves * small / large, np.array(apart), amplitude


def _states(file: h5py.File, rows: int | None = None) -> tuple[Array, Array]:
    """Initial and final states of the first rows of a raw file, or of all, mu and tau averaged where alike at first."""
    F_init, final = (fourflux.from_emu(dataset(file, f"F4_{which}(1|ccm)")[:rows]) for which in ("initial", "final"))
    return F_init, fourflux.average_heavy(final, F_init)


def _shipped(name: str) -> AbstractContextManager[Path]:
    """Path of a raw file that ships."""
    return resources.as_file(resources.files("rheidae.datasets") / "data" / f"{name}.h5")


def _settled(name: str) -> tuple[Array, Array, Array, list[str]]:
    """Initial and final states, sides of the boxes and names of the rows of a file that ships."""
    with _shipped(name) as path, open_h5(path) as file:
        names = dataset(file, "directorynames").asstr()[()].tolist()
        return *_states(file), dataset(file, "box(cm)")[()], names


def nsm1() -> Array:
    """The NSM1 state ``(6, 4)``: the row of the shipped file, whose directions the publication gives."""
    with _shipped("asymptotic_published") as path, open_h5(path) as file:
        return _states(file, 1)[0][0]


def convergence(state: Array, saturation_times: float = 12.0) -> Iterator[tuple[str, Simulation, float, float]]:
    """The same state with each of `VARIANTS`: label, result, distance from the first one, seconds."""
    first = None
    for label, options in VARIANTS.items():
        started = time.process_time()
        result = simulate(state, **{"saturation_times": saturation_times, **options})
        first = result.F_final if first is None else first
        yield label, result, distance(result.F_final, first, state), time.process_time() - started


def main(argv: list[str] | None = None) -> int:
    """Command line of ``python -m rheidae.simulate.comparison``."""
    parser = argparse.ArgumentParser(prog="python -m rheidae.simulate.comparison", description=__doc__)
    parser.add_argument("--rows", type=int, default=2, help="of each shipped file (default: %(default)s)")
    parser.add_argument("--emu", action="store_true", help="rows of emu_three_d.h5, at their stop")
    parser.add_argument("--resolution", action="store_true", help="the prototype's rows by their cells a wavelength")
    parser.add_argument("--convergence", action="store_true", help="the NSM1 point with other parameters")
    arguments = parser.parse_args(argv)

    def command() -> None:
        if arguments.convergence:
            print("| NSM1 | nu_e, 1e32/cm^3 | nubar_e | distance from the first | seconds |")
            print("| --- | --- | --- | --- | --- |", flush=True)
            for label, result, apart, seconds in convergence(nsm1()):
                N = result.F_final[[0, 3], fourflux.T] * 1e-32
                print(f"| {label} | {N[0]:.3f} | {N[1]:.3f} | {apart:.5f} | {seconds:.0f} |", flush=True)
            return
        if arguments.resolution:
            print("| file | cells a wavelength | rows | distance | its change over that of the sample |")
            print("| --- | --- | ---: | ---: | ---: |")
            for name, cells, distances, changes in resolution():
                for low, high in ((3.0, np.inf), (2.0, 3.0), (0.0, 2.0)):
                    rows = (cells >= low) & (cells < high)
                    if rows.any():
                        means = f"{distances[rows].mean():.5f} | {changes[rows].mean():.3f}"
                        print(f"| `{name}.h5` | {low:g} to {high:g} | {rows.sum()} | {means} |")
            return
        files, options = (("emu_three_d",), EMU) if arguments.emu else (MADE_AGAIN, {})
        print("| row | distance | change | drift | saturation times |\n| --- | --- | --- | --- | --- |")
        found = []
        for name in files:
            with _shipped(name) as path:
                for label, result, apart, change in compare(name, path, arguments.rows, **options):
                    run = f"{result.drift:.1e} | {result.saturation_times:.1f}"
                    print(f"| {label} | {apart:.5f} | {change:.4f} | {run} |", flush=True)
                    found.append(apart)
        print(f"{len(found)} rows: {np.mean(found):.5f} apart in the mean, {np.median(found):.5f} in the median")

    return commands.run(command)


if __name__ == "__main__":
    raise SystemExit(main())
