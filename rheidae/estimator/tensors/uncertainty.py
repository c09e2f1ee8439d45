"""Standard deviations as tensor operations: `rheidae.estimator.uncertainty`.

Neighbours of the scheme (`rheidae.mixing._variation_kernels`) are taken on the nodes that the answer has, which know no
rules for beams: from a flux factor of 0.9 on, what comes out is not to be relied on (``docs/export.md``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.survival import Nodes, SurvivalMixing, faded
from rheidae.mixing._variation_kernels import SHALLOW
from rheidae.mixing.variation import VARIATIONS

_TINY = 1e-30
_TERMS = len(VARIATIONS) + 1


def neighbours(mixing: SurvivalMixing, nodes: Nodes) -> tuple[Tensor, Tensor]:
    """What nu_e and nubar_e lose under the scheme ``(n, 2, 4)``, and sizes ``(n, kinds, 2, 2)`` of its neighbours."""
    h, factor = mixing.scheme(nodes)
    D = mixing.change(nodes, h, factor)
    on = mixing.sphere
    larger = nodes.G[:, :on] > 0.0
    # h is 1 - u on the larger side, 1 + abs(u)/2 on the smaller.
    u = torch.where(larger, 1.0 - h[:, :on], 2.0 - 2.0 * h[:, :on])
    sums = (varied(u)[:, None] * nodes.moved[:, :, :on]) @ mixing.to_moments[:on, :4]
    small = nodes.small[:, 0]
    sizes = sizes_of(sums, small, nodes.both[:, 0] - small, faded(small))
    return D, sizes.permute(2, 0, 1, 3)


def varied(u: Tensor) -> Tensor:
    """How 1 - P varies with log s, by each kind and by itself, ``(1 + kinds, ...)``; u > 0 on the larger side."""
    kept = 0.5 * u + (1.0 / 6.0) * u.abs()
    steep = kept * (1.0 - u * u)
    return torch.stack([steep, steep * (1.0 - 2.0 * u * u), (1.0 / 6.0) * (u - u.abs()), 2.0 / 3.0 - kept])


def sizes_of(sums: Tensor, small: Tensor, large: Tensor, share: Tensor) -> Tensor:
    """Sizes ``(kinds, 2, ..., 2)`` with `share`, from what `varied` moves, ``(1 + kinds, 2, ..., 4)``: nu and nubar."""
    steep = sums[0, 0, ..., 3] - sums[0, 1, ..., 3]
    moves = sums[1:, 1, ..., 3] - sums[1:, 0, ..., 3]
    shift = torch.where(steep.abs() > _TINY, moves / torch.where(steep.abs() > _TINY, steep, 1.0), 0.0)
    change = sums[1:] + shift[:, None, ..., None] * sums[:1]
    shallow = torch.where(small < large, torch.exp(-small / (SHALLOW * large.clamp(min=_TINY))), 0.0)
    shares = torch.stack([share, share, share * shallow])
    sizes = torch.stack([change[..., :3].square().mean(dim=-1).sqrt(), change[..., 3].abs()], dim=-1)
    return shares[:, None, ..., None] * sizes


class ErrorTerms(nn.Module):
    """What `rheidae.estimator.uncertainty.ErrorScale` has learned.

    Parameters
    ----------
    scale : ErrorScale
        A calibrated one.
    """

    mean: Tensor
    whitening: Tensor
    distance: Tensor
    near: Tensor
    far: Tensor
    odd: Tensor

    def __init__(self, scale: Any) -> None:
        super().__init__()
        for name, values in scale.arrays.items():
            self.register_buffer(name, torch.from_numpy(np.array(values, dtype=np.float64)))

    def forward(self, init: Tensor, final: Tensor, far: Tensor, sizes: Tensor, unlike: Tensor) -> tuple[Tensor, Tensor]:
        """Standard deviations ``(n, 24)``, and 1 in rows outside of those trained on ``(n, 1)``, else 0.

        Parameters
        ----------
        init, final, far : Tensor, shape (n, 6, 4)
            States before, as predicted and of the scheme, over the total density.
        sizes, unlike : Tensor
            As of `rheidae.estimator.tensors.mixing.Full`.
        """
        beyond = (self._distance(init) - self.distance).clamp(min=0.0)[:, None, None]
        near = (1.0 - self.odd) * torch.exp(-0.5 * beyond.square())
        # Each flavor changes by both pairs that it is in.
        a, b, c = (sizes[:, pair].permute(0, 2, 3, 1) for pair in range(3))
        terms = 0.25 * torch.stack([a + b, a + c, b + c], dim=2).square()
        terms = torch.cat([terms, torch.stack([unlike] * 3, dim=2)[..., None]], dim=4).reshape(-1, 6, 2, _TERMS)
        learned, other = (
            (terms * table[:, :, :-1]).sum(dim=3) + table[:, :, -1] + 1e-20 for table in (self.near, self.far)
        )
        difference = (final - far).square()
        other = other + torch.stack([difference[..., :3].mean(dim=2), difference[..., 3]], dim=2)
        std = (near * learned + (1.0 - near) * other).sqrt()
        # Where nothing changes, nothing is in doubt.
        std = torch.where((final - init).abs().amax(dim=(1, 2), keepdim=True) > 0.0, std, 0.0)
        by_component = torch.cat([std[..., :1].expand(-1, -1, 3), std[..., 1:]], dim=2)
        outside = (beyond[:, :, 0] > 0.0).to(init.dtype)
        return by_component.reshape(-1, 24), outside

    def _distance(self, F: Tensor) -> Tensor:
        """How far states are from those seen, as `rheidae.estimator.uncertainty` measures it."""
        e, x, ebar, xbar = F[:, 0], 0.5 * (F[:, 1] + F[:, 2]), F[:, 3], 0.5 * (F[:, 4] + F[:, 5])
        nu, nubar = e - ebar, x - xbar
        vectors = torch.stack([e, x, ebar, xbar, nu, nubar, nu - nubar], dim=1)[:, :, :3]
        lengths = vectors.square().sum(dim=2).sqrt()
        unlike = torch.cat([F[:, 1] - F[:, 2], F[:, 4] - F[:, 5]], dim=1).square().sum(dim=1).sqrt()
        densities = torch.stack([e[:, 3], x[:, 3], ebar[:, 3], xbar[:, 3]], dim=1)
        numbers = torch.cat([densities, lengths, unlike[:, None]], dim=1)
        return ((numbers - self.mean) @ self.whitening).square().sum(dim=1).sqrt()
