"""Exporting, with the comparison that every file has to pass; and what comes back when one is opened."""

from __future__ import annotations

import itertools
import json
import platform
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

import rheidae
from rheidae import fourflux
from rheidae.cells import Cells
from rheidae.exceptions import DataError, ExportError, FourFluxError
from rheidae.export.box3d import Box3DTerms
from rheidae.export.formats import FORMATS, Function, Metadata, format_of, require, require_suffix
from rheidae.export.graph import OUTPUTS, FluxGraph
from rheidae.export.states import made_states, sample_states
from rheidae.fourflux import COMPONENTS, SPECIES
from rheidae.mixing.box3d import ORDERS, box3d_flux
from rheidae.system.h5 import open_h5
from rheidae.system.outputs import Outputs, naming

TOLERANCE = 1e-6
"""Largest difference from the estimator that is let through, relative to the total number density of the row."""

VERSION = 1
"""Of the metadata."""

BLOCK = 1024
"""Rows that a graph is given at a time: their intermediate results, some hundred numbers each, are not far from the
cache, and how many rows there are changes no memory."""


class Exported:
    """An exported model, opened again.

    Attributes
    ----------
    metadata : dict
        What the file says about itself (see ``docs/export.md``).
    inputs : tuple of str
        ``("F_init",)``, or ``("F_init", "F_box")`` where Box3D stayed outside.
    outputs : tuple of str
        ``("F_final",)``, or all of `rheidae.export.graph.OUTPUTS` where the export is a full one.
    """

    def __init__(self, path: Path, function: Function, metadata: Metadata) -> None:
        self._path = path
        self._function = function
        self.metadata = metadata
        self.inputs, self.outputs = _inputs(metadata), _outputs(metadata)

    def predict(self, F_init: ArrayLike, F_box: ArrayLike | None = None, *, invalid: str = "raise") -> Any:
        """Return final four-fluxes.

        Parameters
        ----------
        F_init : array_like, shape (..., 24) or (..., 6, 4)
            Initial four-fluxes, any one unit, usually 1/cm^3.
        F_box : array_like, same shape, optional
            Box3D's answer, where `inputs` names it.
        invalid : {"raise", "pass"}
            What becomes of cells that are not physical: an error that names row and reason, or NaN for these cells
            alone. Vacuum is no error, and stays as it is (see `rheidae.cells`).

        Returns
        -------
        ndarray, same shape
            float64, in the unit of the input.

        Raises
        ------
        FourFluxError
            If a shape is another, an input is missing or superfluous, or a row is not physical.
        ExportError
            If the graph fails, or its answer is none.
        """
        final: Any = self._answer(F_init, F_box, invalid)["F_final"]
        return final

    def predict_all(self, F_init: ArrayLike, *, invalid: str = "raise") -> dict[str, Any]:
        """Return everything that the file gives, by name.

        Parameters
        ----------
        F_init, invalid
            As of `predict`; in 1/cm^3 where the growth rate matters.

        Returns
        -------
        dict
            ``F_final``, of the shape of `F_init`. Of a full export also, of the shape of the cells and the axes given:
            ``growth_rate``, 1/s; ``has_crossing (3)``, bool, of the pairs e-mu, e-tau and mu-tau; ``transition (2, 6,
            6)``, of densities and of fluxes, species out and in (see `rheidae.mixing.transition`); ``std``, of the
            shape of `F_init`, standard deviations of ``F_final``; ``outside``, bool, outside of the states trained on
            (see `FluxRegressor.outside`). NaN, no crossing and not outside where a cell is not physical.

        Raises
        ------
        FourFluxError
            As of `predict`.
        """
        return self._answer(F_init, None, invalid)

    def _answer(self, F_init: ArrayLike, F_box: ArrayLike | None, invalid: str) -> dict[str, Any]:
        given = {"F_init": F_init} | ({} if F_box is None else {"F_box": F_box})
        if tuple(given) != self.inputs:
            raise FourFluxError(f"got {', '.join(given)}; this export takes {', '.join(self.inputs)}")
        cells = Cells(np.asarray(F_init, dtype=np.float64), "F_init", invalid)
        tables = [fourflux.flatten(cells.rows)]
        if F_box is not None:
            box = np.asarray(F_box, dtype=np.float64)
            if box.shape != np.shape(F_init):
                raise FourFluxError(f"F_box has shape {box.shape}, F_init {np.shape(F_init)}; they have to be the same")
            # Beside a cell that is passed over, whatever it is.
            tables.append(np.where(cells.invalid[:, None], 0.0, box.reshape(-1, 24)))
        if len(tables[0]) == 0:
            answer = [np.empty((0, OUTPUTS[name][0])) for name in self.outputs]
        else:
            answer = self._evaluated(tables)
        out = {"F_final": cells.back(answer[0].copy())}
        shapes: dict[str, tuple[int, ...]] = {
            "growth_rate": (), "has_crossing": (3,), "transition": (2, 6, 6), "outside": ()
        }  # fmt: skip
        for name, table in zip(self.outputs[1:], answer[1:], strict=True):
            values = np.where(cells.invalid[:, None], np.nan, table)
            if name == "std":
                out[name] = cells.back(values)
                continue
            if name == "outside":
                values = values * ~cells.vacuum[:, None]
            values = (values > 0) if name in ("has_crossing", "outside") else values
            out[name] = values.reshape(*cells.shape, *shapes[name])
        return out

    def _evaluated(self, tables: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        parts = [
            self._evaluated_at_once([table[start : start + BLOCK] for table in tables])
            for start in range(0, len(tables[0]), BLOCK)
        ]
        return parts[0] if len(parts) == 1 else [np.concatenate(tables) for tables in zip(*parts, strict=True)]

    def _evaluated_at_once(self, tables: list[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        try:
            answer = self._function(*tables)
        except Exception as error:  # each runtime has its own
            raise ExportError(f"{self._path}: cannot be evaluated ({_first_line(error)})") from error
        rows = len(tables[0])
        for name, table in itertools.zip_longest(self.outputs, answer):
            columns = OUTPUTS[name][0] if name is not None else 0
            if table is None or table.shape != (rows, columns) or table.dtype != np.float64:
                what = "nothing" if table is None else f"{table.shape} of type {table.dtype}"
                raise ExportError(
                    f"{self._path}: answers {tables[0].shape} numbers by {what}; it was not written by rheidae.export"
                )
        return answer

    __call__ = predict


def load_exported(path: str | Path, threads: int = 1) -> Exported:
    """Open a file that `export_regressor` wrote, of any format.

    **Of strangers open ONNX files alone.** TorchScript is a program, which may read and write files. Archives of
    ``torch.export`` that hold pickles or more than tensor arithmetic are refused, but torch does not promise that the
    rest is harmless.

    Parameters
    ----------
    path : path
        The file.
    threads : int
        Threads within an operation; 0 leaves the choice to the runtime. Batches of some hundred rows use more than
        one, single cells do not.

    Raises
    ------
    ExportError
        If the file does not exist, cannot be read, was not written by this package, or its name (``.onnx``, ``.pt2``;
        ``.ts``, ``.pt`` or ``.torchscript``) is of another format than its content.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; write it with: python -m rheidae.export")
    try:
        function, metadata = FORMATS[format_of(path)].read(path, threads)
    except ExportError:
        raise
    except Exception as error:  # each runtime has its own
        raise ExportError(f"{path}: cannot be read ({_first_line(error)}); export the model again") from error
    if not isinstance(metadata, dict) or metadata.get("metadata_version") != VERSION or not _inputs(metadata):
        raise ExportError(f"{path}: has no metadata of version {VERSION}; it was not written by rheidae.export")
    return Exported(path, function, metadata)


def _names(metadata: Metadata, key: str, *known: tuple[str, ...]) -> tuple[str, ...]:
    """Names of inputs or outputs, of those that are known; none where the metadata say nothing or others."""
    entries = metadata.get(key)
    names = (
        tuple(entry.get("name") for entry in entries if isinstance(entry, dict)) if isinstance(entries, list) else ()
    )
    return names if names in known else ()


def _inputs(metadata: Metadata) -> tuple[str, ...]:
    return _names(metadata, "inputs", ("F_init",), ("F_init", "F_box"))


def _outputs(metadata: Metadata) -> tuple[str, ...]:
    return _names(metadata, "outputs", ("F_final",), tuple(OUTPUTS)) or ("F_final",)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def export_regressor(
    regressor: Any,
    path: str | Path,
    format: str = "onnx",
    *,
    with_box3d: bool = True,
    full: bool = False,
    box3d_order: int | None = None,
    box3d_crossing: str = "shared",
    mu_fraction: float | None = None,
    about: Metadata | None = None,
    tolerance: float = TOLERANCE,
) -> Metadata:
    """Write a fitted estimator as one graph, after comparing what was written with the estimator.

    Parameters
    ----------
    regressor : FluxRegressor
        A fitted one.
    path : path
        The file; its metadata go beside it under the same name with ``.json`` behind. Both appear together, or
        neither, and what was there is replaced.
    format : {"onnx", "pt2", "torchscript"}
        For onnxruntime, for ``torch.export.load`` and for ``torch.jit.load``. The name has to end in ``.onnx``, in
        ``.pt2``, and in ``.ts``, ``.pt`` or ``.torchscript``.
    with_box3d : bool
        Compute Box3D's answer inside. False: the graph takes it as its second input. `MixingModel` does not use it;
        its graph has one input either way.
    full : bool
        Give also growth rate, crossings, transition matrices, standard deviations and what lies outside of the training
        states (`rheidae.export.graph.OUTPUTS`); of `MixingModel`.
    box3d_order, box3d_crossing, mu_fraction : int or None, str, float or None
        Box3D inside, as in `rheidae.box3d_flux`. Take those that the training data were preprocessed with.
    about : dict, optional
        Put into the metadata: ``run``, ``training_range``.
    tolerance : float
        Largest difference to let through, relative to the row's total number density.

    Returns
    -------
    dict
        The metadata.

    Raises
    ------
    ExportError
        If the network cannot be turned into a graph, a package is missing, a folder has the file's name or the name
        another format's ending, or the file does not reproduce the estimator. No file is left then.
    ValueError
        If `format` is not known, or the order or the fraction is not allowed.
    """
    _require(path, format)
    regressor.check_is_fitted()
    if getattr(regressor, "layout", "four_flux") != "four_flux":
        raise ExportError(f"layout={regressor.layout!r}: only models of four-fluxes can be exported")
    states = np.concatenate([sample_states(), made_states()])
    used: dict[str, Any] = {"order": box3d_order, "crossing": box3d_crossing, "mu_fraction": mu_fraction}
    F_box = fourflux.flatten(box3d_flux(fourflux.unflatten(states), **used))
    used["order"] = ORDERS[box3d_crossing] if box3d_order is None else box3d_order
    expected = regressor.predict(np.concatenate([states, F_box], axis=1))
    inside = Box3DTerms(**used) if with_box3d else None
    graph = FluxGraph(regressor, inside, FORMATS[format].branches, full).eval()
    tables = {"F_init": states, "F_box": F_box}
    about = {**_describe(graph, **_network(regressor, graph, used)), **(about or {})}
    return _write(graph, path, format, [tables[name] for name in graph.inputs], expected, about, tolerance)


def export_scheme(scheme: str, path: str | Path, *, order: int | None = None) -> Metadata:
    """Write an analytic scheme as an ONNX file, after comparing what was written with the package's kernels.

    Parameters
    ----------
    scheme : {"asymptotic", "box3d", "power"}
        As in `rheidae.mix`, with its default parameters.
    path : path
        As for `export_regressor`.
    order : int, optional
        Of the Lebedev rule; by default `rheidae.export.scheme.SCHEME_ORDERS`.

    Returns
    -------
    dict
        The metadata.

    Raises
    ------
    ExportError
        As of `export_regressor`.
    ValueError
        If scheme or order is not known.

    Notes
    -----
    Box3D and the power scheme are those of `rheidae.mix` but for beams, of which power has no nodes here. The
    asymptotic scheme stands on the nodes of the network, on those of the first level of `rheidae.mix` where there are
    beams, and answers NaN where mu and tau differ. How far that is from ``mix(F, "asymptotic")`` stands in
    ``docs/export.md``.
    """
    from rheidae.export.scheme import SCHEME_ORDERS, SchemeGraph, scheme_answer

    if scheme not in SCHEME_ORDERS:
        raise ValueError(f"scheme={scheme!r} is not one of {', '.join(SCHEME_ORDERS)}")
    _require(path, "onnx")
    order = SCHEME_ORDERS[scheme] if order is None else order
    graph = SchemeGraph(scheme, order).eval()
    states = np.concatenate([sample_states(), made_states()])
    expected = fourflux.flatten(scheme_answer(scheme, fourflux.unflatten(states), order))
    about = _describe(graph, scheme={"name": scheme, "lebedev_order": order})
    return _write(graph, path, "onnx", [states], expected, about, TOLERANCE)


def _require(path: str | Path, format: str) -> None:
    """Raise where a file of that name and format could not be written."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    require_suffix(path, format)
    require(*FORMATS[format].packages)
    for name in (path, f"{path}.json"):
        if Path(name).is_dir():
            raise ExportError(f"{name}: is a folder; name a file")


def _write(
    graph: Any,
    path: str | Path,
    format: str,
    given: list[NDArray[np.float64]],
    expected: NDArray[np.float64],
    about: Metadata,
    tolerance: float,
) -> Metadata:
    """Write a graph and its metadata, if what was written answers `given` as `expected`, or NaN as it says it does."""
    if graph.refuses_unlike:
        expected = np.where(unlike_heavy(given[0])[:, None], np.nan, expected)
    made = FORMATS[format].convert(graph)
    metadata = {**about, "format": format}
    with Outputs() as outputs:
        temporary = outputs.path(path)
        # Once to learn how near it comes, once more with that in it, to see that it can be read.
        for few in (None, 3):
            content = FORMATS[format].write(made, metadata)
            with naming(path, len(content)):
                temporary.write_bytes(content)
            reached = _difference(temporary, format, [table[:few] for table in given], expected[:few])
            if not reached <= tolerance:
                raise ExportError(
                    f"{path}: the {format} file differs from {'the scheme' if 'scheme' in about else 'the estimator'} "
                    f"by {reached:.1e} of the total density, more than {tolerance:.1e}; nothing was written. Try "
                    "another format, or leave Box3D outside"
                )
            if "tolerance" in metadata:
                break
            metadata["tolerance"] = {
                "reached": reached,
                "allowed": tolerance,
                "relative_to": "total number density of the row",
                "rows_compared": len(expected),
            }
        outputs.write(f"{path}.json", (json.dumps(metadata, indent=2) + "\n").encode())
    return metadata


def export_run(run: Any, path: str | Path, format: str = "onnx", **options: Any) -> Metadata:
    """Write the model of a run folder; see `export_regressor`.

    Box3D's order, crossing and `mu_fraction` are those of the run's data file where it still lies where it was, else
    the defaults of preprocessing, unless they are given.

    Parameters
    ----------
    run : rheidae.runs.folder.Run
        From `rheidae.runs.folder.load_run`.
    path, format
        As for `export_regressor`.
    **options
        Likewise.

    Returns
    -------
    dict
        The metadata.
    """
    known = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    kept = ("run_id", "data", "data_fingerprint", "seed", "groups", "train_rows", "versions")
    # Where it lies is nobody else's business.
    known["data"] = Path(known["data"]).name
    about = {
        "run": {name: known[name] for name in kept if name in known},
        "training_range": known.get("training_range"),
    }
    settings = _preprocessing(run.config.data.processed_path)
    return export_regressor(run.regressor, path, format, about=about, **(settings | options))


def _preprocessing(path: str) -> dict[str, Any]:
    """Box3D's settings in a preprocessed file; nothing where the file is gone or does not say."""
    try:
        with open_h5(path) as file:
            config = json.loads(file.attrs.get("config", "{}"))
    except (DataError, ValueError):
        return {}
    names = {"box3d_order": "box3d_order", "box3d_crossing": "box3d_crossing", "box3d_mu_fraction": "mu_fraction"}
    return {name: config[key] for key, name in names.items() if key in config}


def _network(regressor: Any, graph: FluxGraph, box3d: dict[str, Any]) -> Metadata:
    module = regressor.module_
    used: Any = "not used"
    if graph.needs_box3d:
        used = {"inside": False} if graph.box3d is None else {"inside": True, **box3d}
    network = {
        "class": type(module).__name__,
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "base_state": "box3d" if graph.adds_to_box3d else "initial",
        **({"lebedev_order": module.order} if hasattr(module, "order") else {}),
    }
    return {"network": network, "box3d": used}


def _describe(graph: Any, **more: Any) -> Metadata:
    tensor = {"shape": ["n", 24], "type": "float64", "axes": "row, 4 * species + component"}
    return {
        "metadata_version": VERSION,
        "what": "final four-fluxes of the fast flavor instability from initial ones",
        "inputs": [{"name": name, **tensor} for name in graph.inputs],
        "outputs": [
            {"name": name, "shape": ["n", OUTPUTS[name][0]], "type": "float64", "axes": OUTPUTS[name][1]}
            for name in graph.outputs
        ],
        "units": "1/cm^3, or any other unit that is common to all numbers of a row; the output has that of the input",
        "species": list(SPECIES),
        "components": list(COMPONENTS),
        "rows": "n is 1 or more; physical, N >= 0 and |F| <= N; a row without neutrinos comes back as it is"
        + ("; one whose mu and tau, or their antineutrinos, differ comes back as NaN" if graph.refuses_unlike else ""),
        **more,
        "versions": {
            "rheidae": rheidae.__version__,
            "python": platform.python_version(),
            **{name: _version(name) for name in ("numpy", "torch", "onnx", "onnxruntime")},
        },
    }


def _version(name: str) -> str | None:
    try:
        return packages.version(name)
    except packages.PackageNotFoundError:
        return None


def unlike_heavy(states: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which rows of ``(n, 24)`` have unlike mu and tau, or unlike antineutrinos of theirs."""
    F = fourflux.unflatten(states) / fourflux.total_density(states)[:, None, None]
    unlike: NDArray[np.bool_] = np.abs(F[:, 1::3] - F[:, 2::3]).max(axis=(1, 2)) > fourflux.ALIKE
    return unlike


def _difference(path: Path, format: str, tables: list[NDArray[np.float64]], expected: NDArray[np.float64]) -> float:
    """Largest difference from the estimator, over the total density, in one batch and in others."""
    function, _ = FORMATS[format].read(path, 1)
    total = fourflux.total_density(tables[0])
    largest = 0.0
    batches = [slice(0, len(expected)), *(slice(k, k + 1) for k in range(0, len(expected), 97))]
    if len(expected) > 12:
        batches.append(slice(5, 12))
    for rows in batches:
        final, *_ = function(*(np.ascontiguousarray(table[rows]) for table in tables))
        if final.shape != expected[rows].shape:
            raise ExportError(f"a batch of {len(expected[rows])} rows gave an answer of shape {final.shape}")
        refused = np.isnan(expected[rows])
        difference = np.where(refused & np.isnan(final), 0.0, np.abs(final - expected[rows]))
        # Not max(), which passes over a NaN.
        largest = float(np.maximum(largest, (difference.max(axis=1) / total[rows]).max()))
    return largest
