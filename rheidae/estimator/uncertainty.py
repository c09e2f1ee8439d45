"""How far off a prediction may be, learned from the errors on rows whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.mixing.power import power_invariants
from rheidae.scoring.metrics import COVERAGE, DEVIATIONS

# Rows that the scale is learned from, at most; it has two dozen coefficients.
_ROWS = 50_000
_ORDER = 17
_CUT = 3.0
_RIDGE = 10.0


class ErrorScale:
    """Standard deviation of a prediction from what is known before the answer.

    The logarithm of a row's rms error is a ridge regression on the invariants of the state
    (`rheidae.mixing.power.power_invariants`), their squares and the logarithm of the size of the predicted change; each
    of the 24 components has its own factor; one more makes `COVERAGE` of the errors seen lie within `DEVIATIONS`
    standard deviations. Beyond three standard deviations of the invariants seen, the scale passes over into the rms
    error of Box3D, the worst that is known.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Everything that was learned, by name.
    """

    def __init__(self, arrays: dict[str, NDArray[np.float64]]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(
        cls, F_init: fourflux.Float, F_pred: fourflux.Float, F_true: fourflux.Float, F_box: fourflux.Float
    ) -> ErrorScale:
        """Learn from rows whose answer is known.

        Parameters
        ----------
        F_init, F_pred, F_true, F_box : ndarray, shape (n, 6, 4)
            Initial four-fluxes, and final ones: predicted, simulated (see `rheidae.fourflux.average_heavy`) and
            Box3D's, in units of the row's total density.

        Returns
        -------
        ErrorScale
        """
        if len(F_init) > _ROWS:
            chosen = np.sort(np.random.default_rng(0).choice(len(F_init), _ROWS, replace=False))
            F_init, F_pred, F_true, F_box = (F[chosen] for F in (F_init, F_pred, F_true, F_box))
        invariants = power_invariants(np.ascontiguousarray(F_init), order=_ORDER)
        arrays = {"mean": invariants.mean(axis=0), "deviation": invariants.std(axis=0) + 1e-6}
        error = F_true - F_pred
        design, _ = _design(arrays, invariants, F_pred - F_init)
        penalty = _RIDGE * np.eye(design.shape[1])
        penalty[0, 0] = 0.0
        target = np.log(np.sqrt(np.square(error).mean(axis=(1, 2))) + _TINY)
        arrays["weights"] = np.linalg.solve(design.T @ design + penalty, design.T @ target)
        relative = error / np.exp(design @ arrays["weights"])[:, None, None]
        profile = _rms(relative)
        profile = np.maximum(profile, 1e-3 * profile.max() + _TINY)
        arrays["profile"] = profile * np.quantile(np.abs(relative) / profile, COVERAGE) / DEVIATIONS
        arrays["far"] = _rms(F_true - F_box)
        return cls(arrays)

    def std(self, F_init: fourflux.Float, F_pred: fourflux.Float) -> NDArray[np.float64]:
        """Standard deviations ``(n, 6, 4)`` of `F_pred`, all in units of the row's total density."""
        invariants = power_invariants(np.ascontiguousarray(F_init), order=_ORDER)
        design, near = _design(self.arrays, invariants, F_pred - F_init)
        inside = np.exp(design @ self.arrays["weights"])[:, None, None] * self.arrays["profile"]
        variance = near * np.square(inside) + (1 - near) * np.maximum(np.square(self.arrays["far"]), np.square(inside))
        # Where nothing changes, nothing is in doubt.
        unchanged = (F_pred == F_init).all(axis=(1, 2))
        return np.where(unchanged[:, None, None], 0.0, np.sqrt(variance))

    def to_bytes(self) -> bytes:
        """As safetensors."""
        from safetensors.numpy import save

        return save(self.arrays)

    @classmethod
    def from_bytes(cls, content: bytes) -> ErrorScale:
        """Read what `to_bytes` returned."""
        from safetensors.numpy import load

        return cls(load(content))


_TINY = 1e-12


def _rms(error: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of errors ``(n, 6, 4)`` over the rows, ``(6, 4)``; components of a flux alike: one alone knows the frame."""
    square = np.square(error).mean(axis=0)
    square[:, :3] = square[:, :3].mean(axis=1, keepdims=True)
    return np.sqrt(square)


def _design(arrays: dict[str, Any], invariants: Any, change: Any) -> tuple[Any, Any]:
    """Terms of the regression ``(n, 12)``, and how near a row is to the rows seen ``(n, 1, 1)``, 0 to 1."""
    z = (invariants - arrays["mean"]) / arrays["deviation"]
    inside = np.clip(z, -_CUT, _CUT)
    near = np.exp(-0.5 * np.square(z - inside).sum(axis=1))[:, None, None]
    size = np.log(np.sqrt(np.square(change).mean(axis=(1, 2))) + 1e-5)
    return np.column_stack([np.ones(len(z)), inside, np.square(inside), size]), near
