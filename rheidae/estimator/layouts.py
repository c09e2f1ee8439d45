"""What the columns of X and y are, and so what a network's output means."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_array
from torch import Tensor, nn

from rheidae import fourflux
from rheidae.cells import Cells, require_order
from rheidae.estimator.losses import FourFluxLoss
from rheidae.estimator.networks import MixingModel, MultilayerPerceptron
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import FourFluxError
from rheidae.fourflux import INPUT, TARGET
from rheidae.mixing.box3d import box3d_flux
from rheidae.mixing.physical import keep_physical

Table = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """How rows of a table become what the network sees, and what the network says becomes an answer.

    The network works on float32 rows of order one, the *scaled* ones; X, y and the answer are in the user's unit. This
    base is ``layout="generic"``: the scaled rows are the user's, and the network's output is the answer; of the
    estimator's two parameters it has no use.
    """

    predict_residual: bool = True
    average_heavy: bool = True

    name: ClassVar[str] = "generic"
    n_features: ClassVar[int | None] = None
    n_outputs: ClassVar[int | None] = None
    module: ClassVar[type[nn.Module]] = MultilayerPerceptron
    criterion: ClassVar[type[nn.Module]] = nn.MSELoss

    def rows(self, X: Any, needs_box3d: bool = True, computes: bool = True) -> Any:
        """Return X with the columns that a table of this layout has, if they can be told."""
        return X

    def targets(self, y: Any) -> Any:
        """Return y with one row per row of X."""
        return y

    def cells(self, X: Any, invalid: str) -> tuple[Any, Callable[[Table], Table]]:
        """Return rows that can be predicted, and what puts right the answers ``(n, outputs)`` to those that cannot."""
        return X, lambda answer: answer

    def answer_shape(self, X: Any) -> tuple[int, ...]:
        """Return the shape of the answer to X, -1 for what is not known here."""
        return (-1, self.n_outputs or 1)

    def blocks(self, X: Any, rows: int) -> list[slice]:
        """Return parts of the first axis of X with about so many rows each; none where it has no such axis."""
        shape = tuple(getattr(X, "shape", ()))
        return _parts(shape[0], rows) if len(shape) == 2 else []

    def table(self, values: Any, name: str, least_rows: int = 0) -> Table:
        """Return `values` as a finite float32 or float64 table.

        Raises `FourFluxError` if the shape is another, or a number is not finite; `ValueError` or `TypeError` of
        `sklearn.utils.check_array` if they are sparse, complex, empty and the like.
        """
        return _finite(as_numbers(values, name, least_rows), name)

    def tables(self, X: Any, y: Any) -> tuple[Table, Table]:
        """Return both as tables of one length, not empty."""
        if y is None:
            raise ValueError("FluxRegressor requires y to be passed, but the target y is None")
        tables = self.table(X, "X", 1), self.table(y, "y")
        if len(tables[0]) != len(tables[1]):
            raise FourFluxError(f"X has {len(tables[0])} rows, y has {len(tables[1])}; both need one row per sample")
        self.compare(*tables)
        return tables

    def compare(self, X: Table, y: Table) -> None:
        """Raise where X and y cannot belong together."""

    def scaled(self, X: Table, y: Table | None, dtype: Any = np.float32) -> tuple[Table, Table | None]:
        """Return the network's inputs, of type `dtype` if it takes doubles, and targets, C-contiguous float32."""
        return tuple(None if table is None else _single(table, name) for table, name in ((X, "X"), (y, "y")))  # type: ignore[return-value]

    def final(self, x: Tensor, output: Tensor, module: nn.Module) -> Tensor:
        """Return the scaled answer."""
        return output

    def answer(self, X: Table, output: Table, module: nn.Module) -> Table:
        """Return the answer in the user's unit and float type; float64 where scikit-learn's metrics need it."""
        return _like(X, output)

    def reference(self, x: Tensor) -> Tensor | None:
        """Return the scaled answer to compare with (Box3D's), if there is one."""
        return None

    def error(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return the mean distance of scaled answers and targets."""
        return torch.linalg.vector_norm(y_pred - y, dim=1).mean()

    def require_std(self) -> None:
        """Raise where this layout has no standard deviations."""
        raise ValueError(f"layout={self.name!r} has no standard deviations; layout='four_flux' has")

    def error_scale(self, X: Table, y: Table, answer: Table, module: nn.Module) -> ErrorScale | None:
        """Learn how far off answers are, if that can be told."""
        return None

    def judge(self, scale: ErrorScale, X: Table, answer: Table, module: nn.Module) -> tuple[Table, NDArray[np.bool_]]:
        """Return the standard deviation of each number of the answer, and what `outside` does."""
        raise NotImplementedError

    def outside(self, scale: ErrorScale, X: Table) -> NDArray[np.bool_]:
        """Return which rows lie outside of those that were trained on."""
        raise NotImplementedError


@dataclass(frozen=True)
class FourFlux(Layout):
    """``layout="four_flux"``: X is initial states and Box3D's answer, y the final states, flat and in one unit.

    Scaled rows are in units of the row's total number density; the network's output is a correction to a base state.
    """

    name = "four_flux"
    n_features = INPUT.width
    n_outputs = TARGET.width
    module = MixingModel
    criterion = FourFluxLoss

    def rows(self, X: Any, needs_box3d: bool = True, computes: bool = True) -> Any:
        """Return initial states of any shape with Box3D's answer: as they are where they have it, else computed.

        Where the network has no use for it, its numbers may be missing; with `computes` false the initial state
        stands in for it then.
        """
        if not hasattr(X, "shape"):
            X = np.asarray(X)
        shape = tuple(X.shape)
        grid = len(shape) >= 2 and shape[-2:] == (6, 4)
        flat = shape[-1:] == (fourflux.FLAT,)
        columns = _FEATURES[: fourflux.FLAT if flat else None]
        require_order(X, "X", *((fourflux.SPECIES, fourflux.COMPONENTS) if grid else (columns,)))
        if not grid and not flat:
            return X if needs_box3d or len(shape) != 2 or shape[1] != INPUT.width else _filled(X)
        if isinstance(X, Tensor):
            X = as_array(X)
        numbers = as_array(X)
        init = as_numbers(numbers.reshape(-1, fourflux.FLAT), "X")
        # A row that is not physical has no answer: whoever asks for one is told by its own numbers.
        box = box3d_flux(init, threads=1, invalid="pass") if computes else init
        box = np.where(np.isfinite(box), box, init)
        if hasattr(X, "columns"):
            names = [*X.columns, *fourflux.column_names("F_box")]
            return type(X)(np.concatenate([init, box], axis=1), index=X.index, columns=names)
        return np.concatenate([init, box], axis=1)

    def targets(self, y: Any) -> Any:
        """Return final states of any shape as rows."""
        y = np.asarray(y) if isinstance(y, list | tuple) else y
        require_order(y, "y", _FEATURES[: fourflux.FLAT])
        shape = tuple(getattr(y, "shape", ()))
        grid = shape[-2:] == (6, 4) or (len(shape) > 2 and shape[-1] == TARGET.width)
        return y.reshape(-1, TARGET.width) if grid else y

    def cells(self, X: Any, invalid: str) -> tuple[Any, Callable[[Table], Table]]:
        """Put a state of its own in the place of vacuum, which comes back as it is, and of what is not physical."""
        if tuple(getattr(X, "shape", ()))[1:] != (INPUT.width,):
            return X, lambda answer: answer  # `table` tells what is wrong with it
        numbers = as_numbers(X, "X")
        cells = Cells(numbers[:, INPUT["F_init"]], "X", invalid)
        vacuum, bad = cells.vacuum, cells.invalid
        others = vacuum | bad
        if not others.any():
            return numbers, lambda answer: answer
        numbers = numbers.copy()
        numbers[others] = _ISOTROPIC

        def back(answer: Table) -> Table:
            answer[vacuum], answer[bad] = 0.0, np.nan
            return answer

        return numbers, back

    def answer_shape(self, X: Any) -> tuple[int, ...]:
        """Return that of initial states; of a table with Box3D's answer, half as wide."""
        shape = tuple(X.shape) if hasattr(X, "shape") else np.shape(X)
        return (shape[0], TARGET.width) if len(shape) == 2 and shape[1] == INPUT.width else shape

    def blocks(self, X: Any, rows: int) -> list[slice]:
        """As in the base; an entry of a grid's first axis may hold many rows."""
        shape = tuple(getattr(X, "shape", ()))
        grid = shape[-2:] == (6, 4) or (len(shape) > 2 and shape[-1] == fourflux.FLAT)
        if not grid:
            return super().blocks(X, rows)
        return _parts(shape[0], max(1, rows * fourflux.FLAT // max(1, math.prod(shape[1:]))))

    def compare(self, X: Table, y: Table) -> None:
        """Raise where the totals of a row are in other units: flavors change, and no neutrino is lost."""
        before, after = _total(X)[:, 0], fourflux.total_density(TARGET.part(y, "F_true"))
        ratio = float(np.median(after / before)) if len(before) else 1.0
        if not 1 / _TOTALS <= ratio <= _TOTALS:
            raise FourFluxError(
                f"y: the total number density is {ratio:.3g} times that of X (median of all rows), but conversion "
                "keeps it; give both in one unit"
            )

    def table(self, values: Any, name: str, least_rows: int = 0) -> Table:
        """As in the base, of `INPUT` (X) or `TARGET` (y), with a positive total density in every row of X."""
        columns = (INPUT if name == "X" else TARGET).width
        # What has no shape is a list, or nothing that could be a table.
        shape = tuple(values.shape) if hasattr(values, "shape") else np.shape(values)
        if len(shape) != 2 or shape[1] != columns:
            alone = ", or initial states alone: (..., 24) or (..., 6, 4)" if name == "X" else ""
            raise FourFluxError(f"{name} has shape {shape}; expected (n, {columns}){alone}")
        table = super().table(values, name, least_rows)
        if name == "X":
            total = _total(table)[:, 0]
            if not (total > 0).all():
                row = int(np.argmin(total > 0))
                raise FourFluxError(f"X, row {row}: the total number density is {total[row]:g}; it must be positive")
        return table

    def scaled(self, X: Table, y: Table | None, dtype: Any = np.float32) -> tuple[Table, Table | None]:
        """Divide by the total density; average targets over mu and tau where nothing tells them apart."""
        total = _total(X)
        x = np.ascontiguousarray(X / total, dtype=dtype)
        if y is None:
            return x, None
        target = y / total
        if self.average_heavy:
            final = TARGET.part(target, "F_true")
            target[:, TARGET["F_true"]] = fourflux.flatten(fourflux.average_heavy(final, INPUT.part(X, "F_init")))
        return x, np.ascontiguousarray(target, dtype=np.float32)

    def base(self, module: nn.Module) -> str:
        """Name of the input that the output is added to: as the module says, or as `predict_residual` does."""
        default = "box3d" if self.predict_residual else "initial"
        return {"initial": "F_init", "box3d": "F_box"}[getattr(module, "adds_to", default)]

    def final(self, x: Tensor, output: Tensor, module: nn.Module) -> Tensor:
        """Add the correction to the base state."""
        return x[:, INPUT[self.base(module)]] + output

    def answer(self, X: Table, output: Table, module: nn.Module) -> Table:
        """Add in float64, and shorten the change of a row that would leave the physical states."""
        final = X[:, INPUT[self.base(module)]] + _total(X) * output
        init = np.ascontiguousarray(INPUT.part(X, "F_init"), dtype=np.float64)
        keep_physical(init, TARGET.part(final, "F_true"))
        return _like(X, final)

    def reference(self, x: Tensor) -> Tensor | None:
        """Return Box3D's answer."""
        return x[:, INPUT["F_box"]]

    def error(self, y_pred: Tensor, y: Tensor) -> Tensor:
        """Return the mean four-flux distance over rows and species."""
        return torch.linalg.vector_norm(TARGET.part(y_pred - y, "F_true"), dim=2).mean()

    def require_std(self) -> None:
        """Nothing to raise: there are some."""

    def error_scale(self, X: Table, y: Table, answer: Table, module: nn.Module) -> ErrorScale | None:
        """Learn from the errors of `answer`, and of what the network falls back to: Box3D, if it does not say."""
        init, true, predicted = (self._states(X, table) for table in (X[:, INPUT["F_init"]], y, answer))
        return ErrorScale.fit(init, predicted, true, self._far(X, module))

    def judge(self, scale: ErrorScale, X: Table, answer: Table, module: nn.Module) -> tuple[Table, NDArray[np.bool_]]:
        """Return the standard deviation of each number of the answer, in its unit, and what `outside` does."""
        init, predicted = (self._states(X, table) for table in (X[:, INPUT["F_init"]], answer))
        std, outside = scale.judge(init, predicted, self._far(X, module))
        return (fourflux.flatten(std) * _total(X)).astype(answer.dtype, copy=False), outside

    def outside(self, scale: ErrorScale, X: Table) -> NDArray[np.bool_]:
        """Return which rows lie outside of those that were trained on."""
        return scale.outside(self._states(X, X[:, INPUT["F_init"]]))

    def _far(self, X: Table, module: nn.Module) -> Table | None:
        """The answer that counts far from the rows trained on: Box3D's, or None for the asymptotic scheme's."""
        return None if getattr(module, "falls_back_to_scheme", False) else self._states(X, X[:, INPUT["F_box"]])

    @staticmethod
    def _states(X: Table, table: Table) -> Table:
        """``(n, 6, 4)`` states of a flat table, float64, in units of the total density."""
        return np.ascontiguousarray(fourflux.unflatten(table / _total(X)))


def _total(X: Table) -> Table:
    """Total number densities ``(n, 1)`` of the initial states, float64."""
    return fourflux.total_density(X[:, INPUT["F_init"]])[:, None]


LAYOUTS: dict[str, type[Layout]] = {"four_flux": FourFlux, "generic": Layout}
"""Layouts by the estimator's short names."""


# Totals of X and y farther apart than this factor are in other units; what is off by less is for preprocessing to see.
_TOTALS = 10.0

# The first 24, with another prefix, are those of final states too; see `rheidae.cells.require_order`.
_FEATURES = [name for F in INPUT for name in fourflux.column_names(F)]

_SEEN = (np.dtype(np.float32), np.dtype(np.float64))

_ISOTROPIC = np.tile([0.0, 0.0, 0.0, 1.0], 12)
"""A state in which nothing happens, and Box3D's answer."""


def _filled(X: Any) -> Any:
    """X with Box3D's answer computed in rows where it is not finite."""
    numbers = as_numbers(X, "X")
    finite = np.isfinite(numbers[:, INPUT["F_box"]])
    if finite.all():
        return X
    filled, rows = numbers.copy(), ~finite.all(axis=1)
    init = np.ascontiguousarray(numbers[rows][:, INPUT["F_init"]])
    box = box3d_flux(init, threads=1, invalid="pass")
    filled[rows, INPUT["F_box"]] = np.where(np.isfinite(box), box, init)
    return type(X)(filled, index=X.index, columns=X.columns) if hasattr(X, "columns") else filled


def _parts(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def as_array(values: Any) -> Any:
    """Return `values` as an array, also if they are a tensor with a graph or on another device; NaN where masked."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else fourflux.unmasked(values)


def as_numbers(values: Any, name: str, least_rows: int = 0) -> Table:
    """Return a table of real numbers, float32 if it was, else float64; NaN passes, and y may be one column ``(n,)``."""
    if type(values) is np.ndarray and values.ndim == 2 and values.dtype in _SEEN and values.size and not least_rows:
        return values  # scikit-learn would find nothing to do, slowly
    numbers = check_array(
        as_array(values) if isinstance(values, Tensor | np.ma.MaskedArray) else values,
        dtype=[np.float64, np.float32],
        ensure_all_finite=False,
        ensure_2d=name != "y",
        ensure_min_samples=least_rows,
        input_name=name,
        estimator="FluxRegressor",
    )
    return numbers.reshape(-1, 1) if numbers.ndim == 1 else numbers


def _like(X: Table, answer: Table) -> Table:
    """The answer in the type of X, unless float32 could not hold its squares: scikit-learn's metrics form them."""
    largest = np.abs(answer).max(initial=0.0)
    return answer.astype(X.dtype if largest < _SQUARABLE else np.float64, copy=False)


# Sums of as many squares as there are rows have to fit too.
_SQUARABLE = 1e15


def _finite(table: Table, name: str) -> Table:
    if not np.isfinite(table).all():
        finite = np.isfinite(table).all(axis=1)
        raise FourFluxError(
            f"{name}, row {int(np.argmin(finite))}: a number is not finite (NaN or infinity); remove or mend the row"
        )
    return table


def _single(table: Table, name: str) -> Table:
    with np.errstate(over="ignore"):
        single = np.require(table, np.float32, ["C", "W"])
    finite = np.isfinite(single).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise FourFluxError(
            f"{name}, row {row}: {np.abs(table[row]).max():g} is too large for single precision; scale the columns, "
            "with sklearn.preprocessing.StandardScaler for example"
        )
    return single
