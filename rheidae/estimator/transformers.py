"""Steps for a scikit-learn `Pipeline` in front of a model."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OneToOneFeatureMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from rheidae import fourflux
from rheidae.estimator._private import feature_names_in
from rheidae.exceptions import FourFluxError
from rheidae.mixing.box3d import box3d_flux
from rheidae.mixing.survival import INVARIANTS, invariants


class _StateTransformer(TransformerMixin, BaseEstimator):
    """Base of the steps that read initial four-fluxes in the first 24 columns."""

    n_features_in_: int
    widths: tuple[int, ...] = (fourflux.FLAT,)

    def fit(self, X: Any, y: Any = None) -> Any:
        """Look at the number and the names of the columns; nothing is learned."""
        self._states(X, reset=True)
        return self

    def _states(self, X: Any, reset: bool = False) -> tuple[Any, Any]:
        """The table, and its first 24 columns as ``(n, 6, 4)``, physical."""
        table = validate_data(self, X, reset=reset, dtype=[np.float64, np.float32])
        if table.shape[1] not in self.widths:
            widths = " or ".join(str(width) for width in self.widths)
            raise FourFluxError(f"X has shape {table.shape}; expected (n, {widths})")
        F = np.ascontiguousarray(fourflux.unflatten(table[:, fourflux.INPUT["F_init"]]))
        fourflux.require_physical(F, "X")
        return table, F


class AppendBox3D(_StateTransformer):
    """Append Box3D's answer: from ``(n, 24)`` initial four-fluxes to the ``(n, 48)`` that `FluxRegressor` takes.

    Parameters
    ----------
    order : int or None
        Order of the Lebedev rule; None for that of `rheidae.box3d_flux`.
    crossing : {"shared", "sharp"}
        See `rheidae.box3d_flux`.
    mu_fraction : float or None
        Likewise.
    threads : int or None
        To share the rows among; None for all.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from rheidae import FluxRegressor
    >>> from rheidae.estimator.transformers import AppendBox3D
    >>> model = make_pipeline(AppendBox3D(), FluxRegressor())
    """

    def __init__(
        self,
        order: int | None = None,
        crossing: str = "shared",
        mu_fraction: float | None = None,
        threads: int | None = None,
    ) -> None:
        self.order = order
        self.crossing = crossing
        self.mu_fraction = mu_fraction
        self.threads = threads

    def transform(self, X: Any) -> Any:
        """Return ``(n, 48)``, in the unit and float type of X.

        Raises
        ------
        FourFluxError
            If the shape is another, or a row is not physical.
        """
        check_is_fitted(self, "n_features_in_")
        table, F = self._states(X)
        options: dict[str, Any] = {"order": self.order, "crossing": self.crossing, "mu_fraction": self.mu_fraction}
        box = box3d_flux(F, threads=self.threads, **options)
        return np.concatenate([table, fourflux.flatten(box)], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of X's columns (``F_init_nu_e_x`` ... if it has none), then ``F_box_nu_e_x`` and so on."""
        return np.concatenate([_names_in(self, input_features), _names("F_box")])


class PowerInvariants(_StateTransformer):
    """Five numbers of a state that know nothing of its frame or scale: `rheidae.mixing.survival.invariants`.

    X is ``(n, 24)`` initial four-fluxes, or ``(n, 48)`` with Box3D's answer, which is not looked at.

    Parameters
    ----------
    order : int
        Order of the Lebedev rule.
    append : bool
        Append them to the columns of X, instead of replacing these.
    threads : int or None
        To share the rows among; None for all.
    """

    widths = (fourflux.FLAT, fourflux.INPUT.width)

    def __init__(self, order: int = 31, append: bool = False, threads: int | None = None) -> None:
        self.order = order
        self.append = append
        self.threads = threads

    def transform(self, X: Any) -> Any:
        """Return ``(n, 5)``, or ``(n, 29)`` and ``(n, 53)`` with `append`.

        Raises
        ------
        FourFluxError
            If the shape is another, or a row is not physical.
        """
        check_is_fitted(self, "n_features_in_")
        table, F = self._states(X)
        numbers = invariants(F, order=self.order, threads=self.threads).astype(table.dtype, copy=False)
        return np.concatenate([table, numbers], axis=1) if self.append else numbers

    def get_feature_names_out(self, input_features: Any = None) -> Any:
        """Return the names of the invariants, after those of X with `append`."""
        names = np.asarray(INVARIANTS, dtype=object)
        return np.concatenate([_names_in(self, input_features), names]) if self.append else names


class UnitScaler(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Divide a table by one number, so that float32 and its squares hold it: 1/cm^3 to units of 1e33/cm^3.

    `FluxRegressor` takes any unit by itself; ``layout="generic"`` and scikit-learn's regressors want numbers of order
    one. The same step serves X in a `Pipeline` and y in a `TransformedTargetRegressor`.

    Parameters
    ----------
    unit : float or "auto"
        The number, in the unit of X. "auto" takes the power of ten next to the largest magnitude in the rows of `fit`,
        and 1 where all are zero.

    Attributes
    ----------
    unit_ : float
        What is divided by.
    """

    unit_: float
    n_features_in_: int

    def __init__(self, unit: float | str = 1e33) -> None:
        self.unit = unit

    def fit(self, X: Any, y: Any = None) -> UnitScaler:
        """Find the unit.

        Raises
        ------
        ValueError
            If `unit` is neither "auto" nor a positive number.
        """
        table = validate_data(self, X, dtype=[np.float64, np.float32])
        if isinstance(self.unit, str) and self.unit == "auto":
            largest = float(np.abs(table).max())
            self.unit_ = 10.0 ** round(np.log10(largest)) if largest > 0 else 1.0
        elif isinstance(self.unit, Real) and 0 < self.unit < np.inf:
            self.unit_ = float(self.unit)
        else:
            raise ValueError(f"unit={self.unit!r} is neither a positive number nor 'auto'")
        return self

    def transform(self, X: Any) -> Any:
        """Return ``X / unit_``, in the float type of X."""
        check_is_fitted(self, "unit_")
        table = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return (table / np.float64(self.unit_)).astype(table.dtype, copy=False)

    def inverse_transform(self, X: Any) -> Any:
        """Return ``X * unit_``, in float64: what was scaled to fit float32 comes back as something that need not."""
        check_is_fitted(self, "unit_")
        table = validate_data(self, X, reset=False, dtype=[np.float64, np.float32])
        return table * np.float64(self.unit_)


def _names(prefix: str) -> Any:
    return np.asarray(fourflux.column_names(prefix), dtype=object)


def _names_in(step: Any, input_features: Any) -> Any:
    """Names of a step's columns: as given or seen, else those of initial four-fluxes and Box3D's answer."""
    check_is_fitted(step, "n_features_in_")
    names = feature_names_in(step, input_features, generate_names=False)
    if names is not None:
        return np.asarray(names, dtype=object)
    return np.concatenate([_names("F_init"), _names("F_box")])[: step.n_features_in_]
