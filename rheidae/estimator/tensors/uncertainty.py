"""Standard deviations as tensor operations: `rheidae.estimator.uncertainty`, `rheidae.mixing._variation_kernels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rheidae.estimator._uncertainty_kernels import EXCHANGED
from rheidae.estimator.tensors.nodes import OnNodes, fill_nodes, take_moments
from rheidae.estimator.tensors.pair import fade, larger_side
from rheidae.mixing._variation_kernels import SHALLOW
from rheidae.mixing.variation import LATITUDES, ORDER, VARIATIONS

_TINY = 1e-30
_TERMS = len(VARIATIONS) + 1


class Neighbours(OnNodes):
    """Of `rheidae.mixing.variation.variations`, on the nodes of `variation_rules`.

    Parameters
    ----------
    flavors : {2, 3}
        With 2, mu and tau enter as their mean.
    """

    def __init__(self, flavors: int) -> None:
        super().__init__(flavors, ORDER, LATITUDES)

    def forward(self, state: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Sizes ``(n, 3, kinds, 2, 2)``, and of two flavors what nu_e and nubar_e lose under the scheme ``(n, 8)``.

        Of the rows of ``state (n, 6, 4)``, over the total density, that are marked ``(n, 1)``; else 0.
        """
        out = self.of_rows(state, rows, 44 if self.flavors == 2 else 36, self._found)
        return out[:, :36].reshape(-1, 3, _TERMS - 1, 2, 2), out[:, 36:]

    def _found(self, state: Tensor, *rules: Tensor) -> Tensor:
        nodes = fill_nodes(take_moments(state, self.flavors)[0], *rules)
        w, first, second = nodes.w[:, None], [0, 0, 1][: 2 * self.flavors - 3], [1, 2, 2][: 2 * self.flavors - 3]
        nu, nubar = (part[:, first] - part[:, second] for part in nodes.g.split(self.flavors, dim=1))
        net, netbar = (N[:, first] - N[:, second] for N in nodes.N.split(self.flavors, dim=1))
        G = (nu - nubar) * torch.where(net >= netbar, 1.0, -1.0)[..., None]
        u, large, small = larger_side(G, w)
        parts = varied(u)[:, None] * torch.stack([w * nu, w * nubar])
        along = [(parts * n[:, None]).sum(dim=-1, keepdim=True) for n in (nodes.x, nodes.y, nodes.z)]
        sums = torch.cat([*along, parts.sum(dim=-1, keepdim=True)], dim=-1)
        share = fade(small)[..., 0]
        sizes = sizes_of(sums, small[..., 0], large[..., 0], share)
        pair = torch.cat([part for kind in sizes.unbind(dim=0) for part in kind.unbind(dim=0)], dim=2)
        if self.flavors == 3:
            return pair.reshape(-1, 36)
        pair = pair.reshape(-1, 12)
        lost = share * sums[-1, :, :, 0]
        number = 0.5 * (lost[0, :, 3:] + lost[1, :, 3:])
        axes = torch.stack(nodes.axes, dim=1)
        turned = [part for nu in (0, 1) for part in ((lost[nu, :, :3, None] * axes).sum(dim=1), number)]
        return torch.cat([pair, pair, 0.0 * pair, *turned], dim=1)


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
        exchanged = torch.stack([numbers[:, k] for k in EXCHANGED], dim=1)
        squares = (((n - self.mean) @ self.whitening).square().sum(dim=1) for n in (numbers, exchanged))
        return torch.minimum(*squares).sqrt()
