"""Many states: one process each, resumable, into a raw file as archives of simulations have it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from tqdm import tqdm

import rheidae
from rheidae import fourflux
from rheidae.exceptions import ClusterError, DataError
from rheidae.linear.distributions import Array, alike, as_states
from rheidae.mixing.quadrature import lebedev
from rheidae.preprocess.rawfile import AXIS_NAMES, DIRECT, in_order, possible_axes, stated_axes
from rheidae.simulate.config import SimulateConfig, Source
from rheidae.simulate.families import draw
from rheidae.simulate.options import Options
from rheidae.simulate.solver import Run, Setup, naming_rows, order_for, prepare, require_room, run_row
from rheidae.system import commands
from rheidae.system.cluster import no_processes, open_workers
from rheidae.system.h5 import H5_ERRORS, create_h5, dataset, open_h5, present
from rheidae.system.memory import free_memory, require_memory
from rheidae.system.outputs import Outputs, naming, only_writer, remove_stale, size
from rheidae.system.signals import uninterrupted

log = logging.getLogger(__name__)

FORMAT = 3
"""Raised when the same version of the package begins to compute or write something else."""

RowSelection = int | Sequence[int] | slice | None

LINE_EVERY = 10.0
"""Seconds between two lines in a log."""


class Written(NamedTuple):
    """What `simulate_archive` wrote."""

    path: Path
    rows: int
    simulated: int
    """Rows of this run; the others were there already."""
    converged: int


def read_states(path: str | Path, rows: RowSelection = None) -> Array:
    """Initial four-fluxes ``(n, 6, 4)`` of a raw file or a preprocessed one.

    Parameters
    ----------
    path : path
        The file.
    rows : int, sequence of int or slice, optional
        Which of them, from 0 on; ``(6, 4)`` of a single number. Default: all.

    Raises
    ------
    DataError
        If the file cannot be read, holds no initial four-fluxes, or lacks one of the rows.
    """
    return read_rows(path, rows)[0]


def read_rows(path: str | Path, rows: RowSelection = None) -> tuple[Array, list[int]]:
    """`read_states`, and which rows these are."""
    with open_h5(path) as file:
        if present(file, name := "F_init"):
            found = dataset(file, name)
            require_memory(24 * (found.size or 0), str(path))
            F = found[()]
            F = F if F.shape[1:] == (6, 4) else F.T
        else:
            found = dataset(file, name := "F4_initial(1|ccm)", "states need a raw or a preprocessed file")
            require_memory(24 * (found.size or 0), str(path))
            F, readings, said = found[()], possible_axes(found.shape or ()), stated_axes(found)
            # Of several, what the file says, or else the usual orders.
            if said in readings:
                F = in_order(F, said)
            elif readings and (len(readings) == 1 or readings[0] in (*AXIS_NAMES, DIRECT)):
                F = in_order(F, readings[0])
    if F.ndim != 3 or F.shape[1:] != (6, 4):
        raise DataError(
            f"{path}: dataset {name!r} has shape {F.shape}; expected (n, 6, 4), or (n, 4, 2, 3) in a raw file"
        )
    F, every = np.ascontiguousarray(F, dtype=np.float64), np.arange(len(F))
    if rows is None or isinstance(rows, slice):
        rows = rows or slice(None)
        return F[rows], every[rows].tolist()
    numbers = np.asarray(rows)
    if numbers.dtype.kind not in "iu":
        raise DataError(f"{path}: rows={rows!r}; expected numbers of rows, from 0 on, or a slice")
    beyond = numbers[(numbers < 0) | (numbers >= len(F))]
    if beyond.size:
        raise DataError(f"{path} has {len(F)} rows, and no row {beyond.flat[0]}; mend rows")
    return np.asarray(F[numbers]), numbers.ravel().tolist()


def simulate_archive(config: SimulateConfig, *, resume: bool = True, scheduler: str | None = None) -> Written:
    """Simulate the states of a configuration and write a raw file.

    Each state that is done is kept in a folder beside the output until all are, and the same configuration goes on
    from there, whatever ended it.

    Parameters
    ----------
    config : SimulateConfig
        See ``config/simulate.yaml``.
    resume : bool
        Keep what earlier runs of the same states, options and version have done.
    scheduler : str, optional
        ``tcp://host:port`` of a Dask scheduler or ``local:N``. Default: `processes` on this machine.

    Raises
    ------
    DataError
        If the states cannot be read.
    FourFluxError
        If a state is not physical, or too forward peaked for any directions.
    OutputError
        If outputs cannot be written, or another run writes into the same folder.
    ConfigError
        If a run takes more memory than is free.
    ClusterError
        If the cluster cannot be reached, or loses its workers; if a process of this machine is killed.
    """
    states, rows = _initial_states(config.states)
    with naming_rows(rows):
        states, _ = as_states(states, config.states.path or "F_init")
        if config.options.order is None:
            order_for(states)
    root = Path(config.output_root)
    target = root / config.output_filename
    parts = root / f"{config.output_filename}.parts"
    marks = [_mark(state, config.options) for state in states]
    with only_writer(root) as lock, ExitStack() as stack:
        # Files of a state are named by what it is made from, so that those of another configuration never count.
        places = [parts / f"{mark}.h5" for mark in marks]
        done = resume and _finished(target, marks)
        pending = [] if done else [i for i, place in enumerate(places) if not (resume and _whole(place))]
        if pending:
            setups = {i: prepare(states[i], config.options, row=rows[i]) for i in pending}
            # The longest first: at the end all processes finish at about the same time.
            pending.sort(key=lambda i: -setups[i].cost)
            progress = stack.enter_context(_Progress(target.name, [setups[i].cost for i in pending]))
            work = [(i, setups[i], states[i], config.options) for i in pending]
            if scheduler is None:
                require_room(setups.values())
                most = max(setup.memory for setup in setups.values())
                found = _processes(run_row, work, config.processes, most)
            else:
                workers = open_workers(scheduler, None)
                stack.enter_context(workers)
                workers.require([lock])
                found = workers.run(run_row, iter(work))
            for i, one in found:
                _write_part(places[i], setups[i], one)
                said = f"{one.steps} steps, {one.saturation_times:.1f} saturation times, drift {one.drift:.1e}"
                progress.advance(setups[i].cost, f"row {rows[i]}: {said} ({one.stopped})")
        if not done:
            results = [_read_part(place) for place in places]
            _write_archive(target, config, rows, states, marks, results)
        # Killed while they were removed, a run before left some of them.
        _clear(parts, places if done else parts.glob("*.h5"))
        with open_h5(target) as file:
            converged = int(dataset(file, "converged")[()].sum())
    return Written(target, len(states), len(pending), converged)


def _initial_states(source: Source) -> tuple[Array, list[int]]:
    """And the numbers of their rows."""
    if source.family is not None:  # whose rows have no end but `max_rows`
        rows = list((source.rows or range(sys.maxsize))[: source.max_rows])
        return draw(source.family, rows, source.seed), rows
    states, rows = read_rows(str(source.path), source.rows)
    return states[: source.max_rows], rows[: source.max_rows]


def _mark(state: Array, options: Options) -> str:
    """What a result depends on, in 16 bytes."""
    text = json.dumps(
        {"format": FORMAT, "rheidae_version": rheidae.__version__, **options.model_dump()}, sort_keys=True
    )
    return hashlib.blake2b(text.encode() + state.tobytes(), digest_size=16).hexdigest()


# --- work --------------------------------------------------------------------------------------------------


def _processes(
    work: Callable[..., Any], blocks: list[tuple[Any, ...]], count: int | None, memory: float = 0.0
) -> Iterator[Any]:
    """Yield ``work(*block)`` as the processes finish them; alone, in this process.

    `memory`: bytes that a block takes at most. There are no more processes than it allows.
    """
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = min(count or available, len(blocks))
    if count > 1 and count * memory > (free := free_memory()):
        count = max(int(free / memory), 1)
        log.warning("each state takes %s of memory, and %s are free: processes: %d", size(memory), size(free), count)
    if count > 1 and (fault := no_processes()):
        log.warning("%s; one state after another until then", fault)
        count = 1
    if count == 1:
        yield from (work(*block) for block in blocks)
        return
    from joblib import Parallel, delayed, parallel_config

    try:
        with parallel_config(backend="loky", inner_max_num_threads=1):
            yield from Parallel(n_jobs=count, return_as="generator_unordered", batch_size=1)(
                delayed(work)(*block) for block in blocks
            )
    except BrokenProcessPool as error:
        raise ClusterError(
            "a process of the simulation was killed, most likely for want of memory; set fewer `processes`, or ask for "
            "more memory, and run again: states that are done are kept"
        ) from error


class _Progress:
    """States done, and the time that the others will take by the work that is expected of each."""

    def __init__(self, name: str, costs: Iterable[float]) -> None:
        costs = list(costs)
        self.name, self.count, self.total = name, len(costs), sum(costs) or 1.0
        self.done, self.worked = 0, 0.0
        self.started = self.spoke = time.perf_counter()
        self.bar = tqdm(total=self.count, desc=name, unit="state", leave=False) if commands.on_terminal() else None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def advance(self, cost: float, said: str) -> None:
        """Count a state as done."""
        self.done, self.worked = self.done + 1, self.worked + cost
        now = time.perf_counter()
        part = min(self.worked / self.total, 1.0)
        left = (now - self.started) * (1 - part) / part if part > 0 else float("nan")
        if self.bar is not None:
            self.bar.set_postfix_str(f"about {left:.0f} s left", refresh=False)
            self.bar.update()
        elif now - self.spoke >= LINE_EVERY or self.done == self.count:
            self.spoke = now
            log.info("%s: %s; %d of %d states, about %.0f s left", self.name, said, self.done, self.count, left)


# --- files -------------------------------------------------------------------------------------------------

_RUN_FIELDS = (
    "F_final", "F_std", "probability", "growth_rate", "drift", "saturation_times", "converged", "stopped", "time",
    "side", "steps",
)  # fmt: skip


def _write_part(place: Path, setup: Setup, one: Run) -> None:
    with naming(place), Outputs() as outputs, create_h5(outputs.path(place)) as (file, _), uninterrupted():
        file["order"] = setup.order
        for name in _RUN_FIELDS:
            file[name] = getattr(one, name)


def _clear(parts: Path, places: Iterable[Path]) -> None:
    """Remove files of states, what killed runs left beside them, and the folder if nothing else is in it."""
    for place in places:
        place.unlink(missing_ok=True)
    if parts.is_dir():
        remove_stale(parts)
        with suppress(OSError):
            parts.rmdir()


def _whole(place: Path) -> bool:
    try:
        return bool(_read_part(place))
    except (DataError, *H5_ERRORS):  # a disk that lost some of it
        return False


def _read_part(place: Path) -> dict[str, Any]:
    with open_h5(place) as file:
        part = {name: dataset(file, name)[()] for name in ("order", *_RUN_FIELDS)}
    part["stopped"] = part["stopped"].decode()
    return part


def _finished(target: Path, marks: list[str]) -> bool:
    """Whether the archive is whole and made from these states, options and version."""
    if not target.is_file():
        return False
    try:
        with open_h5(target) as file:
            return bool(json.loads(file.attrs.get("fingerprints", "[]")) == marks)
    except (DataError, ValueError):
        return False


def _write_archive(
    target: Path, config: SimulateConfig, rows: list[int], states: Array, marks: list[str], parts: list[dict[str, Any]]
) -> None:
    """Write the raw file; its names and axes are those of Emu's archives."""
    same = alike(states)

    def column(name: str) -> Any:
        return np.array([part[name] for part in parts])

    final = column("F_final")
    idle = [i for i, part in enumerate(parts) if part["stopped"] in ("slow", "directions")]
    if idle:
        final[idle] = np.nan
        where = ", ".join(str(rows[i]) for i in idle)
        log.warning("%s: no final states of rows %s, which were not begun; `stopped` says why", target.name, where)

    with naming(target), Outputs() as outputs, create_h5(outputs.path(target)) as (file, _), uninterrupted():
        file.attrs["about"] = "pseudo-spectral simulations of the fast flavor instability"
        file.attrs["rheidae_version"] = rheidae.__version__
        file.attrs["config"] = json.dumps(config.model_dump(exclude={"processes"}))
        file.attrs["fingerprints"] = json.dumps(marks)
        file.attrs["final"] = (
            f"means over the last {config.options.window:g} of each run; mu and tau averaged where alike"
        )
        file["F4_initial(1|ccm)"] = fourflux.to_emu(states)
        file["F4_final(1|ccm)"] = fourflux.to_emu(final)
        file["F4_final_stddev(1|ccm)"] = fourflux.to_emu(column("F_std"))
        for four_flux in list(file.values()):
            four_flux.attrs["axes"] = "row, component, nu_nubar, flavor"
        file["growthRate(1|s)"] = column("growth_rate")
        file["time(s)"] = column("time")
        file["box(cm)"] = column("side")
        for name in ("saturation_times", "drift", "converged", "steps"):
            file[name] = column(name)
        strings = h5py.string_dtype()
        file.create_dataset("stopped", data=[part["stopped"] for part in parts], dtype=strings)
        names = [f"{config.states.name}/{config.options.dimensions}D/row{row}" for row in rows]
        file.create_dataset("directorynames", data=names, dtype=strings)
        file["nf"] = 3
        _write_angular(file, same, parts)


def _write_angular(file: h5py.File, same: Any, parts: list[dict[str, Any]]) -> None:
    orders = np.array([part["order"] for part in parts])
    for order in np.unique(orders):
        numbers = np.flatnonzero(orders == order)
        P = np.array([parts[i]["probability"] for i in numbers])[:, :, :2].astype(np.float32)
        P[same[numbers], :, 1] = np.nan
        rule = lebedev(int(order))
        group = file.create_group(f"angular/lebedev_{order}")
        group["rows"] = numbers
        group["direction"], group["weight"] = rule.nodes.T, rule.weights
        group.create_dataset("probability", data=P, compression="gzip", shuffle=True)
        group["probability"].attrs["axes"] = (
            "row, direction, initial flavor (e, mu), final flavor (e, mu, tau); mu is NaN where mu and tau start alike"
        )
