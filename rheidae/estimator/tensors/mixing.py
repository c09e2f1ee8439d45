"""The default network with its quadrature as tensor operations, for exports."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

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

    def __init__(self, model: Any, branches: bool = True, full: bool = False) -> None:
        super().__init__()
        self.model, self.full = model, full
        self.mixing = SurvivalMixing(model.order, branches)

    def forward(self, x: Tensor) -> Any:
        """Change ``(n, 24)`` of normalised states ``x (n, 24)``, float32 as the estimator's module returns it."""
        state = x.double().reshape(-1, 6, 4)
        nodes = self.mixing.prepare(state)
        theta = self.model._theta(self.mixing.invariants(nodes).to(x.dtype))
        h, factor = self.mixing.mixed(nodes, theta.double())
        change = _of_all(self.mixing.change(nodes, h, factor).to(x.dtype))
        nu, nubar = (state[:, s] - state[:, s + 1] for s in (1, 4))
        unlike = torch.cat([nu, nubar], dim=1).abs().amax(dim=1, keepdim=True)
        refused = unlike > ALIKE
        change = torch.where(refused, float("nan"), change)
        if not self.full:
            return change
        matrices = torch.where(refused, float("nan"), matrices_of(self.mixing.averages(nodes, h, factor)))
        around = neighbours(self.mixing, nodes)
        return change, matrices, _of_all(around.D), around.sizes


def _of_all(D: Tensor) -> Tensor:
    """Change ``(n, 24)`` of all species from what nu_e and nubar_e lose, ``(n, 2, 4)``."""
    lost = D[:, :, None]
    return torch.cat([-lost, 0.5 * lost, 0.5 * lost], dim=2).reshape(-1, FLAT)
