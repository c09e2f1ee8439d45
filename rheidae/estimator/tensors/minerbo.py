"""The Minerbo closure as tensor operations; the arithmetic is that of `rheidae.mixing._closure_kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rheidae.mixing import _closure_kernels as kernels

_LOW = tuple(getattr(kernels, f"_L{k}") for k in range(10))
_P = tuple(getattr(kernels, f"_P{k}") for k in range(5))
_Q = (1.0, *(getattr(kernels, f"_Q{k}") for k in range(1, 4)))


def four_vectors(nodes: NDArray[np.float64]) -> Tensor:
    """``(4, m)``: nodes ``(3, m)`` and ones; what weights of nodes have to be multiplied by to give four-fluxes."""
    return torch.from_numpy(np.vstack([nodes, np.ones(nodes.shape[1])]))


def polynomial(x: Tensor, coefficients: Any) -> Tensor:
    """Value at `x` of the polynomial with these coefficients, the constant one first."""
    value = x * coefficients[-1] + coefficients[-2]
    for c in reversed(coefficients[:-2]):
        value = value * x + c
    return value


def langevin_ratio(f: Tensor) -> Tensor:
    """``Z/f`` where ``coth(Z) - 1/Z = f``, for ``f`` in [0, 1]; 3 at ``f = 0``."""
    low = polynomial(f * f, _LOW)
    h = (1.0 - f).clamp(min=kernels._ULP_BELOW_ONE)
    y = h * polynomial(h, _Q) / polynomial(h, _P)
    Z = 1.0 / y
    e = torch.exp(-2.0 * Z)
    c = 1.0 / (1.0 - e)
    coth_1 = 2.0 * e * c
    csch2 = 2.0 * coth_1 * c
    coth = 1.0 + coth_1
    slope = 1.0 / (y * y - csch2)
    p = ((h - y) + coth_1) * slope
    a = (coth * csch2 - y * y * y) * slope
    b = (y * y * y * y - csch2 * (2.0 * coth * coth + csch2) * (1.0 / 3.0)) * slope
    high = (Z - p * (1.0 + p * (a + p * (2.0 * a * a - b)))) / f.clamp(min=0.1)
    return torch.where(f < kernels._SMALL_F, low, high)


def peak(Z: Tensor) -> Tensor:
    """Return the Minerbo distribution at its peak, times ``4 pi/N``: ``2 Z/(1 - exp(-2 Z))``."""
    resolved = Z.clamp(min=1e-4)
    return torch.where(Z > 1e-4, 2.0 * resolved / (1.0 - torch.exp(-2.0 * resolved)), 1.0 + Z + Z * Z / 3.0)


def moments_of(state: Tensor) -> Tensor:
    """Four-fluxes ``(n, 4, 4)`` of e, ebar, x, xbar (x: the mean of mu and tau) of ``state (n, 6, 4)``."""
    return torch.stack(
        [state[:, 0], state[:, 3], 0.5 * (state[:, 1] + state[:, 2]), 0.5 * (state[:, 4] + state[:, 5])], dim=1
    )


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """0 below `low`, 1 above `high`, with a continuous slope between."""
    t = ((x - low) / (high - low)).clamp(0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def exponents(moments: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Exponent vectors ``Z Fhat (n, s, 3)``, their lengths, densities and flux factors ``(n, s)`` of four-fluxes."""
    density = moments[..., 3]
    filled = density > 0.0
    inverse = torch.where(filled, 1.0 / torch.where(filled, density, 1.0), 0.0)
    factor = moments[..., :3] * inverse[..., None]
    f = factor.square().sum(dim=-1).sqrt()
    ratio = langevin_ratio(f)
    return factor * ratio[..., None], f * ratio, density, f


def distributions(vectors: Tensor, Z: Tensor, amplitude: Tensor, nodes: Tensor) -> Tensor:
    """Values ``(n, s, m)`` of distributions that are `amplitude (n, s)` at their peak; `nodes (4, m)`: x, y, z, 1."""
    # Peak and Z go into the exponent through the matrix product; log 0 must not meet an infinity there.
    offset = amplitude.log().clamp(min=-1e5) - Z
    return torch.exp(torch.cat([vectors, offset[..., None]], dim=-1) @ nodes)
