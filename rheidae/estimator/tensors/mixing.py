"""The default network with its quadrature as tensor operations, for exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rheidae.estimator.tensors.asymptotic import AsymptoticMixing
from rheidae.estimator.tensors.survival import SurvivalMixing, matrices_of
from rheidae.estimator.tensors.uncertainty import neighbours
from rheidae.fourflux import ALIKE, FLAT


class MixingGraph(nn.Module):
    """`rheidae.estimator.networks.MixingModel` with the quadrature as tensor operations.

    Rows whose mu and tau differ come out as NaN: the scheme for three flavors has no graph. `full`: returns also the
    transition matrices of densities and of fluxes, ``(n, 72)``; the change by the asymptotic scheme ``(n, 24)``; and
    the sizes of its neighbours (`rheidae.estimator.tensors.uncertainty`), float64.
    """

    refuses_unlike = True

    def __init__(self, model: Any, full: bool = False) -> None:
        super().__init__()
        self.model, self.full = model, full
        self.mixing = SurvivalMixing(model.order)
        self.scheme = AsymptoticMixing(full)

    def forward(self, x: Tensor) -> Any:
        """Change ``(n, 24)`` of normalised states ``x (n, 24)``, both float64 as of the estimator's module."""
        state = x.reshape(-1, 6, 4)
        nodes = self.mixing.prepare(state)
        theta = self.model._theta(self.mixing.invariants(nodes).to(self.model.mean.dtype))
        h, factor = self.mixing.mixed(nodes, theta.double())
        beams = nodes.calm < 1.0
        scheme = self.scheme(state, beams)

        def right(answer: Tensor, found: Tensor) -> Tensor:
            """With the scheme's in rows with beams."""
            return torch.where(beams, found + nodes.calm * (answer - found), answer)

        change = _of_all(right(self.mixing.change(nodes, h, factor).reshape(-1, 8), scheme[:, :8]))
        nu, nubar = (state[:, s] - state[:, s + 1] for s in (1, 4))
        unlike = torch.cat([nu, nubar], dim=1).abs().amax(dim=1, keepdim=True)
        refused = unlike > ALIKE
        change = torch.where(refused, float("nan"), change)
        if not self.full:
            return change
        averages = self.mixing.averages(nodes, h, factor)
        number, along = (right(averages[k].T, scheme[:, n : n + 4]) for k, n in ((0, 8), (1, 12)))
        matrices = torch.where(refused, float("nan"), matrices_of(torch.stack([number.T, along.T])))
        around = neighbours(self.mixing, nodes)
        return change, matrices, _of_all(right(around.D.reshape(-1, 8), scheme[:, :8])), around.sizes


def _of_all(D: Tensor) -> Tensor:
    """Change ``(n, 24)`` of all species from what nu_e and nubar_e lose, ``(n, 8)``."""
    lost = D.reshape(-1, 2, 1, 4)
    return torch.cat([-lost, 0.5 * lost, 0.5 * lost], dim=2).reshape(-1, FLAT)
