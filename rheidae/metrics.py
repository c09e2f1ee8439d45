"""How far a predicted state is from the simulated one, and how much nearer it is than Box3D's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rheidae import fourflux


def flux_error(F_true: fourflux.Float, F_pred: fourflux.Float, F_init: fourflux.Float) -> NDArray[np.float64]:
    """Error of each row: mean over species of the four-flux distance, relative to the total density.

    Parameters
    ----------
    F_true, F_pred, F_init : ndarray, shape (n, 6, 4) or (n, 24)
        Final four-fluxes, simulated and predicted, and the initial ones; one common unit. Where the initial
        state has mu and tau alike, the truth is averaged over them: which of them ends up larger is chance.

    Returns
    -------
    ndarray, shape (n,)
        float64, dimensionless.
    """
    true, pred, init = (np.asarray(F, dtype=np.float64).reshape(-1, 6, 4) for F in (F_true, F_pred, F_init))
    total = fourflux.total_density(init)[:, None, None]
    difference = (pred - fourflux.average_heavy(true, init)) / total
    return np.linalg.norm(difference, axis=2).mean(axis=1)


def skill(error: NDArray[np.float64], error_of_box3d: NDArray[np.float64]) -> float:
    """``1 - mean error / mean error of Box3D``: 1 is perfect, 0 is Box3D, negative is worse than Box3D.

    NaN where there is no row, or where Box3D makes no error.
    """
    reference = float(np.mean(error_of_box3d)) if len(error_of_box3d) else 0.0
    return 1.0 - float(np.mean(error)) / reference if reference > 0 else float("nan")
