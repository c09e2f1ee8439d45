"""Box3D as tensor operations; derivation and arithmetic of `rheidae.mixing._box3d_kernels`.

The exponent is taken relative to its largest value for every species, as the kernels do for beams: where they do not,
both ways agree to rounding. With a sharp crossing a node on which G vanishes to rounding may be counted to the other
side here.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.minerbo import distributions, exponents, four_vectors, moments_of, peak, polynomial
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
        self.register_buffer("per_cell", torch.from_numpy(1.0 / np.sqrt(np.abs(weights))))

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
        change = moments[:, :2] - moments[:, 2:]
        axes = _frame(change[:, 0, :3] - change[:, 1, :3], change.sum(dim=1)[:, :3], *moments[:, :2, :3].unbind(1))
        vectors = vectors @ axes.transpose(1, 2)
        g = distributions(vectors, Z, density * peak(Z) / kernels.FOUR_PI, self.nodes)
        L = change[:, 0, 3:] - change[:, 1, 3:]
        # Positive on the side with the smaller integral.
        sign = torch.where(L > 0.0, -1.0, 1.0)
        signs = sign[:, :, None] * self.signs
        along = vectors @ self.nodes[:3]
        gradient = (signs * g).transpose(1, 2) @ vectors
        slope = gradient.square().sum(dim=2) - (signs * g * along).sum(dim=1).square()
        G = (signs * g).sum(dim=1)
        t = (G * self.per_cell / slope.clamp(min=kernels.FLAT).sqrt()).clamp(-1.0, 1.0)
        s = 0.5 + t * polynomial(t * t, kernels.SHARE)
        moved = ((g[:, :2] - g[:, 2:]) * (s * self.weights)[:, None]) @ self.nodes.T
        small = sign * (moved[:, 0, 3:] - moved[:, 1, 3:])
        moved = torch.cat([moved[..., :3] @ axes, moved[..., 3:]], dim=2)
        seen = torch.minimum(small, (G.clamp(min=0.0) * self.weights).sum(dim=1, keepdim=True))
        crossing = seen > kernels.NOISE
        near = 2.0 / 3.0 * torch.where(crossing, 1.0 - torch.exp2(-seen / kernels.FADE), 0.0)
        away = near * small / torch.where(crossing, small + L.abs(), 1.0)
        return total * (away[:, :, None] * change + (near - away)[:, :, None] * moved)

    def _divide(self, state: Tensor, final: Tensor, fraction: float) -> Tensor:
        """Give mu that part of the heavy total, tau the rest, where there is a crossing."""
        split = final.reshape(-1, 2, 3, 4)
        heavy = split[:, :, 1] + split[:, :, 2]
        divided = torch.stack([split[:, :, 0], fraction * heavy, heavy - fraction * heavy], dim=2).reshape(-1, 6, 4)
        changed = (final != state)[:, [0, 3]].flatten(1).any(dim=1)
        return torch.where(changed[:, None, None], divided, final)


def _frame(*candidates: Tensor) -> Tensor:
    """Axes ``(n, 3, 3)`` of the nodes of rows."""
    units = torch.eye(3, dtype=torch.float64)[:, None]
    z = _first(*candidates, units[0])
    y = _first(*(_cross(z, v) for v in (*candidates, units[0], units[1])))
    return torch.stack([_cross(y, z), y, z], dim=1)


def _first(*vectors: Tensor) -> Tensor:
    """The first of the vectors ``(n, 3)`` of a row that has a length, over that; the last one has."""
    chosen = vectors[-1]
    for v in reversed(vectors[:-1]):
        chosen = torch.where(v.square().sum(dim=1, keepdim=True) > kernels.AXIS, v, chosen)
    return chosen / chosen.square().sum(dim=1, keepdim=True).sqrt()


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[:, [1, 2, 0]] * b[:, [2, 0, 1]] - a[:, [2, 0, 1]] * b[:, [1, 2, 0]]


def _loss(I_plus: Tensor, I_minus: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``1 - P`` on the plus and on the minus side, each ``(n, 1)``."""
    small, large = torch.minimum(I_plus, I_minus), torch.maximum(I_plus, I_minus)
    crossing = small > noise
    ratio = small / torch.where(crossing, large, 1.0)
    plus = torch.where(I_plus <= I_minus, 1.0, ratio)
    minus = torch.where(I_plus >= I_minus, 1.0, ratio)
    return tuple(2.0 / 3.0 * torch.where(crossing, side, 0.0) for side in (plus, minus))  # type: ignore[return-value]
