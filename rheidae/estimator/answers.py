"""Answers for rows: predictions, their standard deviations, scores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score
from sklearn.utils.validation import validate_data

from rheidae.cells import labelled
from rheidae.estimator.batches import rows_of
from rheidae.estimator.net import VALIDATION_ROWS, FluxNet
from rheidae.estimator.uncertainty import ErrorScale
from rheidae.exceptions import FourFluxError, RunError
from rheidae.system.threads import limited


class Answering(FluxNet):
    """A net that answers for tables of rows, block by block; see `rheidae.estimator.regressor.FluxRegressor`."""

    error_scale_: ErrorScale | None = None
    flat_target_: bool = False
    n_outputs_: int

    def _known(self, X: Any, reset: bool, read: Callable[[], Any]) -> Any:
        """Call `read`, and learn (`reset`) or compare names and number of X's columns: first, if it has a shape."""
        named = reset or hasattr(self, "feature_names_in_")
        if type(X) is np.ndarray and not named and X.shape[1:] == (getattr(self, "n_features_in_", None),):
            return read()  # scikit-learn would find nothing, in the time of a row's prediction
        has_shape = getattr(X, "ndim", None) == 2
        if has_shape:
            validate_data(self, X, reset=reset, skip_check_array=True)
        result = read()
        if not has_shape:
            validate_data(self, X, reset=reset, skip_check_array=True)
        return result

    @property
    def _needs_box3d(self) -> bool:
        """Whether the network, made or to be made, looks at Box3D's answer."""
        module = getattr(self, "module_", None) or self.module or self._layout.module
        return bool(getattr(module, "needs_box3d", True))

    def predict(self, X: Any, return_std: bool = False, invalid: str = "raise") -> Any:
        """Return final four-fluxes.

        Parameters
        ----------
        X : array_like, shape (n, 48), (..., 24) or (..., 6, 4)
            Initial four-fluxes and Box3D's answer, one common unit; or initial four-fluxes alone: where the network
            needs Box3D's answer, it is computed, by the defaults of `rheidae.box3d_flux`. What the network does not
            need may be NaN.
        return_std : bool
            Whether to return standard deviations too: 90 % of the errors are expected within 1.64 of them (see
            `calibrate`).
        invalid : {"raise", "pass"}
            What becomes of cells that are not physical: an error that names row and reason, or NaN for these cells
            alone. Vacuum is no error, and stays as it is (see `rheidae.cells`).

        Returns
        -------
        F_final : ndarray, shape (n, 24), or that of initial four-fluxes alone, with their labels where they have some
            In the unit of `X` and its float type, but float64 where float32 could not hold the squares (numbers in
            1/cm^3), which scikit-learn's metrics form; never the residual. The correction is added to the base
            state in float64, so that a zero correction returns the base state bit for bit. Where a four-flux would
            leave the physical ones, ``N >= 0`` and ``|F| <= N``, the row's whole change from its initial state is
            shortened until none does; conservation laws hold as before.
        std : as `F_final`
            With `return_std` only, in the same unit.

        Raises
        ------
        FourFluxError
            If a shape is another, a number is not finite, or a row is not physical.
        RunError
            If the network's output is not finite.
        """
        answers = self._answers(X, return_std, invalid)
        return answers[:2] if return_std else answers[0]

    def predict_all(self, X: Any, invalid: str = "raise") -> dict[str, Any]:
        """Return what `predict` and `outside` do, at the cost of the former: ``F_final``, ``std`` and ``outside``.

        Raises
        ------
        FourFluxError, RunError
            As of `predict`.
        """
        return dict(zip(("F_final", "std", "outside"), self._answers(X, True, invalid), strict=True))

    def _answers(self, X: Any, return_std: bool, invalid: str) -> tuple[Any, ...]:
        """Final states; with `return_std` also their standard deviations, and what is outside."""
        if not self.initialized_:
            self.check_is_fitted()
        if isinstance(X, torch.utils.data.Dataset):
            X = rows_of(X)[0]
        parts = self._layout.blocks(X, self._block)
        if len(parts) < 2:
            found = self._predicted(X, return_std, invalid)
        else:
            found = self._put_together(X, parts, return_std, invalid)
        if found[0].shape != getattr(X, "shape", None):
            return found
        return (*(labelled(table, X) for table in found[:2]), *found[2:])

    @property
    def _block(self) -> int:
        """Rows that are predicted at a time; how many there are changes neither an answer nor the memory needed."""
        return int(getattr(self, "iterator_valid__batch_size", VALIDATION_ROWS))

    def _put_together(self, X: Any, parts: list[slice], return_std: bool, invalid: str) -> tuple[Any, ...]:
        """Predict part by part along the first axis of X."""
        answers: list[Any] = []
        for part in parts:
            try:
                found = self._predicted(X[part], return_std, invalid)
            except (FourFluxError, RunError):
                if part.start:
                    self._predicted(X[: part.stop], return_std, invalid)  # the same, with the number that the row has
                raise
            for k, table in enumerate(found):
                if part.start == 0:
                    answers.append(np.empty((len(X), *table.shape[1:]), table.dtype))
                elif table.dtype != answers[k].dtype and table.dtype == np.float64:
                    so_far, answers[k] = answers[k][: part.start], np.empty(answers[k].shape)
                    answers[k][: part.start] = so_far
                answers[k][part] = table
        return tuple(answers)

    def _predicted(self, X: Any, return_std: bool, invalid: str) -> tuple[Any, ...]:
        """As `_answers`, of a block."""
        layout = self._layout
        shape = layout.answer_shape(X)
        rows = self._rows(X, self._needs_box3d)

        def read() -> tuple[Any, Callable[[Any], Any]]:
            physical, back = layout.cells(rows, invalid)
            return layout.table(physical, "X"), back

        table, back = self._known(rows, False, read)
        if not return_std:
            answer = self._answer(table)
            if layout.name == "generic":
                return (answer[:, 0] if self.flat_target_ else answer,)
            return (back(answer).reshape(shape),)
        scale = self._calibrated()
        answer = self._answer(table)
        std, outside = layout.judge(scale, table, answer, self.module_)
        return back(answer).reshape(shape), back(std).reshape(shape), _of_cells(outside, back, shape)

    def _rows(self, X: Any, computes: bool = True) -> Any:
        """Rows as the layout has them; names that it made are none to compare where X had none in training."""
        rows = self._layout.rows(X, self._needs_box3d, computes)
        made = rows is not X and hasattr(rows, "columns")
        return np.asarray(rows) if made and not hasattr(self, "feature_names_in_") else rows

    def _calibrated(self) -> ErrorScale:
        self._layout.require_std()
        if self.error_scale_ is None:
            raise NotFittedError("no standard deviations yet; call calibrate(X, y) with rows whose answer is known")
        return self.error_scale_

    def outside(self, X: Any, invalid: str = "raise") -> Any:
        """Whether states lie outside of those that the model was trained on.

        Parameters
        ----------
        X, invalid
            As of `predict`.

        Returns
        -------
        ndarray of bool, shape (n,), or that of the cells of X
            True where the Mahalanobis distance from the rows that `calibrate` saw is larger than that of 95 % of these,
            by densities over the total, lengths of fluxes and of their differences, and how unlike mu and tau are. So
            one in 20 of such rows is outside, too. It says nothing of the error: a state without a crossing stays as it
            is wherever it lies. False in vacuum, and where a cell is not physical.

        Raises
        ------
        FourFluxError
            As of `predict`.
        """
        self.check_is_fitted()
        layout = self._layout
        scale = self._calibrated()
        shape = layout.answer_shape(X)
        rows = layout.rows(X, needs_box3d=False, computes=False)
        physical, back = layout.cells(rows, invalid)
        table = layout.table(physical, "X")
        return _of_cells(layout.outside(scale, table), back, shape)

    def _answer(self, table: Any, first: int = 0) -> Any:
        """Answers ``(n, outputs)`` for rows that are known to be good; messages count them from `first` on."""
        if not len(table):
            return np.empty((0, self._layout.n_outputs or self.n_outputs_), table.dtype)
        device = torch.device(self._device).type
        doubles = getattr(self.module_, "takes_doubles", False) and device != "mps"
        x, _ = self._layout.scaled(table, None, np.float64 if doubles else np.float32)
        if self.module_.training:
            self._set_training(False)
        if device == "cpu" and getattr(self.module_, "has_kernel", False):
            output = self.module_.answer(x)
        else:
            with limited(self.threads), torch.no_grad():
                blocks = torch.from_numpy(x).split(self._block)
                parts = [self.module_(rows.to(self._device)).cpu().numpy() for rows in blocks]
            output = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if not np.isfinite(output).all():
            finite = np.isfinite(output).all(axis=1)
            raise RunError(
                f"X, row {first + int(np.argmin(finite))}: the network's output is not finite (NaN or infinity); its "
                "weights are damaged or have grown without bound: train anew, with a smaller learning rate"
            )
        return self._layout.answer(table, output, self.module_)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Coefficient of determination R2, mean over columns, in float64: 1/cm^3 squared does not fit float32.

        Parameters
        ----------
        X, y : array_like
            As for `fit`.
        sample_weight : array_like, shape (n,), optional
            Weights of the rows.

        Returns
        -------
        float
            1 is perfect, 0 is the mean of `y`.

        Notes
        -----
        R2 hides how good a model is: most of it is how the rows differ from each other, which `X` says already, so that
        Box3D alone has more than 0.95 on the sample. How much nearer than Box3D a model is, say the scorers of
        `rheidae.scoring.metrics`, such as ``FluxScorer("box3d_skill_score")``.
        """
        self.check_is_fitted()
        X, y = self._rows(X), self._layout.targets(y)
        table, target = self._known(X, False, lambda: self._layout.tables(X, y))
        count = len(table)
        weight = np.broadcast_to(1.0, count) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
        if count < 2 or weight.shape != (count,):
            return float(r2_score(target, self._answer(table), sample_weight=sample_weight))  # says what is wrong
        parts = [slice(start, start + self._block) for start in range(0, count, self._block)]

        def total(values: Callable[[slice], Any]) -> Any:
            return sum(weight[part] @ values(part) for part in parts)

        mean = total(lambda part: target[part].astype(np.float64)) / weight.sum()
        left = total(lambda part: np.square(target[part] - np.float64(self._answer(table[part], part.start))))
        spread = total(lambda part: np.square(target[part] - mean))
        # Of a column that does not vary, as scikit-learn has it.
        return float(np.where(spread > 0, 1 - left / np.where(spread > 0, spread, 1.0), left == 0).mean())

    def calibrate(self, X: Any, y: Any) -> Answering:
        """Learn how far off predictions are, for ``predict(X, return_std=True)``.

        `fit` does so by itself, on the validation rows if there are at least 50, else on the training rows. The
        errors of `MixingModel` there are hardly smaller than on rows it has not seen; those of a larger network are,
        and want rows of their own.

        Parameters
        ----------
        X : array_like, shape (n, 48)
            Inputs.
        y : array_like, shape (n, 24)
            Simulated final four-fluxes.

        Returns
        -------
        Answering
            Itself.
        """
        self.check_is_fitted()
        self._layout.require_std()
        rows = self._layout.rows(X, self._needs_box3d)
        return self._calibrate(*self._layout.tables(rows, self._layout.targets(y)))

    def _calibrate(self, X: Any, y: Any) -> Answering:
        if len(X) < 2:
            raise FourFluxError(f"X has {len(X)} rows; two or more are needed to calibrate")
        self.error_scale_ = self._layout.error_scale(X, y, self._answer(X), self.module_)
        return self


def _of_cells(outside: Any, back: Callable[[Any], Any], shape: tuple[int, ...]) -> Any:
    """`outside` of rows by the cells of a table or grid; what is not there is not outside."""
    filled = back(np.ones((len(outside), 1)))[:, 0] == 1
    return (outside & filled).reshape(shape[: -2 if shape[-2:] == (6, 4) else -1])
