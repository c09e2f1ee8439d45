"""The Minerbo (maximum-entropy) closure: the distribution that a four-flux stands for."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def inverse_langevin(f: ArrayLike) -> NDArray[np.float64]:
    """Solve ``coth Z - 1/Z = f`` for Z.

    Parameters
    ----------
    f : array_like
        Flux factors ``|F|/N`` in [0, 1).

    Returns
    -------
    ndarray, same shape
        Z, from 0 (isotropic) upwards, to rounding: ``Z ~ 3 f`` for small f, ``Z ~ 1/(1 - f)`` near 1, where
        a rounding error of f alone already moves Z by a fraction ``eps/(1 - f)``.

    Raises
    ------
    ValueError
        If a value lies outside [0, 1) or is NaN.

    Notes
    -----
    Minerbo 1978, J. Quant. Spectrosc. Radiat. Transf. 20, 541: the maximum-entropy distribution with flux
    factor f is proportional to ``exp(Z cos theta)``, and f is the Langevin function of Z.
    """
    from rheidae.mixing._closure_kernels import inverse_langevin_array

    factors = np.asarray(f, dtype=np.float64)
    if not ((factors >= 0) & (factors < 1)).all():
        bad = factors[~((factors >= 0) & (factors < 1))].flat[0]
        raise ValueError(f"flux factor {bad:g} is outside [0, 1)")
    Z = np.empty(factors.shape)
    inverse_langevin_array(np.ascontiguousarray(factors).reshape(-1), Z.reshape(-1))
    return Z
