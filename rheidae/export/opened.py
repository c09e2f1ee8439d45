"""An exported model, opened again."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rheidae import fourflux
from rheidae.cells import Cells
from rheidae.exceptions import ExportError, FourFluxError
from rheidae.export.compiled import require_whole
from rheidae.export.formats import FORMATS, Function, Metadata, format_of
from rheidae.export.graph import OUTPUTS

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
        ndarray, or data frame or DataArray where one came in, same shape
            float64, in the unit of the input.

        Raises
        ------
        FourFluxError
            If a shape is another, an input is missing or superfluous, a row is not physical, or its answer is NaN.
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
        cells = Cells(F_init, "F_init", invalid)
        tables = [fourflux.flatten(cells.rows).astype(np.float64, copy=False)]
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
            if invalid == "raise":
                self._require_answers(answer[0])
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
            out[name] = values.reshape((*cells.shape, *shapes[name]))
        return out

    def _require_answers(self, final: NDArray[np.float64]) -> None:
        """Raise where physical rows come back as NaN."""
        rows = np.flatnonzero(np.isnan(final).any(axis=1))
        if rows.size:
            others = f", as for {rows.size - 1} more rows" if rows.size > 1 else ""
            raise FourFluxError(
                f"{self._path} answers NaN for row {rows[0]}{others}: export the model again, or let them through with "
                "invalid='pass'"
            )

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

    **Of strangers open ONNX files alone.** An object is machine code, loaded into this process. TorchScript is a
    program, which may read and write files. Archives of ``torch.export`` that hold pickles or more than tensor
    arithmetic are refused, but torch does not promise that the rest is harmless.

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
        If the file does not exist, cannot be read, was not written by this package, or its name (``.onnx``, ``.o``,
        ``.pt2``; ``.ts``, ``.pt`` or ``.torchscript``) is of another format than its content.
    """
    path = Path(path)
    if not path.is_file():
        raise ExportError(f"{path}: no such file; write it with: python -m rheidae.export")
    try:
        if (format := format_of(path)) == "object":
            require_whole(path)
        function, metadata = FORMATS[format].read(path, threads)
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
