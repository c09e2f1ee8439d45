"""The asymptotic scheme as tensor operations, for rows that need nodes of their own or three flavors.

Derivation and arithmetic are those of `rheidae.mixing._asymptotic_kernels`, on the first of its levels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rheidae.estimator.tensors.flavors import mix_unlike
from rheidae.estimator.tensors.nodes import OnNodes, StateNodes, fill_nodes, take_moments
from rheidae.estimator.tensors.pair import fade, larger_side
from rheidae.mixing.asymptotic import ORDER

_TINY = 1e-30


class AsymptoticMixing(OnNodes):
    """What `rheidae.mixing.asymptotic.asymptotic_flux` changes on its first level, of some rows.

    Parameters
    ----------
    flavors : {2, 3}
        With 2, mu and tau enter as their mean.
    full : bool
        Whether transition probabilities follow the change.
    order : int
        Of the Lebedev rule.
    """

    def __init__(self, flavors: int, full: bool = False, order: int = ORDER) -> None:
        super().__init__(flavors, order)
        self.full, self.columns = full, {2: (8, 16), 3: (24, 96)}[flavors][full]

    def forward(self, state: Tensor, rows: Tensor) -> Tensor:
        """Change of ``state (n, 6, 4)``, in units of the total density, of the rows that are marked, ``(n, 1)``.

        Others come out as 0. Of two flavors what nu_e and nubar_e lose, ``(n, 8)``, and averages of 1 - P of e, ebar, x
        and xbar, by number and along their fluxes, ``(n, 2, 4)``. Of three the change of all species, ``(n, 24)``,
        and matrices as of `rheidae.mixing.transition` ``(n, 2, 6, 6)``.
        """
        return self.of_rows(state, rows, self.columns, self._changed)

    def _changed(self, state: Tensor, *rules: Tensor) -> Tensor:
        moments, total = take_moments(state, self.flavors)
        nodes = fill_nodes(moments, *rules)
        here = (mix_unlike if self.flavors == 3 else _mix_alike)(nodes, self.full)
        parts, end = [], 24 if self.flavors == 3 else 8
        for first in range(0, end, 4):
            x, y, z, t = (total * here[:, first + k : first + k + 1] for k in range(4))
            parts += [x * nodes.axes[0] + y * nodes.axes[1] + z * nodes.axes[2], t]
        return torch.cat([*parts, here[:, end:]], dim=1)


def _mix_alike(nodes: StateNodes, full: bool) -> Tensor:
    w, N = nodes.w, nodes.N
    e, heavy, ebar, heavybar = nodes.g.unbind(dim=1)
    net = N[:, :1] - N[:, 1:2] - N[:, 2:3] + N[:, 3:]
    d, b = e - heavy, ebar - heavybar
    nu, nubar, G = w * d, w * b, torch.where(net >= 0.0, 1.0, -1.0) * (d - b)
    level, _, small = larger_side(G, w)
    loss = 2.0 / 3.0 - (0.5 * level + (1.0 / 6.0) * level.abs())
    share = fade(small)
    sums = [
        share * (part if n is None else part * n).sum(dim=1, keepdim=True)
        for part in (loss * nu, loss * nubar) for n in (nodes.x, nodes.y, nodes.z, None)
    ]  # fmt: skip
    sums[3] = sums[7] = 0.5 * (sums[3] + sums[7])
    if full:
        lost = (share * (w * loss))[:, None]
        number = _average(nodes.g, lost, w)
        found = number, torch.where(nodes.f > 1e-6, _average(nodes.g * nodes.along, lost, w), number)
        order = (0, 2, 1, 3)
        sums += [table[:, k : k + 1] for table in found for k in order]
    return torch.cat(sums, dim=1)


def _average(g: Tensor, part: Tensor, w: Tensor) -> Tensor:
    under = (w[:, None] * g).sum(dim=2)
    return (part * g).sum(dim=2) / torch.where(under.abs() > _TINY, under, 1.0)
