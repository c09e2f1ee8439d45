"""Exporting, with the comparison that every file has to pass."""

from __future__ import annotations

import json
import platform
from importlib import metadata as packages
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import rheidae
from rheidae import fourflux
from rheidae.datasets import box3d_settings
from rheidae.exceptions import ExportError
from rheidae.export.box3d import Box3DTerms
from rheidae.export.compiled import digest, headers, require_cpu
from rheidae.export.formats import FORMATS, Metadata, require, require_suffix
from rheidae.export.graph import OUTPUTS, FluxGraph
from rheidae.export.opened import VERSION
from rheidae.export.states import made_states, sample_states
from rheidae.fourflux import COMPONENTS, SPECIES
from rheidae.mixing import asymptotic
from rheidae.mixing.box3d import ORDERS, box3d_flux
from rheidae.system.outputs import Outputs, naming

TOLERANCE = 1e-6
"""Largest difference from the estimator that is let through, relative to the total number density of the row."""


def export_regressor(
    regressor: Any,
    path: str | Path,
    format: str = "onnx",
    *,
    with_box3d: bool = True,
    full: bool = False,
    cpu: str = "native",
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
    format : {"onnx", "object", "pt2", "torchscript"}
        For onnxruntime, for a linker (with a header for C and a module for Fortran beside it), for
        ``torch.export.load`` and for ``torch.jit.load``. The name has to end in ``.onnx``, in ``.o``, in ``.pt2``, and
        in ``.ts``, ``.pt`` or ``.torchscript``.
    with_box3d : bool
        Compute Box3D's answer inside. False: the graph takes it as its second input. `MixingModel` does not use it;
        its graph has one input either way.
    full : bool
        Give also growth rate, crossings, transition matrices, standard deviations and what lies outside of the training
        states (`rheidae.export.graph.OUTPUTS`); of `MixingModel`.
    cpu : {"native", "x86-64-v2", "x86-64-v3", "x86-64-v4"}
        Processor that an object is for: this machine's, or any that has what that level of its family has.
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
        If `format` or `cpu` is not known, or the order or the fraction is not allowed.
    """
    _require(path, format, cpu)
    regressor.check_is_fitted()
    if getattr(regressor, "layout", "four_flux") != "four_flux":
        raise ExportError(f"layout={regressor.layout!r}: only models of four-fluxes can be exported")
    states = np.concatenate([sample_states(), made_states()])
    used: dict[str, Any] = {"order": box3d_order, "crossing": box3d_crossing, "mu_fraction": mu_fraction}
    F_box = fourflux.flatten(box3d_flux(fourflux.unflatten(states), **used))
    used["order"] = ORDERS[box3d_crossing] if box3d_order is None else box3d_order
    expected = regressor.predict(np.concatenate([states, F_box], axis=1))
    inside = Box3DTerms(**used) if with_box3d else None
    graph = FluxGraph(regressor, inside, full).eval()
    tables = {"F_init": states, "F_box": F_box}
    about = {**_describe(graph, **_network(regressor, graph, used)), **(about or {})}
    return _write(graph, path, format, [tables[name] for name in graph.inputs], expected, about, tolerance, cpu)


def export_scheme(
    scheme: str, path: str | Path, format: str = "onnx", *, order: int | None = None, cpu: str = "native"
) -> Metadata:
    """Write an analytic scheme as one file, after comparing what was written with the package's kernels.

    Parameters
    ----------
    scheme : {"asymptotic", "box3d", "power"}
        As in `rheidae.mix`, with its default parameters.
    path : path
        As for `export_regressor`.
    format : {"onnx", "object"}
        Likewise. Machine code is there of the asymptotic scheme alone, and is all of it.
    order : int, optional
        Of the Lebedev rule; by default `rheidae.export.scheme.SCHEME_ORDERS`, of machine code that of `rheidae.mix`.
    cpu : str
        As for `export_regressor`.

    Returns
    -------
    dict
        The metadata.

    Raises
    ------
    ExportError
        As of `export_regressor`.
    ValueError
        If scheme, format, order or cpu is not known.

    Notes
    -----
    As ONNX, Box3D and the power scheme are those of `rheidae.mix` but for beams, of which power has no nodes here. The
    asymptotic scheme is its first level, on more nodes. How far that is from ``mix(F, "asymptotic")`` stands in
    ``docs/export.md``.
    """
    from rheidae.export.scheme import SCHEME_ORDERS, SchemeCode, SchemeGraph, scheme_answer

    if scheme not in SCHEME_ORDERS:
        raise ValueError(f"scheme={scheme!r} is not one of {', '.join(SCHEME_ORDERS)}")
    if format not in ("onnx", "object"):
        raise ValueError(f"format={format!r} of a scheme is not one of onnx, object")
    _require(path, format, cpu)
    states = np.concatenate([sample_states(), made_states()])
    graph: Any
    if format == "object":
        if scheme != "asymptotic":
            raise ExportError(f"machine code is there of the asymptotic scheme, not of {scheme}; take the format onnx")
        order = asymptotic.ORDER if order is None else order
        graph, expected = SchemeCode(order), asymptotic.asymptotic_flux(fourflux.unflatten(states), order=order)
    else:
        order = SCHEME_ORDERS[scheme] if order is None else order
        graph = SchemeGraph(scheme, order).eval()
        expected = scheme_answer(scheme, fourflux.unflatten(states), order)
    about = _describe(graph, scheme={"name": scheme, "lebedev_order": order})
    return _write(graph, path, format, [states], fourflux.flatten(expected), about, TOLERANCE, cpu)


def _require(path: str | Path, format: str, cpu: str) -> None:
    """Raise where a file of that name and format could not be written."""
    if format not in FORMATS:
        raise ValueError(f"format={format!r} is not one of {', '.join(FORMATS)}")
    if format == "object":
        require_cpu(cpu)
    elif cpu != "native":
        raise ValueError(f"cpu={cpu!r} is for the format object; others run on any")
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
    cpu: str,
) -> Metadata:
    """Write a graph and its metadata, if what was written answers `given` as `expected`."""
    made = FORMATS[format].convert(graph)
    metadata = {**about, "format": format, **({"cpu": cpu} if format == "object" else {})}
    with Outputs() as outputs:
        temporary = outputs.path(path)
        _store(made, metadata, temporary, path)
        reached = _difference(temporary, format, given, expected)
        if not reached <= tolerance:
            raise ExportError(
                f"{path}: the {format} file differs from {'the scheme' if 'scheme' in about else 'the estimator'} "
                f"by {reached:.1e} of the total density, more than {tolerance:.1e}; nothing was written. Try "
                "another format, or leave Box3D outside"
            )
        metadata["tolerance"] = {
            "reached": reached,
            "allowed": tolerance,
            "relative_to": "total number density of the row",
            "rows_compared": len(expected),
        }
        # The same once more, with how near it comes.
        _store(made, metadata, temporary, path)
        beside = metadata
        if format == "object":
            beside = metadata | digest(temporary.read_bytes())
            for name, content in headers().items():
                outputs.write(Path(path).with_name(name), content)
        outputs.write(f"{path}.json", (json.dumps(beside, indent=2) + "\n").encode())
    return metadata


def _store(made: Any, metadata: Metadata, temporary: Path, path: str | Path) -> None:
    content = FORMATS[metadata["format"]].write(made, metadata)
    with naming(path, len(content)):
        temporary.write_bytes(content)


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
    settings = box3d_settings(run.config.data.processed_path)
    settings = {name if name == "mu_fraction" else f"box3d_{name}": value for name, value in settings.items()}
    return export_regressor(run.regressor, path, format, about=about, **(settings | options))


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
        "rows": "n is 1 or more; physical, N >= 0 and |F| <= N; a row without neutrinos comes back as it is",
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
        difference = np.abs(final - expected[rows])
        # Not max(), which passes over a NaN.
        largest = float(np.maximum(largest, (difference.max(axis=1) / total[rows]).max()))
    return largest
