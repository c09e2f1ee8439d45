"""A scheme or model over a file of moments, in blocks, so that a grid may be larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae._fourflux_kernels import mark_changes
from rheidae.cells import Cells
from rheidae.linear import growth_rate
from rheidae.mixing.asymptotic import PAIRS, crossings
from rheidae.predict.models import Answer, Model, open_model
from rheidae.predict.snapshot import Array, Block, Snapshot, read_layout
from rheidae.system.cluster import Threads
from rheidae.system.h5 import create_h5, open_h5
from rheidae.system.outputs import Outputs, naming
from rheidae.system.signals import uninterrupted
from rheidae.system.threads import MOST, default_threads

BLOCK_CELLS = 1 << 14
"""Cells at a time, of a thread; they take some 25 MB."""

FLAGS = {"vacuum": 1, "not physical": 2, "shortened to stay physical": 4, "outside the training domain": 8}
"""Bits of the dataset `flag`."""

# Part of the total density: how near to N = |F| a row ends whose change was shortened until it met that.
_ON_THE_EDGE = 1e-8


class Done(NamedTuple):
    """What `predict_file` wrote: how many cells there were, and how many of them have each of `FLAGS`."""

    cells: int
    flags: dict[str, int]


def predict_file(
    model: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    layout: str | Path | None = None,
    full: bool = False,
    block_cells: int = BLOCK_CELLS,
    threads: int | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Done:
    """Mix the moments of a file.

    Parameters
    ----------
    model : str or path
        An analytic scheme (a name in `rheidae.mixing.schemes.SCHEMES`), "pretrained", a run folder, or an exported
        model (`rheidae.export.endings`).
    data : path
        HDF5 file of moments: a snapshot, a raw or a preprocessed file.
    out : path
        HDF5 file to write; it appears when it is complete.
    layout : str or path, optional
        A preset (`rheidae.predict.snapshot.PRESETS`) or a YAML file like those. Default: the preset that fits.
    full : bool
        Write the transition matrices too. Of Box3D and power they take some 0.2 ms a cell, of the asymptotic scheme a
        twentieth of the time of power; an exported model needs to be a full one.
    block_cells : int
        How many cells of a thread are in memory at a time.
    threads : int, optional
        Blocks that are worked on at a time; default: one per processor.
    report : callable, optional
        Called after each block with the number of cells that are done, and of all.

    Returns
    -------
    Done

    Raises
    ------
    DataError, ConfigError, RunError, ExportError
        If data, layout or model cannot be used; nothing is written then.

    Notes
    -----
    The file holds, under ``mixed`` and ``change`` (and ``std`` where the model has it), datasets named and shaped as
    those that were read (``F (n, 6, 4)`` of raw and preprocessed files), in the unit that was read; and
    ``growth_rate`` (1/s, `rheidae.linear.growth_rate` by its fast method) and ``flag``, the sum of `FLAGS`, of the
    grid's shape, and ``has_crossing``, which has an axis for the pairs of flavors more
    (`rheidae.mixing.asymptotic.crossings`). Vacuum stays vacuum; a cell that is not physical is NaN. Standard
    deviations of summed species are the sums of theirs, as of errors that go together. "Outside the training domain"
    are cells that the model changes and that lie outside of what it has seen (`FluxRegressor.outside`); of schemes, and
    of exported files that are not full, there are none. With `full`, ``transition`` holds the matrices of densities and
    of fluxes, ``(..., 2, species out, species in)``, of the species that the file has
    (`rheidae.mixing.transition`).
    """
    if threads is not None and not 1 <= threads <= MOST:
        raise ValueError(f"threads={threads!r} must be at least 1 and at most {MOST}")
    opened = open_model(model, full)
    flags = dict.fromkeys(FLAGS, 0)
    with open_h5(data) as source, Outputs() as outputs, naming(out):
        snapshot = Snapshot(source, read_layout(layout, source))
        total = int(np.prod(snapshot.shape, dtype=np.int64))
        with create_h5(outputs.path(out)) as (file, require_written):
            with uninterrupted():
                _create(file, snapshot, model, data)
            done = 0
            count = (threads or default_threads()) if opened.shares else 1
            work = ((snapshot, opened, block) for block in snapshot.blocks(block_cells))
            with Threads(count) as pool:
                for solved in pool.run(_solve, work):
                    with uninterrupted():
                        _write(file, snapshot, solved)
                    require_written()
                    for name, bit in FLAGS.items():
                        flags[name] += int(np.count_nonzero(solved.flag & bit))
                    done += len(solved.flag)
                    if report is not None:
                        report(done, total)
    return Done(total, flags)


def _create(file: h5py.File, snapshot: Snapshot, model: str | Path, data: str | Path) -> None:
    for group in ("mixed", "change"):
        snapshot.create(file, group)
    file.create_dataset("growth_rate", snapshot.shape, np.float32)
    file.create_dataset("flag", snapshot.shape, np.uint8)
    file.create_dataset("has_crossing", (*snapshot.shape, len(PAIRS)), np.bool_)
    file["has_crossing"].attrs["pairs"] = list(PAIRS)
    file["growth_rate"].attrs["units"] = "1/s"
    file["flag"].attrs["bits"] = json.dumps(FLAGS)
    file.attrs["model"], file.attrs["source"] = Path(model).name, Path(data).name
    file.attrs["layout"] = json.dumps(snapshot.layout.model_dump())
    file.attrs["rheidae_version"] = rheidae.__version__


class _Solved(NamedTuple):
    """What is known of the cells of a block, ``(n, ...)``."""

    block: Block
    four_fluxes: dict[str, Array]
    growth_rate: Array
    has_crossing: NDArray[np.bool_]
    flag: NDArray[np.uint8]
    transition: Array | None


def _solve(snapshot: Snapshot, model: Model, block: Block) -> _Solved:
    cells = Cells(snapshot.read(block), "F", "pass")
    rows, bad = np.ascontiguousarray(cells.rows), cells.invalid
    answer = model.answer(rows)
    parts = {"mixed": answer.F, "change": answer.F - rows}
    if answer.std is not None:
        parts["std"] = answer.std
    rate = snapshot.layout.unit * growth_rate(rows, method="fast")
    if bad.any():
        parts = {name: np.where(bad[:, None, None], np.nan, values) for name, values in parts.items()}
        rate = np.where(bad, np.nan, rate)
    matrices = answer.transition
    if matrices is not None:
        matrices = snapshot.matrices(np.where(bad[:, None, None, None], np.nan, matrices))
    return _Solved(block, parts, rate, crossings(rows, threads=1) & ~bad[:, None], _flags(cells, answer), matrices)


def _write(file: h5py.File, snapshot: Snapshot, solved: _Solved) -> None:
    block = solved.block
    for group, values in solved.four_fluxes.items():
        if group not in file:
            snapshot.create(file, group)
        snapshot.write(file, group, block, values)
    grid = tuple(file["flag"][block].shape)
    file["growth_rate"][block] = solved.growth_rate.reshape(grid)
    file["has_crossing"][block] = solved.has_crossing.reshape(*grid, len(PAIRS))
    file["flag"][block] = solved.flag.reshape(grid)
    if solved.transition is not None:
        shape = solved.transition.shape[1:]
        if "transition" not in file:
            file.create_dataset("transition", (*snapshot.shape, *shape), np.float32)
            file["transition"].attrs["axes"] = ["density or flux", "species out", "species in"]
        file["transition"][block] = solved.transition.reshape(*grid, *shape)


def _flags(cells: Cells, answer: Answer) -> NDArray[np.uint8]:
    """`FLAGS` of each row."""
    changed, shortened = np.empty((2, len(answer.F)), dtype=np.bool_)
    mark_changes(cells.rows, answer.F, _ON_THE_EDGE, changed, shortened)
    outside = changed & answer.outside if answer.outside is not None else np.zeros_like(changed)
    return (
        FLAGS["vacuum"] * cells.vacuum
        + FLAGS["not physical"] * cells.invalid
        + FLAGS["shortened to stay physical"] * (shortened & ~cells.invalid)
        + FLAGS["outside the training domain"] * (outside & ~cells.invalid)
    ).astype(np.uint8)
