"""Box3D as tensor operations; derivation and arithmetic of `rheidae.mixing._box3d_kernels`.

The exponent is taken relative to its largest value for every species, as the kernels do for beams: where they do not,
both ways agree to rounding. With a sharp crossing a node on which G vanishes to rounding may be counted to the other
side here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.minerbo import distributions, exponents, four_vectors, moments_of, peak
from rheidae.mixing import _box3d_kernels as kernels
from rheidae.mixing.box3d import ORDERS
from rheidae.mixing.quadrature import lebedev


class Box3DTerms(nn.Module):
    """Box3D of states ``(n, 6, 4)`` in any unit, float64.

    Parameters
    ----------
    order : int, optional
        Of the Lebedev rule.
    crossing, mu_fraction
        As in `rheidae.box3d_flux`.
    """

    nodes: Tensor
    weights: Tensor
    per_cell: Tensor
    signs: Tensor

    def __init__(self, order: int | None = None, crossing: str = "shared", mu_fraction: float | None = None) -> None:
        super().__init__()
        nodes, weights = lebedev(ORDERS[crossing] if order is None else order)
        self.crossing, self.mu_fraction = crossing, mu_fraction
        self.register_buffer("nodes", four_vectors(nodes))
        self.register_buffer("weights", torch.from_numpy(np.array(weights)))
        self.register_buffer("signs", torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64)[:, None])
        self.register_buffer("per_cell", torch.from_numpy(kernels.CELL / np.sqrt(np.abs(weights))))

    def forward(self, state: Tensor) -> Tensor:
        """Final four-fluxes ``(n, 6, 4)``."""
        D = (self._shared(state) if self.crossing == "shared" else self._sharp(state))[:, :, None]
        final = state + torch.cat([-D, 0.5 * D, 0.5 * D], dim=2).reshape(-1, 6, 4)
        return final if self.mu_fraction is None else self._divide(state, final, self.mu_fraction)

    def _sharp(self, state: Tensor) -> Tensor:
        """What nu_e and nubar_e lose, ``(n, 2, 4)``."""
        vectors, Z, density, _ = exponents(moments_of(state))
        g = distributions(vectors, Z, density * peak(Z) / kernels.FOUR_PI, self.nodes)
        difference = g[:, :2] - g[:, 2:]
        plus = difference[:, 0] > difference[:, 1]
        difference = difference * self.weights
        G = difference[:, 0] - difference[:, 1]
        I_plus = torch.where(plus, G, 0.0).sum(dim=1, keepdim=True)
        I_minus = I_plus - G.sum(dim=1, keepdim=True)
        loss = torch.where(plus, *_loss(I_plus, I_minus, kernels.NOISE * density.sum(dim=1, keepdim=True)))
        return (difference * loss[:, None]) @ self.nodes.T

    def _shared(self, state: Tensor) -> Tensor:
        """The same, weights of nodes shared between both sides."""
        moments = moments_of(state)
        total = moments[:, :, 3].sum(dim=1)[:, None, None]
        moments = moments / torch.where(total > 0.0, total, 1.0)
        vectors, Z, density, _ = exponents(moments)
        vectors = vectors * (kernels.SHARED_Z / Z.clamp(min=kernels.SHARED_Z))[..., None]
        Z = Z.clamp(max=kernels.SHARED_Z)
        g = distributions(vectors, Z, density * peak(Z) / kernels.FOUR_PI, self.nodes)
        change = moments[:, :2] - moments[:, 2:]
        L = change[:, 0, 3:] - change[:, 1, 3:]
        # Positive on the side with the smaller integral.
        sign = torch.where(L > 0.0, -1.0, 1.0)
        signs = sign[:, :, None] * self.signs
        along = vectors @ self.nodes[:3]
        gradient = (signs * g).transpose(1, 2) @ vectors
        slope = gradient.square().sum(dim=2) - (signs * g * along).sum(dim=1).square()
        G = (signs * g).sum(dim=1)
        s = (0.5 + G * self.per_cell / slope.clamp(min=kernels.FLAT).sqrt()).clamp(0.0, 1.0)
        moved = ((g[:, :2] - g[:, 2:]) * (s * self.weights)[:, None]) @ self.nodes.T
        small = sign * (moved[:, 0, 3:] - moved[:, 1, 3:])
        crossing = small > kernels.NOISE
        near = 2.0 / 3.0 * torch.where(crossing, 1.0 - torch.exp2(-small / kernels.FADE), 0.0)
        away = near * small / torch.where(crossing, small + L.abs(), 1.0)
        return total * (away[:, :, None] * change + (near - away)[:, :, None] * moved)

    def _divide(self, state: Tensor, final: Tensor, fraction: float) -> Tensor:
        """Give mu that part of the heavy total, tau the rest, where there is a crossing."""
        split = final.reshape(-1, 2, 3, 4)
        heavy = split[:, :, 1] + split[:, :, 2]
        divided = torch.stack([split[:, :, 0], fraction * heavy, heavy - fraction * heavy], dim=2).reshape(-1, 6, 4)
        changed = (final != state)[:, [0, 3]].flatten(1).any(dim=1)
        return torch.where(changed[:, None, None], divided, final)


def _loss(I_plus: Tensor, I_minus: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``1 - P`` on the plus and on the minus side, each ``(n, 1)``."""
    small, large = torch.minimum(I_plus, I_minus), torch.maximum(I_plus, I_minus)
    crossing = small > noise
    ratio = small / torch.where(crossing, large, 1.0)
    plus = torch.where(I_plus <= I_minus, 1.0, ratio)
    minus = torch.where(I_plus >= I_minus, 1.0, ratio)
    return tuple(2.0 / 3.0 * torch.where(crossing, side, 0.0) for side in (plus, minus))  # type: ignore[return-value]
