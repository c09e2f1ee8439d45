"""Training sets: the sample that ships with the package, and the loader of preprocessed files."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from rheidae import fourflux
from rheidae.exceptions import DataError
from rheidae.mixing.schemes import SCHEMES, STORED
from rheidae.system.h5 import dataset, open_h5, present, read
from rheidae.system.memory import require_memory
from rheidae.system.outputs import Outputs

log = logging.getLogger(__name__)

_CHUNK_ROWS = 1 << 18

WIDTH = fourflux.FLAT * len(fourflux.INPUT)
"""Columns of `input`."""

SETTLED = (
    "asymptotic_random.h5", "asymptotic_nsm_a.h5", "asymptotic_nsm_b.h5", "asymptotic_weak.h5",
    "asymptotic_supernova.h5", "asymptotic_wide.h5", "asymptotic_mutau.h5", "asymptotic_pairs.h5",
    "asymptotic_published.h5", "asymptotic_three_d.h5",
)  # fmt: skip
"""Raw files of the sample: three-dimensional simulations run until they settle, which is what a model must predict."""

PROTOTYPE = (
    "prototype_random.h5", "prototype_nsm_a.h5", "prototype_nsm_b.h5", "prototype_mutau.h5", "prototype_published.h5",
)  # fmt: skip
"""Raw files of some of the same states by another program, in a third of the rows too coarse, for comparison."""

EMU = ("emu_random.h5", "emu_nsm_a.h5", "emu_nsm_b.h5", "emu_three_d.h5")
"""Raw files of particle-in-cell runs that stop soon after saturation, for comparison."""


def write_sample(folder: str | Path) -> list[Path]:
    """Write the sample simulations as raw files, as they would come from an archive.

    Parameters
    ----------
    folder : path
        Made if it does not exist; files of the same names are replaced.

    Returns
    -------
    list of Path
        The HDF5 files and their README.
    """
    written = []
    with Outputs() as outputs:
        for name in (*SETTLED, *PROTOTYPE, *EMU, "README.md"):
            target = Path(folder) / name
            outputs.write(target, (resources.files(__name__) / "data" / name).read_bytes())
            written.append(target)
    return written


def preprocess_sample(folder: str | Path, **changes: Any) -> Path:
    """Preprocess the sample as ``rheidae init`` has it, but for `changes` of keys; return the combined file."""
    from rheidae.config import PreprocessConfig, read_config
    from rheidae.preprocess.pipeline import preprocess

    with (
        resources.as_file(resources.files("rheidae") / "defaults/pre_process.yaml") as defaults,
        resources.as_file(resources.files(__name__) / "data") as raw,
    ):
        config = read_config(defaults, PreprocessConfig)
        config = config.model_copy(update={"data_root": str(raw), "output_root": str(folder), **changes})
        preprocess(config)
    return Path(folder) / config.output_filename


def load_dataset(
    path: str | Path | None = None,
    target_scale: float = 1e-33,
    *,
    return_X_y: bool = False,
    rows: tuple[int, int | None] = (0, None),
) -> Any:
    """Load a preprocessed file, or the sample that ships with the package.

    Parameters
    ----------
    path : path, optional
        Written by ``python -m rheidae.preprocess``, or by Julia with all axes reversed. None: the sample, preprocessed
        as ``rheidae init`` has it in a temporary folder, with every scheme; takes some seconds.
    target_scale : float
        Multiplies inputs and targets alike: 1e-33 turns the 1/cm^3 of the file into numbers of order one
        for merger densities. 1 keeps 1/cm^3, whose squares overflow in single precision.
    return_X_y : bool
        Return ``(data, target)`` alone.
    rows : (int, int or None)
        First row, and the one behind the last, of a part of the file; what lies beyond its end is not there.

    Returns
    -------
    Bunch
        ``data (n, 48)`` float32: initial four-flux, then Box3D's; ``target (n, 24)`` float32: final
        four-flux; ``groups (n,)`` str: the simulation file (`sim_id`) of each row; ``dirname (n,)`` str:
        the single simulation, empty if the file does not say; ``feature_names``, ``target_names``,
        ``target_scale``, ``filename`` (None of the sample), ``DESCR``. Where the file holds them also ``growth_rate
        (n,)`` float32, an estimate in 1/s; ``has_crossing (n,)`` bool; and of each other scheme in ``schemes:`` the
        final four-flux, ``F_power (n, 6, 4)`` float32 and so on. All four-fluxes are scaled alike.

    Raises
    ------
    DataError
        If the file or a dataset is missing, the shapes fit neither order of the axes, or a number is
        not finite. The message names file, dataset, row and remedy.
    """
    if path is None:
        return _sample(target_scale, return_X_y=return_X_y, rows=rows)
    from sklearn.utils import Bunch

    with open_h5(path, "make it with: python -m rheidae.preprocess") as file:
        remedy = "make the file with: python -m rheidae.preprocess"
        inputs, targets = dataset(file, "input", remedy), dataset(file, "target", remedy)
        reversed_axes = _has_reversed_axes(file, inputs)
        data = _read_table(inputs, (WIDTH,), reversed_axes, target_scale, rows)
        target = _read_table(targets, (fourflux.FLAT,), reversed_axes, target_scale, rows)
        if len(data) != len(target):
            raise DataError(f"{path}: 'input' has {len(data)} rows, 'target' {len(target)}; {remedy}")
        if return_X_y:
            return data, target
        more = {}
        for name in _more(file):
            row, scale = ((6, 4), target_scale) if name.startswith("F_") else ((), 1.0)
            values = _read_table(dataset(file, name, remedy), row, reversed_axes, scale, rows)
            if len(values) != len(data):
                raise DataError(f"{path}: 'input' has {len(data)} rows, {name!r} {len(values)}; {remedy}")
            more[name] = values.astype(np.bool_) if name == "has_crossing" else values
        count = inputs.shape[1 if reversed_axes else 0]
        groups = _read_strings(file, "sim_id", count, rows)
        if present(file, "dirname"):
            dirname = _read_strings(file, "dirname", count, rows)
        else:
            dirname = np.zeros(len(data), dtype=np.str_)
            if rows[0] == 0:  # of several parts, the first
                log.warning("%s: no dataset 'dirname'; each row counts as a simulation of its own: %s", path, remedy)
    return Bunch(
        data=data,
        target=target,
        groups=groups,
        dirname=dirname,
        feature_names=[name for F in fourflux.INPUT for name in fourflux.column_names(F)],
        target_names=[name for F in fourflux.TARGET for name in fourflux.column_names(F)],
        target_scale=target_scale,
        filename=str(path),
        DESCR=_describe(path, groups, target_scale),
        **more,
    )


def row_count(path: str | Path) -> int:
    """Return how many rows `load_dataset` would read."""
    with open_h5(path, "make it with: python -m rheidae.preprocess") as file:
        inputs = dataset(file, "input", "make the file with: python -m rheidae.preprocess")
        return int(inputs.shape[1 if _has_reversed_axes(file, inputs) else 0]) if inputs.ndim == 2 else 1


def box3d_settings(path: str | Path) -> dict[str, Any]:
    """Return ``order``, ``crossing`` and ``mu_fraction`` of a preprocessed file's Box3D, as its configuration has them.

    Empty where the file is gone or does not say.
    """
    try:
        with open_h5(path) as file:
            config = json.loads(file.attrs.get("config", "{}"))
    except (DataError, ValueError):
        return {}
    names = ("order", "crossing", "mu_fraction")
    return {name: config[f"box3d_{name}"] for name in names if f"box3d_{name}" in config}


def _sample(target_scale: float, **options: Any) -> Any:
    """The sample, preprocessed on the way."""
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset(preprocess_sample(folder, schemes=list(STORED)), target_scale, **options)
    if not options["return_X_y"]:
        data.filename = None
        data.DESCR = _describe("the sample of the package", data.groups, target_scale)
    return data


def _more(file: h5py.File) -> list[str]:
    """Names of what is handed out beside inputs and targets: the other schemes, and two numbers per row."""
    schemes = [scheme.dataset for scheme in SCHEMES.values() if scheme.dataset and scheme.dataset not in fourflux.INPUT]
    return [name for name in (*schemes, "growth_rate", "has_crossing") if present(file, name)]


def _has_reversed_axes(file: h5py.File, inputs: h5py.Dataset) -> bool:
    if file.attrs.get("layout") == "row-major":
        return False
    if inputs.ndim == 2 and (inputs.shape[1] == WIDTH) != (inputs.shape[0] == WIDTH):
        return bool(inputs.shape[0] == WIDTH)
    # As many rows as columns: `input` alone leaves both readings.
    initial = dataset(file, "F_init").shape if present(file, "F_init") else ()
    if initial == (WIDTH, 6, 4):
        return False
    if initial == (4, 6, WIDTH):
        return True
    raise DataError(
        f"{file.filename}: dataset 'input' has shape {inputs.shape}; expected (n, 48), or (48, n) as Julia writes it"
    )


Part = tuple[int, int | None]


def _read_table(source: h5py.Dataset, row: tuple[int, ...], reversed_axes: bool, scale: float, part: Part) -> Any:
    """Some rows, each of shape `row`, of a dataset as ``(n, *row)`` float32, scaled, finite."""
    where = f"{source.file.filename}: dataset {source.name.lstrip('/')!r}"
    shape = tuple(source.shape or ())[:: -1 if reversed_axes else 1]
    if shape[1:] != row or source.dtype.kind not in "fiub":
        axes = ["n", *map(str, row)]
        expected = f"({', '.join(reversed(axes) if reversed_axes else axes)})"
        raise DataError(f"{where} has shape {source.shape}, type {source.dtype}; expected real numbers {expected}")
    first, end, _ = slice(*part).indices(shape[0])
    rows = max(end - first, 0)
    require_memory(4 * rows * math.prod(row), where)
    table = np.empty((rows, *row), dtype=np.float32)
    for start in range(first, end, _CHUNK_ROWS):
        stop = min(start + _CHUNK_ROWS, end)
        numbers, here = read(source, start, stop, axis=len(row) if reversed_axes else 0), table[start - first :]
        # The product is formed in double precision, so that 1e40 * 1e-33 fits.
        with np.errstate(over="ignore"):
            here[: stop - start] = (numbers.T if reversed_axes else numbers) * np.float64(scale)
        finite = np.isfinite(here[: stop - start]).reshape(stop - start, -1).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{where}, row {start + int(np.argmin(finite))}: a number is not finite, or is too large for float32 "
                f"at target_scale={scale:g}; preprocess the raw file again, or choose a smaller target_scale"
            )
    return table


def _read_strings(file: h5py.File, name: str, rows: int, part: Part) -> np.ndarray:
    strings = dataset(file, name, "make the file with: python -m rheidae.preprocess")
    if strings.shape != (rows,):
        raise DataError(f"{file.filename}: dataset {name!r} has shape {strings.shape}; expected ({rows},)")
    values = strings[slice(*part)]
    # Names of folders may be any bytes, as in `os.fsdecode`.
    decoded = [v.decode("utf-8", "surrogateescape") if isinstance(v, bytes) else str(v) for v in values.tolist()]
    return np.array(decoded, dtype=np.str_)


def _describe(path: str | Path, groups: np.ndarray, scale: float) -> str:
    counts = "\n".join(
        f"  {name}: {count} rows" for name, count in zip(*np.unique(groups, return_counts=True), strict=True)
    )
    return (
        f"Four-fluxes before and after the fast flavor instability, from {path}\n\n"
        f"data    (n, 48): initial four-flux of six species, then Box3D's answer\n"
        f"target  (n, 24): final four-flux\n"
        f"unit: 1/cm^3 times {scale:g}; columns: species-major, (x, y, z, t), t the number density\n\n{counts}\n"
    )
