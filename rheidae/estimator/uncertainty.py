"""How far off a prediction may be, learned from the errors on rows whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux
from rheidae.mixing.survival import invariants
from rheidae.scoring.metrics import COVERAGE, DEVIATIONS

# Rows that the scale is learned from, at most; it has a dozen coefficients.
_ROWS = 50_000
_ORDER = 17
_CUT = 3.0
# Of the regression on the invariants: their part is a correction, and families that were not seen want it small.
_RIDGE = 100.0
_TINY = 1e-12
Array = NDArray[np.float64]


class ErrorScale:
    """Standard deviation of a prediction from what is known before the answer.

    Two descriptions of a row's rms error: its logarithm is a ridge regression on the invariants of the state
    (`rheidae.mixing.survival.invariants`) and the logarithm of the size of the predicted change; or it goes like the
    square root of that size. Each has its own profile over the components, mu and tau alike, and a factor per species
    that makes `COVERAGE` of the errors seen lie within `DEVIATIONS` standard deviations. The mean of the two variances
    counts: the first is sharp near the rows seen, the second holds elsewhere. Beyond three standard deviations of the
    invariants seen, the scale passes over into the rms error of Box3D, the worst that is known.

    Attributes
    ----------
    arrays : dict of str to ndarray
        Everything that was learned, by name.
    """

    def __init__(self, arrays: dict[str, Array]) -> None:
        self.arrays = arrays

    @classmethod
    def fit(
        cls, F_init: fourflux.Float, F_pred: fourflux.Float, F_true: fourflux.Float, F_box: fourflux.Float
    ) -> ErrorScale:
        """Learn from rows whose answer is known.

        Parameters
        ----------
        F_init, F_pred, F_true, F_box : ndarray, shape (n, 6, 4)
            Initial four-fluxes, and final ones: predicted, simulated (mu and tau as they are) and Box3D's, in units of
            the row's total density.

        Returns
        -------
        ErrorScale
        """
        if len(F_init) > _ROWS:
            chosen = np.sort(np.random.default_rng(0).choice(len(F_init), _ROWS, replace=False))
            F_init, F_pred, F_true, F_box = (F[chosen] for F in (F_init, F_pred, F_true, F_box))
        numbers = invariants(np.ascontiguousarray(F_init), order=_ORDER)
        size = _log_size(F_pred - F_init)
        arrays = {
            "mean": numbers.mean(axis=0), "deviation": numbers.std(axis=0) + 1e-6, "size": size.mean(keepdims=True),
            "far": _profile(F_true - F_box),
        }  # fmt: skip
        error = F_true - F_pred
        design, _ = _design(arrays, numbers, size)
        target = np.log(np.sqrt(np.square(error).mean(axis=(1, 2))) + _TINY)
        penalty = _RIDGE * np.eye(design.shape[1])
        penalty[0, 0] = 0.0
        arrays["weights"] = np.linalg.solve(design.T @ design + penalty, design.T @ target)
        root = 0.5 * (size - arrays["size"])
        arrays["level"] = (target - root).mean(keepdims=True)
        for name, log_scale in (("by_state", design @ arrays["weights"]), ("by_size", arrays["level"] + root)):
            relative = error / np.exp(log_scale)[:, None, None]
            profile = _profile(relative)
            profile = np.maximum(profile, 1e-3 * profile.max() + _TINY)
            factor = np.quantile(np.abs(relative) / profile, COVERAGE, axis=(0, 2)) / DEVIATIONS
            arrays[name] = profile * _heavy_alike(factor)[:, None]
        return cls(arrays)

    def std(self, F_init: fourflux.Float, F_pred: fourflux.Float) -> Array:
        """Standard deviations ``(n, 6, 4)`` of `F_pred`, all in units of the row's total density."""
        known = self.arrays
        size = _log_size(F_pred - F_init)
        design, near = _design(known, invariants(np.ascontiguousarray(F_init), order=_ORDER), size)
        by_state = np.exp(design @ known["weights"])[:, None, None] * known["by_state"]
        by_size = np.exp(known["level"] + 0.5 * (size - known["size"]))[:, None, None] * known["by_size"]
        inside = 0.5 * (np.square(by_state) + np.square(by_size))
        variance = near * inside + (1 - near) * np.maximum(np.square(known["far"]), inside)
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


def _heavy_alike(values: Array) -> Array:
    """Numbers ``(6, ...)`` of the species with the mean of mu and tau for both."""
    out = values.copy()
    for mu, tau in ((fourflux.NU_MU, fourflux.NU_TAU), (fourflux.NUBAR_MU, fourflux.NUBAR_TAU)):
        out[mu] = out[tau] = 0.5 * (values[mu] + values[tau])
    return out


def _profile(error: Array) -> Array:
    """Rms over the rows ``(6, 4)``; components of a flux alike: one alone knows the frame."""
    square = _heavy_alike(np.square(error).mean(axis=0))
    square[:, :3] = square[:, :3].mean(axis=1, keepdims=True)
    return np.sqrt(square)


def _log_size(change: Array) -> Array:
    return np.log(np.sqrt(np.square(change).mean(axis=(1, 2))) + 1e-5)


def _design(arrays: dict[str, Any], numbers: Array, size: Array) -> tuple[Array, Array]:
    """Terms of the regression ``(n, 7)``, and how near a row is to the rows seen ``(n, 1, 1)``, 0 to 1."""
    z = (numbers - arrays["mean"]) / arrays["deviation"]
    inside = np.clip(z, -_CUT, _CUT)
    near = np.exp(-0.5 * np.square(z - inside).sum(axis=1))[:, None, None]
    return np.column_stack([np.ones(len(z)), inside, size - arrays["size"]]), near
